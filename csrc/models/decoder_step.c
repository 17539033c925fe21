/* A decoder's rows go on by some tokens each.
 *
 *  1. x [R, D] = word[ids] (+ position[index in the row], normed: BERT), the tokens of all rows one after another, no padding
 *  2. each block: q, k, v of x; k and v join the row's in the cache; attention over all of the row's, causal, with
 *     bias[h, query - key] (T5); cross-attention over the row's sequence; feed-forward
 *  3. logits = head(final_norm(x)) (T5), head(transform_norm(act(transform(x)))) (BERT), of the tokens that are asked for
 *
 * Absorbed cross-attention, over states X [S, W] without keys and values: the scores q (X W_k^T)^T are (q W_k) X^T, and a key's
 * bias adds the same to all of a row, which the softmax takes away; p (X W_v^T + b_v) is (p X) W_v^T + b_v, since p sums to 1.
 * Heads are rows of their own: row h of a token holds head h's part of q, and zeros. */
#include "models/decoder.h"

#include "models/planned.h"

#include <inttypes.h>
#include <string.h>

/* About so many tokens run at once: enough for the products' full speed, few enough for the caches and for memory; fewer where
 * every head's weights are looked at. */
#define TOKENS_A_PASS ((size_t)1024)
#define WATCHED_TOKENS ((size_t)64)
/* Tokens that go through absorbed attention together, H rows each, and through the head. */
#define ABSORBED_TOKENS ((size_t)32)
#define HEAD_TOKENS ((size_t)256)
/* Multiply-adds of a product below which one lane is faster than waking another. */
#define WORTH_A_LANE ((size_t)1 << 20)

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

static size_t smaller(size_t a, size_t b) {
    return a < b ? a : b;
}

/* Some rows' part of a step. */
typedef struct {
    size_t first, end; /* rows */
    size_t R;          /* tokens, of all of them */
    size_t least, most; /* of the lengths before, and with the new tokens */
} step_pass;

typedef struct {
    const qv_decoder *decoder;
    qv_decoder_cache *cache;
    const qv_decoder_tokens *tokens;
    float *logits; /* [rows, V], with `all` [rows, n, V]; NULL: */
    bool all;
    float *weights; /* [rows, n, S] */
    size_t S;
    /* The largest of all passes. */
    size_t R, rows, span, most; /* span: most - least */
    size_t seen;                /* states, by one row */
    size_t absorbed;            /* tokens that go through absorbed attention together; 0: none do */
    int32_t *ids, *positions;   /* [R] */
    size_t *same_set;           /* [rows], zeros */
    float *x;                   /* [R, D] */
    float *last;                /* [rows, D] */
    float *bias;                /* [H, span, most] */
    float *place;               /* [HEAD_TOKENS, V], where the ops cannot write to the caller's memory */
    float *probabilities;       /* [R, H, seen] where weights are wanted */
    float *sums;                /* [R, seen] likewise */
    float *spread, *gathered;   /* [absorbed H, H d] */
    float *turned;              /* [absorbed H, W] */
    float *scores;              /* [absorbed H, seen] */
    float *zeros, *zeros_place; /* [H d] */
    qv_block_activations a;
} step_call;

static size_t inner_width(const step_call *c) {
    return c->decoder->kind.H * c->decoder->kind.d;
}

static size_t new_tokens(const step_call *c, size_t row) {
    return c->tokens->lengths != NULL ? c->tokens->lengths[row] : c->tokens->n;
}

