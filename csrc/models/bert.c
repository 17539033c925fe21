/* The BERT encoder (Devlin et al., arXiv 1810.04805), and RoBERTa (Liu et al., arXiv 1907.11692).
 *
 *  1. x [M, D] = layer_norm(word[ids] + position[0 .. M) + token_type[0]), the last one where the weights have it;
 *     RoBERTa's positions are pad_id + the number of tokens so far that are not pad_id, and pad_id at those that are
 *  2. each block: q, k, v = W x + b
 *  3.             x = layer_norm(x + o(softmax(q k^T / sqrt(d)) v))
 *  4.             x = layer_norm(x + output(act(hidden(x)))); act is the exact gelu unless the config says otherwise
 *  5. out = x
 *  6. ChineseCLIP (arXiv 2211.01335): pooled = out at the first token; embedding = text_projection(pooled)
 */
#include "models/bert.h"

#include <math.h>

const qv_block_names qv_bert_block_names = {
    .norm1 = "attention.output.LayerNorm",
    .qkv = {"attention.self.query", "attention.self.key", "attention.self.value"},
    .out = "attention.output.dense",
    .cross_norm = "crossattention.output.LayerNorm",
    .cross_q = "crossattention.self.query",
    .cross_kv = {"crossattention.self.key", "crossattention.self.value"},
    .cross_out = "crossattention.output.dense",
    .hidden = {"intermediate.dense"},
    .output = "output.dense",
    .norm2 = "output.LayerNorm",
};

qv_status qv_bert_load(qv_text_encoder **encoder, const qv_bert_config *config, qv_loader *loader) {
    static const char words[] = "embeddings.word_embeddings.weight", blocks[] = "encoder.layer.";
    static const char positions[] = "embeddings.position_embeddings.weight";
    static const char token_types[] = "embeddings.token_type_embeddings.weight";
    qv_text_config c = config->sizes;
    *encoder = NULL;
    qv_status status =
        qv_text_complete_config(loader, &c, "BertEncoder", words, positions, blocks, &qv_bert_block_names);
    if (status != QV_OK) {
        return status;
    }
    size_t unused = config->roberta ? config->pad_id + 1 : 0, types = qv_load_size(loader, "", token_types, 0);
    if (c.positions <= unused) {
        return qv_fail(loader->err, QV_ERR_VALUE,
                       "BertEncoder: max_position_embeddings %zu leave no position behind pad_token_id %zu",
                       c.positions, config->pad_id);
    }
    const qv_block_kind kind = {
        .D = c.D, .H = c.H, .d = c.D / c.H, .F = c.F, .eps = c.eps, .activation = c.activation,
        .scale = 1.0f / sqrtf((float)(c.D / c.H)),
    };
    qv_text_encoder *bert = qv_text_create(loader, "BertEncoder", &kind, c.L, c.vocab_size);
    if (bert == NULL) {
        return loader->status;
    }
    bert->skips_padding = config->roberta;
    bert->pad_id = config->pad_id;
    bert->max_tokens = c.positions - unused;
    bert->pooling = QV_TEXT_POOL_FIRST;
    qv_load_table(loader, &bert->words, words, c.vocab_size, c.D);
    qv_load_table(loader, &bert->positions, positions, c.positions, c.D);
    if (types != 0) {
        qv_load_table(loader, &bert->token_types, token_types, types, c.D);
    }
    qv_load_norm(loader, &bert->embedding_norm, "embeddings.", "LayerNorm", QV_LAYER_NORM, c.D, c.eps);
    qv_blocks_load(loader, bert->blocks, bert->L, &bert->kind, &qv_bert_block_names, blocks);
    qv_load_next_block(loader);
    qv_load_beside(loader, &bert->projection, "text_model.", "text_projection", c.D);
    return qv_text_finish_load(encoder, bert, loader);
}
