/* Vision transformers (Dosovitskiy et al., arXiv 2010.11929), one tower by what its weights and config hold: CLIP (Radford et
 * al., arXiv 2103.00020), SigLIP (arXiv 2303.15343), DINOv2 (arXiv 2304.07193) with registers (arXiv 2309.16588), DINOv3 (arXiv
 * 2508.10104), DeiT (arXiv 2012.12877), BLIP (arXiv 2201.12086).
 *
 * 1. x = [class tokens][registers] patches W (+ b), + positions: of class tokens and patches, of patches, or none
 * 2. x = pre_norm(x), where there is one
 * 3. L blocks (models/block.h), norm first; where positions are rotary, they turn the patches' q and k alone; layer scales
 *    are part of the output projections
 * 4. an integrated block of QA-ViT (Ganz et al., CVPR 2024, arXiv 2402.05472; code amazon-science/QA-ViT) first makes
 *    z = W2 gelu(W1 layer_norm(instruct)) and attends to [z; layer_norm1(x)], z through the block's own k and v;
 *    its output is out_proj(o) + tanh(gate) instruction_out_proj(o)
 * 5. normed = post_norm(x); pooled = its class token, the mean of its patches, post_norm of the patches' mean, or the
 *    attention head y + mlp(layer_norm(y)), y = attention(probe, normed)
 *
 * The question enters in the first integrated block, so everything before it, and that block's q, k, v of the patches,
 * is computed once an image; from there on there is one sequence a pair. */
#include "models/planned.h"
#include "models/vit_ends.h"

/* ---- plan ---- */

/* How far one block must go. */
typedef enum {
    STOP_AT_ATTENTION, /* its probabilities are all that is wanted */
    CLASS_TOKEN,       /* only the class token's output is */
    WHOLE,
} block_extent;

/* One call, and everything that a pass over one chunk of images and, after them, chunks of their pairs needs. */
typedef struct {
    const qv_vit *vit;
    const qv_vit_request *request;
    size_t blocks; /* that are needed, */
    block_extent last; /* and how much of the last of them */
    size_t images, pairs; /* the largest chunks */
    float *x_image;       /* [images, T, D] */
    float *qkv_image;     /* [images, T, 3 D], of the first integrated block; the activations' where no pair follows */
    float *x_pair;        /* [pairs, T, D] */
    qv_block_activations a;
    qv_vit_question question;
    size_t *kv_index;       /* [pairs] */
    float *pixels;    /* see qv_vit_plan_pixels */
    float *questions; /* [pairs, M, Dt], likewise */
    float *attention; /* the largest window of any tap, for a chunk, where the ops cannot write to the caller's memory */
    float *heads;     /* the same of a mean, before it is taken */
    qv_vit_pooling_place pool;
    qv_output normed, pooled, projected, pool_attention;
} vit_pass;

static size_t at_most(size_t wanted, size_t limit) {
    return wanted < limit ? wanted : limit;
}

static size_t at_least(size_t wanted, size_t limit) {
    return wanted > limit ? wanted : limit;
}

static const qv_vit_tap *tap_of(const qv_vit_request *request, size_t block) {
    static const qv_vit_tap none = {.attention = NULL};
    return request->taps != NULL ? &request->taps[block] : &none;
}

/* Items of the largest window of attention that is wanted of one block, for a chunk; all the heads of a mean. */
static size_t attention_items(const vit_pass *pass, qv_arena *arena, size_t sequences, bool mean) {
    size_t largest = 0;
    for (size_t i = 0; i < pass->vit->config.L; i++) {
        const qv_vit_tap *tap = tap_of(pass->request, i);
        if (tap->attention != NULL && (tap->mean || !mean)) {
            size_t window = tap->row_count * tap->column_count;
            largest = at_least(qv_plan_product(arena, sequences * pass->vit->config.H, window), largest);
        }
    }
    return largest;
}

