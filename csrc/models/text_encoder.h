/* Text encoders: T5, BERT, RoBERTa and CLIP's are one model, whose parts may be there or not; t5.c, bert.c and clip_text.c
 * say which, and how each is loaded. */
#ifndef QV_MODELS_TEXT_ENCODER_H
#define QV_MODELS_TEXT_ENCODER_H

#include "models/block.h"

/* Tables that a token's first state is the sum of. */
#define QV_TEXT_TABLES ((size_t)3)

/* Which token's state stands for the text. */
typedef enum {
    QV_TEXT_POOL_END, /* the end-of-text token's */
    QV_TEXT_POOL_LAST,
    QV_TEXT_POOL_FIRST,
} qv_text_pooling;

/* Immutable once loaded, but for the cache of arenas. */
typedef struct {
    const char *name;
    const qv_ops *ops;
    qv_block_kind kind;
    size_t width;      /* D of the states */
    size_t vocab_size; /* ids are below it */
    size_t max_tokens; /* M is at most this; 0: the architecture has no limit, and a call one of 4096 */
    qv_tensor words;       /* [vocab_size, D] */
    qv_tensor positions;   /* [., D]; data NULL: none */
    qv_tensor token_types; /* [., D], of which all tokens are the first; data NULL: none */
    bool skips_padding;    /* RoBERTa: a position is pad_id + the number of tokens so far that are not pad_id, and pad_id */
    size_t pad_id;         /* at those that are */
    qv_norm embedding_norm, final_norm; /* each may be empty */
    qv_vector offset_bias; /* [H, 2 reach + 1]: the bias of scores at key - query = -reach .. reach, or empty */
    size_t reach;
    qv_tensor input_words;           /* QA-ViT's T5: [vocab_size, D], where words behind a picture are looked up */
    qv_linear picture_in, picture_out; /* translation_mlp, [D, W] and [D, D], that a picture goes through; columns 0: none */
    size_t picture_width;            /* W; 0: none */
    qv_text_pooling pooling;
    size_t end_id;        /* the end-of-text token; 2: the largest id of a row */
    qv_linear projection; /* [E, D], of what is pooled; columns 0: none */
    qv_block *blocks;     /* [L] */
    size_t L;
    qv_arena_cache arenas;
} qv_text_encoder;

/* out [B, M, width] = the last hidden states of ids [B, M], with zeros at padding. mask [B, M]: 0 is padding; NULL:
 * nothing is. QV_ERR_VALUE for an id out of range, no tokens at all, a row of padding alone, more than max_tokens. */
qv_status qv_text_encode(qv_text_encoder *encoder, qv_call *call, float *out, const int64_t *ids, const int64_t *mask,
                         size_t B, size_t M, qv_error *err);
/* out [S + M, width] = the last hidden states of a picture's tokens [S, picture_width], as the vision tower leaves them,
 * and the words `ids` [M] behind them. QV_ERR_VALUE where the encoder takes no picture, and as above. */
qv_status qv_text_encode_picture(qv_text_encoder *encoder, qv_call *call, float *out, const float *picture, size_t S,
                                 const int64_t *ids, size_t M, qv_error *err);
void qv_text_free(qv_text_encoder *encoder);

/* The tokens of a pass over some rows of a call, without the padding around them. */
typedef struct {
    size_t first, B;  /* the call's rows */
    size_t *start;    /* [B + 1]: row b's tokens are start[b] .. start[b + 1] */
    size_t *column;   /* [B]: of a row's first token among the M */
    int32_t *ids, *positions, *types; /* [R] */
    uint8_t *key_mask; /* [R], 0: padding between tokens */
    bool holes;        /* whether there is any */
    float *output;     /* [B, output_width], where the ops cannot write to the caller's memory */
} qv_text_pass;

/* Run the encoder and give the states [R, D] of each pass to `finish`, still on the arena. `output_width`: of the widest
 * row that finish makes by an op; 0: none. */
typedef qv_status (*qv_text_finish)(void *context, qv_call *call, const float *states, const qv_text_pass *pass,
                                    qv_error *err);
qv_status qv_text_run(qv_text_encoder *encoder, qv_call *call, const int64_t *ids, const int64_t *mask, size_t B,
                      size_t M, size_t output_width, qv_text_finish finish, void *context, qv_error *err);

/* x [R, D] = the sum of `count` tables at ids[i] [R]; spare [R, D] is overwritten. */
void qv_text_embed(qv_call *call, float *x, float *spare, const qv_tensor *const *tables, const int32_t *const *ids,
                   size_t count, size_t R, size_t D);

/* ---- loading ---- */

/* What the configs of BERT and CLIP say alike; sizes may be 0, then the weights say. */
typedef struct {
    size_t vocab_size, positions;
    size_t D, H, F, L;
    qv_activation activation;
    float eps;
} qv_text_config;

/* Fill the sizes of a config that the weights say: `blocks` is in front of a block's number. */
qv_status qv_text_complete_config(qv_loader *loader, qv_text_config *config, const char *what, const char *words,
                                  const char *positions, const char *blocks, const qv_block_names *names);
/* A new encoder with L blank blocks, all zero but for what is given; NULL after a failure. */
qv_text_encoder *qv_text_create(qv_loader *loader, const char *name, const qv_block_kind *kind, size_t L,
                                size_t vocab_size);
/* The end of every load: *out = encoder, or it is freed and the loader's error or the list of missing tensors returned. */
qv_status qv_text_finish_load(qv_text_encoder **out, qv_text_encoder *encoder, qv_loader *loader);

#endif
