/* Linear layers as the CPU multiplies by them. Where a packed product beats OpenBLAS the weight is packed once, each part in
 * panels of the product's width (see kernels.h), or read where it lies if the file holds such panels; elsewhere it stays
 * plain. */
#include "ops/cpu_ops.h"

#include <stdint.h>
#include <string.h>

/* Items of the depth that packing reads at once, and the padding that keeps its rows in different cache sets. */
#define PACK_ITEMS ((size_t)64)
#define PACK_STRIDE (PACK_ITEMS + 16)

typedef struct {
    const qv_kernels *kernels;
    const qv_product *product;
    const qv_linear_source *source;
    float *packed; /* [panels, panel rows, panel_columns] */
    float *spare;  /* [lanes, qv_int8_spare], int8 alone */
    size_t columns, depth;
} pack_work;

/* Whether the file holds panels of this width (0: rows) in this type, which can be read where they lie. */
static bool lies_ready(const qv_linear_source *source, size_t width, qv_dtype dtype) {
    const qv_tensor *weight = source->weight;
    return weight->panel_columns == width && weight->dtype == dtype && source->add_weight == NULL &&
           source->row_scale == NULL && (uintptr_t)weight->data % sizeof(float) == 0;
}

/* Panel `task` from the file's float32 panel of the same width: its rows, a step of them at a time. */
static void join_panel(const pack_work *w, size_t task) {
    static const float zeros[QV_MAX_PANEL];
    size_t width = w->product->panel_columns, items = w->product->items;
    const float *from = (const float *)w->source->weight->data + task * w->depth * width;
    float *out = w->packed + task * qv_steps(w->product, w->depth) * width;
    for (size_t k = 0; k < w->depth; k += items, out += width) {
        const float *rows[QV_MAX_ITEMS];
        for (size_t i = 0; i < items; i++) {
            rows[i] = k + i < w->depth ? from + (k + i) * width : zeros;
        }
        w->product->join_rows(out, rows, width);
    }
}

static void pack_int8_panel(void *context, size_t task, size_t lane) {
    const pack_work *w = context;
    size_t width = w->product->panel_columns, first = task * width;
    size_t columns = w->columns - first < width ? w->columns - first : width;
    float *out = w->packed + task * qv_panel_rows(w->product, w->depth) * width;
    float *spare = w->spare + lane * qv_int8_spare(w->product, w->depth);
    qv_int8_pack_panel(w->product, out, w->source, first, columns, w->depth, spare);
}

/* Panel `task`: the transposed rows of the weight, PACK_ITEMS of the depth at a time. */
static void pack_panel(void *context, size_t task, size_t lane) {
    (void)lane;
    const pack_work *w = context;
    float rows[QV_MAX_PANEL * PACK_STRIDE], spare[PACK_ITEMS];
    size_t width = w->product->panel_columns, first = task * width;
    size_t columns = w->columns - first < width ? w->columns - first : width;
    float *out = w->packed + task * qv_panel_rows(w->product, w->depth) * width;
    if (lies_ready(w->source, width, QV_FLOAT32)) {
        join_panel(w, task);
        return;
    }
    memset(rows, 0, sizeof rows);
    for (size_t k = 0; k < w->depth; k += PACK_ITEMS) {
        size_t count = w->depth - k < PACK_ITEMS ? w->depth - k : PACK_ITEMS, steps = qv_steps(w->product, count);
        for (size_t c = 0; c < columns; c++) {
            float *row = rows + c * PACK_STRIDE;
            qv_linear_source_read(row, w->source, (first + c) * w->depth + k, count, spare);
            if (w->product->write_steps != NULL) {
                w->product->write_steps(row, row, count);
            }
        }
        w->kernels->transpose(out, width, rows, PACK_STRIDE, width, steps);
        out += steps * width;
    }
}

void qv_cpu_unpack(const qv_product *product, float *out, size_t ld_out, const float *panel, size_t depth, size_t columns,
                   size_t k, size_t count) {
    if (product->precision == QV_PRECISION_INT8) {
        qv_int8_unpack(product, out, ld_out, panel, depth, columns, k, count);
        return;
    }
    const qv_kernels *kernels = qv_kernels_here();
    size_t width = product->panel_columns, steps = qv_steps(product, count);
    const float *from = panel + k / product->items * width;
    if (product->read_steps == NULL) {
        kernels->transpose(out, ld_out, from, width, steps, columns);
        return;
    }
    float rows[QV_MAX_PANEL * QV_MAX_PANEL];
    kernels->transpose(rows, steps, from, width, steps, columns);
    for (size_t c = 0; c < columns; c++) {
        product->read_steps(out + c * ld_out, rows + c * steps, count);
    }
}

