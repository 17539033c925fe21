/* From named tensors to a vision tower: which steps of models/vit.c it has is told by which tensors there are.
 *
 * 1. class, distillation and register tokens, with their positions added, are rows in front of the patches
 * 2. the table of positions is of them and the patches, or of the patches alone; angles of rotary positions are made here
 * 3. blocks, each with its layer scales folded into its two output projections, and the second output projection of an
 *    integrated block into the first
 * 4. the norms before and behind them, the attention head, and the projection into the space of texts */
#include "models/vit.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Hugging Face's names in CLIPVisionModel, and names in their manner for what CLIP does not have. */
static const qv_block_names block_names = {
    .norm1 = "layer_norm1",
    .qkv = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
    .out = "self_attn.out_proj",
    .hidden = {"mlp.fc1"},
    .output = "mlp.fc2",
    .norm2 = "layer_norm2",
    .qkv_bias = QV_BIAS_IF_THERE,
    .scale1 = "layer_scale1",
    .scale2 = "layer_scale2",
};

static qv_status check_config(const qv_vit_config *config, qv_error *err) {
    size_t p = config->patch_size;
    if (p == 0 || config->height == 0 || config->width == 0 || config->height % p != 0 || config->width % p != 0) {
        return qv_fail(err, QV_ERR_VALUE, "image_size %zu x %zu is not a multiple of patch_size %zu", config->height,
                       config->width, p);
    }
    if (config->H == 0 || config->D == 0 || config->D % config->H != 0) {
        return qv_fail(err, QV_ERR_VALUE, "hidden_size %zu is not a multiple of the %zu heads", config->D, config->H);
    }
    if (config->rope_theta != 0 && (!(config->rope_theta > 0) || config->D / config->H % 4 != 0)) {
        return qv_fail(err, QV_ERR_VALUE,
                       "rope_theta %g with heads of width %zu: rotary positions need a number above 0 and a multiple of 4",
                       (double)config->rope_theta, config->D / config->H);
    }
    const size_t limit = 65536;
    if (config->height > limit || config->width > limit || config->D > limit || config->L == 0 || config->L > 1024 ||
        config->F == 0 || config->F > 4 * limit || config->instruction_dim > limit) {
        return qv_fail(err, QV_ERR_VALUE,
                       "a vision transformer of %zu blocks, width %zu, feed-forward %zu, image %zu x %zu, question width "
                       "%zu is not one this core runs",
                       config->L, config->D, config->F, config->height, config->width, config->instruction_dim);
    }
    return QV_OK;
}

/* ---- what stands in front of the blocks ---- */

/* vector = `count` rows of `table` from `first` on. */
static qv_status prepare_rows(const qv_ops *ops, qv_vector *vector, const qv_tensor *table, size_t first, size_t count,
                              qv_error *err) {
    size_t D = table->shape[1];
    if (table->panel_columns == 0) {
        qv_tensor rows = *table;
        rows.data = (const char *)table->data + first * D * qv_dtype_size(table->dtype);
        rows.shape[0] = count;
        return qv_vector_prepare(ops, vector, &rows, err);
    }
    float *rows = qv_allocate(count * D, sizeof *rows);
    if (rows == NULL) {
        return qv_fail_memory(err, table->name);
    }
    qv_tensor_read(rows, table, first * D, count * D);
    qv_status status = qv_vector_copy(ops, vector, rows, count * D, table->name, err);
    qv_free(rows);
    return status;
}

/* prefix_rows: each class token plus its position, then the registers. */
static void make_prefix(qv_vit *vit, qv_loader *loader, const qv_tensor *const *tokens, size_t classes,
                        const qv_tensor *registers, const qv_tensor *positions) {
    size_t D = vit->config.D;
    if (loader->status != QV_OK || loader->weights->problems != 0 || vit->prefix == 0) {
        return;
    }
    float *rows = qv_allocate((vit->prefix + 1) * D, sizeof *rows), *spare = rows != NULL ? rows + vit->prefix * D : NULL;
    if (rows == NULL) {
        loader->status = qv_fail_memory(loader->err, "the class and register tokens");
        return;
    }
    for (size_t i = 0; i < classes; i++) {
        qv_tensor_read(rows + i * D, tokens[i], 0, D);
        if (positions != NULL && positions->shape[0] > vit->P) {
            qv_tensor_read(spare, positions, i * D, D);
            for (size_t k = 0; k < D; k++) {
                rows[i * D + k] += spare[k];
            }
        }
    }
    if (registers != NULL) {
        qv_tensor_read(rows + classes * D, registers, 0, (vit->prefix - classes) * D);
    }
    loader->status = qv_vector_copy(vit->ops, &vit->prefix_rows, rows, vit->prefix * D, "the class and register tokens",
                                    loader->err);
    qv_free(rows);
}

