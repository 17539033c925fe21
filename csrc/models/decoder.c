#include "models/decoder.h"

#include "models/planned.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* A bound that keeps sums of sizes inside size_t. */
#define MAX_ROWS ((size_t)1 << 24)

/* ---- loading ---- */

qv_decoder *qv_decoder_create(qv_loader *loader, const char *name, const qv_block_kind *kind, size_t L, size_t vocab_size,
                              const qv_block_names *names, const char *blocks) {
    qv_block *made = qv_blocks_create(loader, L, name);
    qv_decoder *decoder = qv_load_allocate(loader, 1, sizeof *decoder, name);
    if (decoder == NULL) {
        qv_free(made);
        return NULL;
    }
    decoder->name = name;
    decoder->ops = loader->ops;
    decoder->precision = qv_load_precision(loader, QV_OUTSIDE_BLOCKS);
    decoder->arenas.memory = decoder->kept.memory = loader->ops->memory;
    decoder->kind = *kind;
    decoder->width = kind->D;
    decoder->vocab_size = vocab_size;
    decoder->blocks = made;
    decoder->L = L;
    qv_blocks_load(loader, made, L, kind, names, blocks);
    qv_load_next_block(loader);
    return decoder;
}

qv_status qv_decoder_finish_load(qv_decoder **out, qv_decoder *decoder, qv_loader *loader) {
    qv_status status = qv_load_finish(loader, decoder->name);
    if (status != QV_OK) {
        qv_decoder_free(decoder);
        decoder = NULL;
    }
    *out = decoder;
    return status;
}

void qv_decoder_free(qv_decoder *decoder) {
    if (decoder == NULL) {
        return;
    }
    qv_blocks_free(decoder->ops, decoder->blocks, decoder->L);
    qv_norm *norms[] = {&decoder->embedding_norm, &decoder->final_norm, &decoder->transform_norm};
    for (size_t i = 0; i < sizeof norms / sizeof norms[0]; i++) {
        qv_norm_free(decoder->ops, norms[i]);
    }
    qv_vector_free(decoder->ops, &decoder->offset_bias);
    qv_linear_free(decoder->ops, &decoder->transform);
    qv_linear_free(decoder->ops, &decoder->head);
    qv_arena_cache_clear(&decoder->arenas);
    qv_arena_cache_clear(&decoder->kept);
    qv_free(decoder);
}

/* ---- memories ---- */

typedef struct {
    const qv_decoder *decoder;
    qv_decoder_memory *memory;
    const float *states; /* the caller's */
    float *place;        /* for them, where the ops cannot read the caller's */
} read_call;

static void plan_keys(void *state, qv_call *call, qv_arena *arena) {
    read_call *c = state;
    const qv_block_kind *kind = &c->decoder->kind;
    size_t S = c->memory->start[c->memory->count];
    c->place = qv_arena_floats(arena, qv_place_size(call->ops, S * kind->cross_width));
    qv_plan_scratch(call, arena, call->ops->scratch_bytes(call->lanes, S, kind->cross_width, 0, kind->d));
}

static qv_status make_keys(void *state, qv_call *call, qv_error *err) {
    const read_call *c = state;
    const qv_block_kind *kind = &c->decoder->kind;
    size_t S = c->memory->start[c->memory->count], W = kind->cross_width, both = 2 * kind->H * kind->d;
    const qv_const_rows states = {qv_give_floats(call, c->place, c->states, S * W), W};
    (void)err;
    for (size_t l = 0; l < c->decoder->L; l++) {
        const qv_rows kv = {c->memory->kv + l * S * both, both};
        call->ops->linear(call, kv, states, &c->decoder->blocks[l].cross_kv, 0, both, NULL, S);
    }
    return QV_OK;
}

