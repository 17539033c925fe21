/* Vision transformers (Dosovitskiy et al. 2021) as CLIP, QA-ViT and BLIP have them.
 *
 * 1. patches -> patch embedding; class token in front; + position embedding; CLIP: layer norm
 * 2. L blocks: x += out(attention(layer_norm1(x))); x += fc2(act(fc1(layer_norm2(x))))
 * 3. an integrated block of QA-ViT (Ganz et al., CVPR 2024, arXiv 2402.05472; code amazon-science/QA-ViT) first makes
 *    z = W2 gelu(W1 layer_norm(instruct)) and attends to [z; layer_norm1(x)], z through the block's own k and v;
 *    its output is out_proj(o) + tanh(gate) instruction_out_proj(o)
 * 4. final norm: of the class token (CLIP: pooled), of all tokens (BLIP: image embeddings)
 *
 * The question enters in the first integrated block, so everything before it, and that block's q, k, v of the patches,
 * is computed once an image; from there on there is one sequence a pair. */
#include "models/vit.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- weights ---- */

typedef struct {
    qv_vit *vit;
    qv_weights *weights;
    const char *prefix;
    qv_precision precision;
    qv_error *err;
    qv_status status;
} loader;

static const char *name_of(char *out, size_t size, const loader *load, size_t block, const char *name) {
    bool clip = load->vit->config.layout == QV_VIT_CLIP;
    if (block == SIZE_MAX) {
        snprintf(out, size, "%s%s", load->prefix, name);
    } else {
        snprintf(out, size, "%s%s%zu.%s", load->prefix, clip ? "encoder.layers." : "blocks.", block, name);
    }
    return out;
}

static void load_vector(loader *load, qv_vector *vector, size_t block, const char *name, size_t n) {
    char full[256];
    const qv_tensor *tensor = qv_weights_get(load->weights, name_of(full, sizeof full, load, block, name), 1, n);
    if (load->status == QV_OK) {
        load->status = qv_vector_prepare(load->vit->ops, vector, tensor, load->err);
    }
}

static const qv_tensor *get_matrix(loader *load, size_t block, const char *name, size_t rows, size_t columns) {
    char full[256];
    return qv_weights_get(load->weights, name_of(full, sizeof full, load, block, name), 2, rows, columns);
}

static const qv_tensor *get_vector(loader *load, size_t block, const char *name, size_t n) {
    char full[256];
    return qv_weights_get(load->weights, name_of(full, sizeof full, load, block, name), 1, n);
}

static void prepare(loader *load, qv_linear_weight *weight, const qv_linear_source *sources, size_t parts) {
    if (load->status == QV_OK) {
        const qv_ops *ops = load->vit->ops;
        load->status = ops->linear_prepare(ops, weight, sources, parts, load->precision, load->err);
    }
}

static void load_linear(loader *load, qv_linear_weight *weight, size_t block, const char *name, size_t rows,
                        size_t columns, bool has_bias) {
    char part[128];
    snprintf(part, sizeof part, "%s.weight", name);
    qv_linear_source source = {.weight = get_matrix(load, block, part, rows, columns)};
    if (has_bias) {
        snprintf(part, sizeof part, "%s.bias", name);
        source.bias = get_vector(load, block, part, rows);
    }
    prepare(load, weight, &source, 1);
}

static void load_norm(loader *load, qv_vector *weight, qv_vector *bias, size_t block, const char *name, size_t n) {
    char part[128];
    snprintf(part, sizeof part, "%s.weight", name);
    load_vector(load, weight, block, part, n);
    snprintf(part, sizeof part, "%s.bias", name);
    load_vector(load, bias, block, part, n);
}

/* q, k and v as three parts of one layer: three tensors (CLIP) or the thirds of one (BLIP). */
static void load_qkv(loader *load, qv_vit_block *block, size_t i) {
    size_t D = load->vit->config.D;
    qv_linear_source sources[3] = {{0}};
    qv_tensor thirds[6];
    if (load->vit->config.layout == QV_VIT_CLIP) {
        static const char *const names[3] = {"q_proj", "k_proj", "v_proj"};
        for (size_t part = 0; part < 3; part++) {
            char name[64];
            snprintf(name, sizeof name, "self_attn.%s.weight", names[part]);
            sources[part].weight = get_matrix(load, i, name, D, D);
            snprintf(name, sizeof name, "self_attn.%s.bias", names[part]);
            sources[part].bias = get_vector(load, i, name, D);
        }
    } else {
        const qv_tensor *weight = get_matrix(load, i, "attn.qkv.weight", 3 * D, D);
        const qv_tensor *bias = get_vector(load, i, "attn.qkv.bias", 3 * D);
        if (weight != NULL && weight->panel_columns != 0 && D % weight->panel_columns != 0) {
            load->status = qv_fail(load->err, QV_ERR_VALUE, "%s: panels of %zu rows do not part into thirds of %zu",
                                   weight->name, weight->panel_columns, D);
            return;
        }
        for (size_t part = 0; part < 3 && weight != NULL && bias != NULL; part++) {
            thirds[part] = *weight;
            thirds[part].shape[0] = D;
            thirds[part].data = (const char *)weight->data + part * D * D * qv_dtype_size(weight->dtype);
            thirds[3 + part] = *bias;
            thirds[3 + part].shape[0] = D;
            thirds[3 + part].data = (const char *)bias->data + part * D * qv_dtype_size(bias->dtype);
            sources[part].weight = &thirds[part];
            sources[part].bias = &thirds[3 + part];
        }
    }
    prepare(load, &block->qkv, sources, 3);
}

