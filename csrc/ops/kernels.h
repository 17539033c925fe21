/* The kernels of one instruction set: inner loops that a single thread runs. One table for each set, all from
 * kernel_template.h. They read and write what they are given and know nothing of threads, layers or heads. */
#ifndef QV_OPS_KERNELS_H
#define QV_OPS_KERNELS_H

#include "ops/ops.h"

/* The widest panel of any set, and steps that are multiplied at a time at most. */
#define QV_MAX_PANEL ((size_t)64)
#define QV_DEPTH_BLOCK ((size_t)1024)

/* Steps of a depth that are multiplied at a time at most, never 0: of a deep one equal parts, since the tiles of each fetch
 * the next meanwhile. */
static inline size_t qv_depth_block(size_t depth) {
    if (depth <= QV_DEPTH_BLOCK) {
        return QV_DEPTH_BLOCK;
    }
    size_t blocks = (depth + QV_DEPTH_BLOCK - 1) / QV_DEPTH_BLOCK;
    return ((depth + blocks - 1) / blocks + 7) / 8 * 8;
}

/* Two and four bytes of whatever lies in steps: floats, pairs of bfloat16, int8. */
typedef uint16_t __attribute__((may_alias)) qv_bits16;
typedef uint32_t __attribute__((may_alias)) qv_bits32;

/* out [rows, columns] = x [rows, depth] times a panel: the transposed weight of up to `panel_columns` columns, packed
 * as [depth, panel_columns] with zeros after the last column. x and panel are in the product's steps, and depth and ld_x
 * count them. What a row gives does not depend on how many rows there are. */
typedef struct {
    float *out;
    size_t ld_out;
    const void *x;
    size_t ld_x;
    const void *panel;
    size_t rows, columns, depth;
    bool add_to_out;             /* out += the product */
    const float *bias;           /* [columns] or NULL: this and what follows as in qv_epilogue, at these columns */
    const qv_epilogue *epilogue; /* NULL: nothing */
    const float *multiply, *residual;
    const char *prefetch, *prefetch_end; /* memory that the next product will read; NULL: unknown */
    float *spare; /* [depth, spare_words of the product, its panel_columns]; NULL: done without */
} qv_panel_product;

/* A product of one precision. Its factors lie in steps of 4 bytes, each of one or more items along the depth: a float, a pair
 * of bfloat16, or four int8. In int8 a panel has two rows more behind its steps, each column's scale (float) and the sum of its
 * items (int32), and a row two words, its scale and its zero point; see kernel_int8.h. */
typedef struct {
    const char *name;
    qv_precision precision;
    qv_dtype dtype; /* of panels that it reads where they lie in a file */
    size_t items;   /* of a step */
    size_t row_words;  /* words that a step takes in a row of x: 1, or 2 where int8 is spread to 16 bits */
    size_t spare_words; /* words of spare memory that a panel's step is spread to, a column, for many rows; 0: none */
    size_t row_tail;   /* words behind a row's steps */
    size_t panel_tail; /* rows behind a panel's */
    size_t panel_columns;
    size_t most_columns; /* of one call: a panel's, or any number, of panels that lie one behind another */
    size_t few_rows;     /* up to so many rows a call may be of panels that lie one behind another, too, and is best so */
    size_t tile_rows;    /* rows that the register tile holds: chunks of rows are best a multiple of it */
    bool packs_layers;   /* whether it beats OpenBLAS's product here, so that linear layers are packed for it */
    bool (*runs)(void);  /* whether this CPU has it; NULL: any that has the set's other kernels */
    void (*multiply)(const qv_panel_product *product);
    /* out [steps] = x [n], a last step filled with zeros, to nearest, ties to even; in bfloat16 out may begin where x does.
     * NULL: floats are such steps. */
    void (*write_steps)(float *out, const float *x, size_t n);
    /* out [n] = the items of [steps]; NULL likewise, and in int8, as join_rows and exponentiate are there */
    void (*read_steps)(float *out, const float *steps, size_t n);
    /* out [n] steps, each of an item of `items` rows [n] */
    void (*join_rows)(float *out, const float *const *rows, size_t n);
    /* x [n] = exp(scale (x - max)) in steps, beginning where x does, a last step filled with zeros; returns 1 / sum.
     * -INFINITY gives 0. All of them, NaN or INFINITY: NaN everywhere, so that no overflow passes for a map. */
    float (*exponentiate)(float *x, float scale, size_t n);
    /* Multiply and add in registers alone, and say how many operations that was: what the product's speed is held against. */
    double (*burn)(size_t steps);
} qv_product;

