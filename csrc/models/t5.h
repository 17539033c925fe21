/* The encoder of T5: of the 1.0 models (relu) and of 1.1 and flan-T5 (gated gelu). */
#ifndef QV_MODELS_T5_H
#define QV_MODELS_T5_H

#include "models/text_encoder.h"

/* Sizes may be 0: then the weights say. */
typedef struct {
    size_t vocab_size;
    size_t d_model; /* D */
    size_t d_kv;    /* d; H d need not be D */
    size_t d_ff;    /* F */
    size_t num_heads;
    size_t num_layers;
    size_t buckets;      /* of relative positions, both directions together */
    size_t max_distance; /* from here on all distances share a bucket */
    qv_activation activation;
    bool gated;
    float eps;
} qv_t5_config;

/* Weights are named as in Hugging Face's T5EncoderModel, behind the loader's prefix; with those of QA-ViT's
 * translation_mlp it takes pictures, too. */
qv_status qv_t5_load(qv_text_encoder **encoder, const qv_t5_config *config, qv_loader *loader);

#endif
