/* The CPU's ops against plain loops in double, on whatever CPU this was compiled for: scripts/cross.sh runs it under
 * emulators. Prints what ran and the largest differences; the exit status says whether all were small enough. */
#include "base/blas.h"
#include "base/cpu.h"
#include "base/threads.h"
#include "check.h"
#include "ops/ops.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LANES ((size_t)3)

static uint64_t state = 1;

/* Uniform in [-1, 1), the same on every machine. */
static float next_float(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(state >> 11) / (double)(1ull << 52) - 1.0);
}

static float *random_floats(size_t count) {
    float *x = take(count, sizeof *x);
    for (size_t i = 0; i < count; i++) {
        x[i] = next_float();
    }
    return x;
}

static qv_call begin_call(size_t rows, size_t depth, size_t keys, size_t head_width) {
    size_t forward = qv_cpu_ops.scratch_bytes(LANES, rows, depth, keys, head_width);
    size_t backward = qv_cpu_ops.backward_scratch_bytes(LANES, keys, head_width, 1, rows);
    return (qv_call){
        .ops = &qv_cpu_ops, .lanes = LANES, .scratch = take(forward + backward, 1)};
}

/* ---- linear layers ---- */

static double activate(double x, qv_activation activation) {
    switch (activation) {
    case QV_GELU:
        return 0.5 * x * (1.0 + erf(x / sqrt(2.0)));
    case QV_GELU_TANH:
        return 0.5 * x * (1.0 + tanh(sqrt(2.0 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
    case QV_QUICK_GELU:
        return x / (1.0 + exp(-1.702 * x));
    case QV_RELU:
        return x > 0.0 ? x : 0.0;
    case QV_SILU:
        return x / (1.0 + exp(-x));
    case QV_IDENTITY:
        break;
    }
    return x;
}

static void check_linear(size_t R, size_t N, size_t K, qv_precision precision, qv_activation activation) {
    float *weight = random_floats(N * K), *bias = random_floats(N), *x = random_floats(R * K);
    float *multiply = random_floats(R * N), *residual = random_floats(R * N), *out = take(R * N, sizeof *out);
    double *expected = take(R * N, sizeof *expected);
    qv_tensor weights = {.name = "weight", .dtype = QV_FLOAT32, .dims = 2, .shape = {N, K}, .data = weight};
    qv_tensor biases = {.name = "bias", .dtype = QV_FLOAT32, .dims = 1, .shape = {N}, .data = bias};
    qv_linear_source source = {.weight = &weights, .bias = &biases};
    qv_linear layer;
    qv_error err;
    if (qv_linear_prepare(&qv_cpu_ops, NULL, &layer, &source, 1, precision, &err) != QV_OK) {
        puts(err.message);
        exit(2);
    }
    qv_epilogue epilogue = {.activation = activation, .multiply = {multiply, N}, .residual = {residual, N}};
    qv_call call = begin_call(R, K, 1, 1);
    qv_cpu_ops.linear(&call, (qv_rows){out, N}, (qv_const_rows){x, K}, &layer, 0, N, &epilogue, R);
    for (size_t r = 0; r < R; r++) {
        for (size_t n = 0; n < N; n++) {
            double sum = (double)bias[n];
            for (size_t k = 0; k < K; k++) {
                sum += (double)x[r * K + k] * (double)weight[n * K + k];
            }
            size_t i = r * N + n;
            expected[i] = activate(sum, activation) * (double)multiply[i] + (double)residual[i];
        }
    }
    char what[96];
    bool low = layer.precision == QV_PRECISION_BFLOAT16;
    snprintf(what, sizeof what, "linear %zu x %zu x %zu, activation %d%s", R, N, K, (int)activation,
             low ? ", bfloat16" : "");
    compare(what, out, expected, R * N, low ? 2e-2 : 4e-6);
    float *dx = take(R * K, sizeof *dx);
    double *gradient = take(R * K, sizeof *gradient);
    qv_cpu_ops.linear_backward(&call, (qv_rows){dx, K}, (qv_const_rows){multiply, N}, &layer, 0, N, false, R);
    for (size_t i = 0; i < R * K; i++) {
        gradient[i] = 0.0;
        for (size_t n = 0; n < N; n++) {
            gradient[i] += (double)multiply[i / K * N + n] * (double)weight[n * K + i % K];
        }
    }
    compare("  the gradient of its input", dx, gradient, R * K, low ? 2e-2 : 4e-6);
    qv_free(dx);
    qv_free(gradient);
    qv_linear_free(&qv_cpu_ops, &layer);
    void *memory[] = {weight, bias, x, multiply, residual, out, expected, call.scratch};
    for (size_t i = 0; i < sizeof memory / sizeof memory[0]; i++) {
        qv_free(memory[i]);
    }
}

/* items [count] of x by a scale and a zero point, as docs/MODEL.md has them; a weight's row has neither below zero. */
static void quantize(const float *x, size_t count, bool weight, int *items, float *scale, int *point) {
    float most = 0.0f, least = 0.0f;
    for (size_t i = 0; i < count; i++) {
        most = fmaxf(most, weight ? fabsf(x[i]) : x[i]);
        least = fmaxf(least, weight ? 0.0f : -x[i]);
    }
    *scale = weight ? most / 127.0f : most / 255.0f + least / 255.0f;
    *point = (int)rintf(least * (1.0f / *scale));
    for (size_t i = 0; i < count; i++) {
        const float item = weight ? x[i] / *scale : x[i] * (1.0f / *scale);
        const int q = *point + (int)rintf(item);
        items[i] = weight || q < 255 ? q : 255;
    }
}

static void check_linear_int8(size_t R, size_t N, size_t K) {
    float *weight = random_floats(N * K), *x = random_floats(R * K), *out = take(R * N, sizeof *out);
    double *expected = take(R * N, sizeof *expected);
    int *rows = take(R * K, sizeof *rows), *row = take(K, sizeof *row), *points = take(R, sizeof *points), none;
    float *scales = take(R, sizeof *scales), scale;
    qv_tensor weights = {.name = "weight", .dtype = QV_FLOAT32, .dims = 2, .shape = {N, K}, .data = weight};
    qv_linear_source source = {.weight = &weights};
    qv_linear layer;
    qv_error err;
    for (size_t i = 0; i < R * K; i++) { /* rows of one sign, of both, and of one number */
        const size_t r = i / K;
        x[i] = r % 4 == 1 ? fabsf(x[i]) : r % 4 == 2 ? -fabsf(x[i]) : r % 4 == 3 ? 0.7f : x[i];
    }
    if (qv_linear_prepare(&qv_cpu_ops, NULL, &layer, &source, 1, QV_PRECISION_INT8, &err) != QV_OK) {
        puts(err.message);
        exit(2);
    }
    const qv_epilogue epilogue = {.activation = QV_IDENTITY};
    qv_call call = begin_call(R, K, 1, 1);
    qv_cpu_ops.linear(&call, (qv_rows){out, N}, (qv_const_rows){x, K}, &layer, 0, N, &epilogue, R);
    for (size_t r = 0; r < R; r++) {
        quantize(x + r * K, K, false, rows + r * K, &scales[r], &points[r]);
    }
    for (size_t n = 0; n < N; n++) {
        quantize(weight + n * K, K, true, row, &scale, &none);
        for (size_t r = 0; r < R; r++) {
            long sum = 0;
            for (size_t k = 0; k < K; k++) {
                sum += (long)(rows[r * K + k] - points[r]) * row[k];
            }
            expected[r * N + n] = (double)sum * ((double)scales[r] * (double)scale);
        }
    }
    char what[96];
    snprintf(what, sizeof what, "linear %zu x %zu x %zu, int8", R, N, K);
    compare(what, out, expected, R * N, 1e-6);
    qv_linear_free(&qv_cpu_ops, &layer);
    void *memory[] = {weight, x, out, expected, rows, row, points, scales, call.scratch};
    for (size_t i = 0; i < sizeof memory / sizeof memory[0]; i++) {
        qv_free(memory[i]);
    }
}

/* ---- attention ---- */

typedef struct {
    size_t B, H, T, S, M, d;
    bool masked, causal;
} attention_case;

/* expected [B, H, T, M + S] and expected_out [B, T, H d] */
static void plain_attention(const qv_attention *a, double *expected, double *expected_out) {
    size_t D = a->H * a->d, keys = a->M + a->S;
    for (size_t row = 0; row < a->B * a->H * a->T; row++) {
        size_t b = row / (a->H * a->T), h = row / a->T % a->H, t = row % a->T;
        double *p = expected + row * keys, top = -INFINITY, sum = 0.0;
        for (size_t s = 0; s < keys; s++) {
            const float *k = s < a->M ? a->extra_k.at + (b * a->M + s) * D : a->k.at + (b * a->S + s - a->M) * D;
            double score = 0.0;
            for (size_t i = 0; i < a->d; i++) {
                score += (double)a->q.at[(b * a->T + t) * D + h * a->d + i] * (double)k[h * a->d + i];
            }
            score *= (double)a->scale;
            if (s >= a->M) {
                size_t key = s - a->M;
                score += a->bias.at != NULL ? (double)a->bias.at[(h * a->bias_rows + t) * a->bias.ld + key] : 0.0;
                bool masked = a->key_mask != NULL && a->key_mask[b * a->S + key] == 0;
                bool hidden = a->causal ? key > t || (masked && key != t) : masked;
                score = hidden ? -INFINITY : score;
            }
            p[s] = score;
            top = fmax(top, score);
        }
        for (size_t s = 0; s < keys; s++) {
            p[s] = exp(p[s] - top);
            sum += p[s];
        }
        for (size_t i = 0; i < a->d; i++) {
            expected_out[(b * a->T + t) * D + h * a->d + i] = 0.0;
        }
        for (size_t s = 0; s < keys; s++) {
            const float *v = s < a->M ? a->extra_v.at + (b * a->M + s) * D : a->v.at + (b * a->S + s - a->M) * D;
            p[s] /= sum;
            for (size_t i = 0; i < a->d; i++) {
                expected_out[(b * a->T + t) * D + h * a->d + i] += p[s] * (double)v[h * a->d + i];
            }
        }
    }
}

static void check_attention(const attention_case *c, qv_precision precision) {
    size_t D = c->H * c->d, keys = c->M + c->S, rows = c->B * c->H * c->T;
    float *q = random_floats(c->B * c->T * D), *k = random_floats(c->B * c->S * D), *v = random_floats(c->B * c->S * D);
    float *extra_k = random_floats(c->B * c->M * D), *extra_v = random_floats(c->B * c->M * D);
    float *bias = random_floats(c->H * c->T * c->S), *out = take(c->B * c->T * D, sizeof *out);
    float *probabilities = take(rows * keys, sizeof *probabilities);
    uint8_t *mask = take(c->B * c->S, 1);
    for (size_t i = 0; i < c->B * c->S; i++) {
        mask[i] = i % c->S == 0 || next_float() > 0.0f;
    }
    double *expected = take(rows * keys, sizeof *expected), *expected_out = take(c->B * c->T * D, sizeof *expected_out);
    qv_attention a = {.out = {out, D}, .q = {q, D}, .k = {k, D}, .v = {v, D}, .extra_k = {extra_k, D},
                      .extra_v = {extra_v, D}, .key_mask = c->masked ? mask : NULL,
                      .bias = {c->masked ? bias : NULL, c->S}, .bias_rows = c->T, .causal = c->causal, .scale = 0.3f,
                      .probabilities = probabilities, .row_count = c->T, .column_count = keys,
                      .precision = precision, .B = c->B, .H = c->H, .T = c->T, .S = c->S, .M = c->M, .d = c->d};
    qv_call call = begin_call(c->B * c->T, D, keys, c->d);
    qv_cpu_ops.attention(&call, &a, 1);
    plain_attention(&a, expected, expected_out);
    char what[96];
    bool low = qv_cpu_ops.computes_in(&qv_cpu_ops, precision) == QV_PRECISION_BFLOAT16;
    snprintf(what, sizeof what, "attention B %zu H %zu T %zu S %zu M %zu d %zu%s%s%s", c->B, c->H, c->T, c->S, c->M, c->d,
             c->masked ? ", masked" : "", c->causal ? ", causal" : "", low ? ", bfloat16" : "");
    compare(what, probabilities, expected, rows * keys, low ? 1e-2 : 3e-6); /* 4e-3 */
    compare("  its output", out, expected_out, c->B * c->T * D, low ? 2e-2 : 3e-6);
    void *memory[] = {q, k, v, extra_k, extra_v, bias, out, probabilities, mask, expected, expected_out, call.scratch};
    for (size_t i = 0; i < sizeof memory / sizeof memory[0]; i++) {
        qv_free(memory[i]);
    }
}

/* ---- norms and their gradients ---- */

static void plain_norm(const float *x, const qv_norm *norm, double *out) {
    size_t D = norm->D;
    double mean = 0.0, variance = 0.0;
    for (size_t i = 0; norm->kind == QV_LAYER_NORM && i < D; i++) {
        mean += (double)x[i] / (double)D;
    }
    for (size_t i = 0; i < D; i++) {
        variance += ((double)x[i] - mean) * ((double)x[i] - mean) / (double)D;
    }
    for (size_t i = 0; i < D; i++) {
        double n = ((double)x[i] - mean) / sqrt(variance + (double)norm->eps);
        out[i] = n * (double)norm->weight.data[i] + (double)norm->bias.data[i];
    }
}

static void check_norm(qv_norm_kind kind, size_t R, size_t D) {
    float *x = random_floats(R * D), *weight = random_floats(D), *bias = random_floats(D), *dy = random_floats(R * D);
    float *out = take(R * D, sizeof *out), *dx = take(R * D, sizeof *dx);
    double *expected = take(R * D, sizeof *expected), *gradient = take(R * D, sizeof *gradient);
    double *up = take(D, sizeof *up), *down = take(D, sizeof *down);
    qv_call call = begin_call(R, D, 1, 1);
    const qv_norm norm = {kind, D, {weight, NULL}, {bias, NULL}, 1e-5f};
    qv_const_rows in = {x, D};
    qv_cpu_ops.norm(&call, (qv_rows){out, D}, in, &norm, R);
    qv_cpu_ops.norm_backward(&call, (qv_rows){dx, D}, (qv_const_rows){dy, D}, in, &norm, R);
    for (size_t r = 0; r < R; r++) {
        float *row = x + r * D;
        plain_norm(row, &norm, expected + r * D);
        for (size_t i = 0; i < D; i++) {
            /* a step that is exact in float32: the difference is what the plain norm makes of it */
            float kept = row[i];
            row[i] = kept + 0x1p-10f;
            float above = row[i];
            plain_norm(row, &norm, up);
            row[i] = kept - 0x1p-10f;
            double step = (double)above - (double)row[i];
            plain_norm(row, &norm, down);
            row[i] = kept;
            gradient[r * D + i] = 0.0;
            for (size_t j = 0; j < D; j++) {
                gradient[r * D + i] += (double)dy[r * D + j] * (up[j] - down[j]) / step;
            }
        }
    }
    char what[96];
    snprintf(what, sizeof what, "%s norm %zu x %zu", kind == QV_LAYER_NORM ? "layer" : "RMS", R, D);
    compare(what, out, expected, R * D, 3e-6);
    compare("  its gradient, by finite differences", dx, gradient, R * D, 1e-4);
    void *memory[] = {x, weight, bias, dy, out, dx, expected, gradient, up, down, call.scratch};
    for (size_t i = 0; i < sizeof memory / sizeof memory[0]; i++) {
        qv_free(memory[i]);
    }
}

/* ---- the thread pool ---- */

static void count_task(void *context, size_t task, size_t lane) {
    (void)lane;
    ((float *)context)[task] += (float)task;
}

static void check_threads(void) {
    enum { TASKS = 1000 };
    float *counts = take(TASKS, sizeof *counts);
    double *expected = take(TASKS, sizeof *expected);
    memset(counts, 0, TASKS * sizeof *counts);
    for (size_t i = 0; i < 20; i++) {
        qv_parallel(LANES, TASKS, count_task, counts);
    }
    for (size_t i = 0; i < TASKS; i++) {
        expected[i] = 20.0 * (double)i;
    }
    compare("twenty parallel calls, each task once", counts, expected, TASKS, 0.0);
    qv_free(counts);
    qv_free(expected);
}

int main(void) {
    qv_error err;
    if (qv_cpu_check(&err) != QV_OK || qv_blas_start(&err) != QV_OK) {
        puts(err.message);
        return 2;
    }
    qv_set_thread_count(LANES);
    printf("kernels %s, bfloat16 %s, int8 %s, %s\n", qv_cpu_kernels(QV_PRECISION_FLOAT32),
           qv_cpu_kernels(QV_PRECISION_BFLOAT16), qv_cpu_kernels(QV_PRECISION_INT8), qv_blas_kernels());
    check_threads();
    static const size_t shapes[][3] = {{1, 1, 1},    {1, 70, 33},    {5, 17, 64},  {7, 130, 40},
                                       {25, 96, 96}, {13, 66, 1030}, {40, 130, 70}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (int activation = QV_IDENTITY; activation <= QV_SILU; activation++) {
            check_linear(shapes[i][0], shapes[i][1], shapes[i][2], QV_PRECISION_FLOAT32, (qv_activation)activation);
        }
        check_linear(shapes[i][0], shapes[i][1], shapes[i][2], QV_PRECISION_BFLOAT16, QV_IDENTITY);
        check_linear_int8(shapes[i][0], shapes[i][1], shapes[i][2]);
    }
    static const attention_case attentions[] = {
        {1, 1, 1, 1, 0, 1, false, false},   {2, 3, 7, 5, 0, 16, true, false},  {1, 2, 17, 65, 3, 32, false, false},
        {2, 2, 33, 33, 0, 24, false, true}, {1, 2, 1, 100, 7, 64, true, false}, {1, 1, 50, 70, 4, 65, true, true},
    };
    for (size_t i = 0; i < sizeof attentions / sizeof attentions[0]; i++) {
        check_attention(&attentions[i], QV_PRECISION_FLOAT32);
        check_attention(&attentions[i], QV_PRECISION_BFLOAT16);
    }
    check_norm(QV_LAYER_NORM, 1, 1);
    for (int kind = QV_LAYER_NORM; kind <= QV_RMS_NORM; kind++) {
        check_norm((qv_norm_kind)kind, 3, 17);
        check_norm((qv_norm_kind)kind, 5, 96);
    }
    return report_failures();
}