/* Everything that can be wrong with the tokens. */
static qv_status check(const step_call *c, qv_error *err) {
    const qv_decoder_cache *cache = c->cache;
    for (size_t r = 0; r < cache->rows; r++) {
        size_t count = new_tokens(c, r);
        if (count == 0 || count > c->tokens->n) {
            return qv_fail(err, QV_ERR_VALUE, "ids: %zu tokens in row %zu, expected 1 to %zu", count, r, c->tokens->n);
        }
        if (count > cache->capacity - cache->length[r]) {
            return qv_fail(err, QV_ERR_VALUE, "ids: %zu tokens more in row %zu, which holds %zu and has room for %zu", count,
                           r, cache->length[r], cache->capacity);
        }
        for (size_t i = 0; i < count; i++) {
            int64_t id = c->tokens->ids[r * c->tokens->n + i];
            if (id < 0 || (uint64_t)id >= c->decoder->vocab_size) {
                return qv_fail(err, QV_ERR_VALUE,
                               "ids: row %zu holds %" PRId64 " at position %zu, expected 0 to %zu (the vocabulary)", r, id,
                               i, c->decoder->vocab_size - 1);
            }
        }
    }
    return QV_OK;
}

/* The pass that begins with row `first`. */
static step_pass find_pass(const step_call *c, size_t first) {
    size_t limit = c->weights != NULL ? WATCHED_TOKENS : TOKENS_A_PASS;
    step_pass pass = {.first = first, .end = first, .least = SIZE_MAX};
    for (; pass.end < c->cache->rows; pass.end++) {
        size_t count = new_tokens(c, pass.end), length = c->cache->length[pass.end];
        if (pass.end != first && pass.R + count > limit) {
            break;
        }
        pass.R += count;
        pass.least = smaller(pass.least, length);
        pass.most = larger(pass.most, length + count);
    }
    return pass;
}

static void measure(step_call *c) {
    for (size_t first = 0; first < c->cache->rows;) {
        const step_pass pass = find_pass(c, first);
        c->R = larger(c->R, pass.R);
        c->rows = larger(c->rows, pass.end - first);
        c->span = larger(c->span, pass.most - pass.least);
        c->most = larger(c->most, pass.most);
        first = pass.end;
    }
    for (size_t r = 0; r < c->cache->rows; r++) {
        c->seen = larger(c->seen, qv_decoder_states_seen(c->cache, r));
        if (c->cache->source[r].memory->kv == NULL) {
            c->absorbed = smaller(ABSORBED_TOKENS, c->R);
        }
    }
}

static void plan(void *state, qv_call *call, qv_arena *arena) {
    step_call *c = state;
    const qv_decoder *decoder = c->decoder;
    const qv_block_kind *kind = &decoder->kind;
    const qv_ops *ops = decoder->ops;
    size_t R = c->R, H = kind->H, D = kind->D, inner = inner_width(c), absorbed = c->absorbed * H;
    size_t depth = qv_block_depth(kind), rows = larger(R, absorbed);
    if (R * (D * depth + c->seen * inner) < WORTH_A_LANE) {
        call->lanes = 1;
    }
    depth = absorbed != 0 ? larger(larger(depth, c->seen), kind->cross_width) : depth;
    size_t scratch = ops->scratch_bytes(call->lanes, rows, depth, larger(c->seen, c->most), kind->d);
    size_t backward = absorbed != 0 ? ops->backward_scratch_bytes(call->lanes, 0, 0, H, 0) : 0;
    qv_plan_scratch(call, arena, scratch + backward);
    c->ids = qv_arena_take_host(arena, R, sizeof *c->ids);
    c->positions = qv_arena_take_host(arena, R, sizeof *c->positions);
    c->same_set = qv_arena_take_host(arena, c->rows, sizeof *c->same_set);
    c->x = qv_arena_floats(arena, R * D);
    c->last = qv_arena_floats(arena, c->rows * D);
    c->bias = qv_arena_floats(arena, decoder->offset_bias.data != NULL ? H * c->span * c->most : 0);
    c->place = qv_arena_floats(arena, c->logits != NULL ? qv_place_size(ops, HEAD_TOKENS * decoder->vocab_size) : 0);
    c->probabilities = qv_arena_floats(arena, c->weights != NULL ? R * H * c->seen : 0);
    c->sums = qv_arena_floats(arena, c->weights != NULL ? R * c->seen : 0);
    c->spread = qv_arena_floats(arena, absorbed * inner);
    c->gathered = qv_arena_floats(arena, absorbed * inner);
    c->turned = qv_arena_floats(arena, absorbed * kind->cross_width);
    c->scores = qv_arena_floats(arena, absorbed * c->seen);
    c->zeros = qv_arena_take_host(arena, absorbed != 0 ? inner : 0, sizeof *c->zeros);
    c->zeros_place = qv_arena_floats(arena, absorbed != 0 ? qv_place_size(ops, inner) : 0);
    c->a = qv_block_plan(arena, kind, R, 0);
}

