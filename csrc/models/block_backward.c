/* The gradients of what goes into a block whose norms come last, from those of what comes out; weights are constants, and
 * so are the keys and values of the cross-attention, unless the caller differentiates that itself.
 *
 * Forward (models/block.c):                          Backward, in reverse:
 *   sum1 = x + out(self_attention(x))                  d_x         = d_sum1 + d_q Wq + d_k Wk + d_v Wv
 *   h1 = norm(sum1)                                    d_sum1      = norm'(d_h1)
 *   cross_sum = h1 + cross_out(cross_attention(h1))    d_h1        = d_cross_sum + d_cross_q Wcross_q
 *   h2 = norm(cross_sum)                               d_cross_sum = norm'(d_h2)
 *   sum2 = h2 + output(act(before)), before = hidden   d_h2        = d_sum2 + act'(before) (d_sum2 Woutput) Whidden
 *   x = norm(sum2)                                     d_sum2      = norm'(d_x) */
#include "models/block.h"

qv_block_gradients qv_block_plan_gradients(qv_arena *arena, const qv_block_kind *kind, size_t R) {
    size_t D = kind->D * sizeof(float), inner = kind->H * kind->d * sizeof(float);
    qv_block_gradients g;
    g.d_x = qv_arena_take(arena, R, D);
    g.d_rows = qv_arena_take(arena, R, D);
    g.d_hidden = qv_arena_take(arena, R, (kind->gated ? 2 : 1) * kind->F * sizeof(float));
    g.d_attended = qv_arena_take(arena, R, inner);
    g.d_q = qv_arena_take(arena, R, inner);
    g.d_kv = qv_arena_take(arena, R, 2 * inner);
    return g;
}

/* d_rows = gradient of a sum, from that of its norm, d_out */
static void norm_backward(qv_call *call, const qv_block_kind *kind, const qv_block_gradients *g, const float *d_out,
                          const float *sum, const qv_norm *norm, size_t count) {
    size_t D = kind->D;
    call->ops->norm_backward(call, (qv_rows){g->d_rows, D}, (qv_const_rows){d_out, D}, (qv_const_rows){sum, D}, norm,
                             count);
}

/* d_rows = gradient of what the feed-forward reads, from d_x, that of the block's output */
static void feed_forward_backward(qv_call *call, const qv_block_kind *kind, const qv_block *block,
                                  const qv_block_activations *a, const qv_block_gradients *g, size_t count) {
    const qv_ops *ops = call->ops;
    size_t F = kind->F;
    qv_rows d_rows = {g->d_rows, kind->D}, d_hidden = {g->d_hidden, F};
    norm_backward(call, kind, g, g->d_x, a->sum2, &block->norm2, count);
    ops->linear_backward(call, d_hidden, qv_as_const(d_rows), &block->output, 0, kind->D, false, count);
    ops->activation_backward(call, g->d_hidden, g->d_hidden, a->before, kind->activation, count * F);
    ops->linear_backward(call, d_rows, qv_as_const(d_hidden), &block->hidden, 0, F, true, count);
}

void qv_block_backward_to_cross(qv_call *call, const qv_block_kind *kind, const qv_block *block, const qv_block_activations *a,
                                const qv_block_gradients *g, size_t count) {
    qv_rows d_attended = {g->d_attended, kind->H * kind->d};
    feed_forward_backward(call, kind, block, a, g, count);
    norm_backward(call, kind, g, g->d_rows, a->cross_sum, &block->cross_norm, count);
    call->ops->linear_backward(call, d_attended, (qv_const_rows){g->d_rows, kind->D}, &block->cross_out, 0, kind->D, false,
                               count);
}

qv_attention_backward qv_block_cross_backward(const qv_block_kind *kind, const qv_block_activations *a,
                                              const qv_block_gradients *g, const qv_cross_run *run) {
    size_t inner = kind->H * kind->d, at = run->first * inner;
    return (qv_attention_backward){
        .forward = qv_block_cross_attention(kind, a, run),
        .d_out = {g->d_attended + at, inner},
        .d_q = {g->d_q + at, inner},
    };
}

/* d_attended, from d_rows of the sum that self-attention is added to, normed */
static void attended_backward(qv_call *call, const qv_block_kind *kind, const qv_block *block,
                              const qv_block_activations *a, const qv_block_gradients *g, size_t count) {
    const qv_rows d_attended = {g->d_attended, kind->H * kind->d};
    norm_backward(call, kind, g, g->d_rows, a->sum1, &block->norm1, count);
    call->ops->linear_backward(call, d_attended, (qv_const_rows){g->d_rows, kind->D}, &block->out, 0, kind->D, false, count);
}

