/* The T5 encoder (Raffel et al., JMLR 21 (2020) 140; the gated form: Shazeer, arXiv 2002.05202).
 *
 *  1. x [M, D] = shared[ids]; there are no absolute positions
 *  2. bias [H, M, M] = relative_attention_bias[bucket(key - query)], from block 0, added to every block's scores
 *  3. each block: h = rms_norm(x); q, k, v = W h, without bias, [M, H d] with H d not necessarily D
 *  4.             x += o(softmax(q k^T + bias, padding masked) v); the scores are not divided by sqrt(d)
 *  5.             h = rms_norm(x)
 *  6.             x += wo(gelu_tanh(wi_0 h) * wi_1 h), or wo(relu(wi h)) in the 1.0 models
 *  7. out = rms_norm(x)
 */
#include "models/t5.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define MAX_BUCKETS ((size_t)1 << 16)

typedef struct {
    qv_text_encoder base;
    qv_t5_config config;
    qv_tensor shared;     /* [vocab_size, D] */
    qv_vector offset_bias; /* [H, 2 max_distance + 1]: the bias at key - query = -max_distance .. max_distance */
    qv_vector final_norm; /* [D] */
} t5_encoder;

/* Beside what every encoder works on. */
typedef struct {
    float *gate; /* [R, F]; the gated form only */
    float *bias; /* [H, M, M] */
} t5_activations;

/* The bucket of an offset key - query: half of them for keys after the query; of each half, half for exact distances
 * and half for logarithmic ranges up to max_distance. */
static size_t offset_bucket(const qv_t5_config *config, ptrdiff_t offset) {
    size_t half = config->buckets / 2, exact = half / 2;
    size_t first = offset > 0 ? half : 0, distance = (size_t)(offset < 0 ? -offset : offset);
    if (distance < exact) {
        return first + distance;
    }
    float range = (float)log((double)config->max_distance / (double)exact);
    float position = logf((float)distance / (float)exact) / range * (float)(half - exact);
    size_t bucket = exact + (size_t)position;
    return first + (bucket < half ? bucket : half - 1);
}

/* table [buckets, H] -> offset_bias [H, 2 max_distance + 1] */
static qv_status prepare_bias(t5_encoder *t5, const qv_tensor *table, qv_error *err) {
    const qv_t5_config *c = &t5->config;
    size_t offsets = 2 * c->max_distance + 1;
    float *bias = qv_allocate(c->num_heads * offsets, sizeof *bias);
    if (bias == NULL) {
        return qv_fail_memory(err, "the relative position bias");
    }
    for (size_t h = 0; h < c->num_heads; h++) {
        for (size_t i = 0; i < offsets; i++) {
            size_t bucket = offset_bucket(c, (ptrdiff_t)i - (ptrdiff_t)c->max_distance);
            qv_tensor_read(bias + h * offsets + i, table, bucket * c->num_heads + h, 1);
        }
    }
    qv_status status = qv_vector_copy(t5->base.ops, &t5->offset_bias, bias, c->num_heads * offsets, table->name, err);
    qv_free(bias);
    return status;
}

