/* BLIP image-text matching (Li et al., arXiv 2201.12086; code salesforce/LAVIS), and ALBEF's (Li et al., arXiv 2107.07651).
 *
 * 1. image: the vision transformer (models/vit.h), S = 1 + P tokens, all normed; once an image
 * 2. each text block's cross-attention keys and values, from those tokens; once an image
 * 3. text (blip_text.c): word + position (ALBEF: + token type 0) embeddings, layer norm; BLIP's first token is [ENC] for
 *    matching, else [CLS]
 * 4. L blocks (models/block.h), norms last: self-attention, cross-attention to the image (ALBEF: from block "fusion_layer"
 *    on), feed-forward; the contrastive pass leaves the cross-attention out and stops after "fusion_layer" blocks; in the
 *    last block only token 0 is a query
 * 5. itm_head on token 0: two logits; or text_proj and vision_proj on token 0, each to unit length
 *
 * BLIP-VQA's question encoder is the same without step 5: what its last block leaves of all tokens is read by a decoder. */
#include "models/blip_itm.h"

#include "models/bert.h"
#include "models/planned.h"

#include <math.h>
#include <stdio.h>

#define LAYERS "text_encoder.encoder.layer."
#define WORDS "text_encoder.embeddings.word_embeddings.weight"
#define POSITIONS "text_encoder.embeddings.position_embeddings.weight"
#define TOKEN_TYPES "text_encoder.embeddings.token_type_embeddings.weight"
#define QUERIES "query_tokens"

/* ---- weights ---- */

/* The sizes of the text half, from the shapes of its weights. */
static qv_status find_sizes(qv_blip_config *c, qv_loader *loader) {
    const qv_found_size sizes[] = {
        {"vocab_size", &c->vocabulary, qv_load_size(loader, "", WORDS, 0)},
        {"hidden_size", &c->D, qv_load_size(loader, "", WORDS, 1)},
        {"max_position_embeddings", &c->positions, qv_load_size(loader, "", POSITIONS, 0)},
        {"num_attention_heads", &c->H, 0},
        {"intermediate_size", &c->F, qv_load_size(loader, LAYERS "0.", "intermediate.dense.weight", 0)},
        {"num_hidden_layers", &c->L, qv_load_count(loader, LAYERS, "attention.self.query.weight")},
    };
    qv_status status = qv_load_sizes(loader, "BLIP's text half", sizes, sizeof sizes / sizeof sizes[0]);
    if (status != QV_OK) {
        return status;
    }
    if (c->L > 1024 || c->D > 65536 || c->F > 262144) {
        return qv_fail(loader->err, QV_ERR_VALUE, "BLIP: a text encoder of %zu blocks, width %zu is not one this core runs",
                       c->L, c->D);
    }
    if (c->D % c->H != 0) {
        return qv_fail(loader->err, QV_ERR_VALUE, "text config: hidden_size %zu is not a multiple of the %zu heads", c->D,
                       c->H);
    }
    return QV_OK;
}

static bool has_cross(qv_loader *loader, size_t l) {
    char stem[64];
    snprintf(stem, sizeof stem, LAYERS "%zu.", l);
    return qv_load_has(loader, stem, "crossattention.self.query.weight");
}

/* Which blocks attend to the image: all from the first that does on, or with queries every so many. */
static qv_status find_cross(qv_blip *model, qv_loader *loader) {
    qv_blip_config *c = &model->config;
    size_t first = 0, step = 1;
    while (first < c->L && !has_cross(loader, first)) {
        first++;
    }
    first = first < c->L ? first : 0; /* none: block 0's are missing */
    while (model->queries != 0 && first + step < c->L && !has_cross(loader, first + step)) {
        step++;
    }
    model->cross_first = first;
    model->cross_step = step;
    model->cross_count = (c->L - first + step - 1) / step;
    c->text_blocks = c->text_blocks != SIZE_MAX ? c->text_blocks : first != 0 ? first : c->L;
    if (c->text_blocks > c->L) {
        return qv_fail(loader->err, QV_ERR_VALUE, "text config: fusion_layer %zu of %zu blocks", c->text_blocks, c->L);
    }
    return QV_OK;
}

bool qv_blip_attends(const qv_blip *model, size_t l) {
    return l >= model->cross_first && (l - model->cross_first) % model->cross_step == 0;
}

