/* What the files of the vision tower share. */
#ifndef QV_MODELS_VIT_PARTS_H
#define QV_MODELS_VIT_PARTS_H

#include "models/vit.h"

/* ---- the question in an integrated block (vit_question.c) ---- */

typedef struct {
    float *norm;   /* [tokens, Dt] */
    float *hidden; /* [tokens, reduce_width] */
    float *states; /* [tokens, D] */
    float *kv;     /* [tokens, 2 D] */
} qv_vit_question;

qv_vit_question qv_vit_plan_question(qv_arena *arena, const qv_vit *vit, size_t tokens);
/* kv, the keys and values of this block, of instruct [tokens, Dt]. */
void qv_vit_embed_question(qv_call *call, const qv_vit *vit, const qv_vit_block *block, const qv_vit_question *question,
                           const float *instruct, size_t tokens);

#endif
