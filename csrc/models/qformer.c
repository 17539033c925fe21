/* BLIP-2's Q-Former (Li et al., arXiv 2301.12597; code salesforce/LAVIS): n learned queries and a question's text in one BERT.
 *
 * 1. x of a question [n + M, D] = layer_norm([query tokens; word + position])
 * 2. L blocks (models/block.h), norms last: self-attention over queries and text together; then the queries alone
 *    cross-attention to the image, in every cross_step-th block; feed-forward, of the queries through one of their own
 * 3. class row = mean of the queries, so that itm_head on it is the mean of what it says of each; in the last block only the
 *    queries are queries
 * 4. contrastive: vision_proj on each query of a pass without text, each to unit length; the text's is in blip_text.c
 *
 * Between blocks rows lie by parts, all questions' queries in front of all texts, so that each part goes through a layer at
 * once; self-attention takes them by questions, a question's queries in front of its text. */
#include "models/qformer.h"

#include "models/planned.h"

#include <string.h>

/* The rows of some questions. */
typedef struct {
    const qv_blip *model;
    const qv_blip_text_plan *plan;
    const qv_blip_questions *questions;
    size_t queries, texts; /* Q n, R */
} qformer_rows;

static qformer_rows rows_of(const qv_blip *model, const qv_blip_text_plan *plan, const qv_blip_questions *questions) {
    size_t R = questions->start[questions->Q] - questions->start[0];
    return (qformer_rows){model, plan, questions, questions->Q * model->queries, R};
}

/* In the last block the texts are keys alone. */
static size_t count_queries(const qformer_rows *rows, size_t l) {
    return rows->queries + (l + 1 < rows->model->config.L ? rows->texts : 0);
}

static qv_rows rows_from(qv_rows rows, size_t first) {
    return (qv_rows){rows.at + first * rows.ld, rows.ld};
}

/* to = from, rows of a width that lie by parts in the one and by questions in the other. The queries alone, or the texts of
 * none, lie alike. */
static void reorder(const qformer_rows *rows, qv_call *call, qv_rows to, qv_rows from, size_t width, size_t count,
                    bool by_questions) {
    const qv_ops *ops = call->ops;
    size_t n = rows->model->queries;
    if (count == rows->queries) {
        ops->copy(call, to, qv_as_const(from), count, width);
        return;
    }
    for (size_t q = 0; q < rows->questions->Q; q++) {
        const size_t *start = rows->questions->start;
        size_t there[2] = {rows->plan->start[q], rows->plan->start[q] + n}, counts[2] = {n, start[q + 1] - start[q]};
        size_t here[2] = {q * n, rows->queries + start[q] - start[0]};
        for (size_t part = 0; part < 2; part++) {
            size_t in = by_questions ? here[part] : there[part], out = by_questions ? there[part] : here[part];
            ops->copy(call, rows_from(to, out), qv_as_const(rows_from(from, in)), counts[part], width);
        }
    }
}

static qv_sequences sequences_of(const qformer_rows *rows, size_t l) {
    size_t queries = count_queries(rows, l) == rows->queries ? rows->model->queries : 0;
    return (qv_sequences){.B = rows->questions->Q, .start = rows->plan->start, .queries = queries};
}

/* Block l as the queries see it. */
static qv_block query_block(const qv_blip *model, size_t l) {
    qv_block block = model->blocks[l];
    block.hidden = model->query_blocks[l].hidden;
    block.output = model->query_blocks[l].output;
    block.norm2 = model->query_blocks[l].norm2;
    return block;
}

/* What a block keeps of the texts' rows: behind the queries'. */
static qv_block_activations of_texts(const qformer_rows *rows, const qv_block_activations *a) {
    size_t D = rows->model->kind.D, F = rows->model->kind.F, first = rows->queries;
    qv_block_activations texts = *a;
    texts.sum1 = a->sum1 != NULL ? a->sum1 + first * D : NULL;
    texts.sum2 = a->sum2 != NULL ? a->sum2 + first * D : NULL;
    texts.before = a->before != NULL ? a->before + first * F : NULL;
    return texts;
}

