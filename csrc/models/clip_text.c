/* The text encoder of CLIP (Radford et al., arXiv 2103.00020), of CLIPA (arXiv 2305.07017) and of SigLIP (arXiv 2303.15343).
 *
 *  1. x [M, D] = token[ids] + position[0 .. M)
 *  2. each block: q, k, v = W layer_norm1(x) + b
 *  3.             x += out_proj(softmax(q k^T / sqrt(d), a token sees itself and those before it; or all) v)
 *  4.             x += fc2(act(fc1(layer_norm2(x)))); act is quick_gelu, or gelu in most later models
 *  5. out = final_layer_norm(x)
 *  6. pooled = out at the end-of-text token, or at the last position; embedding = text_projection(pooled)
 */
#include "models/clip_text.h"

#include <math.h>

static const qv_block_names block_names = {
    .norm1 = "layer_norm1",
    .qkv = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
    .out = "self_attn.out_proj",
    .hidden = {"mlp.fc1"},
    .output = "mlp.fc2",
    .norm2 = "layer_norm2",
};

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
        .D = c.D, .H = c.H, .d = c.D / c.H, .F = c.F, .norm_first = true, .causal = config->causal, .eps = c.eps,
        .activation = c.activation, .scale = 1.0f / sqrtf((float)(c.D / c.H)),
    };
    qv_text_encoder *clip = qv_text_create(loader, "ClipTextEncoder", &kind, c.L, c.vocab_size);
    if (clip == NULL) {
        return loader->status;
    }
    clip->end_id = config->end_id;
    clip->pooling = config->pooling;
    clip->max_tokens = c.positions;
    qv_load_table(loader, &clip->words, words, c.vocab_size, c.D);
    qv_load_table(loader, &clip->positions, positions, c.positions, c.D);
    qv_blocks_load(loader, clip->blocks, clip->L, &clip->kind, &block_names, blocks);
    qv_load_norm(loader, &clip->final_norm, "", "final_layer_norm", QV_LAYER_NORM, c.D, c.eps);
    qv_load_next_block(loader);
    qv_load_beside(loader, &clip->projection, "text_model.", "text_projection", c.D);
    return qv_text_finish_load(encoder, clip, loader);
}
