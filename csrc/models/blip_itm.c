/* BLIP image-text matching (Li et al. 2022, arXiv 2201.12086) with the weights' names of salesforce/LAVIS.
 *
 * 1. image: the vision transformer (models/vit.h), S = 1 + P tokens; once an image
 * 2. each text block's cross-attention keys and values, from those tokens; once an image
 * 3. text: word + position embeddings, layer norm; the first token is [ENC] (matching) or [CLS] (contrastive)
 * 4. L blocks, each norm after its sum:
 *      h = norm(h + out(self_attention(h)));  h = norm(h + out(cross_attention(h, image)));
 *      h = norm(h + fc2(gelu(fc1(h))))
 *    the contrastive pass leaves the cross-attention out and stops after "fusion_layer" blocks where the config has
 *    that key; in the last block only token 0 is a query
 * 5. itm_head on token 0: two logits; or text_proj and vision_proj on token 0, each to unit length
 *
 * Questions lie one after another without padding, so a question's numbers do not depend on its neighbours; all
 * queries of all questions attend to the image in one call, since they share its keys. */
#include "models/blip_itm.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Rows of text that go through a layer together. */
#define CHUNK_ROWS ((size_t)512)

/* ---- weights ---- */

typedef struct {
    qv_blip *model;
    qv_weights *weights;
    qv_precision precision;
    qv_error *err;
    qv_status status;
} loader;

typedef struct {
    const qv_tensor *weight, *bias;
} layer;

/* prefix.weight [N, K] and prefix.bias [N] */
static layer get_layer(loader *load, const char *prefix, size_t N, size_t K) {
    char name[192];
    snprintf(name, sizeof name, "%s.weight", prefix);
    const qv_tensor *weight = qv_weights_get(load->weights, name, 2, N, K);
    snprintf(name, sizeof name, "%s.bias", prefix);
    return (layer){weight, qv_weights_get(load->weights, name, 1, N)};
}

static layer get_block_layer(loader *load, size_t block, const char *part, size_t N, size_t K) {
    char prefix[128];
    snprintf(prefix, sizeof prefix, "text_encoder.encoder.layer.%zu.%s", block, part);
    return get_layer(load, prefix, N, K);
}

static void prepare(loader *load, qv_linear_weight *weight, const layer *layers, size_t parts) {
    qv_linear_source sources[QV_MAX_PARTS] = {{0}};
    for (size_t i = 0; i < parts; i++) {
        sources[i].weight = layers[i].weight;
        sources[i].bias = layers[i].bias;
    }
    if (load->status == QV_OK) {
        const qv_ops *ops = load->model->ops;
        load->status = ops->linear_prepare(ops, weight, sources, parts, load->precision, load->err);
    }
}

static void prepare_vector(loader *load, qv_vector *vector, const qv_tensor *tensor) {
    if (load->status == QV_OK) {
        load->status = qv_vector_prepare(load->model->ops, vector, tensor, load->err);
    }
}

/* What the backward pass needs of a part of a layer that is prepared. */
static void prepare_back(loader *load, qv_blip_matrix *matrix, const qv_linear_weight *weight, size_t part,
                         const layer *from) {
    if (load->model->ops->plain_weight == NULL) {
        prepare_vector(load, &matrix->vector, from->weight);
        return;
    }
    matrix->layer = weight;
    matrix->part = part;
    if (weight->precision != QV_PRECISION_FLOAT32 && load->status == QV_OK) {
        const qv_ops *ops = load->model->ops;
        const qv_linear_source source = {.weight = from->weight};
        load->status = ops->linear_prepare(ops, &matrix->own, &source, 1, QV_PRECISION_FLOAT32, load->err);
        matrix->layer = &matrix->own;
        matrix->part = 0;
    }
}

static void load_norm(loader *load, qv_vector *weight, qv_vector *bias, const char *prefix) {
    char name[192];
    snprintf(name, sizeof name, "%s.weight", prefix);
    prepare_vector(load, weight, qv_weights_get(load->weights, name, 1, load->model->config.D));
    snprintf(name, sizeof name, "%s.bias", prefix);
    prepare_vector(load, bias, qv_weights_get(load->weights, name, 1, load->model->config.D));
}

