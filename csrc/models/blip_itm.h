/* Image-text matching of BLIP, ALBEF and BLIP-2: a vision transformer, and BERT that also attends to the image, in each of its
 * blocks, in the last ones, or in every second one for learned queries in front of the text. */
#ifndef QV_MODELS_BLIP_ITM_H
#define QV_MODELS_BLIP_ITM_H

#include "models/block.h"
#include "models/vit.h"

/* What the weights' shapes cannot tell; of the text half's sizes, those that are not 0 are checked against them. */
typedef struct {
    qv_vit_config vision;
    size_t H;
    size_t D, L, F, vocabulary, positions;
    size_t text_blocks; /* blocks of the contrastive pass, "fusion_layer"; SIZE_MAX: those in front of the first with
                           cross-attention, and all where that is the first */
    size_t closing;     /* tokens behind a question's words: 1, its [SEP], or 0 */
    bool question_encoder; /* BLIP-VQA's question encoder: no heads, and the states of all tokens leave the last block */
    float eps;
    qv_activation activation;
} qv_blip_config;

/* Immutable after qv_blip_load, but for the caches of arenas, which are thread-safe. */
typedef struct {
    qv_blip_config config; /* the sizes found in the weights */
    const qv_ops *ops;
    qv_vit vision;
    qv_block_kind kind;
    size_t cross_first, cross_step, cross_count; /* blocks with cross-attention: every cross_step-th from cross_first on */
    qv_tensor words, positions; /* [vocabulary, D], [positions, D] */
    qv_tensor token_types;      /* [., D], of which all tokens are the first; data NULL: none */
    qv_norm embedding_norm;
    qv_block *blocks; /* [L] */
    size_t queries;   /* n, of BLIP-2's Q-Former (qformer.c); 0: there are none, the text attends to the image itself */
    qv_vector query_tokens; /* [n, D] */
    qv_block *query_blocks; /* [L]: hidden, output and norm2, through which the queries go */
    qv_linear itm_head;     /* D -> 2 */
    qv_vector match;        /* [D]: what the gradient of the second logit is of each row that reaches the head */
    size_t projection;  /* width of the joint space of the contrastive heads; 0: the weights have none */
    qv_linear vision_projection, text_projection;
    qv_arena_cache arenas;
    qv_arena_cache images; /* a device's memory of images that are done with; the host's goes back to the system */
} qv_blip;

/* Behind the loader's prefix, the vision half's tensors are called as qv_vit_load's behind "vision_model.", the others as
 * salesforce/LAVIS calls them. On failure nothing is held. */
qv_status qv_blip_load(qv_blip *model, const qv_blip_config *config, qv_loader *loader);
void qv_blip_free(qv_blip *model);
/* Whether block l has cross-attention. */
bool qv_blip_attends(const qv_blip *model, size_t l);

/* ---- the image ---- */

/* What every question on an image shares, in one block of memory: S = 1 + P image tokens, class token first. */
typedef struct {
    float *embeddings; /* [S, image width]; both in the ops' memory */
    float *cross;      /* [cross_count, S, 2 D]: keys, then values, of each block's cross-attention */
    size_t S;
    qv_kept memory;
} qv_blip_image;

qv_status qv_blip_image_allocate(qv_blip_image *image, const qv_blip *model, qv_error *err);
void qv_blip_image_free(qv_blip_image *image, const qv_blip *model);
/* embeddings from the caller's [S, image width], and to it */
qv_status qv_blip_set_embeddings(const qv_blip *model, qv_call *call, qv_blip_image *image, const float *embeddings,
                                 qv_error *err);
qv_status qv_blip_get_embeddings(const qv_blip *model, qv_call *call, float *embeddings, const qv_blip_image *image,
                                 qv_error *err);
/* embeddings of as many images as there are pixels [count, 3, image_size, image_size], or pictures that become such */
qv_status qv_blip_embed_images(const qv_blip *model, qv_call *call, qv_blip_image *const *images, const qv_vit_images *from,
                               qv_error *err);
/* cross from embeddings, of `count` images */
qv_status qv_blip_cross_attend(const qv_blip *model, qv_call *call, qv_blip_image *const *images, size_t count,
                               qv_error *err);

#endif
