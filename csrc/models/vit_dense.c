/* Dense paths through a vision tower, after the papers' public code.
 *
 * The tower itself runs as ever (models/vit.c). In the last block, or from block `first` on, its q, k, v make a second path y,
 * with all scores of attention times d^-1/2:
 *
 *  maskclip   y = x + out(v), then the feed-forward                    Zhou et al., arXiv 2112.01071
 *  sclip      y = x + out(A(q) v + A(k) v), then the feed-forward      Wang et al., arXiv 2312.01597
 *  clearclip  y = out(A(q) v)                                          Lan et al., arXiv 2407.12442
 *  naclip     y = out(A(k + w) v)                                      Hajimiri et al., arXiv 2404.08181
 *  surgery    y = x, then in each block y += out(A(v) v)               Li et al., arXiv 2304.05653
 *  gem        y = x, then in each block y += out(mean of G(q), G(k), G(v))    Bousselham et al., arXiv 2312.00878
 *
 * A(z) = softmax(z z'); w[i, j] = exp(-|i - j|^2 / (2 5^2)) is added to the scores between patches i and j. Gem's are of
 * z = z / |z| with a temperature: G(z) = softmax(t z2 z2') v of z2 = softmax(t z z') z, tokens and heads again of length 1, and
 * t = d^-1/2 times the mean length of layer_norm1's tokens. Of length sqrt(t) they need no other scale.
 *
 * At the end each patch is projection(post_norm(y)), of length 1. */
#include "models/vit_dense.h"

#include "models/planned.h"
#include "models/vit_ends.h"

#include <math.h>
#include <string.h>

#define NEIGHBOURHOOD 5.0f /* naclip's standard deviation, in patches */

typedef struct {
    const qv_vit *vit;
    const qv_dense_request *request;
    size_t first;  /* block of the second path */
    size_t images; /* the largest chunk */
    float *x, *y;  /* [images, T, D], the tower's path and the second one */
    float *mixed;  /* [images T, D]: what the second path's attention gives */
    float *heads, *smoothed; /* [images T, 3 D], gem; sclip's second attention */
    float *lengths;          /* [images T], gem */
    float *decay;            /* naclip, on the host: exp(-n^2 / (2 5^2)) of n patches along a side of the grid */
    float *window;           /* [T, T], w */
    float *window_place;     /* where the ops cannot read the host's */
    const float *neighbours; /* one of the two */
    float *pixels;
    qv_block_activations a;
    qv_vit_pooling_place pool;
    qv_output patches, pooled;
} dense_pass;

size_t qv_vit_text_width(const qv_vit *vit) {
    return vit->projection.columns != 0 ? vit->projection.columns : vit->config.D;
}

static bool keeps_residual(qv_dense_method method) {
    return method != QV_DENSE_CLEARCLIP && method != QV_DENSE_NACLIP;
}

