/* Attention on the CPU: a task is some rows of one head of one b. The head's keys (question tokens in front) are packed
 * as the panels of a product, its values too, so that scores and outputs come from the packed kernels; a tile of rows at
 * a time, whose probabilities stay in cache. One or two rows alone (a class token) are not worth the packing. */
#include "ops/cpu_ops.h"

#include "base/threads.h"
#include "ops/kernels.h"

#include <math.h>
#include <string.h>

/* Rows whose scores are held at once: a multiple of every register tile. */
#define TILE_ROWS ((size_t)24)
/* Rows up to which the keys are read where they lie. */
#define FEW_ROWS ((size_t)2)

typedef struct {
    const qv_attention *a;
    const qv_kernels *kernels;
    char *scratch;
    size_t scratch_stride; /* bytes a lane */
    size_t splits, rows;   /* tasks a head, rows a task */
} attention_work;

/* One lane's scratch. */
typedef struct {
    float *scores; /* [TILE_ROWS, ld_scores] */
    float *keys;   /* [panels of keys, d, panel_columns] */
    float *values; /* [panels of d, M + S, panel_columns] */
} lane_scratch;

static size_t round_up(size_t n, size_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

static size_t lane_floats(size_t keys, size_t d) {
    size_t padded = round_up(keys, QV_MAX_PANEL);
    return TILE_ROWS * padded + padded * d + keys * round_up(d, QV_MAX_PANEL);
}

size_t qv_cpu_attention_scratch(size_t lanes, size_t keys, size_t head_width) {
    return lanes * round_up(lane_floats(keys, head_width) * sizeof(float), QV_ALIGNMENT);
}

/* One head of one b: where its rows lie. */
typedef struct {
    const float *q, *k, *v, *extra_k, *extra_v;
    size_t b, h;
} head_view;

static head_view view_head(const qv_attention *a, size_t b, size_t h) {
    size_t q_set = a->q_index != NULL ? a->q_index[b] : b, kv_set = a->kv_index != NULL ? a->kv_index[b] : b;
    size_t keys = kv_set * a->S * a->ld_kv + h * a->d, extra = b * a->M * a->ld_extra + h * a->d;
    return (head_view){
        .q = a->q + q_set * a->T * a->ld_q + h * a->d,
        .k = a->k + keys,
        .v = a->out != NULL ? a->v + keys : NULL,
        .extra_k = a->M != 0 ? a->extra_k + extra : NULL,
        .extra_v = a->M != 0 && a->out != NULL ? a->extra_v + extra : NULL,
        .b = b,
        .h = h,
    };
}

/* keys [panels, d, width] = the transposed rows of x [n, d], as keys first.. of the whole */
static void pack_keys(const qv_kernels *kernels, float *keys, size_t first, const float *x, size_t ld, size_t n,
                      size_t d) {
    size_t width = kernels->panel_columns;
    for (size_t s = 0; s < n;) {
        size_t place = first + s, room = width - place % width, count = n - s < room ? n - s : room;
        kernels->transpose(keys + place / width * d * width + place % width, width, x + s * ld, ld, count, d);
        s += count;
    }
}

/* values [panels of d, count, width] = the rows of x [n, d], as values first.. of `count` */
static void pack_values(float *values, size_t first, const float *x, size_t ld, size_t n, size_t d, size_t count,
                        size_t width) {
    for (size_t c = 0; c < d; c += width) {
        size_t columns = d - c < width ? d - c : width;
        float *out = values + c * count + first * width;
        for (size_t s = 0; s < n; s++) {
            memcpy(out + s * width, x + s * ld + c, columns * sizeof *out);
        }
    }
}

/* Padding is never stored, but it is computed with: it must be numbers. */
static void pack_head(const attention_work *w, const lane_scratch *scratch, const head_view *head) {
    const qv_attention *a = w->a;
    size_t width = w->kernels->panel_columns, keys = a->M + a->S, padded = round_up(keys, width);
    for (size_t i = 0; keys < padded && i < a->d; i++) {
        float *row = scratch->keys + (padded - width) * a->d + i * width;
        memset(row + keys % width, 0, (padded - keys) * sizeof *row);
    }
    pack_keys(w->kernels, scratch->keys, 0, head->extra_k, a->ld_extra, a->M, a->d);
    pack_keys(w->kernels, scratch->keys, a->M, head->k, a->ld_kv, a->S, a->d);
    if (a->out == NULL) {
        return;
    }
    size_t rest = a->d % width;
    for (size_t s = 0; rest != 0 && s < keys; s++) {
        memset(scratch->values + (a->d - rest) * keys + s * width + rest, 0, (width - rest) * sizeof(float));
    }
    pack_values(scratch->values, 0, head->extra_v, a->ld_extra, a->M, a->d, keys, width);
    pack_values(scratch->values, a->M, head->v, a->ld_kv, a->S, a->d, keys, width);
}

/* Scale, bias and mask one row of scores; returns the scale that is still to be applied. */
static float mask_row(const qv_attention *a, const head_view *head, float *row, size_t t) {
    float scale = a->scale;
    size_t seen = a->extra_length != NULL ? a->extra_length[head->b] : a->M;
    if (a->bias != NULL) {
        const float *bias = a->bias + (head->h * a->T + t) * a->S;
        for (size_t m = 0; m < a->M; m++) {
            row[m] *= scale;
        }
        for (size_t s = 0; s < a->S; s++) {
            row[a->M + s] = row[a->M + s] * scale + bias[s];
        }
        scale = 1.0f;
    }
    for (size_t m = seen; m < a->M; m++) {
        row[m] = -INFINITY;
    }
    row += a->M;
    if (a->key_mask != NULL) {
        const uint8_t *mask = a->key_mask + head->b * a->S;
        for (size_t s = 0; s < a->S; s++) {
            row[s] = mask[s] != 0 ? row[s] : -INFINITY;
        }
    }
    for (size_t s = t + 1; a->causal && s < a->S; s++) {
        row[s] = -INFINITY;
    }
    return scale;
}

/* exp(scores) in place, the asked part of the row's probabilities handed out; returns what the sums are divided by. */
static float soften_row(const attention_work *w, const head_view *head, float *row, size_t t) {
    const qv_attention *a = w->a;
    float scale = mask_row(a, head, row, t);
    float inverse = w->kernels->exponentiate(row, scale, a->M + a->S);
    if (a->probabilities != NULL && t >= a->first_row && t < a->first_row + a->row_count) {
        size_t place = (head->b * a->H + head->h) * a->row_count + (t - a->first_row);
        w->kernels->scale(a->probabilities + place * a->column_count, row + a->first_column, inverse, a->column_count);
    }
    return inverse;
}

static void attend_tile(const attention_work *w, const lane_scratch *scratch, const head_view *head, size_t t0,
                        size_t rows) {
    const qv_attention *a = w->a;
    size_t width = w->kernels->panel_columns, keys = a->M + a->S, ld_scores = round_up(keys, QV_MAX_PANEL);
    qv_panel_product product = {.ld_out = ld_scores,
                                .x = head->q + t0 * a->ld_q,
                                .ld_x = a->ld_q,
                                .rows = rows,
                                .depth = a->d};
    for (size_t s = 0; s < keys; s += width) {
        product.out = scratch->scores + s;
        product.panel = scratch->keys + s * a->d;
        product.columns = keys - s < width ? keys - s : width;
        w->kernels->multiply(&product);
    }
    float inverse[TILE_ROWS];
    for (size_t r = 0; r < rows; r++) {
        inverse[r] = soften_row(w, head, scratch->scores + r * ld_scores, t0 + r);
    }
    if (a->out == NULL) {
        return;
    }
    float *out = a->out + (head->b * a->T + t0) * a->ld_out + head->h * a->d;
    product = (qv_panel_product){.ld_out = a->ld_out, .x = scratch->scores, .ld_x = ld_scores, .rows = rows, .depth = keys};
    for (size_t c = 0; c < a->d; c += width) {
        product.out = out + c;
        product.panel = scratch->values + c * keys;
        product.columns = a->d - c < width ? a->d - c : width;
        w->kernels->multiply(&product);
    }
    for (size_t r = 0; r < rows; r++) {
        w->kernels->scale(out + r * a->ld_out, out + r * a->ld_out, inverse[r], a->d);
    }
}

/* A row by itself: a dot product a key, then the weighted sum of the values. */
static void attend_row(const attention_work *w, float *scores, const head_view *head, size_t t) {
    const qv_attention *a = w->a;
    const float *q = head->q + t * a->ld_q;
    for (size_t m = 0; m < a->M; m++) {
        scores[m] = w->kernels->dot(q, head->extra_k + m * a->ld_extra, a->d);
    }
    for (size_t s = 0; s < a->S; s++) {
        scores[a->M + s] = w->kernels->dot(q, head->k + s * a->ld_kv, a->d);
    }
    float inverse = soften_row(w, head, scores, t);
    if (a->out == NULL) {
        return;
    }
    float *out = a->out + (head->b * a->T + t) * a->ld_out + head->h * a->d;
    memset(out, 0, a->d * sizeof *out);
    for (size_t m = 0; m < a->M; m++) {
        w->kernels->add_scaled(out, head->extra_v + m * a->ld_extra, scores[m] * inverse, a->d);
    }
    for (size_t s = 0; s < a->S; s++) {
        w->kernels->add_scaled(out, head->v + s * a->ld_kv, scores[a->M + s] * inverse, a->d);
    }
}

static void attend_rows(void *context, size_t task, size_t lane) {
    const attention_work *w = context;
    const qv_attention *a = w->a;
    size_t pair = task / w->splits, first = task % w->splits * w->rows, keys = a->M + a->S;
    size_t end = first + w->rows < a->T ? first + w->rows : a->T;
    head_view head = view_head(a, pair / a->H, pair % a->H);
    lane_scratch scratch = {.scores = (float *)(void *)(w->scratch + lane * w->scratch_stride)};
    if (a->T <= FEW_ROWS) {
        for (size_t t = first; t < end; t++) {
            attend_row(w, scratch.scores, &head, t);
        }
        return;
    }
    size_t padded = round_up(keys, QV_MAX_PANEL);
    scratch.keys = scratch.scores + TILE_ROWS * padded;
    scratch.values = scratch.keys + padded * a->d;
    pack_head(w, &scratch, &head);
    for (size_t t = first; t < end; t += TILE_ROWS) {
        attend_tile(w, &scratch, &head, t, end - t < TILE_ROWS ? end - t : TILE_ROWS);
    }
}

void qv_cpu_attention(qv_call *call, const qv_attention *a) {
    attention_work work = {.a = a,
                           .kernels = qv_kernels_here(),
                           .scratch = call->scratch,
                           .scratch_stride = qv_cpu_attention_scratch(1, a->M + a->S, a->d),
                           .splits = 1,
                           .rows = a->T};
    size_t heads = a->B * a->H;
    /* Few heads for many lanes: several tasks a head, though each packs the head anew. */
    while (heads * work.splits < 4 * call->lanes && a->T / (2 * work.splits) >= 2 * TILE_ROWS) {
        work.splits *= 2;
    }
    work.rows = round_up((a->T + work.splits - 1) / work.splits, TILE_ROWS);
    work.splits = (a->T + work.rows - 1) / work.rows;
    qv_parallel(call->lanes, heads * work.splits, attend_rows, &work);
}