/* ---- forward ---- */

static void embed(const qformer_rows *rows, qv_call *call) {
    const qv_blip *model = rows->model;
    const qv_blip_questions *questions = rows->questions;
    size_t D = model->config.D, n = model->queries;
    const qv_rows h = {rows->plan->h, D};
    rows->plan->start[0] = 0;
    for (size_t q = 0; q < questions->Q; q++) {
        rows->plan->start[q + 1] = rows->plan->start[q] + n + questions->start[q + 1] - questions->start[q];
        call->ops->copy(call, rows_from(h, q * n), (qv_const_rows){model->query_tokens.data, D}, n, D);
    }
    if (rows->texts != 0) {
        qv_blip_embed_text(model, call, rows->plan, h.at + rows->queries * D, rows->plan->shared.normed, questions);
    }
    call->ops->norm(call, h, qv_as_const(h), &model->embedding_norm, rows->queries + rows->texts);
}

static void run_block(const qformer_rows *rows, qv_call *call, size_t l) {
    const qv_blip *model = rows->model;
    const qv_block_kind *kind = &model->kind;
    const qv_block_activations *shared = &rows->plan->shared, *a = &rows->plan->blocks[l], texts = of_texts(rows, a);
    size_t D = kind->D, all = rows->queries + rows->texts, count = count_queries(rows, l);
    const qv_rows h = {rows->plan->h, D}, attended = {rows->plan->attended, D};
    const qv_block queries = query_block(model, l);
    const qv_block_rows work = {h, all, h, count};
    const qv_sequences sequences = sequences_of(rows, l);
    const qv_cross_states cross = qv_blip_cross_of(model, rows->plan, rows->questions, l), none = {NULL, 0};
    qv_block_project(call, kind, &queries, shared, &work, true);
    reorder(rows, call, a->q, shared->q, D, count, true);
    reorder(rows, call, a->kv, shared->kv, 2 * D, all, true);
    qv_block_attend(call, kind, a, &sequences);
    reorder(rows, call, attended, (qv_rows){a->attended, D}, D, count, false);
    qv_block_finish(call, kind, &queries, a, qv_as_const(attended), h, rows->queries, &cross);
    if (count != rows->queries) {
        qv_block_finish(call, kind, &model->blocks[l], &texts, qv_as_const(rows_from(attended, rows->queries)),
                        rows_from(h, rows->queries), rows->texts, &none);
    }
}

void qv_qformer_run(const qv_blip *model, qv_call *call, const qv_blip_text_plan *plan, const qv_blip_questions *questions) {
    const qformer_rows rows = rows_of(model, plan, questions);
    size_t D = model->config.D, n = model->queries;
    embed(&rows, call);
    for (size_t l = 0; l < model->config.L; l++) {
        run_block(&rows, call, l);
    }
    for (size_t q = 0; q < questions->Q; q++) {
        call->ops->mean_rows(call, plan->class_rows + q * D, plan->h + q * n * D, n, D);
    }
}

/* ---- backward ---- */

/* d_x of what goes into block l, from that of what comes out of it. The memory of the forward pass that no block keeps holds
 * what self-attention's gradients are by questions. */
