/* How well a picture fits texts, or an answer fits it, and what that says of where it came from. */
#include "ops/cpu_ops.h"

#include "base/blas.h"

#include <math.h>

static double dot(const float *a, const float *b, size_t n) {
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        sum += (double)a[i] * b[i];
    }
    return sum;
}

/* d_y [E] = onehot(answer) - softmax(y): of the answer's log-probability, which goes into scores */
static void score_answer(const qv_text_scores *w) {
    size_t best = 0;
    for (size_t i = 1; i < w->E; i++) {
        best = w->y[i] > w->y[best] ? i : best;
    }
    double top = w->y[best], sum = 0.0;
    for (size_t i = 0; i < w->E; i++) {
        sum += exp(w->y[i] - top);
    }
    size_t answer = w->answer < w->E ? w->answer : best;
    for (size_t i = 0; i < w->E; i++) {
        double probability = exp(w->y[i] - top) / sum;
        w->d_y[i] = (float)(w->factor * ((i == answer ? 1.0 : 0.0) - probability));
    }
    w->scores[0] = (float)(w->y[answer] - top - log(sum));
}

/* d_y [E], of text q: with e = y / |y| and d_e the gradient of the score to e, (d_e - e (e d_e)) / |y|; d_e is `scale` u_q,
 * or of a share s_q that times (u_q - sum_j s_j u_j). */
static void score_text(const qv_text_scores *w, float *d_y, size_t q, double length, double top, double sum) {
    const float *u = w->texts + q * w->E;
    double factor = w->scale * (double)w->factor / length;
    if (w->softmax) {
        factor *= exp(w->scale * w->scores[q] - top) / sum;
    }
    for (size_t i = 0; i < w->E; i++) {
        d_y[i] = u[i];
    }
    for (size_t j = 0; w->softmax && j < w->Q; j++) {
        float share = (float)(exp(w->scale * w->scores[j] - top) / sum);
        for (size_t i = 0; i < w->E; i++) {
            d_y[i] -= share * w->texts[j * w->E + i];
        }
    }
    double along = dot(w->y, d_y, w->E) / (length * length);
    for (size_t i = 0; i < w->E; i++) {
        d_y[i] = (float)(factor * (d_y[i] - along * w->y[i]));
    }
}

void qv_cpu_text_scores(qv_call *call, const qv_text_scores *w) {
    if (qv_call_stopped(call)) {
        return;
    }
    if (w->texts == NULL) {
        score_answer(w);
        return;
    }
    double norm = sqrt(dot(w->y, w->y, w->E)), length = norm > 1e-12 ? norm : 1e-12, top = -INFINITY, sum = 0.0;
    for (size_t q = 0; q < w->Q; q++) {
        w->scores[q] = (float)(dot(w->y, w->texts + q * w->E, w->E) / length);
        top = fmax(top, w->scale * w->scores[q]);
    }
    for (size_t q = 0; q < w->Q; q++) {
        sum += exp(w->scale * w->scores[q] - top);
    }
    for (size_t i = 0; i < w->count; i++) {
        score_text(w, w->d_y + i * w->E, w->first + i, length, top, sum);
    }
}

void qv_cpu_dots(qv_call *call, float *out, qv_const_rows x, qv_const_rows w, size_t Q, size_t R, size_t D) {
    if (!qv_call_stopped(call) && Q != 0 && R != 0) {
        qv_sgemm(out, R, w.at, w.ld, false, x.at, x.ld, true, 1.0f, 0.0f, Q, R, D);
    }
}
