/* What is differentiated: how well a pooled token fits texts, or its answer's log-probability; and the way back from there to
 * the tokens that leave the last block.
 *
 * 1. pooled z as models/vit_ends.c has it; y = projection(z), or logits = answers(z)
 * 2. score = cosine(y, text), a text's share among all, or log softmax(logits)[answer], and its gradient to y (ops)
 * 3. back through the projection, and through what pooled: a norm, a mean, or the attention head, which is half a block */
#include "models/vit_gradient_pass.h"

/* From what is pooled to y; NULL: y is what is pooled. */
static const qv_linear *scoring_layer(const qv_vit_gradient_pass *pass) {
    const qv_vit *vit = pass->vit;
    return pass->request->texts == NULL ? &vit->answers : vit->projection.columns != 0 ? &vit->projection : NULL;
}

size_t qv_vit_gradient_width(const qv_vit *vit, bool answers) {
    return answers ? vit->answers.columns : vit->projection.columns != 0 ? vit->projection.columns : vit->config.D;
}

size_t qv_vit_score_width(const qv_vit_gradient_pass *pass) {
    return qv_vit_gradient_width(pass->vit, pass->request->texts == NULL);
}

qv_vit_target qv_vit_plan_target(const qv_vit_gradient_pass *pass, qv_arena *arena) {
    const qv_vit *vit = pass->vit;
    const qv_block_kind kind = qv_vit_head_kind(vit);
    size_t D = vit->config.D, E = qv_vit_score_width(pass), Q = pass->request->Q;
    bool own = scoring_layer(pass) != NULL, head = vit->config.pooling == QV_POOL_MAP;
    qv_vit_target target = {
        .mean = qv_arena_floats(arena, D),
        .pooled = qv_arena_floats(arena, D),
        .scores = qv_arena_floats(arena, Q + 1),
        .d_pooled = qv_arena_take(arena, pass->chunk, D * sizeof(float)),
        .zeros = qv_arena_floats(arena, D),
        .texts = qv_arena_floats(arena, qv_place_size(vit->ops, qv_plan_product(arena, Q, E))),
        .place = qv_vit_plan_pooling(arena, vit, 1),
    };
    target.y = own ? qv_arena_floats(arena, E) : target.pooled;
    target.d_y = own ? qv_arena_take(arena, pass->chunk, E * sizeof(float)) : target.d_pooled;
    if (head) {
        target.head = qv_block_plan_kept(arena, &kind, &pass->a, vit->T, 1);
    }
    return target;
}

void qv_vit_begin_targets(qv_vit_gradient_pass *pass, qv_call *call, const float *zeros) {
    const qv_vit_gradient_request *request = pass->request;
    call->ops->give(call, pass->target.zeros, zeros, pass->vit->config.D * sizeof(float));
    if (request->texts != NULL) {
        pass->target.texts = (float *)qv_give_floats(call, pass->target.texts, request->texts, request->Q * request->E);
    }
}

static void find_y(const qv_vit_gradient_pass *pass, qv_call *call) {
    const qv_linear *layer = scoring_layer(pass);
    const qv_vit_target *target = &pass->target;
    if (layer != NULL) {
        size_t E = layer->columns;
        call->ops->linear(call, (qv_rows){target->y, E}, (qv_const_rows){target->pooled, layer->depth}, layer, 0, E, NULL, 1);
    }
}

void qv_vit_pool_block(const qv_vit_gradient_pass *pass, qv_call *call, const float *tokens) {
    const qv_vit *vit = pass->vit;
    const qv_vit_target *target = &pass->target;
    size_t D = vit->config.D;
    const qv_rows pooled = {target->pooled, D};
    if (vit->config.pooling == QV_POOL_MAP) {
        qv_vit_run_head(vit, call, &target->place, &target->head, pooled, tokens, NULL, 1);
        const qv_block_kind kind = qv_vit_head_kind(vit);
        qv_block_keep_slopes(call, &kind, &target->head, 1);
    } else {
        call->ops->mean_rows(call, target->mean, tokens, vit->T, D);
        call->ops->norm(call, pooled, (qv_const_rows){target->mean, D}, &vit->post_norm, 1);
    }
    find_y(pass, call);
}

