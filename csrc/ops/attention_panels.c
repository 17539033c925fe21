#include "ops/attention_panels.h"

#include <math.h>
#include <string.h>

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

qv_const_rows qv_rows_in_steps(const qv_head_packing *packing, qv_const_rows x, size_t n) {
    if (packing->product->write_steps == NULL) {
        return x;
    }
    qv_write_rows(packing->product, packing->spare, x, n, packing->d);
    return (qv_const_rows){packing->spare, qv_steps(packing->product, packing->d)};
}

/* The transposed rows of x [n, d], as rows first.. of the whole */
static void turn_rows(const qv_head_packing *packing, float *out, size_t first, qv_const_rows x, size_t n) {
    size_t width = packing->product->panel_columns, steps = qv_steps(packing->product, packing->d);
    for (size_t s = 0; s < n;) {
        size_t place = first + s, room = width - place % width, count = n - s < room ? n - s : room;
        qv_const_rows rows = qv_rows_in_steps(packing, (qv_const_rows){x.at + s * x.ld, x.ld}, count);
        float *panel = out + place / width * steps * width + place % width;
        packing->kernels->transpose(panel, width, rows.at, rows.ld, count, steps);
        s += count;
    }
}

void qv_pack_turned(const qv_head_packing *packing, float *out, const qv_head_rows *x) {
    size_t width = packing->product->panel_columns, rows = x->extra_count + x->count, rest = rows % width;
    size_t steps = qv_steps(packing->product, packing->d);
    /* The last panel's padding is never stored, but it is computed with: it must be numbers. */
    for (size_t i = 0; rest != 0 && i < steps; i++) {
        memset(out + (rows - rest) * steps + i * width + rest, 0, (width - rest) * sizeof *out);
    }
    turn_rows(packing, out, 0, x->extra, x->extra_count);
    turn_rows(packing, out, x->extra_count, x->rows, x->count);
}

static const float *row_of(const qv_head_rows *x, size_t r) {
    return r < x->extra_count ? x->extra.at + r * x->extra.ld : x->rows.at + (r - x->extra_count) * x->rows.ld;
}

void qv_pack_rows(const qv_head_packing *packing, float *out, const qv_head_rows *x) {
    const qv_product *product = packing->product;
    size_t width = product->panel_columns, d = packing->d, count = x->extra_count + x->count, items = product->items;
    size_t steps = qv_steps(product, count);
    for (size_t c = 0; c < d; c += width) {
        size_t columns = d - c < width ? d - c : width;
        for (size_t s = 0; s < steps; s++) {
            float *to = out + c * steps + s * width;
            const float *rows[QV_MAX_ITEMS];
            for (size_t i = 0; i < items; i++) {
                /* What fills a last step meets a zero: any number serves. */
                rows[i] = row_of(x, s * items + i < count ? s * items + i : count - 1) + c;
            }
            product->join_rows(to, rows, columns);
            if (columns < width) {
                memset(to + columns, 0, (width - columns) * sizeof *to);
            }
        }
    }
}

/* The scores [M + S] of keys that query t does not see become -INFINITY. */
static void hide_keys(float *scores, const qv_attention *a, const qv_attention_head *head, size_t t) {
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

float qv_mask_scores(const qv_attention *a, const qv_attention_head *head, float *row, size_t t) {
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
    hide_keys(row, a, head, t);
    return scale;
}
