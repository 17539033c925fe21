/* Activations on their own, their slopes, and the product of probabilities with their gradients. */
#include "ops/cpu_ops.h"

#include <math.h>
#include <string.h>

#define CHUNK ((size_t)4096)

typedef struct {
    float *out;
    const float *dy, *x;
    qv_activation activation;
    size_t n;
} elements_work;

static void activate_chunk(void *context, size_t task, size_t lane) {
    (void)lane;
    const elements_work *w = context;
    size_t first = task * CHUNK, count = w->n - first < CHUNK ? w->n - first : CHUNK;
    memcpy(w->out + first, w->x + first, count * sizeof *w->out);
    qv_activate(w->out + first, w->activation, count);
}

void qv_cpu_activation(qv_call *call, float *out, const float *x, qv_activation activation, size_t n) {
    elements_work work = {out, NULL, x, activation, n};
    qv_cpu_run(call, call->lanes, (n + CHUNK - 1) / CHUNK, activate_chunk, &work);
}

/* d/dx x Phi(x) = Phi(x) + x phi(x) */
static float gelu_slope(float x) {
    float cumulative = 0.5f * (1.0f + erff(x * 0.70710678118654752f));
    return cumulative + x * 0.39894228040143268f * expf(-0.5f * x * x);
}

/* x within -limit .. limit, beyond which a slope is 0 or 1 to the last bit, while its terms may overflow; NaN stays. */
static float bound(float x, float limit) {
    return x < -limit ? -limit : x > limit ? limit : x;
}

/* x / 2 (1 + tanh(u)), u = c (x + a x^3): (1 + tanh(u)) / 2 + x / 2 (1 - tanh(u)^2) c (1 + 3 a x^2) */
static float gelu_tanh_slope(float x) {
    x = bound(x, 10.0f);
    float t = tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x));
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.79788456080286536f * (1.0f + 0.134145f * x * x);
}

/* x s, s = sigmoid(1.702 x): s + 1.702 x s (1 - s) */
static float quick_gelu_slope(float x) {
    x = bound(x, 60.0f);
    float s = 1.0f / (1.0f + expf(-1.702f * x));
    return s + 1.702f * x * s * (1.0f - s);
}

/* x s, s = sigmoid(x): s + x s (1 - s), but for what overflows */
static float silu_slope(float x) {
    float s = 1.0f / (1.0f + expf(-x));
    return s + (s > 0.0f && s < 1.0f ? x * s * (1.0f - s) : 0.0f);
}

static void backward_chunk(void *context, size_t task, size_t lane) {
    (void)lane;
    const elements_work *w = context;
    size_t first = task * CHUNK, end = w->n - first < CHUNK ? w->n : first + CHUNK;
    for (size_t i = first; i < end; i++) {
        float x = w->x[i], slope = 1.0f;
        switch (w->activation) {
        case QV_IDENTITY:
            break;
        case QV_GELU:
            slope = gelu_slope(x);
            break;
        case QV_GELU_TANH:
            slope = gelu_tanh_slope(x);
            break;
        case QV_QUICK_GELU:
            slope = quick_gelu_slope(x);
            break;
        case QV_SILU:
            slope = silu_slope(x);
            break;
        case QV_RELU:
            slope = x <= 0.0f ? 0.0f : 1.0f; /* of a NaN 1, as in PyTorch */
            break;
        }
        w->out[i] = w->dy[i] * slope;
    }
}

void qv_cpu_activation_backward(qv_call *call, float *dx, const float *dy, const float *x, qv_activation activation,
                                size_t n) {
    elements_work work = {dx, dy, x, activation, n};
    qv_cpu_run(call, call->lanes, (n + CHUNK - 1) / CHUNK, backward_chunk, &work);
}

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
