/* The host as a CUDA driver: memory is the host's, a stream is done as soon as it is told, and a launch runs the kernel's
 * body for one block after the other. Slow, and the same arithmetic. */
#include "cuda/driver.h"

#include "base/blas.h"
#include "base/memory.h"
#include "cuda/kernel_attention.h"
#include "cuda/kernel_bodies.h"
#include "cuda/kernel_pictures.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    float *shared; /* of one block: QVK_SHARED_BYTES */
} host_state;

static void host_close(void *state) {
    host_state *host = state;
    qv_free(host->shared);
    qv_free(host);
}

static qv_status host_open(void **state, size_t ordinal, bool tf32, qv_error *err) {
    (void)ordinal;
    (void)tf32;
    host_state *host = qv_allocate(1, sizeof *host);
    float *shared = qv_allocate(QVK_SHARED_BYTES, 1);
    if (host == NULL || shared == NULL) {
        qv_free(host);
        qv_free(shared);
        return qv_fail_memory(err, "the device cuda-host");
    }
    *host = (host_state){shared};
    *state = host;
    return QV_OK;
}

static bool host_has_bfloat16(void *state) {
    (void)state;
    return true;
}

static qv_status host_enter(void *state, qv_error *err) {
    (void)state;
    (void)err;
    return QV_OK;
}

static void *host_allocate(void *state, size_t bytes) {
    (void)state;
    return qv_allocate(bytes, 1);
}

static void host_free(void *state, void *memory) {
    (void)state;
    qv_free(memory);
}

static qv_status host_copy(void *state, qv_cuda_stream stream, void *to, const void *from, size_t bytes,
                           qv_cuda_direction direction, qv_error *err) {
    (void)state;
    (void)stream;
    (void)direction;
    (void)err;
    if (bytes != 0) {
        memcpy(to, from, bytes);
    }
    return QV_OK;
}

static qv_status host_event(void *state, qv_cuda_stream stream, size_t event, qv_error *err) {
    (void)state;
    (void)stream;
    return event < QV_CUDA_EVENTS ? QV_OK : qv_fail(err, QV_ERR_UNSUPPORTED, "cuda-host: there is no event %zu", event);
}

static qv_status host_await(void *state, size_t event, qv_error *err) {
    return host_event(state, QV_CUDA_COMPUTE, event, err);
}

static qv_status host_query(void *state, bool *idle, qv_error *err) {
    (void)state;
    (void)err;
    *idle = true;
    return QV_OK;
}

#define QVK_DEFINE(id, body, parameters)                                                                       \
    static void body##_blocks(const void *p, size_t blocks, unsigned threads, float *shared) {                 \
        for (size_t block = 0; block < blocks; block++) {                                                      \
            body(p, block, threads, shared);                                                                   \
        }                                                                                                      \
    }
QVK_KERNELS(QVK_DEFINE)

static qv_status host_launch(void *state, qvk_kernel kernel, void *parameters, size_t blocks, unsigned threads,
                             size_t shared, qv_error *err) {
#define QVK_ENTRY(id, body, parameters) body##_blocks,
    static void (*const kernels[])(const void *, size_t, unsigned, float *) = {QVK_KERNELS(QVK_ENTRY)};
    host_state *host = state;
    if (blocks == 0 || blocks > INT32_MAX || threads == 0 || threads > QVK_MAX_THREADS || threads % 32 != 0 ||
        shared > QVK_SHARED_BYTES) {
        return qv_fail(err, QV_ERR_UNSUPPORTED, "kernel %d: %zu blocks of %u threads with %zu bytes cannot be launched",
                       (int)kernel, blocks, threads, shared);
    }
    /* What a block leaves in shared memory is not there for the next launch. */
    memset(host->shared, 0xff, shared);
    kernels[kernel](parameters, blocks, threads, host->shared);
    return QV_OK;
}

/* [rows, columns] bfloat16 as floats, in a new array */
static float *widen(const void *bits, size_t ld, size_t rows, size_t columns) {
    float *out = qv_allocate(rows * columns, sizeof *out);
    for (size_t i = 0; out != NULL && i < rows * columns; i++) {
        out[i] = qvk_float((uint32_t)((const uint16_t *)bits)[i / columns * ld + i % columns] << 16);
    }
    return out;
}

static qv_status host_multiply(void *state, const qv_cuda_product *p, qv_error *err) {
    (void)state;
    size_t weight_rows = p->plain_order ? p->K : p->N, weight_columns = p->plain_order ? p->N : p->K;
    const float *x = p->x, *weight = p->weight;
    float *wide_x = NULL, *wide_weight = NULL;
    size_t ld_x = p->ld_x, ld_weight = p->ld_weight;
    if (p->bfloat16) {
        x = wide_x = widen(p->x, ld_x, p->R, p->K);
        weight = wide_weight = widen(p->weight, ld_weight, weight_rows, weight_columns);
        ld_x = p->K;
        ld_weight = weight_columns;
        if (wide_x == NULL || wide_weight == NULL) {
            qv_free(wide_x);
            qv_free(wide_weight);
            return qv_fail_memory(err, "a product on cuda-host");
        }
    }
    for (size_t r = 0; p->residual != NULL && p->residual != p->out && r < p->R; r++) {
        memcpy(p->out + r * p->ld_out, p->residual + r * p->ld_residual, p->N * sizeof *p->out);
    }
    qv_sgemm(p->out, p->ld_out, x, ld_x, false, weight, ld_weight, !p->plain_order, 1.0f,
             p->residual != NULL ? 1.0f : 0.0f, p->R, p->N, p->K);
    for (size_t i = 0; i < p->R * p->N; i++) {
        float *item = p->out + i / p->N * p->ld_out + i % p->N;
        *item = qvk_activate(*item + (p->bias != NULL ? p->bias[i % p->N] : 0.0f), (int)p->activation);
    }
    qv_free(wide_x);
    qv_free(wide_weight);
    return QV_OK;
}

const qv_cuda_driver qv_cuda_host_driver = {
    .name = "cuda-host",
    .open = host_open,
    .close = host_close,
    .has_bfloat16 = host_has_bfloat16,
    .enter = host_enter,
    .allocate = host_allocate,
    .free = host_free,
    .allocate_pinned = host_allocate,
    .free_pinned = host_free,
    .copy = host_copy,
    .record = host_event,
    .await = host_event,
    .host_await = host_await,
    .query = host_query,
    .launch = host_launch,
    .multiply = host_multiply,
};
