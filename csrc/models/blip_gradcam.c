/* GradCAM of cross-attention: where the image speaks for the match, a map for each token of a question, or for each query in
 * front of it (qformer.c).
 *
 * 1. the text half forward, keeping what the blocks from the asked one on leave behind
 * 2. the gradient of logits[:, 1] from the head (of a question encoder's states: as its decoder gives it) down through
 *    those blocks (models/block_backward.c); the image's keys and values are constants, as they do not depend on the
 *    text, and nothing below them is asked for
 * 3. at the asked block A and G = dA of the cross-attention; a token's map is the mean over heads of A max(G, 0)
 *
 * Source: Tiong et al., arXiv 2210.08773; code salesforce/LAVIS, which has it from ALBEF (Li et al., arXiv 2107.07651). */
#include "models/blip_gradcam.h"

#include "models/blip_heads.h"
#include "models/planned.h"
#include "models/qformer.h"

typedef struct {
    const qv_blip *model;
    const qv_blip_questions *questions;
    qv_gradcam_maps out;
    size_t block;
    const float *d_states; /* [R of all, D], of a question encoder */
    size_t Q, R; /* of the largest chunk */
    size_t rows; /* that attend to the image: R, or its queries */
    qv_blip_text_plan text;
    qv_block_gradients gradients;
    float *probabilities;   /* [H, rows, S] of each run of rows that attend to one image */
    float *d_probabilities; /* the same */
    float *own_tokens;      /* [rows, P], where the caller takes none */
    qv_output maps, tokens, logits;
} gradcam_pass;

static void plan(void *state, qv_call *call, qv_arena *arena) {
    gradcam_pass *pass = state;
    const qv_blip *model = pass->model;
    const qv_ops *ops = model->ops;
    size_t S = model->vision.T, P = model->vision.P, Q = pass->Q, R = pass->R, rows = pass->rows;
    size_t tokens = model->queries + model->config.positions, all = R + Q * model->queries;
    size_t keys = S > tokens ? S : tokens, longest = all < tokens ? all : tokens;
    size_t scratch = qv_blip_scratch_bytes(model, call, Q, R);
    size_t backward = ops->backward_scratch_bytes(call->lanes, keys, model->kind.d, model->kind.H, longest);
    pass->text = qv_blip_plan_text(arena, model, Q, R, pass->block);
    pass->gradients = qv_block_plan_gradients(arena, &model->kind, all);
    size_t attention = qv_plan_product(arena, model->kind.H * rows, S);
    pass->probabilities = qv_arena_floats(arena, attention);
    pass->d_probabilities = qv_arena_floats(arena, attention);
    pass->own_tokens = qv_arena_floats(arena, pass->out.tokens == NULL ? rows * P : 0);
    pass->tokens = qv_output_lay_out(arena, ops, pass->out.tokens, rows * P);
    pass->maps = qv_output_lay_out(arena, ops, pass->out.maps, Q * P);
    pass->logits = qv_output_lay_out(arena, ops, pass->out.logits, Q * 2);
    qv_plan_scratch(call, arena, scratch + backward);
}

/* Each question's map: the mean of its words' rows of tokens [R, P], or of its queries'. */
static void mean_over_words(const qv_blip *model, qv_call *call, float *maps, const float *tokens,
                            const qv_blip_questions *questions) {
    size_t P = model->vision.P, n = model->queries, around = 1 + model->config.closing;
    for (size_t q = 0; q < questions->Q; q++) {
        size_t count = questions->start[q + 1] - questions->start[q];
        bool words = count > around;
        size_t first = n != 0 ? q * n : questions->start[q] - questions->start[0] + (words ? 1 : 0);
        call->ops->mean_rows(call, maps + q * P, tokens + first * P, n != 0 ? n : words ? count - around : 1, P);
    }
}

/* So many rows of some questions attend to the image. */
static size_t rows_of(const qv_blip *model, size_t Q, size_t R) {
    return model->queries != 0 ? Q * model->queries : R;
}

/* d_x of what leaves the last block: logits[:, 1] = class_rows match + bias[1], or as it is given. */
static void begin_gradient(const gradcam_pass *pass, qv_call *call, const qv_blip_questions *questions, size_t R) {
    const qv_blip *model = pass->model;
    size_t D = model->config.D, row = questions->start[0] - pass->questions->start[0];
    if (pass->d_states != NULL) {
        call->ops->give(call, pass->gradients.d_x, pass->d_states + row * D, R * D * sizeof(float));
    } else {
        call->ops->copy(call, (qv_rows){pass->gradients.d_x, D}, (qv_const_rows){model->match.data, 0}, questions->Q, D);
    }
}

/* From the logits down to what the asked block's cross-attention gave. */
static void differentiate(const gradcam_pass *pass, qv_call *call, const qv_blip_questions *questions) {
    const qv_blip *model = pass->model;
    size_t L = model->config.L, R = questions->start[questions->Q] - questions->start[0];
    const qv_block_gradients *g = &pass->gradients;
    begin_gradient(pass, call, questions, R);
    for (size_t l = L - 1; l > pass->block; l--) {
        const qv_sequences sequences = qv_blip_sequences(questions, qv_blip_one_query(model, l, L));
        const qv_cross_states cross = qv_blip_cross_of(model, &pass->text, questions, l);
        qv_block_backward(call, &model->kind, &model->blocks[l], &pass->text.blocks[l], g, &sequences, &cross);
    }
    qv_block_backward_to_cross(call, &model->kind, &model->blocks[pass->block], &pass->text.blocks[pass->block], g, R);
}

