/* Weights of the int8 products: columns made of floats, and read again. See kernel_int8.h for the layout and the arithmetic. */
#include "ops/cpu_ops.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

/* A panel's rows behind its steps. */
typedef struct {
    float *scales;
    int32_t *sums;
} panel_tail;

static panel_tail tail_of(float *panel, size_t width, size_t steps) {
    float *scales = panel + steps * width;
    return (panel_tail){scales, (int32_t *)(void *)(scales + width)};
}

/* To the nearest, ties to even, of |x| below 2^22 */
static float nearest(float x) {
    const float shift = 0x1.8p23f;
    return (x + shift) - shift;
}

/* items [depth] of a column w, its scale and the items' sum. One that is not finite has the scale NaN. */
static float quantize_column(int8_t *items, int32_t *sum, const float *w, size_t depth) {
    float most = 0.0f, wrong = 0.0f;
    for (size_t k = 0; k < depth; k++) {
        const float size = fabsf(w[k]);
        most = size > most ? size : most;
        wrong += 0.0f * w[k];
    }
    *sum = 0;
    if (!(wrong == 0.0f)) {
        memset(items, 0, depth);
        return NAN;
    }
    float scale = most / 127.0f;
    scale = scale > 0x1p-126f ? scale : 0x1p-126f;
    int32_t total = 0;
    for (size_t k = 0; k < depth; k++) {
        const int32_t item = (int32_t)nearest(w[k] / scale);
        items[k] = (int8_t)item;
        total += item;
    }
    *sum = total;
    return scale;
}

/* Whether the source's int8 items can be kept as they are: in a panel of another width, or with its rows scaled. */
static bool keeps_items(const qv_linear_source *source) {
    return source->weight->dtype == QV_INT8 && source->add_weight == NULL;
}

/* The same from a panel of a file. */
static float copy_column(int8_t *items, int32_t *sum, const qv_linear_source *source, size_t column) {
    const qv_tensor *weight = source->weight;
    size_t depth = weight->shape[1], width = weight->panel_columns, place = column % width;
    const char *panel = (const char *)weight->data + column / width * width * (depth + 8);
    for (size_t k = 0; k < depth; k += 4) {
        memcpy(items + k, panel + (k / 4 * width + place) * 4, 4);
    }
    float scale, factor = 1.0f;
    memcpy(&scale, panel + width * depth + place * 4, sizeof scale);
    memcpy(sum, panel + width * (depth + 4) + place * 4, sizeof *sum);
    if (source->row_scale != NULL) {
        qv_tensor_read(&factor, source->row_scale, column, 1);
    }
    return scale * factor;
}

size_t qv_int8_spare(const qv_product *product, size_t depth) {
    return product->panel_columns * qv_steps(product, depth) + 2 * depth;
}

void qv_int8_pack_panel(const qv_product *product, float *panel, const qv_linear_source *source, size_t first, size_t columns,
                        size_t depth, float *spare) {
    size_t width = product->panel_columns, steps = qv_steps(product, depth);
    float *rows = spare, *column = spare + width * steps;
    panel_tail tail = tail_of(panel, width, steps);
    memset(rows, 0, width * steps * sizeof *rows);
    memset(tail.scales, 0, 2 * width * sizeof *rows);
    for (size_t c = 0; c < columns; c++) {
        int8_t *items = (int8_t *)(rows + c * steps);
        if (keeps_items(source)) {
            tail.scales[c] = copy_column(items, &tail.sums[c], source, first + c);
        } else {
            qv_linear_source_read(column, source, (first + c) * depth, depth, column + depth);
            tail.scales[c] = quantize_column(items, &tail.sums[c], column, depth);
        }
    }
    qv_kernels_here()->transpose(panel, width, rows, steps, width, steps);
}

void qv_int8_unpack(const qv_product *product, float *out, size_t ld_out, const float *panel, size_t depth, size_t columns,
                    size_t k, size_t count) {
    size_t width = product->panel_columns;
    const int8_t *items = (const int8_t *)panel;
    const float *scales = panel + qv_steps(product, depth) * width;
    for (size_t c = 0; c < columns; c++) {
        for (size_t i = 0; i < count; i++) {
            out[c * ld_out + i] = (float)items[((k + i) / 4 * width + c) * 4 + (k + i) % 4] * scales[c];
        }
    }
}