/* ---- in front of the blocks ---- */

static void embed(const step_call *c, qv_call *call, const step_pass *pass) {
    const qv_decoder *decoder = c->decoder;
    const qv_tensor *tables[] = {&decoder->words, &decoder->positions};
    const int32_t *ids[] = {c->ids, c->positions};
    size_t i = 0;
    for (size_t r = pass->first; r < pass->end; r++) {
        for (size_t n = 0; n < new_tokens(c, r); n++, i++) {
            c->ids[i] = (int32_t)c->tokens->ids[r * c->tokens->n + n];
            c->positions[i] = (int32_t)(c->cache->length[r] + n);
        }
    }
    qv_text_embed(call, c->x, c->a.normed, tables, ids, decoder->positions.data != NULL ? 2 : 1, pass->R, decoder->width);
    if (decoder->embedding_norm.weight.data != NULL) {
        const qv_rows x = {c->x, decoder->width};
        call->ops->norm(call, x, qv_as_const(x), &decoder->embedding_norm, pass->R);
    }
    if (decoder->offset_bias.data != NULL) {
        call->ops->relative_bias(call, c->bias, decoder->offset_bias.data, decoder->reach, pass->least, decoder->kind.H,
                                 pass->most - pass->least, pass->most);
    }
}

/* ---- self-attention ---- */

/* Rows from `row` on that go on alike: from one length by as many tokens. */
static size_t find_alike(const step_call *c, const step_pass *pass, size_t row) {
    size_t next = row + 1;
    while (next < pass->end && c->cache->length[next] == c->cache->length[row] && new_tokens(c, next) == new_tokens(c, row)) {
        next++;
    }
    return next;
}

/* Keys and values of rows [row, next), which go on alike, join those in the cache; they are rows `at` on of c->a.kv. */
static void keep_keys(const step_call *c, qv_call *call, float *kv, size_t row, size_t next, size_t at) {
    const qv_decoder_cache *cache = c->cache;
    size_t both = 2 * inner_width(c), length = cache->length[row], count = new_tokens(c, row);
    for (size_t r = row, end; r < next; r = end) {
        /* One token each, in places one after another: one copy. */
        for (end = r + 1; count == 1 && end < next && cache->place[end] == cache->place[end - 1] + 1; end++) {
        }
        const qv_const_rows from = {c->a.kv.at + (at + (r - row) * count) * c->a.kv.ld, c->a.kv.ld};
        float *to = kv + (cache->place[r] * cache->capacity + length) * both;
        call->ops->copy(call, (qv_rows){to, count == 1 ? cache->capacity * both : both}, from,
                        count == 1 ? end - r : count, both);
    }
}

/* c->a.attended: each row over its own tokens so far. */
static void attend(const step_call *c, qv_call *call, const step_pass *pass, size_t l) {
    const qv_decoder_cache *cache = c->cache;
    size_t inner = inner_width(c), both = 2 * inner, at = 0;
    float *kv = cache->kv + l * cache->places * cache->capacity * both;
    for (size_t r = pass->first, next; r < pass->end; r = next) {
        size_t count = new_tokens(c, r), length = cache->length[r];
        next = find_alike(c, pass, r);
        keep_keys(c, call, kv, r, next, at);
        qv_attention attention = qv_block_attention(&c->decoder->kind, &c->a);
        attention.out.at += at * attention.out.ld;
        attention.q.at += at * attention.q.ld;
        attention.k = (qv_const_rows){kv, both};
        attention.v = (qv_const_rows){kv + inner, both};
        attention.kv_index = cache->place + r;
        attention.kv_stride = cache->capacity;
        attention.past = length;
        if (c->decoder->offset_bias.data != NULL) {
            attention.bias = (qv_const_rows){c->bias + (length - pass->least) * pass->most, pass->most};
            attention.bias_rows = pass->most - pass->least;
        }
        attention.B = next - r;
        attention.T = count;
        attention.S = length + count;
        call->ops->attention(call, &attention, 1);
        at += (next - r) * count;
    }
}

