/* The analytic backward pass of BLIP's text half, from logits[:, 1] down to one block's cross-attention.
 *
 * Forward, block l (models/blip_itm.c):        Backward, in reverse:
 *   sum1 = h + out(self_attention(h))            d_h     = d_sum1 + d_q Wq + d_k Wk + d_v Wv
 *   h1 = norm(sum1)                              d_sum1  = norm'(d_h1)
 *   sum2 = h1 + out(cross_attention(h1))         d_h1    = d_sum2 + d_cross_q Wcross_q
 *   h2 = norm(sum2)                              d_sum2  = norm'(d_h2)
 *   sum3 = h2 + fc2(act(hidden)), hidden = fc1   d_h2    = d_sum3 + act'(hidden) (d_sum3 Wfc2) Wfc1
 *   h = norm(sum3)                               d_sum3  = norm'(d_h)
 * At the asked block it ends in G = (d_sum2 Wout) v^T. The image's keys and values are constants here: they do not
 * depend on the text, and nothing below them is asked for. */
#include "models/gradcam.h"

/* Gradients of one block, over the plan of the forward pass. */
typedef struct {
    qv_blip_plan forward;
    float *d_h;             /* [R, D]: of a block's output, then of its input */
    float *d_rows;          /* [R, D]: the running gradient of the queries */
    float *d_hidden;        /* [R, F] */
    float *d_context;       /* [R, D] */
    float *d_q;             /* [R, D] */
    float *d_kv;            /* [R, 2 D] */
    float *probabilities;   /* [H, R, S] */
    float *d_probabilities; /* [H, R, S] */
    qv_output tokens, maps, logits; /* [R, P], [Q, P], [Q, 2] */
    void *scratch;
} gradcam_plan;

static void lay_out(gradcam_plan *plan, qv_arena *arena, const qv_blip *model, const qv_call *call, size_t Q, size_t R,
                    size_t block, const qv_gradcam_maps *out) {
    const qv_blip_config *config = &model->config;
    size_t S = model->vision.T, attention, scratch = qv_blip_scratch_bytes(model, call, R);
    size_t keys = S > config->positions ? S : config->positions;
    size_t longest = R < config->positions ? R : config->positions;
    size_t backward = model->ops->backward_scratch_bytes(call->lanes, keys, config->H, longest);
    qv_blip_lay_out(&plan->forward, arena, model, Q, R, block);
    plan->d_h = qv_arena_floats(arena, R * config->D);
    plan->d_rows = qv_arena_floats(arena, R * config->D);
    plan->d_hidden = qv_arena_floats(arena, R * config->F);
    plan->d_context = qv_arena_floats(arena, R * config->D);
    plan->d_q = qv_arena_floats(arena, R * config->D);
    plan->d_kv = qv_arena_floats(arena, R * 2 * config->D);
    arena->overflow = !qv_multiply_size(config->H * R, S, &attention) || arena->overflow;
    plan->probabilities = qv_arena_take(arena, attention, sizeof(float));
    plan->d_probabilities = qv_arena_take(arena, attention, sizeof(float));
    plan->tokens = qv_output_lay_out(arena, model->ops, out->tokens, R * (S - 1));
    plan->tokens.at = out->tokens == NULL ? qv_arena_floats(arena, R * (S - 1)) : plan->tokens.at;
    plan->maps = qv_output_lay_out(arena, model->ops, out->maps, Q * (S - 1));
    plan->logits = qv_output_lay_out(arena, model->ops, out->logits, Q * 2);
    plan->scratch = qv_arena_take(arena, scratch > backward ? scratch : backward, 1);
}

/* d_rows = gradient of sum2, from d_out [rows, D], that of the block's output. */
static void feed_forward_backward(const qv_blip *model, qv_call *call, gradcam_plan *plan, size_t l,
                                  const float *d_out) {
    const qv_ops *ops = call->ops;
    const qv_blip_block *weights = &model->blocks[l];
    const qv_blip_activations *block = &plan->forward.blocks[l];
    size_t D = model->config.D, F = model->config.F, rows = block->rows;
    qv_rows d_rows = {plan->d_rows, D}, d_hidden = {plan->d_hidden, F};
    qv_const_rows sum2 = {block->sum2, D}, sum3 = {block->sum3, D};
    ops->norm_backward(call, d_rows, (qv_const_rows){d_out, D}, sum3, &weights->output_norm, rows);
    ops->linear_backward(call, d_hidden, qv_as_const(d_rows), &weights->fc2, 0, D, false, rows);
    ops->activation_backward(call, plan->d_hidden, plan->d_hidden, block->hidden, model->config.activation, rows * F);
    ops->linear_backward(call, d_rows, qv_as_const(d_hidden), &weights->fc1, 0, F, true, rows);
    ops->norm_backward(call, d_rows, qv_as_const(d_rows), sum2, &weights->cross_norm, rows);
}

