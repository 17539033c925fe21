/* The text encoder of CLIP (Radford et al., arXiv 2103.00020).
 *
 *  1. x [M, D] = token[ids] + position[0 .. M)
 *  2. each block: q, k, v = W layer_norm1(x) + b
 *  3.             x += out_proj(softmax(q k^T / sqrt(d), a token sees itself and those before it, padding masked) v)
 *  4.             x += fc2(act(fc1(layer_norm2(x)))); act is quick_gelu, or gelu in most later models
 *  5. out = final_layer_norm(x)
 *  6. pooled = out at the end-of-text token; embedding = text_projection(pooled), without bias
 */
#include "models/clip_text.h"

#include <math.h>
#include <string.h>

#define OLD_END_ID ((size_t)2)

typedef struct {
    qv_text_encoder base;
    qv_clip_text_config config;
    qv_tensor words;     /* [vocab_size, D] */
    qv_tensor positions; /* [positions, D] */
    qv_text_norm final_norm;
    qv_linear_weight projection; /* [E, D]; columns 0: none */
} clip_text_encoder;

/* Returns early, with x unfinished, when the call is to stop; the caller sees that it is. */
static void run_block(const clip_text_encoder *clip, const qv_text_block *block, qv_call *call,
                      const qv_text_batch *batch, const qv_text_activations *a) {
    const qv_text_config *c = &clip->config.sizes;
    const qv_ops *ops = call->ops;
    size_t R = batch->B * batch->M, D = c->D, F = c->F;
    qv_epilogue add_to_x = {.residual = a->x, .ld_residual = D}, activate = {.activation = c->activation};

    ops->layer_norm(call, a->normed, D, a->x, D, block->attention_norm.weight.data, block->attention_norm.bias.data,
                    c->eps, R, D);
    ops->linear(call, a->qkv, 3 * D, a->normed, D, &block->qkv, 0, 3 * D, NULL, R);
    if (qv_call_stopped(call)) {
        return;
    }
    qv_text_self_attention(&clip->base, call, batch, a, 1.0f / sqrtf((float)clip->base.d), NULL, true);
    ops->linear(call, a->x, D, a->attended, D, &block->o, 0, D, &add_to_x, R);
    if (qv_call_stopped(call)) {
        return;
    }

    ops->layer_norm(call, a->normed, D, a->x, D, block->feed_forward_norm.weight.data,
                    block->feed_forward_norm.bias.data, c->eps, R, D);
    ops->linear(call, a->hidden, F, a->normed, D, &block->hidden, 0, F, &activate, R);
    ops->linear(call, a->x, D, a->hidden, F, &block->output, 0, D, &add_to_x, R);
}

static qv_status forward(const qv_text_encoder *encoder, qv_call *call, const qv_text_batch *batch, qv_arena *arena,
                         const float **states, qv_error *err) {
    const clip_text_encoder *clip = (const clip_text_encoder *)encoder;
    size_t R = batch->B * batch->M, D = encoder->width;
    qv_text_activations a = qv_text_plan(encoder, batch, arena);
    int32_t *positions = qv_arena_take_host(arena, R, sizeof *positions);
    if (arena->base == NULL) {
        return QV_OK;
    }
    for (size_t i = 0; i < R; i++) {
        positions[i] = (int32_t)(i % batch->M);
    }
    const qv_tensor *tables[2] = {&clip->words, &clip->positions};
    const int32_t *ids[2] = {batch->ids, positions};
    qv_text_embed(encoder, call, &a, tables, ids, 2, R);
    for (size_t n = 0; n < encoder->L; n++) {
        QV_CHECK_STOPPED(call, err);
        run_block(clip, &encoder->blocks[n], call, batch, &a);
    }
    QV_CHECK_STOPPED(call, err);
    call->ops->layer_norm(call, a.normed, D, a.x, D, clip->final_norm.weight.data, clip->final_norm.bias.data,
                          clip->config.sizes.eps, R, D);
    *states = a.normed;
    return QV_OK;
}

/* ---- the end-of-text token ---- */

typedef struct {
    const clip_text_encoder *clip;
    float *out; /* [B, E] or [B, D] */
    bool projected;
} pooled_output;

/* The position in row b; batch->M where there is none. The largest id, where the config's own end id is not to be
 * trusted: in CLIP's vocabulary the end of text comes last. */
static size_t find_end(const clip_text_encoder *clip, const qv_text_batch *batch, size_t b) {
    const int32_t *ids = batch->ids + b * batch->M;
    const uint8_t *mask = batch->mask + b * batch->M;
    size_t found = batch->M;
    for (size_t m = 0; m < batch->M; m++) {
        if (mask[m] == 0) {
            continue;
        }
        if (clip->config.end_id == OLD_END_ID) {
            found = found == batch->M || ids[m] > ids[found] ? m : found;
        } else if ((size_t)ids[m] == clip->config.end_id) {
            return m;
        }
    }
    return found;
}

