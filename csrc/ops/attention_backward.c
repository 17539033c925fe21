/* The gradients of attention on the CPU: a task is one head of one b, a tile of query rows at a time. A tile's probabilities
 * are made again from q and k rather than kept from the forward pass, and neither they nor their gradients leave the cache
 * unless they are asked for. The five products are the packed ones:
 *
 *   E = exp(scale q k^T - max)    A = E inverse, inverse = 1 / the row's sum; E is what is kept
 *   G = d_out v^T                 the gradient of A
 *   D = E (G - sum_s A G)         dS = D inverse
 *   d_q = scale inverse (D k)     d_k += D^T (scale inverse q)     d_v += E^T (inverse d_out)
 *
 * so that no probability is divided: the rows that they meet are. A query row or two alone (a class token) are not worth the
 * packing: dot products, a key at a time. */
#include "ops/attention_panels.h"

#include <math.h>
#include <string.h>

/* Query rows of a tile, a multiple of every register tile: enough that adding up d_k and d_v costs little, few enough for the
 * second-level cache. */
#define TILE_ROWS ((size_t)48)
/* Rows up to which keys and values are read where they lie. */
#define FEW_ROWS ((size_t)2)

typedef struct {
    const qv_attention_backward *w;
    const qv_kernels *kernels;
    const qv_product *product;
    char *scratch;
    size_t stride;              /* bytes a lane */
    bool probabilities, scores; /* whether E is needed, and D */
} backward_work;

/* One lane's scratch. */
typedef struct {
    float *E, *G;                      /* [TILE_ROWS, row_floats] */
    float *keys_turned, *values_turned; /* as qv_pack_turned leaves them */
    float *keys;                       /* as qv_pack_rows does */
    float *turned;                     /* [M + S, steps of TILE_ROWS]: D or E, a key a row */
    float *joined;                     /* [steps of TILE_ROWS, row_floats], on its way there, where floats are no steps */
    float *scaled;                     /* [TILE_ROWS, d]: q or d_out, times what their rows' probabilities are not divided by, */
    float *panel;                      /* and that as qv_pack_rows does */
    float *spare;                      /* [QV_PACK_ROWS, steps of d] */
    float *d_k, *d_v;                  /* [S, d] */
    float inverse[TILE_ROWS];
} lane_scratch;

/* Floats from a row of E to the next: no multiple of a page, so that rows do not share cache sets. */
static size_t row_floats(size_t keys) {
    return qv_round_up(keys, QV_MAX_PANEL) + QV_ALIGNMENT / sizeof(float);
}

/* The next `floats` behind what is used; only counted where there is no memory. */
static float *take(char *base, size_t *used, size_t floats) {
    float *at = base != NULL ? (float *)(void *)(base + *used) : NULL;
    *used += qv_round_up(floats * sizeof(float), QV_ALIGNMENT);
    return at;
}

/* Lay a lane's scratch out at base; returns its bytes. */
static size_t lay_out(lane_scratch *s, char *base, size_t keys, size_t d) {
    size_t used = 0;
    s->E = take(base, &used, TILE_ROWS * row_floats(keys));
    s->G = take(base, &used, TILE_ROWS * row_floats(keys));
    s->keys_turned = take(base, &used, qv_turned_floats(keys, d));
    s->values_turned = take(base, &used, qv_turned_floats(keys, d));
    s->keys = take(base, &used, qv_panel_floats(keys, d));
    s->turned = take(base, &used, keys * TILE_ROWS);
    s->joined = take(base, &used, TILE_ROWS / 2 * row_floats(keys));
    s->scaled = take(base, &used, TILE_ROWS * d);
    s->panel = take(base, &used, qv_panel_floats(TILE_ROWS, d));
    s->spare = take(base, &used, qv_step_floats(QV_PACK_ROWS, d));
    s->d_k = take(base, &used, keys * d);
    s->d_v = take(base, &used, keys * d);
    return used;
}

size_t qv_cpu_attention_backward_scratch(size_t lanes, size_t keys, size_t head_width) {
    lane_scratch s;
    return lanes * lay_out(&s, NULL, keys, head_width);
}

/* ---- what is read of a tile ---- */