static void plan(void *state, qv_call *call, qv_arena *arena) {
    dense_pass *pass = state;
    const qv_vit *vit = pass->vit;
    const qv_ops *ops = vit->ops;
    qv_dense_method method = pass->request->method;
    size_t T = vit->T, D = vit->config.D, p = vit->config.patch_size, E = qv_vit_text_width(vit), depth = 3 * p * p;
    pass->images = qv_vit_chunk(vit, pass->request->images.count);
    size_t rows = qv_plan_product(arena, pass->images, T), items = qv_plan_product(arena, rows, D);
    size_t window = method == QV_DENSE_NACLIP ? qv_plan_product(arena, T, T) : 0, block_depth = qv_block_depth(&vit->kind);
    size_t longest = vit->grid_rows > vit->grid_columns ? vit->grid_rows : vit->grid_columns;
    bool gem = method == QV_DENSE_GEM;
    pass->x = qv_arena_floats(arena, items);
    pass->y = qv_arena_floats(arena, items);
    pass->mixed = qv_arena_floats(arena, items);
    pass->heads = qv_arena_take(arena, gem || method == QV_DENSE_SCLIP ? items : 0, (gem ? 3 : 1) * sizeof(float));
    pass->smoothed = qv_arena_take(arena, gem ? items : 0, 3 * sizeof(float));
    pass->lengths = qv_arena_floats(arena, gem ? rows : 0);
    pass->decay = qv_arena_take_host(arena, window == 0 ? 0 : longest, sizeof(float));
    pass->window = qv_arena_take_host(arena, window, sizeof(float));
    pass->window_place = qv_arena_floats(arena, qv_place_size(ops, window));
    pass->pixels = qv_vit_plan_pixels(arena, vit, &pass->request->images, pass->images);
    pass->a = qv_block_plan(arena, &vit->kind, rows, depth);
    pass->pool = qv_vit_plan_pooling(arena, vit, pass->images);
    pass->patches = qv_output_lay_out(arena, ops, pass->request->patches, qv_plan_product(arena, pass->images, vit->P * E));
    pass->pooled = qv_output_lay_out(arena, ops, pass->request->pooled, qv_plan_product(arena, pass->images, E));
    qv_plan_scratch(call, arena,
                    ops->scratch_bytes(call->lanes, rows, block_depth > depth ? block_depth : depth, T, vit->kind.d));
}

/* ---- the second path's attention ---- */

/* out [B T, H d] = softmax(scale z z' + bias) v */
static void attend_self(const dense_pass *pass, qv_call *call, qv_rows out, qv_const_rows z, qv_const_rows v, size_t H,
                        float scale, size_t B) {
    const qv_vit *vit = pass->vit;
    qv_attention a = qv_block_attention(&vit->kind, &pass->a);
    a.out = out;
    a.q = a.k = z;
    a.v = v;
    a.bias = (qv_const_rows){pass->neighbours, vit->T};
    a.scale = scale;
    a.precision = vit->patch_embedding.precision;
    a.B = B;
    a.H = H;
    a.T = a.S = vit->T;
    call->ops->attention(call, &a, 1);
}

static void mix_gem(const dense_pass *pass, qv_call *call, const qv_vit_block *block, qv_const_rows v, size_t B) {
    const qv_vit *vit = pass->vit;
    const qv_ops *ops = call->ops;
    size_t D = vit->config.D, H = vit->kind.H, T = vit->T, rows = B * T;
    float scale = vit->kind.scale;
    qv_rows heads = {pass->heads, 3 * D}, smoothed = {pass->smoothed, 3 * D};
    if (block->plain_norm1.weight.data != NULL) {
        /* The lengths are of the tokens as they were before outliers were folded. */
        ops->norm(call, (qv_rows){pass->a.normed, D}, (qv_const_rows){pass->x, D}, &block->plain_norm1, rows);
    }
    ops->row_lengths(call, pass->lengths, (qv_const_rows){pass->a.normed, D}, rows, D);
    /* q, k, v of a token beside each other are 3 H heads. */
    ops->head_lengths(call, heads, qv_as_const(pass->a.q), pass->lengths, scale, B, T, 3 * H, vit->kind.d);
    attend_self(pass, call, smoothed, qv_as_const(heads), qv_as_const(heads), 3 * H, 1.0f, B);
    ops->head_lengths(call, smoothed, qv_as_const(smoothed), pass->lengths, scale, B, T, 3 * H, vit->kind.d);
    for (size_t part = 0; part < 3; part++) {
        qv_rows out = {pass->heads + part * rows * D, D};
        attend_self(pass, call, out, (qv_const_rows){pass->smoothed + part * D, 3 * D}, v, H, 1.0f, B);
    }
    ops->mean_rows(call, pass->mixed, pass->heads, 3, rows * D);
}

