/* The kernels on a GPU, and the functions that load and launch them. */
#include "cuda/launch.h"

#include "cuda/kernel_attention.h"
#include "cuda/kernel_bodies.h"
#include "cuda/kernel_pictures.h"
#include "cuda/kernel_scores.h"
#include "cuda/kernel_tensor_attention.h"

/* Blocks that a multiprocessor has at once at the least: registers are left to a thread accordingly. Of two blocks one loads
 * while the other multiplies; wide heads need more registers than that leaves. 0: the compiler's choice. */
static constexpr unsigned blocks_at_once(qvk_kernel kernel) {
    if (kernel == QVK_BFLOAT16_ATTENTION_64 || kernel == QVK_TF32_ATTENTION_64) {
        return 2;
    }
    return kernel >= QVK_BFLOAT16_ATTENTION_64 && kernel <= QVK_TF32_ATTENTION_128 ? 1 : 0;
}

#define QVK_DEFINE(id, body, parameters)                                                             \
    __global__ void __launch_bounds__(QVK_MAX_THREADS, blocks_at_once(QVK_##id))                     \
        body##_kernel(const __grid_constant__ parameters p) {                                        \
        body(&p);                                                                                    \
    }
QVK_KERNELS(QVK_DEFINE)

#define QVK_ENTRY(id, body, parameters) reinterpret_cast<const void *>(&body##_kernel),
static const void *const kernels[] = {QVK_KERNELS(QVK_ENTRY)};

extern "C" cudaError_t qv_cuda_launch(qvk_kernel kernel, void *parameters, size_t blocks, unsigned threads,
                                      size_t shared, cudaStream_t stream) {
    void *arguments[] = {parameters};
    return cudaLaunchKernel(kernels[kernel], dim3(static_cast<unsigned>(blocks)), dim3(threads), arguments, shared,
                            stream);
}

extern "C" cudaError_t qv_cuda_kernel_attributes(qvk_kernel kernel, cudaFuncAttributes *attributes) {
    return cudaFuncGetAttributes(attributes, kernels[kernel]);
}