static void plan_crossings(vit_pass *pass, qv_arena *arena, size_t sequences) {
    const qv_vit *vit = pass->vit;
    const qv_vit_request *request = pass->request;
    const qv_ops *ops = vit->ops;
    size_t D = vit->config.D, rows = qv_plan_product(arena, sequences, vit->T);
    size_t tokens = qv_plan_product(arena, pass->pairs, request->M);
    pass->pixels = qv_vit_plan_pixels(arena, vit, &request->images, request->states != NULL ? 0 : pass->images);
    pass->questions = qv_arena_floats(arena, qv_place_size(ops, tokens * vit->config.instruction_dim));
    pass->attention = qv_arena_floats(arena, qv_place_size(ops, attention_items(pass, arena, sequences, false)));
    pass->heads = qv_arena_floats(arena, attention_items(pass, arena, sequences, true));
    pass->normed = qv_output_lay_out(arena, ops, request->normed, rows * D);
    pass->pooled = qv_output_lay_out(arena, ops, request->pooled, sequences * D);
    pass->projected = qv_output_lay_out(arena, ops, request->projected, sequences * vit->projection.columns);
    pass->pool_attention = qv_output_lay_out(arena, ops, request->pool_attention, sequences * vit->config.H * vit->T);
}

static void plan(void *state, qv_call *call, qv_arena *arena) {
    vit_pass *pass = state;
    const qv_vit *vit = pass->vit;
    size_t T = vit->T, D = vit->config.D, p = vit->config.patch_size, M = pass->request->M;
    size_t dim = vit->config.instruction_dim, limit = qv_vit_images_at_once(vit);
    pass->images = qv_vit_chunk(vit, pass->request->images.count);
    pass->pairs = at_most(pass->request->pair_count, limit);
    size_t sequences = at_least(pass->images, pass->pairs), tokens = qv_plan_product(arena, pass->pairs, M);
    size_t rows = qv_plan_product(arena, sequences, T), image_rows = qv_plan_product(arena, pass->images, T);
    size_t pair_rows = qv_plan_product(arena, pass->pairs, T);
    pass->x_image = qv_arena_take(arena, image_rows, D * sizeof(float));
    pass->qkv_image = qv_arena_take(arena, pair_rows == 0 ? 0 : image_rows, 3 * D * sizeof(float));
    pass->x_pair = qv_arena_take(arena, pair_rows, D * sizeof(float));
    pass->a = qv_block_plan(arena, &vit->kind, rows, 3 * p * p);
    pass->question = qv_vit_plan_question(arena, vit, tokens);
    pass->kv_index = qv_arena_take_host(arena, pass->pairs, sizeof(size_t));
    pass->pool = qv_vit_plan_pooling(arena, vit, sequences);
    size_t deepest = at_least(at_least(qv_block_depth(&vit->kind), 3 * p * p), at_least(dim, vit->reduce_width));
    size_t keys = T + (pass->pairs == 0 ? 0 : M); /* of no pair, M can be any number */
    qv_plan_scratch(call, arena, vit->ops->scratch_bytes(call->lanes, at_least(rows, tokens), deepest, keys, vit->kind.d));
    plan_crossings(pass, arena, sequences);
}

/* How many blocks the request needs, and how far the last of them must go. */
static void find_reach(vit_pass *pass) {
    const qv_vit_request *request = pass->request;
    size_t L = pass->vit->config.L;
    bool pools = request->pooled != NULL || request->projected != NULL;
    bool all = request->last != NULL || request->normed != NULL || request->embeddings != NULL ||
               request->pool_attention != NULL || (pools && pass->vit->config.pooling != QV_POOL_CLASS);
    pass->blocks = L;
    pass->last = all ? WHOLE : CLASS_TOKEN;
    if (all || pools) {
        pass->last = tap_of(request, L - 1)->hidden != NULL ? WHOLE : pass->last;
        return;
    }
    for (; pass->blocks > 0; pass->blocks--) {
        const qv_vit_tap *tap = tap_of(request, pass->blocks - 1);
        pass->last = tap->hidden != NULL ? WHOLE : STOP_AT_ATTENTION;
        if (tap->hidden != NULL || tap->attention != NULL) {
            return;
        }
    }
}

