/* Activations, softmax and what follows a product. */
#include "ops/cpu_ops.h"

#include "ops/kernels.h"

void qv_activate(float *x, qv_activation activation, size_t n) {
    if (activation != QV_IDENTITY) {
        qv_kernels_here()->activate(x, activation, n);
    }
}

void qv_softmax(float *x, size_t n) {
    const qv_kernels *kernels = qv_kernels_here();
    kernels->scale(x, x, kernels->exponentiate(x, 1.0f, n), n);
}

void qv_apply_epilogue(qv_rows out, const float *bias, const qv_epilogue *epilogue, size_t column, size_t rows,
                       size_t count) {
    const qv_epilogue none = {0}, *e = epilogue != NULL ? epilogue : &none;
    for (size_t r = 0; r < rows; r++) {
        float *row = out.at + r * out.ld;
        for (size_t i = 0; bias != NULL && i < count; i++) {
            row[i] += bias[i];
        }
        qv_activate(row, e->activation, count);
        for (size_t i = 0; e->multiply.at != NULL && i < count; i++) {
            row[i] *= e->multiply.at[r * e->multiply.ld + column + i];
        }
        for (size_t i = 0; e->residual.at != NULL && i < count; i++) {
            row[i] += e->residual.at[r * e->residual.ld + column + i];
        }
    }
}
