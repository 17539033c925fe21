/* Normalisation, a row at a time. */
#include "ops/cpu_ops.h"

#include "base/threads.h"
#include "ops/kernels.h"

#include <math.h>

typedef struct {
    const qv_kernels *kernels;
    float *out;
    size_t ld_out;
    const float *x;
    size_t ld_x;
    const float *weight, *bias;
    float eps;
    size_t R, D, rows_a_task;
} norm_work;

static void layer_norm_task(void *context, size_t task, size_t lane) {
    (void)lane;
    const norm_work *w = context;
    size_t end = (task + 1) * w->rows_a_task < w->R ? (task + 1) * w->rows_a_task : w->R;
    for (size_t r = task * w->rows_a_task; r < end; r++) {
        w->kernels->layer_norm(w->out + r * w->ld_out, w->x + r * w->ld_x, w->weight, w->bias, w->eps, w->D);
    }
}

static void rms_norm_task(void *context, size_t task, size_t lane) {
    (void)lane;
    const norm_work *w = context;
    size_t end = (task + 1) * w->rows_a_task < w->R ? (task + 1) * w->rows_a_task : w->R;
    for (size_t r = task * w->rows_a_task; r < end; r++) {
        w->kernels->rms_norm(w->out + r * w->ld_out, w->x + r * w->ld_x, w->weight, w->eps, w->D);
    }
}

/* Rows for a task: an equal share, but not so few that starting the task costs more than its rows. */
static size_t share_rows(const qv_call *call, size_t R, size_t D) {
    size_t least = 4096 / (D + 1) + 1;
    size_t share = (R + call->lanes - 1) / call->lanes;
    return share < least ? least : share;
}

void qv_cpu_layer_norm(qv_call *call, float *out, size_t ld_out, const float *x, size_t ld_x, const float *weight,
                       const float *bias, float eps, size_t R, size_t D) {
    norm_work work = {qv_kernels_here(), out, ld_out, x, ld_x, weight, bias, eps, R, D, share_rows(call, R, D)};
    qv_parallel(call->lanes, (R + work.rows_a_task - 1) / work.rows_a_task, layer_norm_task, &work);
}

void qv_cpu_rms_norm(qv_call *call, float *out, size_t ld_out, const float *x, size_t ld_x, const float *weight,
                     float eps, size_t R, size_t D) {
    norm_work work = {qv_kernels_here(), out, ld_out, x, ld_x, weight, NULL, eps, R, D, share_rows(call, R, D)};
    qv_parallel(call->lanes, (R + work.rows_a_task - 1) / work.rows_a_task, rms_norm_task, &work);
}

void qv_cpu_unit_length(qv_call *call, float *x, size_t R, size_t D) {
    (void)call;
    for (size_t r = 0; r < R; r++) {
        float *row = x + r * D;
        double squares = 0.0;
        for (size_t i = 0; i < D; i++) {
            squares += (double)row[i] * row[i];
        }
        double length = sqrt(squares), inverse = 1.0 / (length > 1e-12 ? length : 1e-12);
        for (size_t i = 0; i < D; i++) {
            row[i] = (float)(row[i] * inverse);
        }
    }
}
