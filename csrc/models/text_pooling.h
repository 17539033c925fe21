/* One state a text out of a text encoder, and its embedding beside a picture's. */
#ifndef QV_MODELS_TEXT_POOLING_H
#define QV_MODELS_TEXT_POOLING_H

#include "models/text_encoder.h"

/* out [B, D] = the state that stands for each row, else as qv_text_encode. QV_ERR_VALUE for a row without its token. */
qv_status qv_text_pooled(qv_text_encoder *encoder, qv_call *call, float *out, const int64_t *ids, const int64_t *mask,
                         size_t B, size_t M, qv_error *err);
/* out [B, E] = text_projection of it, the text's embedding before it is normalised. */
qv_status qv_text_projected(qv_text_encoder *encoder, qv_call *call, float *out, const int64_t *ids,
                            const int64_t *mask, size_t B, size_t M, qv_error *err);

#endif
