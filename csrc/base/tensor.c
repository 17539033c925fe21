#include "base/tensor.h"

#include "base/memory.h"
#include "base/os.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROBLEMS_SHOWN ((size_t)8)

size_t qv_dtype_size(qv_dtype dtype) {
    return dtype == QV_FLOAT32 ? 4 : dtype == QV_INT8 ? 1 : 2;
}

size_t qv_tensor_count(const qv_tensor *tensor) {
    size_t count = 1;
    for (size_t i = 0; i < tensor->dims; i++) {
        count *= tensor->shape[i];
    }
    return count;
}

size_t qv_tensor_bytes(const qv_tensor *tensor) {
    size_t behind = tensor->dtype == QV_INT8 ? 8 * tensor->shape[0] : 0; /* scales and sums */
    return qv_tensor_count(tensor) * qv_dtype_size(tensor->dtype) + behind;
}

void qv_tensor_release_pages(const qv_tensor *tensor) {
    if (tensor->mapped) {
        qv_os_drop_pages(tensor->data, qv_tensor_bytes(tensor));
    }
}

static float float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float float_from_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t exponent = (half >> 10) & 0x1fu, fraction = half & 0x3ffu;
    if (exponent == 0x1fu) {
        return float_from_bits(sign | 0x7f800000u | fraction << 13);
    }
    if (exponent == 0) {
        float tiny = (float)fraction * 0x1p-24f;
        return sign != 0 ? -tiny : tiny;
    }
    return float_from_bits(sign | (exponent + 112u) << 23 | fraction << 13);
}

/* qv_tensor_read from panels: a row's items lie panel_columns apart, or as many pairs. */
static void read_panels(float *out, const qv_tensor *tensor, size_t first, size_t count) {
    bool pairs = tensor->dtype == QV_BFLOAT16;
    size_t depth = tensor->shape[1], width = tensor->panel_columns;
    size_t row = first / depth, k = first % depth;
    for (size_t i = 0; i < count; i++) {
        size_t panel = row / width * width * depth, column = row % width;
        if (pairs) {
            uint16_t bits;
            const char *data = (const char *)tensor->data;
            memcpy(&bits, data + (panel + 2 * (k / 2 * width + column) + k % 2) * sizeof bits, sizeof bits);
            out[i] = float_from_bits((uint32_t)bits << 16);
        } else {
            memcpy(&out[i], (const char *)tensor->data + (panel + k * width + column) * sizeof *out, sizeof *out);
        }
        k++;
        if (k == depth) {
            k = 0;
            row++;
        }
    }
}

/* The same of int8: each item times its row's scale. */
static void read_int8_panels(float *out, const qv_tensor *tensor, size_t first, size_t count) {
    size_t depth = tensor->shape[1], width = tensor->panel_columns;
    for (size_t i = 0; i < count;) {
        size_t row = (first + i) / depth, k = (first + i) % depth, column = row % width;
        const int8_t *panel = (const int8_t *)tensor->data + row / width * width * (depth + 8);
        float scale;
        memcpy(&scale, panel + width * depth + column * sizeof scale, sizeof scale);
        for (; k < depth && i < count; k++, i++) {
            out[i] = (float)panel[(k / 4 * width + column) * 4 + k % 4] * scale;
        }
    }
}

void qv_tensor_read(float *out, const qv_tensor *tensor, size_t first, size_t count) {
    if (tensor->dtype == QV_INT8) {
        read_int8_panels(out, tensor, first, count);
        return;
    }
    if (tensor->panel_columns != 0) {
        read_panels(out, tensor, first, count);
        return;
    }
    const char *data = (const char *)tensor->data + first * qv_dtype_size(tensor->dtype);
    if (tensor->dtype == QV_FLOAT32) {
        memcpy(out, data, count * sizeof *out);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        uint16_t bits;
        memcpy(&bits, data + 2 * i, sizeof bits);
        out[i] = tensor->dtype == QV_FLOAT16 ? float_from_half(bits) : float_from_bits((uint32_t)bits << 16);
    }
}

void qv_tensor_read_sum(float *out, const qv_tensor *a, const qv_tensor *b, float scale, size_t first, size_t count,
                        float *spare) {
    qv_tensor_read(out, a, first, count);
    if (b != NULL) {
        qv_tensor_read(spare, b, first, count);
        for (size_t i = 0; i < count; i++) {
            out[i] += scale * spare[i];
        }
    }
}

static int compare_name(const void *name, const void *tensor) {
    return strcmp((const char *)name, ((const qv_tensor *)tensor)->name);
}

const qv_tensor *qv_weights_peek(const qv_weights *weights, const char *name) {
    if (weights->count == 0) {
        return NULL;
    }
    return bsearch(name, weights->tensors, weights->count, sizeof *weights->tensors, compare_name);
}

static void format_shape(char *out, size_t size, const size_t *shape, size_t dims) {
    size_t used = (size_t)snprintf(out, size, "[");
    for (size_t i = 0; i < dims && used < size; i++) {
        used += (size_t)snprintf(out + used, size - used, i == 0 ? "%zu" : ", %zu", shape[i]);
    }
    if (used < size) {
        snprintf(out + used, size - used, "]");
    }
}

static void note_problem(qv_weights *weights, const char *line) {
    size_t used = strlen(weights->report);
    if (weights->problems < PROBLEMS_SHOWN && used < sizeof weights->report) {
        snprintf(weights->report + used, sizeof weights->report - used, "\n  %s", line);
    }
    weights->problems++;
}

const qv_tensor *qv_weights_get(qv_weights *weights, const char *name, size_t dims, ...) {
    va_list sizes;
    va_start(sizes, dims);
    size_t shape[QV_MAX_DIMS] = {0};
    for (size_t i = 0; i < dims && i < QV_MAX_DIMS; i++) {
        shape[i] = va_arg(sizes, size_t);
    }
    va_end(sizes);
    const qv_tensor *tensor = qv_weights_peek(weights, name);
    char wanted[96], line[400];
    if (tensor == NULL) {
        format_shape(wanted, sizeof wanted, shape, dims);
        snprintf(line, sizeof line, "missing: %s %s", name, wanted);
        note_problem(weights, line);
        return NULL;
    }
    if (tensor->dims != dims || memcmp(tensor->shape, shape, dims * sizeof *shape) != 0) {
        char found[96];
        format_shape(wanted, sizeof wanted, shape, dims);
        format_shape(found, sizeof found, tensor->shape, tensor->dims);
        snprintf(line, sizeof line, "%s: shape %s, expected %s", name, found, wanted);
        note_problem(weights, line);
        return NULL;
    }
    return tensor;
}

qv_status qv_weights_check(const qv_weights *weights, const char *what, qv_error *err) {
    if (weights->problems == 0) {
        return QV_OK;
    }
    if (weights->problems > PROBLEMS_SHOWN) {
        return qv_fail(err, QV_ERR_VALUE, "%s: %zu tensors are missing or mis-shaped, the first of them:%s", what,
                       weights->problems, weights->report);
    }
    return qv_fail(err, QV_ERR_VALUE, "%s: missing or mis-shaped tensors:%s", what, weights->report);
}