static void load_block_norm(loader *load, qv_vector *weight, qv_vector *bias, size_t block, const char *part) {
    char prefix[128];
    snprintf(prefix, sizeof prefix, "text_encoder.encoder.layer.%zu.%s", block, part);
    load_norm(load, weight, bias, prefix);
}

static void load_block(loader *load, size_t i) {
    qv_blip_block *block = &load->model->blocks[i];
    size_t D = load->model->config.D, F = load->model->config.F, image_width = load->model->vision.config.D;
    layer self[3] = {get_block_layer(load, i, "attention.self.query", D, D),
                     get_block_layer(load, i, "attention.self.key", D, D),
                     get_block_layer(load, i, "attention.self.value", D, D)};
    layer self_out = get_block_layer(load, i, "attention.output.dense", D, D);
    layer cross_q = get_block_layer(load, i, "crossattention.self.query", D, D);
    layer cross_kv[2] = {get_block_layer(load, i, "crossattention.self.key", D, image_width),
                         get_block_layer(load, i, "crossattention.self.value", D, image_width)};
    layer cross_out = get_block_layer(load, i, "crossattention.output.dense", D, D);
    layer fc1 = get_block_layer(load, i, "intermediate.dense", F, D);
    layer fc2 = get_block_layer(load, i, "output.dense", D, F);
    if (load->status == QV_OK) {
        load->status = qv_next_block(load->model->ops, load->err);
    }
    prepare(load, &block->self_qkv, self, 3);
    prepare(load, &block->self_out, &self_out, 1);
    prepare(load, &block->cross_q, &cross_q, 1);
    prepare(load, &block->cross_kv, cross_kv, 2);
    prepare(load, &block->cross_out, &cross_out, 1);
    prepare(load, &block->fc1, &fc1, 1);
    prepare(load, &block->fc2, &fc2, 1);
    load_block_norm(load, &block->self_norm_weight, &block->self_norm_bias, i, "attention.output.LayerNorm");
    load_block_norm(load, &block->cross_norm_weight, &block->cross_norm_bias, i, "crossattention.output.LayerNorm");
    load_block_norm(load, &block->output_norm_weight, &block->output_norm_bias, i, "output.LayerNorm");
    if (load->status == QV_OK) {
        load->status = qv_next_block(load->model->ops, load->err);
    }
    prepare_back(load, &block->back_q, &block->self_qkv, 0, &self[0]);
    prepare_back(load, &block->back_k, &block->self_qkv, 1, &self[1]);
    prepare_back(load, &block->back_v, &block->self_qkv, 2, &self[2]);
    prepare_back(load, &block->back_self_out, &block->self_out, 0, &self_out);
    prepare_back(load, &block->back_cross_q, &block->cross_q, 0, &cross_q);
    prepare_back(load, &block->back_cross_out, &block->cross_out, 0, &cross_out);
    prepare_back(load, &block->back_fc1, &block->fc1, 0, &fc1);
    prepare_back(load, &block->back_fc2, &block->fc2, 0, &fc2);
}

static void load_heads(loader *load) {
    qv_blip *model = load->model;
    size_t D = model->config.D;
    layer head = get_layer(load, "itm_head", 2, D);
    prepare(load, &model->itm_head, &head, 1);
    prepare_vector(load, &model->itm_head_plain, head.weight);
    const qv_tensor *projection = qv_weights_peek(load->weights, "text_proj.weight");
    if (projection != NULL && projection->dims == 2) {
        model->projection = projection->shape[0];
        layer text = get_layer(load, "text_proj", model->projection, D);
        layer vision = get_layer(load, "vision_proj", model->projection, model->vision.config.D);
        prepare(load, &model->text_projection, &text, 1);
        prepare(load, &model->vision_projection, &vision, 1);
    }
}

/* *found (from the weights) into *wanted, unless *wanted names another size. */
static qv_status settle(size_t *wanted, size_t found, const char *what, qv_error *err) {
    if (*wanted != 0 && *wanted != found) {
        return qv_fail(err, QV_ERR_VALUE, "text config: %s is %zu, the weights say %zu", what, *wanted, found);
    }
    *wanted = found;
    return QV_OK;
}