/* The output projection and, in an integrated block, the gated second one folded into it. */
static void load_out(loader *load, qv_vit_block *block, size_t i) {
    size_t D = load->vit->config.D;
    if (load->vit->config.layout == QV_VIT_BLIP) {
        load_linear(load, &block->out, i, "attn.proj", D, D, true);
        return;
    }
    qv_linear_source source = {.weight = get_matrix(load, i, "self_attn.out_proj.weight", D, D),
                               .bias = get_vector(load, i, "self_attn.out_proj.bias", D)};
    if (block->integrated) {
        source.add_weight = get_matrix(load, i, "self_attn.instruction_out_proj.weight", D, D);
        source.add_bias = get_vector(load, i, "self_attn.instruction_out_proj.bias", D);
        const qv_tensor *gate = get_vector(load, i, "self_attn.instruction_proj_gate", 1);
        if (gate != NULL) {
            float value;
            qv_tensor_read(&value, gate, 0, 1);
            source.scale = tanhf(value);
        }
    }
    prepare(load, &block->out, &source, 1);
}

static void load_instruct_reduce(loader *load, qv_vit_block *block, size_t i) {
    qv_vit *vit = load->vit;
    size_t Dt = vit->config.instruction_dim;
    char name[256];
    const qv_tensor *first =
        qv_weights_peek(load->weights, name_of(name, sizeof name, load, i, "instruct_dim_reduce.1.weight"));
    size_t width = first != NULL && first->dims == 2 ? first->shape[0] : vit->config.D;
    vit->reduce_width = width > vit->reduce_width ? width : vit->reduce_width;
    load_norm(load, &block->reduce_norm_weight, &block->reduce_norm_bias, i, "instruct_dim_reduce.0", Dt);
    load_linear(load, &block->reduce1, i, "instruct_dim_reduce.1", width, Dt, false);
    load_linear(load, &block->reduce2, i, "instruct_dim_reduce.3", vit->config.D, width, false);
}

static void load_block(loader *load, size_t i) {
    qv_vit *vit = load->vit;
    qv_vit_block *block = &vit->blocks[i];
    bool clip = vit->config.layout == QV_VIT_CLIP;
    size_t D = vit->config.D, F = vit->config.F;
    block->integrated = vit->config.integrated != NULL && vit->config.integrated[i];
    if (block->integrated && vit->first_integrated == vit->config.L) {
        vit->first_integrated = i;
    }
    load_norm(load, &block->norm1_weight, &block->norm1_bias, i, clip ? "layer_norm1" : "norm1", D);
    load_norm(load, &block->norm2_weight, &block->norm2_bias, i, clip ? "layer_norm2" : "norm2", D);
    if (load->status == QV_OK) {
        load->status = qv_next_block(vit->ops, load->err);
    }
    load_qkv(load, block, i);
    load_out(load, block, i);
    load_linear(load, &block->fc1, i, "mlp.fc1", F, D, true);
    load_linear(load, &block->fc2, i, "mlp.fc2", D, F, true);
    if (block->integrated) {
        load_instruct_reduce(load, block, i);
    }
}

