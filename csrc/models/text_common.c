#include "models/text_common.h"

#include "base/threads.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Bounds that keep every product of two sizes of a plan inside size_t. */
#define MAX_ROWS ((size_t)1 << 24)
#define MAX_TOKENS ((size_t)1 << 15)
/* Multiply-adds of a product below which one lane is faster than waking another. */
#define WORTH_A_LANE ((size_t)1 << 20)

size_t qv_text_lanes(const qv_text_encoder *encoder, size_t rows) {
    return rows * encoder->width * encoder->depth < WORTH_A_LANE ? 1 : qv_thread_count();
}

/* Everything that can be wrong with ids and mask; *kept is the number of leading columns that hold a token. */
static qv_status check_batch(const qv_text_encoder *encoder, const int64_t *ids, const int64_t *mask, size_t B,
                             size_t M, size_t *kept, qv_error *err) {
    if (B == 0 || M == 0) {
        return qv_fail(err, QV_ERR_VALUE, "ids: shape [%zu, %zu], expected at least one row of at least one token", B,
                       M);
    }
    size_t limit = encoder->max_tokens != 0 ? encoder->max_tokens : MAX_TOKENS;
    if (M > limit) {
        return qv_fail(err, QV_ERR_VALUE, "ids: %zu tokens a row, this encoder takes at most %zu", M, limit);
    }
    if (B > MAX_ROWS / M) {
        return qv_fail(err, QV_ERR_VALUE, "ids: shape [%zu, %zu], at most %zu tokens are taken in one call", B, M,
                       MAX_ROWS);
    }
    *kept = 0;
    for (size_t b = 0; b < B; b++) {
        size_t last = 0;
        for (size_t m = 0; m < M; m++) {
            int64_t id = ids[b * M + m];
            if (id < 0 || (uint64_t)id >= encoder->vocab_size) {
                return qv_fail(err, QV_ERR_VALUE,
                               "ids: row %zu holds %" PRId64 " at position %zu, expected 0 to %zu (the vocabulary)", b,
                               id, m, encoder->vocab_size - 1);
            }
            last = mask == NULL || mask[b * M + m] != 0 ? m + 1 : last;
        }
        if (last == 0) {
            return qv_fail(err, QV_ERR_VALUE, "mask: row %zu is padding alone, expected at least one token", b);
        }
        *kept = last > *kept ? last : *kept;
    }
    return QV_OK;
}

/* Copy the first batch->M of M columns into the batch's own arrays. */
static void fill_batch(qv_text_batch *batch, const int64_t *ids, const int64_t *mask, size_t M) {
    bool padded = false;
    for (size_t b = 0; b < batch->B; b++) {
        for (size_t m = 0; m < batch->M; m++) {
            bool token = mask == NULL || mask[b * M + m] != 0;
            batch->ids[b * batch->M + m] = (int32_t)ids[b * M + m];
            batch->mask[b * batch->M + m] = token;
            padded = padded || !token;
        }
    }
    batch->key_mask = padded ? batch->mask : NULL;
}

/* out [B, M, D] = states [B, kept, D] where there is a token, else zeros */
static void hand_out(qv_call *call, float *out, const float *states, const qv_text_batch *batch, size_t M, size_t D) {
    for (size_t b = 0; b < batch->B; b++) {
        for (size_t m = 0; m < M; m++) {
            float *row = out + (b * M + m) * D;
            if (m < batch->M && batch->mask[b * batch->M + m] != 0) {
                call->ops->copy(call, row, D, states + (b * batch->M + m) * D, D, 1, D);
            } else {
                memset(row, 0, D * sizeof *row);
            }
        }
    }
}

/* What every architecture needs on the arena, in front of its activations. */
static void plan_batch(const qv_text_encoder *encoder, qv_call *call, qv_text_batch *batch, qv_arena *arena) {
    size_t rows = batch->B * batch->M;
    call->scratch = qv_arena_take(
        arena, encoder->ops->scratch_bytes(call->lanes, rows, encoder->depth, batch->M, encoder->head_width), 1);
    batch->ids = qv_arena_take(arena, rows, sizeof *batch->ids);
    batch->mask = qv_arena_take(arena, rows, sizeof *batch->mask);
}

qv_status qv_text_encode(qv_text_encoder *encoder, qv_call *call, float *out, const int64_t *ids, const int64_t *mask,
                         size_t B, size_t M, qv_error *err) {
    qv_text_batch batch = {.B = B};
    qv_status status = check_batch(encoder, ids, mask, B, M, &batch.M, err);
    if (status != QV_OK) {
        return status;
    }
    call->ops = encoder->ops;
    call->lanes = qv_text_lanes(encoder, B * batch.M);
    const float *states = NULL;
    qv_arena measure = {NULL, 0, 0, false};
    plan_batch(encoder, call, &batch, &measure);
    status = encoder->architecture->forward(encoder, call, &batch, &measure, &states, err);
    if (status != QV_OK) {
        return status;
    }
    if (measure.overflow) {
        return qv_fail(err, QV_ERR_VALUE, "ids: a batch of [%zu, %zu] is too large for this machine's memory", B, M);
    }
    qv_arena arena = qv_arena_acquire(&encoder->arenas, measure.used);
    if (arena.base == NULL) {
        return qv_fail_memory(err, "the activations of a text encoder");
    }
    plan_batch(encoder, call, &batch, &arena);
    fill_batch(&batch, ids, mask, M);
    status = encoder->architecture->forward(encoder, call, &batch, &arena, &states, err);
    if (status == QV_OK) {
        hand_out(call, out, states, &batch, M, encoder->width);
    }
    qv_arena_release(&encoder->arenas, &arena);
    return status;
}

