/* Attention on the CPU: a task is some rows of one head of one b. The head's keys (question tokens in front) are packed
 * as the panels of a product, its values too, so that scores and outputs come from the packed kernels; a tile of rows at
 * a time, whose probabilities stay in cache. One or two rows alone (a class token), and keys picked one by one, are not
 * worth the packing. */
#include "ops/attention_panels.h"

#include <string.h>

/* Rows whose scores are held at once at most: two register tiles' of the tallest. */
#define MOST_ROWS ((size_t)32)
/* Rows up to which the keys are read where they lie. */
#define FEW_ROWS ((size_t)2)

typedef struct {
    const qv_attention *a;
    const qv_kernels *kernels;
    const qv_product *product;
    char *scratch;
    size_t scratch_stride; /* bytes a lane */
    size_t held;           /* rows whose scores are held at once */
    size_t splits, rows;   /* tasks a head, rows a task */
} attention_work;

/* One lane's scratch. Keys, values and rows are in steps along the depth of their product. */
typedef struct {
    float *scores; /* [held, ld_scores] */
    float *keys;   /* [panels of keys, steps of d, panel_columns] */
    float *values; /* [panels of d, steps of M + S, panel_columns] */
    float *rows;   /* [QV_PACK_ROWS, steps of d]: queries, or keys on their way to their panel, where floats are no steps */
} lane_scratch;

static size_t held_rows(const qv_product *product) {
    return 2 * product->tile_rows < MOST_ROWS ? 2 * product->tile_rows : MOST_ROWS;
}

/* For a product of any precision. */
static size_t score_floats(size_t keys) {
    size_t full = held_rows(qv_product_here(QV_PRECISION_FLOAT32)), half = held_rows(qv_product_here(QV_PRECISION_BFLOAT16));
    return (full > half ? full : half) * qv_round_up(keys, QV_MAX_PANEL);
}

size_t qv_cpu_attention_scratch(size_t lanes, size_t keys, size_t head_width) {
    size_t floats = score_floats(keys) + qv_turned_floats(keys, head_width) + qv_panel_floats(keys, head_width) +
                    qv_step_floats(QV_PACK_ROWS, head_width);
    return lanes * qv_round_up(floats * sizeof(float), QV_ALIGNMENT);
}

static qv_head_packing packing_of(const attention_work *w, const lane_scratch *scratch) {
    return (qv_head_packing){w->kernels, w->product, w->a->d, scratch->rows};
}

static void pack_head(const attention_work *w, const lane_scratch *scratch, const qv_attention_head *head) {
    const qv_attention *a = w->a;
    const qv_head_packing packing = packing_of(w, scratch);
    const qv_head_rows keys = {head->extra_k, head->k, a->M, a->S}, values = {head->extra_v, head->v, a->M, a->S};
    qv_pack_turned(&packing, scratch->keys, &keys);
    if (a->out.at != NULL) {
        qv_pack_rows(&packing, scratch->values, &values);
    }
}

/* exp(scores) in place, in the product's steps if `steps`, else as floats; the asked part of the row's probabilities is
 * handed out. Returns what the weighted sum of the values is multiplied by. */
static float soften_row(const attention_work *w, const qv_attention_head *head, float *row, size_t t, bool steps) {
    const qv_attention *a = w->a;
    size_t keys = a->M + a->S;
    float scale = qv_mask_scores(a, head, row, t);
    bool wanted = a->probabilities != NULL && t >= a->first_row && t < a->first_row + a->row_count;
    if (!wanted) {
        return (steps ? w->product : w->kernels->products)->exponentiate(row, scale, keys);
    }
    float inverse = w->kernels->products->exponentiate(row, scale, keys);
    size_t place = (head->b * a->H + head->h) * a->row_count + (t - a->first_row);
    w->kernels->scale(a->probabilities + place * a->column_count, row + a->first_column, inverse, a->column_count);
    if (steps && w->product->write_steps != NULL) {
        w->product->write_steps(row, row, keys);
    }
    return inverse;
}