static void load_embeddings(loader *load) {
    qv_vit *vit = load->vit;
    size_t D = vit->config.D, p = vit->config.patch_size;
    bool clip = vit->config.layout == QV_VIT_CLIP;
    char name[256];
    qv_linear_source source = {0};
    name_of(name, sizeof name, load, SIZE_MAX, clip ? "embeddings.patch_embedding.weight" : "patch_embed.proj.weight");
    source.weight = qv_weights_get(load->weights, name, 4, D, (size_t)3, p, p);
    const qv_tensor *class_embedding, *positions;
    if (clip) {
        class_embedding = get_vector(load, SIZE_MAX, "embeddings.class_embedding", D);
        positions = get_matrix(load, SIZE_MAX, "embeddings.position_embedding.weight", vit->T, D);
        load_norm(load, &vit->pre_norm_weight, &vit->pre_norm_bias, SIZE_MAX, "pre_layrnorm", D);
        load_norm(load, &vit->post_norm_weight, &vit->post_norm_bias, SIZE_MAX, "post_layernorm", D);
    } else {
        source.bias = get_vector(load, SIZE_MAX, "patch_embed.proj.bias", D);
        name_of(name, sizeof name, load, SIZE_MAX, "cls_token");
        class_embedding = qv_weights_get(load->weights, name, 3, (size_t)1, (size_t)1, D);
        name_of(name, sizeof name, load, SIZE_MAX, "pos_embed");
        positions = qv_weights_get(load->weights, name, 3, (size_t)1, vit->T, D);
        load_norm(load, &vit->post_norm_weight, &vit->post_norm_bias, SIZE_MAX, "norm", D);
    }
    prepare(load, &vit->patch_embedding, &source, 1);
    if (load->status == QV_OK) {
        load->status = qv_vector_prepare(vit->ops, &vit->class_embedding, class_embedding, load->err);
    }
    if (load->status == QV_OK) {
        load->status = qv_vector_prepare(vit->ops, &vit->position_embedding, positions, load->err);
    }
}

static qv_status check_config(const qv_vit_config *config, qv_error *err) {
    if (config->patch_size == 0 || config->image_size == 0 || config->image_size % config->patch_size != 0) {
        return qv_fail(err, QV_ERR_VALUE, "image_size %zu is not a multiple of patch_size %zu", config->image_size,
                       config->patch_size);
    }
    if (config->H == 0 || config->D == 0 || config->D % config->H != 0) {
        return qv_fail(err, QV_ERR_VALUE, "hidden_size %zu is not a multiple of the %zu heads", config->D, config->H);
    }
    const size_t limit = 65536;
    if (config->image_size > limit || config->D > limit || config->L == 0 || config->L > 1024 || config->F == 0 ||
        config->F > 4 * limit || config->instruction_dim > limit) {
        return qv_fail(err, QV_ERR_VALUE,
                       "a vision transformer of %zu blocks, width %zu, feed-forward %zu, image %zu, question width %zu is "
                       "not one this core runs",
                       config->L, config->D, config->F, config->image_size, config->instruction_dim);
    }
    return QV_OK;
}

qv_status qv_vit_init(qv_vit *vit, const qv_vit_config *config, const qv_ops *ops, qv_precision precision,
                      qv_weights *weights, const char *prefix, qv_error *err) {
    *vit = (qv_vit){.config = *config, .ops = ops, .arenas.memory = ops->memory};
    qv_status status = check_config(config, err);
    if (status != QV_OK) {
        return status;
    }
    size_t grid = config->image_size / config->patch_size;
    vit->P = grid * grid;
    vit->T = vit->P + 1;
    vit->first_integrated = config->L;
    vit->blocks = qv_allocate(config->L, sizeof *vit->blocks);
    if (vit->blocks == NULL) {
        return qv_fail_memory(err, "the blocks of a vision transformer");
    }
    memset(vit->blocks, 0, config->L * sizeof *vit->blocks);
    loader load = {vit, weights, prefix, precision, err, QV_OK};
    load_embeddings(&load);
    for (size_t i = 0; i < config->L && load.status == QV_OK; i++) {
        load_block(&load, i);
    }
    vit->config.integrated = NULL;
    status = load.status != QV_OK ? load.status : qv_weights_check(weights, "vision transformer", err);
    if (status != QV_OK) {
        qv_vit_free(vit);
    }
    return status;
}

static void free_block(const qv_ops *ops, qv_vit_block *block) {
    qv_vector *vectors[] = {&block->norm1_weight, &block->norm1_bias,         &block->norm2_weight,
                            &block->norm2_bias,   &block->reduce_norm_weight, &block->reduce_norm_bias};
    qv_linear_weight *layers[] = {&block->qkv, &block->out, &block->fc1, &block->fc2, &block->reduce1, &block->reduce2};
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        qv_vector_free(ops, vectors[i]);
        ops->linear_free(ops, layers[i]);
    }
}

void qv_vit_free(qv_vit *vit) {
    if (vit->blocks == NULL) {
        return;
    }
    for (size_t i = 0; i < vit->config.L; i++) {
        free_block(vit->ops, &vit->blocks[i]);
    }
    qv_free(vit->blocks);
    vit->blocks = NULL;
    vit->ops->linear_free(vit->ops, &vit->patch_embedding);
    qv_vector *vectors[] = {&vit->class_embedding, &vit->position_embedding, &vit->pre_norm_weight,
                            &vit->pre_norm_bias,   &vit->post_norm_weight,   &vit->post_norm_bias};
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        qv_vector_free(vit->ops, vectors[i]);
    }
    qv_arena_cache_clear(&vit->arenas);
}

/* ---- plan ---- */

