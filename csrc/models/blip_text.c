/* The text half of image-text matching (BLIP: Li et al., arXiv 2201.12086): BERT whose blocks also attend to the image. With
 * queries in front of the text, what attends to the image is in qformer.c; what is made of the states, in blip_heads.c.
 *
 * 1. h [R, D] = layer_norm(word[ids] + position), of all questions one after another without padding, so that a question's
 *    numbers do not depend on its neighbours
 * 2. L blocks (models/block.h), norms last; all queries of neighbouring questions on an image attend to it in one call, since
 *    they share its keys; in the last block only token 0 of each question is a query */
#include "models/blip_text.h"

#include "models/text_encoder.h"

/* Rows of text that go through a layer together. */
#define CHUNK_ROWS ((size_t)512)

/* ---- questions ---- */

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

qv_blip_questions qv_blip_chunk(const qv_blip *model, const qv_blip_questions *questions, size_t from) {
    const size_t *start = questions->start + from;
    size_t Q = 1;
    while (from + Q < questions->Q && start[Q + 1] - start[0] + (Q + 1) * model->queries <= CHUNK_ROWS) {
        Q++;
    }
    return (qv_blip_questions){Q, questions->ids, start, questions->images != NULL ? questions->images + from : NULL};
}

void qv_blip_chunk_sizes(const qv_blip *model, const qv_blip_questions *questions, size_t *Q, size_t *R) {
    *Q = 0;
    *R = 0;
    for (size_t from = 0; from < questions->Q;) {
        const qv_blip_questions chunk = qv_blip_chunk(model, questions, from);
        size_t rows = chunk.start[chunk.Q] - chunk.start[0];
        *Q = chunk.Q > *Q ? chunk.Q : *Q;
        *R = rows > *R ? rows : *R;
        from += chunk.Q;
    }
}

/* ---- the text half ---- */

qv_blip_text_plan qv_blip_plan_text(qv_arena *arena, const qv_blip *model, size_t Q, size_t R, size_t keep_from) {
    size_t D = model->config.D, L = model->config.L, queries = Q * model->queries, rows = queries + R;
    qv_blip_text_plan plan;
    plan.blocks = qv_arena_take_host(arena, L, sizeof *plan.blocks);
    plan.positions = qv_arena_take_host(arena, R, sizeof *plan.positions);
    plan.types = qv_arena_take_host(arena, R, sizeof *plan.types);
    plan.runs = qv_arena_take_host(arena, Q, sizeof *plan.runs);
    plan.start = qv_arena_take_host(arena, queries != 0 ? Q + 1 : 0, sizeof *plan.start);
    plan.h = qv_arena_floats(arena, rows * D);
    plan.class_rows = qv_arena_floats(arena, Q * D);
    plan.attended = qv_arena_floats(arena, queries != 0 ? rows * D : 0);
    plan.shared = qv_block_plan(arena, &model->kind, rows, 0);
    qv_block_activations passing = plan.shared;
    if (queries != 0) { /* q, k and v lie by questions when they are attended with, and were made elsewhere */
        float *qkv = qv_arena_take(arena, rows, 3 * D * sizeof(float));
        passing.q = (qv_rows){qkv, 3 * D};
        passing.kv = (qv_rows){qkv != NULL ? qkv + D : NULL, 3 * D};
    }
    for (size_t l = 0; l < L; l++) {
        qv_block_activations block = passing;
        if (l >= keep_from) {
            size_t own = queries != 0 ? queries : Q; /* of a last block: what reaches the head */
            block = qv_block_plan_kept(arena, &model->kind, &plan.shared, rows, qv_blip_one_query(model, l, L) ? own : rows);
        }
        if (plan.blocks != NULL) {
            plan.blocks[l] = block;
        }
    }
    return plan;
}

size_t qv_blip_scratch_bytes(const qv_blip *model, const qv_call *call, size_t Q, size_t R) {
    size_t tokens = model->queries + model->config.positions, keys = model->vision.T > tokens ? model->vision.T : tokens;
    /* The gradient of keys and values is as wide as both. */
    size_t depth = qv_block_depth(&model->kind), both = 2 * model->config.D;
    return model->ops->scratch_bytes(call->lanes, R + Q * model->queries, depth > both ? depth : both, keys, model->kind.d);
}

