/* The heads of image-text matching (BLIP, ALBEF, BLIP-2), on what the text half or the vision tower leaves: itm_head on token 0,
 * two logits; text_proj on token 0 of a pass without the image, and vision_proj on the image's class token or on the queries,
 * each to unit length. A question encoder has none: all its tokens' states are what it gives. */
#include "models/blip_heads.h"

#include "models/planned.h"
#include "models/qformer.h"

void qv_blip_run(const qv_blip *model, qv_call *call, const qv_blip_text_plan *plan, const qv_blip_questions *questions) {
    (model->queries != 0 && questions->images != NULL ? qv_qformer_run : qv_blip_run_text)(model, call, plan, questions);
}

/* ---- the question encoder ---- */

typedef struct {
    const qv_blip *model;
    const qv_blip_questions *questions;
    float *out;  /* [R of all, D] */
    size_t Q, R; /* of the largest chunk */
    qv_blip_text_plan text;
} states_pass;

static void plan_states(void *state, qv_call *call, qv_arena *arena) {
    states_pass *pass = state;
    pass->text = qv_blip_plan_text(arena, pass->model, pass->Q, pass->R, pass->model->config.L);
    qv_plan_scratch(call, arena, qv_blip_scratch_bytes(pass->model, call, pass->Q, pass->R));
}

static qv_status run_states(void *state, qv_call *call, qv_error *err) {
    const states_pass *pass = state;
    size_t D = pass->model->config.D;
    (void)err;
    for (size_t from = 0; from < pass->questions->Q && !call->stopped;) {
        const qv_blip_questions chunk = qv_blip_chunk(pass->model, pass->questions, from);
        size_t row = chunk.start[0] - pass->questions->start[0], R = chunk.start[chunk.Q] - chunk.start[0];
        qv_blip_run(pass->model, call, &pass->text, &chunk);
        qv_take_floats(call, pass->out + row * D, pass->text.h, R * D);
        from += chunk.Q;
    }
    return QV_OK;
}

qv_status qv_blip_encode_questions(const qv_blip *model, qv_call *call, float *out, const qv_blip_questions *questions,
                                   qv_error *err) {
    static const qv_planned planned = {"the questions' activations", plan_states, run_states};
    states_pass pass = {.model = model, .questions = questions, .out = out};
    qv_blip_chunk_sizes(model, questions, &pass.Q, &pass.R);
    return qv_run_planned(call, (qv_arena_cache *)&model->arenas, &planned, &pass, err);
}

/* ---- heads ---- */

/* class_rows of every question by chunks, each through `head` [N, D], to unit length where `unit`. */
typedef struct {
    const qv_blip *model;
    const qv_blip_questions *questions;
    const qv_linear *head;
    size_t N;
    bool unit;
    float *out; /* [Q, N] */
    size_t Q, R; /* of the largest chunk */
    qv_blip_text_plan text;
    qv_output rows;
} head_pass;

static void plan_head(void *state, qv_call *call, qv_arena *arena) {
    head_pass *pass = state;
    const qv_blip *model = pass->model;
    pass->text = qv_blip_plan_text(arena, model, pass->Q, pass->R, model->config.L);
    pass->rows = qv_output_lay_out(arena, model->ops, pass->out, pass->Q * pass->N);
    qv_plan_scratch(call, arena, qv_blip_scratch_bytes(model, call, pass->Q, pass->R));
}

static qv_status run_head(void *state, qv_call *call, qv_error *err) {
    const head_pass *pass = state;
    size_t N = pass->N, D = pass->model->config.D;
    (void)err;
    for (size_t from = 0; from < pass->questions->Q && !call->stopped;) {
        const qv_blip_questions chunk = qv_blip_chunk(pass->model, pass->questions, from);
        qv_output rows = qv_output_part(&pass->rows, from * N, chunk.Q * N);
        qv_blip_run(pass->model, call, &pass->text, &chunk);
        call->ops->linear(call, (qv_rows){rows.at, N}, (qv_const_rows){pass->text.class_rows, D}, pass->head, 0, N, NULL,
                          chunk.Q);
        if (pass->unit) {
            call->ops->unit_length(call, rows.at, chunk.Q, N);
        }
        qv_output_take(call, &rows);
        from += chunk.Q;
    }
    return QV_OK;
}

static qv_status run_heads(head_pass *pass, qv_call *call, qv_error *err) {
    static const qv_planned planned = {"the questions' activations", plan_head, run_head};
    qv_blip_chunk_sizes(pass->model, pass->questions, &pass->Q, &pass->R);
    return qv_run_planned(call, (qv_arena_cache *)&pass->model->arenas, &planned, pass, err);
}

qv_status qv_blip_match(const qv_blip *model, qv_call *call, float *logits, const qv_blip_questions *questions,
                        qv_error *err) {
    head_pass pass = {.model = model, .questions = questions, .head = &model->itm_head, .N = 2, .out = logits};
    return run_heads(&pass, call, err);
}

/* QV_ERR_VALUE where the weights have no contrastive heads. */
static qv_status need_projection(const qv_blip *model, qv_error *err) {
    return model->projection != 0
               ? QV_OK
               : qv_fail(err, QV_ERR_VALUE, "these weights have no contrastive heads (text_proj, vision_proj)");
}

qv_status qv_blip_text_features(const qv_blip *model, qv_call *call, float *out, const qv_blip_questions *questions,
                                qv_error *err) {
    head_pass pass = {.model = model, .questions = questions, .head = &model->text_projection, .N = model->projection,
                      .unit = true, .out = out};
    qv_status status = need_projection(model, err);
    return status == QV_OK ? run_heads(&pass, call, err) : status;
}

/* ---- the image's side ---- */

typedef struct {
    const qv_blip *model;
    const qv_blip_image *image;
    float *out; /* [projection] */
    qv_output features;
} features_pass;

static void plan_features(void *state, qv_call *call, qv_arena *arena) {
    features_pass *pass = state;
    const qv_ops *ops = pass->model->ops;
    qv_plan_scratch(call, arena, ops->scratch_bytes(call->lanes, 1, pass->model->vision.config.D, 0, 1));
    pass->features = qv_output_lay_out(arena, ops, pass->out, pass->model->projection);
}

static qv_status run_features(void *state, qv_call *call, qv_error *err) {
    const features_pass *pass = state;
    size_t N = pass->model->projection, width = pass->model->vision.config.D;
    qv_rows out = {pass->features.at, N};
    (void)err;
    call->ops->linear(call, out, (qv_const_rows){pass->image->embeddings, width}, &pass->model->vision_projection, 0, N,
                      NULL, 1);
    call->ops->unit_length(call, out.at, 1, N);
    qv_output_take(call, &pass->features);
    return QV_OK;
}

qv_status qv_blip_image_features(const qv_blip *model, qv_call *call, float *out, const qv_blip_image *image,
                                 qv_error *err) {
    static const qv_planned planned = {"an image's features", plan_features, run_features};
    features_pass pass = {.model = model, .image = image, .out = out};
    qv_status status = need_projection(model, err);
    if (status == QV_OK && model->queries != 0) {
        return qv_qformer_image_features(model, call, out, image, err);
    }
    return status == QV_OK ? qv_run_planned(call, (qv_arena_cache *)&model->arenas, &planned, &pass, err) : status;
}