/* The widest step. */
#define QV_MAX_ITEMS ((size_t)2)

/* Steps of `depth` items. */
static inline size_t qv_steps(const qv_product *product, size_t depth) {
    return (depth + product->items - 1) / product->items;
}

/* Words of a row of `depth` items in steps, and rows of a panel of that depth, what lies behind the steps included. */
static inline size_t qv_row_words(const qv_product *product, size_t depth) {
    return qv_steps(product, depth) * product->row_words + product->row_tail;
}
static inline size_t qv_panel_rows(const qv_product *product, size_t depth) {
    return qv_steps(product, depth) + product->panel_tail;
}

/* out [n, row words] = the rows of x [n, d] in steps */
static inline void qv_write_rows(const qv_product *product, float *out, qv_const_rows x, size_t n, size_t d) {
    for (size_t r = 0; r < n; r++) {
        product->write_steps(out + r * qv_row_words(product, d), x.at + r * x.ld, d);
    }
}

typedef struct {
    const qv_product *products; /* float32's first */
    size_t product_count;

    /* x [n] = act(x) */
    void (*activate)(float *x, qv_activation activation, size_t n);
    /* x [n] = act'(x) */
    void (*find_slopes)(float *x, qv_activation activation, size_t n);
    /* out [n] = factor x [n] */
    void (*scale)(float *out, const float *x, float factor, size_t n);
    float (*dot)(const float *a, const float *b, size_t n);
    /* out [n] += factor x [n] */
    void (*add_scaled)(float *out, const float *x, float factor, size_t n);
    /* out [n] += factor e max(g, 0); e NULL: 1 */
    void (*add_positive)(float *out, const float *e, const float *g, float factor, size_t n);
    /* g [n] = e (g - factor sum(e g)) */
    void (*score_gradient)(float *g, const float *e, float factor, size_t n);
    /* out [columns, rows] = in [rows, columns]^T, of any 4-byte items: their bits are kept */
    void (*transpose)(float *out, size_t ld_out, const float *in, size_t ld_in, size_t rows, size_t columns);
    /* One row; see qv_norm, and norm_backward of qv_ops. */
    void (*norm)(float *out, const float *x, const qv_norm *norm);
    void (*norm_backward)(float *dx, const float *dy, const float *x, const qv_norm *norm);
} qv_kernels;

extern const qv_kernels qv_kernels_generic;
#if defined(__x86_64__)
extern const qv_kernels qv_kernels_avx2;
extern const qv_kernels qv_kernels_avx512;
/* A product of bfloat16 by AMX's tiles, beside whichever vectors: panels of QV_MAX_PANEL columns. `finish` makes of
 * rows first .. of out what bias and epilogue say. The calling thread's tiles are unset before and after. */
void qv_multiply_tiles(const qv_panel_product *p, void (*finish)(const qv_panel_product *p, size_t first, size_t rows));
double qv_burn_tiles(size_t steps);
/* The same of int8, with the tails of kernel_int8.h, whose bits it gives: at most a panel's columns. */
void qv_multiply_byte_tiles(const qv_panel_product *p, void (*finish)(const qv_panel_product *p, size_t first, size_t rows));
double qv_burn_byte_tiles(size_t steps);
#elif defined(__aarch64__)
extern const qv_kernels qv_kernels_neon;
#endif

/* The best table that qv_cpu() allows. */
const qv_kernels *qv_kernels_here(void);
/* Its product of a precision, or float32's where there is none. */
const qv_product *qv_product_here(qv_precision wanted);

#endif