/* Everything a pass over one chunk of images and, after them, chunks of their pairs needs. */
typedef struct {
    size_t images, pairs; /* the largest chunks */
    float *x_image;       /* [images, T, D] */
    float *qkv_image;     /* [images, T, 3 D], of the first integrated block; wide is used where no pair follows */
    float *x_pair;        /* [pairs, T, D] */
    float *normed;        /* [rows, D]: layer norm's output, then attention's */
    float *wide;          /* [rows, max(3 D, F, 3 p p)]: patches, q k v, then the feed-forward's hidden layer */
    float *instruct_norm; /* [pairs, M, Dt] */
    float *instruct_hidden; /* [pairs, M, reduce_width] */
    float *instruct;        /* [pairs, M, D] */
    float *instruct_kv;     /* [pairs, M, 2 D] */
    size_t *kv_index;       /* [pairs] */
    void *scratch;
    float *pixels; /* [images, 3, S, S], where they are made of pictures or the ops have a memory of their own */
    /* Where the ops cannot work on the caller's memory: */
    float *questions; /* [pairs, M, Dt] */
    float *attention; /* the largest window of any tap, for a chunk */
    float *normed_out, *pooled; /* [sequences, T, D], [sequences, D] */
    size_t wide_columns;
} vit_plan;

static size_t at_most(size_t wanted, size_t limit) {
    return wanted < limit ? wanted : limit;
}

/* `n` items in chunks of at most `limit`, as even as can be. */
static size_t even_chunk(size_t n, size_t limit) {
    size_t chunks = (n + limit - 1) / limit;
    return chunks == 0 ? 0 : (n + chunks - 1) / chunks;
}

/* a * b; too large a product marks the arena. */
static size_t count_rows(qv_arena *arena, size_t a, size_t b) {
    size_t rows;
    arena->overflow = !qv_multiply_size(a, b, &rows) || arena->overflow;
    return rows;
}

/* Items of the largest window of attention that is wanted of one block, for a chunk. */
static size_t attention_items(qv_arena *arena, const qv_vit *vit, const qv_vit_request *request, size_t sequences) {
    size_t largest = 0;
    for (size_t i = 0; i < vit->config.L; i++) {
        const qv_vit_tap *tap = &request->taps[i];
        if (tap->attention != NULL) {
            size_t items = count_rows(arena, sequences * vit->config.H, tap->row_count * tap->column_count);
            largest = items > largest ? items : largest;
        }
    }
    return largest;
}

static void lay_out_places(vit_plan *plan, qv_arena *arena, const qv_vit *vit, const qv_vit_request *request,
                           size_t sequences) {
    const qv_ops *ops = vit->ops;
    size_t side = vit->config.image_size, D = vit->config.D, rows = count_rows(arena, sequences, vit->T);
    size_t tokens = count_rows(arena, plan->pairs, request->M);
    size_t values = count_rows(arena, plan->images, 3 * side * side);
    plan->pixels = qv_arena_floats(arena, request->pictures != NULL ? values : qv_place_size(ops, values));
    plan->questions = qv_arena_floats(arena, qv_place_size(ops, tokens * vit->config.instruction_dim));
    plan->attention = qv_arena_floats(arena, qv_place_size(ops, attention_items(arena, vit, request, sequences)));
    plan->normed_out = qv_arena_floats(arena, qv_place_size(ops, request->normed != NULL ? rows * D : 0));
    plan->pooled = qv_arena_floats(arena, qv_place_size(ops, sequences * D));
}

static void lay_out(vit_plan *plan, qv_arena *arena, const qv_vit *vit, const qv_call *call, const qv_vit_request *request) {
    size_t T = vit->T, D = vit->config.D, p = vit->config.patch_size;
    size_t limit = vit->ops->chunk_rows / T < 1 ? 1 : vit->ops->chunk_rows / T;
    plan->images = even_chunk(request->image_count, limit);
    plan->pairs = request->pair_count == 0 ? 0 : at_most(request->pair_count, limit);
    size_t sequences = plan->images > plan->pairs ? plan->images : plan->pairs;
    size_t rows = count_rows(arena, sequences, T), image_rows = count_rows(arena, plan->images, T);
    size_t pair_rows = count_rows(arena, plan->pairs, T), tokens = count_rows(arena, plan->pairs, request->M);
    plan->wide_columns = 3 * D > vit->config.F ? 3 * D : vit->config.F;
    plan->wide_columns = plan->wide_columns > 3 * p * p ? plan->wide_columns : 3 * p * p;
    plan->x_image = qv_arena_take(arena, image_rows, D * sizeof(float));
    plan->qkv_image = qv_arena_take(arena, pair_rows == 0 ? 0 : image_rows, 3 * D * sizeof(float));
    plan->x_pair = qv_arena_take(arena, pair_rows, D * sizeof(float));
    plan->normed = qv_arena_take(arena, rows, D * sizeof(float));
    plan->wide = qv_arena_take(arena, rows, plan->wide_columns * sizeof(float));
    plan->instruct_norm = qv_arena_take(arena, tokens, vit->config.instruction_dim * sizeof(float));
    plan->instruct_hidden = qv_arena_take(arena, tokens, vit->reduce_width * sizeof(float));
    plan->instruct = qv_arena_take(arena, tokens, D * sizeof(float));
    plan->instruct_kv = qv_arena_take(arena, tokens, 2 * D * sizeof(float));
    plan->kv_index = qv_arena_take_host(arena, plan->pairs, sizeof(size_t));
    size_t deepest = plan->wide_columns > vit->config.instruction_dim ? plan->wide_columns : vit->config.instruction_dim;
    deepest = vit->reduce_width > deepest ? vit->reduce_width : deepest;
    size_t keys = T + (plan->pairs == 0 ? 0 : request->M); /* of no pair, M can be any number */
    plan->scratch = qv_arena_take(arena, vit->ops->scratch_bytes(call->lanes, rows > tokens ? rows : tokens, deepest,
                                                                 keys, D / vit->config.H), 1);
    lay_out_places(plan, arena, vit, request, sequences);
}

