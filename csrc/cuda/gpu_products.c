/* Products by cuBLASLt, the one file that knows it. The library is opened when it is needed, so that a build with CUDA
 * runs on the CPU without it; its header is needed to compile.
 *
 * cuBLASLt counts in columns. Row-major out [R, N] = x [R, K] W [N, K]^T is, column by column, out^T [N, R] = W x^T: the
 * weight comes first, transposed, and the bias has one item a row of out^T. */
#include "cuda/gpu.h"

#include "base/memory.h"

#include <cublasLt.h>
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define WORKSPACE_BYTES ((size_t)32 << 20)
#define PLANS ((size_t)128)

/* The functions that are used: pointer name, and what the library calls it. */
#define FUNCTIONS(X)                                          \
    X(create, cublasLtCreate)                                 \
    X(destroy, cublasLtDestroy)                               \
    X(status_string, cublasLtGetStatusString)                 \
    X(matmul, cublasLtMatmul)                                 \
    X(heuristic, cublasLtMatmulAlgoGetHeuristic)              \
    X(desc_create, cublasLtMatmulDescCreate)                  \
    X(desc_destroy, cublasLtMatmulDescDestroy)                \
    X(desc_set, cublasLtMatmulDescSetAttribute)               \
    X(layout_create, cublasLtMatrixLayoutCreate)              \
    X(layout_destroy, cublasLtMatrixLayoutDestroy)            \
    X(preference_create, cublasLtMatmulPreferenceCreate)      \
    X(preference_destroy, cublasLtMatmulPreferenceDestroy)    \
    X(preference_set, cublasLtMatmulPreferenceSetAttribute)

typedef struct {
    void *library;
#define MEMBER(name, symbol) __typeof__(&symbol) name;
    FUNCTIONS(MEMBER)
#undef MEMBER
} functions;

/* What a plan depends on; compared as bytes, so nothing lies between the members. */
typedef struct {
    size_t R, N, K, ld_out, ld_x, ld_weight, ld_residual, adds;
    uint32_t out_alignment, x_alignment, weight_alignment, residual_alignment, bias_alignment;
    int32_t epilogue, plain_order, bfloat16;
} plan_key;

_Static_assert(sizeof(plan_key) == 8 * sizeof(size_t) + 8 * sizeof(int32_t), "a plan's key has no padding");

typedef struct {
    plan_key key;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t weight, x, residual, out;
    cublasLtMatmulAlgo_t algorithm;
    bool ready, refused; /* refused: there is no algorithm, and looking for one again would find none */
} plan;

struct qv_gpu_products {
    functions lt;
    cublasLtHandle_t handle;
    void *workspace;
    bool tf32;
    plan plans[PLANS];
    size_t plan_count, oldest;
};

static qv_status check(const qv_gpu_products *products, cublasStatus_t code, const char *what, qv_error *err) {
    if (code == CUBLAS_STATUS_SUCCESS) {
        return QV_OK;
    }
    return qv_fail(err, QV_ERR_UNSUPPORTED, "cuBLASLt: %s: %s", what, products->lt.status_string(code));
}

