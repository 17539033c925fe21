/* BLIP image-text matching: a vision transformer, and BERT whose blocks also attend to the image. */
#ifndef QV_MODELS_BLIP_ITM_H
#define QV_MODELS_BLIP_ITM_H

#include "models/vit.h"
#include "ops/ops.h"

/* What the weights' shapes cannot tell; of the text half's sizes, those that are not 0 are checked against them. */
typedef struct {
    qv_vit_config vision;
    size_t H;
    size_t D, L, F, vocabulary, positions;
    size_t text_blocks; /* blocks of the contrastive pass, "fusion_layer"; SIZE_MAX: all */
    float eps;
    qv_activation activation;
} qv_blip_config;

typedef struct {
    qv_linear self_qkv, self_out;           /* D -> 3 D, D -> D */
    qv_linear cross_q, cross_kv, cross_out; /* D -> D, image width -> 2 D, D -> D */
    qv_linear fc1, fc2;                     /* D -> F, F -> D */
    qv_norm self_norm, cross_norm, output_norm;
} qv_blip_block;

/* Immutable after qv_blip_init, but for the caches of arenas, which are thread-safe. */
typedef struct {
    qv_blip_config config; /* the sizes found in the weights */
    const qv_ops *ops;
    float attention_scale; /* 1 / sqrt(d) */
    qv_vit vision;
    qv_vit_tap *no_taps;    /* [blocks of the vision half]: nothing of them is wanted but the end */
    const qv_tensor *words; /* [vocabulary, D] */
    qv_vector positions;    /* [positions, D] */
    qv_norm norm;
    qv_blip_block *blocks; /* [L] */
    qv_linear itm_head;       /* D -> 2 */
    qv_vector itm_head_plain; /* [2, D] */
    size_t projection;        /* width of the joint space of the contrastive heads; 0: the weights have none */
    qv_linear vision_projection, text_projection;
    qv_arena_cache arenas;
    qv_arena_cache images; /* of what is kept of images */
} qv_blip;

/* Borrowed weights must outlive the model. On failure nothing is held. */
qv_status qv_blip_init(qv_blip *model, const qv_blip_config *config, const qv_ops *ops, qv_precision precision,
                       qv_weights *weights, qv_error *err);
void qv_blip_free(qv_blip *model);

/* What every question on an image shares, in one block of memory: S = 1 + P image tokens, class token first. */
typedef struct {
    float *embeddings; /* [S, image width]; both in the ops' memory */
    float *cross;      /* [L, S, 2 D]: keys, then values, of each block's cross-attention */
    size_t S;
    qv_kept kept;
} qv_blip_image;

qv_status qv_blip_image_allocate(qv_blip_image *image, const qv_blip *model, qv_error *err);
void qv_blip_image_free(qv_blip_image *image, const qv_blip *model);
/* embeddings from the caller's [S, image width], and to it */
qv_status qv_blip_set_embeddings(const qv_blip *model, qv_call *call, qv_blip_image *image, const float *embeddings,
                                 qv_error *err);
qv_status qv_blip_get_embeddings(const qv_blip *model, qv_call *call, float *embeddings, const qv_blip_image *image,
                                 qv_error *err);
/* embeddings from pixels [3, image_size, image_size], or (pixels NULL) from a picture that becomes such */
qv_status qv_blip_embed_image(const qv_blip *model, qv_call *call, qv_blip_image *image, const float *pixels,
                              const qv_picture_view *picture, const qv_preprocessing *how, qv_error *err);
/* cross from embeddings */
qv_status qv_blip_cross_attend(const qv_blip *model, qv_call *call, qv_blip_image *image, qv_error *err);

/* Q questions one after another without padding: R = start[Q] tokens, those of q from start[q] on, at least one each. */
typedef struct {
    size_t Q;
    const int32_t *ids;  /* [R] */
    const size_t *start; /* [Q + 1] */
} qv_blip_questions;

/* QV_ERR_VALUE unless every id is in the vocabulary and every question fits the positions. */
qv_status qv_blip_check_questions(const qv_blip *model, const qv_blip_questions *questions, qv_error *err);

/* What a block leaves behind for its backward pass. In the last block only token 0 of each question is a query. */
typedef struct {
    size_t rows;    /* queries: R, in the last block Q */
    float *q;       /* [rows, D] */
    float *kv;      /* [R, 2 D] */
    float *sum1;    /* [rows, D], before the norm that follows self-attention */
    float *cross_q; /* [rows, D] */
    float *sum2;    /* [rows, D], before the norm that follows cross-attention */
    float *hidden;  /* [rows, F], before the activation */
    float *sum3;    /* [rows, D], before the norm that follows the feed-forward */
} qv_blip_activations;

/* Memory of one pass of the text half. Blocks from keep_from on keep their activations; the others share one set. */
typedef struct {
    size_t Q, R, keep_from;
    qv_blip_activations *blocks; /* [L] */
    float *h;                    /* [R, D], between blocks */
    float *class_rows;           /* [Q, D]: token 0 of each question, into and out of the last block */
    float *normed, *context;     /* [R, D] */
    float *activated;            /* [R, F] */
} qv_blip_plan;

/* Lay the plan out for questions of `Q` and `R` in all; in any one pass there may be fewer of both. */
void qv_blip_lay_out(qv_blip_plan *plan, qv_arena *arena, const qv_blip *model, size_t Q, size_t R, size_t keep_from);
/* Scratch of ops->linear and ops->attention in the text half. */
size_t qv_blip_scratch_bytes(const qv_blip *model, const qv_call *call, size_t R);
/* Run the text half on an image, or on its own (cross NULL); class_rows holds each question's last state of token 0. */
void qv_blip_text_forward(const qv_blip *model, qv_call *call, qv_blip_plan *plan, const float *cross, size_t S,
                          const qv_blip_questions *questions);

/* The attention of question q over its own tokens, and that of all queries over the image; outputs are not set. */
qv_attention qv_blip_self_attention(const qv_blip *model, const qv_blip_activations *block,
                                    const qv_blip_questions *questions, size_t q);
qv_attention qv_blip_cross_attention(const qv_blip *model, const qv_blip_activations *block, const float *cross,
                                     size_t S);

/* Questions [from, to) that go through the text half together: `to` for a given `from`. */
size_t qv_blip_chunk_end(const qv_blip_questions *questions, size_t from);
/* The largest Q and R over those chunks. */
void qv_blip_chunk_sizes(const qv_blip_questions *questions, size_t *Q, size_t *R);

/* logits [Q, 2]: no match, match */
qv_status qv_blip_match(const qv_blip *model, qv_call *call, float *logits, const qv_blip_image *image,
                        const qv_blip_questions *questions, qv_error *err);
/* The contrastive heads' unit vectors: out [Q, projection], and out [projection] */
qv_status qv_blip_text_features(const qv_blip *model, qv_call *call, float *out, const qv_blip_questions *questions,
                                qv_error *err);
qv_status qv_blip_image_features(const qv_blip *model, qv_call *call, float *out, const qv_blip_image *image,
                                 qv_error *err);

#endif