/* ---- cross-attention ---- */

/* sums [T, S] += the heads' probabilities [H, T, S], or those of the first block in their place. */
static void add_heads(const step_call *c, qv_call *call, float *sums, const float *probabilities, bool first, size_t T,
                      size_t S) {
    for (size_t h = 0; h < c->decoder->kind.H; h++, probabilities += T * S) {
        if (first && h == 0) {
            call->ops->copy(call, (qv_rows){sums, S}, (qv_const_rows){probabilities, S}, T, S);
        } else {
            call->ops->add(call, sums, probabilities, T, S);
        }
    }
}

/* Rows of a pass on one sequence, neighbours. */
typedef struct {
    const qv_decoder_source *source;
    size_t row, next;  /* rows */
    size_t at, count;  /* their tokens */
    float *sums;       /* [count, states seen] where weights are wanted */
} row_group;

/* `count` tokens of a group from `at` on, over the states of a sequence that has no keys. */
static void attend_absorbed(const step_call *c, qv_call *call, const row_group *group, size_t l, size_t at, size_t count) {
    const qv_block_kind *kind = &c->decoder->kind;
    const qv_decoder_memory *memory = group->source->memory;
    const qv_linear *states = &memory->states[group->source->sequence], *turned = &memory->turned[group->source->sequence];
    const qv_linear *cross_kv = &c->decoder->blocks[l].cross_kv;
    size_t H = kind->H, d = kind->d, inner = H * d, W = kind->cross_width, S = states->columns, R = count * H;
    const qv_rows spread = {c->spread, inner}, keys = {c->turned, W}, scores = {c->scores, S}, gathered = {c->gathered, inner};
    for (size_t h = 0; h < H; h++) {
        const qv_const_rows q = {c->a.cross_q + at * inner + h * d, inner};
        call->ops->copy(call, (qv_rows){c->spread + h * (inner + d), H * inner}, q, count, d);
    }
    call->ops->linear_backward(call, keys, qv_as_const(spread), cross_kv, 0, inner, false, R);
    call->ops->linear(call, scores, qv_as_const(keys), states, 0, S, NULL, R);
    call->ops->softmax(call, c->scores, kind->scale, R, S);
    for (size_t t = 0; c->weights != NULL && t < count; t++) {
        add_heads(c, call, group->sums + (at - group->at + t) * S, c->scores + t * H * S, l == 0, 1, S);
    }
    call->ops->linear(call, keys, qv_as_const(scores), turned, 0, W, NULL, R);
    call->ops->linear(call, gathered, qv_as_const(keys), cross_kv, inner, inner, NULL, R);
    for (size_t h = 0; h < H; h++) {
        const qv_const_rows part = {c->gathered + h * (inner + d), H * inner};
        call->ops->copy(call, (qv_rows){c->a.attended + at * inner + h * d, inner}, part, count, d);
    }
}

/* A group over the keys and values of its sequence, or each row over its own choice of them. */
static void attend_keys(const step_call *c, qv_call *call, const row_group *group, size_t l) {
    const qv_block_kind *kind = &c->decoder->kind;
    const qv_decoder_cache *cache = c->cache;
    const qv_decoder_memory *memory = group->source->memory;
    const size_t *start = memory->start + group->source->sequence;
    size_t before = l * memory->start[memory->count] + start[0], both = 2 * inner_width(c);
    const qv_cross_run run = {memory->kv + before * both, start[1] - start[0], group->at, group->count};
    qv_attention attention = qv_block_cross_attention(kind, &c->a, &run);
    if (cache->tokens != NULL) {
        attention.B = group->next - group->row;
        attention.T = group->count / attention.B;
        attention.S = cache->picked;
        attention.kv_index = c->same_set;
        attention.key_index = cache->tokens + group->row * cache->picked;
    }
    if (c->weights != NULL) {
        attention.probabilities = c->probabilities;
        attention.row_count = attention.T;
        attention.column_count = attention.S;
    }
    call->ops->attention(call, &attention, 1);
    size_t set = attention.T * attention.S;
    for (size_t b = 0; c->weights != NULL && b < attention.B; b++) {
        add_heads(c, call, group->sums + b * set, c->probabilities + b * kind->H * set, l == 0, attention.T, attention.S);
    }
}