static qv_status open_library(functions *lt, qv_error *err) {
    char name[64];
    snprintf(name, sizeof name, "libcublasLt.so.%d", CUBLAS_VER_MAJOR);
    lt->library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (lt->library == NULL) {
        const char *reason = dlerror();
        return qv_fail(err, QV_ERR_UNSUPPORTED,
                       "device 'cuda': cuBLASLt (%s) was not found; install CUDA's libraries, or the package "
                       "nvidia-cublas beside qavit (%s)",
                       name, reason != NULL ? reason : "no reason given");
    }
#define LOOK_UP(name, symbol)                                                                              \
    {                                                                                                      \
        void *address = dlsym(lt->library, #symbol);                                                       \
        if (address == NULL) {                                                                             \
            return qv_fail(err, QV_ERR_UNSUPPORTED, "device 'cuda': this cuBLASLt has no %s", #symbol);    \
        }                                                                                                  \
        memcpy(&lt->name, &address, sizeof address);                                                       \
    }
    FUNCTIONS(LOOK_UP)
#undef LOOK_UP
    return QV_OK;
}

qv_status qv_gpu_products_open(qv_gpu_products **out, bool tf32, qv_error *err) {
    *out = NULL;
    qv_gpu_products *products = qv_allocate(1, sizeof *products);
    if (products == NULL) {
        return qv_fail_memory(err, "the plans of products");
    }
    memset(products, 0, sizeof *products);
    products->tf32 = tf32;
    qv_status status = open_library(&products->lt, err);
    if (status == QV_OK) {
        status = check(products, products->lt.create(&products->handle), "starting", err);
    }
    if (status == QV_OK) {
        status = qv_gpu_check(cudaMalloc(&products->workspace, WORKSPACE_BYTES), "the products' workspace", err);
    }
    if (status != QV_OK) {
        qv_gpu_products_close(products);
        return status;
    }
    *out = products;
    return QV_OK;
}

static void free_plan(const qv_gpu_products *products, plan *made) {
    const functions *lt = &products->lt;
    cublasLtMatrixLayout_t layouts[] = {made->weight, made->x, made->residual, made->out};
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        if (layouts[i] != NULL) {
            (void)lt->layout_destroy(layouts[i]);
        }
    }
    if (made->desc != NULL) {
        (void)lt->desc_destroy(made->desc);
    }
    memset(made, 0, sizeof *made);
}

void qv_gpu_products_close(qv_gpu_products *products) {
    if (products == NULL) {
        return;
    }
    for (size_t i = 0; i < products->plan_count; i++) {
        free_plan(products, &products->plans[i]);
    }
    (void)cudaFree(products->workspace);
    if (products->handle != NULL) {
        (void)products->lt.destroy(products->handle);
    }
    /* The library stays open: it keeps threads and handlers of its own. */
    qv_free(products);
}

/* The largest power of two that the address is a multiple of, up to what arenas and offloaded weights promise: the same layer
 * has the same plan wherever its weights lie. */
static uint32_t alignment_of(const void *memory) {
    uintptr_t address = (uintptr_t)memory | QV_ALIGNMENT;
    return (uint32_t)(address & (~address + 1u));
}

static plan_key key_of(const qv_cuda_product *p) {
    plan_key key;
    memset(&key, 0, sizeof key);
    key.R = p->R;
    key.N = p->N;
    key.K = p->K;
    key.ld_out = p->ld_out;
    key.ld_x = p->ld_x;
    key.ld_weight = p->ld_weight;
    key.plain_order = p->plain_order;
    key.bfloat16 = p->bfloat16;
    key.out_alignment = alignment_of(p->out);
    key.x_alignment = alignment_of(p->x);
    key.weight_alignment = alignment_of(p->weight);
    key.bias_alignment = alignment_of(p->bias);
    key.adds = p->residual != NULL;
    key.ld_residual = p->residual != NULL ? p->ld_residual : p->ld_out;
    key.residual_alignment = p->residual != NULL ? alignment_of(p->residual) : key.out_alignment;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    if (p->activation == QV_GELU_TANH) {
        epilogue = p->bias != NULL ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
    } else if (p->bias != NULL) {
        epilogue = CUBLASLT_EPILOGUE_BIAS;
    }
    key.epilogue = (int32_t)epilogue;
    return key;
}

static qv_status describe(const qv_gpu_products *products, plan *made, qv_error *err) {
    const functions *lt = &products->lt;
    const plan_key *key = &made->key;
    cublasComputeType_t compute =
        products->tf32 && !key->bfloat16 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    cublasOperation_t first = key->plain_order ? CUBLAS_OP_N : CUBLAS_OP_T, second = CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue = (cublasLtEpilogue_t)key->epilogue;
    cudaDataType_t factors = key->bfloat16 ? CUDA_R_16BF : CUDA_R_32F;
    size_t rows = key->plain_order ? key->N : key->K, columns = key->plain_order ? key->K : key->N;
    cublasStatus_t code = lt->desc_create(&made->desc, compute, CUDA_R_32F);
    const struct {
        cublasLtMatmulDescAttributes_t attribute;
        const void *value;
        size_t size;
    } attributes[] = {
        {CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first},
        {CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second},
        {CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue},
    };
    for (size_t i = 0; code == CUBLAS_STATUS_SUCCESS && i < sizeof attributes / sizeof attributes[0]; i++) {
        code = lt->desc_set(made->desc, attributes[i].attribute, attributes[i].value, attributes[i].size);
    }
    const struct {
        cublasLtMatrixLayout_t *layout;
        cudaDataType_t type;
        size_t rows, columns, ld;
    } matrices[] = {
        {&made->weight, factors, rows, columns, key->ld_weight},
        {&made->x, factors, key->K, key->R, key->ld_x},
        {&made->residual, CUDA_R_32F, key->N, key->R, key->ld_residual},
        {&made->out, CUDA_R_32F, key->N, key->R, key->ld_out},
    };
    for (size_t i = 0; code == CUBLAS_STATUS_SUCCESS && i < sizeof matrices / sizeof matrices[0]; i++) {
        code = lt->layout_create(matrices[i].layout, matrices[i].type, matrices[i].rows, matrices[i].columns,
                                 (int64_t)matrices[i].ld);
    }
    return check(products, code, "describing a product", err);
}

static qv_status refuse(const plan_key *key, qv_error *err) {
    return qv_fail(err, QV_ERR_UNSUPPORTED, "cuBLASLt: no algorithm for [%zu, %zu] x [%zu, %zu]", key->R, key->K, key->K,
                   key->N);
}

static qv_status choose_algorithm(const qv_gpu_products *products, plan *made, qv_error *err) {
    const functions *lt = &products->lt;
    const plan_key *key = &made->key;
    cublasLtMatmulPreference_t preference = NULL;
    qv_status status = check(products, lt->preference_create(&preference), "choosing an algorithm", err);
    if (status != QV_OK) {
        return status;
    }
    size_t workspace = WORKSPACE_BYTES;
    const struct {
        cublasLtMatmulPreferenceAttributes_t attribute;
        const void *value;
        size_t size;
    } wishes[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &key->weight_alignment, sizeof key->weight_alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &key->x_alignment, sizeof key->x_alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &key->residual_alignment, sizeof key->residual_alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &key->out_alignment, sizeof key->out_alignment},
    };
    for (size_t i = 0; status == QV_OK && i < sizeof wishes / sizeof wishes[0]; i++) {
        status = check(products, lt->preference_set(preference, wishes[i].attribute, wishes[i].value, wishes[i].size),
                       "choosing an algorithm", err);
    }
    cublasLtMatmulHeuristicResult_t found = {0};
    int count = 0;
    if (status == QV_OK) {
        cublasStatus_t code = lt->heuristic(products->handle, made->desc, made->weight, made->x, made->residual,
                                            made->out, preference, 1, &found, &count);
        made->refused = code == CUBLAS_STATUS_NOT_SUPPORTED ||
                        (code == CUBLAS_STATUS_SUCCESS && (count == 0 || found.state != CUBLAS_STATUS_SUCCESS));
        status = made->refused ? refuse(key, err) : check(products, code, "choosing an algorithm", err);
    }
    (void)lt->preference_destroy(preference);
    made->algorithm = found.algo;
    return status;
}

