#include "models/loading.h"

#include <stdio.h>
#include <string.h>

typedef struct {
    char text[512];
} full_name;

/* A name that is too long becomes the empty one, which no tensor has. */
static full_name join(const qv_loader *loader, const char *stem, const char *name, const char *ending) {
    full_name full;
    int length = snprintf(full.text, sizeof full.text, "%s%s%s%s", loader->prefix, stem, name, ending);
    if (length < 0 || (size_t)length >= sizeof full.text) {
        full.text[0] = '\0';
    }
    return full;
}

/* ---- sizes ---- */

bool qv_load_has(const qv_loader *loader, const char *stem, const char *name) {
    full_name full = join(loader, stem, name, "");
    return qv_weights_peek(loader->weights, full.text) != NULL;
}

size_t qv_load_size(const qv_loader *loader, const char *stem, const char *name, size_t dim) {
    full_name full = join(loader, stem, name, "");
    const qv_tensor *tensor = qv_weights_peek(loader->weights, full.text);
    return tensor != NULL && dim < tensor->dims ? tensor->shape[dim] : 0;
}

size_t qv_load_count(const qv_loader *loader, const char *stem, const char *name) {
    size_t n = 0;
    for (char block[128]; snprintf(block, sizeof block, "%s%zu.", stem, n), qv_load_has(loader, block, name); n++) {
    }
    return n;
}

qv_status qv_load_sizes(qv_loader *loader, const char *what, const qv_found_size *sizes, size_t count) {
    char list[512] = "";
    bool open = false;
    for (size_t i = 0, used = 0; i < count; i++) {
        size_t *size = sizes[i].size, found = sizes[i].found;
        if (*size != 0 && found != 0 && *size != found) {
            return qv_fail(loader->err, QV_ERR_VALUE, "%s: the config's %s is %zu, the weights say %zu", what,
                           sizes[i].key, *size, found);
        }
        *size = *size != 0 ? *size : found;
        open = open || *size == 0;
        if (used < sizeof list) {
            used += (size_t)snprintf(list + used, sizeof list - used, "%s%s (%zu)", i == 0 ? "" : ", ", sizes[i].key,
                                     *size);
        }
    }
    if (open) {
        return qv_fail(loader->err, QV_ERR_VALUE, "%s: neither config nor weights (names behind '%s') say all of %s",
                       what, loader->prefix, list);
    }
    return QV_OK;
}

/* ---- tensors ---- */

const qv_tensor *qv_load_tensor(qv_loader *loader, const char *stem, const char *name, size_t rows, size_t columns) {
    full_name full = join(loader, stem, name, "");
    return qv_weights_get(loader->weights, full.text, columns == 0 ? 1 : 2, rows, columns);
}

void qv_load_vector(qv_loader *loader, qv_vector *vector, const char *stem, const char *name, size_t rows,
                    size_t columns) {
    const qv_tensor *tensor = qv_load_tensor(loader, stem, name, rows, columns);
    if (loader->status == QV_OK) {
        loader->status = qv_vector_prepare(loader->ops, vector, tensor, loader->err);
    }
}

void qv_load_table(qv_loader *loader, qv_tensor *table, const char *name, size_t rows, size_t columns) {
    const qv_tensor *tensor = qv_load_tensor(loader, "", name, rows, columns);
    if (tensor != NULL) {
        *table = *tensor;
    }
}

void qv_load_norm(qv_loader *loader, qv_norm *norm, const char *stem, const char *name, qv_norm_kind kind, size_t D,
                  float eps) {
    char part[128];
    *norm = (qv_norm){.kind = kind, .D = D, .eps = eps};
    snprintf(part, sizeof part, "%s.weight", name);
    qv_load_vector(loader, &norm->weight, stem, part, D, 0);
    if (kind == QV_LAYER_NORM) {
        snprintf(part, sizeof part, "%s.bias", name);
        qv_load_vector(loader, &norm->bias, stem, part, D, 0);
    }
}

