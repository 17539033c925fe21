/* BERT and RoBERTa. */
#ifndef QV_MODELS_BERT_H
#define QV_MODELS_BERT_H

#include "models/text_encoder.h"

typedef struct {
    qv_text_config sizes;
    bool roberta;  /* positions count tokens other than pad_id, from pad_id + 1 on */
    size_t pad_id;
} qv_bert_config;

/* The names of a block in Hugging Face's BertModel, with cross-attention as BLIP calls it. */
extern const qv_block_names qv_bert_block_names;

/* Weights are named as in Hugging Face's BertModel and RobertaModel, behind the loader's prefix; token types are optional,
 * and all tokens are of type 0. text_projection.weight [E, D] beside it is optional. */
qv_status qv_bert_load(qv_text_encoder **encoder, const qv_bert_config *config, qv_loader *loader);

#endif
