/* What the text encoders share: the checked batch of token ids, the run on an arena, and the loading of named layers.
 * t5.c, bert.c and clip_text.c each hold one architecture; the binding sees them all as a qv_text_encoder. */
#ifndef QV_MODELS_TEXT_COMMON_H
#define QV_MODELS_TEXT_COMMON_H

#include "base/error.h"
#include "base/memory.h"
#include "base/tensor.h"
#include "ops/ops.h"

/* Token ids as a forward pass sees them: checked, and cut to the last column that is not padding in every row. */
typedef struct {
    int32_t *ids;            /* [B, M], each below the vocabulary's size */
    uint8_t *mask;           /* [B, M], 1: a token, 0: padding; at least one token a row */
    const uint8_t *key_mask; /* mask, or NULL where nothing is padding */
    size_t B, M;
} qv_text_batch;

typedef struct qv_text_encoder qv_text_encoder;

typedef struct {
    const char *name;
    /* *states = [B, M, width] on the arena; rows of padding hold anything finite. With arena->base NULL it lays its
     * activations out and returns. */
    qv_status (*forward)(const qv_text_encoder *encoder, qv_call *call, const qv_text_batch *batch, qv_arena *arena,
                         const float **states, qv_error *err);
    void (*free)(qv_text_encoder *encoder);
} qv_text_architecture;

/* The first member of every architecture's struct. Immutable once loaded, but for the cache of arenas. */
struct qv_text_encoder {
    const qv_text_architecture *architecture;
    const qv_ops *ops;
    size_t width;      /* D of the states */
    size_t vocab_size; /* ids are below it */
    size_t max_tokens; /* M is at most this; 0: no limit */
    size_t depth;      /* the deepest product's K */
    size_t head_width;
    qv_arena_cache arenas;
};

/* out [B, M, width] = the last hidden states of ids [B, M], with zeros at padding. mask [B, M]: 0 is padding; NULL:
 * nothing is. QV_ERR_VALUE for an id out of range, no tokens at all, a row of padding alone, more than max_tokens. */
qv_status qv_text_encode(qv_text_encoder *encoder, qv_call *call, float *out, const int64_t *ids, const int64_t *mask,
                         size_t B, size_t M, qv_error *err);
void qv_text_free(qv_text_encoder *encoder);
/* Lanes that a call over `rows` rows is worth: one where a product is so small that waking a worker costs more. */
size_t qv_text_lanes(const qv_text_encoder *encoder, size_t rows);

/* Loading by name. The first failed allocation stays in `status`; missing tensors gather in `weights`. */
typedef struct {
    qv_weights *weights;
    const char *prefix; /* in front of every name */
    const qv_ops *ops;
    qv_precision precision;
    qv_status status;
    qv_error *err;
} qv_text_loader;

/* Where *size is 0 (the config does not say), take shape[dim] of the tensor prefix + name. */
void qv_text_infer_size(const qv_text_loader *loader, size_t *size, const char *name, size_t dim);
/* Where *blocks is 0, count the blocks: stem "a.b." is counted while prefix + "a.b.<n>." + leaf exists. */
void qv_text_infer_blocks(const qv_text_loader *loader, size_t *blocks, const char *stem, const char *leaf);

/* The tensor prefix + stem + leaf [rows, columns], or [rows] with columns 0; NULL noted as missing. */
const qv_tensor *qv_text_tensor(qv_text_loader *loader, const char *stem, const char *leaf, size_t rows,
                                size_t columns);
void qv_text_vector(qv_text_loader *loader, qv_vector *vector, const char *stem, const char *leaf, size_t size);
/* A table that is looked up by id: the view itself. */
void qv_text_table(qv_text_loader *loader, qv_tensor *table, const char *name, size_t rows, size_t columns);
/* Up to QV_MAX_PARTS layers of [columns, depth] each: prefix + stem + names[i] + ".weight" (and ".bias"). */
void qv_text_linear(qv_text_loader *loader, qv_linear_weight *weight, const char *stem, const char *const *names,
                    size_t parts, size_t columns, size_t depth, bool bias);

/* A norm with weight and bias, and its name's two tensors. */
typedef struct {
    qv_vector weight, bias; /* [D] */
} qv_text_norm;
void qv_text_load_norm(qv_text_loader *loader, qv_text_norm *norm, const char *stem, const char *name, size_t size);
void qv_text_free_norm(qv_text_norm *norm);

/* out [R, D] = the sum of tables[i] at ids[i] [R], over up to 3 tables; spare [R, D] is needed for two or more. */
void qv_text_embed(qv_call *call, float *out, float *spare, const qv_tensor *const *tables, const int32_t *const *ids,
                   size_t tables_count, size_t R, size_t D);

#endif