/* Returns early, with x unfinished, when the call is to stop; the caller sees that it is. */
static void run_block(const t5_encoder *t5, const qv_text_block *block, qv_call *call, const qv_text_batch *batch,
                      const qv_text_activations *a, const t5_activations *own) {
    const qv_t5_config *c = &t5->config;
    const qv_ops *ops = call->ops;
    size_t R = batch->B * batch->M, D = c->d_model, F = c->d_ff, inner = c->num_heads * c->d_kv;
    qv_epilogue add_to_x = {.residual = a->x, .ld_residual = D};

    ops->rms_norm(call, a->normed, D, a->x, D, block->attention_norm.weight.data, c->eps, R, D);
    ops->linear(call, a->qkv, 3 * inner, a->normed, D, &block->qkv, 0, 3 * inner, NULL, R);
    if (qv_call_stopped(call)) {
        return;
    }
    qv_text_self_attention(&t5->base, call, batch, a, 1.0f, own->bias, false);
    ops->linear(call, a->x, D, a->attended, inner, &block->o, 0, D, &add_to_x, R);
    if (qv_call_stopped(call)) {
        return;
    }

    ops->rms_norm(call, a->normed, D, a->x, D, block->feed_forward_norm.weight.data, c->eps, R, D);
    qv_epilogue activate = {.activation = c->activation};
    if (c->gated) {
        ops->linear(call, own->gate, F, a->normed, D, &block->hidden, F, F, NULL, R);
        activate.multiply = own->gate;
        activate.ld_multiply = F;
    }
    ops->linear(call, a->hidden, F, a->normed, D, &block->hidden, 0, F, &activate, R);
    if (qv_call_stopped(call)) {
        return;
    }
    ops->linear(call, a->x, D, a->hidden, F, &block->output, 0, D, &add_to_x, R);
}

static qv_status forward(const qv_text_encoder *encoder, qv_call *call, const qv_text_batch *batch, qv_arena *arena,
                         const float **states, qv_error *err) {
    const t5_encoder *t5 = (const t5_encoder *)encoder;
    const qv_t5_config *c = &t5->config;
    size_t R = batch->B * batch->M, M = batch->M, D = c->d_model;
    qv_text_activations a = qv_text_plan(encoder, batch, arena);
    t5_activations own;
    own.gate = qv_arena_floats(arena, c->gated ? R * c->d_ff : 0);
    own.bias = qv_arena_floats(arena, c->num_heads * M * M);
    if (arena->base == NULL) {
        return QV_OK;
    }
    call->ops->embedding(call, a.x, &t5->shared, batch->ids, NULL, R, D);
    call->ops->relative_bias(call, own.bias, t5->offset_bias.data, c->max_distance, c->num_heads, M);
    for (size_t n = 0; n < c->num_layers; n++) {
        QV_CHECK_STOPPED(call, err);
        run_block(t5, &encoder->blocks[n], call, batch, &a, &own);
    }
    QV_CHECK_STOPPED(call, err);
    call->ops->rms_norm(call, a.normed, D, a.x, D, t5->final_norm.data, c->eps, R, D);
    *states = a.normed;
    return QV_OK;
}

static void free_own(qv_text_encoder *encoder) {
    t5_encoder *t5 = (t5_encoder *)encoder;
    qv_vector_free(encoder->ops, &t5->offset_bias);
    qv_vector_free(encoder->ops, &t5->final_norm);
}

static const qv_text_architecture architecture = {"T5Encoder", forward, free_own};

#define BIAS_NAME "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"

/* Fill the sizes that the config leaves open, and refuse what no T5 has. */
static qv_status complete_config(qv_t5_config *c, const qv_text_loader *loader, qv_error *err) {
    qv_text_infer_size(loader, &c->vocab_size, "shared.weight", 0);
    qv_text_infer_size(loader, &c->d_model, "shared.weight", 1);
    qv_text_infer_size(loader, &c->buckets, BIAS_NAME, 0);
    qv_text_infer_size(loader, &c->num_heads, BIAS_NAME, 1);
    qv_text_infer_size(loader, &c->d_ff, "encoder.block.0.layer.1.DenseReluDense.wo.weight", 1);
    qv_text_infer_blocks(loader, &c->num_layers, "encoder.block.", "layer.0.layer_norm.weight");
    if (c->d_kv == 0 && c->num_heads != 0) {
        size_t inner = 0;
        qv_text_infer_size(loader, &inner, "encoder.block.0.layer.0.SelfAttention.q.weight", 0);
        c->d_kv = inner / c->num_heads;
    }
    if (c->vocab_size == 0 || c->d_model == 0 || c->num_heads == 0 || c->d_kv == 0 || c->d_ff == 0 ||
        c->num_layers == 0) {
        return qv_fail(err, QV_ERR_VALUE,
                       "T5Encoder: neither config nor weights (names behind '%s') say all of vocab_size (%zu), d_model "
                       "(%zu), num_heads (%zu), d_kv (%zu), d_ff (%zu), num_layers (%zu)",
                       loader->prefix, c->vocab_size, c->d_model, c->num_heads, c->d_kv, c->d_ff, c->num_layers);
    }
    if (c->buckets < 4 || c->buckets > MAX_BUCKETS || c->max_distance <= c->buckets / 4 ||
        c->max_distance > MAX_BUCKETS) {
        return qv_fail(err, QV_ERR_VALUE,
                       "T5Encoder: relative_attention_num_buckets %zu and relative_attention_max_distance %zu, "
                       "expected at least 4 buckets and a distance above a quarter of them (both at most %zu)",
                       c->buckets, c->max_distance, MAX_BUCKETS);
    }
    return QV_OK;
}

