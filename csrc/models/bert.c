/* The BERT encoder (Devlin et al., arXiv 1810.04805), and RoBERTa (Liu et al., arXiv 1907.11692).
 *
 *  1. x [M, D] = layer_norm(word[ids] + position[0 .. M) + token_type[0]), the last one where the weights have it;
 *     RoBERTa's positions are pad_id + the number of tokens so far that are not pad_id, and pad_id at those that are
 *  2. each block: q, k, v = W x + b
 *  3.             x = layer_norm(x + o(softmax(q k^T / sqrt(d), padding masked) v))
 *  4.             x = layer_norm(x + output(act(hidden(x)))); act is the exact gelu unless the config says otherwise
 *  5. out = x
 */
#include "models/bert.h"

#include <math.h>

typedef struct {
    qv_text_encoder base;
    qv_bert_config config;
    qv_tensor words;       /* [vocab_size, D] */
    qv_tensor positions;   /* [positions, D] */
    qv_tensor token_types; /* [types, D]; data NULL: none */
    qv_norm embedding_norm;
} bert_encoder;

/* positions [B, M] as rows of the position table */
static void number_positions(const qv_bert_config *config, int32_t *positions, const qv_text_batch *batch) {
    for (size_t b = 0; b < batch->B; b++) {
        size_t seen = 0;
        for (size_t m = 0; m < batch->M; m++) {
            size_t i = b * batch->M + m, position = m;
            if (config->roberta) {
                bool pad = (size_t)batch->ids[i] == config->pad_id;
                seen += pad ? 0 : 1;
                position = pad ? config->pad_id : config->pad_id + seen;
            }
            positions[i] = (int32_t)position;
        }
    }
}

static void embed(const bert_encoder *bert, qv_call *call, const qv_text_batch *batch, const qv_text_activations *a,
                  int32_t *positions, int32_t *types) {
    size_t R = batch->B * batch->M, D = bert->base.width;
    const qv_tensor *tables[3] = {&bert->words, &bert->positions, &bert->token_types};
    const int32_t *ids[3] = {batch->ids, positions, types};
    number_positions(&bert->config, positions, batch);
    for (size_t i = 0; i < R; i++) {
        types[i] = 0;
    }
    qv_text_embed(&bert->base, call, a, tables, ids, bert->token_types.data != NULL ? 3 : 2, R);
    call->ops->norm(call, (qv_rows){a->x, D}, (qv_const_rows){a->x, D}, &bert->embedding_norm, R);
}

/* The norms follow the sums: x is the input of a sublayer, `normed` the sum that its norm brings back to x. */
static void run_block(const bert_encoder *bert, const qv_text_block *block, qv_call *call, const qv_text_batch *batch,
                      const qv_text_activations *a) {
    const qv_text_config *c = &bert->config.sizes;
    const qv_ops *ops = call->ops;
    size_t R = batch->B * batch->M, D = c->D, F = c->F;
    qv_epilogue add_x = {.residual = {a->x, D}}, activate = {.activation = c->activation};
    qv_rows x = {a->x, D}, sum = {a->normed, D}, hidden = {a->hidden, F};

    ops->linear(call, (qv_rows){a->qkv, 3 * D}, qv_as_const(x), &block->qkv, 0, 3 * D, NULL, R);
    qv_text_self_attention(&bert->base, call, batch, a, 1.0f / sqrtf((float)bert->base.d), NULL, false);
    ops->linear(call, sum, (qv_const_rows){a->attended, D}, &block->o, 0, D, &add_x, R);
    ops->norm(call, x, qv_as_const(sum), &block->attention_norm, R);

    ops->linear(call, hidden, qv_as_const(x), &block->hidden, 0, F, &activate, R);
    ops->linear(call, sum, qv_as_const(hidden), &block->output, 0, D, &add_x, R);
    ops->norm(call, x, qv_as_const(sum), &block->feed_forward_norm, R);
}

static qv_status forward(const qv_text_encoder *encoder, qv_call *call, const qv_text_batch *batch, qv_arena *arena,
                         const float **states, qv_error *err) {
    (void)err;
    const bert_encoder *bert = (const bert_encoder *)encoder;
    size_t R = batch->B * batch->M;
    qv_text_activations a = qv_text_plan(encoder, batch, arena);
    int32_t *positions = qv_arena_take_host(arena, R, sizeof *positions);
    int32_t *types = qv_arena_take_host(arena, R, sizeof *types);
    if (arena->base == NULL) {
        return QV_OK;
    }
    embed(bert, call, batch, &a, positions, types);
    for (size_t n = 0; n < encoder->L; n++) {
        run_block(bert, &encoder->blocks[n], call, batch, &a);
    }
    *states = a.x;
    return QV_OK;
}

static void free_own(qv_text_encoder *encoder) {
    bert_encoder *bert = (bert_encoder *)encoder;
    qv_norm_free(encoder->ops, &bert->embedding_norm);
}

static const qv_text_architecture architecture = {"BertEncoder", forward, free_own};

qv_status qv_bert_load(qv_text_encoder **encoder, const qv_bert_config *config, qv_weights *weights, const char *prefix,
                       qv_precision precision, const qv_ops *ops, qv_error *err) {
    static const qv_text_names names = {
        .words = "embeddings.word_embeddings.weight",
        .positions = "embeddings.position_embeddings.weight",
        .block = "encoder.layer.",
        .qkv = {"attention.self.query", "attention.self.key", "attention.self.value"},
        .o = "attention.output.dense",
        .hidden = "intermediate.dense",
        .output = "output.dense",
        .attention_norm = "attention.output.LayerNorm",
        .feed_forward_norm = "output.LayerNorm",
    };
    qv_text_loader loader = {weights, prefix, ops, precision, QV_OK, err};
    qv_text_config c = config->sizes;
    *encoder = NULL;
    qv_status status = qv_text_complete_config(&loader, &c, "BertEncoder", &names);
    if (status != QV_OK) {
        return status;
    }
    size_t unused = config->roberta ? config->pad_id + 1 : 0, types = 0;
    if (c.positions <= unused) {
        return qv_fail(err, QV_ERR_VALUE,
                       "BertEncoder: max_position_embeddings %zu leave no position behind pad_token_id %zu",
                       c.positions, config->pad_id);
    }
    bert_encoder *bert = qv_text_create(sizeof *bert, &architecture, ops, &c, err);
    if (bert == NULL) {
        return err->code;
    }
    bert->config = *config;
    bert->config.sizes = c;
    bert->base.max_tokens = c.positions - unused;
    qv_text_table(&loader, &bert->words, names.words, c.vocab_size, c.D);
    qv_text_table(&loader, &bert->positions, names.positions, c.positions, c.D);
    qv_text_infer_size(&loader, &types, "embeddings.token_type_embeddings.weight", 0);
    if (types != 0) {
        qv_text_table(&loader, &bert->token_types, "embeddings.token_type_embeddings.weight", types, c.D);
    }
    qv_text_load_norm(&loader, &bert->embedding_norm, "embeddings.", "LayerNorm", c.D, c.eps);
    for (size_t n = 0; n < c.L; n++) {
        qv_text_load_block(&loader, &bert->base.blocks[n], &c, &names, n);
    }
    return qv_text_finish_load(encoder, &bert->base, &loader);
}