/* mixed [B T, D] from q, k, v of block i, and from layer_norm1's tokens, while these are there */
static void mix(const dense_pass *pass, qv_call *call, size_t i, size_t B) {
    const qv_vit *vit = pass->vit;
    size_t D = vit->config.D, H = vit->kind.H, rows = B * vit->T;
    float scale = vit->kind.scale;
    qv_rows out = {pass->mixed, D}, second = {pass->heads, D};
    qv_const_rows q = qv_as_const(pass->a.q), k = qv_as_const(pass->a.kv), v = {k.at + D, k.ld};
    switch (pass->request->method) {
    case QV_DENSE_MASKCLIP:
        call->ops->copy(call, out, v, rows, D);
        break;
    case QV_DENSE_SCLIP:
        attend_self(pass, call, out, q, v, H, scale, B);
        attend_self(pass, call, second, k, v, H, scale, B);
        call->ops->add(call, pass->mixed, pass->heads, rows, D);
        break;
    case QV_DENSE_CLEARCLIP:
        attend_self(pass, call, out, q, v, H, scale, B);
        break;
    case QV_DENSE_NACLIP:
        attend_self(pass, call, out, k, v, H, scale, B);
        break;
    case QV_DENSE_SURGERY:
        attend_self(pass, call, out, v, v, H, scale, B);
        break;
    case QV_DENSE_GEM:
        mix_gem(pass, call, &vit->blocks[i], v, B);
        break;
    }
}

static size_t distance(size_t a, size_t b) {
    return a < b ? b - a : a - b;
}

/* The patches' weights for each other; 0 for what stands in front of them. */
static void make_window(const dense_pass *pass) {
    const qv_vit *vit = pass->vit;
    size_t T = vit->T, prefix = vit->prefix, rows = vit->grid_rows, columns = vit->grid_columns;
    for (size_t n = 0; n < rows || n < columns; n++) {
        pass->decay[n] = expf(-(float)(n * n) / (2.0f * NEIGHBOURHOOD * NEIGHBOURHOOD));
    }
    memset(pass->window, 0, T * T * sizeof *pass->window);
    for (size_t i = 0; i < vit->P; i++) {
        float *row = pass->window + (prefix + i) * T + prefix;
        size_t y = i / columns, x = i % columns;
        for (size_t j = 0; j < vit->P; j++) {
            row[j] = pass->decay[distance(y, j / columns)] * pass->decay[distance(x, j % columns)];
        }
    }
}

/* ---- blocks ---- */

/* One block of the tower and, from `first` on, of the second path. */
static void run_block(const dense_pass *pass, qv_call *call, size_t i, size_t B) {
    const qv_vit *vit = pass->vit;
    const qv_block *block = &vit->blocks[i].block;
    const qv_block_activations *a = &pass->a;
    size_t D = vit->config.D, T = vit->T, rows = B * T;
    bool second = i >= pass->first;
    /* What the class token pools of the last block is its own row. */
    size_t step = i + 1 == vit->config.L && vit->config.pooling == QV_POOL_CLASS ? T : 1;
    qv_rows x = {pass->x, D}, y = {pass->y, D};
    const qv_block_rows all = {x, rows, x, rows};
    qv_block_project(call, &vit->kind, block, a, &all, true);
    qv_vit_rotate(vit, call, a->q, false, B);
    qv_vit_rotate(vit, call, a->kv, false, B);
    if (second) {
        mix(pass, call, i, B);
    }
    if (i == pass->first) {
        call->ops->copy(call, y, qv_as_const(x), rows, D);
    }
    qv_attention attention = qv_block_attention(&vit->kind, a);
    attention.q.ld *= step;
    attention.precision = vit->patch_embedding.precision;
    attention.B = B;
    attention.T = T / step;
    attention.S = T;
    call->ops->attention(call, &attention, 1);
    qv_block_finish(call, &vit->kind, block, a, qv_as_const(attention.out), (qv_rows){x.at, step * D}, rows / step, NULL);
    if (!second) {
        return;
    }
    const qv_const_rows mixed = {pass->mixed, D};
    qv_dense_method method = pass->request->method;
    if (method == QV_DENSE_MASKCLIP || method == QV_DENSE_SCLIP) {
        qv_block_finish(call, &vit->kind, block, a, mixed, y, rows, NULL);
        return;
    }
    const qv_epilogue add = {.residual = qv_as_const(y)};
    call->ops->linear(call, y, mixed, &block->out, 0, D, keeps_residual(method) ? &add : NULL, rows);
}

