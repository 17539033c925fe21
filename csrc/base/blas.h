/* The one door to OpenBLAS. It runs single-threaded here; the thread pool cuts the work. */
#ifndef QV_BASE_BLAS_H
#define QV_BASE_BLAS_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>

/* c [M, N] (row stride ldc) = alpha * op(a) op(b) + beta * c, row-major; op transposes where asked:
 * a is [M, K] (or [K, M] transposed), b is [K, N] (or [N, K] transposed). Sizes and strides must fit in an int. */
void qv_sgemm(float *c, size_t ldc, const float *a, size_t lda, bool transpose_a, const float *b, size_t ldb,
              bool transpose_b, float alpha, float beta, size_t M, size_t N, size_t K);

/* One thread, no message of its own on stderr, and a product with a known answer; QV_ERR_UNSUPPORTED when it is wrong. */
qv_status qv_blas_start(qv_error *err);

/* Name, version and kernel set, e.g. "OpenBLAS 0.3.34 ... SkylakeX"; a static string of the library's. */
const char *qv_blas_config(void);
const char *qv_blas_kernels(void);

#endif