qv_linear_source qv_load_source(qv_loader *loader, const char *stem, const char *name, size_t columns, size_t depth,
                                qv_bias_rule bias) {
    full_name full = join(loader, stem, name, ".weight");
    qv_linear_source source = {.weight = qv_weights_get(loader->weights, full.text, 2, columns, depth)};
    full = join(loader, stem, name, ".bias");
    if (bias == QV_BIAS || (bias == QV_BIAS_IF_THERE && qv_weights_peek(loader->weights, full.text) != NULL)) {
        source.bias = qv_weights_get(loader->weights, full.text, 1, columns);
    }
    return source;
}

qv_precision qv_load_precision(const qv_loader *loader, qv_layer_place place) {
    bool mixed = loader->precision == QV_PRECISION_INT8_MIXED;
    if (loader->precision != QV_PRECISION_INT8 && !mixed) {
        return loader->precision;
    }
    bool int8 = place == QV_IN_BLOCK || (place == QV_LAST_OF_BLOCK && !mixed);
    return int8 ? QV_PRECISION_INT8 : QV_PRECISION_BFLOAT16;
}

void qv_load_layer(qv_loader *loader, qv_linear *layer, const qv_linear_source *sources, size_t parts) {
    if (loader->status != QV_OK || loader->weights->problems != 0) {
        return;
    }
    if (loader->poll.stop != NULL && loader->poll.stop(loader->poll.context)) {
        loader->status = qv_fail(loader->err, QV_ERR_CANCELLED, "loading was interrupted");
        return;
    }
    qv_precision precision = qv_load_precision(loader, loader->place);
    loader->status = qv_linear_prepare(loader->ops, &loader->pool, layer, sources, parts, precision, loader->err);
}

void qv_load_linear(qv_loader *loader, qv_linear *layer, const char *stem, const char *const *names, size_t parts,
                    size_t columns, size_t depth, qv_bias_rule bias) {
    qv_linear_source sources[QV_MAX_PARTS] = {{0}};
    for (size_t i = 0; i < parts; i++) {
        sources[i] = qv_load_source(loader, stem, names[i], columns, depth, bias);
    }
    qv_load_layer(loader, layer, sources, parts);
}

void qv_load_beside(qv_loader *loader, qv_linear *layer, const char *inner, const char *name, size_t depth) {
    const char *prefix = loader->prefix;
    char outer[256] = "", weight[64];
    size_t length = strlen(prefix), end = strlen(inner);
    if (length >= end && strcmp(prefix + length - end, inner) == 0) {
        length -= end;
    }
    if (length >= sizeof outer) {
        return;
    }
    memcpy(outer, prefix, length);
    loader->prefix = outer;
    snprintf(weight, sizeof weight, "%s.weight", name);
    size_t columns = qv_load_size(loader, "", weight, 0);
    if (columns != 0) {
        qv_load_linear(loader, layer, "", &name, 1, columns, depth, QV_BIAS_IF_THERE);
    }
    loader->prefix = prefix;
}

void qv_load_next_block(qv_loader *loader) {
    if (loader->status == QV_OK && loader->weights->problems == 0) {
        loader->status = qv_next_block(loader->ops, loader->err);
    }
}

void *qv_load_allocate(qv_loader *loader, size_t count, size_t size, const char *what) {
    void *memory = loader->status == QV_OK ? qv_allocate(count, size) : NULL;
    if (memory != NULL) {
        memset(memory, 0, count * size);
    } else if (loader->status == QV_OK) {
        loader->status = qv_fail_memory(loader->err, what);
    }
    return memory;
}

qv_status qv_load_finish(qv_loader *loader, const char *what) {
    if (loader->status == QV_OK) {
        loader->status = qv_weights_check(loader->weights, what, loader->err);
    }
    return loader->status;
}