void qv_text_free(qv_text_encoder *encoder) {
    if (encoder != NULL) {
        qv_arena_cache_clear(&encoder->arenas);
        encoder->architecture->free(encoder);
    }
}

typedef struct {
    char text[512];
} full_name;

/* prefix + stem + leaf + ending; a name that is too long becomes the empty one, which no tensor has. */
static full_name join(const qv_text_loader *loader, const char *stem, const char *leaf, const char *ending) {
    full_name name;
    int length = snprintf(name.text, sizeof name.text, "%s%s%s%s", loader->prefix, stem, leaf, ending);
    if (length < 0 || (size_t)length >= sizeof name.text) {
        name.text[0] = '\0';
    }
    return name;
}

void qv_text_infer_size(const qv_text_loader *loader, size_t *size, const char *name, size_t dim) {
    full_name full = join(loader, name, "", "");
    const qv_tensor *tensor = *size == 0 ? qv_weights_peek(loader->weights, full.text) : NULL;
    if (tensor != NULL && dim < tensor->dims) {
        *size = tensor->shape[dim];
    }
}

void qv_text_infer_blocks(const qv_text_loader *loader, size_t *blocks, const char *stem, const char *leaf) {
    for (size_t n = 0; *blocks == 0; n++) {
        char number[32];
        snprintf(number, sizeof number, "%zu.", n);
        full_name full = join(loader, stem, number, leaf);
        if (qv_weights_peek(loader->weights, full.text) == NULL) {
            *blocks = n;
            return;
        }
    }
}

const qv_tensor *qv_text_tensor(qv_text_loader *loader, const char *stem, const char *leaf, size_t rows,
                                size_t columns) {
    full_name name = join(loader, stem, leaf, "");
    if (columns == 0) {
        return qv_weights_get(loader->weights, name.text, 1, rows);
    }
    return qv_weights_get(loader->weights, name.text, 2, rows, columns);
}

static void load_vector(qv_text_loader *loader, qv_vector *vector, const char *name, size_t size) {
    const qv_tensor *tensor = qv_weights_get(loader->weights, name, 1, size);
    if (loader->status == QV_OK) {
        loader->status = qv_vector_prepare(vector, tensor, loader->err);
    }
}

void qv_text_vector(qv_text_loader *loader, qv_vector *vector, const char *stem, const char *leaf, size_t size) {
    full_name name = join(loader, stem, leaf, "");
    load_vector(loader, vector, name.text, size);
}

void qv_text_table(qv_text_loader *loader, qv_tensor *table, const char *name, size_t rows, size_t columns) {
    const qv_tensor *tensor = qv_text_tensor(loader, name, "", rows, columns);
    if (tensor != NULL) {
        *table = *tensor;
    }
}

void qv_text_linear(qv_text_loader *loader, qv_linear_weight *weight, const char *stem, const char *const *names,
                    size_t parts, size_t columns, size_t depth, bool bias) {
    qv_linear_source sources[QV_MAX_PARTS] = {{0}};
    for (size_t i = 0; i < parts; i++) {
        full_name name = join(loader, stem, names[i], ".weight");
        sources[i].weight = qv_weights_get(loader->weights, name.text, 2, columns, depth);
        if (bias) {
            name = join(loader, stem, names[i], ".bias");
            sources[i].bias = qv_weights_get(loader->weights, name.text, 1, columns);
        }
    }
    if (loader->status == QV_OK && loader->weights->problems == 0) {
        loader->status = loader->ops->linear_prepare(weight, sources, parts, loader->precision, loader->err);
    }
}

void qv_text_load_norm(qv_text_loader *loader, qv_text_norm *norm, const char *stem, const char *name, size_t size) {
    full_name full = join(loader, stem, name, ".weight");
    load_vector(loader, &norm->weight, full.text, size);
    full = join(loader, stem, name, ".bias");
    load_vector(loader, &norm->bias, full.text, size);
}

void qv_text_free_norm(qv_text_norm *norm) {
    qv_vector_free(&norm->weight);
    qv_vector_free(&norm->bias);
}

void qv_text_embed(qv_call *call, float *out, float *spare, const qv_tensor *const *tables, const int32_t *const *ids,
                   size_t tables_count, size_t R, size_t D) {
    /* The op adds a second array while it looks up, but not onto itself: take turns so that the last one is `out`. */
    float *targets[2] = {out, spare};
    const float *sum = NULL;
    for (size_t i = 0; i < tables_count; i++) {
        float *target = targets[(tables_count - 1 - i) % 2];
        call->ops->embedding(call, target, tables[i], ids[i], sum, R, D);
        sum = target;
    }
}