static qv_status hand_out_pooled(void *context, qv_call *call, const float *states, const qv_text_batch *batch,
                                 qv_error *err) {
    const pooled_output *output = context;
    const clip_text_encoder *clip = output->clip;
    const qv_linear_weight *projection = &clip->projection;
    size_t D = clip->base.width, E = projection->columns;
    float *out = output->out + batch->first * (output->projected ? E : D);
    for (size_t b = 0; b < batch->B; b++) {
        size_t end = find_end(clip, batch, b);
        if (end == batch->M) {
            return qv_fail(err, QV_ERR_VALUE, "ids: row %zu holds no end-of-text token (%zu)",
                           batch->first + b, clip->config.end_id);
        }
        const float *state = states + (b * batch->M + end) * D;
        if (output->projected) {
            float *place = qv_output_place(call, batch->output + b * E, out + b * E);
            call->ops->linear(call, place, E, state, D, projection, 0, E, NULL, 1);
            qv_take_floats(call, out + b * E, place, E);
        } else {
            qv_take_floats(call, out + b * D, state, D);
        }
    }
    return QV_OK;
}

size_t qv_clip_text_projection_width(const qv_text_encoder *encoder) {
    return ((const clip_text_encoder *)encoder)->projection.columns;
}

qv_status qv_clip_text_pooled(qv_text_encoder *encoder, qv_call *call, float *out, const int64_t *ids,
                              const int64_t *mask, size_t B, size_t M, qv_error *err) {
    pooled_output output = {(const clip_text_encoder *)encoder, out, false};
    return qv_text_run(encoder, call, ids, mask, B, M, hand_out_pooled, &output, err);
}

qv_status qv_clip_text_projected(qv_text_encoder *encoder, qv_call *call, float *out, const int64_t *ids,
                                 const int64_t *mask, size_t B, size_t M, qv_error *err) {
    pooled_output output = {(const clip_text_encoder *)encoder, out, true};
    if (output.clip->projection.columns == 0) {
        return qv_fail(err, QV_ERR_VALUE, "ClipTextEncoder: the weights have no text_projection.weight");
    }
    return qv_text_run(encoder, call, ids, mask, B, M, hand_out_pooled, &output, err);
}

/* ---- loading ---- */

static void free_own(qv_text_encoder *encoder) {
    clip_text_encoder *clip = (clip_text_encoder *)encoder;
    qv_text_free_norm(encoder->ops, &clip->final_norm);
    encoder->ops->linear_free(encoder->ops, &clip->projection);
}

static const qv_text_architecture architecture = {"ClipTextEncoder", forward, free_own};

/* The projection lies beside the text model, not in it: its name has the prefix without a last "text_model.". */
static void load_projection(clip_text_encoder *clip, qv_text_loader *loader, size_t D) {
    static const char *const names[] = {"text_projection"};
    static const char inner[] = "text_model.";
    const char *prefix = loader->prefix;
    char outer[256] = "";
    size_t length = strlen(prefix), end = sizeof inner - 1, width = 0;
    if (length >= end && strcmp(prefix + length - end, inner) == 0) {
        length -= end;
    }
    if (length >= sizeof outer) {
        return;
    }
    memcpy(outer, prefix, length);
    loader->prefix = outer;
    qv_text_infer_size(loader, &width, "text_projection.weight", 0);
    if (width != 0) {
        qv_text_linear(loader, &clip->projection, "", names, 1, width, D, false);
    }
    loader->prefix = prefix;
}

qv_status qv_clip_text_load(qv_text_encoder **encoder, const qv_clip_text_config *config, qv_weights *weights,
                            const char *prefix, qv_precision precision, const qv_ops *ops, qv_error *err) {
    static const qv_text_names names = {
        .words = "embeddings.token_embedding.weight",
        .positions = "embeddings.position_embedding.weight",
        .block = "encoder.layers.",
        .qkv = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
        .o = "self_attn.out_proj",
        .hidden = "mlp.fc1",
        .output = "mlp.fc2",
        .attention_norm = "layer_norm1",
        .feed_forward_norm = "layer_norm2",
    };
    qv_text_loader loader = {weights, prefix, ops, precision, QV_OK, err};
    qv_text_config c = config->sizes;
    *encoder = NULL;
    qv_status status = qv_text_complete_config(&loader, &c, "ClipTextEncoder", &names);
    if (status != QV_OK) {
        return status;
    }
    clip_text_encoder *clip = qv_text_create(sizeof *clip, &architecture, ops, &c, err);
    if (clip == NULL) {
        return err->code;
    }
    clip->config = *config;
    clip->config.sizes = c;
    qv_text_table(&loader, &clip->words, names.words, c.vocab_size, c.D);
    qv_text_table(&loader, &clip->positions, names.positions, c.positions, c.D);
    for (size_t n = 0; n < c.L; n++) {
        qv_text_load_block(&loader, &clip->base.blocks[n], &c, &names, n);
    }
    qv_text_load_norm(&loader, &clip->final_norm, "", "final_layer_norm", c.D);
    if (loader.status == QV_OK) {
        loader.status = qv_next_block(ops, err);
    }
    load_projection(clip, &loader, c.D);
    clip->base.output_width = clip->projection.columns;
    return qv_text_finish_load(encoder, &clip->base, &loader);
}