/* The sizes of the text half, from the shapes of its weights. */
static qv_status find_sizes(qv_blip_config *config, const qv_weights *weights, qv_error *err) {
    static const char *const names[] = {"text_encoder.embeddings.word_embeddings.weight",
                                        "text_encoder.embeddings.position_embeddings.weight",
                                        "text_encoder.encoder.layer.0.intermediate.dense.weight"};
    const qv_tensor *tensors[3];
    for (size_t i = 0; i < 3; i++) {
        tensors[i] = qv_weights_peek(weights, names[i]);
        if (tensors[i] == NULL || tensors[i]->dims != 2) {
            return qv_fail(err, QV_ERR_VALUE, "BLIP: %s is missing or is not a matrix", names[i]);
        }
    }
    size_t L = 0;
    for (char name[128]; L <= 1024; L++) {
        snprintf(name, sizeof name, "text_encoder.encoder.layer.%zu.attention.self.query.weight", L);
        if (qv_weights_peek(weights, name) == NULL) {
            break;
        }
    }
    if (settle(&config->vocabulary, tensors[0]->shape[0], "vocab_size", err) != QV_OK ||
        settle(&config->D, tensors[0]->shape[1], "hidden_size", err) != QV_OK ||
        settle(&config->positions, tensors[1]->shape[0], "max_position_embeddings", err) != QV_OK ||
        settle(&config->F, tensors[2]->shape[0], "intermediate_size", err) != QV_OK ||
        settle(&config->L, L, "num_hidden_layers", err) != QV_OK) {
        return err->code;
    }
    if (config->L == 0 || config->L > 1024 || config->D == 0 || config->D > 65536 || config->F == 0 ||
        config->F > 262144 || config->positions == 0 || config->vocabulary == 0) {
        return qv_fail(err, QV_ERR_VALUE, "BLIP: a text encoder of %zu blocks, width %zu is not one this core runs",
                       config->L, config->D);
    }
    config->text_blocks = config->text_blocks == SIZE_MAX ? config->L : config->text_blocks;
    if (config->text_blocks > config->L) {
        return qv_fail(err, QV_ERR_VALUE, "text config: fusion_layer %zu of %zu blocks", config->text_blocks, config->L);
    }
    if (config->H == 0 || config->D % config->H != 0) {
        return qv_fail(err, QV_ERR_VALUE, "text config: hidden_size %zu is not a multiple of the %zu heads", config->D,
                       config->H);
    }
    return QV_OK;
}

qv_status qv_blip_init(qv_blip *model, const qv_blip_config *config, const qv_ops *ops, qv_precision precision,
                       qv_weights *weights, qv_error *err) {
    *model = (qv_blip){.config = *config, .ops = ops, .arenas.memory = ops->memory, .images.memory = ops->memory};
    qv_status status = find_sizes(&model->config, weights, err);
    if (status != QV_OK) {
        return status;
    }
    model->attention_scale = 1.0f / sqrtf((float)(model->config.D / model->config.H));
    status = qv_vit_init(&model->vision, &config->vision, ops, precision, weights, "visual_encoder.", err);
    if (status != QV_OK) {
        return status;
    }
    model->no_taps = qv_allocate(config->vision.L, sizeof *model->no_taps);
    model->blocks = qv_allocate(model->config.L, sizeof *model->blocks);
    if (model->blocks == NULL || model->no_taps == NULL) {
        qv_free(model->no_taps);
        qv_free(model->blocks);
        model->blocks = NULL;
        qv_vit_free(&model->vision);
        return qv_fail_memory(err, "the blocks of BLIP's text encoder");
    }
    memset(model->no_taps, 0, config->vision.L * sizeof *model->no_taps);
    memset(model->blocks, 0, model->config.L * sizeof *model->blocks);
    loader load = {model, weights, precision, err, QV_OK};
    size_t D = model->config.D;
    model->words = qv_weights_get(weights, "text_encoder.embeddings.word_embeddings.weight", 2,
                                  model->config.vocabulary, D);
    prepare_vector(&load, &model->positions,
                   qv_weights_get(weights, "text_encoder.embeddings.position_embeddings.weight", 2,
                                  model->config.positions, D));
    load_norm(&load, &model->norm_weight, &model->norm_bias, "text_encoder.embeddings.LayerNorm");
    for (size_t i = 0; i < model->config.L; i++) {
        load_block(&load, i);
    }
    if (load.status == QV_OK) {
        load.status = qv_next_block(ops, err);
    }
    load_heads(&load);
    status = load.status == QV_OK ? qv_weights_check(weights, "BLIP image-text matching", err) : load.status;
    if (status != QV_OK) {
        qv_blip_free(model);
    }
    return status;
}

