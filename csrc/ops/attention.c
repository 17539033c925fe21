/* Attention on the CPU: a task is one head of one b; a tile of rows at a time, so that probabilities stay in cache. */
#include "ops/cpu_ops.h"

#include "base/blas.h"
#include "base/threads.h"

#include <math.h>
#include <string.h>

#define TILE_ROWS ((size_t)32)

size_t qv_cpu_attention_scratch(size_t lanes, size_t keys, size_t head_width) {
    (void)head_width;
    return lanes * TILE_ROWS * keys * sizeof(float);
}

typedef struct {
    const qv_attention *a;
    float *scratch; /* [lanes, TILE_ROWS, M + S] */
} attention_work;

/* scores [rows, M + S] of head h, rows t0.. of b, masked */
static void score_tile(float *scores, const qv_attention *a, size_t b, size_t h, size_t t0, size_t rows) {
    size_t keys = a->M + a->S, column = h * a->d;
    size_t q_set = a->q_index != NULL ? a->q_index[b] : b, kv_set = a->kv_index != NULL ? a->kv_index[b] : b;
    const float *q = a->q + (q_set * a->T + t0) * a->ld_q + column;
    if (a->M != 0) {
        qv_sgemm(scores, keys, q, a->ld_q, false, a->extra_k + b * a->M * a->ld_extra + column, a->ld_extra, true,
                 a->scale, 0.0f, rows, a->M, a->d);
    }
    qv_sgemm(scores + a->M, keys, q, a->ld_q, false, a->k + kv_set * a->S * a->ld_kv + column, a->ld_kv, true,
             a->scale, 0.0f, rows, a->S, a->d);
    size_t seen = a->extra_length != NULL ? a->extra_length[b] : a->M;
    for (size_t r = 0; r < rows; r++) {
        float *row = scores + r * keys;
        for (size_t m = seen; m < a->M; m++) {
            row[m] = -INFINITY;
        }
        row += a->M;
        if (a->bias != NULL) {
            const float *bias = a->bias + (h * a->T + t0 + r) * a->S;
            for (size_t s = 0; s < a->S; s++) {
                row[s] += bias[s];
            }
        }
        if (a->key_mask != NULL) {
            const uint8_t *mask = a->key_mask + b * a->S;
            for (size_t s = 0; s < a->S; s++) {
                row[s] = mask[s] != 0 ? row[s] : -INFINITY;
            }
        }
        for (size_t s = t0 + r + 1; a->causal && s < a->S; s++) {
            row[s] = -INFINITY;
        }
    }
}

/* Copy the asked part of the tile's probabilities out. */
static void hand_out(const qv_attention *a, const float *scores, size_t b, size_t h, size_t t0, size_t rows) {
    size_t keys = a->M + a->S;
    for (size_t r = 0; r < rows; r++) {
        size_t t = t0 + r;
        if (t < a->first_row || t >= a->first_row + a->row_count) {
            continue;
        }
        size_t row = (b * a->H + h) * a->row_count + (t - a->first_row);
        memcpy(a->probabilities + row * a->column_count, scores + r * keys + a->first_column,
               a->column_count * sizeof(float));
    }
}

static void attend_head(void *context, size_t task, size_t lane) {
    const attention_work *w = context;
    const qv_attention *a = w->a;
    size_t b = task / a->H, h = task % a->H, keys = a->M + a->S;
    size_t kv_set = a->kv_index != NULL ? a->kv_index[b] : b;
    float *scores = w->scratch + lane * TILE_ROWS * keys;
    for (size_t t0 = 0; t0 < a->T; t0 += TILE_ROWS) {
        size_t rows = a->T - t0 < TILE_ROWS ? a->T - t0 : TILE_ROWS;
        score_tile(scores, a, b, h, t0, rows);
        for (size_t r = 0; r < rows; r++) {
            qv_softmax(scores + r * keys, keys);
        }
        if (a->probabilities != NULL) {
            hand_out(a, scores, b, h, t0, rows);
        }
        if (a->out == NULL) {
            continue;
        }
        float *out = a->out + (b * a->T + t0) * a->ld_out + h * a->d;
        if (a->M != 0) {
            qv_sgemm(out, a->ld_out, scores, keys, false, a->extra_v + b * a->M * a->ld_extra + h * a->d, a->ld_extra,
                     false, 1.0f, 0.0f, rows, a->d, a->M);
        }
        qv_sgemm(out, a->ld_out, scores + a->M, keys, false, a->v + kv_set * a->S * a->ld_kv + h * a->d, a->ld_kv,
                 false, 1.0f, a->M != 0 ? 1.0f : 0.0f, rows, a->d, a->S);
    }
}

void qv_cpu_attention(qv_call *call, const qv_attention *attention) {
    attention_work work = {attention, call->scratch};
    qv_parallel(call->lanes, attention->B * attention->H, attend_head, &work);
}