/* Rows t0 .. of E and G to who asked for them. */
static void hand_out(const backward_work *work, const lane_scratch *s, const qv_attention_head *head, size_t t0, size_t rows,
                     size_t ld) {
    const qv_attention_backward *w = work->w;
    const qv_attention *a = &w->forward;
    size_t keys = a->M + a->S, set = head->b * a->H + head->h;
    float *relevance = w->relevance != NULL ? w->relevance + set * keys : NULL;
    if (relevance != NULL && t0 == 0) {
        memset(relevance, 0, keys * sizeof *relevance);
    }
    for (size_t r = 0; r < rows; r++) {
        const float *E = s->E + r * ld, *G = s->G + r * ld;
        size_t place = (set * a->T + t0 + r) * keys;
        if (relevance != NULL) {
            float weight = w->query_weights != NULL ? w->query_weights[head->b * a->T + t0 + r] : 1.0f;
            work->kernels->add_positive(relevance, w->gradient_alone ? NULL : E, G,
                                        w->gradient_alone ? weight : weight * s->inverse[r], keys);
        }
        if (w->probabilities != NULL) {
            work->kernels->scale(w->probabilities + place, E, s->inverse[r], keys);
        }
        if (w->d_probabilities != NULL) {
            memcpy(w->d_probabilities + place, G, keys * sizeof *G);
        }
    }
}

/* ---- many rows ---- */

static qv_head_packing packing_of(const backward_work *work, const lane_scratch *s) {
    return (qv_head_packing){work->kernels, work->product, work->w->forward.d, s->spare};
}

static void pack_head(const backward_work *work, const lane_scratch *s, const qv_attention_head *head) {
    const qv_attention *a = &work->w->forward;
    const qv_head_packing packing = packing_of(work, s);
    const qv_head_rows keys = {head->extra_k, head->k, a->M, a->S}, values = {head->extra_v, head->v, a->M, a->S};
    qv_pack_turned(&packing, s->values_turned, &values);
    if (work->probabilities) {
        qv_pack_turned(&packing, s->keys_turned, &keys);
    }
    if (work->w->d_q.at != NULL) {
        qv_pack_rows(&packing, s->keys, &keys);
    }
}

/* out [rows, M + S] = x [rows, d] times turned panels */
static void multiply_turned(const backward_work *work, const lane_scratch *s, float *out, size_t ld, qv_const_rows x,
                            const float *panels, size_t rows) {
    const qv_attention *a = &work->w->forward;
    const qv_head_packing packing = packing_of(work, s);
    size_t width = work->product->panel_columns, keys = a->M + a->S;
    const qv_const_rows steps = qv_rows_in_steps(&packing, x, rows);
    qv_panel_product product = {
        .ld_out = ld, .x = steps.at, .ld_x = steps.ld, .rows = rows, .depth = qv_steps(work->product, a->d)};
    for (size_t k = 0; k < keys; k += width) {
        product.out = out + k;
        product.panel = panels + k * product.depth;
        product.columns = keys - k < width ? keys - k : width;
        work->product->multiply(&product);
    }
}

/* out [rows, d] (+)= x [rows, depth] times panels of so many steps */
static void multiply_rows(const backward_work *work, qv_rows out, qv_const_rows x, const float *panels, size_t rows,
                          size_t steps, bool add) {
    size_t width = work->product->panel_columns, d = work->w->forward.d;
    qv_panel_product product = {
        .ld_out = out.ld, .x = x.at, .ld_x = x.ld, .rows = rows, .depth = steps, .add_to_out = add};
    for (size_t c = 0; c < d; c += width) {
        product.out = out.at + c;
        product.panel = panels + c * steps;
        product.columns = d - c < width ? d - c : width;
        work->product->multiply(&product);
    }
}