static size_t panels_of(const qv_linear *layer, size_t part, size_t width) {
    return (layer->part_columns[part] + width - 1) / width;
}

static qv_status pack_panels(qv_cpu_weights *weights, qv_pool *pool, const qv_linear *layer,
                             const qv_linear_source *sources, qv_error *err) {
    const qv_product *product = weights->product;
    bool int8 = product->precision == QV_PRECISION_INT8;
    size_t panels = 0, width = product->panel_columns, rows = qv_panel_rows(product, layer->depth), items;
    size_t lanes = qv_thread_count(), spare = int8 ? lanes * qv_int8_spare(product, layer->depth) : 0;
    for (size_t i = 0; i < layer->parts; i++) {
        if (lies_ready(&sources[i], width, product->dtype)) {
            weights->parts[i] = sources[i].weight->data;
        } else {
            panels += panels_of(layer, i, width);
        }
    }
    if (panels == 0) {
        return QV_OK;
    }
    if (!qv_multiply_size(panels * width, rows, &items) || !qv_pool_take(pool, &weights->owned, items, sizeof(float))) {
        return qv_fail_memory(err, sources[0].weight->name);
    }
    float *packed = weights->owned.at;
    float *columns = int8 ? qv_allocate(spare, sizeof *columns) : NULL;
    if (int8 && columns == NULL) {
        return qv_fail_memory(err, sources[0].weight->name);
    }
    for (size_t i = 0; i < layer->parts; i++) {
        if (weights->parts[i] != NULL) {
            continue;
        }
        pack_work work = {qv_kernels_here(), product, &sources[i], packed, columns, layer->part_columns[i], layer->depth};
        size_t count = panels_of(layer, i, width);
        qv_parallel(lanes, count, int8 ? pack_int8_panel : pack_panel, &work);
        weights->parts[i] = packed;
        packed += count * width * rows;
        qv_linear_source_release(&sources[i]);
    }
    qv_free(columns);
    return QV_OK;
}

static qv_status copy_plain(qv_cpu_weights *weights, qv_pool *pool, const qv_linear *layer,
                            const qv_linear_source *sources, qv_error *err) {
    size_t copied = 0;
    for (size_t i = 0; i < layer->parts; i++) {
        copied += lies_ready(&sources[i], 0, QV_FLOAT32) ? 0 : qv_tensor_count(sources[i].weight);
    }
    /* one row more, for the sums */
    if (copied != 0 && !qv_pool_take(pool, &weights->owned, copied + layer->depth, sizeof(float))) {
        return qv_fail_memory(err, sources[0].weight->name);
    }
    float *copy = weights->owned.at;
    float *spare = copied != 0 ? copy + copied : NULL;
    for (size_t i = 0; i < layer->parts; i++) {
        if (lies_ready(&sources[i], 0, QV_FLOAT32)) {
            weights->parts[i] = sources[i].weight->data;
            continue;
        }
        weights->parts[i] = copy;
        for (size_t row = 0; row < layer->part_columns[i]; row++, copy += layer->depth) {
            qv_linear_source_read(copy, &sources[i], row * layer->depth, layer->depth, spare);
        }
        qv_linear_source_release(&sources[i]);
    }
    return QV_OK;
}

qv_status qv_cpu_linear_pack(const qv_ops *ops, qv_pool *pool, qv_linear *layer, const qv_linear_source *sources,
                             qv_error *err) {
    if (layer->precision == QV_PRECISION_INT8 && layer->depth > QV_INT8_DEPTH) {
        layer->precision = ops->computes_in(ops, QV_PRECISION_BFLOAT16);
    }
    const qv_product *product = qv_product_here(layer->precision);
    qv_cpu_weights *weights = qv_allocate(1, sizeof *weights);
    if (weights == NULL) {
        return qv_fail_memory(err, sources[0].weight->name);
    }
    *weights = (qv_cpu_weights){.product = product->packs_layers ? product : NULL};
    layer->packed = weights;
    return weights->product != NULL ? pack_panels(weights, pool, layer, sources, err)
                                    : copy_plain(weights, pool, layer, sources, err);
}

void qv_cpu_linear_drop(const qv_ops *ops, qv_linear *layer) {
    (void)ops;
    qv_cpu_weights *weights = layer->packed;
    qv_piece_free(&weights->owned);
    qv_free(weights);
}
