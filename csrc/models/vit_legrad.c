/* LeGrad's gradient (Bousselham et al., arXiv 2404.03214), which never leaves its block and begins as one and the same row for
 * every token; and what it reads of a picture, whatever the text: with that kept, another text runs no block.
 *
 * Of each block that is asked for, one behind another: the mean of its tokens [D], its first sum [rows, D], what the gradient
 * of its hidden layer is times [rows, F] (gated, twice), its values [T, H d]; where an attention head pools, what is pooled and
 * the head's, of one row. Behind the blocks, what is pooled at last [D]. */
#include "models/vit_gradient_pass.h"

enum { MOST_PARTS = 5 };

typedef struct {
    float **at;
    size_t count;
} kept_part;

static bool pools_by_head(const qv_vit *vit) {
    return vit->config.pooling == QV_POOL_MAP;
}

/* What is kept of a block, whose activations there are. */
static size_t list_parts(qv_vit_gradient_pass *pass, kept_part parts[MOST_PARTS]) {
    const qv_vit *vit = pass->vit;
    bool head = pools_by_head(vit);
    const qv_block_kind kind = head ? qv_vit_head_kind(vit) : vit->kind;
    qv_block_activations *a = head ? &pass->target.head : &pass->a;
    size_t rows = head ? 1 : vit->T, count = 0;
    parts[count++] = (kept_part){head ? &pass->target.pooled : &pass->target.mean, kind.D};
    parts[count++] = (kept_part){&a->sum1, rows * kind.D};
    parts[count++] = (kept_part){&a->before, rows * kind.F};
    if (kind.gated) {
        parts[count++] = (kept_part){&a->activated, rows * kind.F};
    }
    parts[count++] = (kept_part){&pass->values, vit->T * kind.H * kind.d};
    return count;
}

bool qv_vit_gradients_keep(const qv_vit *vit, const qv_vit_gradient_request *request, size_t *floats) {
    const qv_block_kind kind = pools_by_head(vit) ? qv_vit_head_kind(vit) : vit->kind;
    size_t rows = pools_by_head(vit) ? 1 : vit->T, L = vit->config.L;
    size_t block = kind.D + rows * (kind.D + (kind.gated ? 2 : 1) * kind.F) + vit->T * kind.H * kind.d;
    bool any = false, alone = request->instruct == NULL && request->relevance == NULL && request->single_head == L;
    *floats = kind.D;
    for (size_t l = request->first; l <= L; l++) {
        const qv_vit_gradient_tap *tap = &request->taps[l];
        bool wanted = tap->legrad != NULL;
        any = any || wanted;
        alone = alone && tap->class_gradient == NULL && tap->gradcam == NULL && tap->attention_gradient == NULL &&
                tap->hidden_gradient == NULL && tap->class_attention == NULL && tap->key_cosine == NULL;
        *floats += wanted ? block : 0;
    }
    return any && alone;
}

void qv_vit_legrad_keep(qv_vit_gradient_pass *pass, qv_call *call) {
    bool head = pools_by_head(pass->vit);
    const qv_block_kind kind = head ? qv_vit_head_kind(pass->vit) : pass->vit->kind;
    const qv_block_activations *a = head ? &pass->target.head : &pass->a;
    size_t inner = kind.H * kind.d;
    kept_part parts[MOST_PARTS];
    if (pass->keep == NULL) {
        return;
    }
    call->ops->copy(call, (qv_rows){pass->values, inner}, (qv_const_rows){a->kv.at + inner, a->kv.ld}, pass->vit->T, inner);
    for (size_t i = 0, count = list_parts(pass, parts); i < count; i++) {
        qv_take_floats(call, pass->keep, *parts[i].at, parts[i].count);
        pass->keep += parts[i].count;
    }
}

void qv_vit_legrad_find_row(qv_vit_gradient_pass *pass, qv_call *call, float *row) {
    size_t D = pass->vit->config.D;
    call->ops->give(call, row, pass->kept, D * sizeof *row);
    pass->kept += D;
}

void qv_vit_legrad_find(qv_vit_gradient_pass *pass, qv_call *call) {
    kept_part parts[MOST_PARTS];
    size_t count = list_parts(pass, parts);
    qv_vit_legrad_find_row(pass, call, *parts[0].at);
    for (size_t i = 1; i < count; i++) {
        *parts[i].at = (float *)qv_give_floats(call, *parts[i].at, pass->kept, parts[i].count);
        pass->kept += parts[i].count;
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
    call->ops->attention_backward(call, backward);
    qv_output_take(call, &out);
}

void qv_vit_legrad(const qv_vit_gradient_pass *pass, qv_call *call, size_t l, size_t n) {
    const qv_vit *vit = pass->vit;
    const qv_block_kind kind = qv_vit_gradient_kind(pass, l);
    const qv_vit_target *target = &pass->target;
    bool head = pools_by_head(vit);
    size_t D = vit->config.D, T = vit->T, inner = kind.H * kind.d;
    const qv_rows d_mean = {target->d_pooled, D};
    for (size_t first = 0; first < pass->items && !call->stopped; first += pass->turn) {
        size_t count = pass->items - first < pass->turn ? pass->items - first : pass->turn;
        qv_vit_score_gradients(pass, call, n, first, count, head ? 1.0f : 1.0f / (float)T);
        if (head) {
            qv_vit_head_backward(pass, call, 0, count);
        } else {
            call->ops->norm_backward(call, d_mean, qv_as_const(d_mean), (qv_const_rows){target->mean, 0}, &vit->post_norm,
                                     count);
            qv_block_backward_to_attention(call, &kind, &vit->blocks[l].block, &pass->a, &pass->g, d_mean.at, pass->once,
                                           count, T);
        }
        for (size_t i = 0; i < count; i++) {
            qv_attention_backward backward = {.forward = qv_vit_gradient_attention(pass, l, n, T),
                                              .d_out = {pass->g.d_attended + i * T * inner, inner}};
            backward = head ? qv_vit_head_attention(pass, i) : backward;
            size_t looks = backward.forward.H * (backward.forward.M + backward.forward.S);
            take_legrad(pass, call, &backward, pass->request->taps[l].legrad + (n * pass->items + first + i) * looks);
        }
    }
}