/* out [S, d] (+)= x [rows, M + S]^T y [rows, d], the rows of y times factor inverse; of x, the columns behind the first M */
static void add_turned(const backward_work *work, const lane_scratch *s, float *out, const float *x, size_t ld, qv_const_rows y,
                       float factor, size_t rows, bool add) {
    static const float zeros[QV_MAX_PANEL];
    const qv_attention *a = &work->w->forward;
    const qv_product *product = work->product;
    const qv_head_packing packing = packing_of(work, s);
    size_t steps = qv_steps(product, rows);
    x += a->M;
    for (size_t r = 0; r < rows; r++) {
        work->kernels->scale(s->scaled + r * a->d, y.at + r * y.ld, factor * s->inverse[r], a->d);
    }
    const qv_head_rows scaled = {.rows = {s->scaled, a->d}, .count = rows};
    qv_pack_rows(&packing, s->panel, &scaled);
    if (product->write_steps == NULL) {
        work->kernels->transpose(s->turned, steps, x, ld, rows, a->S);
    } else {
        for (size_t i = 0; i < steps; i++) {
            for (size_t k = 0; k < a->S; k += QV_MAX_PANEL) {
                size_t count = a->S - k < QV_MAX_PANEL ? a->S - k : QV_MAX_PANEL;
                const float *pair[QV_MAX_ITEMS];
                for (size_t j = 0; j < product->items; j++) {
                    size_t r = i * product->items + j;
                    pair[j] = r < rows ? x + r * ld + k : zeros;
                }
                product->join_rows(s->joined + i * ld + k, pair, count);
            }
        }
        work->kernels->transpose(s->turned, steps, s->joined, ld, steps, a->S);
    }
    multiply_rows(work, (qv_rows){out, a->d}, (qv_const_rows){s->turned, steps}, s->panel, a->S, steps, add);
}

static void scores_backward(const backward_work *work, const lane_scratch *s, const qv_attention_head *head, size_t t0,
                            size_t rows, size_t ld) {
    const qv_attention_backward *w = work->w;
    const qv_attention *a = &w->forward;
    const qv_product *product = work->product;
    size_t keys = a->M + a->S, row = head->b * a->T + t0, column = head->h * a->d;
    for (size_t r = 0; r < rows; r++) {
        work->kernels->score_gradient(s->G + r * ld, s->E + r * ld, s->inverse[r], keys);
    }
    if (w->d_k.at != NULL) {
        const qv_const_rows q = {head->q.at + t0 * head->q.ld, head->q.ld};
        const qv_const_rows d_out = {w->d_out.at + row * w->d_out.ld + column, w->d_out.ld};
        add_turned(work, s, s->d_k, s->G, ld, q, a->scale, rows, t0 != 0);
        add_turned(work, s, s->d_v, s->E, ld, d_out, 1.0f, rows, t0 != 0);
    }
    if (w->d_q.at != NULL) {
        const qv_rows d_q = {w->d_q.at + row * w->d_q.ld + column, w->d_q.ld};
        for (size_t r = 0; product->write_steps != NULL && r < rows; r++) {
            product->write_steps(s->G + r * ld, s->G + r * ld, keys);
        }
        multiply_rows(work, d_q, (qv_const_rows){s->G, ld}, s->keys, rows, qv_steps(product, keys), false);
        for (size_t r = 0; r < rows; r++) {
            work->kernels->scale(d_q.at + r * d_q.ld, d_q.at + r * d_q.ld, a->scale * s->inverse[r], a->d);
        }
    }
}

static void backward_tile(const backward_work *work, lane_scratch *s, const qv_attention_head *head, size_t t0, size_t rows) {
    const qv_attention_backward *w = work->w;
    const qv_attention *a = &w->forward;
    size_t keys = a->M + a->S, ld = row_floats(keys), row = head->b * a->T + t0;
    if (work->probabilities) {
        const qv_const_rows q = {head->q.at + t0 * head->q.ld, head->q.ld};
        multiply_turned(work, s, s->E, ld, q, s->keys_turned, rows);
        for (size_t r = 0; r < rows; r++) {
            float *scores = s->E + r * ld, scale = qv_mask_scores(a, head, scores, t0 + r);
            s->inverse[r] = work->kernels->products->exponentiate(scores, scale, keys);
        }
    }
    const qv_const_rows d_out = {w->d_out.at + row * w->d_out.ld + head->h * a->d, w->d_out.ld};
    multiply_turned(work, s, s->G, ld, d_out, s->values_turned, rows);
    hand_out(work, s, head, t0, rows, ld);
    if (work->scores) {
        scores_backward(work, s, head, t0, rows, ld);
    }
}

/* ---- few rows ---- */

/* What is d wide of key m: question tokens in front. */
static const float *key_row(const qv_attention *a, qv_const_rows extra, qv_const_rows rows, size_t m) {
    return m < a->M ? extra.at + m * extra.ld : rows.at + (m - a->M) * rows.ld;
}

