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
#define MAX_BLOCKS ((size_t)4096)

typedef struct {
    qv_vector attention_norm, feed_forward_norm; /* [D] */
    qv_linear_weight qkv;                        /* [3 H d, D] */
    qv_linear_weight o;                          /* [D, H d] */
    qv_linear_weight wi;                         /* [2 F, D] gated, else [F, D] */
    qv_linear_weight wo;                         /* [D, F] */
} t5_block;

typedef struct {
    qv_text_encoder base;
    qv_t5_config config;
    qv_tensor shared;      /* [vocab_size, D] */
    float *offset_bias;    /* [H, 2 max_distance + 1]: the bias at key - query = -max_distance .. max_distance */
    t5_block *blocks;      /* [num_layers] */
    qv_vector final_norm;  /* [D] */
} t5_encoder;

typedef struct {
    float *x, *normed; /* [R, D] */
    float *qkv;        /* [R, 3 H d] */
    float *attended;   /* [R, H d] */
    float *gate;       /* [R, F]; the gated form only */
    float *hidden;     /* [R, F] */
    float *bias;       /* [H, M, M] */
    float *line;       /* [2 M - 1]: one head's bias by offset */
} t5_activations;

static t5_activations plan(const t5_encoder *t5, const qv_text_batch *batch, qv_arena *arena) {
    const qv_t5_config *c = &t5->config;
    size_t R = batch->B * batch->M, inner = c->num_heads * c->d_kv;
    t5_activations a;
    a.x = qv_arena_floats(arena, R * c->d_model);
    a.normed = qv_arena_floats(arena, R * c->d_model);
    a.qkv = qv_arena_floats(arena, R * 3 * inner);
    a.attended = qv_arena_floats(arena, R * inner);
    a.gate = qv_arena_floats(arena, c->gated ? R * c->d_ff : 0);
    a.hidden = qv_arena_floats(arena, R * c->d_ff);
    a.bias = qv_arena_floats(arena, c->num_heads * batch->M * batch->M);
    a.line = qv_arena_floats(arena, 2 * batch->M - 1);
    return a;
}

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
    t5->offset_bias = qv_allocate(c->num_heads * offsets, sizeof(float));
    if (t5->offset_bias == NULL) {
        return qv_fail_memory(err, "the relative position bias");
    }
    for (size_t h = 0; h < c->num_heads; h++) {
        for (size_t i = 0; i < offsets; i++) {
            size_t bucket = offset_bucket(c, (ptrdiff_t)i - (ptrdiff_t)c->max_distance);
            qv_tensor_read(t5->offset_bias + h * offsets + i, table, bucket * c->num_heads + h, 1);
        }
    }
    return QV_OK;
}

/* bias [H, M, M]: row t of a head is the head's line of offsets -(M - 1) .. M - 1, read from offset -t on. */
static void spread_bias(const t5_encoder *t5, qv_call *call, float *bias, float *line, size_t M) {
    size_t reach = t5->config.max_distance;
    for (size_t h = 0; h < t5->config.num_heads; h++) {
        const float *offsets = t5->offset_bias + h * (2 * reach + 1);
        for (size_t i = 0; i < M; i++) {
            size_t distance = i < reach ? i : reach;
            line[M - 1 + i] = offsets[reach + distance];
            line[M - 1 - i] = offsets[reach - distance];
        }
        for (size_t t = 0; t < M; t++) {
            call->ops->copy(call, bias + (h * M + t) * M, M, line + (M - 1 - t), M, 1, M);
        }
    }
}

static void run_block(const t5_encoder *t5, const t5_block *block, qv_call *call, const qv_text_batch *batch,
                      const t5_activations *a) {
    const qv_t5_config *c = &t5->config;
    const qv_ops *ops = call->ops;
    size_t R = batch->B * batch->M, D = c->d_model, F = c->d_ff, inner = c->num_heads * c->d_kv;
    qv_epilogue add_to_x = {.residual = a->x, .ld_residual = D};

    ops->rms_norm(call, a->normed, D, a->x, D, block->attention_norm.data, c->eps, R, D);
    ops->linear(call, a->qkv, 3 * inner, a->normed, D, &block->qkv, 0, 3 * inner, NULL, R);
    qv_attention attention = {
        .out = a->attended, .ld_out = inner,
        .q = a->qkv, .ld_q = 3 * inner,
        .k = a->qkv + inner, .v = a->qkv + 2 * inner, .ld_kv = 3 * inner,
        .key_mask = batch->key_mask, .bias = a->bias, .scale = 1.0f,
        .B = batch->B, .H = c->num_heads, .T = batch->M, .S = batch->M, .d = c->d_kv,
    };
    ops->attention(call, &attention);
    ops->linear(call, a->x, D, a->attended, inner, &block->o, 0, D, &add_to_x, R);

    ops->rms_norm(call, a->normed, D, a->x, D, block->feed_forward_norm.data, c->eps, R, D);
    qv_epilogue activate = {.activation = c->activation};
    if (c->gated) {
        ops->linear(call, a->gate, F, a->normed, D, &block->wi, F, F, NULL, R);
        activate.multiply = a->gate;
        activate.ld_multiply = F;
    }
    ops->linear(call, a->hidden, F, a->normed, D, &block->wi, 0, F, &activate, R);
    ops->linear(call, a->x, D, a->hidden, F, &block->wo, 0, D, &add_to_x, R);
}