/* map [rows, P] of the rows that attend to the images */
static void map_rows(const gradcam_pass *pass, qv_call *call, const qv_blip_questions *questions, float *map) {
    const qv_blip *model = pass->model;
    size_t H = model->kind.H, P = model->vision.P, S = model->vision.T;
    const qv_cross_states cross = qv_blip_cross_of(model, &pass->text, questions, pass->block);
    qv_attention_backward each[QV_ATTENTIONS_TOGETHER];
    for (size_t first = 0, n; first < cross.count; first += n) {
        for (n = 0; n < QV_ATTENTIONS_TOGETHER && first + n < cross.count; n++) {
            const qv_cross_run *run = &cross.runs[first + n];
            each[n] = qv_block_cross_backward(&model->kind, &pass->text.blocks[pass->block], &pass->gradients, run);
            each[n].d_q = (qv_rows){NULL, 0};
            each[n].probabilities = pass->probabilities + H * run->first * S;
            each[n].d_probabilities = pass->d_probabilities + H * run->first * S;
        }
        call->ops->attention_backward(call, each, n);
    }
    for (size_t i = 0; i < cross.count; i++) {
        const qv_cross_run *run = &cross.runs[i];
        size_t at = H * run->first * S;
        call->ops->gradcam(call, map + run->first * P, pass->probabilities + at, pass->d_probabilities + at,
                           model->vision.prefix, H, run->count, S);
    }
}

static qv_status run(void *state, qv_call *call, qv_error *err) {
    const gradcam_pass *pass = state;
    const qv_blip *model = pass->model;
    size_t D = model->config.D, P = model->vision.P;
    const size_t *start = pass->questions->start;
    (void)err;
    for (size_t from = 0; from < pass->questions->Q && !call->stopped;) {
        const qv_blip_questions chunk = qv_blip_chunk(model, pass->questions, from);
        size_t row = rows_of(model, from, start[from] - start[0]);
        size_t rows = rows_of(model, chunk.Q, chunk.start[chunk.Q] - chunk.start[0]);
        qv_output logits = qv_output_part(&pass->logits, from * 2, chunk.Q * 2);
        qv_output maps = qv_output_part(&pass->maps, from * P, chunk.Q * P);
        qv_output tokens = qv_output_part(&pass->tokens, row * P, rows * P);
        float *map = tokens.host != NULL ? tokens.at : pass->own_tokens;
        qv_blip_run(model, call, &pass->text, &chunk);
        if (logits.host != NULL) {
            call->ops->linear(call, (qv_rows){logits.at, 2}, (qv_const_rows){pass->text.class_rows, D}, &model->itm_head, 0,
                              2, NULL, chunk.Q);
        }
        if (model->queries != 0) {
            qv_qformer_differentiate(model, call, &pass->text, &pass->gradients, &chunk, pass->block);
        } else {
            differentiate(pass, call, &chunk);
        }
        map_rows(pass, call, &chunk, map);
        mean_over_words(model, call, maps.at, map, &chunk);
        qv_output_take(call, &logits);
        qv_output_take(call, &maps);
        qv_output_take(call, &tokens);
        from += chunk.Q;
    }
    return QV_OK;
}

qv_status qv_blip_gradcam(const qv_blip *model, qv_call *call, const qv_gradcam_maps *out,
                          const qv_blip_questions *questions, size_t block, const float *d_states, qv_error *err) {
    static const qv_planned planned = {"the activations of the questions and their gradients", plan, run};
    size_t L = model->config.L, first = model->cross_first;
    bool last_too = model->queries != 0 || model->config.question_encoder;
    size_t last = last_too ? L - 1 : L < 2 ? 0 : L - 2;
    if (block + 1 == L && !last_too) {
        return qv_fail(err, QV_ERR_VALUE,
                       "block %zu is the last: only the first token reaches the head from there, so the words' maps "
                       "would be zero; blocks %zu to %zu can be used", block, first, last);
    }
    if (block >= L) {
        return qv_fail(err, QV_ERR_VALUE, "block %zu does not exist; blocks %zu to %zu can be used", block, first, last);
    }
    if (!qv_blip_attends(model, block)) {
        return qv_fail(err, QV_ERR_VALUE, "block %zu does not attend to the image; from %zu on, every %zu. block does", block,
                       first, model->cross_step);
    }
    gradcam_pass pass = {.model = model, .questions = questions, .out = *out, .block = block, .d_states = d_states};
    qv_blip_chunk_sizes(model, questions, &pass.Q, &pass.R);
    pass.rows = rows_of(model, pass.Q, pass.R);
    return qv_run_planned(call, (qv_arena_cache *)&model->arenas, &planned, &pass, err);
}