/* The rows from `row` on that go through cross-attention together. */
static row_group find_group(const step_call *c, const step_pass *pass, size_t row, size_t at, float *sums) {
    const qv_decoder_source *source = &c->cache->source[row];
    row_group group = {source, row, row, at, 0, sums};
    for (; group.next < pass->end; group.next++) {
        const qv_decoder_source *other = &c->cache->source[group.next];
        size_t count = new_tokens(c, group.next);
        if (other->memory != source->memory || other->sequence != source->sequence ||
            (c->cache->tokens != NULL && count != new_tokens(c, row))) {
            break;
        }
        group.count += count;
    }
    return group;
}

/* c->a.attended of c->a.cross_q: each row over its sequence. */
static void attend_cross(const step_call *c, qv_call *call, const step_pass *pass, size_t l) {
    float *sums = c->sums;
    size_t at = 0;
    for (size_t r = pass->first; r < pass->end;) {
        const row_group group = find_group(c, pass, r, at, sums);
        bool absorbed = group.source->memory->kv == NULL;
        for (size_t i = 0; absorbed && i < group.count; i += c->absorbed) {
            attend_absorbed(c, call, &group, l, at + i, smaller(c->absorbed, group.count - i));
        }
        if (!absorbed) {
            attend_keys(c, call, &group, l);
        }
        if (sums != NULL) {
            sums += group.count * qv_decoder_states_seen(c->cache, r);
        }
        at += group.count;
        r = group.next;
    }
}

/* ---- behind the blocks ---- */

/* out [count, V], the caller's, of states x [count, D] */
static void run_head(const step_call *c, qv_call *call, float *out, const float *x, size_t count) {
    const qv_decoder *decoder = c->decoder;
    size_t D = decoder->width, V = decoder->vocab_size;
    for (size_t i = 0, rows; i < count; i += rows) {
        rows = smaller(HEAD_TOKENS, count - i);
        const qv_const_rows states = {x + i * D, D};
        const qv_rows normed = {c->a.normed, D}, transformed = {c->a.hidden, D};
        if (decoder->transform.columns != 0) {
            const qv_epilogue activate = {.activation = decoder->activation};
            call->ops->linear(call, transformed, states, &decoder->transform, 0, D, &activate, rows);
            call->ops->norm(call, normed, qv_as_const(transformed), &decoder->transform_norm, rows);
        } else {
            call->ops->norm(call, normed, states, &decoder->final_norm, rows);
        }
        const qv_output logits = qv_output_at(call->ops, c->place, out + i * V, rows * V);
        call->ops->linear(call, (qv_rows){logits.at, V}, qv_as_const(normed), &decoder->head, 0, V, NULL, rows);
        qv_output_take(call, &logits);
    }
}

static void hand_out_logits(const step_call *c, qv_call *call, const step_pass *pass) {
    size_t D = c->decoder->width, V = c->decoder->vocab_size, n = c->tokens->n, rows = pass->end - pass->first, at = 0;
    if (pass->R == rows * n && (c->all || n == 1)) {
        run_head(c, call, c->logits + pass->first * n * V, c->x, pass->R);
        return;
    }
    for (size_t r = pass->first; r < pass->end; r++) {
        size_t count = new_tokens(c, r);
        if (c->all) {
            float *out = c->logits + r * n * V;
            run_head(c, call, out, c->x + at * D, count);
            memset(out + count * V, 0, (n - count) * V * sizeof *out);
        } else {
            const qv_const_rows last = {c->x + (at + count - 1) * D, D};
            call->ops->copy(call, (qv_rows){c->last + (r - pass->first) * D, D}, last, 1, D);
        }
        at += count;
    }
    if (!c->all) {
        run_head(c, call, c->logits + pass->first * V, c->last, rows);
    }
}

