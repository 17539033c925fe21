/* The gradients of attention: a task is one head of one b; a tile of query rows at a time, its probabilities made
 * again from q and k rather than kept from the forward pass. */
#include "ops/cpu_ops.h"

#include "base/blas.h"

#include <string.h>

#define TILE_ROWS ((size_t)32)

size_t qv_cpu_attention_backward_scratch(size_t lanes, size_t keys) {
    return lanes * 2 * TILE_ROWS * keys * sizeof(float);
}

typedef struct {
    const qv_attention_backward *backward;
    float *scratch; /* [lanes, 2, TILE_ROWS, M + S] */
} backward_work;

/* The bias is added to scores [M + S] of query t; keys that it does not see become -INFINITY. */
static void mask_row(float *row, const qv_attention *a, const qv_attention_head *head, size_t t) {
    const float *bias = a->bias.at != NULL ? a->bias.at + (head->h * a->bias_rows + t) * a->bias.ld : NULL;
    for (size_t s = 0; bias != NULL && s < a->S; s++) {
        row[a->M + s] += bias[s];
    }
    qv_hide_keys(row, a, head, t);
}

/* out [rows, M + S] = alpha x [rows, d] [extra ; keys]^T */
static void multiply_keys(float *out, const qv_attention *a, qv_const_rows x, qv_const_rows extra, qv_const_rows keys,
                          float alpha, size_t rows) {
    size_t count = a->M + a->S;
    if (a->M != 0) {
        qv_sgemm(out, count, x.at, x.ld, false, extra.at, extra.ld, true, alpha, 0.0f, rows, a->M, a->d);
    }
    qv_sgemm(out + a->M, count, x.at, x.ld, false, keys.at, keys.ld, true, alpha, 0.0f, rows, a->S, a->d);
}

/* g = dS = A * (g - sum_s A g); what is masked has A = 0 */
static void score_gradient(float *g, const float *probabilities, size_t keys) {
    float sum = 0.0f;
    for (size_t s = 0; s < keys; s++) {
        sum += probabilities[s] * g[s];
    }
    for (size_t s = 0; s < keys; s++) {
        g[s] = probabilities[s] * (g[s] - sum);
    }
}

static void backward_tile(const qv_attention_backward *w, const qv_attention_head *head, float *A, float *G, size_t t0,
                          size_t rows) {
    const qv_attention *a = &w->forward;
    size_t keys = a->M + a->S, column = head->h * a->d;
    qv_const_rows q = {head->q.at + t0 * head->q.ld, head->q.ld};
    qv_const_rows d_out = {w->d_out.at + (head->b * a->T + t0) * w->d_out.ld + column, w->d_out.ld};
    multiply_keys(A, a, q, head->extra_k, head->k, a->scale, rows);
    for (size_t r = 0; r < rows; r++) {
        mask_row(A + r * keys, a, head, t0 + r);
        qv_softmax(A + r * keys, keys);
    }
    multiply_keys(G, a, d_out, head->extra_v, head->v, 1.0f, rows);
    size_t place = ((head->b * a->H + head->h) * a->T + t0) * keys;
    if (w->probabilities != NULL) {
        memcpy(w->probabilities + place, A, rows * keys * sizeof *A);
    }
    if (w->d_probabilities != NULL) {
        memcpy(w->d_probabilities + place, G, rows * keys * sizeof *G);
    }
    if (w->d_q.at == NULL && w->d_k.at == NULL) {
        return;
    }
    for (size_t r = 0; r < rows; r++) {
        score_gradient(G + r * keys, A + r * keys, keys);
    }
    if (w->d_q.at != NULL) {
        float *d_q = w->d_q.at + (head->b * a->T + t0) * w->d_q.ld + column;
        qv_sgemm(d_q, w->d_q.ld, G + a->M, keys, false, head->k.at, head->k.ld, false, a->scale, 0.0f, rows, a->d, a->S);
        if (a->M != 0) {
            qv_sgemm(d_q, w->d_q.ld, G, keys, false, head->extra_k.at, head->extra_k.ld, false, a->scale, 1.0f, rows, a->d,
                     a->M);
        }
    }
    if (w->d_k.at != NULL) {
        size_t row = head->b * a->S;
        float beta = t0 == 0 ? 0.0f : 1.0f;
        qv_sgemm(w->d_k.at + row * w->d_k.ld + column, w->d_k.ld, G + a->M, keys, true, q.at, q.ld, false, a->scale, beta,
                 a->S, a->d, rows);
        qv_sgemm(w->d_v.at + row * w->d_v.ld + column, w->d_v.ld, A + a->M, keys, true, d_out.at, d_out.ld, false, 1.0f,
                 beta, a->S, a->d, rows);
    }
}

static void backward_head(void *context, size_t task, size_t lane) {
    const backward_work *work = context;
    const qv_attention *a = &work->backward->forward;
    qv_attention_head head = qv_view_head(a, task / a->H, task % a->H);
    size_t keys = a->M + a->S;
    float *A = work->scratch + lane * 2 * TILE_ROWS * keys, *G = A + TILE_ROWS * keys;
    for (size_t t0 = 0; t0 < a->T; t0 += TILE_ROWS) {
        size_t rows = a->T - t0 < TILE_ROWS ? a->T - t0 : TILE_ROWS;
        backward_tile(work->backward, &head, A, G, t0, rows);
    }
}

void qv_cpu_attention_backward(qv_call *call, const qv_attention_backward *backward) {
    backward_work work = {backward, call->scratch};
    qv_cpu_run(call, call->lanes, backward->forward.B * backward->forward.H, backward_head, &work);
}
