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

void qv_apply_epilogue(float *out, size_t ld_out, const float *bias, const qv_epilogue *epilogue, size_t column,
                       size_t rows, size_t count) {
    for (size_t r = 0; r < rows; r++) {
        float *row = out + r * ld_out;
        if (bias != NULL) {
            for (size_t i = 0; i < count; i++) {
                row[i] += bias[i];
            }
        }
        qv_activate(row, epilogue->activation, count);
        if (epilogue->multiply != NULL) {
            const float *factor = epilogue->multiply + r * epilogue->ld_multiply + column;
            for (size_t i = 0; i < count; i++) {
                row[i] *= factor[i];
            }
        }
        if (epilogue->residual != NULL) {
            const float *residual = epilogue->residual + r * epilogue->ld_residual + column;
            for (size_t i = 0; i < count; i++) {
                row[i] += residual[i];
            }
        }
    }
}
