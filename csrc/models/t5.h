/* The encoder of T5: of the 1.0 models (relu) and of 1.1 and flan-T5 (gated gelu); and what its decoder shares with it. */
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
    size_t buckets;      /* of relative positions; the encoder's of both directions together */
    size_t max_distance; /* from here on all distances share a bucket */
    qv_activation activation;
    bool gated;
    float eps;
} qv_t5_config;

/* Weights are named as in Hugging Face's T5EncoderModel, behind the loader's prefix; with those of QA-ViT's
 * translation_mlp it takes pictures, too. */
qv_status qv_t5_load(qv_text_encoder **encoder, const qv_t5_config *config, qv_loader *loader);

/* Where encoder or decoder stand in the weights. */
typedef struct {
    const char *what, *words, *blocks; /* blocks: in front of a block's number */
    qv_block_names names;              /* of a gated block */
    const char *hidden;                /* of one that is not */
    bool both_ways; /* keys on both sides of a query are seen, each with buckets of its own */
} qv_t5_half;

/* Fill the sizes that the config leaves open, and refuse what no T5 has. */
qv_status qv_t5_complete_config(qv_loader *loader, qv_t5_config *config, const qv_t5_half *half);
qv_block_kind qv_t5_block_kind(const qv_t5_config *config);
qv_block_names qv_t5_block_names(const qv_t5_config *config, const qv_t5_half *half);
/* bias [H, 2 max_distance + 1], of offsets key - query */
void qv_t5_load_bias(qv_loader *loader, qv_vector *bias, const qv_t5_config *config, const qv_t5_half *half);

#endif
