/* Element by element: activations and their slopes, sums and copies, what follows a product; and softmax. */
#include "ops/cpu_ops.h"

#include <math.h>
#include <string.h>

void qv_activate(float *x, qv_activation activation, size_t n) {
    if (activation != QV_IDENTITY) {
        qv_kernels_here()->activate(x, activation, n);
    }
}

void qv_softmax(float *x, size_t n) {
    const qv_kernels *kernels = qv_kernels_here();
    kernels->scale(x, x, kernels->products->exponentiate(x, 1.0f, n), n);
}

typedef struct {
    float *log_probability, *logits;
    const int32_t *targets;
    size_t V;
} likelihood_work;

static void likelihood_row(void *context, size_t r, size_t lane) {
    (void)lane;
    const likelihood_work *w = context;
    const qv_kernels *kernels = qv_kernels_here();
    float *row = w->logits + r * w->V, largest = row[0];
    size_t target = (size_t)w->targets[r];
    for (size_t i = 1; i < w->V; i++) {
        largest = row[i] > largest ? row[i] : largest;
    }
    float score = row[target] - largest, inverse = kernels->products->exponentiate(row, 1.0f, w->V);
    w->log_probability[r] = score + logf(inverse);
    kernels->scale(row, row, -inverse, w->V);
    row[target] += 1.0f;
}

void qv_cpu_likelihood(qv_call *call, float *log_probability, float *logits, const int32_t *targets, size_t R, size_t V) {
    likelihood_work work = {log_probability, logits, targets, V};
    qv_cpu_run(call, call->lanes, R, likelihood_row, &work);
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

void qv_cpu_add(qv_call *call, float *out, const float *x, size_t R, size_t D) {
    (void)call;
    for (size_t i = 0; i < R * D; i++) {
        out[i] += x[i];
    }
}

void qv_cpu_copy(qv_call *call, qv_rows out, qv_const_rows x, size_t R, size_t D) {
    (void)call;
    for (size_t r = 0; r < R; r++) {
        memcpy(out.at + r * out.ld, x.at + r * x.ld, D * sizeof *x.at);
    }
}

typedef struct {
    qv_rows out;
    qv_const_rows x, y;
    size_t R, D, rows_a_task;
} multiply_work;

static void multiply_rows(void *context, size_t task, size_t lane) {
    (void)lane;
    const multiply_work *w = context;
    size_t first = task * w->rows_a_task, left = w->R - first, rows = left < w->rows_a_task ? left : w->rows_a_task;
    for (size_t r = first; r < first + rows; r++) {
        const float *x = w->x.at + r * w->x.ld, *y = w->y.at + r * w->y.ld;
        float *out = w->out.at + r * w->out.ld;
        for (size_t i = 0; i < w->D; i++) {
            out[i] = x[i] * y[i];
        }
    }
}

void qv_cpu_multiply_items(qv_call *call, qv_rows out, qv_const_rows x, qv_const_rows y, size_t R, size_t D) {
    size_t least = 16384 / (D + 1) + 1, share = (R + call->lanes - 1) / call->lanes;
    multiply_work work = {out, x, y, R, D, share < least ? least : share};
    qv_cpu_run(call, call->lanes, (R + work.rows_a_task - 1) / work.rows_a_task, multiply_rows, &work);
}

/* Items that are a task's share. */
#define CHUNK ((size_t)4096)

typedef struct {
    float *x;
    float scale;
    size_t S;
} softmax_work;

static void soften_row(void *context, size_t task, size_t lane) {
    (void)lane;
    const softmax_work *w = context;
    const qv_kernels *kernels = qv_kernels_here();
    float *row = w->x + task * w->S;
    kernels->scale(row, row, kernels->products->exponentiate(row, w->scale, w->S), w->S);
}

void qv_cpu_softmax(qv_call *call, float *x, float scale, size_t R, size_t S) {
    softmax_work work = {x, scale, S};
    qv_cpu_run(call, R * S < CHUNK ? 1 : call->lanes, R, soften_row, &work);
}

/* ---- activations and their slopes ---- */

typedef struct {
    float *out;
    const float *dy, *x;
    qv_activation activation;
    size_t n;
} elements_work;

static void activate_chunk(void *context, size_t task, size_t lane) {
    (void)lane;
    const elements_work *w = context;
    size_t first = task * CHUNK, count = w->n - first < CHUNK ? w->n - first : CHUNK;
    memcpy(w->out + first, w->x + first, count * sizeof *w->out);
    qv_activate(w->out + first, w->activation, count);
}

void qv_cpu_activation(qv_call *call, float *out, const float *x, qv_activation activation, size_t n) {
    elements_work work = {out, NULL, x, activation, n};
    qv_cpu_run(call, call->lanes, (n + CHUNK - 1) / CHUNK, activate_chunk, &work);
}

/* Slopes that are found before they are multiplied. */
#define SLOPES ((size_t)512)

static void backward_chunk(void *context, size_t task, size_t lane) {
    (void)lane;
    const elements_work *w = context;
    size_t end = w->n - task * CHUNK < CHUNK ? w->n : (task + 1) * CHUNK;
    float slopes[SLOPES];
    for (size_t i = task * CHUNK; i < end; i += SLOPES) {
        size_t count = end - i < SLOPES ? end - i : SLOPES;
        memcpy(slopes, w->x + i, count * sizeof *slopes);
        qv_kernels_here()->find_slopes(slopes, w->activation, count);
        for (size_t k = 0; k < count; k++) {
            w->out[i + k] = w->dy != NULL ? w->dy[i + k] * slopes[k] : slopes[k];
        }
    }
}

void qv_cpu_activation_backward(qv_call *call, float *dx, const float *dy, const float *x, qv_activation activation,
                                size_t n) {
    elements_work work = {dx, dy, x, activation, n};
    qv_cpu_run(call, call->lanes, (n + CHUNK - 1) / CHUNK, backward_chunk, &work);
}