static void free_block(const qv_ops *ops, qv_blip_block *block) {
    qv_linear_weight *layers[] = {&block->self_qkv,  &block->self_out, &block->cross_q, &block->cross_kv,
                                  &block->cross_out, &block->fc1,      &block->fc2};
    for (size_t i = 0; i < sizeof layers / sizeof layers[0]; i++) {
        ops->linear_free(ops, layers[i]);
    }
    qv_vector *vectors[] = {
        &block->self_norm_weight,   &block->self_norm_bias,   &block->cross_norm_weight, &block->cross_norm_bias,
        &block->output_norm_weight, &block->output_norm_bias,
    };
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        qv_vector_free(ops, vectors[i]);
    }
    qv_blip_matrix *matrices[] = {&block->back_q,       &block->back_k,         &block->back_v,   &block->back_self_out,
                                  &block->back_cross_q, &block->back_cross_out, &block->back_fc1, &block->back_fc2};
    for (size_t i = 0; i < sizeof matrices / sizeof matrices[0]; i++) {
        qv_vector_free(ops, &matrices[i]->vector);
        ops->linear_free(ops, &matrices[i]->own);
    }
}

void qv_blip_free(qv_blip *model) {
    if (model->blocks == NULL) {
        return;
    }
    for (size_t i = 0; i < model->config.L; i++) {
        free_block(model->ops, &model->blocks[i]);
    }
    qv_free(model->blocks);
    model->blocks = NULL;
    qv_free(model->no_taps);
    qv_linear_weight *layers[] = {&model->itm_head, &model->vision_projection, &model->text_projection};
    qv_vector *vectors[] = {&model->positions, &model->norm_weight, &model->norm_bias, &model->itm_head_plain};
    for (size_t i = 0; i < sizeof layers / sizeof layers[0]; i++) {
        model->ops->linear_free(model->ops, layers[i]);
    }
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        qv_vector_free(model->ops, vectors[i]);
    }
    qv_arena_cache_clear(&model->arenas);
    qv_arena_cache_clear(&model->images);
    qv_vit_free(&model->vision);
}

/* ---- the image ---- */

qv_status qv_blip_image_allocate(qv_blip_image *image, const qv_blip *model, qv_error *err) {
    size_t S = model->vision.T, width = model->vision.config.D, cross, total;
    *image = (qv_blip_image){.S = S};
    if (qv_multiply_size(S * model->config.L, 2 * model->config.D, &cross) &&
        qv_add_size(cross, S * width, &total)) {
        if (model->ops->memory == NULL) {
            image->embeddings = qv_allocate(total, sizeof(float));
        } else if (qv_multiply_size(total, sizeof(float), &total)) {
            const qv_arena size = {.used = total};
            image->arena = qv_arena_acquire((qv_arena_cache *)&model->images, &size);
            image->embeddings = (float *)(void *)image->arena.base;
        }
    }
    if (image->embeddings == NULL) {
        return qv_fail_memory(err, "an image's keys and values");
    }
    image->cross = image->embeddings + S * width;
    return QV_OK;
}

void qv_blip_image_free(qv_blip_image *image, const qv_blip *model) {
    if (model->ops->memory == NULL) {
        qv_free(image->embeddings);
    } else if (image->embeddings != NULL) {
        qv_arena_release((qv_arena_cache *)&model->images, &image->arena);
    }
    *image = (qv_blip_image){.embeddings = NULL};
}

qv_status qv_blip_embed_image(const qv_blip *model, qv_call *call, qv_blip_image *image, const float *pixels,
                              const qv_picture_view *picture, const qv_preprocessing *how, qv_error *err) {
    qv_vit_request request = {.images = pixels,
                              .pictures = pixels == NULL ? picture : NULL,
                              .preprocessing = how,
                              .image_count = 1,
                              .taps = model->no_taps,
                              .embeddings = image->embeddings};
    return qv_vit_forward(&model->vision, call, &request, err);
}

qv_status qv_blip_set_embeddings(const qv_blip *model, qv_call *call, qv_blip_image *image, const float *embeddings,
                                 qv_error *err) {
    qv_status status = qv_call_begin(call, err);
    if (status == QV_OK) {
        call->ops->give(call, image->embeddings, embeddings, image->S * model->vision.config.D * sizeof *embeddings);
        status = qv_call_end(call, QV_OK, err);
    }
    return status;
}

