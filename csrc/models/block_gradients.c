/* The gradients of what goes into a block whose norms come first, from those of what comes out; weights are constants, and so
 * are question tokens. Items go through together: gradients of different things, over one and the same run of the block.
 *
 * Forward (models/block.c):                     Backward, in reverse:
 *   n = norm1(x); q, k, v = n Wqkv                d_x    = d_sum + norm1'(d_q Wq + d_k Wk + d_v Wv)
 *   attended = attention(q, k, v)                 d_q, d_k, d_v = attention'(d_attended), by the caller
 *   sum = x + attended Wout                       d_attended = d_sum Wout
 *   before = norm2(sum) Whidden                   d_sum  = d_out + norm2'((slope * (d_out Woutput)) Whidden)
 *   out = sum + act(before) Woutput               slope  = act'(before); gated, times the gate, and act(before) for the gate's */
#include "models/block.h"

void qv_block_keep_slopes(qv_call *call, const qv_block_kind *kind, const qv_block_activations *a, size_t count) {
    size_t F = kind->F, n = count * F;
    const qv_rows before = {a->before, F};
    if (kind->gated) {
        call->ops->activation(call, a->activated, a->before, kind->activation, n);
    }
    call->ops->activation_backward(call, a->before, NULL, a->before, kind->activation, n);
    if (kind->gated) {
        call->ops->multiply_items(call, before, qv_as_const(before), (qv_const_rows){a->gate, F}, count, F);
    }
}

/* d_hidden of `count` rows of each item from gradients [items, count, F] of the hidden layer, or `once`, a row an item */
static void through_activation(qv_call *call, const qv_block_kind *kind, const qv_block_activations *a,
                               const qv_block_gradients *g, const float *once, size_t items, size_t count) {
    size_t F = kind->F, width = (kind->gated ? 2 : 1) * F;
    const qv_const_rows slopes = {a->before, F}, activated = {a->activated, F};
    for (size_t i = 0; i < items; i++) {
        const qv_rows d = {g->d_hidden + i * count * width, width}, d_gate = {d.at + F, width};
        const qv_const_rows given = once != NULL ? (qv_const_rows){once + i * F, 0} : qv_as_const(d);
        if (kind->gated) {
            call->ops->multiply_items(call, d_gate, given, activated, count, F);
        }
        call->ops->multiply_items(call, d, given, slopes, count, F);
    }
}

void qv_block_backward_to_attention(qv_call *call, const qv_block_kind *kind, const qv_block *block,
                                    const qv_block_activations *a, const qv_block_gradients *g, const float *row, float *once,
                                    size_t items, size_t count) {
    const qv_ops *ops = call->ops;
    size_t D = kind->D, F = kind->F, inner = kind->H * kind->d, R = items * count, width = (kind->gated ? 2 : 1) * F;
    const qv_rows d_rows = {g->d_rows, D}, d_hidden = {g->d_hidden, width}, d_normed = {g->d_x, D};
    if (row != NULL) {
        ops->linear_backward(call, (qv_rows){once, F}, (qv_const_rows){row, D}, &block->output, 0, D, false, items);
    } else {
        ops->linear_backward(call, d_hidden, qv_as_const(d_rows), &block->output, 0, D, false, R);
    }
    through_activation(call, kind, a, g, row != NULL ? once : NULL, items, count);
    ops->linear_backward(call, d_normed, qv_as_const(d_hidden), &block->hidden, 0, width, false, R);
    for (size_t i = 0; i < items; i++) {
        const qv_rows d = {d_normed.at + i * count * D, D};
        ops->norm_backward(call, d, qv_as_const(d), (qv_const_rows){a->sum1, D}, &block->norm2, count);
        if (row != NULL) {
            ops->copy(call, (qv_rows){d_rows.at + i * count * D, D}, (qv_const_rows){row + i * D, 0}, count, D);
        }
    }
    ops->add(call, d_rows.at, d_normed.at, R, D);
    ops->linear_backward(call, (qv_rows){g->d_attended, inner}, qv_as_const(d_rows), &block->out, 0, D, false, R);
}

void qv_block_backward_from_attention(qv_call *call, const qv_block_kind *kind, const qv_block *block,
                                      const qv_block_gradients *g, qv_const_rows x, float *out, size_t items, size_t count,
                                      size_t T) {
    const qv_ops *ops = call->ops;
    size_t D = kind->D, inner = kind->H * kind->d;
    bool all = count == T;
    const qv_rows d_normed = {all ? g->d_x : out, D}, of_queries = {d_normed.at, all ? D : T * D};
    ops->linear_backward(call, d_normed, (qv_const_rows){g->d_kv, 2 * inner}, &block->qkv, inner, 2 * inner, false, items * T);
    ops->linear_backward(call, of_queries, (qv_const_rows){g->d_q, inner}, &block->qkv, 0, inner, true, items * count);
    for (size_t i = 0; i < items; i++) {
        const qv_rows d = {d_normed.at + i * T * D, D};
        ops->norm_backward(call, d, qv_as_const(d), x, &block->norm1, T);
        if (!all) {
            ops->add(call, d.at, g->d_rows + i * D, 1, D);
        }
    }
    if (all && out != g->d_rows) {
        ops->copy(call, (qv_rows){out, D}, (qv_const_rows){g->d_rows, D}, items * T, D);
    }
    if (all) {
        ops->add(call, out, g->d_x, items * T, D);
    }
}