/* The states themselves, each sequence as two layers. */
static qv_status keep_states(qv_decoder *decoder, qv_decoder_memory *memory, const float *states, qv_error *err) {
    static const char what[] = "a decoder's memory of states";
    size_t S = memory->start[memory->count], W = decoder->kind.cross_width;
    size_t *start = memory->start;
    memory->states = qv_allocate(2 * memory->count, sizeof *memory->states);
    if (memory->states == NULL) {
        return qv_fail_memory(err, what);
    }
    memset(memory->states, 0, 2 * memory->count * sizeof *memory->states);
    memory->plain = qv_allocate(2 * S * W, sizeof *memory->plain);
    if (memory->plain == NULL) {
        return qv_fail_memory(err, what);
    }
    memory->turned = memory->states + memory->count;
    memcpy(memory->plain, states, S * W * sizeof *states);
    qv_status status = QV_OK;
    for (size_t b = 0; b < memory->count && status == QV_OK; b++) {
        size_t length = start[b + 1] - start[b];
        float *rows = memory->plain + start[b] * W, *columns = rows + S * W;
        for (size_t w = 0; w < W; w++) {
            for (size_t s = 0; s < length; s++) {
                columns[w * length + s] = rows[s * W + w];
            }
        }
        const qv_tensor row_tensor = {.name = what, .dims = 2, .shape = {length, W}, .data = rows};
        const qv_tensor column_tensor = {.name = what, .dims = 2, .shape = {W, length}, .data = columns};
        const qv_linear_source sources[] = {{.weight = &row_tensor}, {.weight = &column_tensor}};
        status = qv_linear_prepare(decoder->ops, NULL, &memory->states[b], &sources[0], 1, decoder->precision, err);
        if (status == QV_OK) {
            status = qv_linear_prepare(decoder->ops, NULL, &memory->turned[b], &sources[1], 1, decoder->precision, err);
        }
    }
    return status;
}

/* Whether `tokens` tokens cost less by the states alone. A block's keys and values are S W 2 H d multiplications; without
 * them a token costs 2 H (S + H d) W in place of 2 S H d, at half the speed of a product of many rows. */
static bool is_absorbed(const qv_block_kind *kind, size_t S, size_t tokens) {
    double W = (double)kind->cross_width, inner = (double)(kind->H * kind->d), states = (double)S;
    double more = 2 * (double)kind->H * (states + inner) * W - 2 * states * inner;
    return tokens != 0 && 2 * (double)tokens * more < states * W * 2 * inner;
}

static qv_status check_states(const qv_decoder *decoder, const float *states, const size_t *lengths, size_t count,
                              size_t *S, qv_error *err) {
    *S = 0;
    for (size_t b = 0; b < count; b++) {
        if (lengths[b] == 0 || lengths[b] > MAX_ROWS || *S > MAX_ROWS) {
            return qv_fail(err, QV_ERR_VALUE, "states: sequence %zu of %zu states, expected 1 to %zu", b, lengths[b],
                           MAX_ROWS);
        }
        *S += lengths[b];
    }
    if (count == 0) {
        return qv_fail(err, QV_ERR_VALUE, "states: no sequences, expected at least one of at least one state");
    }
    size_t W = decoder->kind.cross_width;
    for (size_t i = 0; i < *S * W; i++) {
        if (!isfinite(states[i])) {
            return qv_fail(err, QV_ERR_VALUE, "states: %f in state %zu, expected finite numbers", (double)states[i], i / W);
        }
    }
    return QV_OK;
}

qv_status qv_decoder_read(qv_decoder *decoder, qv_call *call, qv_decoder_memory *memory, const float *states,
                          const size_t *lengths, size_t count, size_t tokens, qv_error *err) {
    static const qv_planned planned = {"a decoder's memory", plan_keys, make_keys};
    const qv_block_kind *kind = &decoder->kind;
    size_t S, bytes;
    *memory = (qv_decoder_memory){.count = count};
    qv_status status = check_states(decoder, states, lengths, count, &S, err);
    if (status != QV_OK) {
        return status;
    }
    memory->start = qv_allocate(count + 1, sizeof *memory->start);
    if (memory->start == NULL) {
        return qv_fail_memory(err, planned.what);
    }
    memory->start[0] = 0;
    for (size_t b = 0; b < count; b++) {
        memory->start[b + 1] = memory->start[b] + lengths[b];
    }
    if (is_absorbed(kind, S / count, tokens)) {
        status = keep_states(decoder, memory, states, err);
    } else if (!qv_multiply_size(S * decoder->L, 2 * kind->H * kind->d * sizeof(float), &bytes) ||
               !qv_keep(&memory->kept, &decoder->kept, bytes)) {
        status = qv_fail_memory(err, planned.what);
    } else {
        read_call c = {.decoder = decoder, .memory = memory, .states = states};
        memory->kv = memory->kept.at;
        status = qv_run_planned(call, &decoder->arenas, &planned, &c, err);
    }
    if (status != QV_OK) {
        qv_decoder_memory_free(memory, decoder);
    }
    return status;
}