qv_status qv_blip_get_embeddings(const qv_blip *model, qv_call *call, float *embeddings, const qv_blip_image *image,
                                 qv_error *err) {
    qv_status status = qv_call_begin(call, err);
    if (status == QV_OK) {
        call->ops->take(call, embeddings, image->embeddings, image->S * model->vision.config.D * sizeof *embeddings);
        status = qv_call_end(call, QV_OK, err);
    }
    return status;
}

qv_status qv_blip_cross_attend(const qv_blip *model, qv_call *call, qv_blip_image *image, qv_error *err) {
    const qv_ops *ops = model->ops;
    size_t S = image->S, width = model->vision.config.D, D = model->config.D;
    qv_arena_cache *cache = (qv_arena_cache *)&model->arenas;
    const qv_arena scratch = {.used = ops->scratch_bytes(call->lanes, S, width, 0, D / model->config.H)};
    qv_arena arena = qv_arena_acquire(cache, &scratch);
    if (arena.base == NULL) {
        return qv_fail_memory(err, "an image's keys and values");
    }
    call->scratch = arena.base;
    qv_status status = qv_call_begin(call, err);
    bool begun = status == QV_OK;
    for (size_t l = 0; l < model->config.L && status == QV_OK; l++) {
        ops->linear(call, image->cross + l * S * 2 * D, 2 * D, image->embeddings, width, &model->blocks[l].cross_kv, 0,
                    2 * D, NULL, S);
        if (qv_call_stopped(call)) {
            status = qv_fail(err, QV_ERR_CANCELLED, "the call was interrupted");
        }
    }
    if (begun) {
        status = qv_call_end(call, status, err);
    }
    qv_arena_release(cache, &arena);
    return status;
}

/* ---- the text ---- */

qv_status qv_blip_check_questions(const qv_blip *model, const qv_blip_questions *questions, qv_error *err) {
    for (size_t q = 0; q < questions->Q; q++) {
        size_t tokens = questions->start[q + 1] - questions->start[q];
        if (tokens == 0 || tokens > model->config.positions) {
            return qv_fail(err, QV_ERR_VALUE, "question %zu has %zu tokens, expected 1 to %zu", q, tokens,
                           model->config.positions);
        }
        for (size_t i = questions->start[q]; i < questions->start[q + 1]; i++) {
            if (questions->ids[i] < 0 || (size_t)questions->ids[i] >= model->config.vocabulary) {
                return qv_fail(err, QV_ERR_VALUE, "question %zu: token id %d, expected 0 to %zu", q,
                               (int)questions->ids[i], model->config.vocabulary - 1);
            }
        }
    }
    return QV_OK;
}

size_t qv_blip_chunk_end(const qv_blip_questions *questions, size_t from) {
    size_t to = from + 1;
    while (to < questions->Q && questions->start[to + 1] - questions->start[from] <= CHUNK_ROWS) {
        to++;
    }
    return to;
}

void qv_blip_chunk_sizes(const qv_blip_questions *questions, size_t *Q, size_t *R) {
    *Q = 0;
    *R = 0;
    for (size_t from = 0, to; from < questions->Q; from = to) {
        to = qv_blip_chunk_end(questions, from);
        size_t rows = questions->start[to] - questions->start[from];
        *Q = to - from > *Q ? to - from : *Q;
        *R = rows > *R ? rows : *R;
    }
}