/* ---- forward ---- */

/* How far one block must go. */
typedef enum {
    STOP_AT_ATTENTION, /* its probabilities are all that is wanted */
    CLASS_TOKEN,       /* only the class token's output is */
    WHOLE,
} block_extent;

/* The sequences one block works on. */
typedef struct {
    float *x;                /* [B, T, D], updated */
    size_t B;
    size_t first;            /* of the request's images or pairs: where taps go */
    const float *qkv;        /* [., T, 3 D] given (shared by the pairs of an image), or NULL: computed from x */
    const size_t *kv_index;  /* [B], which of qkv belongs to b; NULL: b */
    const float *instruct;   /* [B, M, Dt], NULL in a block that takes no question */
    const size_t *instruct_length; /* [B] */
    size_t M;
} sequences;

/* *pixels = the values [B, 3, S, S] of images `first` .., where the ops can read them */
static qv_status read_images(const qv_vit *vit, qv_call *call, const vit_plan *plan, const qv_vit_request *request,
                             const float **pixels, size_t first, size_t B, qv_error *err) {
    size_t items = 3 * vit->config.image_size * vit->config.image_size;
    qv_status status = QV_OK;
    if (request->pictures == NULL) {
        *pixels = qv_give_floats(call, plan->pixels, request->images + first * items, B * items);
        return QV_OK;
    }
    *pixels = plan->pixels;
    for (size_t b = 0; b < B && status == QV_OK; b++) {
        status = call->ops->preprocess(call, plan->pixels + b * items, &request->pictures[first + b],
                                       request->preprocessing, err);
    }
    return status;
}

static qv_status embed(const qv_vit *vit, qv_call *call, const vit_plan *plan, const qv_vit_request *request,
                       size_t first, size_t B, qv_error *err) {
    const qv_ops *ops = call->ops;
    size_t D = vit->config.D, S = vit->config.image_size, p = vit->config.patch_size, T = vit->T;
    const float *pixels;
    qv_status status = read_images(vit, call, plan, request, &pixels, first, B, err);
    if (status != QV_OK) {
        return status;
    }
    for (size_t b = 0; b < B; b++) {
        float *x = plan->x_image + b * T * D;
        ops->patches(call, plan->wide, pixels + b * 3 * S * S, S, S, p);
        qv_epilogue positions = {.residual = vit->position_embedding.data + D, .ld_residual = D};
        ops->linear(call, x + D, D, plan->wide, 3 * p * p, &vit->patch_embedding, 0, D, &positions, vit->P);
        ops->copy(call, x, D, vit->class_embedding.data, D, 1, D);
        ops->add(call, x, vit->position_embedding.data, 1, D);
        QV_CHECK_STOPPED(call, err);
    }
    if (vit->pre_norm_weight.data != NULL) {
        ops->layer_norm(call, plan->x_image, D, plan->x_image, D, vit->pre_norm_weight.data, vit->pre_norm_bias.data,
                        vit->config.eps, B * T, D);
    }
    return QV_OK;
}

/* instruct_kv [B, M, 2 D]: the question's keys and values for this block */
static void embed_instruct(const qv_vit *vit, qv_call *call, const vit_plan *plan, const qv_vit_block *block,
                           const sequences *s) {
    const qv_ops *ops = call->ops;
    size_t Dt = vit->config.instruction_dim, D = vit->config.D, rows = s->B * s->M;
    size_t width = block->reduce1.columns;
    const qv_epilogue gelu = {.activation = QV_GELU}, none = {0};
    ops->layer_norm(call, plan->instruct_norm, Dt, s->instruct, Dt, block->reduce_norm_weight.data,
                    block->reduce_norm_bias.data, 1e-5f, rows, Dt);
    ops->linear(call, plan->instruct_hidden, width, plan->instruct_norm, Dt, &block->reduce1, 0, width, &gelu, rows);
    ops->linear(call, plan->instruct, D, plan->instruct_hidden, width, &block->reduce2, 0, D, &none, rows);
    ops->linear(call, plan->instruct_kv, 2 * D, plan->instruct, D, &block->qkv, D, 2 * D, &none, rows);
}

