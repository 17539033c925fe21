/* The T5 encoder (Raffel et al., JMLR 21 (2020) 140; the gated form: Shazeer, arXiv 2002.05202).
 *
 *  1. x [M, D] = shared[ids]; there are no absolute positions
 *  2. bias [H, M, M] = relative_attention_bias[bucket(key - query)], from block 0, added to every block's scores
 *  3. each block: h = rms_norm(x); q, k, v = W h, without bias, [M, H d] with H d not necessarily D
 *  4.             x += o(softmax(q k^T + bias) v); the scores are not divided by sqrt(d)
 *  5.             h = rms_norm(x)
 *  6.             x += wo(gelu_tanh(wi_0 h) * wi_1 h), or wo(relu(wi h)) in the 1.0 models
 *  7. out = rms_norm(x)
 *
 * In QA-ViT (amazon-science/QA-ViT) it also runs over a picture's tokens, each through translation_mlp, and words behind
 * them, which then are rows of embed_tokens.
 */
#include "models/t5.h"

#include <math.h>
#include <stdio.h>

#define MAX_BUCKETS ((size_t)1 << 16)
#define BIAS_NAME "layer.0.SelfAttention.relative_attention_bias.weight"

static const qv_t5_half encoder_half = {
    .what = "T5Encoder",
    .words = "shared.weight",
    .blocks = "encoder.block.",
    .names = {
        .norm1 = "layer.0.layer_norm",
        .qkv = {"layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v"},
        .out = "layer.0.SelfAttention.o",
        .hidden = {"layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1"},
        .output = "layer.1.DenseReluDense.wo",
        .norm2 = "layer.1.layer_norm",
        .qkv_bias = QV_NO_BIAS,
        .bias = QV_NO_BIAS,
    },
    .hidden = "layer.1.DenseReluDense.wi",
    .both_ways = true,
};

/* The bucket of an offset key - query. Where keys after the query are seen, half of the buckets are theirs. Of each half, half
 * are for exact distances and half for logarithmic ranges up to max_distance. */
static size_t offset_bucket(const qv_t5_config *config, bool both_ways, ptrdiff_t offset) {
    size_t half = both_ways ? config->buckets / 2 : config->buckets, exact = half / 2;
    size_t first = both_ways && offset > 0 ? half : 0;
    size_t distance = (size_t)(offset < 0 ? -offset : both_ways ? offset : 0);
    if (distance < exact) {
        return first + distance;
    }
    float range = (float)log((double)config->max_distance / (double)exact);
    float position = logf((float)distance / (float)exact) / range * (float)(half - exact);
    size_t bucket = exact + (size_t)position;
    return first + (bucket < half ? bucket : half - 1);
}

void qv_t5_load_bias(qv_loader *loader, qv_vector *bias, const qv_t5_config *c, const qv_t5_half *half) {
    char stem[64];
    snprintf(stem, sizeof stem, "%s0.", half->blocks);
    const qv_tensor *table = qv_load_tensor(loader, stem, BIAS_NAME, c->buckets, c->num_heads);
    size_t offsets = 2 * c->max_distance + 1, H = c->num_heads;
    float *values = table != NULL ? qv_load_allocate(loader, H * offsets, sizeof *values, table->name) : NULL;
    if (values == NULL) {
        return;
    }
    for (size_t h = 0; h < H; h++) {
        for (size_t i = 0; i < offsets; i++) {
            size_t bucket = offset_bucket(c, half->both_ways, (ptrdiff_t)i - (ptrdiff_t)c->max_distance);
            qv_tensor_read(values + h * offsets + i, table, bucket * H + h, 1);
        }
    }
    loader->status = qv_vector_copy(loader->ops, bias, values, H * offsets, table->name, loader->err);
    qv_free(values);
}

