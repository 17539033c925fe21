/* Norms and the gradients of what goes into them, and lengths, a row at a time. */
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

/* Rows for a task: an equal share, but not so few that starting the task costs more than its rows. */
static size_t rows_a_task(const qv_call *call, size_t R, size_t D) {
    size_t least = 4096 / (D + 1) + 1, share = (R + call->lanes - 1) / call->lanes;
    return share < least ? least : share;
}

static void run_norm(qv_call *call, qv_rows out, qv_const_rows dy, qv_const_rows x, const qv_norm *norm, size_t R) {
    norm_work work = {qv_kernels_here(), out, dy, x, norm, R, rows_a_task(call, R, norm->D)};
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

/* ---- lengths ---- */

typedef struct {
    const qv_kernels *kernels;
    qv_rows out;
    qv_const_rows x;
    float *row_lengths;   /* what is asked for, or NULL: heads */
    const float *lengths; /* [B, T] */
    float factor;
    size_t R, T, H, d; /* R: of all rows, or of the T of each b */
    size_t tasks_each, rows_a_task;
} lengths_work;

static void measure_rows(void *context, size_t task, size_t lane) {
    (void)lane;
    const lengths_work *w = context;
    size_t end = (task + 1) * w->rows_a_task < w->R ? (task + 1) * w->rows_a_task : w->R;
    for (size_t r = task * w->rows_a_task; r < end; r++) {
        const float *row = w->x.at + r * w->x.ld;
        w->row_lengths[r] = sqrtf(w->kernels->dot(row, row, w->d));
    }
}

void qv_cpu_row_lengths(qv_call *call, float *out, qv_const_rows x, size_t R, size_t D) {
    lengths_work work = {.kernels = qv_kernels_here(), .x = x, .row_lengths = out, .R = R, .d = D};
    work.rows_a_task = rows_a_task(call, R, D);
    qv_cpu_run(call, call->lanes, (R + work.rows_a_task - 1) / work.rows_a_task, measure_rows, &work);
}

static void scale_heads(void *context, size_t task, size_t lane) {
    (void)lane;
    const lengths_work *w = context;
    size_t b = task / w->tasks_each, first = task % w->tasks_each * w->rows_a_task;
    size_t end = first + w->rows_a_task < w->T ? first + w->rows_a_task : w->T;
    float sum = 0.0f;
    for (size_t t = 0; t < w->T; t++) {
        sum += w->lengths[b * w->T + t];
    }
    float wanted = sqrtf(w->factor * sum / (float)w->T);
    for (size_t r = b * w->T + first; r < b * w->T + end; r++) {
        for (size_t h = 0; h < w->H; h++) {
            const float *x = w->x.at + r * w->x.ld + h * w->d;
            float squares = w->kernels->dot(x, x, w->d), length = sqrtf(squares);
            /* A square that overflows must not pass for a head of no length. */
            float scale = wanted / (length > 1e-12f ? length : 1e-12f) + 0.0f * squares;
            w->kernels->scale(w->out.at + r * w->out.ld + h * w->d, x, scale, w->d);
        }
    }
}

void qv_cpu_head_lengths(qv_call *call, qv_rows out, qv_const_rows x, const float *lengths, float factor, size_t B, size_t T,
                         size_t H, size_t d) {
    lengths_work work = {qv_kernels_here(), out, x, NULL, lengths, factor, T, T, H, d, 0, rows_a_task(call, B * T, H * d)};
    work.tasks_each = (T + work.rows_a_task - 1) / work.rows_a_task;
    qv_cpu_run(call, call->lanes, B * work.tasks_each, scale_heads, &work);
}
