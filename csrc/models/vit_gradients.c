/* Gradients through a vision tower, a sequence at a time.
 *
 * 1. the blocks from `first` on forward; what enters each is kept, and LeGrad's gradient is taken on the way (vit_legrad.c)
 * 2. the scores of what is pooled, and their gradients, a chunk of texts at a time (models/vit_target.c)
 * 3. block by block down to the last one that is asked for: the block is run again from what entered it, as far as its
 *    gradient reads of that, once for all texts; then each text's gradient goes through, of the class token alone where nothing
 *    else is pooled (block_gradients.c)
 * 4. on the way, readouts: rows of attention and of its gradient, relevance (Chefer et al., arXiv 2103.15679), whose product of
 *    matrices is a row times matrices from the last block down; norm1's output times its mean gradient, for which the means of
 *    the gradients of q, k and v go back in place of these */
#include "models/vit_gradient_pass.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

static size_t smaller(size_t a, size_t b) {
    return a < b ? a : b;
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

/* ---- plan ---- */

static bool pools_class(const qv_vit *vit) {
    return vit->config.pooling == QV_POOL_CLASS;
}

/* Tokens of the output of block l that the pass needs. */
static size_t tokens_of(const qv_vit_gradient_pass *pass, size_t l) {
    const qv_vit *vit = pass->vit;
    bool one = l + 1 == vit->config.L && pools_class(vit) && pass->request->taps[l].legrad == NULL;
    return one ? 1 : vit->T;
}

static size_t keys_of(const qv_vit_gradient_pass *pass) {
    return pass->vit->T + (pass->request->instruct != NULL ? pass->request->M : 0);
}

static qv_block_kind kind_of(const qv_vit_gradient_pass *pass, size_t l) {
    qv_block_kind kind = pass->vit->kind;
    if (l >= pass->request->single_head) {
        kind.scale /= sqrtf((float)kind.H);
        kind.d *= kind.H;
        kind.H = 1;
    }
    return kind;
}

static bool reads_scores(const qv_vit_gradient_tap *tap) {
    return tap->class_gradient != NULL || tap->gradcam != NULL || tap->attention_gradient != NULL ||
           tap->hidden_gradient != NULL || tap->class_attention != NULL || tap->key_cosine != NULL;
}

bool qv_vit_gradients_keep(const qv_vit *vit, const qv_vit_gradient_request *request, size_t *floats) {
    size_t L = vit->config.L, blocks = 0;
    bool alone = request->instruct == NULL && request->relevance == NULL && request->single_head == L;
    for (size_t l = request->first; l <= L; l++) {
        blocks += request->taps[l].legrad != NULL;
        alone = alone && !reads_scores(&request->taps[l]);
    }
    *floats = blocks * qv_vit_legrad_floats(vit) + vit->config.D;
    return alone && blocks > 0;
}

static void find_extent(qv_vit_gradient_pass *pass) {
    const qv_vit_gradient_request *request = pass->request;
    const qv_vit *vit = pass->vit;
    size_t L = vit->config.L;
    bool legrad = false;
    pass->lowest = L;
    for (size_t l = L; l-- > request->first;) {
        bool relevant = request->relevance != NULL && l >= request->relevance_from;
        pass->lowest = reads_scores(&request->taps[l]) || relevant ? l : pass->lowest;
        legrad = legrad || request->taps[l].legrad != NULL;
    }
    const qv_vit_gradient_tap *top = &request->taps[L - 1];
    bool below = pass->lowest + 1 < L || (pass->lowest < L && top->hidden_gradient != NULL);
    pass->items = request->paired || request->texts == NULL ? 1 : request->Q;
    pass->all_tokens = below || (pass->lowest < L && !pools_class(vit));
    /* Eight products' worth of items whose gradients wait between blocks; of class tokens alone, as many as there are. */
    bool rows = pass->all_tokens || legrad;
    pass->turn = rows ? smaller(qv_vit_images_at_once(vit), pass->items) : 1;
    pass->chunk = rows ? smaller(8 * pass->turn, pass->items) : pass->items;
}

static size_t place_floats(const qv_vit_gradient_pass *pass, qv_arena *arena) {
    const qv_vit_gradient_request *request = pass->request;
    size_t T = pass->vit->T, H = pass->vit->config.H, looks = qv_plan_product(arena, H, keys_of(pass)), most = looks;
    for (size_t l = request->first; l < pass->vit->config.L; l++) {
        const qv_vit_gradient_tap *tap = &request->taps[l];
        most = larger(most, tap->attention_gradient != NULL ? qv_plan_product(arena, looks, T) : 0);
        most = larger(most, tap->hidden_gradient != NULL ? T * pass->vit->config.D : 0);
        most = larger(most, tap->gradcam != NULL ? qv_plan_product(arena, pass->chunk, pass->vit->P) : 0);
    }
    return qv_place_size(pass->vit->ops, most);
}

static void plan(void *state, qv_call *call, qv_arena *arena) {
    qv_vit_gradient_pass *pass = state;
    const qv_vit_gradient_request *request = pass->request;
    const qv_vit *vit = pass->vit;
    const qv_ops *ops = vit->ops;
    const qv_block_kind *kind = &vit->kind;
    size_t T = vit->T, D = vit->config.D, L = vit->config.L, inner = kind->H * kind->d, keys = keys_of(pass);
    size_t M = request->instruct != NULL ? request->M : 0;
    bool relevant = request->relevance != NULL;
    size_t levels = pass->lowest < L ? L + 1 - request->first : 2;
    size_t turn_rows = qv_plan_product(arena, pass->turn, T), chunk_rows = qv_plan_product(arena, pass->chunk, T);
    size_t R = larger(turn_rows, pass->chunk); /* a turn's rows, or a chunk of class tokens */
    pass->x = qv_arena_take(arena, qv_plan_product(arena, levels, T), D * sizeof(float));
    const qv_block_activations shared = qv_block_plan(arena, kind, T, 0);
    pass->a = qv_block_plan_kept(arena, kind, &shared, T, request->first + 1 < L ? T : tokens_of(pass, L - 1));
    pass->g = qv_block_plan_gradients(arena, kind, R);
    pass->question = qv_vit_plan_question(arena, vit, M);
    pass->instruct = qv_arena_floats(arena, qv_place_size(ops, M * vit->config.instruction_dim));
    pass->once = qv_arena_take(arena, pass->turn, kind->F * sizeof(float));
    pass->d_class = qv_arena_take(arena, pools_class(vit) ? pass->chunk : 0, D * sizeof(float));
    pass->d_x = qv_arena_take(arena, pass->all_tokens ? chunk_rows : 0, D * sizeof(float));
    pass->means = qv_arena_take(arena, pass->chunk, 3 * inner * sizeof(float));
    pass->weights = qv_arena_take(arena, pass->chunk, D * sizeof(float));
    pass->relevance = qv_arena_take(arena, relevant ? kind->H : 0, keys * sizeof(float));
    pass->added = qv_arena_floats(arena, relevant ? keys : 0);
    pass->rows = qv_arena_floats(arena, relevant ? chunk_rows : 0);
    pass->one_hot = qv_arena_floats(arena, relevant ? T : 0);
    pass->place = qv_arena_floats(arena, place_floats(pass, arena));
    pass->values = qv_arena_take(arena, request->keep != NULL || request->kept != NULL ? T : 0, inner * sizeof(float));
    pass->second_place = qv_arena_take(arena, kind->H, keys * sizeof(float));
    pass->target = qv_vit_plan_target(pass, arena);
    size_t deepest = larger(larger(qv_block_depth(kind), (kind->gated ? 2 : 1) * kind->F), larger(3 * inner, D));
    deepest = larger(larger(deepest, qv_vit_score_width(pass)), larger(vit->config.instruction_dim, vit->reduce_width));
    size_t width = request->single_head < L ? inner : kind->d;
    size_t scratch = ops->scratch_bytes(call->lanes, larger(larger(R, T), M), deepest, keys, width);
    qv_plan_scratch(call, arena, scratch + ops->backward_scratch_bytes(call->lanes, keys, width, 2 * kind->H, keys));
}

/* ---- a block forward ---- */

/* What enters block l. */
static float *level(const qv_vit_gradient_pass *pass, size_t l) {
    size_t number = l - pass->request->first, size = pass->vit->T * pass->vit->config.D;
    return pass->x + (pass->lowest < pass->vit->config.L ? number : number % 2) * size;
}

/* The attention of block l, `count` queries. */
static qv_attention attention_of(const qv_vit_gradient_pass *pass, size_t l, size_t n, size_t count) {
    const qv_vit *vit = pass->vit;
    const qv_block_kind kind = kind_of(pass, l);
    size_t D = vit->config.D;
    qv_attention attention = qv_block_attention(&kind, &pass->a);
    attention.precision = vit->patch_embedding.precision;
    attention.B = 1;
    attention.T = count;
    attention.S = vit->T;
    if (vit->blocks[l].integrated) {
        attention.extra_k = (qv_const_rows){pass->question.kv, 2 * D};
        attention.extra_v = (qv_const_rows){pass->question.kv + D, 2 * D};
        attention.extra_length = pass->request->instruct_length + n;
        attention.M = pass->request->M;
    }
    return attention;
}

/* Block l of sequence n; `again`: as far as its gradient reads of it. */
static void run_block(qv_vit_gradient_pass *pass, qv_call *call, size_t l, size_t n, bool again) {
    const qv_vit *vit = pass->vit;
    const qv_vit_block *block = &vit->blocks[l];
    const qv_block_kind kind = kind_of(pass, l);
    const qv_block_activations *a = &pass->a;
    size_t D = vit->config.D, T = vit->T, count = tokens_of(pass, l);
    const qv_rows x = {level(pass, l), D}, out = {again ? x.at : level(pass, l + 1), D};
    const qv_block_rows rows = {x, T, x, count};
    if (block->integrated) {
        qv_vit_embed_question(call, vit, block, &pass->question, pass->instruct, pass->request->M);
    }
    qv_block_project(call, &kind, &block->block, a, &rows, true);
    qv_vit_rotate(vit, call, a->kv, false, 1);
    if (count == T) {
        qv_vit_rotate(vit, call, a->q, false, 1);
    }
    const qv_attention attention = attention_of(pass, l, n, count);
    call->ops->attention(call, &attention, 1);
    if (again) {
        qv_block_keep(call, &kind, &block->block, a, qv_as_const(attention.out), x, count);
    } else {
        call->ops->copy(call, out, qv_as_const(x), count, D);
        qv_block_finish(call, &kind, &block->block, a, qv_as_const(attention.out), out, count, NULL);
    }
    qv_block_keep_slopes(call, &kind, a, count);
    pass->run = l;
}

/* ---- from the scores down ---- */

/* A turn of items at one block. */
typedef struct {
    size_t l, n;
    size_t first, place, count; /* the first one among the sequence's items, and in its chunk */
    size_t tokens;  /* of the block's output that gradients come from: 1 or T */
    bool further;   /* whether they go on to what enters the block, */
    bool keys;      /* and so, or for gradcam, through q, k and v */
} turn;

/* The class token's row of A and G. */
static void class_rows(const qv_vit_gradient_pass *pass, qv_call *call, const turn *t, size_t i) {
    const qv_vit_gradient_tap *tap = &pass->request->taps[t->l];
    size_t item = t->n * pass->items + t->first + i;
    qv_attention_backward one = {.forward = attention_of(pass, t->l, t->n, 1)};
    size_t inner = one.forward.H * one.forward.d, looks = one.forward.H * (one.forward.M + one.forward.S);
    bool first = t->first + i == 0 && tap->class_attention != NULL;
    qv_output attention = qv_vit_place(pass, pass->place, first ? tap->class_attention + t->n * looks : NULL, looks);
    qv_output gradient = qv_vit_place(pass, pass->second_place,
                                      tap->class_gradient != NULL ? tap->class_gradient + item * looks : NULL, looks);
    if (attention.host == NULL && gradient.host == NULL) {
        return;
    }
    one.d_out = (qv_const_rows){pass->g.d_attended + i * t->tokens * inner, inner};
    one.probabilities = attention.host != NULL ? attention.at : NULL;
    one.d_probabilities = gradient.host != NULL ? gradient.at : NULL;
    call->ops->attention_backward(call, &one, 1);
    qv_output_take(call, &attention);
    qv_output_take(call, &gradient);
}

/* G of one item, of which only `tokens` rows are not 0. */
static void take_attention_gradient(qv_call *call, const qv_attention *a, const float *from, float *host, size_t T) {
    size_t keys = a->M + a->S;
    for (size_t h = 0; h < a->H; h++) {
        qv_take_floats(call, host + h * T * keys, from + h * a->T * keys, a->T * keys);
    }
}

/* The attention of item i of the turn: gradients of q, k and v, and what is read on the way. */
static void attend_backward(const qv_vit_gradient_pass *pass, qv_call *call, const turn *t, size_t i) {
    const qv_vit *vit = pass->vit;
    const qv_vit_gradient_request *request = pass->request;
    const qv_ops *ops = call->ops;
    qv_attention_backward backward = {.forward = attention_of(pass, t->l, t->n, t->tokens)};
    const qv_attention *a = &backward.forward;
    size_t inner = a->H * a->d, T = vit->T, slot = t->further ? i : 0, item = t->n * pass->items + t->first + i;
    const qv_rows d_q = {pass->g.d_q + slot * t->tokens * inner, inner}, d_k = {pass->g.d_kv + slot * T * 2 * inner, 2 * inner};
    float *gradient = request->taps[t->l].attention_gradient;
    bool relevant = request->relevance != NULL && t->l >= request->relevance_from;
    float *row = relevant ? pass->rows + (t->place + i) * T : NULL;
    backward.d_out = (qv_const_rows){pass->g.d_attended + i * t->tokens * inner, inner};
    backward.query_weights = row;
    backward.relevance = relevant ? pass->relevance : NULL;
    if (t->keys) {
        backward.d_q = d_q;
        backward.d_k = d_k;
        backward.d_v = (qv_rows){d_k.at + inner, d_k.ld};
    }
    size_t looks = a->H * t->tokens * (a->M + a->S);
    qv_output seen = qv_output_at(vit->ops, pass->place, gradient != NULL && t->tokens == T ? gradient + item * looks : NULL,
                                  looks);
    if (gradient != NULL) {
        backward.d_probabilities = seen.host != NULL ? seen.at : pass->second_place;
    }
    if (t->keys || relevant || gradient != NULL) {
        ops->attention_backward(call, &backward, 1);
    }
    qv_output_take(call, &seen);
    if (gradient != NULL && seen.host == NULL) {
        take_attention_gradient(call, a, pass->second_place, gradient + item * looks * T, T);
    }
    if (relevant) {
        ops->mean_rows(call, pass->added, pass->relevance, a->H, a->M + a->S);
        ops->add(call, row, pass->added + a->M, 1, T);
    }
    if (t->keys) {
        qv_vit_rotate(vit, call, d_k, true, 1);
        if (t->tokens == T) {
            qv_vit_rotate(vit, call, d_q, true, 1);
        }
    }
    if (request->taps[t->l].gradcam != NULL) {
        float *means = pass->means + i * 3 * inner;
        size_t before = vit->prefix;
        ops->mean_rows(call, means + inner, d_k.at + before * d_k.ld, vit->P, 2 * inner);
        if (t->tokens == T) {
            ops->mean_rows(call, means, d_q.at + before * inner, vit->P, inner);
        }
    }
}

/* norm1's output at each patch times its mean gradient, which is that of the means of q, k and v's: the class token's query is
 * none of a patch. */
static void gradcam(const qv_vit_gradient_pass *pass, qv_call *call, const turn *t) {
    const qv_vit *vit = pass->vit;
    const qv_linear *qkv = &vit->blocks[t->l].block.qkv;
    size_t D = vit->config.D, inner = vit->kind.H * vit->kind.d, P = vit->P, skipped = t->tokens == vit->T ? 0 : inner;
    const qv_rows weights = {pass->weights, D};
    float *host = pass->request->taps[t->l].gradcam + (t->n * pass->items + t->first) * P;
    qv_output out = qv_vit_place(pass, pass->place, host, t->count * P);
    call->ops->linear_backward(call, weights, (qv_const_rows){pass->means + skipped, 3 * inner}, qkv, skipped,
                               3 * inner - skipped, false, t->count);
    call->ops->dots(call, out.at, (qv_const_rows){pass->a.normed + vit->prefix * D, D}, qv_as_const(weights), t->count, P, D);
    qv_output_take(call, &out);
}

static void run_turn(const qv_vit_gradient_pass *pass, qv_call *call, const turn *t) {
    const qv_vit *vit = pass->vit;
    const qv_block *block = &vit->blocks[t->l].block;
    const qv_block_kind kind = kind_of(pass, t->l);
    const qv_vit_gradient_tap *tap = &pass->request->taps[t->l];
    size_t D = vit->config.D, T = vit->T;
    qv_block_gradients g = pass->g;
    float *d_x = pass->d_x + t->place * T * D;
    g.d_rows = t->tokens == T ? d_x : pass->d_class + t->place * D;
    qv_block_backward_to_attention(call, &kind, block, &pass->a, &g, NULL, NULL, t->count, t->tokens);
    for (size_t i = 0; i < t->count; i++) {
        class_rows(pass, call, t, i);
        attend_backward(pass, call, t, i);
    }
    if (tap->gradcam != NULL) {
        gradcam(pass, call, t);
    }
    if (!t->further) {
        return;
    }
    qv_block_backward_from_attention(call, &kind, block, &g, (qv_const_rows){level(pass, t->l), D}, d_x, t->count, t->tokens,
                                     T);
    if (tap->hidden_gradient != NULL) {
        qv_take_floats(call, tap->hidden_gradient + (t->n * pass->items + t->first) * T * D, d_x, t->count * T * D);
    }
}

/* The cosine of the class token's query and each key. */
static void key_cosine(const qv_vit_gradient_pass *pass, qv_call *call, float *host) {
    const qv_ops *ops = call->ops;
    size_t inner = pass->vit->kind.H * pass->vit->kind.d, T = pass->vit->T;
    const qv_rows q = {pass->a.hidden, inner}, k = {pass->a.normed, inner};
    qv_output out = qv_vit_place(pass, pass->place, host, T);
    ops->copy(call, q, qv_as_const(pass->a.q), 1, inner);
    ops->copy(call, k, qv_as_const(pass->a.kv), T, inner);
    ops->unit_length(call, q.at, 1, inner);
    ops->unit_length(call, k.at, T, inner);
    ops->dots(call, out.at, qv_as_const(k), qv_as_const(q), 1, T, inner);
    qv_output_take(call, &out);
}

/* Block l, of the `count` items of a chunk. */
static void differentiate(qv_vit_gradient_pass *pass, qv_call *call, size_t l, size_t n, size_t first, size_t count) {
    const qv_vit *vit = pass->vit;
    const qv_vit_gradient_tap *tap = &pass->request->taps[l];
    turn t = {.l = l, .n = n, .tokens = l + 1 == vit->config.L && pools_class(vit) ? 1 : vit->T};
    t.further = l > pass->lowest || tap->hidden_gradient != NULL;
    t.keys = t.further || tap->gradcam != NULL;
    if (pass->run != l) {
        run_block(pass, call, l, n, true);
    }
    if (tap->key_cosine != NULL && first == 0) {
        key_cosine(pass, call, tap->key_cosine + n * vit->T);
    }
    if (tap->gradcam != NULL) {
        const qv_rows normed = {pass->a.normed, vit->config.D};
        call->ops->norm(call, normed, (qv_const_rows){level(pass, l), normed.ld}, &vit->blocks[l].block.norm1, vit->T);
    }
    size_t most = t.tokens == 1 && !t.further ? count : pass->turn;
    for (t.place = 0; t.place < count && !call->stopped; t.place += most) {
        t.first = first + t.place;
        t.count = smaller(count - t.place, most);
        run_turn(pass, call, &t);
    }
}

static void run_chunk(qv_vit_gradient_pass *pass, qv_call *call, size_t n, size_t first, size_t count) {
    const qv_vit_gradient_request *request = pass->request;
    size_t L = pass->vit->config.L, T = pass->vit->T;
    qv_vit_start_from_scores(pass, call, level(pass, L), n, first, count);
    if (request->relevance != NULL) {
        call->ops->copy(call, (qv_rows){pass->rows, T}, (qv_const_rows){pass->one_hot, 0}, count, T);
    }
    for (size_t l = L; l-- > pass->lowest && !call->stopped;) {
        differentiate(pass, call, l, n, first, count);
    }
    if (request->relevance != NULL) {
        qv_take_floats(call, request->relevance + (n * pass->items + first) * T, pass->rows, count * T);
    }
}

/* LeGrad's gradient of block l, whose activations and pooled y there are. */
static void legrad(const qv_vit_gradient_pass *pass, qv_call *call, size_t l, size_t n) {
    const qv_block_kind kind = kind_of(pass, l);
    const qv_attention attention = attention_of(pass, l, n, pass->vit->T);
    qv_vit_legrad(pass, call, &kind, &attention, l, n);
}

/* From what LeGrad's gradient read of the picture before. */
static void run_kept(qv_vit_gradient_pass *pass, qv_call *call, size_t n) {
    const qv_vit_gradient_request *request = pass->request;
    size_t L = pass->vit->config.L;
    for (size_t l = request->first; l < L && !call->stopped; l++) {
        if (request->taps[l].legrad != NULL) {
            qv_vit_legrad_find(pass, call);
            qv_vit_pool_again(pass, call, false);
            legrad(pass, call, l, n);
        }
    }
    qv_vit_legrad_find_row(pass, call, pass->target.pooled);
    qv_vit_pool_again(pass, call, true);
    qv_vit_score_last(pass, call, n);
}

static void run_sequence(qv_vit_gradient_pass *pass, qv_call *call, size_t n) {
    const qv_vit *vit = pass->vit;
    const qv_vit_gradient_request *request = pass->request;
    size_t L = vit->config.L, states = vit->T * vit->config.D, question = request->M * vit->config.instruction_dim;
    call->ops->give(call, level(pass, request->first), request->states + n * states, states * sizeof(float));
    if (request->instruct != NULL) {
        pass->instruct = (float *)qv_give_floats(call, pass->instruct, request->instruct + n * question, question);
    }
    for (size_t l = request->first; l < L && !call->stopped; l++) {
        run_block(pass, call, l, n, false);
        if (request->taps[l].legrad != NULL) {
            qv_vit_pool_block(pass, call, level(pass, l + 1));
            qv_vit_legrad_keep(pass, call);
            legrad(pass, call, l, n);
        }
    }
    qv_vit_pool_last(pass, call, level(pass, L));
    qv_vit_legrad_keep_row(pass, call, pass->target.pooled);
    qv_vit_score_last(pass, call, n);
    if (pass->lowest == L && !reads_scores(&request->taps[L])) {
        return;
    }
    for (size_t first = 0; first < pass->items && !call->stopped; first += pass->chunk) {
        run_chunk(pass, call, n, first, smaller(pass->items - first, pass->chunk));
    }
}

static qv_status run(void *state, qv_call *call, qv_error *err) {
    qv_vit_gradient_pass *pass = state;
    size_t D = pass->vit->config.D, T = pass->vit->T;
    float *host = qv_allocate(D + T, sizeof *host);
    if (host == NULL) {
        return qv_fail_memory(err, "a row of zeros");
    }
    memset(host, 0, (D + T) * sizeof *host);
    qv_vit_begin_targets(pass, call, host);
    if (pass->request->relevance != NULL) {
        host[D] = 1.0f;
        call->ops->give(call, pass->one_hot, host + D, T * sizeof *host);
    }
    for (size_t n = 0; n < pass->request->N && !call->stopped; n++) {
        (pass->kept != NULL ? run_kept : run_sequence)(pass, call, n);
    }
    qv_free(host);
    return QV_OK;
}

static qv_status check(const qv_vit_gradient_pass *pass, qv_error *err) {
    const qv_vit *vit = pass->vit;
    const qv_vit_gradient_request *request = pass->request;
    size_t L = vit->config.L, E = qv_vit_score_width(pass);
    bool class_token = request->relevance != NULL, integrated = false;
    if (request->first >= L) {
        return qv_fail(err, QV_ERR_VALUE, "block %zu does not exist; this model has blocks 0 to %zu", request->first, L - 1);
    }
    for (size_t l = request->first; l < L; l++) {
        const qv_vit_gradient_tap *tap = &request->taps[l];
        class_token = class_token || tap->class_attention != NULL || tap->class_gradient != NULL || tap->key_cosine != NULL;
        integrated = integrated || vit->blocks[l].integrated;
    }
    if (class_token && !vit->has_class) {
        return qv_fail(err, QV_ERR_VALUE, "this tower has no class token");
    }
    if (reads_scores(&request->taps[L]) && vit->config.pooling != QV_POOL_MAP) {
        return qv_fail(err, QV_ERR_VALUE, "block %zu would be the attention head's, which this tower has not", L);
    }
    if (integrated && request->instruct == NULL) {
        return qv_fail(err, QV_ERR_VALUE, "blocks from %zu on take a question, and none was given", request->first);
    }
    size_t floats;
    if ((request->keep != NULL || request->kept != NULL) && !qv_vit_gradients_keep(vit, request, &floats)) {
        return qv_fail(err, QV_ERR_VALUE, "what is kept of a picture is for legrad alone, without a question");
    }
    if (request->texts == NULL && vit->answers.columns == 0) {
        return qv_fail(err, QV_ERR_VALUE, "texts: none were given, and this tower has no answers whose scores could be taken");
    }
    if (request->texts != NULL && request->E != E) {
        return qv_fail(err, QV_ERR_VALUE, "texts are %zu wide, expected %zu", request->E, E);
    }
    if (request->texts != NULL && request->paired && request->Q != request->N) {
        return qv_fail(err, QV_ERR_VALUE, "%zu texts for %zu pictures, expected one each", request->Q, request->N);
    }
    return QV_OK;
}

qv_status qv_vit_gradients(const qv_vit *vit, qv_call *call, const qv_vit_gradient_request *request, qv_error *err) {
    static const qv_planned planned = {"the gradients of a vision transformer", plan, run};
    qv_vit_gradient_pass pass = {
        .vit = vit, .request = request, .run = SIZE_MAX, .keep = request->keep, .kept = request->kept};
    qv_status status = check(&pass, err);
    if (status != QV_OK || request->N == 0 || (request->texts != NULL && request->Q == 0)) {
        return status;
    }
    find_extent(&pass);
    return qv_run_planned(call, (qv_arena_cache *)&vit->arenas, &planned, &pass, err);
}