/* ---- one block ---- */

/* The sequences one block works on. */
typedef struct {
    float *x;                /* [B, T, D], updated */
    size_t B;
    size_t first;            /* of the request's images or pairs: where taps go */
    const float *qkv;        /* [., T, 3 D] given (shared by the pairs of an image), or NULL: computed from x */
    const size_t *kv_index;  /* [B], which of qkv belongs to b; NULL: b */
    const float *instruct;   /* [B, M, Dt], NULL in a block that takes no question */
    const size_t *instruct_length; /* [B] */
} sequences;

/* Rows of [B, T]: all of them, or the class token of each sequence. */
typedef struct {
    size_t count;
    size_t step; /* from one to the next */
} row_set;

static row_set choose_rows(const qv_vit *vit, size_t B, bool class_alone) {
    return class_alone ? (row_set){B, vit->T} : (row_set){B * vit->T, 1};
}

/* q, k and v of the sequences, the patches' q and k turned. */
static void project(const vit_pass *pass, qv_call *call, const qv_vit_block *block, const qv_block_activations *a,
                    const sequences *s, row_set queries, bool values) {
    const qv_vit *vit = pass->vit;
    size_t D = vit->config.D;
    const qv_block_rows rows = {{s->x, D}, s->B * vit->T, {s->x, queries.step * D}, queries.count};
    qv_block_project(call, &vit->kind, &block->block, a, &rows, values);
    qv_vit_rotate(vit, call, a->kv, false, s->B);
    if (queries.step == 1) {
        qv_vit_rotate(vit, call, a->q, false, s->B);
    }
}

static void attend(const vit_pass *pass, qv_call *call, const sequences *s, const qv_vit_tap *tap, row_set queries,
                   bool output) {
    const qv_vit *vit = pass->vit;
    size_t D = vit->config.D, T = vit->T;
    qv_attention a = qv_block_attention(&vit->kind, &pass->a);
    if (s->qkv != NULL) {
        a.q = (qv_const_rows){s->qkv, queries.step * 3 * D};
        a.k = (qv_const_rows){s->qkv + D, 3 * D};
        a.v = (qv_const_rows){s->qkv + 2 * D, 3 * D};
    }
    if (!output) {
        a.out = (qv_rows){NULL, 0};
        a.v = (qv_const_rows){NULL, 0};
    }
    a.q_index = s->kv_index;
    a.kv_index = s->kv_index;
    a.precision = vit->patch_embedding.precision;
    a.B = s->B;
    a.T = queries.count / s->B;
    a.S = T;
    if (s->instruct != NULL) {
        a.extra_k = (qv_const_rows){pass->question.kv, 2 * D};
        a.extra_v = (qv_const_rows){pass->question.kv + D, 2 * D};
        a.extra_length = s->instruct_length;
        a.M = pass->request->M;
    }
    if (tap->attention != NULL) {
        a.first_row = tap->first_row;
        a.row_count = tap->row_count;
        a.first_column = tap->first_column;
        a.column_count = tap->column_count;
        size_t one = a.row_count * a.column_count, window = tap->mean ? one : a.H * one;
        qv_output seen = qv_output_at(vit->ops, pass->attention, tap->attention + s->first * window, s->B * window);
        a.probabilities = tap->mean ? pass->heads : seen.at;
        call->ops->attention(call, &a, 1);
        for (size_t b = 0; tap->mean && b < s->B; b++) {
            call->ops->mean_rows(call, seen.at + b * one, pass->heads + b * a.H * one, a.H, one);
        }
        qv_output_take(call, &seen);
        return;
    }
    call->ops->attention(call, &a, 1);
}