static void attend_tile(const attention_work *w, const lane_scratch *scratch, const qv_attention_head *head, size_t t0,
                        size_t rows) {
    const qv_attention *a = w->a;
    size_t most = w->product->most_columns, keys = a->M + a->S, ld_scores = qv_round_up(keys, QV_MAX_PANEL);
    const qv_head_packing packing = packing_of(w, scratch);
    qv_const_rows q = qv_rows_in_steps(&packing, (qv_const_rows){head->q.at + t0 * head->q.ld, head->q.ld}, rows);
    qv_panel_product product = {.ld_out = ld_scores,
                                .x = q.at,
                                .ld_x = q.ld,
                                .rows = rows,
                                .depth = qv_steps(w->product, a->d)};
    for (size_t s = 0; s < keys; s += product.columns) {
        product.out = scratch->scores + s;
        product.panel = scratch->keys + s * product.depth;
        product.columns = keys - s < most ? keys - s : most;
        w->product->multiply(&product);
    }
    float inverse[MOST_ROWS];
    for (size_t r = 0; r < rows; r++) {
        float *row = scratch->scores + r * ld_scores;
        inverse[r] = soften_row(w, head, row, t0 + r, a->out.at != NULL);
    }
    if (a->out.at == NULL) {
        return;
    }
    float *out = a->out.at + (head->b * a->T + t0) * a->out.ld + head->h * a->d;
    product = (qv_panel_product){
        .ld_out = a->out.ld, .x = scratch->scores, .ld_x = ld_scores, .rows = rows, .depth = qv_steps(w->product, keys)};
    for (size_t c = 0; c < a->d; c += product.columns) {
        product.out = out + c;
        product.panel = scratch->values + c * product.depth;
        product.columns = a->d - c < most ? a->d - c : most;
        w->product->multiply(&product);
    }
    for (size_t r = 0; r < rows; r++) {
        w->kernels->scale(out + r * a->out.ld, out + r * a->out.ld, inverse[r], a->d);
    }
}

/* A row by itself: a dot product a key, then the weighted sum of the values. */
static void attend_row(const attention_work *w, float *scores, const qv_attention_head *head, size_t t) {
    const qv_attention *a = w->a;
    const int32_t *index = a->key_index != NULL ? a->key_index + head->b * a->S : NULL;
    const float *q = head->q.at + t * head->q.ld;
    for (size_t m = 0; m < a->M; m++) {
        scores[m] = w->kernels->dot(q, head->extra_k.at + m * head->extra_k.ld, a->d);
    }
    for (size_t s = 0; s < a->S; s++) {
        scores[a->M + s] = w->kernels->dot(q, head->k.at + (index != NULL ? (size_t)index[s] : s) * head->k.ld, a->d);
    }
    float inverse = soften_row(w, head, scores, t, false);
    if (a->out.at == NULL) {
        return;
    }
    float *out = a->out.at + (head->b * a->T + t) * a->out.ld + head->h * a->d;
    memset(out, 0, a->d * sizeof *out);
    for (size_t m = 0; m < a->M; m++) {
        w->kernels->add_scaled(out, head->extra_v.at + m * head->extra_v.ld, scores[m] * inverse, a->d);
    }
    for (size_t s = 0; s < a->S; s++) {
        const float *value = head->v.at + (index != NULL ? (size_t)index[s] : s) * head->v.ld;
        w->kernels->add_scaled(out, value, scores[a->M + s] * inverse, a->d);
    }
}

static void attend_rows(void *context, size_t task, size_t lane) {
    const attention_work *w = context;
    const qv_attention *a = w->a;
    size_t pair = task / w->splits, first = task % w->splits * w->rows, keys = a->M + a->S;
    size_t end = first + w->rows < a->T ? first + w->rows : a->T;
    qv_attention_head head = qv_view_head(a, pair / a->H, pair % a->H);
    lane_scratch scratch = {.scores = (float *)(void *)(w->scratch + lane * w->scratch_stride)};
    if (a->T <= FEW_ROWS || a->key_index != NULL) {
        for (size_t t = first; t < end; t++) {
            attend_row(w, scratch.scores, &head, t);
        }
        return;
    }
    scratch.keys = scratch.scores + score_floats(keys);
    scratch.values = scratch.keys + qv_turned_floats(keys, a->d);
    scratch.rows = scratch.values + qv_panel_floats(keys, a->d);
    pack_head(w, &scratch, &head);
    for (size_t t = first; t < end; t += w->held) {
        attend_tile(w, &scratch, &head, t, end - t < w->held ? end - t : w->held);
    }
}

static void attend_one(qv_call *call, const qv_attention *a) {
    attention_work work = {.a = a,
                           .kernels = qv_kernels_here(),
                           .product = qv_product_here(a->precision),
                           .scratch = call->scratch,
                           .scratch_stride = qv_cpu_attention_scratch(1, a->M + a->S, a->d),
                           .splits = 1,
                           .rows = a->T};
    work.held = held_rows(work.product);
    size_t heads = a->B * a->H;
    if (heads == 0 || a->T == 0) {
        return;
    }
    /* Few heads that lanes cannot share evenly: several tasks a head, though each packs the head anew. */
    while (heads * work.splits < 4 * call->lanes && heads * work.splits % call->lanes != 0 &&
           a->T / (2 * work.splits) >= 2 * work.held) {
        work.splits *= 2;
    }
    work.rows = qv_round_up((a->T + work.splits - 1) / work.splits, work.held);
    work.splits = (a->T + work.rows - 1) / work.rows;
    qv_cpu_run(call, call->lanes, heads * work.splits, attend_rows, &work);
}

void qv_cpu_attention(qv_call *call, const qv_attention *each, size_t count) {
    for (size_t i = 0; i < count; i++) {
        attend_one(call, &each[i]);
    }
}
