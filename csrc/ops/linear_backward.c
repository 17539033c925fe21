/* The gradient of what goes into a linear layer, dx = dy W: where the layer is packed, by its panels, columns of dx a task, in
 * the precision that it multiplies in (int8: by its weights in bfloat16); elsewhere by OpenBLAS, a slab of columns a task. */
#include "ops/cpu_ops.h"

#include "base/blas.h"

#include <string.h>

/* ---- packed products ---- */

/* Some columns of dx a task. The product wants W itself in panels, [N, width] of so many columns: they are made of the forward's
 * panels, which hold W^T, a block of the depth N at a time. */
typedef struct {
    const qv_linear *layer;
    const qv_cpu_weights *weights;
    const qv_product *product; /* of the gradient */
    qv_rows dx;
    qv_const_rows dy; /* in the product's steps */
    size_t first, count;
    bool accumulate;
    size_t rows, chunks;
    float *scratch; /* [lanes, BLOCK_FLOATS] */
} backward_work;

/* Rows of W that are unpacked at once, and one that waits for the other item of its step. */
#define SPARE_ROWS (QV_MAX_PANEL + QV_MAX_ITEMS - 1)
#define BLOCK_FLOATS ((QV_DEPTH_BLOCK + SPARE_ROWS) * QV_MAX_PANEL)

/* Some rows n of W, and columns k .. of them, as a panel. */
typedef struct {
    float *steps; /* [items / items of a step, width] */
    float *spare; /* [SPARE_ROWS, width]: rows on their way to their step, where floats are no steps */
    size_t items, waiting;
    size_t done; /* items of the blocks before */
} weight_block;

size_t qv_cpu_linear_backward_scratch(size_t lanes) {
    return lanes * BLOCK_FLOATS * sizeof(float) + QV_ALIGNMENT;
}

/* Columns k .. of dx from the columns of dy that the block is of */
static void multiply_block(const backward_work *w, weight_block *block, size_t k, size_t chunk) {
    size_t row = chunk * w->rows / w->chunks, end = (chunk + 1) * w->rows / w->chunks;
    size_t width = w->product->panel_columns, left = w->layer->depth - k;
    qv_panel_product product = {
        .out = w->dx.at + row * w->dx.ld + k,
        .ld_out = w->dx.ld,
        .x = w->dy.at + row * w->dy.ld + block->done / w->product->items,
        .ld_x = w->dy.ld,
        .panel = block->steps,
        .rows = end - row,
        .columns = left < width ? left : width,
        .depth = qv_steps(w->product, block->items),
        .add_to_out = w->accumulate || block->done != 0,
    };
    w->product->multiply(&product);
    block->done += block->items;
    block->items = 0;
}

/* Whole steps of the rows that are waiting, and at the end a last one with zeros in it, go into the block. */
static void join_rows(const backward_work *w, weight_block *block, bool end) {
    static const float zeros[QV_MAX_PANEL];
    size_t width = w->product->panel_columns, items = w->product->items, used = 0;
    for (; used + items <= block->waiting || (end && used < block->waiting); used += items) {
        const float *rows[QV_MAX_ITEMS];
        for (size_t i = 0; i < items; i++) {
            rows[i] = used + i < block->waiting ? block->spare + (used + i) * width : zeros;
        }
        w->product->join_rows(block->steps + block->items / items * width, rows, width);
        block->items += items;
    }
    block->waiting = used < block->waiting ? block->waiting - used : 0;
    memmove(block->spare, block->spare + used * width, block->waiting * width * sizeof(float));
}

/* The next n rows of W, columns k .. k + count, from a panel that holds them as columns. */
static void add_rows(const backward_work *w, weight_block *block, const float *panel, size_t n, size_t k, size_t count,
                     size_t chunk) {
    size_t width = w->product->panel_columns;
    if (block->items + block->waiting + n > QV_DEPTH_BLOCK) {
        multiply_block(w, block, k, chunk);
    }
    if (w->product->write_steps == NULL) {
        qv_cpu_unpack(w->weights->product, block->steps + block->items * width, width, panel, w->layer->depth, n, k,
                      count);
        block->items += n;
    } else {
        qv_cpu_unpack(w->weights->product, block->spare + block->waiting * width, width, panel, w->layer->depth, n, k,
                      count);
        block->waiting += n;
        join_rows(w, block, false);
    }
}

static void backward_panel(void *context, size_t task, size_t lane) {
    const backward_work *w = context;
    const qv_linear *layer = w->layer;
    const qv_product *packed = w->weights->product;
    size_t width = w->product->panel_columns, panel_rows = qv_panel_rows(packed, layer->depth), k = task / w->chunks * width;
    size_t count = layer->depth - k < width ? layer->depth - k : width, chunk = task % w->chunks;
    float *own = w->scratch + lane * BLOCK_FLOATS;
    weight_block block = {.steps = own, .spare = own + QV_DEPTH_BLOCK * QV_MAX_PANEL};
    if (count < width) { /* what lies behind a last panel's columns is computed with: it must be numbers */
        memset(own, 0, BLOCK_FLOATS * sizeof *own);
    }
    size_t start = 0;
    for (size_t part = 0; part < layer->parts; start += layer->part_columns[part], part++) {
        size_t columns = start >= w->first && start < w->first + w->count ? layer->part_columns[part] : 0;
        for (size_t c = 0, n; c < columns; c += n) {
            n = columns - c < packed->panel_columns ? columns - c : packed->panel_columns;
            add_rows(w, &block, w->weights->parts[part] + c * panel_rows, n, k, count, chunk);
        }
    }
    join_rows(w, &block, true);
    multiply_block(w, &block, k, chunk);
}