/* q, k and v of the sequences into plan->wide (or as far as `extent` needs them), unless they are given. */
static void project_qkv(const qv_vit *vit, qv_call *call, const vit_plan *plan, const qv_vit_block *block,
                        const sequences *s, bool class_query, bool values) {
    const qv_ops *ops = call->ops;
    size_t D = vit->config.D, T = vit->T;
    const qv_epilogue none = {0};
    ops->layer_norm(call, plan->normed, D, s->x, D, block->norm1_weight.data, block->norm1_bias.data, vit->config.eps,
                    s->B * T, D);
    if (!class_query) {
        ops->linear(call, plan->wide, 3 * D, plan->normed, D, &block->qkv, 0, values ? 3 * D : 2 * D, &none, s->B * T);
        return;
    }
    ops->linear(call, plan->wide, T * 3 * D, plan->normed, T * D, &block->qkv, 0, D, &none, s->B);
    ops->linear(call, plan->wide + D, 3 * D, plan->normed, D, &block->qkv, D, values ? 2 * D : D, &none, s->B * T);
}

static void attend(const qv_vit *vit, qv_call *call, const vit_plan *plan, const sequences *s, const float *qkv,
                   const qv_vit_tap *tap, bool class_query, bool output) {
    size_t D = vit->config.D, T = vit->T, d = D / vit->config.H;
    qv_attention a = {.out = output ? plan->normed : NULL,
                      .ld_out = D,
                      .q = qkv,
                      .ld_q = class_query ? T * 3 * D : 3 * D,
                      .k = qkv + D,
                      .v = output ? qkv + 2 * D : NULL,
                      .ld_kv = 3 * D,
                      .q_index = s->kv_index,
                      .kv_index = s->kv_index,
                      .scale = 1.0f / sqrtf((float)d),
                      .precision = vit->patch_embedding.precision,
                      .B = s->B,
                      .H = vit->config.H,
                      .T = class_query ? 1 : T,
                      .S = T,
                      .d = d};
    if (s->instruct != NULL) {
        a.extra_k = plan->instruct_kv;
        a.extra_v = plan->instruct_kv + D;
        a.ld_extra = 2 * D;
        a.extra_length = s->instruct_length;
        a.M = s->M;
    }
    if (tap->attention != NULL) {
        a.first_row = tap->first_row;
        a.row_count = tap->row_count;
        a.first_column = tap->first_column;
        a.column_count = tap->column_count;
        float *host = tap->attention + s->first * a.H * a.row_count * a.column_count;
        a.probabilities = qv_output_place(call, plan->attention, host);
        call->ops->attention(call, &a);
        qv_take_floats(call, host, a.probabilities, s->B * a.H * a.row_count * a.column_count);
        return;
    }
    call->ops->attention(call, &a);
}

/* x += out(o); x += fc2(act(fc1(layer_norm2(x)))), for all rows or for the class tokens alone */
static qv_status finish_block(const qv_vit *vit, qv_call *call, const vit_plan *plan, const qv_vit_block *block,
                              const sequences *s, size_t ld_attention, bool class_token, qv_error *err) {
    const qv_ops *ops = call->ops;
    size_t D = vit->config.D, F = vit->config.F, T = vit->T;
    size_t rows = class_token ? s->B : s->B * T, ld = class_token ? T * D : D;
    const qv_epilogue add = {.residual = s->x, .ld_residual = ld}, act = {.activation = vit->config.activation};
    ops->linear(call, s->x, ld, plan->normed, ld_attention, &block->out, 0, D, &add, rows);
    ops->layer_norm(call, plan->normed, D, s->x, ld, block->norm2_weight.data, block->norm2_bias.data, vit->config.eps,
                    rows, D);
    QV_CHECK_STOPPED(call, err);
    ops->linear(call, plan->wide, F, plan->normed, D, &block->fc1, 0, F, &act, rows);
    QV_CHECK_STOPPED(call, err);
    ops->linear(call, s->x, ld, plan->wide, F, &block->fc2, 0, D, &add, rows);
    QV_CHECK_STOPPED(call, err);
    return QV_OK;
}

