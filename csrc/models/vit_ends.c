#include "models/vit_ends.h"

#include "models/planned.h"

size_t qv_vit_images_at_once(const qv_vit *vit) {
    size_t limit = vit->ops->chunk_rows / vit->T;
    return limit == 0 ? 1 : limit;
}

size_t qv_vit_chunk(const qv_vit *vit, size_t count) {
    size_t limit = qv_vit_images_at_once(vit), chunks = count / limit + (count % limit != 0 ? 1 : 0);
    return chunks == 0 ? 0 : count / chunks + (count % chunks != 0 ? 1 : 0); /* as even as can be */
}

/* ---- in front of the blocks ---- */

static size_t image_items(const qv_vit *vit) {
    return 3 * vit->config.height * vit->config.width;
}

float *qv_vit_plan_pixels(qv_arena *arena, const qv_vit *vit, const qv_vit_images *images, size_t count) {
    size_t items = qv_plan_product(arena, count, image_items(vit));
    return qv_arena_floats(arena, images->pictures != NULL ? items : qv_place_size(vit->ops, items));
}

/* *values [B, 3, height, width] of images `first` .., where the ops can read them */
static qv_status read_images(const qv_vit *vit, qv_call *call, const qv_vit_images *images, size_t first, size_t B,
                             float *pixels, const float **values, qv_error *err) {
    size_t items = image_items(vit);
    qv_status status = QV_OK;
    if (images->pictures == NULL) {
        *values = qv_give_floats(call, pixels, images->pixels + first * items, B * items);
        return QV_OK;
    }
    *values = pixels;
    for (size_t b = 0; b < B && status == QV_OK; b++) {
        status = call->ops->preprocess(call, pixels + b * items, &images->pictures[first + b], images->preprocessing, err);
    }
    return status;
}

qv_status qv_vit_embed(const qv_vit *vit, qv_call *call, const qv_vit_images *images, size_t first, size_t B, float *pixels,
                       float *patches, float *x, qv_error *err) {
    const qv_ops *ops = call->ops;
    size_t D = vit->config.D, p = vit->config.patch_size, T = vit->T, height = vit->config.height;
    const float *values;
    qv_status status = read_images(vit, call, images, first, B, pixels, &values, err);
    if (status != QV_OK) {
        return status;
    }
    const qv_const_rows patch_rows = {patches, 3 * p * p};
    const qv_epilogue positions = {.residual = {vit->positions.data, D}};
    for (size_t b = 0; b < B; b++) {
        qv_rows prefix = {x + b * T * D, D}, rest = {prefix.at + vit->prefix * D, D};
        ops->patches(call, patches, values + b * image_items(vit), height, vit->config.width, p);
        ops->linear(call, rest, patch_rows, &vit->patch_embedding, 0, D, &positions, vit->P);
        if (vit->prefix != 0) {
            ops->copy(call, prefix, (qv_const_rows){vit->prefix_rows.data, D}, vit->prefix, D);
        }
    }
    if (vit->pre_norm.weight.data != NULL) {
        ops->norm(call, (qv_rows){x, D}, (qv_const_rows){x, D}, &vit->pre_norm, B * T);
    }
    return QV_OK;
}

void qv_vit_rotate(const qv_vit *vit, qv_call *call, qv_rows x, bool back, size_t B) {
    if (vit->angles.data != NULL) {
        call->ops->rotate(call, x, vit->angles.data, back, B, vit->T, vit->prefix, vit->kind.H, vit->kind.d);
    }
}

/* ---- behind them ---- */

qv_vit_pooling_place qv_vit_plan_pooling(qv_arena *arena, const qv_vit *vit, size_t B) {
    return (qv_vit_pooling_place){
        .rows = qv_arena_floats(arena, qv_plan_product(arena, B, vit->config.D)),
        .zeros = qv_arena_take_host(arena, vit->config.pooling == QV_POOL_MAP ? B : 0, sizeof(size_t)),
    };
}

qv_block_kind qv_vit_head_kind(const qv_vit *vit) {
    qv_block_kind kind = vit->kind;
    kind.gated = false;
    return kind;
}

void qv_vit_run_head(const qv_vit *vit, qv_call *call, const qv_vit_pooling_place *place, const qv_block_activations *a,
                     qv_rows pooled, const float *tokens, float *probabilities, size_t B) {
    const qv_block_kind kind = qv_vit_head_kind(vit);
    size_t D = vit->config.D;
    qv_rows y = a->sum1 != NULL ? (qv_rows){a->sum1, D} : pooled;
    call->ops->linear(call, a->q, (qv_const_rows){vit->probe.data, D}, &vit->head.qkv, 0, D, NULL, 1);
    call->ops->linear(call, a->kv, (qv_const_rows){tokens, D}, &vit->head.qkv, D, 2 * D, NULL, B * vit->T);
    qv_attention attention = qv_block_attention(&kind, a);
    for (size_t b = 0; b < B; b++) {
        place->zeros[b] = 0;
    }
    attention.q_index = place->zeros;
    attention.precision = vit->patch_embedding.precision;
    attention.B = B;
    attention.T = 1;
    attention.S = vit->T;
    attention.probabilities = probabilities;
    attention.row_count = 1;
    attention.column_count = vit->T;
    call->ops->attention(call, &attention, 1);
    call->ops->linear(call, y, qv_as_const(attention.out), &vit->head.out, 0, D, NULL, B);
    qv_block_feed_forward(call, &kind, &vit->head, a, y, pooled, B);
}

void qv_vit_pool(const qv_vit *vit, qv_call *call, const qv_vit_pooling_place *place, const qv_block_activations *a,
                 qv_rows out, float *x, float *probabilities, size_t B) {
    const qv_ops *ops = call->ops;
    size_t D = vit->config.D, T = vit->T;
    qv_rows normed = {a->normed, D};
    if (vit->config.pooling == QV_POOL_CLASS) {
        ops->norm(call, out, (qv_const_rows){x, T * D}, &vit->post_norm, B);
        return;
    }
    bool after = vit->config.pooling == QV_POOL_MEAN_THEN_NORM;
    const float *tokens = after ? x : normed.at;
    if (!after) {
        ops->norm(call, normed, (qv_const_rows){x, D}, &vit->post_norm, B * T);
    }
    if (vit->config.pooling == QV_POOL_MAP) {
        qv_vit_run_head(vit, call, place, a, out, normed.at, probabilities, B);
    }
    for (size_t b = 0; vit->config.pooling != QV_POOL_MAP && b < B; b++) {
        ops->mean_rows(call, out.at + b * D, tokens + (b * T + vit->prefix) * D, vit->P, D);
    }
    if (after) {
        ops->norm(call, out, qv_as_const(out), &vit->post_norm, B);
    }
}
