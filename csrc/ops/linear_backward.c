/* The gradient of a linear layer's input. */
#include "ops/cpu_ops.h"

#include "base/blas.h"
#include "base/threads.h"

typedef struct {
    float *dx;
    size_t ld_dx;
    const float *dy;
    size_t ld_dy;
    const float *weight; /* [N, K] */
    bool accumulate;
    size_t R, N, K, slab;
} backward_work;

/* y = x W^T, so dx = dy W: here for the columns of one slab */
static void multiply_slab(void *context, size_t task, size_t lane) {
    (void)lane;
    const backward_work *w = context;
    size_t first = task * w->slab;
    size_t count = first + w->slab <= w->K ? w->slab : w->K - first;
    qv_sgemm(w->dx + first, w->ld_dx, w->dy, w->ld_dy, false, w->weight + first, w->K, false, 1.0f,
             w->accumulate ? 1.0f : 0.0f, w->R, count, w->N);
}

void qv_cpu_linear_backward(qv_call *call, float *dx, size_t ld_dx, const float *dy, size_t ld_dy, const float *weight,
                            bool accumulate, size_t R, size_t N, size_t K) {
    size_t slab = (K + call->lanes - 1) / call->lanes;
    slab = (slab + 15) / 16 * 16;
    backward_work work = {dx, ld_dx, dy, ld_dy, weight, accumulate, R, N, K, slab};
    qv_parallel(call->lanes, (K + slab - 1) / slab, multiply_slab, &work);
}
