/* What image-text matching says of an image and questions: logits, unit vectors, states. */
#ifndef QV_MODELS_BLIP_HEADS_H
#define QV_MODELS_BLIP_HEADS_H

#include "models/blip_text.h"

/* Run the text half on the questions' images, behind queries where the model has them (qformer.h), or on its own. */
void qv_blip_run(const qv_blip *model, qv_call *call, const qv_blip_text_plan *plan, const qv_blip_questions *questions);

/* logits [Q, 2]: no match, match */
qv_status qv_blip_match(const qv_blip *model, qv_call *call, float *logits, const qv_blip_questions *questions,
                        qv_error *err);
/* Of a question encoder, the states of all tokens: out [R, D] */
qv_status qv_blip_encode_questions(const qv_blip *model, qv_call *call, float *out, const qv_blip_questions *questions,
                                   qv_error *err);
/* The contrastive head's unit vectors, of text alone: out [Q, projection]; QV_ERR_VALUE where the weights have none, here and
 * below */
qv_status qv_blip_text_features(const qv_blip *model, qv_call *call, float *out, const qv_blip_questions *questions,
                                qv_error *err);
/* The contrastive head's unit vector: out [projection]; of each query, where there are any: [queries, projection] */
qv_status qv_blip_image_features(const qv_blip *model, qv_call *call, float *out, const qv_blip_image *image,
                                 qv_error *err);

#endif