/* The position table has a row a patch, or before them one a class token, too. Without one the tower has to be rotary. */
static const qv_tensor *load_positions(qv_vit *vit, qv_loader *loader, size_t classes) {
    static const char name[] = "embeddings.position_embedding.weight";
    size_t D = vit->config.D, rows = qv_load_size(loader, "", name, 0);
    if (vit->config.rope_theta != 0 && rows == 0) {
        return NULL;
    }
    bool patches_alone = rows == vit->P;
    const qv_tensor *table = qv_load_tensor(loader, "", name, vit->P + (patches_alone ? 0 : classes), D);
    if (table != NULL && loader->status == QV_OK) {
        loader->status = prepare_rows(vit->ops, &vit->positions, table, patches_alone ? 0 : classes, vit->P,
                                      loader->err);
    }
    return table;
}

static void load_embeddings(qv_vit *vit, qv_loader *loader) {
    static const char *const class_names[] = {"embeddings.class_embedding", "embeddings.distillation_embedding"};
    static const char register_name[] = "embeddings.register_tokens", patches[] = "embeddings.patch_embedding.weight";
    size_t D = vit->config.D, p = vit->config.patch_size, classes = 0;
    const qv_tensor *tokens[2] = {NULL, NULL}, *registers = NULL;
    char name[256];
    snprintf(name, sizeof name, "%s%s", loader->prefix, patches);
    qv_linear_source source = {.weight = qv_weights_get(loader->weights, name, 4, D, (size_t)3, p, p)};
    if (qv_load_has(loader, "", "embeddings.patch_embedding.bias")) {
        source.bias = qv_load_tensor(loader, "", "embeddings.patch_embedding.bias", D, 0);
    }
    qv_load_layer(loader, &vit->patch_embedding, &source, 1);
    for (size_t i = 0; i < 2; i++) {
        bool needed = i == 0 && vit->config.pooling == QV_POOL_CLASS;
        if (needed || qv_load_has(loader, "", class_names[i])) {
            tokens[classes++] = qv_load_tensor(loader, "", class_names[i], D, 0);
        }
    }
    size_t count = qv_load_size(loader, "", register_name, 0);
    if (count != 0) {
        registers = qv_load_tensor(loader, "", register_name, count, D);
    }
    vit->has_class = classes != 0;
    vit->prefix = classes + count;
    vit->T = vit->prefix + vit->P;
    const qv_tensor *positions = load_positions(vit, loader, classes);
    make_prefix(vit, loader, tokens, classes, registers, positions);
}

/* angles [P, d]: each patch's cosines, then its sines, of d / 2 angles: d / 4 of its row, d / 4 of its column, which are the
 * centre of the patch in -1 .. 1 times 2 pi / theta^(4 j / d). */
static qv_status make_angles(qv_vit *vit, qv_error *err) {
    size_t d = vit->kind.d, quarter = d / 4;
    if (vit->config.rope_theta == 0) {
        return QV_OK;
    }
    float *angles = qv_allocate(vit->P * d, sizeof *angles);
    if (angles == NULL) {
        return qv_fail_memory(err, "the rotary positions");
    }
    for (size_t i = 0; i < vit->P; i++) {
        double centre[2] = {((double)(i / vit->grid_columns) + 0.5) / (double)vit->grid_rows,
                            ((double)(i % vit->grid_columns) + 0.5) / (double)vit->grid_columns};
        for (size_t j = 0; j < 2 * quarter; j++) {
            double period = pow((double)vit->config.rope_theta, 4.0 * (double)(j % quarter) / (double)d);
            double angle = 2 * 3.14159265358979323846 * (2 * centre[j / quarter] - 1) / period;
            angles[i * d + j] = (float)cos(angle);
            angles[i * d + 2 * quarter + j] = (float)sin(angle);
        }
    }
    qv_status status = qv_vector_copy(vit->ops, &vit->angles, angles, vit->P * d, "the rotary positions", err);
    qv_free(angles);
    return status;
}

/* ---- blocks ---- */