static qv_status set_bias(const qv_gpu_products *products, const plan *made, const float *bias, qv_error *err) {
    if (bias == NULL) {
        return QV_OK;
    }
    return check(products, products->lt.desc_set(made->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias),
                 "setting a bias", err);
}

/* The plan for such a product, made when it first comes; NULL with an error. */
static plan *find_plan(qv_gpu_products *products, const plan_key *key, const float *bias, qv_error *err) {
    for (size_t i = 0; i < products->plan_count; i++) {
        plan *known = &products->plans[i];
        if ((known->ready || known->refused) && memcmp(&known->key, key, sizeof *key) == 0) {
            return (known->refused ? refuse(key, err) : set_bias(products, known, bias, err)) == QV_OK ? known : NULL;
        }
    }
    plan *made;
    if (products->plan_count < PLANS) {
        made = &products->plans[products->plan_count++];
    } else {
        made = &products->plans[products->oldest];
        products->oldest = (products->oldest + 1) % PLANS;
    }
    free_plan(products, made);
    made->key = *key;
    if (describe(products, made, err) != QV_OK || set_bias(products, made, bias, err) != QV_OK ||
        choose_algorithm(products, made, err) != QV_OK) {
        return NULL;
    }
    made->ready = true;
    return made;
}

qv_status qv_gpu_multiply(qv_gpu_products *products, const qv_cuda_product *p, cudaStream_t stream, qv_error *err) {
    plan_key key = key_of(p);
    plan *made = find_plan(products, &key, p->bias, err);
    if (made == NULL) {
        return err->code;
    }
    const float one = 1.0f, zero = 0.0f;
    const float *residual = p->residual != NULL ? p->residual : p->out;
    cublasStatus_t code = products->lt.matmul(products->handle, made->desc, &one, p->weight, made->weight, p->x, made->x,
                                              p->residual != NULL ? &one : &zero, residual, made->residual, p->out, made->out,
                                              &made->algorithm, products->workspace, WORKSPACE_BYTES, stream);
    return check(products, code, "multiplying", err);
}
