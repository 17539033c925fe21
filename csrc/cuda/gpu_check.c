/* What a call of the CUDA runtime says, as a status. */
#include "cuda/gpu.h"

qv_status qv_gpu_check(cudaError_t code, const char *what, qv_error *err) {
    if (code == cudaSuccess) {
        return QV_OK;
    }
    (void)cudaGetLastError(); /* an error that can be got over is not told twice */
    if (code == cudaErrorMemoryAllocation) {
        return qv_fail(err, QV_ERR_MEMORY, "out of memory on the GPU: %s", what);
    }
    return qv_fail(err, QV_ERR_UNSUPPORTED, "CUDA: %s: %s (%s)", what, cudaGetErrorString(code), cudaGetErrorName(code));
}
