/* The gradient of what goes into a linear layer, dx = dy W: where the layer is packed, by its panels, columns of dx a task;
 * elsewhere by OpenBLAS, a slab of columns a task. */
#include "ops/cpu_ops.h"

#include "base/blas.h"

#include <string.h>

/* ---- packed products ---- */

/* Some columns of dx a task. The float32 product wants W itself in panels, [N, width] of so many columns: they are
 * made of the forward's panels, which hold W^T, a block of the depth N at a time. */
typedef struct {
    const qv_linear *layer;
    const qv_cpu_weights *weights;
    const qv_product *product;
    qv_rows dx;
    qv_const_rows dy;
    size_t first, count;
    bool accumulate;
    size_t rows, chunks;
    float *scratch; /* [lanes, QV_DEPTH_BLOCK, QV_MAX_PANEL] */
} backward_work;

size_t qv_cpu_linear_backward_scratch(size_t lanes) {
    return lanes * QV_DEPTH_BLOCK * QV_MAX_PANEL * sizeof(float);
}

/* Columns k .. of dx from columns n .. n + depth of dy */
static void multiply_block(const backward_work *w, const float *block, size_t k, size_t n, size_t depth, size_t chunk) {
    size_t row = chunk * w->rows / w->chunks, end = (chunk + 1) * w->rows / w->chunks;
    size_t width = w->product->panel_columns, left = w->layer->depth - k;
    qv_panel_product product = {
        .out = w->dx.at + row * w->dx.ld + k,
        .ld_out = w->dx.ld,
        .x = w->dy.at + row * w->dy.ld + n,
        .ld_x = w->dy.ld,
        .panel = block,
        .rows = end - row,
        .columns = left < width ? left : width,
        .depth = depth,
        .add_to_out = w->accumulate || n != 0,
    };
    w->product->multiply(&product);
}

static void backward_panel(void *context, size_t task, size_t lane) {
    const backward_work *w = context;
    const qv_linear *layer = w->layer;
    const qv_product *packed = w->weights->product;
    size_t width = w->product->panel_columns, panel_rows = qv_panel_rows(packed, layer->depth), k = task / w->chunks * width;
    size_t count = layer->depth - k < width ? layer->depth - k : width, chunk = task % w->chunks;
    float *block = w->scratch + lane * QV_DEPTH_BLOCK * QV_MAX_PANEL;
    if (count < width) {
        memset(block, 0, QV_DEPTH_BLOCK * width * sizeof *block);
    }
    size_t start = 0, done = 0, filled = 0;
    for (size_t part = 0; part < layer->parts; start += layer->part_columns[part], part++) {
        size_t columns = start >= w->first && start < w->first + w->count ? layer->part_columns[part] : 0;
        for (size_t c = 0, n; c < columns; c += n) {
            n = columns - c < packed->panel_columns ? columns - c : packed->panel_columns;
            if (filled + n > QV_DEPTH_BLOCK) {
                multiply_block(w, block, k, done, filled, chunk);
                done += filled;
                filled = 0;
            }
            qv_cpu_unpack(packed, block + filled * width, width, w->weights->parts[part] + c * panel_rows, layer->depth, n, k,
                          count);
            filled += n;
        }
    }
    multiply_block(w, block, k, done, filled, chunk);
}

/* ---- OpenBLAS ---- */

typedef struct {
    qv_rows dx;
    qv_const_rows dy;
    const float *plain; /* [N, K] */
    bool accumulate;
    size_t R, N, K, slab;
} backward_slab_work;

static void backward_slab(void *context, size_t task, size_t lane) {
    (void)lane;
    const backward_slab_work *w = context;
    size_t first = task * w->slab;
    size_t count = first + w->slab <= w->K ? w->slab : w->K - first;
    qv_sgemm(w->dx.at + first, w->dx.ld, w->dy.at, w->dy.ld, false, w->plain + first, w->K, false, 1.0f,
             w->accumulate ? 1.0f : 0.0f, w->R, count, w->N);
}

static void backward_plain(qv_call *call, qv_rows dx, qv_const_rows dy, const qv_linear *layer, size_t first, size_t count,
                           bool accumulate, size_t R) {
    const qv_cpu_weights *weights = layer->packed;
    size_t K = layer->depth, slab = qv_cpu_slab_columns(call, K), start = 0;
    for (size_t part = 0; part < layer->parts; start += layer->part_columns[part], part++) {
        if (start >= first && start < first + count) {
            qv_const_rows columns = {dy.at + start - first, dy.ld};
            backward_slab_work work = {
                dx, columns, weights->parts[part], accumulate || start != first, R, layer->part_columns[part], K, slab};
            qv_cpu_run(call, call->lanes, (K + slab - 1) / slab, backward_slab, &work);
        }
    }
}

void qv_cpu_linear_backward(qv_call *call, qv_rows dx, qv_const_rows dy, const qv_linear *layer, size_t first, size_t count,
                            bool accumulate, size_t R) {
    const qv_cpu_weights *weights = layer->packed;
    if (R == 0 || count == 0) {
        return;
    }
    if (weights->product == NULL) {
        backward_plain(call, dx, dy, layer, first, count, accumulate, R);
        return;
    }
    const qv_product *product = qv_product_here(QV_PRECISION_FLOAT32);
    backward_work work = {.layer = layer,
                          .weights = weights,
                          .product = product,
                          .dx = dx,
                          .dy = dy,
                          .first = first,
                          .count = count,
                          .accumulate = accumulate,
                          .rows = R,
                          .chunks = 1,
                          .scratch = call->scratch};
    size_t panels = (layer->depth + product->panel_columns - 1) / product->panel_columns;
    /* Each chunk of the rows makes the panels anew. */
    while (panels * work.chunks < 2 * call->lanes && R / (2 * work.chunks) >= 16 * product->tile_rows) {
        work.chunks *= 2;
    }
    size_t lanes = R * count * layer->depth < QV_LEAST_SHARED ? 1 : call->lanes;
    qv_cpu_run(call, lanes, panels * work.chunks, backward_panel, &work);
}