static void hand_out_weights(const step_call *c, qv_call *call, const step_pass *pass) {
    const float *sums = c->sums;
    for (size_t r = pass->first; r < pass->end; r++) {
        size_t seen = qv_decoder_states_seen(c->cache, r);
        for (size_t i = 0; i < new_tokens(c, r); i++, sums += seen) {
            qv_take_floats(call, c->weights + (r * c->tokens->n + i) * c->S, sums, seen);
        }
    }
}

/* ---- a step ---- */

static qv_status run(void *state, qv_call *call, qv_error *err) {
    step_call *c = state;
    const qv_decoder *decoder = c->decoder;
    const qv_block_kind *kind = &decoder->kind;
    size_t inner = inner_width(c);
    const qv_rows x = {c->x, decoder->width};
    (void)err;
    memset(c->same_set, 0, c->rows * sizeof *c->same_set);
    if (c->absorbed != 0) {
        memset(c->zeros, 0, inner * sizeof *c->zeros);
        const float *zeros = qv_give_floats(call, c->zeros_place, c->zeros, inner);
        call->ops->copy(call, (qv_rows){c->spread, inner}, (qv_const_rows){zeros, 0}, c->absorbed * kind->H, inner);
    }
    for (size_t first = 0; first < c->cache->rows && !call->stopped;) {
        const step_pass pass = find_pass(c, first);
        const qv_block_rows all = {x, pass.R, x, pass.R};
        embed(c, call, &pass);
        for (size_t l = 0; l < decoder->L; l++) {
            const qv_block *block = &decoder->blocks[l];
            qv_block_project(call, kind, block, &c->a, &all, true);
            attend(c, call, &pass, l);
            qv_rows h = qv_block_add_attended(call, kind, block, &c->a, (qv_const_rows){c->a.attended, inner}, x, pass.R);
            qv_block_cross_query(call, kind, block, &c->a, h, pass.R);
            attend_cross(c, call, &pass, l);
            h = qv_block_add_cross(call, kind, block, &c->a, h, x, pass.R);
            qv_block_feed_forward(call, kind, block, &c->a, h, x, pass.R);
        }
        (c->weights != NULL ? hand_out_weights : hand_out_logits)(c, call, &pass);
        first = pass.end;
    }
    return QV_OK;
}

static qv_status run_step(step_call *c, qv_decoder *decoder, qv_call *call, qv_error *err) {
    static const qv_planned planned = {"a decoder's activations", plan, run};
    qv_status status = check(c, err);
    if (status != QV_OK) {
        return status;
    }
    measure(c);
    status = qv_run_planned(call, &decoder->arenas, &planned, c, err);
    for (size_t r = 0; status == QV_OK && r < c->cache->rows; r++) {
        c->cache->length[r] += new_tokens(c, r);
    }
    return status;
}

qv_status qv_decoder_step(qv_decoder *decoder, qv_call *call, float *logits, qv_decoder_cache *cache,
                          const qv_decoder_tokens *tokens, bool all, qv_error *err) {
    step_call c = {.decoder = decoder, .cache = cache, .tokens = tokens, .logits = logits, .all = all};
    return run_step(&c, decoder, call, err);
}

qv_status qv_decoder_attend(qv_decoder *decoder, qv_call *call, float *weights, size_t S, qv_decoder_cache *cache,
                            const qv_decoder_tokens *tokens, qv_error *err) {
    step_call c = {.decoder = decoder, .cache = cache, .tokens = tokens, .weights = weights, .S = S};
    size_t items = cache->rows * tokens->n * S;
    memset(weights, 0, items * sizeof *weights);
    qv_status status = run_step(&c, decoder, call, err);
    float share = 1.0f / (float)(decoder->L * decoder->kind.H);
    for (size_t i = 0; status == QV_OK && i < items; i++) {
        weights[i] *= share;
    }
    return status;
}
