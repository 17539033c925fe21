/* Norms and the gradients of what goes into them, a row at a time. */
#include "ops/cpu_ops.h"

#include "ops/kernels.h"

#include <math.h>

typedef struct {
    const qv_kernels *kernels;
    qv_rows out;
    qv_const_rows dy, x; /* no dy: the norm itself */
    const qv_norm *norm;
    size_t R, rows_a_task;
} norm_work;

static void norm_task(void *context, size_t task, size_t lane) {
    (void)lane;
    const norm_work *w = context;
    size_t end = (task + 1) * w->rows_a_task < w->R ? (task + 1) * w->rows_a_task : w->R;
    for (size_t r = task * w->rows_a_task; r < end; r++) {
        float *out = w->out.at + r * w->out.ld;
        const float *x = w->x.at + r * w->x.ld;
        if (w->dy.at == NULL) {
            w->kernels->norm(out, x, w->norm);
        } else {
            w->kernels->norm_backward(out, w->dy.at + r * w->dy.ld, x, w->norm);
        }
    }
}

static void run_norm(qv_call *call, qv_rows out, qv_const_rows dy, qv_const_rows x, const qv_norm *norm, size_t R) {
    /* Rows for a task: an equal share, but not so few that starting the task costs more than its rows. */
    size_t least = 4096 / (norm->D + 1) + 1, share = (R + call->lanes - 1) / call->lanes;
    norm_work work = {qv_kernels_here(), out, dy, x, norm, R, share < least ? least : share};
    qv_cpu_run(call, call->lanes, (R + work.rows_a_task - 1) / work.rows_a_task, norm_task, &work);
}

void qv_cpu_norm(qv_call *call, qv_rows out, qv_const_rows x, const qv_norm *norm, size_t R) {
    run_norm(call, out, (qv_const_rows){NULL, 0}, x, norm, R);
}

void qv_cpu_norm_backward(qv_call *call, qv_rows dx, qv_const_rows dy, qv_const_rows x, const qv_norm *norm, size_t R) {
    run_norm(call, dx, dy, x, norm, R);
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