void qv_decoder_memory_free(qv_decoder_memory *memory, qv_decoder *decoder) {
    for (size_t b = 0; memory->states != NULL && b < 2 * memory->count; b++) {
        qv_linear_free(decoder->ops, &memory->states[b]);
    }
    qv_free(memory->states);
    qv_free(memory->plain);
    qv_free(memory->start);
    if (memory->kept.at != NULL) {
        qv_kept_free(&memory->kept, &decoder->kept);
    }
    *memory = (qv_decoder_memory){.count = 0};
}

/* ---- caches ---- */

static size_t sequence_length(const qv_decoder_source *source) {
    const size_t *start = source->memory->start + source->sequence;
    return start[1] - start[0];
}

size_t qv_decoder_states_seen(const qv_decoder_cache *cache, size_t row) {
    return cache->tokens != NULL ? cache->picked : sequence_length(&cache->source[row]);
}

static const char cache_name[] = "a decoder's keys and values";

/* What the host knows of rows, for `places` of them, and a byte a place; false where there is no memory. */
static bool allocate_rows(qv_decoder_cache *cache, size_t places) {
    size_t bytes, row_bytes = 2 * sizeof(size_t) + sizeof(qv_decoder_source) + 1;
    if (!qv_multiply_size(cache->picked, sizeof(int32_t), &bytes) || !qv_add_size(bytes, row_bytes, &bytes)) {
        return false;
    }
    cache->source = qv_allocate(places, bytes);
    if (cache->source == NULL) {
        return false;
    }
    cache->place = (size_t *)(void *)(cache->source + places);
    cache->length = cache->place + places;
    int32_t *tokens = (int32_t *)(void *)(cache->length + places);
    cache->tokens = cache->picked != 0 ? tokens : NULL;
    cache->taken = (uint8_t *)(tokens + places * cache->picked);
    return true;
}

/* Memory for keys and values in `places` places; false where there is none. */
static bool allocate_keys(qv_decoder *decoder, qv_decoder_cache *cache, size_t places) {
    size_t count, bytes;
    cache->places = places;
    if (!qv_multiply_size(places, cache->capacity, &count) || !qv_multiply_size(count, decoder->L, &count) ||
        !qv_multiply_size(count, 2 * decoder->kind.H * decoder->kind.d * sizeof(float), &bytes) ||
        !qv_keep(&cache->kept, &decoder->kept, bytes)) {
        return false;
    }
    cache->kv = cache->kept.at;
    return true;
}

static qv_status check_tokens(const qv_decoder_source *source, const int32_t *tokens, size_t rows, size_t picked,
                              qv_error *err) {
    if (picked == 0) {
        return qv_fail(err, QV_ERR_VALUE, "tokens: none a row, expected at least one");
    }
    for (size_t r = 0; r < rows; r++) {
        size_t S = sequence_length(&source[r]);
        if (source[r].memory->kv == NULL) {
            return qv_fail(err, QV_ERR_VALUE,
                           "tokens: the memory of row %zu was read for few tokens, and has no keys to pick from", r);
        }
        for (size_t i = 0; i < picked; i++) {
            int32_t token = tokens[r * picked + i];
            if (token < 0 || (size_t)token >= S) {
                return qv_fail(err, QV_ERR_VALUE, "tokens: row %zu picks %d, expected 0 to %zu", r, (int)token, S - 1);
            }
        }
    }
    return QV_OK;
}

qv_status qv_decoder_begin(qv_decoder *decoder, qv_decoder_cache *cache, size_t rows, size_t capacity,
                           const qv_decoder_source *source, const int32_t *tokens, size_t picked, qv_error *err) {
    *cache = (qv_decoder_cache){.rows = 0};
    if (rows == 0 || rows > MAX_ROWS) {
        return qv_fail(err, QV_ERR_VALUE, "rows: %zu, expected 1 to %zu", rows, MAX_ROWS);
    }
    if (capacity == 0 || (decoder->max_tokens != 0 && capacity > decoder->max_tokens) || capacity > MAX_ROWS) {
        return qv_fail(err, QV_ERR_VALUE, "capacity: %zu tokens a row, expected 1 to %zu", capacity,
                       decoder->max_tokens != 0 ? decoder->max_tokens : MAX_ROWS);
    }
    qv_status status = tokens != NULL ? check_tokens(source, tokens, rows, picked, err) : QV_OK;
    if (status != QV_OK) {
        return status;
    }
    cache->rows = rows;
    cache->capacity = capacity;
    cache->picked = tokens != NULL ? picked : 0;
    if (!allocate_rows(cache, rows) || !allocate_keys(decoder, cache, rows)) {
        qv_decoder_cache_free(cache, decoder);
        return qv_fail_memory(err, cache_name);
    }
    memcpy(cache->source, source, rows * sizeof *source);
    for (size_t r = 0; r < rows; r++) {
        cache->place[r] = r;
        cache->length[r] = 0;
    }
    if (tokens != NULL) {
        memcpy(cache->tokens, tokens, rows * picked * sizeof *tokens);
    }
    return QV_OK;
}

