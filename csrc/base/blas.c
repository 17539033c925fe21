#include "base/blas.h"

#include <cblas.h>

#if defined(QV_BLAS_SCIPY_PREFIX)
#define BLAS(name) scipy_##name
#else
#define BLAS(name) name
#endif

void qv_sgemm(float *c, size_t ldc, const float *a, size_t lda, bool transpose_a, const float *b, size_t ldb,
              bool transpose_b, float alpha, float beta, size_t M, size_t N, size_t K) {
    if (M == 0 || N == 0) {
        return;
    }
    BLAS(cblas_sgemm)
    (CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans, transpose_b ? CblasTrans : CblasNoTrans, (blasint)M,
     (blasint)N, (blasint)K, alpha, a, (blasint)lda, b, (blasint)ldb, beta, c, (blasint)ldc);
}

qv_status qv_blas_start(qv_error *err) {
    BLAS(openblas_set_num_threads)(1);
    enum { M = 2, N = 3, K = 4 };
    const float a[M * K] = {1, 2, 3, 4, 5, 6, 7, 8};
    const float b[N * K] = {1, 0, 0, 1, 0, 1, 1, 0, 2, 0, 2, 0};
    const float expected[M * N] = {5, 5, 8, 13, 13, 24};
    float c[M * N] = {0};
    qv_sgemm(c, N, a, K, false, b, K, true, 1.0f, 0.0f, M, N, K);
    for (int i = 0; i < M * N; i++) {
        if (c[i] < expected[i] || c[i] > expected[i]) {
            return qv_fail(err, QV_ERR_UNSUPPORTED, "OpenBLAS (%s) gives wrong products: element %d is %g, expected %g",
                           qv_blas_config(), i, (double)c[i], (double)expected[i]);
        }
    }
    return QV_OK;
}

const char *qv_blas_config(void) {
    return BLAS(openblas_get_config)();
}

const char *qv_blas_kernels(void) {
    return BLAS(openblas_get_corename)();
}
