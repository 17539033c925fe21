/* What makes maps of probabilities and their gradients. */
#include "ops/cpu_ops.h"

#include <string.h>

typedef struct {
    float *out;
    const float *probabilities, *gradients;
    size_t first, H, T, S;
} gradcam_work;

static void gradcam_row(void *context, size_t t, size_t lane) {
    (void)lane;
    const gradcam_work *w = context;
    size_t count = w->S - w->first;
    float *out = w->out + t * count;
    memset(out, 0, count * sizeof *out);
    for (size_t h = 0; h < w->H; h++) {
        size_t row = (h * w->T + t) * w->S + w->first;
        const float *a = w->probabilities + row, *g = w->gradients + row;
        for (size_t s = 0; s < count; s++) {
            out[s] += a[s] * (g[s] < 0.0f ? 0.0f : g[s]);
        }
    }
    for (size_t s = 0; s < count; s++) {
        out[s] /= (float)w->H;
    }
}

void qv_cpu_gradcam(qv_call *call, float *out, const float *probabilities, const float *d_probabilities, size_t first,
                    size_t H, size_t T, size_t S) {
    gradcam_work work = {out, probabilities, d_probabilities, first, H, T, S};
    qv_cpu_run(call, call->lanes, T, gradcam_row, &work);
}

void qv_cpu_mean_rows(qv_call *call, float *out, const float *x, size_t R, size_t D) {
    (void)call;
    memset(out, 0, D * sizeof *out);
    for (size_t r = 0; r < R; r++) {
        for (size_t i = 0; i < D; i++) {
            out[i] += x[r * D + i];
        }
    }
    for (size_t i = 0; i < D; i++) {
        out[i] /= (float)R;
    }
}
