/* What attention and its gradient share: where one head's rows lie, how its keys and values are laid out for the products, and
 * which scores count. */
#ifndef QV_OPS_ATTENTION_PANELS_H
#define QV_OPS_ATTENTION_PANELS_H

#include "ops/cpu_ops.h"

/* Rows that are written in steps together, on their way to a panel. */
#define QV_PACK_ROWS QV_MAX_PANEL

/* One head of one b: where its rows lie. Where attention has no v or no extra tokens, none. */
typedef struct {
    qv_const_rows q, k, v, extra_k, extra_v;
    size_t b, h;
} qv_attention_head;

qv_attention_head qv_view_head(const qv_attention *attention, size_t b, size_t h);

typedef struct {
    const qv_kernels *kernels;
    const qv_product *product;
    size_t d;
    float *spare; /* [QV_PACK_ROWS, steps of d], where floats are no steps */
} qv_head_packing;

/* Rows of a head, of width d, behind `extra_count` others. */
typedef struct {
    qv_const_rows extra, rows;
    size_t extra_count, count;
} qv_head_rows;

static inline size_t qv_round_up(size_t n, size_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

/* Floats of what the functions below write. */
static inline size_t qv_turned_floats(size_t rows, size_t d) {
    return qv_round_up(rows, QV_MAX_PANEL) * d;
}
static inline size_t qv_panel_floats(size_t rows, size_t d) {
    return qv_round_up(rows, QV_MAX_ITEMS) * qv_round_up(d, QV_MAX_PANEL);
}
static inline size_t qv_step_floats(size_t rows, size_t d) {
    return rows * (d / 2 + 1);
}

/* x [n, d] in steps: as it lies, or written to packing->spare, for n up to QV_PACK_ROWS */
qv_const_rows qv_rows_in_steps(const qv_head_packing *packing, qv_const_rows x, size_t n);
/* out [panels of rows, steps of d, width] = the transposed rows: each row is a column of the product */
void qv_pack_turned(const qv_head_packing *packing, float *out, const qv_head_rows *x);
/* out [panels of d, steps of rows, width] = the rows, a step of them after the other: they are the product's depth. A last step
 * is filled with the last row. */
void qv_pack_rows(const qv_head_packing *packing, float *out, const qv_head_rows *x);

/* Scale, bias and mask one row of scores [M + S]; returns the scale that is still to be applied. */
float qv_mask_scores(const qv_attention *a, const qv_attention_head *head, float *row, size_t t);

#endif
