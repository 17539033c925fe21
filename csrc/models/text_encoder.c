/* A text encoder, by what its weights and config hold.
 *
 *  1. x [R, D] = word[ids] (+ position (+ token type 0)), normed (BERT); behind a picture (QA-ViT's T5) its tokens, each
 *     through two layers with relu between them, come first, and words are looked up in a table of their own
 *  2. bias [H, M, M] = offset_bias[key - query] (T5), added to every block's scores
 *  3. L blocks (models/block.h): norm first (T5, CLIP) or last (BERT), causal (CLIP)
 *  4. out = final_norm(x) (T5, CLIP)
 *
 * Rows of tokens lie one after another without padding, so a row's numbers do not depend on its neighbours. */
#include "models/text_encoder.h"

#include "models/planned.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Bounds that keep every product of two sizes of a plan inside size_t. */
#define MAX_ROWS ((size_t)1 << 24)
/* For an architecture without a limit, whose bias [H, M, M] has to fit in memory. */
#define MAX_TOKENS ((size_t)1 << 12)
/* About so many tokens run at once: enough for the products' full speed, few enough for the caches and for memory. */
#define TOKENS_A_PASS ((size_t)1024)
/* Multiply-adds of a product below which one lane is faster than waking another. */
#define WORTH_A_LANE ((size_t)1 << 20)

/* ---- the tokens ---- */

/* Everything that can be wrong with ids and mask. */
static qv_status check_tokens(const qv_text_encoder *encoder, const int64_t *ids, const int64_t *mask, size_t B,
                              size_t M, size_t S, qv_error *err) {
    if (B == 0 || M == 0) {
        return qv_fail(err, QV_ERR_VALUE, "ids: shape [%zu, %zu], expected at least one row of at least one token", B,
                       M);
    }
    size_t limit = encoder->max_tokens != 0 ? encoder->max_tokens : MAX_TOKENS;
    if (M > limit || S > limit - M) {
        return S == 0 ? qv_fail(err, QV_ERR_VALUE, "ids: %zu tokens a row, this encoder takes at most %zu", M, limit)
                      : qv_fail(err, QV_ERR_VALUE, "a picture of %zu tokens and %zu words, this encoder takes at most %zu",
                                S, M, limit);
    }
    if (B > MAX_ROWS / M) {
        return qv_fail(err, QV_ERR_VALUE, "ids: shape [%zu, %zu], at most %zu tokens are taken in one call", B, M,
                       MAX_ROWS);
    }
    for (size_t b = 0; b < B; b++) {
        bool any = false;
        for (size_t m = 0; m < M; m++) {
            int64_t id = ids[b * M + m];
            if (id < 0 || (uint64_t)id >= encoder->vocab_size) {
                return qv_fail(err, QV_ERR_VALUE,
                               "ids: row %zu holds %" PRId64 " at position %zu, expected 0 to %zu (the vocabulary)", b,
                               id, m, encoder->vocab_size - 1);
            }
            any = any || mask == NULL || mask[b * M + m] != 0;
        }
        if (!any) {
            return qv_fail(err, QV_ERR_VALUE, "mask: row %zu is padding alone, expected at least one token", b);
        }
    }
    return QV_OK;
}

/* One call: its rows, and the largest of its passes. */
typedef struct {
    qv_text_encoder *encoder;
    const int64_t *ids, *mask;
    size_t B, M;
    const float *picture; /* [S, W], the host's, in front of the only row's tokens; S 0: none */
    size_t S;
    size_t output_width;
    qv_text_finish finish;
    void *context;
    size_t rows, tokens, longest; /* of a pass; of a row */
    qv_text_pass pass;
    float *x; /* [tokens, D] */
    float *bias; /* [H, longest, longest] */
    float *place; /* [S, W], where the ops cannot read the caller's memory */
    qv_block_activations a;
} text_call;

/* The columns of row b from its first token to its last. */
static void find_span(const text_call *c, size_t b, size_t *first, size_t *end) {
    const int64_t *mask = c->mask != NULL ? c->mask + b * c->M : NULL;
    *first = 0;
    *end = c->M;
    while (mask != NULL && mask[*first] == 0) {
        ++*first;
    }
    while (mask != NULL && mask[*end - 1] == 0) {
        --*end;
    }
}

/* Rows from `first` on that go through the blocks together, and their tokens. */
static size_t measure_pass(const text_call *c, size_t first, size_t *tokens, size_t *longest) {
    size_t b = first;
    for (*tokens = 0, *longest = 0; b < c->B; b++) {
        size_t start, end;
        find_span(c, b, &start, &end);
        size_t count = c->S + end - start;
        if (b != first && *tokens + count > TOKENS_A_PASS) {
            break;
        }
        *tokens += count;
        *longest = count > *longest ? count : *longest;
    }
    return b - first;
}