void qv_decoder_cache_free(qv_decoder_cache *cache, qv_decoder *decoder) {
    if (cache->kv != NULL) {
        qv_kept_free(&cache->kept, &decoder->kept);
    }
    qv_free(cache->source);
    *cache = (qv_decoder_cache){.rows = 0};
}

/* The first `length` tokens of a place of `from` in a place of `to`, which may be the same cache. */
static void copy_place(const qv_decoder *decoder, qv_call *call, const qv_decoder_cache *to, size_t place,
                       const qv_decoder_cache *from, size_t from_place, size_t length) {
    size_t both = 2 * decoder->kind.H * decoder->kind.d;
    for (size_t l = 0; l < decoder->L; l++) {
        float *out = to->kv + (l * to->places + place) * to->capacity * both;
        const float *x = from->kv + (l * from->places + from_place) * from->capacity * both;
        call->ops->copy(call, (qv_rows){out, both}, (qv_const_rows){x, both}, length, both);
    }
}

/* Row `row` of `to` takes over what row `parent` of `from` is, but for its place. */
static void copy_row(qv_decoder_cache *to, size_t row, const qv_decoder_cache *from, size_t parent) {
    to->length[row] = from->length[parent];
    to->source[row] = from->source[parent];
    if (from->tokens != NULL) {
        memcpy(to->tokens + row * to->picked, from->tokens + parent * from->picked, to->picked * sizeof *to->tokens);
    }
}

/* A place for each row of `next`: its parent's, for the first of its children; a copy in a free one for the others, and for
 * all where the places are new. */
static void give_places(const qv_decoder *decoder, qv_call *call, qv_decoder_cache *next, const qv_decoder_cache *cache,
                        const int32_t *parents) {
    bool same = next->kv == cache->kv;
    memset(next->taken, 0, next->places);
    for (size_t r = 0; r < next->rows; r++) {
        size_t place = cache->place[parents[r]];
        copy_row(next, r, cache, (size_t)parents[r]);
        next->place[r] = next->places;
        if (same && next->taken[place] == 0) {
            next->taken[place] = 1;
            next->place[r] = place;
        }
    }
    for (size_t r = 0, place = 0; r < next->rows; r++) {
        if (next->place[r] == next->places) {
            while (next->taken[place] != 0) {
                place++;
            }
            next->taken[place] = 1;
            next->place[r] = place;
            copy_place(decoder, call, next, place, cache, cache->place[parents[r]], next->length[r]);
        }
    }
}

qv_status qv_decoder_reorder(qv_decoder *decoder, qv_call *call, qv_decoder_cache *cache, const int32_t *parents,
                             size_t rows, qv_error *err) {
    if (rows == 0 || rows > MAX_ROWS) {
        return qv_fail(err, QV_ERR_VALUE, "parents: %zu rows, expected 1 to %zu", rows, MAX_ROWS);
    }
    for (size_t r = 0; r < rows; r++) {
        if (parents[r] < 0 || (size_t)parents[r] >= cache->rows) {
            return qv_fail(err, QV_ERR_VALUE, "parents: row %zu is %d, expected 0 to %zu", r, (int)parents[r],
                           cache->rows - 1);
        }
    }
    qv_decoder_cache next = {.rows = rows, .places = cache->places, .capacity = cache->capacity, .picked = cache->picked,
                             .kv = cache->kv, .kept = cache->kept};
    bool grows = rows > cache->places;
    size_t places = grows ? rows : cache->places;
    if (!allocate_rows(&next, places) || (grows && !allocate_keys(decoder, &next, places))) {
        qv_free(next.source);
        return qv_fail_memory(err, cache_name);
    }
    call->poll = NULL; /* a stop half-way would leave neither the old rows nor the new ones */
    qv_status status = qv_call_begin(call, err);
    if (status == QV_OK) {
        give_places(decoder, call, &next, cache, parents);
        status = qv_call_end(call, QV_OK, err);
    }
    qv_decoder_cache *useless = status == QV_OK ? cache : &next;
    if (grows) {
        qv_kept_free(&useless->kept, &decoder->kept);
    }
    qv_free(useless->source);
    if (status == QV_OK) {
        *cache = next;
    }
    return status;
}