static void load_block(qv_text_block *block, const qv_t5_config *c, qv_text_loader *loader, size_t n) {
    static const char *const qkv[] = {"q", "k", "v"}, *const o[] = {"o"}, *const wo[] = {"wo"};
    static const char *const plain[] = {"wi"}, *const gated[] = {"wi_0", "wi_1"};
    size_t inner = c->num_heads * c->d_kv;
    char stem[96];
    if (loader->status == QV_OK) {
        loader->status = qv_next_block(loader->ops, loader->err);
    }
    snprintf(stem, sizeof stem, "encoder.block.%zu.layer.0.", n);
    qv_text_vector(loader, &block->attention_norm.weight, stem, "layer_norm.weight", c->d_model);
    snprintf(stem, sizeof stem, "encoder.block.%zu.layer.0.SelfAttention.", n);
    qv_text_linear(loader, &block->qkv, stem, qkv, 3, inner, c->d_model, false);
    qv_text_linear(loader, &block->o, stem, o, 1, c->d_model, inner, false);
    snprintf(stem, sizeof stem, "encoder.block.%zu.layer.1.", n);
    qv_text_vector(loader, &block->feed_forward_norm.weight, stem, "layer_norm.weight", c->d_model);
    snprintf(stem, sizeof stem, "encoder.block.%zu.layer.1.DenseReluDense.", n);
    qv_text_linear(loader, &block->hidden, stem, c->gated ? gated : plain, c->gated ? 2 : 1, c->d_ff, c->d_model,
                   false);
    qv_text_linear(loader, &block->output, stem, wo, 1, c->d_model, c->d_ff, false);
}

qv_status qv_t5_load(qv_text_encoder **encoder, const qv_t5_config *config, qv_weights *weights, const char *prefix,
                     qv_precision precision, const qv_ops *ops, qv_error *err) {
    qv_text_loader loader = {weights, prefix, ops, precision, QV_OK, err};
    qv_t5_config c = *config;
    *encoder = NULL;
    qv_status status = complete_config(&c, &loader, err);
    if (status != QV_OK) {
        return status;
    }
    qv_text_config sizes = {
        .vocab_size = c.vocab_size, .D = c.d_model, .H = c.num_heads, .F = c.d_ff, .L = c.num_layers,
    };
    t5_encoder *t5 = qv_text_create(sizeof *t5, &architecture, ops, &sizes, err);
    if (t5 == NULL) {
        return err->code;
    }
    t5->config = c;
    t5->base.d = c.d_kv;
    qv_text_table(&loader, &t5->shared, "shared.weight", c.vocab_size, c.d_model);
    const qv_tensor *bias = qv_text_tensor(&loader, BIAS_NAME, "", c.buckets, c.num_heads);
    for (size_t n = 0; n < c.num_layers; n++) {
        load_block(&t5->base.blocks[n], &c, &loader, n);
    }
    qv_text_vector(&loader, &t5->final_norm, "encoder.", "final_layer_norm.weight", c.d_model);
    if (loader.status == QV_OK && bias != NULL) {
        loader.status = prepare_bias(t5, bias, err);
    }
    return qv_text_finish_load(encoder, &t5->base, &loader);
}
