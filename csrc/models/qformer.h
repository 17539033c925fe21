/* BLIP-2's Q-Former: learned queries in front of a question's text, which attend to the image for it. */
#ifndef QV_MODELS_QFORMER_H
#define QV_MODELS_QFORMER_H

#include "models/blip_text.h"

/* Run queries and texts on the questions' images; plan->class_rows [Q, D] is the mean of each question's queries, plan->h begins
 * with the queries themselves [Q n, D]. */
void qv_qformer_run(const qv_blip *model, qv_call *call, const qv_blip_text_plan *plan, const qv_blip_questions *questions);
/* After a run that kept the blocks from `block` on: from logits[:, 1] down to what that block's cross-attention gave, whose
 * queries are those of all questions [Q n]. */
void qv_qformer_differentiate(const qv_blip *model, qv_call *call, const qv_blip_text_plan *plan,
                              const qv_block_gradients *gradients, const qv_blip_questions *questions, size_t block);
/* The contrastive head's unit vectors of the queries alone: out [n, projection] */
qv_status qv_qformer_image_features(const qv_blip *model, qv_call *call, float *out, const qv_blip_image *image,
                                    qv_error *err);

#endif