void qv_vit_pool_last(const qv_vit_gradient_pass *pass, qv_call *call, float *x) {
    const qv_vit *vit = pass->vit;
    const qv_vit_target *target = &pass->target;
    size_t D = vit->config.D;
    const qv_block_kind kind = qv_vit_head_kind(vit);
    bool head = vit->config.pooling == QV_POOL_MAP;
    qv_vit_pool(vit, call, &target->place, head ? &target->head : &pass->a, (qv_rows){target->pooled, D}, x, NULL, 1);
    if (head) {
        qv_block_keep_slopes(call, &kind, &target->head, 1);
    } else if (vit->config.pooling == QV_POOL_MEAN_THEN_NORM) {
        call->ops->mean_rows(call, target->mean, x + vit->prefix * D, vit->P, D);
    }
    find_y(pass, call);
}

void qv_vit_pool_again(const qv_vit_gradient_pass *pass, qv_call *call, bool last) {
    const qv_vit *vit = pass->vit;
    const qv_vit_target *target = &pass->target;
    size_t D = vit->config.D;
    if (!last && vit->config.pooling != QV_POOL_MAP) {
        call->ops->norm(call, (qv_rows){target->pooled, D}, (qv_const_rows){target->mean, D}, &vit->post_norm, 1);
    }
    find_y(pass, call);
}

void qv_vit_score_last(const qv_vit_gradient_pass *pass, qv_call *call, size_t n) {
    const qv_vit_gradient_request *request = pass->request;
    const qv_vit_target *target = &pass->target;
    qv_vit_score_gradients(pass, call, n, 0, 1, 1.0f);
    size_t count = request->texts != NULL ? request->Q : 1;
    qv_take_floats(call, request->scores + n * count, target->scores, count);
    if (request->image != NULL) {
        size_t E = qv_vit_score_width(pass);
        qv_take_floats(call, request->image + n * E, target->y, E);
    }
}

void qv_vit_score_gradients(const qv_vit_gradient_pass *pass, qv_call *call, size_t n, size_t first, size_t count,
                            float factor) {
    const qv_vit_gradient_request *request = pass->request;
    const qv_vit_target *target = &pass->target;
    const qv_linear *layer = scoring_layer(pass);
    size_t E = qv_vit_score_width(pass);
    const qv_text_scores scores = {
        .scores = target->scores,
        .d_y = target->d_y,
        .y = target->y,
        .texts = request->texts != NULL ? target->texts : NULL,
        .Q = request->texts != NULL ? request->Q : 1,
        .E = E,
        .first = request->paired && request->texts != NULL ? n : first,
        .count = count,
        .softmax = request->softmax,
        .scale = request->scale,
        .factor = factor,
        .answer = request->answer,
    };
    call->ops->text_scores(call, &scores);
    if (layer != NULL) {
        call->ops->linear_backward(call, (qv_rows){target->d_pooled, layer->depth}, (qv_const_rows){target->d_y, E}, layer, 0,
                                   E, false, count);
    }
}

/* ---- from the scores to the last block ---- */

void qv_vit_head_backward(const qv_vit_gradient_pass *pass, qv_call *call, size_t first, size_t count) {
    const qv_vit *vit = pass->vit;
    const qv_block_kind kind = qv_vit_head_kind(vit);
    qv_block_gradients g = pass->g;
    g.d_rows = pass->target.d_pooled + first * vit->config.D;
    qv_block_backward_to_attention(call, &kind, &vit->head, &pass->target.head, &g, NULL, NULL, count, 1);
}

qv_attention_backward qv_vit_head_attention(const qv_vit_gradient_pass *pass, size_t i) {
    const qv_block_kind kind = qv_vit_head_kind(pass->vit);
    size_t D = pass->vit->config.D;
    qv_attention_backward backward = {.forward = qv_block_attention(&kind, &pass->target.head),
                                      .d_out = {pass->g.d_attended + i * D, D}};
    backward.forward.B = 1;
    backward.forward.T = 1;
    backward.forward.S = pass->vit->T;
    return backward;
}

