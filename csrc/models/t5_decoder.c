/* The decoder of T5 (Raffel et al., JMLR 21 (2020) 140): RMS norms first, relative positions shared by all blocks, of keys before
 * the query alone; the head is the word table (1.0), on states times d_model^-1/2, or its own (1.1, flan-T5). */
#include "models/decoder.h"

#include <math.h>

static const qv_t5_half decoder_half = {
    .what = "T5Decoder",
    .words = "shared.weight",
    .blocks = "decoder.block.",
    .names = {
        .norm1 = "layer.0.layer_norm",
        .qkv = {"layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v"},
        .out = "layer.0.SelfAttention.o",
        .cross_norm = "layer.1.layer_norm",
        .cross_q = "layer.1.EncDecAttention.q",
        .cross_kv = {"layer.1.EncDecAttention.k", "layer.1.EncDecAttention.v"},
        .cross_out = "layer.1.EncDecAttention.o",
        .hidden = {"layer.2.DenseReluDense.wi_0", "layer.2.DenseReluDense.wi_1"},
        .output = "layer.2.DenseReluDense.wo",
        .norm2 = "layer.2.layer_norm",
        .qkv_bias = QV_NO_BIAS,
        .bias = QV_NO_BIAS,
    },
    .hidden = "layer.2.DenseReluDense.wi",
};

/* The final norm; a tied head's factor goes into its weight. */
static void load_final_norm(qv_decoder *t5, qv_loader *loader, const qv_t5_decoder_config *c) {
    static const char name[] = "decoder.final_layer_norm.weight";
    size_t D = c->sizes.d_model;
    t5->final_norm = (qv_norm){.kind = QV_RMS_NORM, .D = D, .eps = c->sizes.eps};
    if (!c->tied) {
        qv_load_vector(loader, &t5->final_norm.weight, "", name, D, 0);
        return;
    }
    const qv_tensor *tensor = qv_load_tensor(loader, "", name, D, 0);
    float *weight = tensor != NULL ? qv_load_allocate(loader, D, sizeof *weight, name) : NULL;
    if (weight == NULL) {
        return;
    }
    qv_tensor_read(weight, tensor, 0, D);
    for (size_t i = 0; i < D; i++) {
        weight[i] /= sqrtf((float)D);
    }
    loader->status = qv_vector_copy(loader->ops, &t5->final_norm.weight, weight, D, name, loader->err);
    qv_free(weight);
}

qv_status qv_t5_decoder_load(qv_decoder **decoder, const qv_t5_decoder_config *config, qv_loader *loader) {
    qv_t5_decoder_config c = *config;
    qv_t5_half half = decoder_half;
    *decoder = NULL;
    if (qv_load_has(loader, "", "decoder.embed_tokens.weight")) {
        half.words = "decoder.embed_tokens.weight";
    }
    qv_status status = qv_t5_complete_config(loader, &c.sizes, &half);
    if (status != QV_OK) {
        return status;
    }
    qv_block_kind kind = qv_t5_block_kind(&c.sizes);
    kind.causal = true;
    kind.cross_width = c.sizes.d_model;
    const qv_block_names names = qv_t5_block_names(&c.sizes, &half);
    size_t V = c.sizes.vocab_size, D = c.sizes.d_model;
    qv_decoder *t5 = qv_decoder_create(loader, half.what, &kind, c.sizes.num_layers, V, &names, half.blocks);
    if (t5 == NULL) {
        return loader->status;
    }
    t5->reach = c.sizes.max_distance;
    qv_load_table(loader, &t5->words, half.words, V, D);
    load_final_norm(t5, loader, &c);
    qv_t5_load_bias(loader, &t5->offset_bias, &c.sizes, &half);
    bool own = !c.tied && qv_load_has(loader, "", "lm_head.weight");
    const qv_linear_source head = {.weight = own ? qv_load_tensor(loader, "", "lm_head.weight", V, D) : &t5->words};
    qv_load_layer(loader, &t5->head, &head, 1);
    return qv_decoder_finish_load(decoder, t5, loader);
}