/* The second logit's weights; with queries, of whose logits the mean is taken, over their number. */
static void load_match(qv_blip *model, qv_loader *loader) {
    size_t D = model->config.D;
    const qv_tensor *weights = qv_load_tensor(loader, "", "itm_head.weight", 2, D);
    float *row = qv_load_allocate(loader, D, sizeof *row, "the matching head");
    if (row != NULL && weights != NULL) {
        qv_tensor_read(row, weights, D, D);
        for (size_t k = 0; k < D && model->queries != 0; k++) {
            row[k] /= (float)model->queries;
        }
        loader->status = qv_vector_copy(model->ops, &model->match, row, D, "the matching head", loader->err);
    }
    qv_free(row);
}

static void load_heads(qv_blip *model, qv_loader *loader) {
    static const char *const itm = "itm_head", *const text = "text_proj", *const vision = "vision_proj";
    size_t D = model->config.D, width = model->queries != 0 ? D : model->vision.config.D;
    if (model->config.question_encoder) {
        return;
    }
    qv_load_linear(loader, &model->itm_head, "", &itm, 1, 2, D, QV_BIAS);
    load_match(model, loader);
    model->projection = qv_load_size(loader, "", "text_proj.weight", 0);
    if (model->projection != 0) {
        qv_load_linear(loader, &model->text_projection, "", &text, 1, model->projection, D, QV_BIAS);
        qv_load_linear(loader, &model->vision_projection, "", &vision, 1, model->projection, width, QV_BIAS);
    }
}

/* The feed-forward of block l that the queries go through. */
static void load_query_part(qv_blip *model, qv_loader *loader, size_t l, const char *stem) {
    static const char *const hidden = "intermediate_query.dense", *const output = "output_query.dense";
    const qv_blip_config *c = &model->config;
    qv_block *block = &model->query_blocks[l];
    loader->place = QV_IN_BLOCK;
    qv_load_linear(loader, &block->hidden, stem, &hidden, 1, c->F, c->D, QV_BIAS);
    loader->place = QV_LAST_OF_BLOCK;
    qv_load_linear(loader, &block->output, stem, &output, 1, c->D, c->F, QV_BIAS);
    loader->place = QV_OUTSIDE_BLOCKS;
    qv_load_norm(loader, &block->norm2, stem, "output_query.LayerNorm", QV_LAYER_NORM, c->D, c->eps);
}

static void load_text(qv_blip *model, qv_loader *loader) {
    const qv_blip_config *c = &model->config;
    size_t d = c->D / c->H;
    model->kind = (qv_block_kind){
        .D = c->D, .H = c->H, .d = d, .F = c->F, .eps = c->eps, .scale = 1.0f / sqrtf((float)d),
        .activation = c->activation, .cross_width = model->vision.config.D,
    };
    qv_load_table(loader, &model->words, WORDS, c->vocabulary, c->D);
    qv_load_table(loader, &model->positions, POSITIONS, c->positions, c->D);
    size_t types = qv_load_size(loader, "", TOKEN_TYPES, 0);
    if (types != 0) {
        qv_load_table(loader, &model->token_types, TOKEN_TYPES, types, c->D);
    }
    qv_load_norm(loader, &model->embedding_norm, "text_encoder.", "embeddings.LayerNorm", QV_LAYER_NORM, c->D, c->eps);
    if (model->queries != 0) {
        qv_load_vector(loader, &model->query_tokens, "", QUERIES, model->queries, c->D);
    }
    for (size_t l = 0; l < c->L; l++) {
        char stem[64];
        qv_block_kind kind = model->kind;
        kind.cross_width = qv_blip_attends(model, l) ? kind.cross_width : 0;
        snprintf(stem, sizeof stem, LAYERS "%zu.", l);
        qv_block_load(loader, &model->blocks[l], &kind, &qv_bert_block_names, stem);
        if (model->queries != 0) {
            load_query_part(model, loader, l, stem);
        }
    }
    qv_load_next_block(loader);
    load_heads(model, loader);
}

qv_status qv_blip_load(qv_blip *model, const qv_blip_config *config, qv_loader *loader) {
    const qv_ops *ops = loader->ops;
    *model = (qv_blip){.config = *config, .ops = ops, .arenas.memory = ops->memory, .images.memory = ops->memory};
    model->queries = qv_load_size(loader, "", QUERIES, 0);
    loader->status = find_sizes(&model->config, loader);
    if (loader->status == QV_OK) {
        loader->status = find_cross(model, loader);
    }
    if (loader->status != QV_OK) {
        return loader->status;
    }
    const char *prefix = loader->prefix;
    char vision[128];
    snprintf(vision, sizeof vision, "%svision_model.", prefix);
    loader->prefix = vision;
    qv_status status = qv_vit_load(&model->vision, &config->vision, loader);
    loader->prefix = prefix;
    if (status != QV_OK) {
        return status;
    }
    size_t L = model->config.L, parts = model->queries != 0 ? 2 * L : L;
    model->blocks = qv_blocks_create(loader, parts, "the blocks of a text encoder");
    if (model->blocks == NULL) {
        qv_vit_free(&model->vision);
        return loader->status;
    }
    model->query_blocks = model->blocks + L;
    load_text(model, loader);
    status = qv_load_finish(loader, "BLIP image-text matching");
    if (status != QV_OK) {
        qv_blip_free(model);
    }
    return status;
}