/* The head's attention, and d_x of a turn of items. */
static void through_head(const qv_vit_gradient_pass *pass, qv_call *call, const float *x, size_t n, size_t first, size_t place,
                         size_t count) {
    const qv_vit *vit = pass->vit;
    const qv_vit_gradient_tap *tap = &pass->request->taps[vit->config.L];
    size_t D = vit->config.D, T = vit->T, looks = vit->config.H * T;
    qv_vit_head_backward(pass, call, place, count);
    for (size_t i = 0; i < count; i++) {
        size_t item = n * pass->items + first + i;
        float *d_kv = pass->g.d_kv + i * T * 2 * D;
        qv_attention_backward backward = qv_vit_head_attention(pass, i);
        bool once = first + i == 0 && tap->class_attention != NULL;
        qv_output attention = qv_vit_place(pass, pass->place, once ? tap->class_attention + n * looks : NULL, looks);
        qv_output gradient = qv_vit_place(pass, pass->second_place,
                                          tap->class_gradient != NULL ? tap->class_gradient + item * looks : NULL, looks);
        backward.probabilities = attention.host != NULL ? attention.at : NULL;
        backward.d_probabilities = gradient.host != NULL ? gradient.at : NULL;
        if (pass->all_tokens) {
            backward.d_k = (qv_rows){d_kv, 2 * D};
            backward.d_v = (qv_rows){d_kv + D, 2 * D};
        }
        call->ops->attention_backward(call, &backward, 1);
        qv_output_take(call, &attention);
        qv_output_take(call, &gradient);
    }
    if (!pass->all_tokens) {
        return;
    }
    const qv_rows d_x = {pass->d_x + place * T * D, D};
    call->ops->linear_backward(call, d_x, (qv_const_rows){pass->g.d_kv, 2 * D}, &vit->head.qkv, D, 2 * D, false, count * T);
    for (size_t i = 0; i < count; i++) {
        const qv_rows d = {d_x.at + i * T * D, D};
        call->ops->norm_backward(call, d, qv_as_const(d), (qv_const_rows){x, D}, &vit->post_norm, T);
    }
}

/* d_x of item i, whose patches have a gradient alone. */
static void through_mean(const qv_vit_gradient_pass *pass, qv_call *call, const float *x, size_t i) {
    const qv_vit *vit = pass->vit;
    const qv_ops *ops = call->ops;
    size_t D = vit->config.D, before = vit->prefix * D;
    const qv_rows d_prefix = {pass->d_x + i * vit->T * D, D}, d_patches = {d_prefix.at + before, D};
    const qv_const_rows given = {pass->target.d_pooled + i * D, 0};
    ops->copy(call, d_prefix, (qv_const_rows){pass->target.zeros, 0}, vit->prefix, D);
    if (vit->config.pooling == QV_POOL_MEAN) {
        ops->norm_backward(call, d_patches, given, (qv_const_rows){x + before, D}, &vit->post_norm, vit->P);
    } else {
        ops->copy(call, d_patches, given, vit->P, D);
    }
}

void qv_vit_start_from_scores(const qv_vit_gradient_pass *pass, qv_call *call, const float *x, size_t n, size_t first,
                              size_t count) {
    const qv_vit *vit = pass->vit;
    const qv_vit_target *target = &pass->target;
    size_t D = vit->config.D;
    qv_pooling pooling = vit->config.pooling;
    const qv_rows d_pooled = {target->d_pooled, D};
    bool mean = pooling == QV_POOL_MEAN || pooling == QV_POOL_MEAN_THEN_NORM;
    qv_vit_score_gradients(pass, call, n, first, count, mean ? 1.0f / (float)vit->P : 1.0f);
    if (pooling == QV_POOL_CLASS) {
        call->ops->norm_backward(call, (qv_rows){pass->d_class, D}, qv_as_const(d_pooled), (qv_const_rows){x, 0},
                                 &vit->post_norm, count);
    } else if (pooling == QV_POOL_MEAN_THEN_NORM) {
        call->ops->norm_backward(call, d_pooled, qv_as_const(d_pooled), (qv_const_rows){target->mean, 0}, &vit->post_norm,
                                 count);
    }
    for (size_t i = 0; mean && i < count; i++) {
        through_mean(pass, call, x, i);
    }
    for (size_t i = 0; pooling == QV_POOL_MAP && i < count; i += pass->turn) {
        through_head(pass, call, x, n, first + i, i, count - i < pass->turn ? count - i : pass->turn);
    }
}
