/* Attention on the CPU: a task is some rows of one head of one b. The head's keys (question tokens in front) are packed
 * as the panels of a product, its values too, so that scores and outputs come from the packed kernels; a tile of rows at
 * a time, whose probabilities stay in cache. One or two rows alone (a class token), and keys picked one by one, are not
 * worth the packing. */
#include "ops/cpu_ops.h"

#include "base/blas.h"

#include <math.h>
#include <string.h>

/* Rows whose scores are held at once at most: two register tiles' of the tallest. */
#define MOST_ROWS ((size_t)32)
/* Keys of the widest panel, packed together. */
#define PACK_ROWS QV_MAX_PANEL
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
    float *rows;   /* [PACK_ROWS, steps of d]: queries, or keys on their way to their panel, where floats are no steps */
} lane_scratch;

static size_t round_up(size_t n, size_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

static size_t key_floats(size_t keys, size_t d) {
    return round_up(keys, QV_MAX_PANEL) * d;
}

static size_t value_floats(size_t keys, size_t d) {
    return keys * round_up(d, QV_MAX_PANEL);
}

static size_t held_rows(const qv_product *product) {
    return 2 * product->tile_rows < MOST_ROWS ? 2 * product->tile_rows : MOST_ROWS;
}

/* For a product of any precision. */
static size_t score_floats(size_t keys) {
    size_t full = held_rows(qv_product_here(QV_PRECISION_FLOAT32)), half = held_rows(qv_product_here(QV_PRECISION_BFLOAT16));
    return (full > half ? full : half) * round_up(keys, QV_MAX_PANEL);
}

size_t qv_cpu_attention_scratch(size_t lanes, size_t keys, size_t head_width) {
    size_t floats = score_floats(keys) + key_floats(keys, head_width) + value_floats(keys, head_width) +
                    PACK_ROWS * (head_width / 2 + 1);
    return lanes * round_up(floats * sizeof(float), QV_ALIGNMENT);
}

/* The rows from `row` on, at a column; none where there are none. */
static qv_const_rows set_of(qv_const_rows rows, size_t row, size_t column) {
    return (qv_const_rows){rows.at != NULL ? rows.at + row * rows.ld + column : NULL, rows.ld};
}

qv_attention_head qv_view_head(const qv_attention *a, size_t b, size_t h) {
    size_t q_set = a->q_index != NULL ? a->q_index[b] : b, kv_set = a->kv_index != NULL ? a->kv_index[b] : b;
    size_t column = h * a->d, kv_row = kv_set * (a->kv_stride != 0 ? a->kv_stride : a->S);
    return (qv_attention_head){
        .q = set_of(a->q, q_set * a->T, column),
        .k = set_of(a->k, kv_row, column),
        .v = set_of(a->v, kv_row, column),
        .extra_k = set_of(a->extra_k, b * a->M, column),
        .extra_v = set_of(a->extra_v, b * a->M, column),
        .b = b,
        .h = h,
    };
}

void qv_hide_keys(float *scores, const qv_attention *a, const qv_attention_head *head, size_t t) {
    for (size_t m = a->extra_length != NULL ? a->extra_length[head->b] : a->M; m < a->M; m++) {
        scores[m] = -INFINITY;
    }
    scores += a->M;
    if (a->key_mask != NULL) {
        const uint8_t *mask = a->key_mask + head->b * a->S;
        for (size_t s = 0; s < a->S; s++) {
            scores[s] = mask[s] != 0 || (a->causal && s == a->past + t) ? scores[s] : -INFINITY;
        }
    }
    for (size_t s = a->past + t + 1; a->causal && s < a->S; s++) {
        scores[s] = -INFINITY;
    }
}

/* x [n, d] in steps: as it lies, or written to scratch->rows */
static qv_const_rows in_steps(const attention_work *w, const lane_scratch *scratch, qv_const_rows x, size_t n) {
    if (w->product->write_steps == NULL) {
        return x;
    }
    qv_write_rows(w->product, scratch->rows, x, n, w->a->d);
    return (qv_const_rows){scratch->rows, qv_steps(w->product, w->a->d)};
}

/* scratch->keys [panels, steps, width] = the transposed rows of x [n, d], as keys first.. of the whole */
static void pack_keys(const attention_work *w, const lane_scratch *scratch, size_t first, qv_const_rows x, size_t n) {
    size_t width = w->product->panel_columns, steps = qv_steps(w->product, w->a->d);
    for (size_t s = 0; s < n;) {
        size_t place = first + s, room = width - place % width, count = n - s < room ? n - s : room;
        qv_const_rows rows = in_steps(w, scratch, (qv_const_rows){x.at + s * x.ld, x.ld}, count);
        float *panel = scratch->keys + place / width * steps * width + place % width;
        w->kernels->transpose(panel, width, rows.at, rows.ld, count, steps);
        s += count;
    }
}

static const float *value_row(const attention_work *w, const qv_attention_head *head, size_t key) {
    const qv_attention *a = w->a;
    return key < a->M ? head->extra_v.at + key * head->extra_v.ld : head->v.at + (key - a->M) * head->v.ld;
}

/* scratch->values [panels of d, steps of M + S, width] = the values, a step of keys after the other */
static void pack_values(const attention_work *w, const lane_scratch *scratch, const qv_attention_head *head) {
    size_t width = w->product->panel_columns, d = w->a->d, keys = w->a->M + w->a->S, items = w->product->items;
    size_t steps = qv_steps(w->product, keys);
    for (size_t c = 0; c < d; c += width) {
        size_t columns = d - c < width ? d - c : width;
        for (size_t s = 0; s < steps; s++) {
            float *out = scratch->values + c * steps + s * width;
            const float *rows[QV_MAX_ITEMS];
            for (size_t i = 0; i < items; i++) {
                /* What fills a last step has no weight: any number serves as its value. */
                rows[i] = value_row(w, head, s * items + i < keys ? s * items + i : keys - 1) + c;
            }
            w->product->join_rows(out, rows, columns);
            if (columns < width) {
                memset(out + columns, 0, (width - columns) * sizeof *out);
            }
        }
    }
}

static void pack_head(const attention_work *w, const lane_scratch *scratch, const qv_attention_head *head) {
    const qv_attention *a = w->a;
    size_t width = w->product->panel_columns, keys = a->M + a->S, rest = keys % width;
    size_t steps = qv_steps(w->product, a->d);
    /* The last panel's padding is never stored, but it is computed with: it must be numbers. */
    for (size_t i = 0; rest != 0 && i < steps; i++) {
        memset(scratch->keys + (keys - rest) * steps + i * width + rest, 0, (width - rest) * sizeof(float));
    }
    pack_keys(w, scratch, 0, head->extra_k, a->M);
    pack_keys(w, scratch, a->M, head->k, a->S);
    if (a->out.at != NULL) {
        pack_values(w, scratch, head);
    }
}

/* Scale, bias and mask one row of scores; returns the scale that is still to be applied. */
static float mask_row(const qv_attention *a, const qv_attention_head *head, float *row, size_t t) {
    float scale = a->scale;
    if (a->bias.at != NULL) {
        const float *bias = a->bias.at + (head->h * a->bias_rows + t) * a->bias.ld;
        for (size_t m = 0; m < a->M; m++) {
            row[m] *= scale;
        }
        for (size_t s = 0; s < a->S; s++) {
            row[a->M + s] = row[a->M + s] * scale + bias[s];
        }
        scale = 1.0f;
    }
    qv_hide_keys(row, a, head, t);
    return scale;
}

/* exp(scores) in place, in the product's steps if `steps`, else as floats; the asked part of the row's probabilities is
 * handed out. Returns what the weighted sum of the values is multiplied by. */
static float soften_row(const attention_work *w, const qv_attention_head *head, float *row, size_t t, bool steps) {
    const qv_attention *a = w->a;
    size_t keys = a->M + a->S;
    float scale = mask_row(a, head, row, t);
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
    size_t most = w->product->most_columns, keys = a->M + a->S, ld_scores = round_up(keys, QV_MAX_PANEL);
    qv_const_rows q = in_steps(w, scratch, (qv_const_rows){head->q.at + t0 * head->q.ld, head->q.ld}, rows);
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
    scratch.values = scratch.keys + key_floats(keys, a->d);
    scratch.rows = scratch.values + value_floats(keys, a->d);
    pack_head(w, &scratch, &head);
    for (size_t t = first; t < end; t += w->held) {
        attend_tile(w, &scratch, &head, t, end - t < w->held ? end - t : w->held);
    }
}

void qv_cpu_attention(qv_call *call, const qv_attention *a) {
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
    work.rows = round_up((a->T + work.splits - 1) / work.splits, work.held);
    work.splits = (a->T + work.rows - 1) / work.rows;
    qv_cpu_run(call, call->lanes, heads * work.splits, attend_rows, &work);
}

/* ---- gradients: a task is one head of one b; a tile of query rows at a time, its probabilities made again from q and k
 * rather than kept from the forward pass ---- */

/* Query rows whose A and G are held at once. */
#define BACKWARD_ROWS ((size_t)32)

size_t qv_cpu_attention_backward_scratch(size_t lanes, size_t keys) {
    return lanes * 2 * BACKWARD_ROWS * keys * sizeof(float);
}

typedef struct {
    const qv_attention_backward *backward;
    float *scratch; /* [lanes, 2, BACKWARD_ROWS, M + S] */
} backward_work;

/* The bias is added to scores [M + S] of query t; keys that it does not see become -INFINITY. */
static void hide_row(float *row, const qv_attention *a, const qv_attention_head *head, size_t t) {
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

/* relevance [M + S] of the head gets its part of rows t0 .. */
static void add_relevance(const qv_attention_backward *w, const qv_attention_head *head, const float *A, const float *G,
                          size_t t0, size_t rows) {
    const qv_attention *a = &w->forward;
    size_t keys = a->M + a->S;
    float *out = w->relevance + (head->b * a->H + head->h) * keys;
    if (t0 == 0) {
        memset(out, 0, keys * sizeof *out);
    }
    for (size_t r = 0; r < rows; r++, A += keys, G += keys) {
        float weight = w->query_weights != NULL ? w->query_weights[head->b * a->T + t0 + r] : 1.0f;
        for (size_t s = 0; w->gradient_alone && s < keys; s++) {
            out[s] += weight * (G[s] < 0.0f ? 0.0f : G[s]);
        }
        for (size_t s = 0; !w->gradient_alone && s < keys; s++) {
            out[s] += weight * A[s] * (G[s] < 0.0f ? 0.0f : G[s]);
        }
    }
}

static void backward_tile(const qv_attention_backward *w, const qv_attention_head *head, float *A, float *G, size_t t0,
                          size_t rows) {
    const qv_attention *a = &w->forward;
    size_t keys = a->M + a->S, column = head->h * a->d;
    qv_const_rows q = {head->q.at + t0 * head->q.ld, head->q.ld};
    qv_const_rows d_out = {w->d_out.at + (head->b * a->T + t0) * w->d_out.ld + column, w->d_out.ld};
    bool scores = w->d_q.at != NULL || w->d_k.at != NULL;
    if (scores || w->probabilities != NULL || (w->relevance != NULL && !w->gradient_alone)) {
        multiply_keys(A, a, q, head->extra_k, head->k, a->scale, rows);
        for (size_t r = 0; r < rows; r++) {
            hide_row(A + r * keys, a, head, t0 + r);
            qv_softmax(A + r * keys, keys);
        }
    }
    multiply_keys(G, a, d_out, head->extra_v, head->v, 1.0f, rows);
    size_t place = ((head->b * a->H + head->h) * a->T + t0) * keys;
    if (w->relevance != NULL) {
        add_relevance(w, head, A, G, t0, rows);
    }
    if (w->probabilities != NULL) {
        memcpy(w->probabilities + place, A, rows * keys * sizeof *A);
    }
    if (w->d_probabilities != NULL) {
        memcpy(w->d_probabilities + place, G, rows * keys * sizeof *G);
    }
    if (!scores) {
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
    float *A = work->scratch + lane * 2 * BACKWARD_ROWS * keys, *G = A + BACKWARD_ROWS * keys;
    for (size_t t0 = 0; t0 < a->T; t0 += BACKWARD_ROWS) {
        size_t rows = a->T - t0 < BACKWARD_ROWS ? a->T - t0 : BACKWARD_ROWS;
        backward_tile(work->backward, &head, A, G, t0, rows);
    }
}

void qv_cpu_attention_backward(qv_call *call, const qv_attention_backward *backward) {
    backward_work work = {backward, call->scratch};
    qv_cpu_run(call, call->lanes, backward->forward.B * backward->forward.H, backward_head, &work);
}
