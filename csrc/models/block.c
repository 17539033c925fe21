#include "models/block.h"

#include <stdio.h>

/* Bounds that keep sums of sizes inside size_t. */
#define MAX_BLOCKS ((size_t)4096)

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

static size_t inner_width(const qv_block_kind *kind) {
    return kind->H * kind->d;
}

/* ---- loading ---- */

const qv_tensor *qv_block_row_scale(qv_loader *loader, const char *stem, const char *name, size_t D) {
    return name != NULL && qv_load_has(loader, stem, name) ? qv_load_tensor(loader, stem, name, D, 0) : NULL;
}

/* A layer back into the residual stream, and the scale of its rows. */
static void load_scaled(qv_loader *loader, qv_linear *layer, const char *stem, const char *name, const char *scale,
                        size_t columns, size_t depth, qv_bias_rule bias) {
    qv_linear_source source = qv_load_source(loader, stem, name, columns, depth, bias);
    source.row_scale = qv_block_row_scale(loader, stem, scale, columns);
    qv_load_layer(loader, layer, &source, 1);
}

void qv_block_load(qv_loader *loader, qv_block *block, const qv_block_kind *kind, const qv_block_names *names,
                   const char *stem) {
    size_t D = kind->D, F = kind->F, inner = inner_width(kind);
    qv_load_next_block(loader);
    loader->place = QV_IN_BLOCK;
    qv_load_norm(loader, &block->norm1, stem, names->norm1, kind->norm, D, kind->eps);
    qv_load_linear(loader, &block->qkv, stem, names->qkv, 3, inner, D, names->qkv_bias);
    if (names->out != NULL) {
        load_scaled(loader, &block->out, stem, names->out, names->scale1, D, inner, names->bias);
    }
    if (kind->cross_width != 0) {
        qv_load_norm(loader, &block->cross_norm, stem, names->cross_norm, kind->norm, D, kind->eps);
        qv_load_linear(loader, &block->cross_q, stem, &names->cross_q, 1, inner, D, names->bias);
        qv_load_linear(loader, &block->cross_kv, stem, names->cross_kv, 2, inner, kind->cross_width, names->bias);
        qv_load_linear(loader, &block->cross_out, stem, &names->cross_out, 1, D, inner, names->bias);
    }
    qv_load_norm(loader, &block->norm2, stem, names->norm2, kind->norm, D, kind->eps);
    qv_load_linear(loader, &block->hidden, stem, names->hidden, kind->gated ? 2 : 1, F, D, names->bias);
    loader->place = QV_LAST_OF_BLOCK;
    load_scaled(loader, &block->output, stem, names->output, names->scale2, D, F, names->bias);
    loader->place = QV_OUTSIDE_BLOCKS;
}

void qv_block_free(const qv_ops *ops, qv_block *block) {
    qv_norm *norms[] = {&block->norm1, &block->cross_norm, &block->norm2};
    qv_linear *layers[] = {&block->qkv,       &block->out,    &block->cross_q, &block->cross_kv,
                           &block->cross_out, &block->hidden, &block->output};
    for (size_t i = 0; i < sizeof norms / sizeof norms[0]; i++) {
        qv_norm_free(ops, norms[i]);
    }
    for (size_t i = 0; i < sizeof layers / sizeof layers[0]; i++) {
        qv_linear_free(ops, layers[i]);
    }
}

qv_block *qv_blocks_create(qv_loader *loader, size_t count, const char *name) {
    if (count > MAX_BLOCKS && loader->status == QV_OK) {
        loader->status = qv_fail(loader->err, QV_ERR_VALUE, "%s: %zu blocks, expected at most %zu", name, count, MAX_BLOCKS);
    }
    return qv_load_allocate(loader, count, sizeof(qv_block), name);
}

void qv_blocks_load(qv_loader *loader, qv_block *blocks, size_t count, const qv_block_kind *kind, const qv_block_names *names,
                    const char *stem) {
    for (size_t l = 0; l < count; l++) {
        char own[96];
        snprintf(own, sizeof own, "%s%zu.", stem, l);
        qv_block_load(loader, &blocks[l], kind, names, own);
    }
}