static qv_status run_block(const qv_vit *vit, qv_call *call, const vit_plan *plan, size_t i, const sequences *s,
                           const qv_vit_tap *tap, block_extent extent, qv_error *err) {
    const qv_vit_block *block = &vit->blocks[i];
    bool one_row = tap->attention == NULL || (tap->first_row == 0 && tap->row_count == 1);
    bool class_query = extent != WHOLE && one_row;
    bool output = extent != STOP_AT_ATTENTION;
    if (s->instruct != NULL) {
        embed_instruct(vit, call, plan, block, s);
    }
    const float *qkv = s->qkv;
    if (qkv == NULL) {
        project_qkv(vit, call, plan, block, s, class_query, output);
        qkv = plan->wide;
    }
    QV_CHECK_STOPPED(call, err);
    attend(vit, call, plan, s, qkv, tap, class_query, output);
    QV_CHECK_STOPPED(call, err);
    if (!output) {
        return QV_OK;
    }
    bool class_token = extent == CLASS_TOKEN;
    /* Where more rows were asked of the attention than the output needs, the class tokens' lie T rows apart. */
    size_t ld = class_token && !class_query ? vit->T * vit->config.D : vit->config.D;
    qv_status status = finish_block(vit, call, plan, block, s, ld, class_token, err);
    if (status == QV_OK && tap->hidden != NULL) {
        size_t D = vit->config.D, T = vit->T;
        qv_take_floats(call, tap->hidden + s->first * T * D, s->x, s->B * T * D);
    }
    return status;
}

/* The final norm and whatever is wanted after the last block. */
static void hand_out(const qv_vit *vit, qv_call *call, const vit_plan *plan, const qv_vit_request *request,
                     const sequences *s) {
    const qv_ops *ops = call->ops;
    size_t D = vit->config.D, T = vit->T;
    const float *weight = vit->post_norm_weight.data, *bias = vit->post_norm_bias.data;
    if (request->last != NULL) {
        qv_take_floats(call, request->last + s->first * T * D, s->x, s->B * T * D);
    }
    if (request->embeddings != NULL) {
        float *out = request->embeddings + s->first * T * D;
        ops->layer_norm(call, out, D, s->x, D, weight, bias, vit->config.eps, s->B * T, D);
    }
    if (request->normed != NULL) {
        float *host = request->normed + s->first * T * D, *out = qv_output_place(call, plan->normed_out, host);
        ops->layer_norm(call, out, D, s->x, D, weight, bias, vit->config.eps, s->B * T, D);
        qv_take_floats(call, host, out, s->B * T * D);
    }
    if (request->pooled != NULL) {
        float *host = request->pooled + s->first * D, *out = qv_output_place(call, plan->pooled, host);
        ops->layer_norm(call, out, D, s->x, T * D, weight, bias, vit->config.eps, s->B, D);
        qv_take_floats(call, host, out, s->B * D);
    }
}

/* How many blocks the request needs, and how far the last of them must go. */
typedef struct {
    size_t blocks;
    block_extent last;
} vit_reach;

static vit_reach find_reach(const qv_vit *vit, const qv_vit_request *request) {
    size_t L = vit->config.L;
    bool all = request->last != NULL || request->normed != NULL || request->embeddings != NULL;
    if (all || request->pooled != NULL || request->taps[L - 1].hidden != NULL) {
        bool whole = all || request->taps[L - 1].hidden != NULL;
        return (vit_reach){L, whole ? WHOLE : CLASS_TOKEN};
    }
    for (size_t i = L; i > 0; i--) {
        if (request->taps[i - 1].hidden != NULL) {
            return (vit_reach){i, WHOLE};
        }
        if (request->taps[i - 1].attention != NULL) {
            return (vit_reach){i, STOP_AT_ATTENTION};
        }
    }
    return (vit_reach){0, WHOLE};
}

/* From the first integrated block on: one sequence a pair. `image_first` is the first image of the chunk in the plan. */
static qv_status run_pairs(const qv_vit *vit, qv_call *call, const vit_plan *plan, const qv_vit_request *request,
                           vit_reach reach, size_t image_first, size_t first, size_t B, qv_error *err) {
    size_t D = vit->config.D, T = vit->T;
    for (size_t b = 0; b < B; b++) {
        plan->kv_index[b] = request->pair_image[first + b] - image_first;
        call->ops->copy(call, plan->x_pair + b * T * D, D, plan->x_image + plan->kv_index[b] * T * D, D, T, D);
    }
    sequences s = {.x = plan->x_pair, .B = B, .first = first, .M = request->M};
    size_t states = request->M * vit->config.instruction_dim;
    const float *instruct = qv_give_floats(call, plan->questions, request->instruct + first * states, B * states);
    for (size_t i = vit->first_integrated; i < reach.blocks; i++) {
        bool integrated = vit->blocks[i].integrated;
        s.qkv = i == vit->first_integrated ? plan->qkv_image : NULL;
        s.kv_index = i == vit->first_integrated ? plan->kv_index : NULL;
        s.instruct = integrated ? instruct : NULL;
        s.instruct_length = integrated ? request->instruct_length + first : NULL;
        block_extent extent = i + 1 == reach.blocks ? reach.last : WHOLE;
        qv_status status = run_block(vit, call, plan, i, &s, &request->taps[i], extent, err);
        if (status != QV_OK) {
            return status;
        }
    }
    if (reach.blocks == vit->config.L) {
        hand_out(vit, call, plan, request, &s);
    }
    return QV_OK;
}