void qv_blip_lay_out(qv_blip_plan *plan, qv_arena *arena, const qv_blip *model, size_t Q, size_t R, size_t keep_from) {
    size_t D = model->config.D, F = model->config.F, L = model->config.L;
    *plan = (qv_blip_plan){.Q = Q, .R = R, .keep_from = keep_from};
    plan->blocks = qv_arena_take_host(arena, L, sizeof *plan->blocks);
    plan->h = qv_arena_floats(arena, R * D);
    plan->class_rows = qv_arena_floats(arena, Q * D);
    plan->normed = qv_arena_floats(arena, R * D);
    plan->context = qv_arena_floats(arena, R * D);
    plan->activated = qv_arena_floats(arena, R * F);
    qv_blip_activations shared = {0};
    for (size_t l = 0; l < L; l++) {
        size_t rows = l + 1 == L ? Q : R;
        qv_blip_activations block = shared;
        if (l == 0 || l >= keep_from) {
            block.q = qv_arena_floats(arena, rows * D);
            block.kv = qv_arena_floats(arena, R * 2 * D);
            block.sum1 = qv_arena_floats(arena, rows * D);
            block.cross_q = qv_arena_floats(arena, rows * D);
            block.sum2 = qv_arena_floats(arena, rows * D);
            block.hidden = l >= keep_from ? qv_arena_floats(arena, rows * F) : NULL;
            block.sum3 = qv_arena_floats(arena, rows * D);
            shared = l < keep_from ? block : shared;
        }
        if (plan->blocks != NULL) {
            plan->blocks[l] = block;
        }
    }
}

size_t qv_blip_scratch_bytes(const qv_blip *model, const qv_call *call, size_t R) {
    size_t keys = model->vision.T > model->config.positions ? model->vision.T : model->config.positions;
    size_t deepest = model->config.F > model->config.D ? model->config.F : model->config.D;
    return model->ops->scratch_bytes(call->lanes, R, deepest, keys, model->config.D / model->config.H);
}

qv_attention qv_blip_self_attention(const qv_blip *model, const qv_blip_activations *block,
                                    const qv_blip_questions *questions, size_t q) {
    size_t D = model->config.D, d = D / model->config.H, first = questions->start[q] - questions->start[0];
    size_t tokens = questions->start[q + 1] - questions->start[q];
    bool one_query = block->rows == questions->Q;
    return (qv_attention){
        .q = block->q + (one_query ? q : first) * D,
        .ld_q = D,
        .k = block->kv + first * 2 * D,
        .v = block->kv + first * 2 * D + D,
        .ld_kv = 2 * D,
        .scale = model->attention_scale,
        .B = 1,
        .H = model->config.H,
        .T = one_query ? 1 : tokens,
        .S = tokens,
        .d = d,
    };
}

qv_attention qv_blip_cross_attention(const qv_blip *model, const qv_blip_activations *block, const float *cross,
                                     size_t S) {
    size_t D = model->config.D;
    return (qv_attention){
        .q = block->cross_q,
        .ld_q = D,
        .k = cross,
        .v = cross + D,
        .ld_kv = 2 * D,
        .scale = model->attention_scale,
        .B = 1,
        .H = model->config.H,
        .T = block->rows,
        .S = S,
        .d = D / model->config.H,
    };
}

/* h = norm(h + out(self_attention(h))): sum1 and, normed, the block's queries again. in: [rows, D]; h: [R, D] */
static void attend_to_question(const qv_blip *model, qv_call *call, qv_blip_plan *plan, size_t l, const float *in,
                               const qv_blip_questions *questions, size_t R) {
    const qv_ops *ops = call->ops;
    const qv_blip_block *weights = &model->blocks[l];
    qv_blip_activations *block = &plan->blocks[l];
    size_t D = model->config.D;
    ops->linear(call, block->q, D, in, D, &weights->self_qkv, 0, D, NULL, block->rows);
    ops->linear(call, block->kv, 2 * D, plan->h, D, &weights->self_qkv, D, 2 * D, NULL, R);
    for (size_t q = 0; q < questions->Q; q++) {
        qv_attention attention = qv_blip_self_attention(model, block, questions, q);
        attention.out = plan->context + (size_t)(attention.q - block->q);
        attention.ld_out = D;
        ops->attention(call, &attention);
    }
    qv_epilogue add = {.residual = in, .ld_residual = D};
    ops->linear(call, block->sum1, D, plan->context, D, &weights->self_out, 0, D, &add, block->rows);
    ops->layer_norm(call, plan->normed, D, block->sum1, D, weights->self_norm_weight.data,
                    weights->self_norm_bias.data, model->config.eps, block->rows, D);
}