void qv_blocks_free(const qv_ops *ops, qv_block *blocks, size_t count) {
    for (size_t l = 0; blocks != NULL && l < count; l++) {
        qv_block_free(ops, &blocks[l]);
    }
    qv_free(blocks);
}

/* ---- memory ---- */

size_t qv_block_depth(const qv_block_kind *kind) {
    return larger(larger(kind->D, inner_width(kind)), kind->F);
}

/* q k v, then the query of cross-attention, then the hidden layer (and its gate) take turns with one stretch of memory;
 * norm first, what is attended to takes the place of what was normed. */
qv_block_activations qv_block_plan(qv_arena *arena, const qv_block_kind *kind, size_t R, size_t columns) {
    size_t inner = inner_width(kind), rest = larger(kind->gated ? 2 * kind->F : kind->F, columns);
    float *wide = qv_arena_take(arena, R, larger(3 * inner, rest) * sizeof(float));
    float *normed = qv_arena_take(arena, R, larger(kind->D, kind->norm_first ? inner : 0) * sizeof(float));
    float *attended = kind->norm_first ? normed : qv_arena_take(arena, R, inner * sizeof(float));
    if (wide == NULL) {
        return (qv_block_activations){.normed = NULL};
    }
    return (qv_block_activations){
        .q = {wide, 3 * inner},
        .kv = {wide + inner, 3 * inner},
        .normed = normed,
        .attended = attended,
        .hidden = wide,
        .gate = kind->gated ? wide + R * kind->F : NULL,
        .cross_q = wide,
    };
}

qv_block_activations qv_block_plan_kept(qv_arena *arena, const qv_block_kind *kind, const qv_block_activations *shared,
                                        size_t R, size_t queries) {
    size_t inner = inner_width(kind), D = kind->D;
    qv_block_activations a = *shared;
    bool first = kind->norm_first;
    a.q = (qv_rows){qv_arena_take(arena, queries, inner * sizeof(float)), inner};
    a.kv = (qv_rows){qv_arena_take(arena, R, 2 * inner * sizeof(float)), 2 * inner};
    a.cross_q = first ? a.cross_q : qv_arena_take(arena, queries, inner * sizeof(float));
    a.sum1 = qv_arena_take(arena, queries, D * sizeof(float));
    a.cross_sum = first ? NULL : qv_arena_take(arena, queries, D * sizeof(float));
    a.sum2 = first ? NULL : qv_arena_take(arena, queries, D * sizeof(float));
    a.before = qv_arena_take(arena, queries, kind->F * sizeof(float));
    a.activated = first && kind->gated ? qv_arena_take(arena, queries, kind->F * sizeof(float)) : NULL;
    return a;
}

/* ---- running ---- */

/* What a part of the block reads of h [count, D]. */
static qv_const_rows enter(qv_call *call, const qv_block_kind *kind, const qv_block_activations *a, const qv_norm *norm,
                           qv_rows h, size_t count) {
    qv_rows normed = {a->normed, kind->D};
    if (!kind->norm_first) {
        return qv_as_const(h);
    }
    call->ops->norm(call, normed, qv_as_const(h), norm, count);
    return qv_as_const(normed);
}

/* h + layer(y), and where it is: norm first in the sum that is kept, or in `out`; norm last, normed, in `out`. */
static qv_rows leave(qv_call *call, const qv_block_kind *kind, const qv_block_activations *a, const qv_linear *layer,
                     const qv_norm *norm, qv_const_rows y, qv_rows h, float *kept, qv_rows out, size_t count) {
    size_t D = kind->D;
    const qv_epilogue add = {.residual = qv_as_const(h)};
    qv_rows sum = kept != NULL ? (qv_rows){kept, D} : kind->norm_first ? out : (qv_rows){a->normed, D};
    call->ops->linear(call, sum, y, layer, 0, D, &add, count);
    if (kind->norm_first) {
        return sum;
    }
    call->ops->norm(call, out, qv_as_const(sum), norm, count);
    return out;
}