void qv_block_backward_from_cross(qv_call *call, const qv_block_kind *kind, const qv_block *block,
                                  const qv_block_activations *a, const qv_block_gradients *g, size_t count) {
    size_t inner = kind->H * kind->d;
    call->ops->linear_backward(call, (qv_rows){g->d_rows, kind->D}, (qv_const_rows){g->d_q, inner}, &block->cross_q, 0,
                               inner, true, count);
    attended_backward(call, kind, block, a, g, count);
}

void qv_block_backward_to_attended(qv_call *call, const qv_block_kind *kind, const qv_block *block,
                                   const qv_block_activations *a, const qv_block_gradients *g,
                                   const qv_cross_states *cross, size_t count) {
    if (cross->count != 0) {
        qv_block_backward_to_cross(call, kind, block, a, g, count);
        qv_attention_backward each[QV_ATTENTIONS_TOGETHER];
        for (size_t first = 0, n; first < cross->count; first += n) {
            for (n = 0; n < QV_ATTENTIONS_TOGETHER && first + n < cross->count; n++) {
                each[n] = qv_block_cross_backward(kind, a, g, &cross->runs[first + n]);
            }
            call->ops->attention_backward(call, each, n);
        }
        qv_block_backward_from_cross(call, kind, block, a, g, count);
    } else {
        feed_forward_backward(call, kind, block, a, g, count);
        attended_backward(call, kind, block, a, g, count);
    }
}

void qv_block_attend_backward(qv_call *call, const qv_block_kind *kind, const qv_block_activations *a,
                              const qv_block_gradients *g, const qv_sequences *sequences) {
    size_t inner = kind->H * kind->d, queries = sequences->queries;
    for (size_t b = 0; b < sequences->B; b++) {
        size_t row = sequences->start[b] - sequences->start[0], query = queries != 0 ? b * queries : row;
        qv_attention_backward backward = {
            .forward = qv_block_attention(kind, a),
            .d_out = {g->d_attended + query * inner, inner},
            .d_q = {g->d_q + query * inner, inner},
            .d_k = {g->d_kv + row * 2 * inner, 2 * inner},
            .d_v = {g->d_kv + row * 2 * inner + inner, 2 * inner},
        };
        qv_attention *forward = &backward.forward;
        forward->q.at += query * forward->q.ld;
        forward->k.at += row * forward->k.ld;
        forward->v.at += row * forward->v.ld;
        forward->B = 1;
        forward->S = sequences->start[b + 1] - sequences->start[b];
        forward->T = queries != 0 ? queries : forward->S;
        call->ops->attention_backward(call, &backward, 1);
    }
}

void qv_block_project_backward(qv_call *call, const qv_block_kind *kind, const qv_block *block,
                               const qv_block_gradients *g, size_t count, size_t R) {
    const qv_ops *ops = call->ops;
    size_t D = kind->D, inner = kind->H * kind->d;
    ops->linear_backward(call, (qv_rows){g->d_rows, D}, (qv_const_rows){g->d_q, inner}, &block->qkv, 0, inner, true, count);
    ops->linear_backward(call, (qv_rows){g->d_x, D}, (qv_const_rows){g->d_kv, 2 * inner}, &block->qkv, inner, 2 * inner,
                         false, R);
}

void qv_block_backward(qv_call *call, const qv_block_kind *kind, const qv_block *block, const qv_block_activations *a,
                       const qv_block_gradients *g, const qv_sequences *sequences, const qv_cross_states *cross) {
    size_t D = kind->D, B = sequences->B, R = sequences->start[B] - sequences->start[0], queries = sequences->queries;
    size_t count = queries != 0 ? B * queries : R;
    qv_block_backward_to_attended(call, kind, block, a, g, cross, count);
    qv_block_attend_backward(call, kind, a, g, sequences);
    qv_block_project_backward(call, kind, block, g, count, R);
    for (size_t b = 0; queries != 0 && b < B; b++) {
        float *first = g->d_x + (sequences->start[b] - sequences->start[0]) * D;
        call->ops->add(call, first, g->d_rows + b * queries * D, queries, D);
    }
    if (queries == 0) {
        call->ops->add(call, g->d_x, g->d_rows, R, D);
    }
}
