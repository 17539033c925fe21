/* How likely given texts are, and what of the states that the decoder reads makes them so. Norms last (BERT).
 *
 * 1. all tokens of a text but its last go through the blocks at once, each block keeping what its backward pass reads; the
 *    states' keys and values are made as for any memory
 * 2. log p of each next token, and its gradient with respect to the logits (ops->likelihood)
 * 3. back through the head and the blocks (models/block_backward.c); in each block the gradient of the cross-attention's
 *    keys and values goes through their weights into that of the states, which is the sum over blocks
 *
 * Texts lie one after another without padding; each reads states of its own. */
#include "models/decoder_gradient.h"

#include "models/planned.h"

#include <inttypes.h>

/* Rows that go through the head together: their logits [R, V] are the largest array of all. */
#define CHUNK_ROWS ((size_t)64)

/* Texts that go through the decoder together: T of them with R tokens and S states in all. */
typedef struct {
    size_t from, T, R, S;
} text_chunk;

typedef struct {
    const qv_decoder *decoder;
    const qv_decoder_texts *texts;
    float *log_probabilities, *d_states;
    text_chunk largest; /* in each of its sizes */
    int32_t *ids, *positions, *targets; /* [R] */
    size_t *start, *seen;               /* [T + 1]: in tokens, in states */
    qv_cross_run *runs;                 /* [T] */
    float *place;  /* [S, W], where the ops cannot read the caller's memory */
    float *h;      /* [R, D] */
    float *kv;     /* [L, S, 2 H d] */
    float *before, *activated, *normed; /* [R, D], of the head's transform */
    float *logits; /* [R, V] */
    float *d_kv;   /* [S, 2 H d] */
    qv_block_activations *blocks; /* [L] */
    qv_block_gradients gradients;
    qv_output likelihood; /* [R] */
    qv_output d_read;     /* [S, W] */
} gradient_pass;

static size_t tokens_of(const qv_decoder_texts *texts, size_t t) {
    return texts->lengths[t] - 1;
}