/* Rows of dy that a task writes in the product's steps. */
#define STEP_ROWS ((size_t)32)

typedef struct {
    const qv_product *product;
    float *out; /* [R, steps of count] */
    qv_const_rows dy;
    size_t R, count;
} step_work;

static void write_rows(void *context, size_t task, size_t lane) {
    (void)lane;
    const step_work *w = context;
    size_t first = task * STEP_ROWS, rows = w->R - first < STEP_ROWS ? w->R - first : STEP_ROWS;
    qv_const_rows dy = {w->dy.at + first * w->dy.ld, w->dy.ld};
    qv_write_rows(w->product, w->out + first * qv_steps(w->product, w->count), dy, rows, w->count);
}

static void backward_packed(qv_call *call, qv_rows dx, qv_const_rows dy, const qv_linear *layer, size_t first, size_t count,
                            bool accumulate, size_t R) {
    bool whole = layer->precision == QV_PRECISION_FLOAT32;
    const qv_product *product = qv_product_here(whole ? QV_PRECISION_FLOAT32 : QV_PRECISION_BFLOAT16);
    backward_work work = {.layer = layer,
                          .weights = layer->packed,
                          .product = product,
                          .dx = dx,
                          .dy = dy,
                          .first = first,
                          .count = count,
                          .accumulate = accumulate,
                          .rows = R,
                          .chunks = 1,
                          .scratch = call->scratch};
    size_t lanes = R * count * layer->depth < QV_LEAST_SHARED ? 1 : call->lanes;
    if (product->write_steps != NULL) {
        size_t steps = qv_steps(product, count), bytes = R * steps * sizeof(float);
        step_work written = {product, call->scratch, dy, R, count};
        qv_cpu_run(call, lanes, (R + STEP_ROWS - 1) / STEP_ROWS, write_rows, &written);
        work.dy = (qv_const_rows){written.out, steps};
        work.scratch += (bytes + QV_ALIGNMENT - 1) / QV_ALIGNMENT * QV_ALIGNMENT / sizeof(float);
    }
    size_t panels = (layer->depth + product->panel_columns - 1) / product->panel_columns;
    /* Each chunk of the rows makes the panels anew. */
    while (panels * work.chunks < 2 * call->lanes && R / (2 * work.chunks) >= 16 * product->tile_rows) {
        work.chunks *= 2;
    }
    qv_cpu_run(call, lanes, panels * work.chunks, backward_panel, &work);
}

/* ---- OpenBLAS ---- */

typedef struct {
    qv_rows dx;
    qv_const_rows dy;
    const float *plain; /* [N, K] */
    bool accumulate;
    size_t R, N, K;
} backward_slab_work;

static void backward_slab(void *context, size_t task, size_t lane) {
    (void)lane;
    const backward_slab_work *w = context;
    size_t first = task * QV_SLAB_COLUMNS;
    size_t count = first + QV_SLAB_COLUMNS <= w->K ? QV_SLAB_COLUMNS : w->K - first;
    qv_sgemm(w->dx.at + first, w->dx.ld, w->dy.at, w->dy.ld, false, w->plain + first, w->K, false, 1.0f,
             w->accumulate ? 1.0f : 0.0f, w->R, count, w->N);
}

static void backward_plain(qv_call *call, qv_rows dx, qv_const_rows dy, const qv_linear *layer, size_t first, size_t count,
                           bool accumulate, size_t R) {
    const qv_cpu_weights *weights = layer->packed;
    size_t K = layer->depth, start = 0;
    for (size_t part = 0; part < layer->parts; start += layer->part_columns[part], part++) {
        if (start >= first && start < first + count) {
            qv_const_rows columns = {dy.at + start - first, dy.ld};
            backward_slab_work work = {
                dx, columns, weights->parts[part], accumulate || start != first, R, layer->part_columns[part], K};
            qv_cpu_run(call, call->lanes, (K + QV_SLAB_COLUMNS - 1) / QV_SLAB_COLUMNS, backward_slab, &work);
        }
    }
}

void qv_cpu_linear_backward(qv_call *call, qv_rows dx, qv_const_rows dy, const qv_linear *layer, size_t first, size_t count,
                            bool accumulate, size_t R) {
    const qv_cpu_weights *weights = layer->packed;
    if (R == 0 || count == 0) {
        return;
    }
    (weights->product != NULL ? backward_packed : backward_plain)(call, dx, dy, layer, first, count, accumulate, R);
}
