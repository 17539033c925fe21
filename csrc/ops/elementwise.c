/* Activations, softmax and what follows a product. */
#include "ops/cpu_ops.h"

#include <math.h>

void qv_activate(float *x, qv_activation activation, size_t n) {
    switch (activation) {
    case QV_IDENTITY:
        break;
    case QV_GELU:
        for (size_t i = 0; i < n; i++) {
            x[i] = 0.5f * x[i] * (1.0f + erff(x[i] * 0.70710678118654752f));
        }
        break;
    case QV_GELU_TANH:
        for (size_t i = 0; i < n; i++) {
            x[i] = 0.5f * x[i] * (1.0f + tanhf(0.79788456080286536f * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
        }
        break;
    case QV_QUICK_GELU:
        for (size_t i = 0; i < n; i++) {
            x[i] = x[i] / (1.0f + expf(-1.702f * x[i]));
        }
        break;
    case QV_RELU:
        for (size_t i = 0; i < n; i++) {
            x[i] = x[i] > 0.0f ? x[i] : 0.0f;
        }
        break;
    }
}

void qv_softmax(float *x, size_t n) {
    float largest = -INFINITY;
    for (size_t i = 0; i < n; i++) {
        largest = x[i] > largest ? x[i] : largest;
    }
    if (largest == -INFINITY) {
        for (size_t i = 0; i < n; i++) {
            x[i] = 0.0f;
        }
        return;
    }
    float sum = 0.0f;
    for (size_t i = 0; i < n; i++) {
        x[i] = expf(x[i] - largest);
        sum += x[i];
    }
    float inverse = 1.0f / sum;
    for (size_t i = 0; i < n; i++) {
        x[i] *= inverse;
    }
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
