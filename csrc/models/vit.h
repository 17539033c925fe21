/* Vision transformers: CLIP, QA-ViT (question tokens among the keys of some blocks) and BLIP's vision tower. */
#ifndef QV_MODELS_VIT_H
#define QV_MODELS_VIT_H

#include "ops/ops.h"

typedef enum {
    QV_VIT_CLIP, /* Hugging Face's names; pre-norm in front of the blocks; the class token is normed for pooling */
    QV_VIT_BLIP, /* timm's names; fused qkv, a bias on the patches, a final norm over all tokens */
} qv_vit_layout;

/* What the weights' shapes cannot tell, and what they are checked against. */
typedef struct {
    qv_vit_layout layout;
    size_t image_size, patch_size;
    size_t D, H, L, F;
    float eps;
    qv_activation activation;
    size_t instruction_dim; /* Dt; 0: no block takes the question */
    const bool *integrated; /* [L], which blocks do; NULL: none */
} qv_vit_config;

typedef struct {
    qv_norm norm1, norm2;
    qv_linear qkv;      /* parts q, k, v */
    qv_linear out;      /* integrated: out_proj + tanh(gate) instruction_out_proj, which is one linear map */
    qv_linear fc1, fc2;
    bool integrated;
    qv_norm reduce_norm;        /* of Dt */
    qv_linear reduce1, reduce2; /* Dt -> hidden -> D */
} qv_vit_block;

/* Immutable after qv_vit_init, but for the cache of arenas, which is thread-safe. */
typedef struct {
    qv_vit_config config; /* config.integrated is not kept: see blocks */
    const qv_ops *ops;
    size_t T, P;               /* 1 + P tokens */
    size_t first_integrated;   /* L where no block is */
    size_t reduce_width;       /* the widest hidden layer of instruct_dim_reduce */
    qv_linear patch_embedding;
    qv_vector class_embedding, position_embedding; /* [D], [T, D] */
    qv_norm pre_norm, post_norm;                   /* no pre_norm (of no weight) for BLIP */
    qv_vit_block *blocks; /* [L] */
    qv_arena_cache arenas;
} qv_vit;

/* Read the weights named prefix + ... (borrowed: they must outlive the model). On failure nothing is held. */
qv_status qv_vit_init(qv_vit *vit, const qv_vit_config *config, const qv_ops *ops, qv_precision precision,
                      qv_weights *weights, const char *prefix, qv_error *err);
void qv_vit_free(qv_vit *vit);

/* What is wanted of one block: a window of its attention, its output. B is image_count before the first integrated block
 * (questions share an image's pass) and pair_count from it on. */
typedef struct {
    float *attention; /* [B, H, row_count, column_count], or NULL */
    size_t first_row, row_count;
    size_t first_column, column_count; /* of the keys: T, or M + T in an integrated block */
    float *hidden;                     /* [B, T, D], the block's output, or NULL */
} qv_vit_tap;

typedef struct {
    const float *images; /* [image_count, 3, image_size, image_size], or NULL: they are made of */
    const qv_picture_view *pictures;       /* [image_count] */
    const qv_preprocessing *preprocessing; /* of the pictures, to image_size */
    size_t image_count;
    const size_t *pair_image; /* [pair_count], ascending: the image of each pair; unused when pair_count is 0 */
    size_t pair_count;        /* pairs of an image and a question; 0: images alone */
    const float *instruct;    /* [pair_count, M, Dt] */
    const size_t *instruct_length; /* [pair_count]: how many of the M tokens count */
    size_t M;
    const qv_vit_tap *taps; /* [L] */
    float *embedded;        /* [image_count, T, D], what enters block 0, or NULL */
    float *last;            /* [B, T, D], what leaves the last block, or NULL */
    float *normed;          /* [B, T, D], the final norm of `last`, or NULL */
    float *embeddings;      /* [B, T, D], the same in the ops' own memory, or NULL */
    float *pooled;          /* [B, D], the final norm of the class token, or NULL */
} qv_vit_request;

/* Runs only as far as the request needs. QV_ERR_MEMORY, QV_ERR_CANCELLED (outputs then hold anything), or QV_ERR_VALUE
 * when pairs are missing although an integrated block is needed. */
qv_status qv_vit_forward(const qv_vit *vit, qv_call *call, const qv_vit_request *request, qv_error *err);

#endif
