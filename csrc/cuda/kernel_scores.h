/* How well a picture fits texts, and what maps are made of its gradients. */
#ifndef QV_CUDA_KERNEL_SCORES_H
#define QV_CUDA_KERNEL_SCORES_H

#include "cuda/kernel_bodies.h"

QVK_BODY(qvk_relevance_chunk, qvk_relevance) {
    const size_t pair = QVK_BLOCK / p->chunks, first = QVK_BLOCK % p->chunks * QVK_CHUNK;
    const size_t end = qvk_chunk_end(first, p->keys);
    const float *weights = p->weights != NULL ? p->weights + pair / p->H * p->T : NULL;
    QVK_THREADS(t) {
        for (size_t i = first + t; i < end; i += QVK_WIDTH) {
            float sum = 0.0f;
            for (size_t query = 0; query < p->T; query++) {
                const size_t place = (pair * p->T + query) * p->keys + i;
                const float g = p->d_probabilities[place], weight = weights != NULL ? weights[query] : 1.0f;
                sum += weight * (p->probabilities != NULL ? p->probabilities[place] : 1.0f) * (g < 0.0f ? 0.0f : g);
            }
            p->out[pair * p->keys + i] = sum;
        }
    }
}

/* a . b, to every thread */
QVK_FUNCTION float qvk_block_dot(const float *a, const float *b, size_t n QVK_AT) {
    QVK_PRIVATE(part);
    QVK_THREADS(t) {
        float sum = 0.0f;
        for (size_t i = t; i < n; i += QVK_WIDTH) {
            sum += a[i] * b[i];
        }
        QVK_MINE(part) = sum;
    }
    return QVK_BLOCK_SUM(part);
}

QVK_BODY(qvk_dots_row, qvk_dots) {
    const float *x = p->x.at + QVK_BLOCK * p->x.ld;
    for (size_t q = 0; q < p->Q; q++) {
        const float sum = qvk_block_dot(x, p->w.at + q * p->w.ld, p->D QVK_HERE);
        QVK_THREADS(t) {
            if (t == 0) {
                p->out[q * p->R + QVK_BLOCK] = sum;
            }
        }
    }
}

/* The largest of x [n]; *place = the first of them, which a float tells exactly up to 2^24. */
QVK_FUNCTION float qvk_block_largest(const float *x, size_t n, size_t *place QVK_AT) {
    QVK_PRIVATE(part);
    QVK_THREADS(t) {
        float top = -INFINITY;
        for (size_t i = t; i < n; i += QVK_WIDTH) {
            top = fmaxf(top, x[i]);
        }
        QVK_MINE(part) = top;
    }
    const float top = QVK_BLOCK_MAX(part);
    QVK_THREADS(t) {
        float first = -(float)n;
        for (size_t i = t; i < n; i += QVK_WIDTH) {
            first = x[i] == top ? fmaxf(first, -(float)i) : first;
        }
        QVK_MINE(part) = first;
    }
    *place = (size_t)-QVK_BLOCK_MAX(part);
    return top;
}

/* The sum of exp(scale x - top) over x [n] */
QVK_FUNCTION float qvk_block_exponentials(const float *x, size_t n, float scale, float top QVK_AT) {
    QVK_PRIVATE(part);
    QVK_THREADS(t) {
        float sum = 0.0f;
        for (size_t i = t; i < n; i += QVK_WIDTH) {
            sum += expf(scale * x[i] - top);
        }
        QVK_MINE(part) = sum;
    }
    return QVK_BLOCK_SUM(part);
}

QVK_FUNCTION void qvk_answer_score(const qvk_text_scores *p QVK_AT) {
    size_t best;
    const float top = qvk_block_largest(p->y, p->E, &best QVK_HERE);
    const float sum = qvk_block_exponentials(p->y, p->E, 1.0f, top QVK_HERE);
    const size_t answer = p->answer < p->E ? p->answer : best;
    QVK_THREADS(t) {
        for (size_t i = t; i < p->E; i += QVK_WIDTH) {
            p->d_y[i] = p->factor * ((i == answer ? 1.0f : 0.0f) - expf(p->y[i] - top) / sum);
        }
        if (t == 0) {
            p->scores[0] = (answer < p->E ? p->y[answer] : NAN) - top - logf(sum);
        }
    }
}

QVK_BODY(qvk_text_score, qvk_text_scores) {
    if (p->texts == NULL) {
        qvk_answer_score(QVK_PASS);
        return;
    }
    const float length = fmaxf(sqrtf(qvk_block_dot(p->y, p->y, p->E QVK_HERE)), 1e-12f);
    float *cosines = QVK_DYNAMIC;
    for (size_t q = 0; q < p->Q; q++) {
        const float cosine = qvk_block_dot(p->y, p->texts + q * p->E, p->E QVK_HERE) / length;
        QVK_THREADS(t) {
            if (t == 0) {
                cosines[q] = cosine;
                if (QVK_BLOCK == 0) {
                    p->scores[q] = cosine;
                }
            }
        }
    }
    QVK_SYNC();
    size_t best;
    const float top = p->scale * qvk_block_largest(cosines, p->Q, &best QVK_HERE);
    const float sum = qvk_block_exponentials(cosines, p->Q, p->scale, top QVK_HERE);
    const float *own = p->texts + (p->first + QVK_BLOCK) * p->E;
    float *d_y = p->d_y + QVK_BLOCK * p->E;
    float factor = p->scale * p->factor / length;
    if (p->softmax) {
        factor *= expf(p->scale * cosines[p->first + QVK_BLOCK] - top) / sum;
    }
    QVK_THREADS(t) {
        for (size_t i = t; i < p->E; i += QVK_WIDTH) {
            float d = own[i];
            for (size_t q = 0; p->softmax && q < p->Q; q++) {
                d -= expf(p->scale * cosines[q] - top) / sum * p->texts[q * p->E + i];
            }
            d_y[i] = d;
        }
    }
    QVK_SYNC();
    const float along = qvk_block_dot(p->y, d_y, p->E QVK_HERE) / (length * length);
    QVK_THREADS(t) {
        for (size_t i = t; i < p->E; i += QVK_WIDTH) {
            d_y[i] = factor * (d_y[i] - along * p->y[i]);
        }
    }
}

#endif