static void run_block(const vit_pass *pass, qv_call *call, size_t i, const sequences *s, block_extent extent) {
    const qv_vit *vit = pass->vit;
    const qv_vit_block *block = &vit->blocks[i];
    const qv_vit_tap *tap = tap_of(pass->request, i);
    size_t D = vit->config.D;
    bool first_row = tap->attention == NULL || (tap->first_row == 0 && tap->row_count == 1);
    row_set queries = choose_rows(vit, s->B, extent != WHOLE && first_row && vit->has_class);
    row_set results = choose_rows(vit, s->B, extent == CLASS_TOKEN);
    if (s->instruct != NULL) {
        qv_vit_embed_question(call, vit, block, &pass->question, s->instruct, s->B * pass->request->M);
    }
    if (s->qkv == NULL) {
        project(pass, call, block, &pass->a, s, queries, extent != STOP_AT_ATTENTION);
    }
    attend(pass, call, s, tap, queries, extent != STOP_AT_ATTENTION);
    if (extent == STOP_AT_ATTENTION) {
        return;
    }
    /* Where more rows were asked of the attention than go on, theirs lie as far apart as in x. */
    qv_const_rows attended = {pass->a.attended, results.step / queries.step * D};
    qv_block_finish(call, &vit->kind, &block->block, &pass->a, attended, (qv_rows){s->x, results.step * D},
                    results.count, NULL);
    if (tap->hidden != NULL) {
        qv_take_floats(call, tap->hidden + s->first * vit->T * D, s->x, s->B * vit->T * D);
    }
}

/* ---- after the blocks ---- */

static void pool(const vit_pass *pass, qv_call *call, const sequences *s) {
    const qv_vit *vit = pass->vit;
    size_t D = vit->config.D, H = vit->config.H, E = vit->projection.columns;
    qv_output pooled = qv_output_part(&pass->pooled, s->first * D, s->B * D);
    qv_output looks = qv_output_part(&pass->pool_attention, s->first * H * vit->T, s->B * H * vit->T);
    qv_output projected = qv_output_part(&pass->projected, s->first * E, s->B * E);
    /* The head's attention, or the projection, may be all that is wanted. */
    qv_rows out = {pooled.host != NULL ? pooled.at : pass->pool.rows, D};
    qv_vit_pool(vit, call, &pass->pool, &pass->a, out, s->x, looks.host != NULL ? looks.at : NULL, s->B);
    if (projected.host != NULL) {
        call->ops->linear(call, (qv_rows){projected.at, E}, qv_as_const(out), &vit->projection, 0, E, NULL, s->B);
    }
    qv_output_take(call, &pooled);
    qv_output_take(call, &looks);
    qv_output_take(call, &projected);
}

/* The final norm and whatever is wanted after the last block. */
static void hand_out(const vit_pass *pass, qv_call *call, const sequences *s) {
    const qv_vit *vit = pass->vit;
    const qv_vit_request *request = pass->request;
    size_t D = vit->config.D, rows = s->B * vit->T, first = s->first * vit->T * D;
    const qv_const_rows x = {s->x, D};
    if (request->last != NULL) {
        qv_take_floats(call, request->last + first, s->x, rows * D);
    }
    for (size_t b = 0; request->embeddings != NULL && b < s->B; b++) {
        const qv_const_rows one = {s->x + b * vit->T * D, D};
        call->ops->norm(call, (qv_rows){request->embeddings[s->first + b], D}, one, &vit->post_norm, vit->T);
    }
    if (request->normed != NULL) {
        qv_output normed = qv_output_part(&pass->normed, first, rows * D);
        call->ops->norm(call, (qv_rows){normed.at, D}, x, &vit->post_norm, rows);
        qv_output_take(call, &normed);
    }
    if (request->pooled != NULL || request->projected != NULL || request->pool_attention != NULL) {
        pool(pass, call, s);
    }
}

