/* Norms and the gradients of what goes into them, a row at a time. */
#include "ops/cpu_ops.h"

#include "ops/kernels.h"

#include <math.h>

typedef struct {
    const qv_kernels *kernels;
    qv_rows out;
    qv_const_rows dy, x; /* dy: of the gradient alone */
    const qv_norm *norm;
    size_t R, rows_a_task;
} norm_work;

static size_t last_row(const norm_work *w, size_t task) {
    size_t end = (task + 1) * w->rows_a_task;
    return end < w->R ? end : w->R;
}

static void norm_task(void *context, size_t task, size_t lane) {
    (void)lane;
    const norm_work *w = context;
    const qv_norm *n = w->norm;
    for (size_t r = task * w->rows_a_task; r < last_row(w, task); r++) {
        float *out = w->out.at + r * w->out.ld;
        const float *x = w->x.at + r * w->x.ld;
        if (n->kind == QV_RMS_NORM) {
            w->kernels->rms_norm(out, x, n->weight.data, n->eps, n->D);
        } else {
            w->kernels->layer_norm(out, x, n->weight.data, n->bias.data, n->eps, n->D);
        }
    }
}

/* Rows for a task: an equal share, but not so few that starting the task costs more than its rows. */
static void run_rows(qv_call *call, norm_work *work, size_t least_items, qv_task task) {
    size_t least = least_items / (work->norm->D + 1) + 1, share = (work->R + call->lanes - 1) / call->lanes;
    work->rows_a_task = share < least ? least : share;
    qv_cpu_run(call, call->lanes, (work->R + work->rows_a_task - 1) / work->rows_a_task, task, work);
}

void qv_cpu_norm(qv_call *call, qv_rows out, qv_const_rows x, const qv_norm *norm, size_t R) {
    norm_work work = {.kernels = qv_kernels_here(), .out = out, .x = x, .norm = norm, .R = R};
    run_rows(call, &work, 4096, norm_task);
}

/* y = n weight + bias, n = (x - mean) inverse; with g = dy weight: dx = (g - mean(g) - n mean(g n)) inverse */
static void layer_norm_backward(float *dx, const float *dy, const float *x, const float *weight, float eps, size_t D) {
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

/* dx = (g - n mean(g n)) inverse, with n = x inverse */
static void rms_norm_backward(float *dx, const float *dy, const float *x, const float *weight, float eps, size_t D) {
    float squares = 0.0f, sum_gx = 0.0f;
    for (size_t i = 0; i < D; i++) {
        squares += x[i] * x[i];
        sum_gx += dy[i] * weight[i] * x[i];
    }
    float inverse = 1.0f / sqrtf(squares / (float)D + eps), slope = sum_gx / (float)D * inverse * inverse;
    for (size_t i = 0; i < D; i++) {
        dx[i] = (dy[i] * weight[i] - x[i] * slope) * inverse;
    }
}

static void backward_task(void *context, size_t task, size_t lane) {
    (void)lane;
    const norm_work *w = context;
    for (size_t r = task * w->rows_a_task; r < last_row(w, task); r++) {
        (w->norm->kind == QV_RMS_NORM ? rms_norm_backward : layer_norm_backward)(
            w->out.at + r * w->out.ld, w->dy.at + r * w->dy.ld, w->x.at + r * w->x.ld, w->norm->weight.data, w->norm->eps,
            w->norm->D);
    }
}

void qv_cpu_norm_backward(qv_call *call, qv_rows dx, qv_const_rows dy, qv_const_rows x, const qv_norm *norm, size_t R) {
    norm_work work = {.out = dx, .dy = dy, .x = x, .norm = norm, .R = R};
    run_rows(call, &work, 8192, backward_task);
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