/* The output projection of an integrated block, with the gated second one folded into it. */
static void load_integrated_out(qv_vit *vit, qv_loader *loader, qv_linear *out, const char *stem) {
    size_t D = vit->config.D;
    qv_linear_source source = qv_load_source(loader, stem, block_names.out, D, D, QV_BIAS);
    qv_linear_source second = qv_load_source(loader, stem, "self_attn.instruction_out_proj", D, D, QV_BIAS);
    const qv_tensor *gate = qv_load_tensor(loader, stem, "self_attn.instruction_proj_gate", 1, 0);
    source.add_weight = second.weight;
    source.add_bias = second.bias;
    source.row_scale = qv_block_row_scale(loader, stem, block_names.scale1, D);
    if (gate != NULL) {
        float value;
        qv_tensor_read(&value, gate, 0, 1);
        source.scale = tanhf(value);
    }
    qv_load_layer(loader, out, &source, 1);
}

static void load_block(qv_vit *vit, qv_loader *loader, const qv_block_names *names, size_t i) {
    static const char *const reduce1 = "instruct_dim_reduce.1", *const reduce2 = "instruct_dim_reduce.3";
    qv_vit_block *block = &vit->blocks[i];
    size_t D = vit->config.D, Dt = vit->config.instruction_dim;
    char stem[64];
    snprintf(stem, sizeof stem, "encoder.layers.%zu.", i);
    qv_block_names own = *names;
    block->integrated = vit->config.integrated != NULL && vit->config.integrated[i];
    own.out = block->integrated ? NULL : names->out;
    qv_block_load(loader, &block->block, &vit->kind, &own, stem);
    if (qv_load_has(loader, stem, "layer_norm1_plain.weight")) {
        qv_load_norm(loader, &block->plain_norm1, stem, "layer_norm1_plain", QV_LAYER_NORM, D, vit->config.eps);
    }
    if (!block->integrated) {
        return;
    }
    vit->first_integrated = i < vit->first_integrated ? i : vit->first_integrated;
    load_integrated_out(vit, loader, &block->block.out, stem);
    size_t found = qv_load_size(loader, stem, "instruct_dim_reduce.1.weight", 0), width = found != 0 ? found : D;
    vit->reduce_width = width > vit->reduce_width ? width : vit->reduce_width;
    qv_load_norm(loader, &block->reduce_norm, stem, "instruct_dim_reduce.0", QV_LAYER_NORM, Dt, 1e-5f);
    qv_load_linear(loader, &block->reduce1, stem, &reduce1, 1, width, Dt, QV_NO_BIAS);
    qv_load_linear(loader, &block->reduce2, stem, &reduce2, 1, D, width, QV_NO_BIAS);
}

/* The attention head's query stands for its tokens: it has no norm in front, and no first sum. */
static void load_head(qv_vit *vit, qv_loader *loader) {
    static const char *const qkv[] = {"attention.q_proj", "attention.k_proj", "attention.v_proj"};
    static const char *const out = "attention.out_proj", *const hidden = "mlp.fc1", *const output = "mlp.fc2";
    static const char stem[] = "head.";
    size_t D = vit->config.D, F = vit->config.F;
    qv_load_next_block(loader);
    qv_load_vector(loader, &vit->probe, stem, "probe", D, 0);
    qv_load_linear(loader, &vit->head.qkv, stem, qkv, 3, D, D, QV_BIAS);
    qv_load_linear(loader, &vit->head.out, stem, &out, 1, D, D, QV_BIAS);
    qv_load_norm(loader, &vit->head.norm2, stem, "layernorm", QV_LAYER_NORM, D, vit->config.eps);
    qv_load_linear(loader, &vit->head.hidden, stem, &hidden, 1, F, D, QV_BIAS);
    qv_load_linear(loader, &vit->head.output, stem, &output, 1, D, F, QV_BIAS);
}

static qv_block_kind kind_of(const qv_vit_config *config, bool gated) {
    size_t d = config->D / config->H;
    return (qv_block_kind){
        .D = config->D,
        .H = config->H,
        .d = d,
        .F = config->F,
        .norm_first = true,
        .gated = gated,
        .eps = config->eps,
        .scale = 1.0f / sqrtf((float)d),
        .activation = config->activation,
    };
}

static void find_grid(qv_vit *vit) {
    vit->grid_rows = vit->config.height / vit->config.patch_size;
    vit->grid_columns = vit->config.width / vit->config.patch_size;
    vit->P = vit->grid_rows * vit->grid_columns;
}

