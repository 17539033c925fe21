/* CLIP's text encoder. */
#ifndef QV_MODELS_CLIP_TEXT_H
#define QV_MODELS_CLIP_TEXT_H

#include "models/text_encoder.h"

typedef struct {
    qv_text_config sizes;
    size_t end_id; /* the end-of-text token; 2, the value of early configs, means the largest id of the row */
} qv_clip_text_config;

/* Weights are named as in Hugging Face's CLIPTextModel, with the loader's prefix in place of its "text_model.";
 * text_projection.weight [E, D] is optional. */
qv_status qv_clip_text_load(qv_text_encoder **encoder, const qv_clip_text_config *config, qv_loader *loader);

/* E, or 0 where the weights have no text_projection. */
size_t qv_clip_text_projection_width(const qv_text_encoder *encoder);
/* out [B, D] = the state at each row's end-of-text token, else as qv_text_encode. */
qv_status qv_clip_text_pooled(qv_text_encoder *encoder, qv_call *call, float *out, const int64_t *ids,
                              const int64_t *mask, size_t B, size_t M, qv_error *err);
/* out [B, E] = text_projection of it, CLIP's text embedding before it is normalised. */
qv_status qv_clip_text_projected(qv_text_encoder *encoder, qv_call *call, float *out, const int64_t *ids,
                                 const int64_t *mask, size_t B, size_t M, qv_error *err);

#endif