/* out [R, E] = the projection of tokens [R, D] */
static void project(const qv_vit *vit, qv_call *call, float *out, const float *tokens, size_t R) {
    size_t D = vit->config.D, E = qv_vit_text_width(vit);
    qv_rows to = {out, E};
    qv_const_rows from = {tokens, D};
    if (vit->projection.columns != 0) {
        call->ops->linear(call, to, from, &vit->projection, 0, E, NULL, R);
    } else {
        call->ops->copy(call, to, from, R, D);
    }
}

static void hand_out(const dense_pass *pass, qv_call *call, size_t first, size_t B) {
    const qv_vit *vit = pass->vit;
    size_t D = vit->config.D, P = vit->P, E = qv_vit_text_width(vit);
    qv_output patches = qv_output_part(&pass->patches, first * P * E, B * P * E);
    qv_output pooled = qv_output_part(&pass->pooled, first * E, B * E);
    qv_vit_pool(vit, call, &pass->pool, &pass->a, (qv_rows){pass->pool.rows, D}, pass->x, NULL, B);
    project(vit, call, pooled.at, pass->pool.rows, B);
    call->ops->unit_length(call, pooled.at, B, E);
    call->ops->norm(call, (qv_rows){pass->y, D}, (qv_const_rows){pass->y, D}, &vit->post_norm, B * vit->T);
    for (size_t b = 0; b < B; b++) {
        project(vit, call, patches.at + b * P * E, pass->y + (b * vit->T + vit->prefix) * D, P);
    }
    call->ops->unit_length(call, patches.at, B * P, E);
    qv_output_take(call, &patches);
    qv_output_take(call, &pooled);
}

static qv_status run(void *state, qv_call *call, qv_error *err) {
    dense_pass *pass = state;
    const qv_vit *vit = pass->vit;
    const qv_vit_images *images = &pass->request->images;
    pass->neighbours = NULL;
    if (pass->request->method == QV_DENSE_NACLIP) {
        make_window(pass);
        pass->neighbours = qv_give_floats(call, pass->window_place, pass->window, vit->T * vit->T);
    }
    for (size_t first = 0, B; first < images->count && !call->stopped; first += B) {
        B = images->count - first < pass->images ? images->count - first : pass->images;
        qv_status status = qv_vit_embed(vit, call, images, first, B, pass->pixels, pass->a.q.at, pass->x, err);
        if (status != QV_OK) {
            return status;
        }
        for (size_t i = 0; i < vit->config.L; i++) {
            run_block(pass, call, i, B);
        }
        hand_out(pass, call, first, B);
    }
    return QV_OK;
}

qv_status qv_vit_dense(const qv_vit *vit, qv_call *call, const qv_dense_request *request, qv_error *err) {
    static const qv_planned planned = {"the activations of a vision transformer's dense path", plan, run};
    size_t L = vit->config.L;
    bool several = request->method == QV_DENSE_SURGERY || request->method == QV_DENSE_GEM;
    dense_pass pass = {.vit = vit, .request = request, .first = several ? request->first : L - 1};
    if (pass.first >= L) {
        return qv_fail(err, QV_ERR_VALUE, "block %zu does not exist; this model has blocks 0 to %zu", pass.first, L - 1);
    }
    if (vit->first_integrated < L) {
        return qv_fail(err, QV_ERR_VALUE, "dense paths are of towers that take no question; block %zu of this one takes it",
                       vit->first_integrated);
    }
    if (vit->config.pooling == QV_POOL_MAP) {
        return qv_fail(err, QV_ERR_VALUE, "dense paths need patches that the projection can take; this tower's pass through "
                                          "an attention head first");
    }
    return request->images.count == 0 ? QV_OK
                                      : qv_run_planned(call, (qv_arena_cache *)&vit->arenas, &planned, &pass, err);
}