qv_status qv_vit_load(qv_vit *vit, const qv_vit_config *config, qv_loader *loader) {
    static const char what[] = "vision transformer";
    *vit = (qv_vit){.config = *config, .ops = loader->ops, .arenas.memory = loader->ops->memory};
    loader->status = loader->status == QV_OK ? check_config(config, loader->err) : loader->status;
    vit->blocks = qv_load_allocate(loader, config->L, sizeof *vit->blocks, "the blocks of a vision transformer");
    if (loader->status != QV_OK) {
        return loader->status;
    }
    bool gated = qv_load_has(loader, "encoder.layers.0.", "mlp.gate.weight");
    qv_block_names names = block_names;
    if (gated) {
        names.hidden[0] = "mlp.gate";
        names.hidden[1] = "mlp.fc1";
    }
    vit->kind = kind_of(config, gated);
    find_grid(vit);
    vit->first_integrated = config->L;
    load_embeddings(vit, loader);
    loader->status = loader->status == QV_OK ? make_angles(vit, loader->err) : loader->status;
    if (qv_load_has(loader, "", "pre_layrnorm.weight")) {
        qv_load_norm(loader, &vit->pre_norm, "", "pre_layrnorm", QV_LAYER_NORM, config->D, config->pre_norm_eps);
    }
    qv_load_norm(loader, &vit->post_norm, "", "post_layernorm", QV_LAYER_NORM, config->D, config->post_norm_eps);
    for (size_t i = 0; i < config->L && loader->status == QV_OK; i++) {
        load_block(vit, loader, &names, i);
    }
    if (config->pooling == QV_POOL_MAP) {
        load_head(vit, loader);
    }
    qv_load_beside(loader, &vit->projection, "vision_model.", "visual_projection", config->D);
    qv_load_beside(loader, &vit->answers, "vision_model.", "answer_head", config->D);
    vit->config.integrated = NULL;
    qv_status status = qv_load_finish(loader, what);
    if (status != QV_OK) {
        qv_vit_free(vit);
    }
    return status;
}

qv_status qv_vit_resize(qv_vit *resized, const qv_vit *vit, size_t height, size_t width, const float *positions,
                        qv_error *err) {
    qv_vit_config config = vit->config;
    config.height = height;
    config.width = width;
    qv_status status = check_config(&config, err);
    if (status != QV_OK) {
        return status;
    }
    *resized = *vit;
    resized->config = config;
    resized->shares = true;
    resized->arenas = (qv_arena_cache){.memory = vit->ops->memory};
    resized->positions = resized->angles = (qv_vector){.data = NULL};
    find_grid(resized);
    resized->T = resized->prefix + resized->P;
    if (positions != NULL) {
        status = qv_vector_copy(vit->ops, &resized->positions, positions, resized->P * config.D, "the positions", err);
    }
    status = status == QV_OK ? make_angles(resized, err) : status;
    if (status != QV_OK) {
        qv_vit_free(resized);
    }
    return status;
}

void qv_vit_free(qv_vit *vit) {
    if (vit->blocks == NULL) {
        return;
    }
    if (vit->shares) {
        qv_vector_free(vit->ops, &vit->positions);
        qv_vector_free(vit->ops, &vit->angles);
        qv_arena_cache_clear(&vit->arenas);
        return;
    }
    for (size_t i = 0; i < vit->config.L; i++) {
        qv_block_free(vit->ops, &vit->blocks[i].block);
        qv_norm_free(vit->ops, &vit->blocks[i].plain_norm1);
        qv_norm_free(vit->ops, &vit->blocks[i].reduce_norm);
        qv_linear_free(vit->ops, &vit->blocks[i].reduce1);
        qv_linear_free(vit->ops, &vit->blocks[i].reduce2);
    }
    qv_free(vit->blocks);
    vit->blocks = NULL;
    qv_block_free(vit->ops, &vit->head);
    qv_linear_free(vit->ops, &vit->patch_embedding);
    qv_linear_free(vit->ops, &vit->projection);
    qv_linear_free(vit->ops, &vit->answers);
    qv_norm_free(vit->ops, &vit->pre_norm);
    qv_norm_free(vit->ops, &vit->post_norm);
    qv_vector *vectors[] = {&vit->prefix_rows, &vit->positions, &vit->angles, &vit->probe};
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        qv_vector_free(vit->ops, vectors[i]);
    }
    qv_arena_cache_clear(&vit->arenas);
}
