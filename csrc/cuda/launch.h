/* Between kernels.cu, which nvcc compiles, and the driver, which is C. */
#ifndef QV_CUDA_LAUNCH_H
#define QV_CUDA_LAUNCH_H

#include "cuda/kernels.h"

#include <cuda_runtime_api.h>

#if defined(__cplusplus)
extern "C" {
#endif

/* Start a kernel over its parameters (copied): `blocks` blocks of `threads` threads and `shared` bytes each. */
cudaError_t qv_cuda_launch(qvk_kernel kernel, void *parameters, size_t blocks, unsigned threads, size_t shared,
                           cudaStream_t stream);
cudaError_t qv_cuda_kernel_attributes(qvk_kernel kernel, struct cudaFuncAttributes *attributes);

#if defined(__cplusplus)
}
#endif

#endif
