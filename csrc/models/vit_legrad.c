/* LeGrad's gradient (Bousselham et al., arXiv 2404.03214), which never leaves its block and begins as one and the same row for
 * every token; and what it reads of a picture, whatever the text: with that kept, another text runs no block.
 *
 * Of each block that is asked for, one behind another: the mean of its tokens [D], its first sum [rows, D], what the gradient
 * of its hidden layer is times [rows, F] (gated, twice), its values [T, H d]; where an attention head pools, what is pooled and
 * the head's, of one row. Behind the blocks, what is pooled at last [D]. */
#include "models/vit_gradient_pass.h"

enum { MOST_PARTS = 5 };

static bool pools_by_head(const qv_vit *vit) {
    return vit->config.pooling == QV_POOL_MAP;
}

static qv_block_kind kept_kind(const qv_vit *vit) {
    return pools_by_head(vit) ? qv_vit_head_kind(vit) : vit->kind;
}

/* The floats of each part that is kept of a block; their number. */
static size_t measure_parts(const qv_vit *vit, size_t floats[MOST_PARTS]) {
    const qv_block_kind kind = kept_kind(vit);
    size_t rows = pools_by_head(vit) ? 1 : vit->T, count = 0;
    floats[count++] = kind.D;
    floats[count++] = rows * kind.D;
    floats[count++] = rows * kind.F;
    if (kind.gated) {
        floats[count++] = rows * kind.F;
    }
    floats[count++] = vit->T * kind.H * kind.d;
    return count;
}

/* Where each part is, of a block whose activations there are. */
static void find_parts(qv_vit_gradient_pass *pass, float **parts[MOST_PARTS]) {
    bool head = pools_by_head(pass->vit);
    qv_block_activations *a = head ? &pass->target.head : &pass->a;
    size_t count = 0;
    parts[count++] = head ? &pass->target.pooled : &pass->target.mean;
    parts[count++] = &a->sum1;
    parts[count++] = &a->before;
    if (kept_kind(pass->vit).gated) {
        parts[count++] = &a->activated;
    }
    parts[count] = &pass->values;
}

size_t qv_vit_legrad_floats(const qv_vit *vit) {
    size_t floats[MOST_PARTS], sum = 0;
    for (size_t i = 0, count = measure_parts(vit, floats); i < count; i++) {
        sum += floats[i];
    }
    return sum;
}

static void keep_part(qv_vit_gradient_pass *pass, qv_call *call, const float *part, size_t floats) {
    qv_take_floats(call, pass->keep, part, floats);
    pass->keep += floats;
}

void qv_vit_legrad_keep_row(qv_vit_gradient_pass *pass, qv_call *call, const float *row) {
    if (pass->keep != NULL) {
        keep_part(pass, call, row, pass->vit->config.D);
    }
}

void qv_vit_legrad_keep(qv_vit_gradient_pass *pass, qv_call *call) {
    const qv_block_kind kind = kept_kind(pass->vit);
    const qv_block_activations *a = pools_by_head(pass->vit) ? &pass->target.head : &pass->a;
    size_t inner = kind.H * kind.d, floats[MOST_PARTS];
    float **parts[MOST_PARTS];
    if (pass->keep == NULL) {
        return;
    }
    call->ops->copy(call, (qv_rows){pass->values, inner}, (qv_const_rows){a->kv.at + inner, a->kv.ld}, pass->vit->T, inner);
    find_parts(pass, parts);
    for (size_t i = 0, count = measure_parts(pass->vit, floats); i < count; i++) {
        keep_part(pass, call, *parts[i], floats[i]);
    }
}

void qv_vit_legrad_find_row(qv_vit_gradient_pass *pass, qv_call *call, float *row) {
    size_t D = pass->vit->config.D;
    call->ops->give(call, row, pass->kept, D * sizeof *row);
    pass->kept += D;
}

void qv_vit_legrad_find(qv_vit_gradient_pass *pass, qv_call *call) {
    size_t floats[MOST_PARTS], count = measure_parts(pass->vit, floats);
    float **parts[MOST_PARTS];
    find_parts(pass, parts);
    qv_vit_legrad_find_row(pass, call, *parts[0]);
    for (size_t i = 1; i < count; i++) {
        *parts[i] = (float *)qv_give_floats(call, *parts[i], pass->kept, floats[i]);
        pass->kept += floats[i];
    }
}

/* max(G, 0) of one item, summed over queries, to `host`. */
static void take_legrad(const qv_vit_gradient_pass *pass, qv_call *call, qv_attention_backward *backward, float *host) {
    size_t looks = backward->forward.H * (backward->forward.M + backward->forward.S);
    qv_output out = qv_vit_place(pass, pass->place, host, looks);
    if (pass->kept != NULL) {
        backward->forward.v = (qv_const_rows){pass->values, backward->forward.H * backward->forward.d};
    }
    backward->relevance = out.at;
    backward->gradient_alone = true;
    call->ops->attention_backward(call, backward, 1);
    qv_output_take(call, &out);
}

void qv_vit_legrad(const qv_vit_gradient_pass *pass, qv_call *call, const qv_block_kind *kind, const qv_attention *attention,
                   size_t l, size_t n) {
    const qv_vit *vit = pass->vit;
    const qv_vit_target *target = &pass->target;
    bool head = pools_by_head(vit);
    size_t D = vit->config.D, T = vit->T, inner = kind->H * kind->d;
    const qv_rows d_mean = {target->d_pooled, D};
    for (size_t first = 0; first < pass->items && !call->stopped; first += pass->turn) {
        size_t count = pass->items - first < pass->turn ? pass->items - first : pass->turn;
        qv_vit_score_gradients(pass, call, n, first, count, head ? 1.0f : 1.0f / (float)T);
        if (head) {
            qv_vit_head_backward(pass, call, 0, count);
        } else {
            call->ops->norm_backward(call, d_mean, qv_as_const(d_mean), (qv_const_rows){target->mean, 0}, &vit->post_norm,
                                     count);
            qv_block_backward_to_attention(call, kind, &vit->blocks[l].block, &pass->a, &pass->g, d_mean.at, pass->once,
                                           count, T);
        }
        for (size_t i = 0; i < count; i++) {
            qv_attention_backward backward = {.forward = *attention,
                                              .d_out = {pass->g.d_attended + i * T * inner, inner}};
            backward = head ? qv_vit_head_attention(pass, i) : backward;
            size_t looks = backward.forward.H * (backward.forward.M + backward.forward.S);
            take_legrad(pass, call, &backward, pass->request->taps[l].legrad + (n * pass->items + first + i) * looks);
        }
    }
}