/* The blocks before the question, and q, k, v of the first block that takes it. */
static qv_status run_images(const qv_vit *vit, qv_call *call, const vit_plan *plan, const qv_vit_request *request,
                            vit_reach reach, size_t first, size_t B, qv_error *err) {
    size_t D = vit->config.D, T = vit->T;
    qv_status status = embed(vit, call, plan, request, first, B, err);
    if (status != QV_OK) {
        return status;
    }
    if (request->embedded != NULL) {
        qv_take_floats(call, request->embedded + first * T * D, plan->x_image, B * T * D);
    }
    sequences s = {.x = plan->x_image, .B = B, .first = first};
    size_t end = at_most(reach.blocks, vit->first_integrated);
    for (size_t i = 0; i < end; i++) {
        block_extent extent = i + 1 == reach.blocks ? reach.last : WHOLE;
        status = run_block(vit, call, plan, i, &s, &request->taps[i], extent, err);
        if (status != QV_OK) {
            return status;
        }
    }
    if (reach.blocks > vit->first_integrated) {
        const qv_vit_block *block = &vit->blocks[vit->first_integrated];
        const qv_epilogue none = {0};
        call->ops->layer_norm(call, plan->normed, D, s.x, D, block->norm1_weight.data, block->norm1_bias.data,
                              vit->config.eps, B * T, D);
        call->ops->linear(call, plan->qkv_image, 3 * D, plan->normed, D, &block->qkv, 0, 3 * D, &none, B * T);
        QV_CHECK_STOPPED(call, err);
    } else if (reach.blocks == vit->config.L) {
        hand_out(vit, call, plan, request, &s);
    }
    return QV_OK;
}

static qv_status run_chunks(const qv_vit *vit, qv_call *call, const vit_plan *plan, const qv_vit_request *request,
                            vit_reach reach, qv_error *err) {
    size_t pair = 0;
    for (size_t first = 0; first < request->image_count; first += plan->images) {
        size_t B = at_most(request->image_count - first, plan->images);
        qv_status status = run_images(vit, call, plan, request, reach, first, B, err);
        if (status != QV_OK || reach.blocks <= vit->first_integrated) {
            if (status != QV_OK) {
                return status;
            }
            continue;
        }
        size_t end = pair;
        while (end < request->pair_count && request->pair_image[end] < first + B) {
            end++;
        }
        size_t chunk = even_chunk(end - pair, plan->pairs);
        for (; pair < end; pair += at_most(end - pair, chunk)) {
            status = run_pairs(vit, call, plan, request, reach, first, pair, at_most(end - pair, chunk), err);
            if (status != QV_OK) {
                return status;
            }
        }
    }
    return QV_OK;
}

qv_status qv_vit_forward(const qv_vit *vit, qv_call *call, const qv_vit_request *request, qv_error *err) {
    vit_reach reach = find_reach(vit, request);
    if (reach.blocks > vit->first_integrated && request->pair_count == 0 && request->image_count != 0) {
        return qv_fail(err, QV_ERR_VALUE, "block %zu and later ones take a question, and none was given",
                       vit->first_integrated);
    }
    for (size_t n = 0; n < request->pair_count; n++) {
        if (request->pair_image[n] >= request->image_count || (n > 0 && request->pair_image[n] < request->pair_image[n - 1])) {
            return qv_fail(err, QV_ERR_VALUE, "pair %zu is of image %zu, expected ascending numbers below %zu", n,
                           request->pair_image[n], request->image_count);
        }
    }
    if (request->image_count == 0 || (reach.blocks == 0 && request->embedded == NULL)) {
        return QV_OK;
    }
    vit_plan plan;
    qv_arena measured = {.base = NULL};
    lay_out(&plan, &measured, vit, call, request);
    /* The cache is the one part of a model that changes; it is safe to use from many threads. */
    qv_arena_cache *cache = (qv_arena_cache *)&vit->arenas;
    qv_arena arena = qv_arena_acquire(cache, &measured);
    if (arena.base == NULL) {
        return qv_fail_memory(err, "the activations of a vision transformer");
    }
    lay_out(&plan, &arena, vit, call, request);
    call->scratch = plan.scratch;
    qv_status status = qv_call_begin(call, err);
    if (status == QV_OK) {
        status = qv_call_end(call, run_chunks(vit, call, &plan, request, reach, err), err);
    }
    qv_arena_release(cache, &arena);
    return status;
}
