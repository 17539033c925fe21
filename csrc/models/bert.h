/* BERT and RoBERTa. */
#ifndef QV_MODELS_BERT_H
#define QV_MODELS_BERT_H

#include "models/text_common.h"

typedef struct {
    qv_text_config sizes;
    bool roberta;      /* positions count tokens other than pad_id, from pad_id + 1 on */
    size_t pad_id;
} qv_bert_config;

/* Weights are named as in Hugging Face's BertModel and RobertaModel, behind `prefix`, and are borrowed; token types are
 * optional, and all tokens are of type 0. */
qv_status qv_bert_load(qv_text_encoder **encoder, const qv_bert_config *config, qv_weights *weights, const char *prefix,
                       qv_precision precision, const qv_ops *ops, qv_error *err);

#endif
