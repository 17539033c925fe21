#include "models/text_common.h"

#include "base/threads.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Bounds that keep every product of two sizes of a plan inside size_t. */
#define MAX_ROWS ((size_t)1 << 24)
/* For an architecture without a limit, whose bias [H, M, M] has to fit in memory. */
#define MAX_TOKENS ((size_t)1 << 12)
/* About so many tokens run at once: enough for the products' full speed, few enough for the caches and for memory. */
#define ROWS_A_PASS ((size_t)1024)
/* Multiply-adds of a product below which one lane is faster than waking another. */
#define WORTH_A_LANE ((size_t)1 << 20)

#define MAX_BLOCKS ((size_t)4096)

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

/* The deepest product's K. */
static size_t depth(const qv_text_encoder *encoder) {
    return larger(larger(encoder->width, encoder->H * encoder->d), encoder->F);
}

/* Lanes that a call over `rows` rows is worth. */
static size_t count_lanes(const qv_text_encoder *encoder, size_t rows) {
    return rows * encoder->width * depth(encoder) < WORTH_A_LANE ? 1 : qv_thread_count();
}

/* Everything that can be wrong with ids and mask. */
static qv_status check_tokens(const qv_text_encoder *encoder, const int64_t *ids, const int64_t *mask, size_t B,
                              size_t M, qv_error *err) {
    if (B == 0 || M == 0) {
        return qv_fail(err, QV_ERR_VALUE, "ids: shape [%zu, %zu], expected at least one row of at least one token", B,
                       M);
    }
    size_t limit = encoder->max_tokens != 0 ? encoder->max_tokens : MAX_TOKENS;
    if (M > limit) {
        return qv_fail(err, QV_ERR_VALUE, "ids: %zu tokens a row, this encoder takes at most %zu", M, limit);
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

/* 1 + the last of M columns that holds a token in one of B rows */
static size_t columns_kept(const int64_t *mask, size_t B, size_t M) {
    size_t kept = mask == NULL ? M : 0;
    for (size_t i = 0; mask != NULL && i < B * M; i++) {
        kept = mask[i] != 0 && i % M >= kept ? i % M + 1 : kept;
    }
    return kept;
}

/* Copy rows batch->first.. of [., M] into the batch's own arrays, as far as its columns go. */
static void fill_batch(qv_text_batch *batch, const int64_t *ids, const int64_t *mask, size_t M) {
    bool padded = false;
    for (size_t b = 0; b < batch->B; b++) {
        for (size_t m = 0; m < batch->M; m++) {
            size_t from = (batch->first + b) * M + m, to = b * batch->M + m;
            bool token = mask == NULL || mask[from] != 0;
            batch->ids[to] = (int32_t)ids[from];
            batch->mask[to] = token;
            padded = padded || !token;
        }
    }
    batch->key_mask = padded ? batch->mask : NULL;
}

/* What every architecture needs on the arena, in front of its activations. */
static void plan_batch(const qv_text_encoder *encoder, qv_call *call, qv_text_batch *batch, qv_arena *arena) {
    size_t rows = batch->B * batch->M;
    call->scratch = qv_arena_take(
        arena, encoder->ops->scratch_bytes(call->lanes, rows, depth(encoder), batch->M, encoder->d), 1);
    batch->ids = qv_arena_take_host(arena, rows, sizeof *batch->ids);
    batch->mask = qv_arena_take_host(arena, rows, sizeof *batch->mask);
    batch->output = qv_arena_floats(arena, qv_place_size(encoder->ops, batch->B * encoder->output_width));
}

qv_status qv_text_run(qv_text_encoder *encoder, qv_call *call, const int64_t *ids, const int64_t *mask, size_t B,
                      size_t M, qv_text_finish finish, void *context, qv_error *err) {
    qv_status status = check_tokens(encoder, ids, mask, B, M, err);
    if (status != QV_OK) {
        return status;
    }
    const qv_text_architecture *architecture = encoder->architecture;
    size_t rows = ROWS_A_PASS / M < 1 ? 1 : ROWS_A_PASS / M < B ? ROWS_A_PASS / M : B;
    const float *states = NULL;
    qv_text_batch batch = {.B = rows, .M = columns_kept(mask, B, M)};
    qv_arena measure = {.base = NULL};
    call->ops = encoder->ops;
    call->lanes = count_lanes(encoder, rows * batch.M);
    plan_batch(encoder, call, &batch, &measure);
    status = architecture->forward(encoder, call, &batch, &measure, &states, err);
    if (status != QV_OK) {
        return status;
    }
    qv_arena arena = qv_arena_acquire(&encoder->arenas, &measure);
    if (arena.base == NULL) {
        return qv_fail_memory(err, "the activations of a text encoder");
    }
    status = qv_call_begin(call, err);
    bool begun = status == QV_OK;
    for (size_t first = 0; first < B && status == QV_OK; first += rows) {
        batch.first = first;
        batch.B = B - first < rows ? B - first : rows;
        batch.M = columns_kept(mask != NULL ? mask + first * M : NULL, batch.B, M);
        arena.used = arena.host_used = 0;
        plan_batch(encoder, call, &batch, &arena);
        fill_batch(&batch, ids, mask, M);
        status = architecture->forward(encoder, call, &batch, &arena, &states, err);
        if (status == QV_OK) {
            status = finish(context, call, states, &batch, err);
        }
    }
    if (begun) {
        status = qv_call_end(call, status, err);
    }
    qv_arena_release(&encoder->arenas, &arena);
    return status;
}

typedef struct {
    float *out; /* [B, M, D] */
    size_t M, D;
} whole_output;

/* out [B, M, D] = states [B, batch->M, D] where there is a token, else zeros */
static qv_status hand_out(void *context, qv_call *call, const float *states, const qv_text_batch *batch,
                          qv_error *err) {
    const whole_output *output = context;
    size_t D = output->D;
    (void)err;
    for (size_t b = 0; b < batch->B; b++) {
        const uint8_t *mask = batch->mask + b * batch->M;
        float *out = output->out + (batch->first + b) * output->M * D;
        for (size_t m = 0, run; m < output->M; m += run) {
            run = 1;
            if (m >= batch->M || mask[m] == 0) {
                memset(out + m * D, 0, D * sizeof *out);
                continue;
            }
            while (m + run < batch->M && mask[m + run] != 0) {
                run++;
            }
            qv_take_floats(call, out + m * D, states + (b * batch->M + m) * D, run * D);
        }
    }
    return QV_OK;
}

qv_status qv_text_encode(qv_text_encoder *encoder, qv_call *call, float *out, const int64_t *ids, const int64_t *mask,
                         size_t B, size_t M, qv_error *err) {
    whole_output output = {out, M, encoder->width};
    return qv_text_run(encoder, call, ids, mask, B, M, hand_out, &output, err);
}

void qv_text_free_norm(const qv_ops *ops, qv_text_norm *norm) {
    qv_vector_free(ops, &norm->weight);
    qv_vector_free(ops, &norm->bias);
}

void qv_text_free(qv_text_encoder *encoder) {
    if (encoder == NULL) {
        return;
    }
    for (size_t n = 0; n < encoder->L; n++) {
        qv_text_block *block = &encoder->blocks[n];
        qv_text_free_norm(encoder->ops, &block->attention_norm);
        qv_text_free_norm(encoder->ops, &block->feed_forward_norm);
        qv_linear_weight *layers[] = {&block->qkv, &block->o, &block->hidden, &block->output};
        for (size_t i = 0; i < sizeof layers / sizeof layers[0]; i++) {
            encoder->ops->linear_free(encoder->ops, layers[i]);
        }
    }
    qv_free(encoder->blocks);
    qv_arena_cache_clear(&encoder->arenas);
    encoder->architecture->free(encoder);
    qv_free(encoder);
}

/* ---- pieces of a forward pass ---- */

qv_text_activations qv_text_plan(const qv_text_encoder *encoder, const qv_text_batch *batch, qv_arena *arena) {
    size_t R = batch->B * batch->M, inner = encoder->H * encoder->d;
    qv_text_activations a;
    a.x = qv_arena_floats(arena, R * encoder->width);
    a.normed = qv_arena_floats(arena, R * encoder->width);
    a.qkv = qv_arena_floats(arena, R * 3 * inner);
    a.attended = qv_arena_floats(arena, R * inner);
    a.hidden = qv_arena_floats(arena, R * encoder->F);
    return a;
}

void qv_text_self_attention(const qv_text_encoder *encoder, qv_call *call, const qv_text_batch *batch,
                            const qv_text_activations *a, float scale, const float *bias, bool causal) {
    size_t inner = encoder->H * encoder->d;
    qv_attention attention = {
        .out = a->attended, .ld_out = inner,
        .q = a->qkv, .ld_q = 3 * inner,
        .k = a->qkv + inner, .v = a->qkv + 2 * inner, .ld_kv = 3 * inner,
        .key_mask = batch->key_mask, .bias = bias, .causal = causal, .scale = scale,
        .B = batch->B, .H = encoder->H, .T = batch->M, .S = batch->M, .d = encoder->d,
    };
    call->ops->attention(call, &attention);
}

void qv_text_embed(const qv_text_encoder *encoder, qv_call *call, const qv_text_activations *a,
                   const qv_tensor *const *tables, const int32_t *const *ids, size_t count, size_t R) {
    /* The op adds a second array while it looks up, but not onto itself: take turns so that x comes last. */
    float *targets[2] = {a->x, a->normed};
    const float *sum = NULL;
    for (size_t i = 0; i < count; i++) {
        float *target = targets[(count - 1 - i) % 2];
        call->ops->embedding(call, target, tables[i], ids[i], sum, R, encoder->width);
        sum = target;
    }
}

/* ---- loading ---- */

typedef struct {
    char text[512];
} full_name;

/* prefix + stem + leaf + ending; a name that is too long becomes the empty one, which no tensor has. */
static full_name join(const qv_text_loader *loader, const char *stem, const char *leaf, const char *ending) {
    full_name name;
    int length = snprintf(name.text, sizeof name.text, "%s%s%s%s", loader->prefix, stem, leaf, ending);
    if (length < 0 || (size_t)length >= sizeof name.text) {
        name.text[0] = '\0';
    }
    return name;
}

void qv_text_infer_size(const qv_text_loader *loader, size_t *size, const char *name, size_t dim) {
    full_name full = join(loader, name, "", "");
    const qv_tensor *tensor = *size == 0 ? qv_weights_peek(loader->weights, full.text) : NULL;
    if (tensor != NULL && dim < tensor->dims) {
        *size = tensor->shape[dim];
    }
}

void qv_text_infer_blocks(const qv_text_loader *loader, size_t *blocks, const char *stem, const char *leaf) {
    for (size_t n = 0; *blocks == 0; n++) {
        char number[32];
        snprintf(number, sizeof number, "%zu.", n);
        full_name full = join(loader, stem, number, leaf);
        if (qv_weights_peek(loader->weights, full.text) == NULL) {
            *blocks = n;
            return;
        }
    }
}

const qv_tensor *qv_text_tensor(qv_text_loader *loader, const char *stem, const char *leaf, size_t rows,
                                size_t columns) {
    full_name name = join(loader, stem, leaf, "");
    if (columns == 0) {
        return qv_weights_get(loader->weights, name.text, 1, rows);
    }
    return qv_weights_get(loader->weights, name.text, 2, rows, columns);
}

static void load_vector(qv_text_loader *loader, qv_vector *vector, const char *name, size_t size) {
    const qv_tensor *tensor = qv_weights_get(loader->weights, name, 1, size);
    if (loader->status == QV_OK) {
        loader->status = qv_vector_prepare(loader->ops, vector, tensor, loader->err);
    }
}

void qv_text_vector(qv_text_loader *loader, qv_vector *vector, const char *stem, const char *leaf, size_t size) {
    full_name name = join(loader, stem, leaf, "");
    load_vector(loader, vector, name.text, size);
}

void qv_text_table(qv_text_loader *loader, qv_tensor *table, const char *name, size_t rows, size_t columns) {
    const qv_tensor *tensor = qv_text_tensor(loader, name, "", rows, columns);
    if (tensor != NULL) {
        *table = *tensor;
    }
}

void qv_text_linear(qv_text_loader *loader, qv_linear_weight *weight, const char *stem, const char *const *names,
                    size_t parts, size_t columns, size_t depth, bool bias) {
    qv_linear_source sources[QV_MAX_PARTS] = {{0}};
    for (size_t i = 0; i < parts; i++) {
        full_name name = join(loader, stem, names[i], ".weight");
        sources[i].weight = qv_weights_get(loader->weights, name.text, 2, columns, depth);
        if (bias) {
            name = join(loader, stem, names[i], ".bias");
            sources[i].bias = qv_weights_get(loader->weights, name.text, 1, columns);
        }
    }
    if (loader->status == QV_OK && loader->weights->problems == 0) {
        const qv_ops *ops = loader->ops;
        loader->status = ops->linear_prepare(ops, weight, sources, parts, loader->precision, loader->err);
    }
}

void qv_text_load_norm(qv_text_loader *loader, qv_text_norm *norm, const char *stem, const char *name, size_t size) {
    full_name full = join(loader, stem, name, ".weight");
    load_vector(loader, &norm->weight, full.text, size);
    full = join(loader, stem, name, ".bias");
    load_vector(loader, &norm->bias, full.text, size);
}

qv_status qv_text_complete_config(const qv_text_loader *loader, qv_text_config *config, const char *what,
                                  const qv_text_names *names) {
    char hidden[128], leaf[128];
    snprintf(hidden, sizeof hidden, "%s0.%s.weight", names->block, names->hidden);
    snprintf(leaf, sizeof leaf, "%s.weight", names->output);
    qv_text_infer_size(loader, &config->vocab_size, names->words, 0);
    qv_text_infer_size(loader, &config->D, names->words, 1);
    qv_text_infer_size(loader, &config->positions, names->positions, 0);
    qv_text_infer_size(loader, &config->F, hidden, 0);
    qv_text_infer_blocks(loader, &config->L, names->block, leaf);
    if (config->vocab_size == 0 || config->positions == 0 || config->D == 0 || config->H == 0 || config->F == 0 ||
        config->L == 0) {
        return qv_fail(loader->err, QV_ERR_VALUE,
                       "%s: neither config nor weights (names behind '%s') say all of vocab_size (%zu), "
                       "max_position_embeddings (%zu), hidden_size (%zu), num_attention_heads (%zu), intermediate_size "
                       "(%zu), num_hidden_layers (%zu)",
                       what, loader->prefix, config->vocab_size, config->positions, config->D, config->H, config->F,
                       config->L);
    }
    if (config->D % config->H != 0) {
        return qv_fail(loader->err, QV_ERR_VALUE, "%s: hidden_size %zu does not divide into num_attention_heads %zu",
                       what, config->D, config->H);
    }
    return QV_OK;
}

void qv_text_load_block(qv_text_loader *loader, qv_text_block *block, const qv_text_config *config,
                        const qv_text_names *names, size_t n) {
    size_t D = config->D, F = config->F;
    char stem[96];
    snprintf(stem, sizeof stem, "%s%zu.", names->block, n);
    if (loader->status == QV_OK) {
        loader->status = qv_next_block(loader->ops, loader->err);
    }
    qv_text_linear(loader, &block->qkv, stem, names->qkv, 3, D, D, true);
    qv_text_linear(loader, &block->o, stem, &names->o, 1, D, D, true);
    qv_text_load_norm(loader, &block->attention_norm, stem, names->attention_norm, D);
    qv_text_linear(loader, &block->hidden, stem, &names->hidden, 1, F, D, true);
    qv_text_linear(loader, &block->output, stem, &names->output, 1, D, F, true);
    qv_text_load_norm(loader, &block->feed_forward_norm, stem, names->feed_forward_norm, D);
}

void *qv_text_create(size_t size, const qv_text_architecture *architecture, const qv_ops *ops,
                     const qv_text_config *sizes, qv_error *err) {
    if (sizes->L > MAX_BLOCKS) {
        qv_fail(err, QV_ERR_VALUE, "%s: %zu blocks, expected at most %zu", architecture->name, sizes->L, MAX_BLOCKS);
        return NULL;
    }
    qv_text_encoder *encoder = qv_allocate(1, size);
    qv_text_block *blocks = qv_allocate(sizes->L, sizeof *blocks);
    if (encoder == NULL || blocks == NULL) {
        qv_free(encoder);
        qv_free(blocks);
        qv_fail_memory(err, architecture->name);
        return NULL;
    }
    memset(encoder, 0, size);
    memset(blocks, 0, sizes->L * sizeof *blocks);
    encoder->architecture = architecture;
    encoder->ops = ops;
    encoder->arenas.memory = ops->memory;
    encoder->width = sizes->D;
    encoder->vocab_size = sizes->vocab_size;
    encoder->max_tokens = sizes->positions;
    encoder->H = sizes->H;
    encoder->d = sizes->D / sizes->H;
    encoder->F = sizes->F;
    encoder->blocks = blocks;
    encoder->L = sizes->L;
    return encoder;
}

qv_status qv_text_finish_load(qv_text_encoder **out, qv_text_encoder *encoder, const qv_text_loader *loader) {
    qv_status status = loader->status;
    if (status == QV_OK) {
        status = qv_weights_check(loader->weights, encoder->architecture->name, loader->err);
    }
    if (status != QV_OK) {
        qv_text_free(encoder);
        encoder = NULL;
    }
    *out = encoder;
    return status;
}