static void backward_row(const backward_work *work, lane_scratch *s, const qv_attention_head *head, size_t t) {
    const qv_attention_backward *w = work->w;
    const qv_attention *a = &w->forward;
    const qv_kernels *kernels = work->kernels;
    size_t keys = a->M + a->S, row = head->b * a->T + t, column = head->h * a->d;
    const float *q = head->q.at + t * head->q.ld, *d_out = w->d_out.at + row * w->d_out.ld + column;
    if (work->probabilities) {
        for (size_t m = 0; m < keys; m++) {
            s->E[m] = kernels->dot(q, key_row(a, head->extra_k, head->k, m), a->d);
        }
        float scale = qv_mask_scores(a, head, s->E, t);
        s->inverse[0] = kernels->products->exponentiate(s->E, scale, keys);
    }
    for (size_t m = 0; m < keys; m++) {
        s->G[m] = kernels->dot(d_out, key_row(a, head->extra_v, head->v, m), a->d);
    }
    hand_out(work, s, head, t, 1, 0);
    if (!work->scores) {
        return;
    }
    float inverse = s->inverse[0];
    kernels->score_gradient(s->G, s->E, inverse, keys);
    if (w->d_q.at != NULL) {
        float *d_q = w->d_q.at + row * w->d_q.ld + column;
        memset(d_q, 0, a->d * sizeof *d_q);
        for (size_t m = 0; m < keys; m++) {
            kernels->add_scaled(d_q, key_row(a, head->extra_k, head->k, m), a->scale * inverse * s->G[m], a->d);
        }
    }
    for (size_t k = 0; w->d_k.at != NULL && k < a->S; k++) {
        float *d_k = s->d_k + k * a->d, *d_v = s->d_v + k * a->d;
        float of_key = a->scale * inverse * s->G[a->M + k], of_value = inverse * s->E[a->M + k];
        if (t == 0) {
            kernels->scale(d_k, q, of_key, a->d);
            kernels->scale(d_v, d_out, of_value, a->d);
        } else {
            kernels->add_scaled(d_k, q, of_key, a->d);
            kernels->add_scaled(d_v, d_out, of_value, a->d);
        }
    }
}

static void backward_head(void *context, size_t task, size_t lane) {
    const backward_work *work = context;
    const qv_attention_backward *w = work->w;
    const qv_attention *a = &w->forward;
    qv_attention_head head = qv_view_head(a, task / a->H, task % a->H);
    lane_scratch s;
    lay_out(&s, work->scratch + lane * work->stride, a->M + a->S, a->d);
    if (a->T <= FEW_ROWS) {
        for (size_t t = 0; t < a->T; t++) {
            backward_row(work, &s, &head, t);
        }
    } else {
        pack_head(work, &s, &head);
        for (size_t t0 = 0; t0 < a->T; t0 += TILE_ROWS) {
            backward_tile(work, &s, &head, t0, a->T - t0 < TILE_ROWS ? a->T - t0 : TILE_ROWS);
        }
    }
    for (size_t k = 0; w->d_k.at != NULL && k < a->S; k++) {
        size_t row = head.b * a->S + k, column = head.h * a->d;
        memcpy(w->d_k.at + row * w->d_k.ld + column, s.d_k + k * a->d, a->d * sizeof(float));
        memcpy(w->d_v.at + row * w->d_v.ld + column, s.d_v + k * a->d, a->d * sizeof(float));
    }
}

static void backward_one(qv_call *call, const qv_attention_backward *w) {
    const qv_attention *a = &w->forward;
    bool whole = a->precision == QV_PRECISION_FLOAT32, scores = w->d_q.at != NULL || w->d_k.at != NULL;
    backward_work work = {.w = w,
                          .kernels = qv_kernels_here(),
                          .product = qv_product_here(whole ? QV_PRECISION_FLOAT32 : QV_PRECISION_BFLOAT16),
                          .scratch = call->scratch,
                          .stride = qv_cpu_attention_backward_scratch(1, a->M + a->S, a->d),
                          .probabilities =
                              scores || w->probabilities != NULL || (w->relevance != NULL && !w->gradient_alone),
                          .scores = scores};
    qv_cpu_run(call, call->lanes, a->B * a->H, backward_head, &work);
}

void qv_cpu_attention_backward(qv_call *call, const qv_attention_backward *each, size_t count) {
    for (size_t i = 0; i < count; i++) {
        backward_one(call, &each[i]);
    }
}
