/* Weights as every backend has them: vectors as float32, norms, and the layers that the backend packs. */
#include "base/threads.h"
#include "ops/backend.h"

#include <limits.h>
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

/* Columns of a panel that are added up side by side. */
#define CHECKED_COLUMNS ((size_t)16)

qv_status qv_vector_copy(const qv_ops *ops, qv_vector *vector, const float *data, size_t count, const char *name,
                         qv_error *err) {
    *vector = (qv_vector){NULL, NULL};
    float *copy = ops->memory != NULL ? ops->memory->allocate(ops->memory, count * sizeof *copy)
                                      : qv_allocate(count, sizeof *copy);
    if (copy == NULL) {
        return qv_fail_memory(err, name);
    }
    *vector = (qv_vector){copy, copy};
    if (ops->memory == NULL) {
        memcpy(copy, data, count * sizeof *copy);
        return QV_OK;
    }
    qv_status status = ops->upload(ops, copy, data, count * sizeof *copy, err);
    if (status != QV_OK) {
        qv_vector_free(ops, vector);
    }
    return status;
}

qv_status qv_vector_prepare(const qv_ops *ops, qv_vector *vector, const qv_tensor *tensor, qv_error *err) {
    *vector = (qv_vector){NULL, NULL};
    if (tensor == NULL) {
        return QV_OK;
    }
    bool readable = tensor->dtype == QV_FLOAT32 && tensor->panel_columns == 0 &&
                    (uintptr_t)tensor->data % sizeof(float) == 0;
    if (readable && ops->memory == NULL) {
        vector->data = tensor->data;
        return QV_OK;
    }
    size_t count = qv_tensor_count(tensor);
    if (readable) {
        return qv_vector_copy(ops, vector, tensor->data, count, tensor->name, err);
    }
    float *copy = qv_allocate(count, sizeof *copy);
    if (copy == NULL) {
        return qv_fail_memory(err, tensor->name);
    }
    qv_tensor_read(copy, tensor, 0, count);
    if (ops->memory == NULL) {
        *vector = (qv_vector){copy, copy};
        return QV_OK;
    }
    qv_status status = qv_vector_copy(ops, vector, copy, count, tensor->name, err);
    qv_free(copy);
    return status;
}

void qv_vector_free(const qv_ops *ops, qv_vector *vector) {
    if (ops->memory != NULL) {
        ops->memory->free(ops->memory, vector->owned);
    } else {
        qv_free(vector->owned);
    }
    *vector = (qv_vector){NULL, NULL};
}

void qv_norm_free(const qv_ops *ops, qv_norm *norm) {
    qv_vector_free(ops, &norm->weight);
    qv_vector_free(ops, &norm->bias);
}

/* ---- linear layers ---- */

void qv_linear_source_release(const qv_linear_source *source) {
    qv_tensor_release_pages(source->weight);
    if (source->add_weight != NULL) {
        qv_tensor_release_pages(source->add_weight);
    }
}

void qv_linear_source_read(float *out, const qv_linear_source *source, size_t first, size_t count, float *spare) {
    qv_tensor_read_sum(out, source->weight, source->add_weight, source->scale, first, count, spare);
    if (source->row_scale == NULL) {
        return;
    }
    size_t depth = qv_tensor_count(source->weight) / source->weight->shape[0];
    for (size_t i = 0, end; i < count; i = end) {
        size_t row = (first + i) / depth;
        float scale;
        qv_tensor_read(&scale, source->row_scale, row, 1);
        end = (row + 1) * depth - first < count ? (row + 1) * depth - first : count;
        for (size_t k = i; k < end; k++) {
            out[k] *= scale;
        }
    }
}

/* bias [N] of a part; spare [N] */
static void read_bias(float *bias, const qv_linear_source *source, size_t N, float *spare) {
    qv_tensor_read_sum(bias, source->bias, source->add_bias, source->scale, 0, N, spare);
    if (source->row_scale != NULL) {
        qv_tensor_read(spare, source->row_scale, 0, N);
        for (size_t i = 0; i < N; i++) {
            bias[i] *= spare[i];
        }
    }
}