/* h = norm(h + out(cross_attention(h, image))): sum2 */
static void attend_to_image(const qv_blip *model, qv_call *call, qv_blip_plan *plan, size_t l, const float *cross,
                            size_t S) {
    const qv_ops *ops = call->ops;
    const qv_blip_block *weights = &model->blocks[l];
    qv_blip_activations *block = &plan->blocks[l];
    size_t D = model->config.D;
    ops->linear(call, block->cross_q, D, plan->normed, D, &weights->cross_q, 0, D, NULL, block->rows);
    qv_attention attention = qv_blip_cross_attention(model, block, cross, S);
    attention.out = plan->context;
    attention.ld_out = D;
    ops->attention(call, &attention);
    qv_epilogue add = {.residual = plan->normed, .ld_residual = D};
    ops->linear(call, block->sum2, D, plan->context, D, &weights->cross_out, 0, D, &add, block->rows);
    ops->layer_norm(call, plan->normed, D, block->sum2, D, weights->cross_norm_weight.data,
                    weights->cross_norm_bias.data, model->config.eps, block->rows, D);
}

/* out [rows, D] = norm(h + fc2(act(fc1(h)))): hidden and sum3 */
static void feed_forward(const qv_blip *model, qv_call *call, qv_blip_plan *plan, size_t l, float *out) {
    const qv_ops *ops = call->ops;
    const qv_blip_block *weights = &model->blocks[l];
    qv_blip_activations *block = &plan->blocks[l];
    size_t D = model->config.D, F = model->config.F;
    if (block->hidden != NULL) {
        ops->linear(call, block->hidden, F, plan->normed, D, &weights->fc1, 0, F, NULL, block->rows);
        ops->activation(call, plan->activated, block->hidden, model->config.activation, block->rows * F);
    } else {
        qv_epilogue activate = {.activation = model->config.activation};
        ops->linear(call, plan->activated, F, plan->normed, D, &weights->fc1, 0, F, &activate, block->rows);
    }
    qv_epilogue add = {.residual = plan->normed, .ld_residual = D};
    ops->linear(call, block->sum3, D, plan->activated, F, &weights->fc2, 0, D, &add, block->rows);
    ops->layer_norm(call, out, D, block->sum3, D, weights->output_norm_weight.data, weights->output_norm_bias.data,
                    model->config.eps, block->rows, D);
}

/* class_rows [Q, D] = token 0 of each question in h */
static void gather_first(qv_call *call, qv_blip_plan *plan, const qv_blip_questions *questions, size_t D) {
    for (size_t q = 0; q < questions->Q; q++) {
        const float *row = plan->h + (questions->start[q] - questions->start[0]) * D;
        call->ops->copy(call, plan->class_rows + q * D, D, row, D, 1, D);
    }
}

qv_status qv_blip_text_forward(const qv_blip *model, qv_call *call, qv_blip_plan *plan, const float *cross, size_t S,
                               const qv_blip_questions *questions, qv_error *err) {
    const qv_ops *ops = call->ops;
    size_t D = model->config.D, L = model->config.L, Q = questions->Q, first = questions->start[0];
    size_t R = questions->start[Q] - first;
    for (size_t q = 0; q < Q; q++) {
        size_t row = questions->start[q] - first;
        ops->embedding(call, plan->h + row * D, model->words, questions->ids + questions->start[q],
                       model->positions.data, questions->start[q + 1] - questions->start[q], D);
    }
    ops->layer_norm(call, plan->h, D, plan->h, D, model->norm_weight.data, model->norm_bias.data, model->config.eps, R,
                    D);
    size_t end = cross != NULL ? L : model->config.text_blocks;
    if (end == 0) {
        gather_first(call, plan, questions, D);
    }
    for (size_t l = 0; l < end; l++) {
        QV_CHECK_STOPPED(call, err);
        float *in = plan->h;
        plan->blocks[l].rows = R;
        if (l + 1 == end) {
            gather_first(call, plan, questions, D);
            in = plan->class_rows;
            plan->blocks[l].rows = Q;
        }
        attend_to_question(model, call, plan, l, in, questions, R);
        QV_CHECK_STOPPED(call, err);
        if (cross != NULL) {
            attend_to_image(model, call, plan, l, cross + l * S * 2 * D, S);
            QV_CHECK_STOPPED(call, err);
        }
        feed_forward(model, call, plan, l, in);
    }
    QV_CHECK_STOPPED(call, err);
    return QV_OK;
}

/* ---- heads ---- */

/* class_rows of every question by chunks, each through `head` [N, D] into out [Q, N], to unit length where `unit`;
 * image NULL: text alone. */