static qv_status forward(const qv_text_encoder *encoder, qv_call *call, const qv_text_batch *batch, qv_arena *arena,
                         const float **states, qv_error *err) {
    const t5_encoder *t5 = (const t5_encoder *)encoder;
    const qv_t5_config *c = &t5->config;
    t5_activations a = plan(t5, batch, arena);
    if (arena->base == NULL) {
        return QV_OK;
    }
    size_t R = batch->B * batch->M;
    call->ops->embedding(call, a.x, &t5->shared, batch->ids, NULL, R, c->d_model);
    spread_bias(t5, call, a.bias, a.line, batch->M);
    for (size_t n = 0; n < c->num_layers; n++) {
        QV_CHECK_STOPPED(call, err);
        run_block(t5, &t5->blocks[n], call, batch, &a);
    }
    call->ops->rms_norm(call, a.normed, c->d_model, a.x, c->d_model, t5->final_norm.data, c->eps, R, c->d_model);
    *states = a.normed;
    return QV_OK;
}

static void free_encoder(qv_text_encoder *encoder) {
    t5_encoder *t5 = (t5_encoder *)encoder;
    for (size_t n = 0; t5->blocks != NULL && n < t5->config.num_layers; n++) {
        t5_block *block = &t5->blocks[n];
        qv_vector_free(&block->attention_norm);
        qv_vector_free(&block->feed_forward_norm);
        encoder->ops->linear_free(&block->qkv);
        encoder->ops->linear_free(&block->o);
        encoder->ops->linear_free(&block->wi);
        encoder->ops->linear_free(&block->wo);
    }
    qv_free(t5->blocks);
    qv_free(t5->offset_bias);
    qv_vector_free(&t5->final_norm);
    qv_free(t5);
}

static const qv_text_architecture architecture = {"T5Encoder", forward, free_encoder};

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
    if (c->num_layers > MAX_BLOCKS) {
        return qv_fail(err, QV_ERR_VALUE, "T5Encoder: num_layers %zu, expected at most %zu", c->num_layers, MAX_BLOCKS);
    }
    if (c->buckets < 4 || c->buckets > MAX_BUCKETS || c->max_distance <= c->buckets / 4 ||
        c->max_distance > MAX_BUCKETS) {
        return qv_fail(err, QV_ERR_VALUE,
                       "T5Encoder: relative_attention_num_buckets %zu and relative_attention_max_distance %zu, expected "
                       "at least 4 buckets and a distance above a quarter of them (both at most %zu)",
                       c->buckets, c->max_distance, MAX_BUCKETS);
    }
    return QV_OK;
}

static void load_block(t5_block *block, const qv_t5_config *c, qv_text_loader *loader, size_t n) {
    static const char *const qkv[] = {"q", "k", "v"}, *const o[] = {"o"}, *const wo[] = {"wo"};
    static const char *const plain[] = {"wi"}, *const gated[] = {"wi_0", "wi_1"};
    size_t inner = c->num_heads * c->d_kv;
    char stem[96];
    snprintf(stem, sizeof stem, "encoder.block.%zu.layer.0.", n);
    qv_text_vector(loader, &block->attention_norm, stem, "layer_norm.weight", c->d_model);
    snprintf(stem, sizeof stem, "encoder.block.%zu.layer.0.SelfAttention.", n);
    qv_text_linear(loader, &block->qkv, stem, qkv, 3, inner, c->d_model, false);
    qv_text_linear(loader, &block->o, stem, o, 1, c->d_model, inner, false);
    snprintf(stem, sizeof stem, "encoder.block.%zu.layer.1.", n);
    qv_text_vector(loader, &block->feed_forward_norm, stem, "layer_norm.weight", c->d_model);
    snprintf(stem, sizeof stem, "encoder.block.%zu.layer.1.DenseReluDense.", n);
    qv_text_linear(loader, &block->wi, stem, c->gated ? gated : plain, c->gated ? 2 : 1, c->d_ff, c->d_model, false);
    qv_text_linear(loader, &block->wo, stem, wo, 1, c->d_model, c->d_ff, false);
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
    t5_encoder *t5 = qv_allocate(1, sizeof *t5);
    if (t5 == NULL) {
        return qv_fail_memory(err, "a T5 encoder");
    }
    size_t inner = c.num_heads * c.d_kv, deepest = c.d_ff > c.d_model ? c.d_ff : c.d_model;
    memset(t5, 0, sizeof *t5);
    t5->config = c;
    t5->base.architecture = &architecture;
    t5->base.ops = ops;
    t5->base.width = c.d_model;
    t5->base.vocab_size = c.vocab_size;
    t5->base.depth = inner > deepest ? inner : deepest;
    t5->base.head_width = c.d_kv;
    t5->blocks = qv_allocate(c.num_layers, sizeof *t5->blocks);
    if (t5->blocks == NULL) {
        status = qv_fail_memory(err, "a T5 encoder");
        goto done;
    }
    memset(t5->blocks, 0, c.num_layers * sizeof *t5->blocks);
    qv_text_table(&loader, &t5->shared, "shared.weight", c.vocab_size, c.d_model);
    const qv_tensor *bias = qv_text_tensor(&loader, BIAS_NAME, "", c.buckets, c.num_heads);
    for (size_t n = 0; n < c.num_layers; n++) {
        load_block(&t5->blocks[n], &c, &loader, n);
    }
    qv_text_vector(&loader, &t5->final_norm, "encoder.", "final_layer_norm.weight", c.d_model);
    status = loader.status;
    if (status == QV_OK) {
        status = qv_weights_check(weights, "T5Encoder", err);
    }
    if (status == QV_OK) {
        status = prepare_bias(t5, bias, err);
    }
done:
    if (status != QV_OK) {
        qv_text_free(&t5->base);
        return status;
    }
    *encoder = &t5->base;
    return QV_OK;
}
