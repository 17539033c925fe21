/* CLIP's text encoder, and SigLIP's. */
#ifndef QV_MODELS_CLIP_TEXT_H
#define QV_MODELS_CLIP_TEXT_H

#include "models/text_encoder.h"

typedef struct {
    qv_text_config sizes;
    size_t end_id; /* the end-of-text token; 2, the value of early configs, means the largest id of the row */
    bool causal;
    qv_text_pooling pooling; /* at the end or the last */
} qv_clip_text_config;

/* Weights are named as in Hugging Face's CLIPTextModel, with the loader's prefix in place of its "text_model.";
 * text_projection.weight [E, D] beside it is optional, and so is its bias. */
qv_status qv_clip_text_load(qv_text_encoder **encoder, const qv_clip_text_config *config, qv_loader *loader);

#endif
