/* BERT as a decoder with cross-attention and its head (BLIP: Li et al., arXiv 2201.12086): norms last, learned positions. */
#include "models/bert.h"
#include "models/decoder.h"

#include <math.h>

#define BLOCKS "bert.encoder.layer."
#define HEAD "cls.predictions."

/* The head's weight and bias; files that tie them to the word table and to the bias beside it may leave either out. */
static void load_head(qv_decoder *bert, qv_loader *loader, size_t V, size_t D) {
    bool own = qv_load_has(loader, HEAD, "decoder.weight"), inside = qv_load_has(loader, HEAD, "decoder.bias");
    const qv_linear_source source = {
        .weight = own ? qv_load_tensor(loader, HEAD, "decoder.weight", V, D) : &bert->words,
        .bias = qv_load_tensor(loader, HEAD, inside ? "decoder.bias" : "bias", V, 0),
    };
    const char *transform = "transform.dense";
    qv_load_linear(loader, &bert->transform, HEAD, &transform, 1, D, D, QV_BIAS);
    qv_load_norm(loader, &bert->transform_norm, HEAD, "transform.LayerNorm", QV_LAYER_NORM, D, bert->kind.eps);
    qv_load_layer(loader, &bert->head, &source, 1);
}

qv_status qv_bert_decoder_load(qv_decoder **decoder, const qv_bert_decoder_config *config, qv_loader *loader) {
    static const char words[] = "bert.embeddings.word_embeddings.weight";
    static const char positions[] = "bert.embeddings.position_embeddings.weight";
    qv_bert_decoder_config c = *config;
    *decoder = NULL;
    qv_status status = qv_text_complete_config(loader, &c.sizes, "BertDecoder", words, positions, BLOCKS, &qv_bert_block_names);
    const qv_found_size width = {"encoder_width", &c.cross_width,
                                 qv_load_size(loader, BLOCKS "0.", "crossattention.self.key.weight", 1)};
    if (status == QV_OK) {
        status = qv_load_sizes(loader, "BertDecoder", &width, 1);
    }
    if (status != QV_OK) {
        return status;
    }
    const qv_text_config *s = &c.sizes;
    const qv_block_kind kind = {
        .D = s->D, .H = s->H, .d = s->D / s->H, .F = s->F, .causal = true, .eps = s->eps, .activation = s->activation,
        .scale = 1.0f / sqrtf((float)(s->D / s->H)), .cross_width = c.cross_width,
    };
    qv_decoder *bert = qv_decoder_create(loader, "BertDecoder", &kind, s->L, s->vocab_size, &qv_bert_block_names, BLOCKS);
    if (bert == NULL) {
        return loader->status;
    }
    bert->max_tokens = s->positions;
    bert->activation = s->activation;
    qv_load_table(loader, &bert->words, words, s->vocab_size, s->D);
    qv_load_table(loader, &bert->positions, positions, s->positions, s->D);
    qv_load_norm(loader, &bert->embedding_norm, "bert.embeddings.", "LayerNorm", QV_LAYER_NORM, s->D, s->eps);
    load_head(bert, loader, s->vocab_size, s->D);
    return qv_decoder_finish_load(decoder, bert, loader);
}
