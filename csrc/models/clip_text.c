/* The text encoder of CLIP (Radford et al., arXiv 2103.00020).
 *
 *  1. x [M, D] = token[ids] + position[0 .. M)
 *  2. each block: q, k, v = W layer_norm1(x) + b
 *  3.             x += out_proj(softmax(q k^T / sqrt(d), a token sees itself and those before it) v)
 *  4.             x += fc2(act(fc1(layer_norm2(x)))); act is quick_gelu, or gelu in most later models
 *  5. out = final_layer_norm(x)
 *  6. pooled = out at the end-of-text token; embedding = text_projection(pooled), without bias
 */
#include "models/clip_text.h"

#include <math.h>
#include <string.h>

#define OLD_END_ID ((size_t)2)

static const qv_block_names block_names = {
    .norm1 = "layer_norm1",
    .qkv = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
    .out = "self_attn.out_proj",
    .hidden = {"mlp.fc1"},
    .output = "mlp.fc2",
    .norm2 = "layer_norm2",
};

/* ---- the end-of-text token ---- */

typedef struct {
    const qv_text_encoder *clip;
    float *out; /* [B, E] or [B, D] */
    bool projected;
} pooled_output;

/* The row of the pass that is the end of row b; the row behind its last where there is none. The largest id, where the
 * config's own end id is not to be trusted: in CLIP's vocabulary the end of text comes last. */
static size_t find_end(const qv_text_encoder *clip, const qv_text_pass *pass, size_t b) {
    size_t end = pass->start[b + 1], found = end;
    for (size_t r = pass->start[b]; r < end; r++) {
        if (pass->key_mask[r] == 0) {
            continue;
        }
        if (clip->end_id == OLD_END_ID) {
            found = found == end || pass->ids[r] > pass->ids[found] ? r : found;
        } else if ((size_t)pass->ids[r] == clip->end_id) {
            return r;
        }
    }
    return found;
}

static qv_status hand_out_pooled(void *context, qv_call *call, const float *states, const qv_text_pass *pass,
                                 qv_error *err) {
    const pooled_output *output = context;
    const qv_text_encoder *clip = output->clip;
    const qv_linear *projection = &clip->projection;
    size_t D = clip->width, E = projection->columns;
    float *out = output->out + pass->first * (output->projected ? E : D);
    for (size_t b = 0; b < pass->B; b++) {
        size_t end = find_end(clip, pass, b);
        if (end == pass->start[b + 1]) {
            return qv_fail(err, QV_ERR_VALUE, "ids: row %zu holds no end-of-text token (%zu)", pass->first + b,
                           clip->end_id);
        }
        const float *state = states + end * D;
        if (output->projected) {
            qv_output row = qv_output_at(clip->ops, pass->output + b * E, out + b * E, E);
            call->ops->linear(call, (qv_rows){row.at, E}, (qv_const_rows){state, D}, projection, 0, E, NULL, 1);
            qv_output_take(call, &row);
        } else {
            qv_take_floats(call, out + b * D, state, D);
        }
    }
    return QV_OK;
}

size_t qv_clip_text_projection_width(const qv_text_encoder *encoder) {
    return encoder->projection.columns;
}

qv_status qv_clip_text_pooled(qv_text_encoder *encoder, qv_call *call, float *out, const int64_t *ids,
                              const int64_t *mask, size_t B, size_t M, qv_error *err) {
    pooled_output output = {encoder, out, false};
    return qv_text_run(encoder, call, ids, mask, B, M, 0, hand_out_pooled, &output, err);
}

qv_status qv_clip_text_projected(qv_text_encoder *encoder, qv_call *call, float *out, const int64_t *ids,
                                 const int64_t *mask, size_t B, size_t M, qv_error *err) {
    pooled_output output = {encoder, out, true};
    size_t E = encoder->projection.columns;
    if (E == 0) {
        return qv_fail(err, QV_ERR_VALUE, "ClipTextEncoder: the weights have no text_projection.weight");
    }
    return qv_text_run(encoder, call, ids, mask, B, M, E, hand_out_pooled, &output, err);
}

/* ---- loading ---- */

qv_status qv_clip_text_load(qv_text_encoder **encoder, const qv_clip_text_config *config, qv_loader *loader) {
    static const char words[] = "embeddings.token_embedding.weight", blocks[] = "encoder.layers.";
    static const char positions[] = "embeddings.position_embedding.weight";
    qv_text_config c = config->sizes;
    *encoder = NULL;
    qv_status status = qv_text_complete_config(loader, &c, "ClipTextEncoder", words, positions, blocks, &block_names);
    if (status != QV_OK) {
        return status;
    }
    const qv_block_kind kind = {
        .D = c.D, .H = c.H, .d = c.D / c.H, .F = c.F, .norm_first = true, .causal = true, .eps = c.eps,
        .activation = c.activation, .scale = 1.0f / sqrtf((float)(c.D / c.H)),
    };
    qv_text_encoder *clip = qv_text_create(loader, "ClipTextEncoder", &kind, c.L, c.vocab_size);
    if (clip == NULL) {
        return loader->status;
    }
    clip->end_id = config->end_id;
    clip->max_tokens = c.positions;
    qv_load_table(loader, &clip->words, words, c.vocab_size, c.D);
    qv_load_table(loader, &clip->positions, positions, c.positions, c.D);
    qv_text_load_blocks(loader, clip, &block_names, blocks);
    qv_load_norm(loader, &clip->final_norm, "", "final_layer_norm", QV_LAYER_NORM, c.D, c.eps);
    qv_load_next_block(loader);
    qv_load_beside(loader, &clip->projection, "text_model.", "text_projection", c.D);
    return qv_text_finish_load(encoder, clip, loader);
}
