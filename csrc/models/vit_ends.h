/* What every pass through a vision tower needs beside its blocks: what stands in front of them and behind, and positions that
 * turn. */
#ifndef QV_MODELS_VIT_ENDS_H
#define QV_MODELS_VIT_ENDS_H

#include "models/vit.h"

/* How many of `count` sequences to send through the blocks together; all but the last such chunk are of that size. */
size_t qv_vit_chunk(const qv_vit *vit, size_t count);

/* A place for the pixel values of `count` images at a time, where they are made of pictures, or the ops cannot read the
 * caller's; else NULL. */
float *qv_vit_plan_pixels(qv_arena *arena, const qv_vit *vit, const qv_vit_images *images, size_t count);
/* x [B, T, D], what enters block 0, of images `first` to first + B; `pixels` as planned, `patches` [P, 3 p p] is scratch. */
qv_status qv_vit_embed(const qv_vit *vit, qv_call *call, const qv_vit_images *images, size_t first, size_t B, float *pixels,
                       float *patches, float *x, qv_error *err);

/* x [B, T], queries or keys of all tokens, turned by the patches' positions, where these are rotary; their gradients are turned
 * back. */
void qv_vit_rotate(const qv_vit *vit, qv_call *call, qv_rows x, bool back, size_t B);

typedef struct {
    float *rows;   /* [B, D], for whom what is pooled is only on the way */
    size_t *zeros; /* [B]: all share the attention head's query */
} qv_vit_pooling_place;
qv_vit_pooling_place qv_vit_plan_pooling(qv_arena *arena, const qv_vit *vit, size_t B);
/* pooled [B, D] of the attention head (SigLIP's), y + mlp(norm(y)), y = attention(probe, tokens [B, T, D]); tokens may be the
 * activations' own. Where these keep sum1, it becomes y. */
void qv_vit_run_head(const qv_vit *vit, qv_call *call, const qv_vit_pooling_place *place, const qv_block_activations *a,
                     qv_rows pooled, const float *tokens, float *probabilities, size_t B);
/* Its block, which has no norm in front. */
qv_block_kind qv_vit_head_kind(const qv_vit *vit);
/* out [B, D], pooled from x [B, T, D], what leaves the last block; but for the class token's pooling, with the activations of
 * B T rows. `probabilities` [B, H, T] of the attention head, or NULL. */
void qv_vit_pool(const qv_vit *vit, qv_call *call, const qv_vit_pooling_place *place, const qv_block_activations *a,
                 qv_rows out, float *x, float *probabilities, size_t B);

/* The question in an integrated block (vit_question.c). */
typedef struct {
    float *norm;   /* [tokens, Dt] */
    float *hidden; /* [tokens, reduce_width] */
    float *states; /* [tokens, D] */
    float *kv;     /* [tokens, 2 D] */
} qv_vit_question;
qv_vit_question qv_vit_plan_question(qv_arena *arena, const qv_vit *vit, size_t tokens);
/* kv, the block's keys and values of instruct [tokens, Dt]. */
void qv_vit_embed_question(qv_call *call, const qv_vit *vit, const qv_vit_block *block, const qv_vit_question *question,
                           const float *instruct, size_t tokens);

#endif
