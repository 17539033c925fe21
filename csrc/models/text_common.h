/* What the text encoders share: the checked batch of token ids, the run on an arena, and the loading of named layers.
 * t5.c, bert.c and clip_text.c each hold one architecture; the binding sees them all as a qv_text_encoder. */
#ifndef QV_MODELS_TEXT_COMMON_H
#define QV_MODELS_TEXT_COMMON_H

#include "base/error.h"
#include "base/memory.h"
#include "base/tensor.h"
#include "ops/ops.h"

/* Token ids as a forward pass sees them: checked, and cut to the last column that is not padding in every row. A large
 * call is several passes, each over the rows from `first` on. */
typedef struct {
    size_t first;            /* of the call's rows */
    int32_t *ids;            /* [B, M], each below the vocabulary's size */
    uint8_t *mask;           /* [B, M], 1: a token, 0: padding; at least one token a row */
    const uint8_t *key_mask; /* mask, or NULL where nothing is padding */
    float *output;           /* [B, widest output], where `finish` cannot let the ops write to the caller's memory */
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

/* The parts every architecture's block has; where its norms go, and what is between them, is the architecture's. */
typedef struct {
    qv_norm attention_norm, feed_forward_norm;
    qv_linear qkv;    /* parts q, k, v: [3 H d, D] */
    qv_linear o;      /* [D, H d] */
    qv_linear hidden; /* [F, D], or a gated [2 F, D] */
    qv_linear output; /* [D, F] */
} qv_text_block;

/* The first member of every architecture's struct. Immutable once loaded, but for the cache of arenas. */
struct qv_text_encoder {
    const qv_text_architecture *architecture;
    const qv_ops *ops;
    size_t width;          /* D of the states */
    size_t output_width;   /* of the widest row that a finish of the architecture's own makes by an op; 0: none */
    size_t vocab_size;     /* ids are below it */
    size_t max_tokens;     /* M is at most this; 0: the architecture has no limit, and a call one of 4096 */
    size_t H, d, F;        /* H d need not be D */
    qv_text_block *blocks; /* [L] */
    size_t L;
    qv_arena_cache arenas;
};

/* out [B, M, width] = the last hidden states of ids [B, M], with zeros at padding. mask [B, M]: 0 is padding; NULL:
 * nothing is. QV_ERR_VALUE for an id out of range, no tokens at all, a row of padding alone, more than max_tokens. */
qv_status qv_text_encode(qv_text_encoder *encoder, qv_call *call, float *out, const int64_t *ids, const int64_t *mask,
                         size_t B, size_t M, qv_error *err);
void qv_text_free(qv_text_encoder *encoder);

/* Run the encoder and give the states of each pass to `finish`, still on the arena. */
typedef qv_status (*qv_text_finish)(void *context, qv_call *call, const float *states, const qv_text_batch *batch,
                                    qv_error *err);
qv_status qv_text_run(qv_text_encoder *encoder, qv_call *call, const int64_t *ids, const int64_t *mask, size_t B,
                      size_t M, qv_text_finish finish, void *context, qv_error *err);

/* What a block works on; the blocks take turns with it. */
typedef struct {
    float *x, *normed; /* [R, D] */
    float *qkv;        /* [R, 3 H d] */
    float *attended;   /* [R, H d] */
    float *hidden;     /* [R, F] */
} qv_text_activations;
qv_text_activations qv_text_plan(const qv_text_encoder *encoder, const qv_text_batch *batch, qv_arena *arena);

/* a->attended = each row's attention over its own tokens; bias [H, M, M] or NULL is added to the scaled scores. */
void qv_text_self_attention(const qv_text_encoder *encoder, qv_call *call, const qv_text_batch *batch,
                            const qv_text_activations *a, float scale, const float *bias, bool causal);

/* x [R, D] = the sum of `count` tables (up to 3) at ids[i] [R]; a->normed is overwritten. */
void qv_text_embed(const qv_text_encoder *encoder, qv_call *call, const qv_text_activations *a,
                   const qv_tensor *const *tables, const int32_t *const *ids, size_t count, size_t R);

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
void qv_text_linear(qv_text_loader *loader, qv_linear *weight, const char *stem, const char *const *names,
                    size_t parts, size_t columns, size_t depth, bool bias);

/* A layer norm, prefix + stem + name + ".weight" and ".bias". */
void qv_text_load_norm(qv_text_loader *loader, qv_norm *norm, const char *stem, const char *name, size_t size, float eps);

/* What the configs of BERT and CLIP say alike; sizes may be 0, then the weights say. */
typedef struct {
    size_t vocab_size, positions;
    size_t D, H, F, L;
    qv_activation activation;
    float eps;
} qv_text_config;

/* How a family of such models names its tensors; linear layers and norms have a ".weight" and a ".bias" behind it. */
typedef struct {
    const char *words, *positions; /* tables, by their whole names */
    const char *block;             /* block n's names begin with block + "n." */
    const char *qkv[3], *o, *hidden, *output;
    const char *attention_norm, *feed_forward_norm;
} qv_text_names;
qv_status qv_text_complete_config(const qv_text_loader *loader, qv_text_config *config, const char *what,
                                  const qv_text_names *names);
void qv_text_load_block(qv_text_loader *loader, qv_text_block *block, const qv_text_config *config,
                        const qv_text_names *names, size_t n);

/* A new encoder of `size` bytes, all zero but what `sizes` says (d = D / H, max_tokens = positions), with L blank
 * blocks; NULL with an error. */
void *qv_text_create(size_t size, const qv_text_architecture *architecture, const qv_ops *ops,
                     const qv_text_config *sizes, qv_error *err);
/* The end of every load: *out = encoder, or `encoder` is freed and the loader's error or the list of missing tensors is
 * returned. */
qv_status qv_text_finish_load(qv_text_encoder **out, qv_text_encoder *encoder, const qv_text_loader *loader);

#endif