static void fill_pass(text_call *c, size_t first, size_t rows) {
    const qv_text_encoder *encoder = c->encoder;
    qv_text_pass *pass = &c->pass;
    size_t r = 0;
    pass->first = first;
    pass->B = rows;
    pass->holes = false;
    pass->start[0] = 0;
    for (; r < c->S; r++) { /* what is looked up here, the picture's tokens take the place of */
        pass->ids[r] = pass->positions[r] = pass->types[r] = 0;
        pass->key_mask[r] = 1;
    }
    for (size_t b = 0; b < rows; b++) {
        size_t row = (first + b) * c->M, start, end, seen = 0;
        find_span(c, first + b, &start, &end);
        for (size_t m = 0; m < end; m++) {
            bool padding = encoder->skips_padding && (size_t)c->ids[row + m] == encoder->pad_id;
            seen += padding ? 0 : 1;
            if (m < start) {
                continue;
            }
            size_t position = padding ? encoder->pad_id : encoder->skips_padding ? encoder->pad_id + seen : m;
            pass->ids[r] = (int32_t)c->ids[row + m];
            pass->positions[r] = (int32_t)position;
            pass->types[r] = 0;
            pass->key_mask[r] = c->mask == NULL || c->mask[row + m] != 0;
            pass->holes = pass->holes || pass->key_mask[r] == 0;
            r++;
        }
        pass->column[b] = start;
        pass->start[b + 1] = r;
    }
}

/* ---- running ---- */

static void plan(void *state, qv_call *call, qv_arena *arena) {
    text_call *c = state;
    const qv_text_encoder *encoder = c->encoder;
    const qv_ops *ops = encoder->ops;
    size_t R = c->tokens, depth = qv_block_depth(&encoder->kind);
    depth = c->S != 0 && encoder->picture_width > depth ? encoder->picture_width : depth;
    if (R * encoder->width * depth < WORTH_A_LANE) {
        call->lanes = 1; /* the pool's width may change at any time: else those that the call began with */
    }
    qv_plan_scratch(call, arena, ops->scratch_bytes(call->lanes, R, depth, c->longest, encoder->kind.d));
    c->pass.start = qv_arena_take_host(arena, c->rows + 1, sizeof *c->pass.start);
    c->pass.column = qv_arena_take_host(arena, c->rows, sizeof *c->pass.column);
    c->pass.ids = qv_arena_take_host(arena, R, sizeof *c->pass.ids);
    c->pass.positions = qv_arena_take_host(arena, R, sizeof *c->pass.positions);
    c->pass.types = qv_arena_take_host(arena, R, sizeof *c->pass.types);
    c->pass.key_mask = qv_arena_take_host(arena, R, sizeof *c->pass.key_mask);
    c->pass.output = qv_arena_floats(arena, qv_place_size(ops, c->rows * c->output_width));
    c->place = qv_arena_floats(arena, qv_place_size(ops, c->S * encoder->picture_width));
    c->x = qv_arena_floats(arena, R * encoder->width);
    c->bias = qv_arena_floats(arena, encoder->offset_bias.data != NULL ? encoder->kind.H * c->longest * c->longest : 0);
    c->a = qv_block_plan(arena, &encoder->kind, R, 0);
}

void qv_text_embed(qv_call *call, float *x, float *spare, const qv_tensor *const *tables, const int32_t *const *ids,
                   size_t count, size_t R, size_t D) {
    /* The op adds a second array while it looks up, but not onto itself: take turns so that x comes last. */
    float *targets[2] = {x, spare};
    const float *sum = NULL;
    for (size_t i = 0; i < count; i++) {
        float *target = targets[(count - 1 - i) % 2];
        call->ops->embedding(call, target, tables[i], ids[i], sum, R, D);
        sum = target;
    }
}

static void embed(const text_call *c, qv_call *call, size_t R) {
    const qv_text_encoder *encoder = c->encoder;
    const qv_tensor *tables[QV_TEXT_TABLES] = {c->S != 0 ? &encoder->input_words : &encoder->words};
    const int32_t *ids[QV_TEXT_TABLES] = {c->pass.ids};
    size_t count = 1;
    if (encoder->positions.data != NULL) {
        tables[count] = &encoder->positions;
        ids[count++] = c->pass.positions;
    }
    if (encoder->token_types.data != NULL) {
        tables[count] = &encoder->token_types;
        ids[count++] = c->pass.types;
    }
    qv_text_embed(call, c->x, c->a.normed, tables, ids, count, R, encoder->width);
    if (encoder->embedding_norm.weight.data != NULL) {
        qv_rows x = {c->x, encoder->width};
        call->ops->norm(call, x, qv_as_const(x), &encoder->embedding_norm, R);
    }
}