/* ---- images and pairs ---- */

static block_extent extent_of(const vit_pass *pass, size_t block) {
    return block + 1 == pass->blocks ? pass->last : WHOLE;
}

/* q, k and v of the first block that takes a question, of a chunk of images: those given, or of what enters it. */
static const float *find_qkv(const vit_pass *pass, qv_call *call, size_t first, size_t B) {
    const qv_vit *vit = pass->vit;
    const qv_vit_request *request = pass->request;
    size_t D = vit->config.D, items = B * vit->T * 3 * D, start = first * vit->T * 3 * D;
    if (request->qkv != NULL) {
        return qv_give_floats(call, pass->qkv_image, request->qkv + start, items);
    }
    float *wanted = request->patch_qkv;
    qv_output kept = qv_output_at(vit->ops, pass->qkv_image, wanted != NULL ? wanted + start : NULL, items);
    float *qkv = wanted != NULL ? kept.at : pass->qkv_image;
    const sequences s = {.x = pass->x_image, .B = B, .first = first};
    qv_block_activations shared = pass->a;
    shared.q.at = qkv;
    shared.kv.at = qkv + D;
    project(pass, call, &vit->blocks[vit->first_integrated], &shared, &s, choose_rows(vit, B, false), true);
    qv_output_take(call, &kept);
    return qkv;
}

/* From the first integrated block on: one sequence a pair. `image_first` is the first image of the chunk in the plan, whose
 * q, k and v are given. */
static void run_pairs(const vit_pass *pass, qv_call *call, const float *qkv, size_t image_first, size_t first, size_t B) {
    const qv_vit *vit = pass->vit;
    const qv_vit_request *request = pass->request;
    size_t D = vit->config.D, T = vit->T, states = request->M * vit->config.instruction_dim;
    for (size_t b = 0; b < B; b++) {
        pass->kv_index[b] = request->pair_image[first + b] - image_first;
        call->ops->copy(call, (qv_rows){pass->x_pair + b * T * D, D},
                        (qv_const_rows){pass->x_image + pass->kv_index[b] * T * D, D}, T, D);
    }
    sequences s = {.x = pass->x_pair, .B = B, .first = first};
    const float *instruct = qv_give_floats(call, pass->questions, request->instruct + first * states, B * states);
    for (size_t i = vit->first_integrated; i < pass->blocks; i++) {
        bool integrated = vit->blocks[i].integrated;
        s.qkv = i == vit->first_integrated ? qkv : NULL;
        s.kv_index = i == vit->first_integrated ? pass->kv_index : NULL;
        s.instruct = integrated ? instruct : NULL;
        s.instruct_length = integrated ? request->instruct_length + first : NULL;
        run_block(pass, call, i, &s, extent_of(pass, i));
    }
    if (pass->blocks == vit->config.L) {
        hand_out(pass, call, &s);
    }
}

/* The blocks before the question, from the states on where such are given. */
static qv_status run_images(const vit_pass *pass, qv_call *call, size_t first, size_t B, qv_error *err) {
    const qv_vit *vit = pass->vit;
    const qv_vit_request *request = pass->request;
    size_t D = vit->config.D, T = vit->T;
    qv_status status = QV_OK;
    if (request->states != NULL) {
        call->ops->give(call, pass->x_image, request->states + first * T * D, B * T * D * sizeof(float));
    } else {
        status = qv_vit_embed(vit, call, &request->images, first, B, pass->pixels, pass->a.q.at, pass->x_image, err);
    }
    if (status != QV_OK) {
        return status;
    }
    if (request->embedded != NULL) {
        qv_take_floats(call, request->embedded + first * T * D, pass->x_image, B * T * D);
    }
    sequences s = {.x = pass->x_image, .B = B, .first = first};
    for (size_t i = request->first; i < at_most(pass->blocks, vit->first_integrated); i++) {
        run_block(pass, call, i, &s, extent_of(pass, i));
    }
    if (pass->blocks == vit->config.L && vit->first_integrated == vit->config.L) {
        hand_out(pass, call, &s);
    }
    return QV_OK;
}

