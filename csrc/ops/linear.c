/* Linear layers on the CPU: prepared once, multiplied a column slab a task. */
#include "ops/cpu_ops.h"

#include "base/blas.h"
#include "base/threads.h"

#include <limits.h>
#include <stdint.h>
#include <string.h>

static size_t source_depth(const qv_linear_source *source) {
    size_t rows = source->weight->shape[0];
    return rows == 0 ? 0 : qv_tensor_count(source->weight) / rows;
}

/* out [n] = a [n] (+ scale b [n]) as float32 */
static qv_status read_sum(float *out, const qv_tensor *a, const qv_tensor *b, float scale, float *spare) {
    size_t count = qv_tensor_count(a);
    qv_tensor_read(out, a, 0, count);
    if (b != NULL) {
        qv_tensor_read(spare, b, 0, count);
        for (size_t i = 0; i < count; i++) {
            out[i] += scale * spare[i];
        }
    }
    return QV_OK;
}

static bool can_borrow(const qv_linear_source *source) {
    return source->weight->dtype == QV_FLOAT32 && source->add_weight == NULL &&
           (uintptr_t)source->weight->data % sizeof(float) == 0;
}

static qv_status prepare_plain(qv_linear_weight *weight, const qv_linear_source *sources, size_t parts, qv_error *err) {
    size_t copied = 0, largest = 0;
    for (size_t i = 0; i < parts; i++) {
        size_t count = qv_tensor_count(sources[i].weight);
        copied += can_borrow(&sources[i]) ? 0 : count;
        largest = sources[i].add_weight != NULL && count > largest ? count : largest;
    }
    float *copy = NULL, *spare = NULL;
    qv_status status = QV_OK;
    if (copied != 0) {
        copy = qv_allocate(copied, sizeof *copy);
        spare = qv_allocate(largest, sizeof *spare);
        if (copy == NULL || spare == NULL) {
            qv_free(copy);
            status = qv_fail_memory(err, sources[0].weight->name);
            goto done;
        }
    }
    weight->owned = copy;
    for (size_t i = 0; i < parts; i++) {
        if (can_borrow(&sources[i])) {
            weight->plain[i] = sources[i].weight->data;
        } else {
            read_sum(copy, sources[i].weight, sources[i].add_weight, sources[i].scale, spare);
            weight->plain[i] = copy;
            copy += qv_tensor_count(sources[i].weight);
        }
    }
done:
    qv_free(spare);
    return status;
}

static qv_status prepare_bias(qv_linear_weight *weight, const qv_linear_source *sources, size_t parts, qv_error *err) {
    bool any = false;
    for (size_t i = 0; i < parts; i++) {
        any = any || sources[i].bias != NULL;
    }
    if (!any) {
        return QV_OK;
    }
    float *bias = qv_allocate(2 * weight->columns, sizeof *bias);
    if (bias == NULL) {
        return qv_fail_memory(err, sources[0].weight->name);
    }
    memset(bias, 0, weight->columns * sizeof *bias);
    float *part = bias;
    for (size_t i = 0; i < parts; i++) {
        if (sources[i].bias != NULL) {
            read_sum(part, sources[i].bias, sources[i].add_bias, sources[i].scale, bias + weight->columns);
        }
        part += weight->part_columns[i];
    }
    weight->bias = bias;
    weight->owned_bias = bias;
    return QV_OK;
}

qv_status qv_cpu_linear_prepare(qv_linear_weight *weight, const qv_linear_source *sources, size_t parts,
                                qv_precision precision, qv_error *err) {
    *weight = (qv_linear_weight){.parts = parts, .precision = precision};
    for (size_t i = 0; i < parts; i++) {
        if (sources[i].weight == NULL) {
            return QV_OK; /* missing: qv_weights_check reports it */
        }
        weight->part_columns[i] = sources[i].weight->shape[0];
        weight->columns += sources[i].weight->shape[0];
    }
    weight->depth = source_depth(&sources[0]);
    if (weight->columns > INT_MAX / 4 || weight->depth > INT_MAX / 4) {
        return qv_fail(err, QV_ERR_VALUE, "%s: a linear layer of %zu x %zu is too large", sources[0].weight->name,
                       weight->columns, weight->depth);
    }
    qv_status status = prepare_plain(weight, sources, parts, err);
    if (status == QV_OK) {
        status = prepare_bias(weight, sources, parts, err);
    }
    if (status != QV_OK) {
        qv_cpu_linear_free(weight);
    }
    return status;
}

void qv_cpu_linear_free(qv_linear_weight *weight) {
    qv_free(weight->owned);
    qv_free(weight->owned_bias);
    qv_free(weight->packed);
    *weight = (qv_linear_weight){0};
}

typedef struct {
    float *out;
    size_t ld_out;
    const float *x;
    size_t ld_x;
    const qv_linear_weight *weight;
    const float *plain; /* [count, K] */
    const float *bias;  /* [count] or NULL */
    const qv_epilogue *epilogue;
    size_t offset; /* of this part's first column in out */
    size_t count, rows, slab;
} slab_work;

static void multiply_slab(void *context, size_t task, size_t lane) {
    (void)lane;
    const slab_work *w = context;
    size_t first = task * w->slab;
    size_t count = first + w->slab <= w->count ? w->slab : w->count - first;
    size_t column = w->offset + first;
    float *out = w->out + column;
    /* A residual that is the output itself is added by the product. */
    bool in_place = w->epilogue != NULL && w->epilogue->residual == w->out;
    qv_epilogue epilogue = w->epilogue != NULL ? *w->epilogue : (qv_epilogue){0};
    if (in_place) {
        epilogue.residual = NULL;
    }
    qv_sgemm(out, w->ld_out, w->x, w->ld_x, false, w->plain + first * w->weight->depth, w->weight->depth, true, 1.0f,
             in_place ? 1.0f : 0.0f, w->rows, count, w->weight->depth);
    qv_apply_epilogue(out, w->ld_out, w->bias != NULL ? w->bias + first : NULL, &epilogue, column, w->rows, count);
}

void qv_cpu_linear(qv_call *call, float *out, size_t ld_out, const float *x, size_t ld_x,
                   const qv_linear_weight *weight, size_t first, size_t count, const qv_epilogue *epilogue, size_t R) {
    size_t start = 0;
    for (size_t part = 0; part < weight->parts; start += weight->part_columns[part], part++) {
        if (start < first || start >= first + count) {
            continue;
        }
        size_t columns = weight->part_columns[part];
        size_t slabs = call->lanes < columns / 16 ? call->lanes : 1;
        size_t slab = (columns + slabs - 1) / slabs;
        slab = (slab + 15) / 16 * 16;
        slab_work work = {out,      ld_out,
                          x,        ld_x,
                          weight,   weight->plain[part],
                          weight->bias != NULL ? weight->bias + start : NULL,
                          epilogue, start - first,
                          columns,  R,
                          slab};
        qv_parallel(call->lanes, (columns + slab - 1) / slab, multiply_slab, &work);
    }
}
