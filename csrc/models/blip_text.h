/* The text half of image-text matching: its questions, and how its heads and its gradient run it. */
#ifndef QV_MODELS_BLIP_TEXT_H
#define QV_MODELS_BLIP_TEXT_H

#include "models/blip_itm.h"

/* Q questions one after another without padding: R = start[Q] tokens, those of q from start[q] on, at least one each. */
typedef struct {
    size_t Q;
    const int32_t *ids;  /* [R] */
    const size_t *start; /* [Q + 1] */
    const qv_blip_image *const *images; /* [Q], which each is about: neighbours of one image go together; NULL: text alone */
} qv_blip_questions;

/* QV_ERR_VALUE unless every id is in the vocabulary and every question fits the positions. */
qv_status qv_blip_check_questions(const qv_blip *model, const qv_blip_questions *questions, qv_error *err);
/* Memory of one pass of the text half. Blocks from keep_from on keep what their backward pass reads; the others share one
 * set. */
typedef struct {
    qv_block_activations shared, *blocks; /* [L] */
    float *h;           /* [R, D], between blocks; with queries [Q n + R, D], all queries in front of all texts */
    float *class_rows;  /* [Q, D]: token 0 of each question, into and out of the last block, or the mean of its queries */
    int32_t *positions; /* [R] */
    int32_t *types;     /* [R], zeros */
    qv_cross_run *runs; /* [Q] */
    size_t *start;      /* with queries: [Q + 1], where a question begins with its queries in front of it */
    float *attended;    /* with queries: [Q n + R, D] */
} qv_blip_text_plan;

/* The questions from `from` on that go through the text half together. */
qv_blip_questions qv_blip_chunk(const qv_blip *model, const qv_blip_questions *questions, size_t from);
/* The largest Q and R over those chunks. */
void qv_blip_chunk_sizes(const qv_blip *model, const qv_blip_questions *questions, size_t *Q, size_t *R);

/* For passes of at most Q questions and R tokens in all. */
qv_blip_text_plan qv_blip_plan_text(qv_arena *arena, const qv_blip *model, size_t Q, size_t R, size_t keep_from);
/* Scratch of ops->linear and ops->attention in the text half. */
size_t qv_blip_scratch_bytes(const qv_blip *model, const qv_call *call, size_t Q, size_t R);
/* x [R, D] = the sum of the tables for the questions' tokens, before the norm; `spare` [R, D] is overwritten. */
void qv_blip_embed_text(const qv_blip *model, qv_call *call, const qv_blip_text_plan *plan, float *x, float *spare,
                        const qv_blip_questions *questions);

/* What block l attends to in the images, in plan->runs; nothing of text alone, or in a block without cross-attention. */
qv_cross_states qv_blip_cross_of(const qv_blip *model, const qv_blip_text_plan *plan, const qv_blip_questions *questions,
                                 size_t l);
/* The questions as a block takes them: all tokens are queries, or token 0 of each alone. */
qv_sequences qv_blip_sequences(const qv_blip_questions *questions, bool one_query);
/* Whether block l, the last of `end`, has one query a question. */
bool qv_blip_one_query(const qv_blip *model, size_t l, size_t end);
/* Run the text half on the questions' images, or on its own, without queries in front of it. class_rows holds each question's
 * last state of token 0; of a question encoder, h those of all tokens. */
void qv_blip_run_text(const qv_blip *model, qv_call *call, const qv_blip_text_plan *plan,
                      const qv_blip_questions *questions);

#endif
