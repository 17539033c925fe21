/* base/blas.h without OpenBLAS, for CPUs that no OpenBLAS is at hand for: loops. */
#include "base/blas.h"

void qv_sgemm(float *c, size_t ldc, const float *a, size_t lda, bool transpose_a, const float *b, size_t ldb,
              bool transpose_b, float alpha, float beta, size_t M, size_t N, size_t K) {
    for (size_t m = 0; m < M; m++) {
        for (size_t n = 0; n < N; n++) {
            float sum = 0.0f, *out = c + m * ldc + n;
            for (size_t k = 0; k < K; k++) {
                sum += (transpose_a ? a[k * lda + m] : a[m * lda + k]) * (transpose_b ? b[n * ldb + k] : b[k * ldb + n]);
            }
            *out = beta < 0.0f || beta > 0.0f ? alpha * sum + beta * *out : alpha * sum;
        }
    }
}

qv_status qv_blas_start(qv_error *err) {
    (void)err;
    return QV_OK;
}

const char *qv_blas_config(void) {
    return "plain loops";
}

const char *qv_blas_kernels(void) {
    return "plain loops";
}