/* So many rows of a question attend to its image in block l. */
static size_t attending_rows(const qv_blip *model, const qv_blip_questions *questions, size_t q, size_t l) {
    if (model->queries != 0) {
        return model->queries;
    }
    return qv_blip_one_query(model, l, model->config.L) ? 1 : questions->start[q + 1] - questions->start[q];
}

qv_cross_states qv_blip_cross_of(const qv_blip *model, const qv_blip_text_plan *plan, const qv_blip_questions *questions,
                                 size_t l) {
    size_t count = 0, row = 0;
    bool attends = questions->images != NULL && qv_blip_attends(model, l);
    for (size_t q = 0; attends && q < questions->Q; q++) {
        const qv_blip_image *image = questions->images[q];
        size_t place = (l - model->cross_first) / model->cross_step, rows = attending_rows(model, questions, q, l);
        if (q == 0 || image != questions->images[q - 1]) {
            const float *kv = image->cross + place * image->S * 2 * model->config.D;
            plan->runs[count++] = (qv_cross_run){.kv = kv, .S = image->S, .first = row};
        }
        plan->runs[count - 1].count += rows;
        row += rows;
    }
    return (qv_cross_states){plan->runs, count};
}

qv_sequences qv_blip_sequences(const qv_blip_questions *questions, bool one_query) {
    return (qv_sequences){.B = questions->Q, .start = questions->start, .queries = one_query ? 1 : 0};
}

bool qv_blip_one_query(const qv_blip *model, size_t l, size_t end) {
    return l + 1 == end && !model->config.question_encoder;
}

void qv_blip_embed_text(const qv_blip *model, qv_call *call, const qv_blip_text_plan *plan, float *x, float *spare,
                        const qv_blip_questions *questions) {
    size_t first = questions->start[0], R = questions->start[questions->Q] - first;
    const qv_tensor *tables[] = {&model->words, &model->positions, &model->token_types};
    const int32_t *ids[] = {questions->ids + first, plan->positions, plan->types};
    for (size_t q = 0; q < questions->Q; q++) {
        for (size_t i = questions->start[q]; i < questions->start[q + 1]; i++) {
            plan->positions[i - first] = (int32_t)(i - questions->start[q]);
            plan->types[i - first] = 0;
        }
    }
    qv_text_embed(call, x, spare, tables, ids, model->token_types.data != NULL ? 3 : 2, R, model->config.D);
}

/* class_rows [Q, D] = token 0 of each question in h */
static void gather_first(qv_call *call, const qv_blip_text_plan *plan, const qv_blip_questions *questions, size_t D) {
    for (size_t q = 0; q < questions->Q; q++) {
        const float *row = plan->h + (questions->start[q] - questions->start[0]) * D;
        call->ops->copy(call, (qv_rows){plan->class_rows + q * D, D}, (qv_const_rows){row, D}, 1, D);
    }
}

void qv_blip_run_text(const qv_blip *model, qv_call *call, const qv_blip_text_plan *plan,
                      const qv_blip_questions *questions) {
    size_t D = model->config.D, Q = questions->Q, R = questions->start[Q] - questions->start[0];
    size_t end = questions->images != NULL ? model->config.L : model->config.text_blocks;
    const qv_rows h = {plan->h, D};
    qv_blip_embed_text(model, call, plan, plan->h, plan->shared.normed, questions);
    call->ops->norm(call, h, qv_as_const(h), &model->embedding_norm, R);
    if (end == 0) {
        gather_first(call, plan, questions, D);
    }
    for (size_t l = 0; l < end; l++) {
        bool one = qv_blip_one_query(model, l, end);
        if (one) {
            gather_first(call, plan, questions, D);
        }
        const qv_block_rows rows = {{plan->h, D}, R, {one ? plan->class_rows : plan->h, D}, one ? Q : R};
        const qv_sequences sequences = qv_blip_sequences(questions, one);
        const qv_cross_states cross = qv_blip_cross_of(model, plan, questions, l);
        qv_block_run(call, &model->kind, &model->blocks[l], &plan->blocks[l], &rows, &sequences, &cross);
    }
}