void qv_block_project(qv_call *call, const qv_block_kind *kind, const qv_block *block, const qv_block_activations *a,
                      const qv_block_rows *rows, bool values) {
    size_t inner = inner_width(kind), keys = values ? 2 * inner : inner;
    qv_const_rows from = enter(call, kind, a, &block->norm1, rows->x, rows->R), queries = qv_as_const(rows->queries);
    if (rows->queries.at == rows->x.at && rows->count == rows->R && a->kv.at == a->q.at + inner && a->kv.ld == a->q.ld) {
        call->ops->linear(call, a->q, from, &block->qkv, 0, inner + keys, NULL, rows->R);
        return;
    }
    if (kind->norm_first) {
        queries.at = from.at + (queries.at - rows->x.at); /* normed rows lie as those of x */
    }
    call->ops->linear(call, a->q, queries, &block->qkv, 0, inner, NULL, rows->count);
    call->ops->linear(call, a->kv, from, &block->qkv, inner, keys, NULL, rows->R);
}

qv_attention qv_block_attention(const qv_block_kind *kind, const qv_block_activations *a) {
    size_t inner = inner_width(kind);
    return (qv_attention){
        .out = {a->attended, inner},
        .q = qv_as_const(a->q),
        .k = qv_as_const(a->kv),
        .v = {a->kv.at + inner, a->kv.ld},
        .causal = kind->causal,
        .scale = kind->scale,
        .H = kind->H,
        .d = kind->d,
    };
}

void qv_block_attend(qv_call *call, const qv_block_kind *kind, const qv_block_activations *a,
                     const qv_sequences *sequences) {
    const size_t *start = sequences->start;
    qv_attention each[QV_ATTENTIONS_TOGETHER];
    for (size_t b = 0, next, count = 0; b < sequences->B; b = next) {
        /* Neighbours of one length go together. */
        size_t length = start[b + 1] - start[b], row = start[b] - start[0], queries = sequences->queries;
        size_t query = queries != 0 ? b * queries : row;
        for (next = b + 1; next < sequences->B && start[next + 1] - start[next] == length; next++) {
        }
        qv_attention attention = qv_block_attention(kind, a);
        attention.out.at += query * attention.out.ld;
        attention.q.at += query * attention.q.ld;
        attention.k.at += row * attention.k.ld;
        attention.v.at += row * attention.v.ld;
        attention.key_mask = sequences->key_mask != NULL ? sequences->key_mask + row : NULL;
        attention.bias = sequences->bias;
        attention.bias_rows = sequences->bias_rows;
        attention.B = next - b;
        attention.T = queries != 0 ? queries : length;
        attention.S = length;
        each[count++] = attention;
        if (count == QV_ATTENTIONS_TOGETHER || next == sequences->B) {
            call->ops->attention(call, each, count);
            count = 0;
        }
    }
}

qv_attention qv_block_cross_attention(const qv_block_kind *kind, const qv_block_activations *a, const qv_cross_run *run) {
    size_t inner = inner_width(kind), at = run->first * inner;
    return (qv_attention){
        .out = {a->attended + at, inner},
        .q = {a->cross_q + at, inner},
        .k = {run->kv, 2 * inner},
        .v = {run->kv + inner, 2 * inner},
        .scale = kind->scale,
        .B = 1,
        .H = kind->H,
        .T = run->count,
        .S = run->S,
        .d = kind->d,
    };
}

/* The hidden layer of h, before it is activated, and its gate. */
static void hide(qv_call *call, const qv_block_kind *kind, const qv_block *block, const qv_block_activations *a,
                 qv_const_rows from, size_t count) {
    size_t F = kind->F;
    if (kind->gated) {
        call->ops->linear(call, (qv_rows){a->gate, F}, from, &block->hidden, F, F, NULL, count);
    }
    if (a->before != NULL) {
        call->ops->linear(call, (qv_rows){a->before, F}, from, &block->hidden, 0, F, NULL, count);
    }
}

