/* Between the two files that know the CUDA runtime and cuBLASLt; in builds with QV_HAVE_CUDA alone. */
#ifndef QV_CUDA_GPU_H
#define QV_CUDA_GPU_H

#include "cuda/driver.h"

#include <cuda_runtime_api.h>

/* QV_OK, or what the runtime says went wrong in `what`. */
qv_status qv_gpu_check(cudaError_t code, const char *what, qv_error *err);

/* cuBLASLt for one device and stream: the library, which is looked for when the first device is opened, and the plans made
 * so far. A plan says how a product of given sizes, strides and alignments is computed. */
typedef struct qv_gpu_products qv_gpu_products;
qv_status qv_gpu_products_open(qv_gpu_products **products, bool tf32, qv_error *err);
void qv_gpu_products_close(qv_gpu_products *products);
qv_status qv_gpu_multiply(qv_gpu_products *products, const qv_cuda_product *product, cudaStream_t stream, qv_error *err);

#endif