/* The first S rows of x = the picture's tokens */
static void embed_picture(const text_call *c, qv_call *call) {
    const qv_text_encoder *encoder = c->encoder;
    size_t D = encoder->width, W = encoder->picture_width, S = c->S;
    const qv_epilogue activate = {.activation = QV_RELU};
    const float *picture = qv_give_floats(call, c->place, c->picture, S * W);
    qv_rows hidden = {c->a.normed, D};
    call->ops->linear(call, hidden, (qv_const_rows){picture, W}, &encoder->picture_in, 0, D, &activate, S);
    call->ops->linear(call, (qv_rows){c->x, D}, qv_as_const(hidden), &encoder->picture_out, 0, D, NULL, S);
}

static qv_status run(void *state, qv_call *call, qv_error *err) {
    text_call *c = state;
    const qv_text_encoder *encoder = c->encoder;
    qv_rows x = {c->x, encoder->width}, normed = {c->a.normed, encoder->width};
    qv_sequences sequences = {.start = c->pass.start};
    if (encoder->offset_bias.data != NULL) {
        call->ops->relative_bias(call, c->bias, encoder->offset_bias.data, encoder->reach, 0, encoder->kind.H, c->longest,
                                 c->longest);
        sequences.bias = (qv_const_rows){c->bias, c->longest};
        sequences.bias_rows = c->longest;
    }
    for (size_t first = 0, rows; first < c->B && !call->stopped; first += rows) {
        size_t R, longest;
        rows = measure_pass(c, first, &R, &longest);
        fill_pass(c, first, rows);
        sequences.B = rows;
        sequences.key_mask = c->pass.holes ? c->pass.key_mask : NULL;
        embed(c, call, R);
        if (c->S != 0) {
            embed_picture(c, call);
        }
        const qv_block_rows all = {x, R, x, R};
        for (size_t n = 0; n < encoder->L; n++) {
            qv_block_run(call, &encoder->kind, &encoder->blocks[n], &c->a, &all, &sequences, NULL);
        }
        const float *states = c->x;
        if (encoder->final_norm.weight.data != NULL) {
            call->ops->norm(call, normed, qv_as_const(x), &encoder->final_norm, R);
            states = normed.at;
        }
        qv_status status = c->finish(c->context, call, states, &c->pass, err);
        if (status != QV_OK) {
            return status;
        }
    }
    return QV_OK;
}

static qv_status run_call(text_call *c, qv_call *call, qv_error *err) {
    static const qv_planned planned = {"the activations of a text encoder", plan, run};
    qv_status status = check_tokens(c->encoder, c->ids, c->mask, c->B, c->M, c->S, err);
    if (status != QV_OK) {
        return status;
    }
    for (size_t first = 0, rows; first < c->B; first += rows) {
        size_t tokens, longest;
        rows = measure_pass(c, first, &tokens, &longest);
        c->rows = rows > c->rows ? rows : c->rows;
        c->tokens = tokens > c->tokens ? tokens : c->tokens;
        c->longest = longest > c->longest ? longest : c->longest;
    }
    call->ops = c->encoder->ops;
    return qv_run_planned(call, &c->encoder->arenas, &planned, c, err);
}

qv_status qv_text_run(qv_text_encoder *encoder, qv_call *call, const int64_t *ids, const int64_t *mask, size_t B,
                      size_t M, size_t output_width, qv_text_finish finish, void *context, qv_error *err) {
    text_call c = {.encoder = encoder, .ids = ids, .mask = mask, .B = B, .M = M, .output_width = output_width,
                   .finish = finish, .context = context};
    return run_call(&c, call, err);
}

typedef struct {
    float *out; /* [B, M, D] */
    size_t M, D;
} whole_output;

/* out [B, M, D] = the states where there is a token, else zeros */
static qv_status hand_out(void *context, qv_call *call, const float *states, const qv_text_pass *pass, qv_error *err) {
    const whole_output *output = context;
    size_t M = output->M, D = output->D;
    (void)err;
    for (size_t b = 0; b < pass->B; b++) {
        size_t first = pass->start[b], column = pass->column[b], end = column + pass->start[b + 1] - first;
        float *out = output->out + (pass->first + b) * M * D;
        for (size_t m = 0, next; m < M; m = next) {
            bool token = m >= column && m < end && pass->key_mask[first + m - column] != 0;
            for (next = m + 1; next < M; next++) {
                if (token != (next >= column && next < end && pass->key_mask[first + next - column] != 0)) {
                    break;
                }
            }
            if (token) {
                qv_take_floats(call, out + m * D, states + (first + m - column) * D, (next - m) * D);
            } else {
                memset(out + m * D, 0, (next - m) * D * sizeof *out);
            }
        }
    }
    return QV_OK;
}

