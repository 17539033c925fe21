/* A GPU through the CUDA runtime, which is linked statically and looks for the driver when it is first asked: a build with
 * CUDA is imported and computes on the CPU where there is no driver. */
#include "cuda/gpu.h"

#include "base/memory.h"
#include "cuda/launch.h"

typedef struct {
    int ordinal;
    bool has_tensor_cores; /* for bfloat16 and TF32 */
    size_t blocks_at_once;
    cudaStream_t streams[QV_CUDA_STREAMS];
    cudaEvent_t events[QV_CUDA_EVENTS];
    qv_gpu_products *products;
} gpu_state;

qv_status qv_cuda_count(size_t *count, qv_error *err) {
    int found = 0, version = 0;
    cudaError_t code = cudaGetDeviceCount(&found);
    *count = 0;
    if (code == cudaErrorInsufficientDriver || code == cudaErrorStubLibrary || code == cudaErrorSystemDriverMismatch) {
        (void)cudaGetLastError();
        if (cudaDriverGetVersion(&version) != cudaSuccess || version == 0) {
            return qv_fail(err, QV_ERR_UNSUPPORTED,
                           "device 'cuda': no NVIDIA driver was found (libcuda.so.1); install it, or use device='cpu'");
        }
        return qv_fail(err, QV_ERR_UNSUPPORTED,
                       "device 'cuda': the NVIDIA driver supports CUDA up to %d.%d, this build needs %d.%d", version / 1000,
                       version % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    }
    if (code == cudaErrorNoDevice || (code == cudaSuccess && found < 1)) {
        (void)cudaGetLastError();
        return qv_fail(err, QV_ERR_UNSUPPORTED,
                       "device 'cuda': the NVIDIA driver finds no GPU (is CUDA_VISIBLE_DEVICES set?); use device='cpu'");
    }
    if (code == cudaErrorInitializationError) {
        (void)cudaGetLastError();
        return qv_fail(err, QV_ERR_UNSUPPORTED,
                       "device 'cuda': the NVIDIA driver does not start; it never does in a process forked from one that "
                       "used it: start processes by spawning them");
    }
    if (code == cudaSuccess) {
        *count = (size_t)found;
    }
    return qv_gpu_check(code, "counting the GPUs", err);
}

static void gpu_close(void *state) {
    gpu_state *gpu = state;
    if (cudaSetDevice(gpu->ordinal) == cudaSuccess) {
        for (size_t i = 0; i < QV_CUDA_EVENTS; i++) {
            if (gpu->events[i] != NULL) {
                (void)cudaEventDestroy(gpu->events[i]);
            }
        }
        for (size_t i = 0; i < QV_CUDA_STREAMS; i++) {
            if (gpu->streams[i] != NULL) {
                (void)cudaStreamDestroy(gpu->streams[i]);
            }
        }
        qv_gpu_products_close(gpu->products);
    }
    qv_free(gpu);
}

static qv_status open_streams(gpu_state *gpu, qv_error *err) {
    qv_status status = qv_gpu_check(cudaSetDevice(gpu->ordinal), "choosing the GPU", err);
    for (size_t i = 0; status == QV_OK && i < QV_CUDA_STREAMS; i++) {
        status = qv_gpu_check(cudaStreamCreateWithFlags(&gpu->streams[i], cudaStreamNonBlocking), "making a stream", err);
    }
    for (size_t i = 0; status == QV_OK && i < QV_CUDA_EVENTS; i++) {
        status = qv_gpu_check(cudaEventCreateWithFlags(&gpu->events[i], cudaEventDisableTiming), "making an event", err);
    }
    int major = 0, multiprocessors = 0, threads = 0;
    const struct {
        int *value;
        enum cudaDeviceAttr attribute;
    } asked[] = {{&major, cudaDevAttrComputeCapabilityMajor},
                 {&multiprocessors, cudaDevAttrMultiProcessorCount},
                 {&threads, cudaDevAttrMaxThreadsPerMultiProcessor}};
    for (size_t i = 0; status == QV_OK && i < sizeof asked / sizeof asked[0]; i++) {
        status = qv_gpu_check(cudaDeviceGetAttribute(asked[i].value, asked[i].attribute, gpu->ordinal),
                              "asking what the GPU is", err);
    }
    gpu->has_tensor_cores = major >= 8;
    gpu->blocks_at_once = (size_t)multiprocessors * ((size_t)threads / QVK_MAX_THREADS);
    return status;
}

/* Load every kernel now: a GPU that none was compiled for, or that cannot run one as it is launched, is told when the model
 * is loaded. */
static qv_status load_kernels(qv_error *err) {
    for (int kernel = 0; kernel < (int)QVK_KERNEL_COUNT; kernel++) {
        struct cudaFuncAttributes attributes;
        cudaError_t code = qv_cuda_kernel_attributes((qvk_kernel)kernel, &attributes);
        if (code == cudaErrorNoKernelImageForDevice || code == cudaErrorInvalidDeviceFunction) {
            (void)cudaGetLastError();
            return qv_fail(err, QV_ERR_UNSUPPORTED,
                           "device 'cuda': this build's kernels are not for this GPU; name its compute capability in "
                           "QAVIT_CUDA_ARCHS when building");
        }
        qv_status status = qv_gpu_check(code, "loading the kernels", err);
        if (status != QV_OK) {
            return status;
        }
        if (attributes.maxThreadsPerBlock < (int)QVK_MAX_THREADS || attributes.sharedSizeBytes > QVK_STATIC_BYTES) {
            return qv_fail(err, QV_ERR_UNSUPPORTED, "CUDA: kernel %d takes %d threads and has %zu bytes of its own", kernel,
                           attributes.maxThreadsPerBlock, attributes.sharedSizeBytes);
        }
    }
    return QV_OK;
}

static qv_status gpu_open(void **state, size_t ordinal, bool tf32, qv_error *err) {
    gpu_state *gpu = qv_allocate(1, sizeof *gpu);
    if (gpu == NULL) {
        return qv_fail_memory(err, "a GPU's state");
    }
    *gpu = (gpu_state){.ordinal = (int)ordinal};
    qv_status status = open_streams(gpu, err);
    if (status == QV_OK) {
        status = load_kernels(err);
    }
    if (status == QV_OK) {
        status = qv_gpu_products_open(&gpu->products, tf32 && gpu->has_tensor_cores, err);
    }
    if (status != QV_OK) {
        gpu_close(gpu);
        return status;
    }
    *state = gpu;
    return QV_OK;
}

static bool gpu_has_tensor_cores(void *state) {
    return ((gpu_state *)state)->has_tensor_cores;
}

static size_t gpu_blocks_at_once(void *state) {
    return ((gpu_state *)state)->blocks_at_once;
}

static qv_status gpu_enter(void *state, qv_error *err) {
    return qv_gpu_check(cudaSetDevice(((gpu_state *)state)->ordinal), "choosing the GPU", err);
}

static void *gpu_allocate(void *state, size_t bytes) {
    void *memory = NULL;
    if (cudaSetDevice(((gpu_state *)state)->ordinal) != cudaSuccess || cudaMalloc(&memory, bytes) != cudaSuccess) {
        (void)cudaGetLastError();
        return NULL;
    }
    return memory;
}

static void gpu_free(void *state, void *memory) {
    if (cudaSetDevice(((gpu_state *)state)->ordinal) == cudaSuccess) {
        (void)cudaFree(memory);
    }
}

static void *gpu_allocate_pinned(void *state, size_t bytes) {
    void *memory = NULL;
    if (cudaSetDevice(((gpu_state *)state)->ordinal) != cudaSuccess || cudaMallocHost(&memory, bytes) != cudaSuccess) {
        (void)cudaGetLastError();
        return NULL;
    }
    return memory;
}

static void gpu_free_pinned(void *state, void *memory) {
    if (memory != NULL && cudaSetDevice(((gpu_state *)state)->ordinal) == cudaSuccess) {
        (void)cudaFreeHost(memory);
    }
}

static qv_status gpu_copy(void *state, qv_cuda_stream stream, void *to, const void *from, size_t bytes,
                          qv_cuda_direction direction, qv_error *err) {
    enum cudaMemcpyKind kind = direction == QV_CUDA_TO_DEVICE ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost;
    return qv_gpu_check(cudaMemcpyAsync(to, from, bytes, kind, ((gpu_state *)state)->streams[stream]),
                        direction == QV_CUDA_TO_DEVICE ? "copying to the GPU" : "copying from the GPU", err);
}

static qv_status gpu_record(void *state, qv_cuda_stream stream, size_t event, qv_error *err) {
    gpu_state *gpu = state;
    return qv_gpu_check(cudaEventRecord(gpu->events[event], gpu->streams[stream]), "marking a stream", err);
}

static qv_status gpu_await(void *state, qv_cuda_stream stream, size_t event, qv_error *err) {
    gpu_state *gpu = state;
    return qv_gpu_check(cudaStreamWaitEvent(gpu->streams[stream], gpu->events[event], 0), "ordering two streams", err);
}

static qv_status gpu_host_await(void *state, size_t event, qv_error *err) {
    return qv_gpu_check(cudaEventSynchronize(((gpu_state *)state)->events[event]), "waiting for a copy", err);
}

static qv_status gpu_query(void *state, bool *idle, qv_error *err) {
    cudaError_t code = cudaStreamQuery(((gpu_state *)state)->streams[QV_CUDA_COMPUTE]);
    *idle = code != cudaErrorNotReady;
    if (!*idle) {
        (void)cudaGetLastError();
        return QV_OK;
    }
    return qv_gpu_check(code, "running the model", err);
}

static qv_status gpu_launch(void *state, qvk_kernel kernel, void *parameters, size_t blocks, unsigned threads,
                            size_t shared, qv_error *err) {
    if (blocks > INT32_MAX) {
        return qv_fail(err, QV_ERR_UNSUPPORTED, "CUDA: kernel %d over %zu blocks", (int)kernel, blocks);
    }
    cudaStream_t stream = ((gpu_state *)state)->streams[QV_CUDA_COMPUTE];
    return qv_gpu_check(qv_cuda_launch(kernel, parameters, blocks, threads, shared, stream), "starting a kernel", err);
}

static qv_status gpu_multiply(void *state, const qv_cuda_product *product, qv_error *err) {
    gpu_state *gpu = state;
    cudaStream_t stream = gpu->streams[QV_CUDA_COMPUTE];
    qv_status status = qv_gpu_multiply(gpu->products, product, stream, err);
    if (status != QV_ERR_UNSUPPORTED || (product->bias == NULL && product->activation == QV_IDENTITY)) {
        return status;
    }
    /* No algorithm with that epilogue: the product alone, and the rest by a kernel. */
    qv_cuda_product bare = *product;
    bare.bias = NULL;
    bare.activation = QV_IDENTITY;
    status = qv_gpu_multiply(gpu->products, &bare, stream, err);
    qvk_elements rest = {.out = {product->out, product->ld_out},
                         .x = {product->out, product->ld_out},
                         .bias = product->bias,
                         .activation = (int)product->activation,
                         .D = product->N,
                         .chunks = (product->N + QVK_CHUNK - 1) / QVK_CHUNK};
    return status != QV_OK
               ? status
               : gpu_launch(state, QVK_ELEMENTS, &rest, product->R * rest.chunks, QVK_MAX_THREADS, 0, err);
}

const qv_cuda_driver qv_cuda_gpu_driver = {
    .name = "cuda",
    .open = gpu_open,
    .close = gpu_close,
    .has_tensor_cores = gpu_has_tensor_cores,
    .blocks_at_once = gpu_blocks_at_once,
    .enter = gpu_enter,
    .allocate = gpu_allocate,
    .free = gpu_free,
    .allocate_pinned = gpu_allocate_pinned,
    .free_pinned = gpu_free_pinned,
    .copy = gpu_copy,
    .record = gpu_record,
    .await = gpu_await,
    .host_await = gpu_host_await,
    .query = gpu_query,
    .launch = gpu_launch,
    .multiply = gpu_multiply,
};