static qv_status run_head(const qv_blip *model, qv_call *call, float *out, const qv_linear_weight *head, size_t N,
                          bool unit, const qv_blip_image *image, const qv_blip_questions *questions, qv_error *err) {
    size_t Q, R, D = model->config.D;
    qv_blip_chunk_sizes(questions, &Q, &R);
    qv_blip_plan plan;
    qv_arena measure = {.base = NULL};
    qv_blip_lay_out(&plan, &measure, model, Q, R, model->config.L);
    size_t scratch = qv_blip_scratch_bytes(model, call, R), placed = qv_place_size(model->ops, Q * N);
    qv_arena_take(&measure, scratch, 1);
    qv_arena_floats(&measure, placed);
    qv_arena_cache *cache = (qv_arena_cache *)&model->arenas;
    qv_arena arena = qv_arena_acquire(cache, &measure);
    if (arena.base == NULL) {
        return qv_fail_memory(err, "the questions' activations");
    }
    qv_blip_lay_out(&plan, &arena, model, Q, R, model->config.L);
    call->scratch = qv_arena_take(&arena, scratch, 1);
    float *place = qv_arena_floats(&arena, placed);
    qv_status status = qv_call_begin(call, err);
    bool begun = status == QV_OK;
    for (size_t from = 0, to; from < questions->Q && status == QV_OK; from = to) {
        to = qv_blip_chunk_end(questions, from);
        qv_blip_questions chunk = {to - from, questions->ids, questions->start + from};
        status = qv_blip_text_forward(model, call, &plan, image != NULL ? image->cross : NULL,
                                      image != NULL ? image->S : 0, &chunk, err);
        if (status == QV_OK) {
            float *rows = qv_output_place(call, place, out + from * N);
            model->ops->linear(call, rows, N, plan.class_rows, D, head, 0, N, NULL, chunk.Q);
            if (unit) {
                model->ops->unit_length(call, rows, chunk.Q, N);
            }
            qv_take_floats(call, out + from * N, rows, chunk.Q * N);
        }
    }
    if (begun) {
        status = qv_call_end(call, status, err);
    }
    qv_arena_release(cache, &arena);
    return status;
}

qv_status qv_blip_match(const qv_blip *model, qv_call *call, float *logits, const qv_blip_image *image,
                        const qv_blip_questions *questions, qv_error *err) {
    return run_head(model, call, logits, &model->itm_head, 2, false, image, questions, err);
}

static qv_status need_projection(const qv_blip *model, qv_error *err) {
    return model->projection != 0
               ? QV_OK
               : qv_fail(err, QV_ERR_VALUE, "these weights have no contrastive heads (text_proj, vision_proj)");
}

qv_status qv_blip_text_features(const qv_blip *model, qv_call *call, float *out, const qv_blip_questions *questions,
                                qv_error *err) {
    if (need_projection(model, err) != QV_OK) {
        return err->code;
    }
    return run_head(model, call, out, &model->text_projection, model->projection, true, NULL, questions, err);
}

qv_status qv_blip_image_features(const qv_blip *model, qv_call *call, float *out, const qv_blip_image *image,
                                 qv_error *err) {
    if (need_projection(model, err) != QV_OK) {
        return err->code;
    }
    const qv_ops *ops = model->ops;
    size_t width = model->vision.config.D, N = model->projection;
    qv_arena_cache *cache = (qv_arena_cache *)&model->arenas;
    size_t scratch = ops->scratch_bytes(call->lanes, 1, width, 0, 1);
    qv_arena measure = {.base = NULL};
    qv_arena_take(&measure, scratch, 1);
    qv_arena_floats(&measure, qv_place_size(ops, N));
    qv_arena arena = qv_arena_acquire(cache, &measure);
    if (arena.base == NULL) {
        return qv_fail_memory(err, "an image's features");
    }
    call->scratch = qv_arena_take(&arena, scratch, 1);
    float *place = qv_output_place(call, qv_arena_floats(&arena, qv_place_size(ops, N)), out);
    qv_status status = qv_call_begin(call, err);
    if (status == QV_OK) {
        ops->linear(call, place, N, image->embeddings, width, &model->vision_projection, 0, N, NULL, 1);
        ops->unit_length(call, place, 1, N);
        qv_take_floats(call, out, place, N);
        status = qv_call_end(call, QV_OK, err);
    }
    qv_arena_release(cache, &arena);
    return status;
}
