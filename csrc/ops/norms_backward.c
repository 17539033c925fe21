/* The gradient of a layer norm's input, a row at a time. */
#include "ops/cpu_ops.h"

#include "base/threads.h"

#include <math.h>

typedef struct {
    float *dx;
    size_t ld_dx;
    const float *dy;
    size_t ld_dy;
    const float *x;
    size_t ld_x;
    const float *weight;
    float eps;
    size_t R, D, rows_a_task;
} backward_work;

/* y = n weight + bias, n = (x - mean) inverse; with g = dy weight: dx = (g - mean(g) - n mean(g n)) inverse */
static void layer_norm_row(float *dx, const float *dy, const float *x, const float *weight, float eps, size_t D) {
    float sum = 0.0f;
    for (size_t i = 0; i < D; i++) {
        sum += x[i];
    }
    float mean = sum / (float)D;
    float squares = 0.0f, sum_g = 0.0f, sum_gn = 0.0f;
    for (size_t i = 0; i < D; i++) {
        float centred = x[i] - mean, g = dy[i] * weight[i];
        squares += centred * centred;
        sum_g += g;
        sum_gn += g * centred;
    }
    float inverse = 1.0f / sqrtf(squares / (float)D + eps);
    float mean_g = sum_g / (float)D, slope = sum_gn / (float)D * inverse * inverse;
    for (size_t i = 0; i < D; i++) {
        dx[i] = (dy[i] * weight[i] - mean_g - (x[i] - mean) * slope) * inverse;
    }
}

static void layer_norm_task(void *context, size_t task, size_t lane) {
    (void)lane;
    const backward_work *w = context;
    size_t end = (task + 1) * w->rows_a_task < w->R ? (task + 1) * w->rows_a_task : w->R;
    for (size_t r = task * w->rows_a_task; r < end; r++) {
        layer_norm_row(w->dx + r * w->ld_dx, w->dy + r * w->ld_dy, w->x + r * w->ld_x, w->weight, w->eps, w->D);
    }
}

void qv_cpu_layer_norm_backward(qv_call *call, float *dx, size_t ld_dx, const float *dy, size_t ld_dy, const float *x,
                                size_t ld_x, const float *weight, float eps, size_t R, size_t D) {
    size_t least = 8192 / (D + 1) + 1, share = (R + call->lanes - 1) / call->lanes;
    size_t rows = share < least ? least : share;
    backward_work work = {dx, ld_dx, dy, ld_dy, x, ld_x, weight, eps, R, D, rows};
    qv_parallel(call->lanes, (R + rows - 1) / rows, layer_norm_task, &work);
}