static text_chunk chunk_at(const qv_decoder_texts *texts, size_t from) {
    text_chunk chunk = {.from = from};
    do {
        size_t t = from + chunk.T++;
        chunk.R += tokens_of(texts, t);
        chunk.S += texts->states_lengths[t];
    } while (from + chunk.T < texts->count && chunk.R + tokens_of(texts, from + chunk.T) <= CHUNK_ROWS);
    return chunk;
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

/* ---- memory ---- */

static void plan_head(gradient_pass *pass, qv_arena *arena) {
    size_t R = pass->largest.R, D = pass->decoder->width;
    pass->before = qv_arena_floats(arena, R * D);
    pass->activated = qv_arena_floats(arena, R * D);
    pass->normed = qv_arena_floats(arena, R * D);
    pass->logits = qv_arena_floats(arena, qv_plan_product(arena, R, pass->decoder->vocab_size));
}

static void plan_blocks(gradient_pass *pass, qv_arena *arena) {
    const qv_decoder *decoder = pass->decoder;
    const qv_block_kind *kind = &decoder->kind;
    size_t R = pass->largest.R, S = pass->largest.S, both = 2 * kind->H * kind->d;
    qv_block_activations shared = qv_block_plan(arena, kind, R, 0);
    for (size_t l = 0; l < decoder->L; l++) {
        qv_block_activations kept = qv_block_plan_kept(arena, kind, &shared, R, R);
        if (pass->blocks != NULL) {
            pass->blocks[l] = kept;
        }
    }
    pass->gradients = qv_block_plan_gradients(arena, kind, R);
    pass->kv = qv_arena_floats(arena, qv_plan_product(arena, decoder->L * both, S));
    pass->d_kv = qv_arena_floats(arena, both * S);
}

static void plan(void *state, qv_call *call, qv_arena *arena) {
    gradient_pass *pass = state;
    const qv_decoder *decoder = pass->decoder;
    const qv_block_kind *kind = &decoder->kind;
    const qv_ops *ops = decoder->ops;
    size_t R = pass->largest.R, S = pass->largest.S, T = pass->largest.T, W = kind->cross_width;
    size_t depth = larger(larger(qv_block_depth(kind), decoder->vocab_size), larger(W, 2 * kind->H * kind->d));
    size_t scratch = ops->scratch_bytes(call->lanes, larger(R, S), depth, larger(R, S), kind->d);
    size_t backward = ops->backward_scratch_bytes(call->lanes, larger(R, S), kind->d, kind->H, larger(R, S));
    qv_plan_scratch(call, arena, scratch + backward);
    pass->ids = qv_arena_take_host(arena, R, sizeof *pass->ids);
    pass->positions = qv_arena_take_host(arena, R, sizeof *pass->positions);
    pass->targets = qv_arena_take_host(arena, R, sizeof *pass->targets);
    pass->start = qv_arena_take_host(arena, T + 1, sizeof *pass->start);
    pass->seen = qv_arena_take_host(arena, T + 1, sizeof *pass->seen);
    pass->runs = qv_arena_take_host(arena, T, sizeof *pass->runs);
    pass->blocks = qv_arena_take_host(arena, decoder->L, sizeof *pass->blocks);
    pass->place = qv_arena_floats(arena, qv_place_size(ops, S * W));
    pass->h = qv_arena_floats(arena, R * decoder->width);
    plan_blocks(pass, arena);
    plan_head(pass, arena);
    pass->likelihood = qv_output_lay_out(arena, ops, pass->log_probabilities, R);
    pass->d_read = qv_output_lay_out(arena, ops, pass->d_states, S * W);
}

/* ---- forward ---- */

static void fill_tokens(const gradient_pass *pass, const text_chunk *chunk) {
    const qv_decoder_texts *texts = pass->texts;
    size_t r = 0;
    pass->start[0] = pass->seen[0] = 0;
    for (size_t t = 0; t < chunk->T; t++) {
        const int64_t *ids = texts->ids + (chunk->from + t) * texts->n;
        for (size_t i = 0; i < tokens_of(texts, chunk->from + t); i++, r++) {
            pass->ids[r] = (int32_t)ids[i];
            pass->targets[r] = (int32_t)ids[i + 1];
            pass->positions[r] = (int32_t)i;
        }
        pass->start[t + 1] = r;
        pass->seen[t + 1] = pass->seen[t] + texts->states_lengths[chunk->from + t];
    }
}

/* What block l reads: a run a text. */
static qv_cross_states cross_of(const gradient_pass *pass, const text_chunk *chunk, size_t l) {
    const qv_block_kind *kind = &pass->decoder->kind;
    const float *kv = pass->kv + l * chunk->S * 2 * kind->H * kind->d;
    for (size_t t = 0; t < chunk->T; t++) {
        size_t row = pass->start[t], state = pass->seen[t];
        pass->runs[t] = (qv_cross_run){kv + state * 2 * kind->H * kind->d, pass->seen[t + 1] - state, row,
                                       pass->start[t + 1] - row};
    }
    return (qv_cross_states){pass->runs, chunk->T};
}

static void run_block(const gradient_pass *pass, qv_call *call, const text_chunk *chunk, const float *states, size_t l) {
    const qv_block_kind *kind = &pass->decoder->kind;
    const qv_block *block = &pass->decoder->blocks[l];
    const qv_block_activations *a = &pass->blocks[l];
    size_t D = kind->D, inner = kind->H * kind->d, R = chunk->R;
    const qv_cross_states cross = cross_of(pass, chunk, l);
    const qv_sequences sequences = {.B = chunk->T, .start = pass->start};
    const qv_rows h = {pass->h, D};
    const qv_block_rows rows = {h, R, h, R};
    qv_rows kv = {pass->kv + l * chunk->S * 2 * inner, 2 * inner};
    call->ops->linear(call, kv, (qv_const_rows){states, kind->cross_width}, &block->cross_kv, 0, 2 * inner, NULL, chunk->S);
    qv_block_run(call, kind, block, a, &rows, &sequences, &cross);
}

static void run_forward(const gradient_pass *pass, qv_call *call, const text_chunk *chunk, const float *states) {
    const qv_decoder *decoder = pass->decoder;
    size_t D = decoder->width, R = chunk->R;
    const qv_tensor *tables[] = {&decoder->words, &decoder->positions};
    const int32_t *ids[] = {pass->ids, pass->positions};
    qv_rows h = {pass->h, D}, before = {pass->before, D}, normed = {pass->normed, D};
    qv_text_embed(call, pass->h, pass->blocks[0].normed, tables, ids, 2, R, D);
    call->ops->norm(call, h, qv_as_const(h), &decoder->embedding_norm, R);
    for (size_t l = 0; l < decoder->L; l++) {
        run_block(pass, call, chunk, states, l);
    }
    call->ops->linear(call, before, qv_as_const(h), &decoder->transform, 0, D, NULL, R);
    call->ops->activation(call, pass->activated, pass->before, decoder->activation, R * D);
    call->ops->norm(call, normed, (qv_const_rows){pass->activated, D}, &decoder->transform_norm, R);
    size_t V = decoder->vocab_size;
    call->ops->linear(call, (qv_rows){pass->logits, V}, qv_as_const(normed), &decoder->head, 0, V, NULL, R);
}

/* ---- backward ---- */

/* d_x of what leaves the last block, from the logits' gradient */
static void head_backward(const gradient_pass *pass, qv_call *call, size_t R) {
    const qv_decoder *decoder = pass->decoder;
    const qv_ops *ops = call->ops;
    size_t D = decoder->width, V = decoder->vocab_size;
    qv_rows d_rows = {pass->gradients.d_rows, D}, d_x = {pass->gradients.d_x, D};
    ops->linear_backward(call, d_rows, (qv_const_rows){pass->logits, V}, &decoder->head, 0, V, false, R);
    ops->norm_backward(call, d_rows, qv_as_const(d_rows), (qv_const_rows){pass->activated, D}, &decoder->transform_norm, R);
    ops->activation_backward(call, d_rows.at, d_rows.at, pass->before, decoder->activation, R * D);
    ops->linear_backward(call, d_x, qv_as_const(d_rows), &decoder->transform, 0, D, false, R);
}

/* d_x of block l's input, and what it adds to the states' gradient */
static void block_backward(const gradient_pass *pass, qv_call *call, const text_chunk *chunk, size_t l) {
    const qv_decoder *decoder = pass->decoder;
    const qv_block_kind *kind = &decoder->kind;
    const qv_block_gradients *g = &pass->gradients;
    size_t inner = kind->H * kind->d, W = kind->cross_width;
    const qv_cross_states cross = cross_of(pass, chunk, l);
    qv_block_backward_to_cross(call, kind, &decoder->blocks[l], &pass->blocks[l], g, chunk->R);
    for (size_t t = 0; t < chunk->T; t++) {
        qv_attention_backward attention = qv_block_cross_backward(kind, &pass->blocks[l], g, &cross.runs[t]);
        float *d_kv = pass->d_kv + pass->seen[t] * 2 * inner;
        attention.d_k = (qv_rows){d_kv, 2 * inner};
        attention.d_v = (qv_rows){d_kv + inner, 2 * inner};
        call->ops->attention_backward(call, &attention, 1);
    }
    call->ops->linear_backward(call, (qv_rows){pass->d_read.at, W}, (qv_const_rows){pass->d_kv, 2 * inner},
                               &decoder->blocks[l].cross_kv, 0, 2 * inner, l + 1 < decoder->L, chunk->S);
    if (l > 0) {
        const qv_sequences sequences = {.B = chunk->T, .start = pass->start};
        qv_block_backward_from_cross(call, kind, &decoder->blocks[l], &pass->blocks[l], g, chunk->R);
        qv_block_attend_backward(call, kind, &pass->blocks[l], g, &sequences);
        qv_block_project_backward(call, kind, &decoder->blocks[l], g, chunk->R, chunk->R);
        call->ops->add(call, g->d_x, g->d_rows, chunk->R, kind->D);
    }
}

static qv_status run(void *state, qv_call *call, qv_error *err) {
    gradient_pass *pass = state;
    const qv_decoder *decoder = pass->decoder;
    const qv_decoder_texts *texts = pass->texts;
    const qv_output log_probabilities = pass->likelihood, d_states = pass->d_read;
    size_t W = decoder->kind.cross_width, row = 0, read = 0;
    (void)err;
    for (size_t from = 0; from < texts->count && !call->stopped;) {
        const text_chunk chunk = chunk_at(texts, from);
        const float *states = qv_give_floats(call, pass->place, texts->states + read * W, chunk.S * W);
        pass->likelihood = qv_output_part(&log_probabilities, row, chunk.R);
        pass->d_read = qv_output_part(&d_states, read * W, chunk.S * W);
        fill_tokens(pass, &chunk);
        run_forward(pass, call, &chunk, states);
        call->ops->likelihood(call, pass->likelihood.at, pass->logits, pass->targets, chunk.R, decoder->vocab_size);
        head_backward(pass, call, chunk.R);
        for (size_t l = decoder->L; l-- > 0;) {
            block_backward(pass, call, &chunk, l);
        }
        qv_output_take(call, &pass->likelihood);
        qv_output_take(call, &pass->d_read);
        from += chunk.T;
        row += chunk.R;
        read += chunk.S;
    }
    return QV_OK;
}

/* ---- the entry ---- */

static qv_status check_texts(const qv_decoder *decoder, const qv_decoder_texts *texts, qv_error *err) {
    size_t most = decoder->max_tokens == 0 || decoder->max_tokens >= texts->n ? texts->n : decoder->max_tokens + 1;
    for (size_t t = 0; t < texts->count; t++) {
        if (texts->lengths[t] < 2 || texts->lengths[t] > most) {
            return qv_fail(err, QV_ERR_VALUE, "text %zu has %zu tokens, expected 2 to %zu", t, texts->lengths[t], most);
        }
        if (texts->states_lengths[t] == 0) {
            return qv_fail(err, QV_ERR_VALUE, "text %zu reads no states", t);
        }
        for (size_t i = 0; i < texts->lengths[t]; i++) {
            int64_t id = texts->ids[t * texts->n + i];
            if (id < 0 || (uint64_t)id >= decoder->vocab_size) {
                return qv_fail(err, QV_ERR_VALUE, "ids: text %zu holds %" PRId64 " at position %zu, expected 0 to %zu", t,
                               id, i, decoder->vocab_size - 1);
            }
        }
    }
    return QV_OK;
}

qv_status qv_decoder_differentiate(qv_decoder *decoder, qv_call *call, float *log_probabilities, float *d_states,
                                   const qv_decoder_texts *texts, qv_error *err) {
    static const qv_planned planned = {"the activations of a decoder and their gradients", plan, run};
    gradient_pass pass = {.decoder = decoder, .texts = texts, .log_probabilities = log_probabilities,
                          .d_states = d_states};
    if (decoder->kind.norm_first || decoder->transform.columns == 0) {
        return qv_fail(err, QV_ERR_VALUE, "%s: gradients are those of a BERT decoder", decoder->name);
    }
    qv_status status = check_texts(decoder, texts, err);
    if (status != QV_OK) {
        return status;
    }
    for (size_t from = 0; from < texts->count;) {
        text_chunk chunk = chunk_at(texts, from), *largest = &pass.largest;
        largest->T = larger(largest->T, chunk.T);
        largest->R = larger(largest->R, chunk.R);
        largest->S = larger(largest->S, chunk.S);
        from += chunk.T;
    }
    return qv_run_planned(call, &decoder->arenas, &planned, &pass, err);
}