/* d_context = gradient of the cross-attention's output; the attention to differentiate. */
static qv_attention_backward cross_backward(const qv_blip *model, qv_call *call, gradcam_plan *plan, size_t l,
                                            const qv_blip_image *image) {
    const qv_blip_activations *block = &plan->forward.blocks[l];
    size_t D = model->config.D;
    call->ops->linear_backward(call, (qv_rows){plan->d_context, D}, (qv_const_rows){plan->d_rows, D},
                               &model->blocks[l].cross_out, 0, D, false, block->rows);
    return (qv_attention_backward){
        .forward = qv_blip_cross_attention(model, block, image->cross + l * image->S * 2 * D, image->S),
        .d_out = {plan->d_context, D},
    };
}

/* d_rows = gradient of sum1, from that of sum2 */
static void attend_to_image_backward(const qv_blip *model, qv_call *call, gradcam_plan *plan, size_t l,
                                     const qv_blip_image *image) {
    const qv_ops *ops = call->ops;
    const qv_blip_block *weights = &model->blocks[l];
    const qv_blip_activations *block = &plan->forward.blocks[l];
    size_t D = model->config.D;
    qv_attention_backward attention = cross_backward(model, call, plan, l, image);
    qv_rows d_rows = {plan->d_rows, D};
    attention.d_q = (qv_rows){plan->d_q, D};
    ops->attention_backward(call, &attention);
    ops->linear_backward(call, d_rows, qv_as_const(attention.d_q), &weights->cross_q, 0, D, true, block->rows);
    ops->norm_backward(call, d_rows, qv_as_const(d_rows), (qv_const_rows){block->sum1, D}, &weights->self_norm,
                       block->rows);
}

/* d_h [R, D] = gradient of the block's input, from that of sum1 */
static void attend_to_question_backward(const qv_blip *model, qv_call *call, gradcam_plan *plan, size_t l,
                                        const qv_blip_questions *questions) {
    const qv_ops *ops = call->ops;
    const qv_blip_block *weights = &model->blocks[l];
    const qv_blip_activations *block = &plan->forward.blocks[l];
    size_t D = model->config.D, first = questions->start[0], R = questions->start[questions->Q] - first;
    qv_rows d_rows = {plan->d_rows, D}, d_h = {plan->d_h, D};
    qv_const_rows d_q = {plan->d_q, D}, d_kv = {plan->d_kv, 2 * D};
    ops->linear_backward(call, (qv_rows){plan->d_context, D}, qv_as_const(d_rows), &weights->self_out, 0, D, false,
                         block->rows);
    for (size_t q = 0; q < questions->Q; q++) {
        qv_attention_backward attention = {.forward = qv_blip_self_attention(model, block, questions, q)};
        size_t query = (size_t)(attention.forward.q.at - block->q), row = questions->start[q] - first;
        attention.d_out = (qv_const_rows){plan->d_context + query, D};
        attention.d_q = (qv_rows){plan->d_q + query, D};
        attention.d_k = (qv_rows){plan->d_kv + row * 2 * D, 2 * D};
        attention.d_v = (qv_rows){plan->d_kv + row * 2 * D + D, 2 * D};
        ops->attention_backward(call, &attention);
    }
    ops->linear_backward(call, d_rows, d_q, &weights->self_qkv, 0, D, true, block->rows);
    ops->linear_backward(call, d_h, d_kv, &weights->self_qkv, D, 2 * D, false, R);
    if (block->rows == R) {
        ops->add(call, plan->d_h, plan->d_rows, R, D);
        return;
    }
    for (size_t q = 0; q < questions->Q; q++) {
        ops->add(call, plan->d_h + (questions->start[q] - first) * D, plan->d_rows + q * D, 1, D);
    }
}

