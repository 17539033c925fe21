/* A GPU as a backend of the ops. The same code runs over the host ("cuda-host"), for tests: see driver.h. */
#ifndef QV_CUDA_DEVICE_H
#define QV_CUDA_DEVICE_H

#include "ops/ops.h"

typedef struct qv_cuda_device qv_cuda_device;

typedef struct {
    bool tf32;    /* float32 products may round their factors to TF32 */
    bool offload; /* weights stay on the host and are streamed, a block at a time, through two buffers */
} qv_cuda_options;

/* Open "cuda", "cuda:N" or "cuda-host" (or "cuda-host:1" or ":2", of which host.h tells). QV_ERR_VALUE for another name or
 * a GPU that is not there, QV_ERR_UNSUPPORTED, saying which, without the build, the driver, a GPU or cuBLAS. One stream; calls
 * on it take turns. */
qv_status qv_cuda_open(qv_cuda_device **device, const char *name, const qv_cuda_options *options, qv_error *err);
/* What qv_cuda_open says of the name, without opening anything. */
qv_status qv_cuda_check(const char *name, qv_error *err);
/* After everything that was prepared or allocated on it. */
void qv_cuda_close(qv_cuda_device *device);
/* QV_ERR_UNSUPPORTED in a process that was forked from the one that opened the device. */
qv_status qv_cuda_check_process(const qv_cuda_device *device, qv_error *err);
const qv_ops *qv_cuda_ops(const qv_cuda_device *device);

/* Whether the GPU's driver is in this build. */
bool qv_cuda_built(void);

/* What the device holds, and what it has done; for tests and for whoever wonders. */
typedef struct {
    size_t held;        /* allocations on the device now */
    size_t allocations; /* on the device, ever */
    size_t launches;    /* kernels, ever */
    size_t streamed;    /* blocks of weights copied for offloading, ever */
} qv_cuda_counters;
qv_cuda_counters qv_cuda_count_up(const qv_cuda_device *device);

#endif
