/* The kernels of one instruction set: inner loops that a single thread runs. One table for each set, all from
 * kernel_template.h. They read and write what they are given and know nothing of threads, layers or heads. */
#ifndef QV_OPS_KERNELS_H
#define QV_OPS_KERNELS_H

#include "ops/ops.h"

/* The widest panel of any set, and what a block of the depth may be at most. */
#define QV_MAX_PANEL ((size_t)64)
#define QV_DEPTH_BLOCK ((size_t)1024)

/* out [rows, columns] = x [rows, depth] times a panel: the transposed weight of up to `panel_columns` columns, packed
 * as [depth, panel_columns] with zeros after the last column. A bfloat16 panel holds pairs of the depth:
 * [depth / 2, panel_columns, 2], and x is bfloat16 too; depth then counts pairs, ld_x pairs. */
typedef struct {
    float *out;
    size_t ld_out;
    const void *x;
    size_t ld_x;
    const void *panel;
    size_t rows, columns, depth;
    bool add_to_out;          /* out += the product */
    const float *bias;        /* [columns] or NULL: this and what follows as in qv_epilogue, at these columns */
    const qv_epilogue *epilogue; /* NULL: nothing */
    const float *multiply, *residual;
    const char *prefetch, *prefetch_end; /* memory that the next product will read; NULL: unknown */
} qv_panel_product;

typedef struct {
    const char *name;
    size_t panel_columns;
    size_t tile_rows;   /* rows that the register tile holds: chunks of rows are best a multiple of it */
    bool packs_weights; /* whether this product beats OpenBLAS's here, so that linear layers are packed for it */

    void (*multiply)(const qv_panel_product *product);
    void (*multiply_bfloat16)(const qv_panel_product *product); /* NULL: none */
    /* out [n] = bfloat16 of x [n], to nearest, ties to even; `out` may begin where x does. NULL where multiply_bfloat16
     * is */
    void (*round_bfloat16)(uint16_t *out, const float *x, size_t n);
    /* out [n] = pairs of a [n] and b [n] in bfloat16; NULL where multiply_bfloat16 is */
    void (*pair_bfloat16)(float *out, const float *a, const float *b, size_t n);

    /* x [n] = act(x) */
    void (*activate)(float *x, qv_activation activation, size_t n);
    /* x [n] = exp(scale (x - max)); returns 1 / sum. -INFINITY gives 0. All of them, NaN or INFINITY: NaN everywhere, so
     * that no overflow passes for a map. A largest scale x beyond 2^30, which no float32 sum gives to within 1, may be NaN
     * too: scale max is rounded once. */
    float (*exponentiate)(float *x, float scale, size_t n);
    /* the same, out [n] in bfloat16, beginning where x does; NULL where multiply_bfloat16 is */
    float (*exponentiate_bfloat16)(float *x, float scale, size_t n);
    /* out [n] = factor x [n] */
    void (*scale)(float *out, const float *x, float factor, size_t n);
    float (*dot)(const float *a, const float *b, size_t n);
    /* out [n] += factor x [n] */
    void (*add_scaled)(float *out, const float *x, float factor, size_t n);
    /* out [columns, rows] = in [rows, columns]^T, of any 4-byte items: their bits are kept */
    void (*transpose)(float *out, size_t ld_out, const float *in, size_t ld_in, size_t rows, size_t columns);
    /* One row; see qv_norm, and norm_backward of qv_ops. */
    void (*norm)(float *out, const float *x, const qv_norm *norm);
    void (*norm_backward)(float *dx, const float *dy, const float *x, const qv_norm *norm);

    /* Multiply and add in registers alone, and say how many operations that was: what a product's speed is held against.
     * bfloat16 only where multiply_bfloat16 is and the CPU has it. */
    double (*burn)(qv_precision precision, size_t steps);
} qv_kernels;

extern const qv_kernels qv_kernels_generic;
#if defined(__x86_64__)
extern const qv_kernels qv_kernels_avx2;
extern const qv_kernels qv_kernels_avx512;
#endif

/* out [n, ceil(d / 2)] pairs = the rows of x [n, d] in bfloat16, an odd last one with a partner of zero */
void qv_round_rows(const qv_kernels *kernels, float *out, qv_const_rows x, size_t n, size_t d);

/* The best table that qv_cpu() allows. */
const qv_kernels *qv_kernels_here(void);

#endif