/* Each question's map: the mean of its words' rows of tokens [R, P]. */
static void mean_over_words(qv_call *call, float *maps, const float *tokens, const qv_blip_questions *questions,
                            size_t P) {
    for (size_t q = 0; q < questions->Q; q++) {
        size_t first = questions->start[q] - questions->start[0];
        size_t count = questions->start[q + 1] - questions->start[q];
        bool words = count > 2;
        call->ops->mean_rows(call, maps + q * P, tokens + (first + (words ? 1 : 0)) * P, words ? count - 2 : 1, P);
    }
}

/* Questions `first_question` .. of the call, whose first row is first_row. */
static void gradcam_chunk(const qv_blip *model, qv_call *call, gradcam_plan *plan, const qv_blip_image *image,
                          const qv_blip_questions *questions, size_t first_question, size_t first_row, size_t asked) {
    const qv_ops *ops = call->ops;
    size_t D = model->config.D, S = image->S, P = S - 1, Q = questions->Q;
    size_t R = questions->start[Q] - questions->start[0];
    qv_output logits = qv_output_part(&plan->logits, first_question * 2, Q * 2);
    qv_output maps = qv_output_part(&plan->maps, first_question * P, Q * P);
    qv_output tokens = qv_output_part(&plan->tokens, first_row * P, R * P);
    qv_blip_text_forward(model, call, &plan->forward, image->cross, S, questions);
    ops->linear(call, (qv_rows){logits.at, 2}, (qv_const_rows){plan->forward.class_rows, D}, &model->itm_head, 0, 2, NULL, Q);
    qv_output_take(call, &logits);
    /* logits[:, 1] = class_rows head[1] + bias[1] */
    ops->copy(call, (qv_rows){plan->d_h, D}, (qv_const_rows){model->itm_head_plain.data + D, 0}, Q, D);
    for (size_t l = model->config.L - 1; l > asked; l--) {
        feed_forward_backward(model, call, plan, l, plan->d_h);
        attend_to_image_backward(model, call, plan, l, image);
        attend_to_question_backward(model, call, plan, l, questions);
    }
    feed_forward_backward(model, call, plan, asked, plan->d_h);
    qv_attention_backward attention = cross_backward(model, call, plan, asked, image);
    attention.probabilities = plan->probabilities;
    attention.d_probabilities = plan->d_probabilities;
    ops->attention_backward(call, &attention);
    ops->gradcam(call, tokens.at, plan->probabilities, plan->d_probabilities, 1, model->config.H, R, S);
    mean_over_words(call, maps.at, tokens.at, questions, P);
    qv_output_take(call, &maps);
    qv_output_take(call, &tokens);
}

qv_status qv_blip_gradcam(const qv_blip *model, qv_call *call, const qv_gradcam_maps *out, const qv_blip_image *image,
                          const qv_blip_questions *questions, size_t block, qv_error *err) {
    size_t L = model->config.L, Q, R;
    if (block + 1 == L) {
        return qv_fail(err, QV_ERR_VALUE,
                       "block %zu is the last: only the first token reaches the head from there, so the words' maps "
                       "would be zero; blocks 0 to %zu can be used", block, L < 2 ? 0 : L - 2);
    }
    if (block >= L) {
        return qv_fail(err, QV_ERR_VALUE, "block %zu does not exist; blocks 0 to %zu can be used", block,
                       L < 2 ? 0 : L - 2);
    }
    qv_blip_chunk_sizes(questions, &Q, &R);
    gradcam_plan plan;
    qv_arena measure = {.base = NULL};
    lay_out(&plan, &measure, model, call, Q, R, block, out);
    qv_arena_cache *cache = (qv_arena_cache *)&model->arenas;
    qv_arena arena = qv_arena_acquire(cache, &measure);
    if (arena.base == NULL) {
        return qv_fail_memory(err, "the activations of the questions and their gradients");
    }
    lay_out(&plan, &arena, model, call, Q, R, block, out);
    qv_arena_check(&arena, &measure);
    call->scratch = plan.scratch;
    qv_status status = qv_call_begin(call, err);
    bool begun = status == QV_OK;
    for (size_t from = 0, to; from < questions->Q && status == QV_OK; from = to) {
        to = qv_blip_chunk_end(questions, from);
        qv_blip_questions chunk = {to - from, questions->ids, questions->start + from};
        size_t row = questions->start[from] - questions->start[0];
        gradcam_chunk(model, call, &plan, image, &chunk, from, row, block);
    }
    if (begun) {
        status = qv_call_end(call, status, err);
    }
    qv_arena_release(cache, &arena);
    return status;
}
