/* What the files of a vision tower's gradients share: vit_gradients.c goes through the blocks, vit_legrad.c through each by
 * itself, vit_target.c through what stands behind them. */
#ifndef QV_MODELS_VIT_GRADIENT_PASS_H
#define QV_MODELS_VIT_GRADIENT_PASS_H

#include "models/planned.h"
#include "models/vit_ends.h"
#include "models/vit_gradients.h"

/* A pooled token, its scores, and gradients of these. */
typedef struct {
    float *mean;     /* [D], of tokens, where the norm comes behind it */
    float *pooled;   /* [D] */
    float *y;        /* [E], its projection, or logits; `pooled` where there is neither */
    float *scores;   /* [Q] */
    float *d_y;      /* [chunk, E] */
    float *d_pooled; /* [chunk, D] */
    float *zeros;    /* [D] */
    float *texts;    /* [Q, E] */
    qv_vit_pooling_place place;
    qv_block_activations head; /* kept */
} qv_vit_target;

/* One call. A chunk of items goes from the scores down through the blocks, a turn of them through a product. */
typedef struct {
    const qv_vit *vit;
    const qv_vit_gradient_request *request;
    size_t items;       /* a sequence */
    size_t lowest;      /* the last block that gradients of the scores go back to; L: none */
    bool all_tokens;    /* whether they go back to all tokens of what leaves a block */
    size_t chunk, turn;
    size_t run;         /* the block whose run the activations are of; L: none's */
    float *x;           /* [levels, T, D], what enters each block */
    qv_block_activations a;
    qv_block_gradients g;
    qv_vit_question question;
    float *instruct;    /* [M, Dt] */
    float *once;        /* [turn, F] */
    float *d_class;     /* [chunk, D], of the class token that leaves the last block, where that alone is pooled */
    float *d_x;         /* [chunk, T, D] */
    float *means;       /* [turn, 3 H d], over the patches, of the gradients of q, k and v */
    float *weights;     /* [turn, D] */
    float *relevance;   /* [H, M + T] */
    float *added;       /* [M + T], its mean */
    float *rows;        /* [chunk, T], the class token's of R */
    float *one_hot;     /* [T] */
    float *place;        /* outputs on their way, where the ops cannot write to the caller's memory, */
    float *second_place; /* [H, M + T], and anywhere */
    float *values;       /* [T, H d], of a block or of the head, on their way to what is kept, or from there */
    float *keep;         /* where what is kept next goes; NULL: nowhere */
    const float *kept;   /* where what was kept is read next; NULL: nothing was */
    qv_vit_target target;
} qv_vit_gradient_pass;

/* An output of `count` floats that is written and taken before the next one is. */
static inline qv_output qv_vit_place(const qv_vit_gradient_pass *pass, float *place, float *host, size_t count) {
    return qv_output_at(pass->vit->ops, place, host, count);
}

/* LeGrad's gradient of block l, whose activations and pooled y there are; and its attention of all queries. */
void qv_vit_legrad(const qv_vit_gradient_pass *pass, qv_call *call, const qv_block_kind *kind, const qv_attention *attention,
                   size_t l, size_t n);
/* What it reads of a block whose activations there are, in floats; to where it is kept, if it is; and from there. */
size_t qv_vit_legrad_floats(const qv_vit *vit);
void qv_vit_legrad_keep(qv_vit_gradient_pass *pass, qv_call *call);
void qv_vit_legrad_find(qv_vit_gradient_pass *pass, qv_call *call);
/* The same of a row [D] behind the blocks. */
void qv_vit_legrad_keep_row(qv_vit_gradient_pass *pass, qv_call *call, const float *row);
void qv_vit_legrad_find_row(qv_vit_gradient_pass *pass, qv_call *call, float *row);

/* How many items wide the score's gradient is: texts', or the number of answers. */
size_t qv_vit_score_width(const qv_vit_gradient_pass *pass);
qv_vit_target qv_vit_plan_target(const qv_vit_gradient_pass *pass, qv_arena *arena);
/* Texts into the ops' memory. */
void qv_vit_begin_targets(qv_vit_gradient_pass *pass, qv_call *call, const float *zeros);
/* y of the pooled mean of tokens [T, D], as LeGrad has it, or of the head's attention over them. */
void qv_vit_pool_block(const qv_vit_gradient_pass *pass, qv_call *call, const float *tokens);
/* y of what leaves the last block. */
void qv_vit_pool_last(const qv_vit_gradient_pass *pass, qv_call *call, float *x);
/* y of what is pooled already: by a head, or at `last`; else the mean of a block's tokens is there. */
void qv_vit_pool_again(const qv_vit_gradient_pass *pass, qv_call *call, bool last);
/* The scores [Q] of sequence n, from y of what leaves the last block. */
void qv_vit_score_last(const qv_vit_gradient_pass *pass, qv_call *call, size_t n);
/* d_pooled [count, D] of items `first` .., times factor. */
void qv_vit_score_gradients(const qv_vit_gradient_pass *pass, qv_call *call, size_t n, size_t first, size_t count,
                            float factor);
/* d_class or d_x of items `first` .. from their scores; the taps of the head's attention. */
void qv_vit_start_from_scores(const qv_vit_gradient_pass *pass, qv_call *call, const float *x, size_t n, size_t first,
                              size_t count);
/* The gradient of the head's attention, of `count` items whose d_pooled begins at `first`: in g.d_attended. */
void qv_vit_head_backward(const qv_vit_gradient_pass *pass, qv_call *call, size_t first, size_t count);
/* The head's attention to be differentiated for item i of a turn. */
qv_attention_backward qv_vit_head_attention(const qv_vit_gradient_pass *pass, size_t i);

#endif