qv_status qv_t5_complete_config(qv_loader *loader, qv_t5_config *c, const qv_t5_half *half) {
    char stem[64], norm[64];
    snprintf(stem, sizeof stem, "%s0.", half->blocks);
    snprintf(norm, sizeof norm, "%s.weight", half->names.norm1);
    char output[64];
    snprintf(output, sizeof output, "%s.weight", half->names.output);
    size_t heads = qv_load_size(loader, stem, BIAS_NAME, 1), known = c->num_heads != 0 ? c->num_heads : heads;
    size_t inner = qv_load_size(loader, stem, "layer.0.SelfAttention.q.weight", 0);
    const qv_found_size sizes[] = {
        {"vocab_size", &c->vocab_size, qv_load_size(loader, "", half->words, 0)},
        {"d_model", &c->d_model, qv_load_size(loader, "", half->words, 1)},
        {"num_heads", &c->num_heads, heads},
        {"d_kv", &c->d_kv, known != 0 ? inner / known : 0},
        {"d_ff", &c->d_ff, qv_load_size(loader, stem, output, 1)},
        {half->both_ways ? "num_layers" : "num_decoder_layers", &c->num_layers, qv_load_count(loader, half->blocks, norm)},
        {"relative_attention_num_buckets", &c->buckets, qv_load_size(loader, stem, BIAS_NAME, 0)},
    };
    qv_status status = qv_load_sizes(loader, half->what, sizes, sizeof sizes / sizeof sizes[0]);
    size_t exact = c->buckets / (half->both_ways ? 4 : 2);
    if (status == QV_OK &&
        (c->buckets < 4 || c->buckets > MAX_BUCKETS || c->max_distance <= exact || c->max_distance > MAX_BUCKETS)) {
        return qv_fail(loader->err, QV_ERR_VALUE,
                       "%s: relative_attention_num_buckets %zu and relative_attention_max_distance %zu, expected at least 4 "
                       "buckets and a distance above the %zu that have one each (both at most %zu)",
                       half->what, c->buckets, c->max_distance, exact, MAX_BUCKETS);
    }
    return status;
}

qv_block_kind qv_t5_block_kind(const qv_t5_config *c) {
    return (qv_block_kind){
        .D = c->d_model, .H = c->num_heads, .d = c->d_kv, .F = c->d_ff, .norm_first = true, .gated = c->gated,
        .norm = QV_RMS_NORM, .eps = c->eps, .scale = 1.0f, .activation = c->activation,
    };
}

qv_block_names qv_t5_block_names(const qv_t5_config *c, const qv_t5_half *half) {
    qv_block_names names = half->names;
    names.hidden[0] = c->gated ? names.hidden[0] : half->hidden;
    return names;
}

static void load_picture(qv_loader *loader, qv_text_encoder *t5, const qv_t5_config *c) {
    static const char in[] = "translation_mlp.layers.0", *const names[] = {in, "translation_mlp.layers.1"};
    t5->picture_width = qv_load_size(loader, in, ".weight", 1);
    if (t5->picture_width != 0) {
        qv_load_table(loader, &t5->input_words, "encoder.embed_tokens.weight", c->vocab_size, c->d_model);
        qv_load_linear(loader, &t5->picture_in, "", &names[0], 1, c->d_model, t5->picture_width, QV_BIAS);
        qv_load_linear(loader, &t5->picture_out, "", &names[1], 1, c->d_model, c->d_model, QV_BIAS);
    }
}

qv_status qv_t5_load(qv_text_encoder **encoder, const qv_t5_config *config, qv_loader *loader) {
    const qv_t5_half *half = &encoder_half;
    qv_t5_config c = *config;
    *encoder = NULL;
    qv_status status = qv_t5_complete_config(loader, &c, half);
    if (status != QV_OK) {
        return status;
    }
    const qv_block_kind kind = qv_t5_block_kind(&c);
    const qv_block_names names = qv_t5_block_names(&c, half);
    qv_text_encoder *t5 = qv_text_create(loader, half->what, &kind, c.num_layers, c.vocab_size);
    if (t5 == NULL) {
        return loader->status;
    }
    t5->reach = c.max_distance;
    qv_load_table(loader, &t5->words, half->words, c.vocab_size, c.d_model);
    qv_blocks_load(loader, t5->blocks, t5->L, &t5->kind, &names, half->blocks);
    qv_load_norm(loader, &t5->final_norm, "encoder.", "final_layer_norm", QV_RMS_NORM, c.d_model, c.eps);
    qv_t5_load_bias(loader, &t5->offset_bias, &c, half);
    load_picture(loader, t5, &c);
    return qv_text_finish_load(encoder, t5, loader);
}
