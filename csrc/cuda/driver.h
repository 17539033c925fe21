/* What the CUDA ops stand on: one device's memory, copies, launches and products. There are two drivers. One is the CUDA
 * runtime with cuBLASLt, in builds with QV_HAVE_CUDA. The other is the host, in every build: it runs the kernels' bodies
 * as loops, so that all above this interface is tested where there is no GPU. */
#ifndef QV_CUDA_DRIVER_H
#define QV_CUDA_DRIVER_H

#include "base/error.h"
#include "cuda/kernels.h"
#include "ops/ops.h"

typedef enum { QV_CUDA_TO_DEVICE, QV_CUDA_TO_HOST } qv_cuda_direction;
typedef enum { QV_CUDA_COMPUTE, QV_CUDA_COPY, QV_CUDA_STREAMS } qv_cuda_stream;

/* out [R, N] = act(x [R, K] weight + bias) + residual. The weight is [N, K], or [K, N] where `plain_order`; bfloat16
 * says that x and weight are. At most one of activation (identity or gelu_tanh) and residual is given; the residual
 * may be `out`. */
typedef struct {
    float *out;
    size_t ld_out;
    const void *x;
    size_t ld_x;
    const void *weight;
    size_t ld_weight;
    bool plain_order, bfloat16;
    const float *bias;
    qv_activation activation;
    const float *residual;
    size_t ld_residual;
    size_t R, N, K;
} qv_cuda_product;

typedef struct qv_cuda_driver qv_cuda_driver;
struct qv_cuda_driver {
    const char *name;
    /* A device's state: context, streams, events, workspace. `tf32`: float32 products may round to it. */
    qv_status (*open)(void **state, size_t ordinal, bool tf32, qv_error *err);
    void (*close)(void *state);
    bool (*has_tensor_cores)(void *state); /* for bfloat16 and TF32 */
    size_t (*blocks_at_once)(void *state); /* of QVK_MAX_THREADS that the device has room for */
    /* Calls on this thread go to this device. */
    qv_status (*enter)(void *state, qv_error *err);
    void *(*allocate)(void *state, size_t bytes); /* NULL: no memory */
    void (*free)(void *state, void *memory);
    void *(*allocate_pinned)(void *state, size_t bytes);
    void (*free_pinned)(void *state, void *memory);
    /* In order on a stream. The host's side is pinned and not touched until then; of other memory what goes out has been read
     * when this returns, and what comes in is not touched until the stream is idle. */
    qv_status (*copy)(void *state, qv_cuda_stream stream, void *to, const void *from, size_t bytes,
                      qv_cuda_direction direction, qv_error *err);
    /* Events 0 .. QV_CUDA_EVENTS - 1: mark a point of a stream; let another stream, or the host, wait for it. */
    qv_status (*record)(void *state, qv_cuda_stream stream, size_t event, qv_error *err);
    qv_status (*await)(void *state, qv_cuda_stream stream, size_t event, qv_error *err);
    qv_status (*host_await)(void *state, size_t event, qv_error *err);
    /* *idle: whether all that was started on the compute stream is done */
    qv_status (*query)(void *state, bool *idle, qv_error *err);
    /* On the compute stream: */
    qv_status (*launch)(void *state, qvk_kernel kernel, void *parameters, size_t blocks, unsigned threads,
                        size_t shared, qv_error *err);
    qv_status (*multiply)(void *state, const qv_cuda_product *product, qv_error *err);
};

#define QV_CUDA_EVENTS ((size_t)8)

extern const qv_cuda_driver qv_cuda_host_driver;
#if defined(QV_HAVE_CUDA)
extern const qv_cuda_driver qv_cuda_gpu_driver;
/* GPUs that the driver finds; QV_ERR_UNSUPPORTED without a driver or a GPU, saying which is missing. */
qv_status qv_cuda_count(size_t *count, qv_error *err);
#endif

#endif