static qv_status prepare_bias(const qv_ops *ops, qv_linear *layer, const qv_linear_source *sources, qv_error *err) {
    bool any = false;
    for (size_t i = 0; i < layer->parts; i++) {
        any = any || sources[i].bias != NULL;
    }
    if (!any) {
        return QV_OK;
    }
    float *bias = qv_allocate(2 * layer->columns, sizeof *bias), *part = bias;
    if (bias == NULL) {
        return qv_fail_memory(err, sources[0].weight->name);
    }
    memset(bias, 0, layer->columns * sizeof *bias);
    for (size_t i = 0; i < layer->parts; part += layer->part_columns[i], i++) {
        if (sources[i].bias != NULL) {
            read_bias(part, &sources[i], layer->part_columns[i], bias + layer->columns);
        }
    }
    qv_status status = qv_vector_copy(ops, &layer->bias, bias, layer->columns, sources[0].weight->name, err);
    qv_free(bias);
    return status;
}

/* ---- int8 panels of a file ---- */

typedef struct {
    const qv_tensor *tensor;
    atomic_bool wrong;
} panel_check;

/* Whether each column's scale is a number that a column can have, and its sum that of its items. */
static void check_panel(void *context, size_t task, size_t lane) {
    (void)lane;
    panel_check *w = context;
    size_t depth = w->tensor->shape[1], width = w->tensor->panel_columns;
    const char *panel = (const char *)w->tensor->data + task * width * (depth + 8), *scales = panel + depth * width;
    bool right = true;
    for (size_t c = 0; c < width; c += CHECKED_COLUMNS) {
        size_t columns = width - c < CHECKED_COLUMNS ? width - c : CHECKED_COLUMNS;
        int32_t sums[CHECKED_COLUMNS] = {0};
        for (size_t k = 0; k < depth; k += 4) {
            const int8_t *items = (const int8_t *)panel + (k / 4 * width + c) * 4;
            for (size_t i = 0; i < columns; i++) {
                sums[i] += items[4 * i] + items[4 * i + 1] + items[4 * i + 2] + items[4 * i + 3];
            }
        }
        for (size_t i = 0; i < columns; i++) {
            float scale;
            int32_t sum;
            memcpy(&scale, scales + (c + i) * 4, sizeof scale);
            memcpy(&sum, scales + (width + c + i) * 4, sizeof sum);
            right = right && sum == sums[i] && scale >= 0.0f && isfinite(scale);
        }
    }
    if (!right) {
        atomic_store(&w->wrong, true);
    }
}

static qv_status check_panels(const qv_tensor *tensor, qv_error *err) {
    panel_check work = {.tensor = tensor};
    if (tensor == NULL || tensor->dtype != QV_INT8) {
        return QV_OK;
    }
    qv_parallel(qv_thread_count(), tensor->shape[0] / tensor->panel_columns, check_panel, &work);
    return !atomic_load(&work.wrong)
               ? QV_OK
               : qv_fail(err, QV_ERR_VALUE, "%s: panels of int8 whose scales or sums are not those of their items",
                         tensor->name);
}

qv_status qv_linear_prepare(const qv_ops *ops, qv_pool *pool, qv_linear *layer, const qv_linear_source *sources,
                            size_t parts, qv_precision precision, qv_error *err) {
    *layer = (qv_linear){.parts = parts, .precision = ops->computes_in(ops, precision)};
    size_t columns = 0, items;
    for (size_t i = 0; i < parts; i++) {
        if (sources[i].weight == NULL) {
            return QV_OK;
        }
        layer->part_columns[i] = sources[i].weight->shape[0];
        columns += layer->part_columns[i];
    }
    size_t rows = layer->part_columns[0];
    layer->columns = columns;
    layer->depth = rows == 0 ? 0 : qv_tensor_count(sources[0].weight) / rows;
    if (columns > INT_MAX / 4 || layer->depth > INT_MAX / 4 || !qv_multiply_size(columns, layer->depth, &items) ||
        items > SIZE_MAX / sizeof(float)) {
        return qv_fail(err, QV_ERR_VALUE, "%s: a linear layer of %zu x %zu is too large", sources[0].weight->name, columns,
                       layer->depth);
    }
    qv_status status = QV_OK;
    for (size_t i = 0; i < parts && status == QV_OK; i++) {
        status = check_panels(sources[i].weight, err);
        status = status == QV_OK ? check_panels(sources[i].add_weight, err) : status;
    }
    if (status == QV_OK) {
        status = ops->linear_pack(ops, pool, layer, sources, err);
    }
    if (status == QV_OK) {
        status = prepare_bias(ops, layer, sources, err);
    }
    if (status != QV_OK) {
        qv_linear_free(ops, layer);
    }
    return status;
}

void qv_linear_free(const qv_ops *ops, qv_linear *layer) {
    if (layer->packed != NULL) {
        ops->linear_drop(ops, layer);
    }
    qv_vector_free(ops, &layer->bias);
    *layer = (qv_linear){0};
}
