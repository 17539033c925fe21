/* The question's keys and values in an integrated block of QA-ViT: those of z = W2 gelu(W1 layer_norm(instruct)). */
#include "models/vit_ends.h"

qv_vit_question qv_vit_plan_question(qv_arena *arena, const qv_vit *vit, size_t tokens) {
    size_t D = vit->config.D;
    return (qv_vit_question){
        .norm = qv_arena_take(arena, tokens, vit->config.instruction_dim * sizeof(float)),
        .hidden = qv_arena_take(arena, tokens, vit->reduce_width * sizeof(float)),
        .states = qv_arena_take(arena, tokens, D * sizeof(float)),
        .kv = qv_arena_take(arena, tokens, 2 * D * sizeof(float)),
    };
}

void qv_vit_embed_question(qv_call *call, const qv_vit *vit, const qv_vit_block *block, const qv_vit_question *question,
                           const float *instruct, size_t tokens) {
    const qv_ops *ops = call->ops;
    size_t Dt = vit->config.instruction_dim, D = vit->config.D, width = block->reduce1.columns;
    const qv_epilogue gelu = {.activation = QV_GELU};
    const qv_rows norm = {question->norm, Dt}, hidden = {question->hidden, width}, states = {question->states, D};
    ops->norm(call, norm, (qv_const_rows){instruct, Dt}, &block->reduce_norm, tokens);
    ops->linear(call, hidden, qv_as_const(norm), &block->reduce1, 0, width, &gelu, tokens);
    ops->linear(call, states, qv_as_const(hidden), &block->reduce2, 0, D, NULL, tokens);
    ops->linear(call, (qv_rows){question->kv, 2 * D}, qv_as_const(states), &block->block.qkv, D, 2 * D, NULL, tokens);
}