qv_status qv_text_encode(qv_text_encoder *encoder, qv_call *call, float *out, const int64_t *ids, const int64_t *mask,
                         size_t B, size_t M, qv_error *err) {
    whole_output output = {out, M, encoder->width};
    return qv_text_run(encoder, call, ids, mask, B, M, 0, hand_out, &output, err);
}

/* out [S + M, D] = the states of all rows */
static qv_status hand_out_all(void *context, qv_call *call, const float *states, const qv_text_pass *pass, qv_error *err) {
    const whole_output *output = context;
    (void)err;
    qv_take_floats(call, output->out, states, pass->start[1] * output->D);
    return QV_OK;
}

qv_status qv_text_encode_picture(qv_text_encoder *encoder, qv_call *call, float *out, const float *picture, size_t S,
                                 const int64_t *ids, size_t M, qv_error *err) {
    whole_output output = {out, M, encoder->width};
    text_call c = {.encoder = encoder, .ids = ids, .B = 1, .M = M, .picture = picture, .S = S, .finish = hand_out_all,
                   .context = &output};
    if (encoder->picture_width == 0 || S == 0) {
        return qv_fail(err, QV_ERR_VALUE, S == 0 ? "picture: no tokens" : "this encoder takes no picture");
    }
    return run_call(&c, call, err);
}

void qv_text_free(qv_text_encoder *encoder) {
    if (encoder == NULL) {
        return;
    }
    qv_blocks_free(encoder->ops, encoder->blocks, encoder->L);
    qv_norm_free(encoder->ops, &encoder->embedding_norm);
    qv_norm_free(encoder->ops, &encoder->final_norm);
    qv_vector_free(encoder->ops, &encoder->offset_bias);
    qv_linear_free(encoder->ops, &encoder->projection);
    qv_linear_free(encoder->ops, &encoder->picture_in);
    qv_linear_free(encoder->ops, &encoder->picture_out);
    qv_arena_cache_clear(&encoder->arenas);
    qv_free(encoder);
}

/* ---- loading ---- */

qv_status qv_text_complete_config(qv_loader *loader, qv_text_config *config, const char *what, const char *words,
                                  const char *positions, const char *blocks, const qv_block_names *names) {
    char hidden[128], output[128];
    snprintf(hidden, sizeof hidden, "%s0.%s.weight", blocks, names->hidden[0]);
    snprintf(output, sizeof output, "%s.weight", names->output);
    const qv_found_size sizes[] = {
        {"vocab_size", &config->vocab_size, qv_load_size(loader, "", words, 0)},
        {"max_position_embeddings", &config->positions, qv_load_size(loader, "", positions, 0)},
        {"hidden_size", &config->D, qv_load_size(loader, "", words, 1)},
        {"num_attention_heads", &config->H, 0},
        {"intermediate_size", &config->F, qv_load_size(loader, "", hidden, 0)},
        {"num_hidden_layers", &config->L, qv_load_count(loader, blocks, output)},
    };
    qv_status status = qv_load_sizes(loader, what, sizes, sizeof sizes / sizeof sizes[0]);
    if (status == QV_OK && config->D % config->H != 0) {
        return qv_fail(loader->err, QV_ERR_VALUE, "%s: hidden_size %zu does not divide into num_attention_heads %zu",
                       what, config->D, config->H);
    }
    return status;
}

qv_text_encoder *qv_text_create(qv_loader *loader, const char *name, const qv_block_kind *kind, size_t L,
                                size_t vocab_size) {
    qv_block *blocks = qv_blocks_create(loader, L, name);
    qv_text_encoder *encoder = qv_load_allocate(loader, 1, sizeof *encoder, name);
    if (encoder == NULL) {
        qv_free(blocks);
        return NULL;
    }
    encoder->name = name;
    encoder->ops = loader->ops;
    encoder->arenas.memory = loader->ops->memory;
    encoder->kind = *kind;
    encoder->width = kind->D;
    encoder->vocab_size = vocab_size;
    encoder->blocks = blocks;
    encoder->L = L;
    return encoder;
}

qv_status qv_text_finish_load(qv_text_encoder **out, qv_text_encoder *encoder, qv_loader *loader) {
    qv_status status = qv_load_finish(loader, encoder->name);
    if (status != QV_OK) {
        qv_text_free(encoder);
        encoder = NULL;
    }
    *out = encoder;
    return status;
}