static void block_backward(const qformer_rows *rows, qv_call *call, const qv_block_gradients *g, size_t l) {
    const qv_blip *model = rows->model;
    const qv_block_kind *kind = &model->kind;
    const qv_block_activations *a = &rows->plan->blocks[l], texts = of_texts(rows, a);
    size_t D = kind->D, all = rows->queries + rows->texts, count = count_queries(rows, l), first = rows->queries * D;
    const qv_block queries = query_block(model, l);
    const qv_sequences sequences = sequences_of(rows, l);
    const qv_cross_states cross = qv_blip_cross_of(model, rows->plan, rows->questions, l), none = {NULL, 0};
    qv_block_gradients of_text = *g, by_question = *g;
    of_text.d_x += first;
    of_text.d_rows += first;
    of_text.d_attended += first;
    by_question.d_attended = rows->plan->attended;
    by_question.d_q = rows->plan->shared.q.at;
    by_question.d_kv = by_question.d_q + count * D;
    qv_block_backward_to_attended(call, kind, &queries, a, g, &cross, rows->queries);
    if (count != rows->queries) {
        qv_block_backward_to_attended(call, kind, &model->blocks[l], &texts, &of_text, &none, rows->texts);
    }
    reorder(rows, call, (qv_rows){by_question.d_attended, D}, (qv_rows){g->d_attended, D}, D, count, true);
    qv_block_attend_backward(call, kind, a, &by_question, &sequences);
    reorder(rows, call, (qv_rows){g->d_q, D}, (qv_rows){by_question.d_q, D}, D, count, false);
    reorder(rows, call, (qv_rows){g->d_kv, 2 * D}, (qv_rows){by_question.d_kv, 2 * D}, 2 * D, all, false);
    qv_block_project_backward(call, kind, &queries, g, count, all);
    call->ops->add(call, g->d_x, g->d_rows, count, D);
}

void qv_qformer_differentiate(const qv_blip *model, qv_call *call, const qv_blip_text_plan *plan,
                              const qv_block_gradients *gradients, const qv_blip_questions *questions, size_t block) {
    const qformer_rows rows = rows_of(model, plan, questions);
    const qv_rows d_x = {gradients->d_x, model->config.D};
    call->ops->copy(call, d_x, (qv_const_rows){model->match.data, 0}, rows.queries, d_x.ld);
    for (size_t l = model->config.L - 1; l > block; l--) {
        block_backward(&rows, call, gradients, l);
    }
    const qv_block queries = query_block(model, block);
    qv_block_backward_to_cross(call, &model->kind, &queries, &plan->blocks[block], gradients, rows.queries);
}

/* ---- the image's side of the contrastive head ---- */

typedef struct {
    const qv_blip *model;
    const qv_blip_image *image;
    float *out; /* [n, projection] */
    qv_blip_text_plan plan;
    qv_output features;
} features_pass;

static void plan_features(void *state, qv_call *call, qv_arena *arena) {
    features_pass *pass = state;
    const qv_blip *model = pass->model;
    pass->plan = qv_blip_plan_text(arena, model, 1, 0, model->config.L);
    pass->features = qv_output_lay_out(arena, model->ops, pass->out, model->queries * model->projection);
    qv_plan_scratch(call, arena, qv_blip_scratch_bytes(model, call, 1, 0));
}

static qv_status run_features(void *state, qv_call *call, qv_error *err) {
    const features_pass *pass = state;
    const qv_blip *model = pass->model;
    size_t N = model->projection, n = model->queries;
    const size_t start[2] = {0, 0};
    const qv_blip_questions without_text = {1, NULL, start, &pass->image};
    (void)err;
    qv_qformer_run(model, call, &pass->plan, &without_text);
    call->ops->linear(call, (qv_rows){pass->features.at, N}, (qv_const_rows){pass->plan.h, model->config.D},
                      &model->vision_projection, 0, N, NULL, n);
    call->ops->unit_length(call, pass->features.at, n, N);
    qv_output_take(call, &pass->features);
    return QV_OK;
}

qv_status qv_qformer_image_features(const qv_blip *model, qv_call *call, float *out, const qv_blip_image *image,
                                    qv_error *err) {
    static const qv_planned planned = {"the queries' activations", plan_features, run_features};
    features_pass pass = {.model = model, .image = image, .out = out};
    return qv_run_planned(call, (qv_arena_cache *)&model->arenas, &planned, &pass, err);
}