void qv_block_feed_forward(qv_call *call, const qv_block_kind *kind, const qv_block *block,
                           const qv_block_activations *a, qv_rows h, qv_rows out, size_t count) {
    size_t F = kind->F;
    qv_rows hidden = {a->hidden, F}, gate = {kind->gated ? a->gate : NULL, F};
    qv_const_rows from = enter(call, kind, a, &block->norm2, h, count);
    const qv_epilogue activate = {.activation = kind->activation, .multiply = qv_as_const(gate), .for_product = true};
    hide(call, kind, block, a, from, count);
    if (a->before == NULL) {
        call->ops->linear(call, hidden, from, &block->hidden, 0, F, &activate, count);
    } else {
        call->ops->activation(call, hidden.at, a->before, kind->activation, count * F);
        if (kind->gated) {
            call->ops->multiply_items(call, hidden, qv_as_const(hidden), qv_as_const(gate), count, F);
        }
    }
    leave(call, kind, a, &block->output, &block->norm2, qv_as_const(hidden), h, a->sum2, out, count);
}

qv_rows qv_block_add_attended(qv_call *call, const qv_block_kind *kind, const qv_block *block,
                              const qv_block_activations *a, qv_const_rows attended, qv_rows rows, size_t count) {
    return leave(call, kind, a, &block->out, &block->norm1, attended, rows, a->sum1, rows, count);
}

void qv_block_cross_query(qv_call *call, const qv_block_kind *kind, const qv_block *block, const qv_block_activations *a,
                          qv_rows h, size_t count) {
    size_t inner = inner_width(kind);
    qv_const_rows from = enter(call, kind, a, &block->cross_norm, h, count);
    call->ops->linear(call, (qv_rows){a->cross_q, inner}, from, &block->cross_q, 0, inner, NULL, count);
}

qv_rows qv_block_add_cross(qv_call *call, const qv_block_kind *kind, const qv_block *block, const qv_block_activations *a,
                           qv_rows h, qv_rows rows, size_t count) {
    qv_const_rows attended = {a->attended, inner_width(kind)};
    return leave(call, kind, a, &block->cross_out, &block->cross_norm, attended, h, a->cross_sum, rows, count);
}

void qv_block_finish(qv_call *call, const qv_block_kind *kind, const qv_block *block, const qv_block_activations *a,
                     qv_const_rows attended, qv_rows rows, size_t count, const qv_cross_states *cross) {
    qv_rows h = qv_block_add_attended(call, kind, block, a, attended, rows, count);
    if (cross != NULL && cross->count != 0) {
        qv_attention each[QV_ATTENTIONS_TOGETHER];
        qv_block_cross_query(call, kind, block, a, h, count);
        for (size_t first = 0, n; first < cross->count; first += n) {
            for (n = 0; n < QV_ATTENTIONS_TOGETHER && first + n < cross->count; n++) {
                each[n] = qv_block_cross_attention(kind, a, &cross->runs[first + n]);
            }
            call->ops->attention(call, each, n);
        }
        h = qv_block_add_cross(call, kind, block, a, h, rows, count);
    }
    qv_block_feed_forward(call, kind, block, a, h, rows, count);
}

void qv_block_keep(qv_call *call, const qv_block_kind *kind, const qv_block *block, const qv_block_activations *a,
                   qv_const_rows attended, qv_rows rows, size_t count) {
    qv_rows h = leave(call, kind, a, &block->out, &block->norm1, attended, rows, a->sum1, rows, count);
    hide(call, kind, block, a, enter(call, kind, a, &block->norm2, h, count), count);
}

void qv_block_run(qv_call *call, const qv_block_kind *kind, const qv_block *block, const qv_block_activations *a,
                  const qv_block_rows *rows, const qv_sequences *sequences, const qv_cross_states *cross) {
    qv_block_project(call, kind, block, a, rows, true);
    qv_block_attend(call, kind, a, sequences);
    qv_block_finish(call, kind, block, a, (qv_const_rows){a->attended, inner_width(kind)}, rows->queries, rows->count,
                    cross);
}