static qv_status run(void *state, qv_call *call, qv_error *err) {
    const vit_pass *pass = state;
    const qv_vit *vit = pass->vit;
    const qv_vit_request *request = pass->request;
    size_t pair = 0;
    for (size_t first = 0; first < request->images.count && !call->stopped; first += pass->images) {
        size_t B = at_most(request->images.count - first, pass->images), end = pair;
        qv_status status = run_images(pass, call, first, B, err);
        if (status != QV_OK) {
            return status;
        }
        while (end < request->pair_count && request->pair_image[end] < first + B) {
            end++;
        }
        if (pass->blocks <= vit->first_integrated) {
            continue;
        }
        size_t chunk = qv_vit_chunk(vit, end - pair);
        const float *qkv = find_qkv(pass, call, first, B);
        for (; pair < end; pair += at_most(end - pair, chunk)) {
            run_pairs(pass, call, qkv, first, pair, at_most(end - pair, chunk));
        }
    }
    return QV_OK;
}

/* Whether the states are of a block that a pass can begin with, and nothing is wanted that comes before it. */
static qv_status check_states(const qv_vit *vit, const qv_vit_request *request, qv_error *err) {
    size_t last = at_most(vit->first_integrated, vit->config.L - 1);
    if (request->first > last) {
        return qv_fail(err, QV_ERR_VALUE, "states enter block %zu, expected at most %zu", request->first, last);
    }
    if (request->qkv != NULL && request->first != vit->first_integrated) {
        return qv_fail(err, QV_ERR_VALUE, "q, k and v are of block %zu, but the states enter block %zu", vit->first_integrated,
                       request->first);
    }
    bool before = request->embedded != NULL;
    for (size_t i = 0; i < request->first; i++) {
        const qv_vit_tap *tap = tap_of(request, i);
        before = before || tap->attention != NULL || tap->hidden != NULL;
    }
    return before ? qv_fail(err, QV_ERR_VALUE, "what is wanted lies before block %zu, which the states enter", request->first)
                  : QV_OK;
}

qv_status qv_vit_forward(const qv_vit *vit, qv_call *call, const qv_vit_request *request, qv_error *err) {
    static const qv_planned planned = {"the activations of a vision transformer", plan, run};
    vit_pass pass = {.vit = vit, .request = request};
    qv_status status = request->states != NULL ? check_states(vit, request, err) : QV_OK;
    if (status != QV_OK) {
        return status;
    }
    find_reach(&pass);
    if (request->patch_qkv != NULL && pass.blocks <= vit->first_integrated) {
        return qv_fail(err, QV_ERR_VALUE, "q, k and v of the first block that takes a question: the pass ends before it, or "
                       "there is none");
    }
    if (pass.blocks > vit->first_integrated && request->pair_count == 0 && request->images.count != 0) {
        return qv_fail(err, QV_ERR_VALUE, "block %zu and later ones take a question, and none was given",
                       vit->first_integrated);
    }
    for (size_t n = 0; n < request->pair_count; n++) {
        if (request->pair_image[n] >= request->images.count || (n > 0 && request->pair_image[n] < request->pair_image[n - 1])) {
            return qv_fail(err, QV_ERR_VALUE, "pair %zu is of image %zu, expected ascending numbers below %zu", n,
                           request->pair_image[n], request->images.count);
        }
    }
    if (request->images.count == 0 || (pass.blocks == 0 && request->embedded == NULL)) {
        return QV_OK;
    }
    /* The cache is the one part of a model that changes; it is safe to use from many threads. */
    return qv_run_planned(call, (qv_arena_cache *)&vit->arenas, &planned, &pass, err);
}
