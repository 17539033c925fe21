/* Vision transformers: of CLIP, SigLIP, DINO, ViT, DeiT and BLIP, and QA-ViT's, whose blocks take a question. One tower; a
 * tensor that is not there is a step that is left out. */
#ifndef QV_MODELS_VIT_H
#define QV_MODELS_VIT_H

#include "models/block.h"

typedef enum {
    QV_POOL_CLASS,          /* the normed class token */
    QV_POOL_MEAN,           /* the mean of the normed patches */
    QV_POOL_MEAN_THEN_NORM, /* the norm of the patches' mean */
    QV_POOL_MAP,            /* an attention head: a learned query looks over all normed tokens (SigLIP) */
} qv_pooling;

/* What the weights' shapes cannot tell, and what they are checked against. */
typedef struct {
    size_t height, width, patch_size; /* pixels */
    size_t D, H, L, F;
    float eps, pre_norm_eps, post_norm_eps; /* of the blocks' norms, and of those before and after the blocks */
    qv_activation activation;
    qv_pooling pooling;
    float rope_theta;       /* the base of rotary positions; 0: there are none */
    size_t instruction_dim; /* Dt; 0: no block takes the question */
    const bool *integrated; /* [L], which blocks do; NULL: none */
} qv_vit_config;

typedef struct {
    qv_block block; /* integrated: out is out_proj + tanh(gate) instruction_out_proj, which is one linear map */
    bool integrated;
    qv_norm reduce_norm;        /* [Dt] */
    qv_linear reduce1, reduce2; /* Dt -> hidden -> D */
    qv_norm plain_norm1;        /* norm1 before outliers were folded into q, k, v; no weight where none were */
} qv_vit_block;

/* Immutable after qv_vit_load, but for the cache of arenas, which is thread-safe. */
typedef struct {
    qv_vit_config config; /* config.integrated is not kept: see blocks */
    qv_block_kind kind;
    const qv_ops *ops;
    bool has_class;
    size_t prefix;           /* tokens in front of the patches: class, distillation, registers */
    size_t grid_rows, grid_columns, P, T; /* T = prefix + P tokens, patches row by row */
    size_t first_integrated; /* L where no block is */
    size_t reduce_width;     /* the widest hidden layer of instruct_dim_reduce */
    qv_linear patch_embedding;
    qv_vector prefix_rows; /* [prefix, D], with the positions of those that have one */
    qv_vector positions;   /* [P, D], or empty */
    qv_vector angles;      /* [P, d]: the cosines and then the sines that patches turn by, or empty */
    qv_norm pre_norm;      /* may be empty */
    qv_norm post_norm;
    qv_linear projection; /* [E, D], of what is pooled into the space of texts; columns 0: there is none */
    qv_linear answers;    /* [., D], the logits of what is pooled; columns 0: there are none */
    qv_vit_block *blocks; /* [L] */
    qv_vector probe;      /* [D], of the attention head, which is a block of one query without a first norm */
    qv_block head;
    bool shares; /* all but positions, angles and arenas is another tower's: see qv_vit_resize */
    qv_arena_cache arenas;
} qv_vit;

/* So many images, at least one, are enough for the full speed of products. */
size_t qv_vit_images_at_once(const qv_vit *vit);

/* Tensors are called as in Hugging Face's CLIPVisionModel, behind the loader's prefix; docs/MODEL.md has the list. On
 * failure nothing is held. */
qv_status qv_vit_load(qv_vit *vit, const qv_vit_config *config, qv_loader *loader);
void qv_vit_free(qv_vit *vit);

/* The same tower for images of another size: `resized` shares the weights of `vit`, which has to outlive it. positions: of its
 * patches [P, D], or NULL where the tower has no table. QV_ERR_VALUE for a size that is no multiple of the patch, or too
 * large. */
qv_status qv_vit_resize(qv_vit *resized, const qv_vit *vit, size_t height, size_t width, const float *positions,
                        qv_error *err);

/* The images of a call. */
typedef struct {
    const float *pixels; /* [count, 3, height, width], or NULL: they are made of */
    const qv_picture_view *pictures;       /* [count] */
    const qv_preprocessing *preprocessing; /* of the pictures, to the tower's height and width */
    size_t count;
} qv_vit_images;

/* What is wanted of one block: a window of its attention, its output. B is images.count before the first integrated block
 * (questions share an image's pass) and pair_count from it on. */
typedef struct {
    float *attention; /* [B, H, row_count, column_count], or NULL */
    bool mean;        /* [B, row_count, column_count], of the heads, in place of each */
    size_t first_row, row_count;
    size_t first_column, column_count; /* of the keys: T, or M + T in an integrated block */
    float *hidden;                     /* [B, T, D], the block's output, or NULL */
} qv_vit_tap;

typedef struct {
    qv_vit_images images;
    const float *states; /* [images.count, T, D], what enters block `first`: the pass begins there, with the bits of one that
                            came through the blocks before it; images.pixels and .pictures are NULL then. NULL: it begins
                            with the images, and first is 0 */
    size_t first;        /* at most the first integrated block, and L - 1 */
    const float *qkv;    /* [images.count, T, 3 D], q, k and v of the states that enter the first integrated block, or NULL */
    const size_t *pair_image; /* [pair_count], ascending: the image of each pair; unused when pair_count is 0 */
    size_t pair_count;        /* pairs of an image and a question; 0: images alone */
    const float *instruct;    /* [pair_count, M, Dt] */
    const size_t *instruct_length; /* [pair_count]: how many of the M tokens count */
    size_t M;
    const qv_vit_tap *taps; /* [L]; NULL: none */
    float *embedded;        /* [images.count, T, D], what enters block 0, or NULL */
    float *patch_qkv;       /* [images.count, T, 3 D], for `qkv` of another call; of a pass that comes to that block; or NULL */
    float *last;            /* [B, T, D], what leaves the last block, or NULL */
    float *normed;          /* [B, T, D], the final norm of `last`, or NULL */
    float *const *embeddings; /* [B], the same of each, [T, D] in the ops' own memory, or NULL */
    float *pooled;          /* [B, D], or NULL */
    float *projected;       /* [B, E], its projection, or NULL; only where there is one */
    float *pool_attention;  /* [B, H, T], of the attention head's query, or NULL */
} qv_vit_request;

/* Runs only as far as the request needs. QV_ERR_MEMORY, QV_ERR_CANCELLED (outputs then hold anything), or QV_ERR_VALUE
 * when pairs are missing although an integrated block is needed, or something is wanted that lies before the states,
 * or behind where the pass ends. */
qv_status qv_vit_forward(const qv_vit *vit, qv_call *call, const qv_vit_request *request, qv_error *err);

#endif