void qv_blip_free(qv_blip *model) {
    if (model->blocks == NULL) {
        return;
    }
    qv_blocks_free(model->ops, model->blocks, (model->queries != 0 ? 2 : 1) * model->config.L);
    model->blocks = NULL;
    qv_linear *layers[] = {&model->itm_head, &model->vision_projection, &model->text_projection};
    for (size_t i = 0; i < sizeof layers / sizeof layers[0]; i++) {
        qv_linear_free(model->ops, layers[i]);
    }
    qv_norm_free(model->ops, &model->embedding_norm);
    qv_vector_free(model->ops, &model->match);
    qv_vector_free(model->ops, &model->query_tokens);
    qv_arena_cache_clear(&model->arenas);
    qv_arena_cache_clear(&model->images);
    qv_vit_free(&model->vision);
}

/* ---- the image ---- */

qv_status qv_blip_image_allocate(qv_blip_image *image, const qv_blip *model, qv_error *err) {
    size_t S = model->vision.T, width = model->vision.config.D, cross, total, bytes;
    *image = (qv_blip_image){.S = S};
    if (!qv_multiply_size(S * model->cross_count, 2 * model->config.D, &cross) || !qv_add_size(cross, S * width, &total) ||
        !qv_multiply_size(total, sizeof(float), &bytes) ||
        !qv_keep(&image->memory, (qv_arena_cache *)&model->images, bytes)) {
        return qv_fail_memory(err, "an image's keys and values");
    }
    image->embeddings = image->memory.at;
    image->cross = image->embeddings + S * width;
    return QV_OK;
}

void qv_blip_image_free(qv_blip_image *image, const qv_blip *model) {
    if (image->embeddings != NULL) {
        qv_kept_free(&image->memory, (qv_arena_cache *)&model->images);
    }
    *image = (qv_blip_image){.embeddings = NULL};
}

qv_status qv_blip_embed_images(const qv_blip *model, qv_call *call, qv_blip_image *const *images, const qv_vit_images *from,
                               qv_error *err) {
    float **embeddings = qv_allocate(from->count, sizeof *embeddings);
    if (embeddings == NULL) {
        return qv_fail_memory(err, "images' places");
    }
    for (size_t i = 0; i < from->count; i++) {
        embeddings[i] = images[i]->embeddings;
    }
    qv_vit_request request = {.images = *from, .embeddings = embeddings};
    qv_status status = qv_vit_forward(&model->vision, call, &request, err);
    qv_free(embeddings);
    return status;
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

typedef struct {
    const qv_blip *model;
    qv_blip_image *const *images;
    size_t count;
} cross_pass;

static void plan_cross(void *state, qv_call *call, qv_arena *arena) {
    const cross_pass *pass = state;
    const qv_blip *model = pass->model;
    qv_plan_scratch(call, arena, model->ops->scratch_bytes(call->lanes, model->vision.T, model->vision.config.D, 0,
                                                           model->kind.d));
}

static qv_status run_cross(void *state, qv_call *call, qv_error *err) {
    const cross_pass *pass = state;
    const qv_blip *model = pass->model;
    size_t D = model->config.D;
    (void)err;
    for (size_t i = 0; i < model->cross_count; i++) {
        const qv_block *block = &model->blocks[model->cross_first + i * model->cross_step];
        for (size_t n = 0; n < pass->count; n++) {
            const qv_blip_image *image = pass->images[n];
            qv_rows kv = {image->cross + i * image->S * 2 * D, 2 * D};
            call->ops->linear(call, kv, (qv_const_rows){image->embeddings, model->vision.config.D}, &block->cross_kv, 0,
                              2 * D, NULL, image->S);
        }
    }
    return QV_OK;
}

qv_status qv_blip_cross_attend(const qv_blip *model, qv_call *call, qv_blip_image *const *images, size_t count,
                               qv_error *err) {
    static const qv_planned planned = {"an image's keys and values", plan_cross, run_cross};
    cross_pass pass = {.model = model, .images = images, .count = count};
    return qv_run_planned(call, (qv_arena_cache *)&model->arenas, &planned, &pass, err);
}
