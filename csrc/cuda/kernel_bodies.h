/* The kernels, once, for both compilers. A body is written in phases: QVK_THREADS(t) { ... } is what thread t of the block
 * does, and between two phases that hand data on lies QVK_SYNC. nvcc takes a phase as what this thread does; gcc as a loop
 * over the threads, so that the same arithmetic over the same indices runs and is tested on the host (where QVK_EMULATED,
 * for tests of the barriers, is given nvcc's side: tests/core/emulated_gpu.cpp). Therefore what a
 * thread keeps from one phase to the next is declared by QVK_PRIVATE, control flow around phases is the same for all
 * threads, and what threads exchange is in shared memory or goes through the sums and maxima below. */
#ifndef QV_CUDA_KERNEL_BODIES_H
#define QV_CUDA_KERNEL_BODIES_H

#include "cuda/kernels.h"

#include <math.h>

#if defined(__CUDACC__) || defined(QVK_EMULATED)

#define QVK_FUNCTION static __device__ __forceinline__
#define QVK_BODY(name, parameters) static __device__ __forceinline__ void name(const parameters *p)
#define QVK_PASS p
#define QVK_AT
#define QVK_HERE
#define QVK_BLOCK ((size_t)blockIdx.x)
#define QVK_WIDTH blockDim.x
#define QVK_THREADS(t) for (unsigned t = threadIdx.x, qvk_once = 1u; qvk_once != 0u; qvk_once = 0u)
#define QVK_EVERY_THREAD
#define QVK_SYNC() __syncthreads()
#define QVK_UNROLL _Pragma("unroll")
#define QVK_DYNAMIC qvk_dynamic()
#define QVK_PRIVATE(name) float name
#define QVK_PRIVATES(name, n) float name[n]
#define QVK_PRIVATE_GRID(name, n, m) float name[n][m]
#define QVK_MINE(name) name
#define QVK_OURS(name, i) name[i]
#define QVK_GRID(name, i, j) name[i][j]
#define QVK_BLOCK_SUM(name) qvk_block_reduce<false>(name)
#define QVK_BLOCK_MAX(name) qvk_block_reduce<true>(name)
#define QVK_GROUP_SUM(name, i) name[i] = qvk_group_reduce<false>(name[i])
#define QVK_GROUP_MAX(name, i) name[i] = qvk_group_reduce<true>(name[i])

static __device__ __forceinline__ float *qvk_dynamic() {
    extern __shared__ float memory[];
    return memory;
}

template <bool largest> static __device__ __forceinline__ float qvk_reduce(float a, float b) {
    return largest ? fmaxf(a, b) : a + b;
}

/* Over the 16 threads of a row of the tile: half a warp. */
template <bool largest> static __device__ __forceinline__ float qvk_group_reduce(float value) {
    for (unsigned step = QVK_SIDE / 2; step != 0; step /= 2) {
        value = qvk_reduce<largest>(value, __shfl_xor_sync(0xffffffffu, value, step));
    }
    return value;
}

/* Over the block, whose width is whole warps; every thread gets it. */
template <bool largest> static __device__ __forceinline__ float qvk_block_reduce(float value) {
    __shared__ float warps[32];
    for (unsigned step = 16; step != 0; step /= 2) {
        value = qvk_reduce<largest>(value, __shfl_xor_sync(0xffffffffu, value, step));
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        warps[threadIdx.x / 32] = value;
    }
    __syncthreads();
    value = warps[0];
    for (unsigned warp = 1; warp < blockDim.x / 32; warp++) {
        value = qvk_reduce<largest>(value, warps[warp]);
    }
    return value;
}

#else

#define QVK_FUNCTION static inline
#define QVK_UNUSED __attribute__((unused))
#define QVK_BODY(name, parameters) static inline void name(const parameters *p QVK_AT)
#define QVK_PASS p QVK_HERE
#define QVK_HERE , qvk_block, qvk_width, qvk_memory
#define QVK_AT , size_t qvk_block QVK_UNUSED, unsigned qvk_width QVK_UNUSED, float *qvk_memory QVK_UNUSED
#define QVK_BLOCK qvk_block
#define QVK_WIDTH qvk_width
#define QVK_THREADS(t) for (unsigned t = 0; t < qvk_width; t++)
#define QVK_EVERY_THREAD QVK_THREADS(t)
#define QVK_SYNC() (void)0
#define QVK_UNROLL
#define QVK_DYNAMIC qvk_memory
#define QVK_PRIVATE(name) float name[QVK_MAX_THREADS]
#define QVK_PRIVATES(name, n) float name[n][QVK_MAX_THREADS]
#define QVK_PRIVATE_GRID(name, n, m) float name[n][m][QVK_MAX_THREADS]
#define QVK_MINE(name) name[t]
#define QVK_OURS(name, i) name[i][t]
#define QVK_GRID(name, i, j) name[i][j][t]
#define QVK_BLOCK_SUM(name) qvk_sum(name, qvk_width)
#define QVK_BLOCK_MAX(name) qvk_max(name, qvk_width)
#define QVK_GROUP_SUM(name, i) qvk_group_sum(name[i], qvk_width)
#define QVK_GROUP_MAX(name, i) qvk_group_max(name[i], qvk_width)

static inline float qvk_sum(const float *items, unsigned n) {
    float sum = 0.0f;
    for (unsigned i = 0; i < n; i++) {
        sum += items[i];
    }
    return sum;
}

static inline float qvk_max(const float *items, unsigned n) {
    float top = -INFINITY;
    for (unsigned i = 0; i < n; i++) {
        top = fmaxf(top, items[i]);
    }
    return top;
}

static inline void qvk_group_sum(float *items, unsigned n) {
    for (unsigned first = 0; first < n; first += QVK_SIDE) {
        float sum = qvk_sum(items + first, QVK_SIDE);
        for (unsigned i = 0; i < QVK_SIDE; i++) {
            items[first + i] = sum;
        }
    }
}

static inline void qvk_group_max(float *items, unsigned n) {
    for (unsigned first = 0; first < n; first += QVK_SIDE) {
        float top = qvk_max(items + first, QVK_SIDE);
        for (unsigned i = 0; i < QVK_SIDE; i++) {
            items[first + i] = top;
        }
    }
}

#endif

typedef union {
    float value;
    uint32_t bits;
} qvk_word;

QVK_FUNCTION uint32_t qvk_bits(float x) {
    qvk_word word;
    word.value = x;
    return word.bits;
}

QVK_FUNCTION float qvk_float(uint32_t bits) {
    qvk_word word;
    word.bits = bits;
    return word.value;
}

QVK_FUNCTION uint16_t qvk_to_bfloat16(float x) {
    const uint32_t bits = qvk_bits(x);
    if (x != x) {
        return (uint16_t)(bits >> 16 | 0x40u);
    }
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/* ---- norms ---- */

/* What a norm makes of a row: n = ((x - mean) - missing) inverse; the mean of an RMS norm is 0. */
typedef struct {
    float mean, missing, inverse;
} qvk_statistics;

QVK_FUNCTION float qvk_centre(float x, const qvk_statistics *s) {
    return (x - s->mean) - s->missing;
}

/* The mean of what is left of x [D] behind `s`. */
QVK_FUNCTION float qvk_mean_behind(const float *x, const qvk_statistics *s, size_t D QVK_AT) {
    QVK_PRIVATE(part);
    QVK_THREADS(t) {
        float sum = 0.0f;
        for (size_t i = t; i < D; i += QVK_WIDTH) {
            sum += qvk_centre(x[i], s);
        }
        QVK_MINE(part) = sum;
    }
    return QVK_BLOCK_SUM(part) / (float)D;
}

QVK_FUNCTION qvk_statistics qvk_find_statistics(const float *x, size_t D, float eps, int rms QVK_AT) {
    qvk_statistics s = {0.0f, 0.0f, 0.0f};
    if (!rms) {
        s.mean = qvk_mean_behind(x, &s, D QVK_HERE);
        s.missing = qvk_mean_behind(x, &s, D QVK_HERE);
    }
    QVK_PRIVATE(part);
    QVK_THREADS(t) {
        float sum = 0.0f;
        for (size_t i = t; i < D; i += QVK_WIDTH) {
            sum += qvk_centre(x[i], &s) * qvk_centre(x[i], &s);
        }
        QVK_MINE(part) = sum;
    }
    const float variance = QVK_BLOCK_SUM(part) / (float)D;
    s.inverse = 1.0f / sqrtf(variance + eps) + 0.0f * variance; /* NaN where it overflows */
    return s;
}

QVK_BODY(qvk_norm_row, qvk_norm) {
    const float *x = p->x.at + QVK_BLOCK * p->x.ld;
    float *out = p->out.at + QVK_BLOCK * p->out.ld;
    const qvk_statistics s = qvk_find_statistics(x, p->D, p->eps, p->rms QVK_HERE);
    QVK_THREADS(t) {
        for (size_t i = t; i < p->D; i += QVK_WIDTH) {
            out[i] = qvk_centre(x[i], &s) * s.inverse * p->weight[i] + (p->bias != NULL ? p->bias[i] : 0.0f);
            if (p->rounded != NULL) {
                p->rounded[QVK_BLOCK * p->D + i] = qvk_to_bfloat16(out[i]);
            }
        }
    }
}

/* g = dy weight: dx = (g - mean(g) - n mean(g n)) inverse, the first mean in a layer norm alone */
QVK_BODY(qvk_norm_backward_row, qvk_norm_backward) {
    const float *x = p->x.at + QVK_BLOCK * p->x.ld, *dy = p->dy.at + QVK_BLOCK * p->dy.ld;
    float *dx = p->dx.at + QVK_BLOCK * p->dx.ld;
    const qvk_statistics s = qvk_find_statistics(x, p->D, p->eps, p->rms QVK_HERE);
    QVK_PRIVATE(gradients);
    QVK_PRIVATE(products);
    QVK_THREADS(t) {
        float g_sum = 0.0f, product_sum = 0.0f;
        for (size_t i = t; i < p->D; i += QVK_WIDTH) {
            const float g = dy[i] * p->weight[i];
            g_sum += g;
            product_sum += g * qvk_centre(x[i], &s);
        }
        QVK_MINE(gradients) = g_sum;
        QVK_MINE(products) = product_sum;
    }
    const float g_mean = QVK_BLOCK_SUM(gradients) / (float)p->D, mean = p->rms ? 0.0f : g_mean;
    const float slope = QVK_BLOCK_SUM(products) / (float)p->D * s.inverse * s.inverse;
    QVK_THREADS(t) {
        for (size_t i = t; i < p->D; i += QVK_WIDTH) {
            const float g = dy[i] * p->weight[i];
            dx[i] = ((g - mean) - qvk_centre(x[i], &s) * slope) * s.inverse;
        }
    }
}

/* The sum of squares of x [D]. */
QVK_FUNCTION float qvk_squares(const float *x, size_t D QVK_AT) {
    QVK_PRIVATE(part);
    QVK_THREADS(t) {
        float sum = 0.0f;
        for (size_t i = t; i < D; i += QVK_WIDTH) {
            sum += x[i] * x[i];
        }
        QVK_MINE(part) = sum;
    }
    return QVK_BLOCK_SUM(part);
}

QVK_BODY(qvk_unit_length_row, qvk_unit_length) {
    float *x = p->x + QVK_BLOCK * p->D;
    const float squares = qvk_squares(x, p->D QVK_HERE), length = sqrtf(squares);
    const float inverse = 1.0f / fmaxf(length, 1e-12f) + 0.0f * squares;
    QVK_THREADS(t) {
        for (size_t i = t; i < p->D; i += QVK_WIDTH) {
            x[i] *= inverse;
        }
    }
}

QVK_BODY(qvk_row_length, qvk_row_lengths) {
    const float length = sqrtf(qvk_squares(p->x.at + QVK_BLOCK * p->x.ld, p->D QVK_HERE));
    QVK_THREADS(t) {
        if (t == 0) {
            p->out[QVK_BLOCK] = length;
        }
    }
}

/* Groups of 16 threads take the heads of a row in turn. */
QVK_BODY(qvk_head_lengths_row, qvk_head_lengths) {
    const float *x = p->x.at + QVK_BLOCK * p->x.ld, *lengths = p->lengths + QVK_BLOCK / p->T * p->T;
    float *out = p->out.at + QVK_BLOCK * p->out.ld;
    QVK_PRIVATE(part);
    QVK_PRIVATES(squares, 1);
    QVK_THREADS(t) {
        float sum = 0.0f;
        for (size_t i = t; i < p->T; i += QVK_WIDTH) {
            sum += lengths[i];
        }
        QVK_MINE(part) = sum;
    }
    const float wanted = sqrtf(p->factor * QVK_BLOCK_SUM(part) / (float)p->T);
    for (size_t first = 0; first < p->H; first += QVK_WIDTH / QVK_SIDE) {
        QVK_THREADS(t) {
            const size_t h = first + t / QVK_SIDE;
            float sum = 0.0f;
            for (size_t i = t % QVK_SIDE; h < p->H && i < p->d; i += QVK_SIDE) {
                sum += x[h * p->d + i] * x[h * p->d + i];
            }
            QVK_OURS(squares, 0) = sum;
        }
        QVK_GROUP_SUM(squares, 0);
        QVK_THREADS(t) {
            const size_t h = first + t / QVK_SIDE;
            const float sum = QVK_OURS(squares, 0), scale = wanted / fmaxf(sqrtf(sum), 1e-12f) + 0.0f * sum;
            for (size_t i = t % QVK_SIDE; h < p->H && i < p->d; i += QVK_SIDE) {
                out[h * p->d + i] = x[h * p->d + i] * scale;
            }
        }
    }
}

/* ---- element by element ---- */

QVK_FUNCTION float qvk_activate(float x, int activation) {
    switch (activation) {
    case QVK_GELU:
        return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case QVK_GELU_TANH:
        return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case QVK_QUICK_GELU:
        return x / (1.0f + expf(-1.702f * x));
    case QVK_RELU:
        return x < 0.0f ? 0.0f : x;
    case QVK_SILU:
        return x / (1.0f + expf(-x));
    default:
        return x;
    }
}

/* x within -limit .. limit, beyond which a slope is 0 or 1 to the last bit, while its terms may overflow; NaN stays. */
QVK_FUNCTION float qvk_bound(float x, float limit) {
    return x < -limit ? -limit : x > limit ? limit : x;
}

QVK_FUNCTION float qvk_slope(float x, int activation) {
    switch (activation) {
    case QVK_GELU:
        return 0.5f * (1.0f + erff(x * 0.70710678118654752f)) + x * 0.39894228040143268f * expf(-0.5f * x * x);
    case QVK_GELU_TANH: {
        x = qvk_bound(x, 10.0f);
        const float y = tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x));
        return 0.5f * (1.0f + y) + 0.5f * x * (1.0f - y * y) * 0.79788456080286536f * (1.0f + 0.134145f * x * x);
    }
    case QVK_QUICK_GELU:
    case QVK_SILU: {
        const float z = qvk_bound(activation == QVK_SILU ? x : 1.702f * x, 102.0f), s = 1.0f / (1.0f + expf(-z));
        return s + z * s * (1.0f - s);
    }
    case QVK_RELU:
        return x <= 0.0f ? 0.0f : 1.0f; /* of a NaN 1, as in PyTorch */
    default:
        return 1.0f;
    }
}

QVK_FUNCTION size_t qvk_chunk_end(size_t first, size_t n) {
    return n - first < QVK_CHUNK ? n : first + QVK_CHUNK;
}

QVK_BODY(qvk_elements_chunk, qvk_elements) {
    const size_t row = QVK_BLOCK / p->chunks, first = QVK_BLOCK % p->chunks * QVK_CHUNK;
    const size_t end = qvk_chunk_end(first, p->D);
    QVK_THREADS(t) {
        for (size_t i = first + t; i < end; i += QVK_WIDTH) {
            const float x = p->x.at[row * p->x.ld + i] + (p->bias != NULL ? p->bias[i] : 0.0f);
            float y = p->slope ? qvk_slope(x, p->activation) : qvk_activate(x, p->activation);
            if (p->multiply.at != NULL) {
                y *= p->multiply.at[row * p->multiply.ld + i];
            }
            if (p->residual.at != NULL) {
                y += p->residual.at[row * p->residual.ld + i];
            }
            if (p->out.at != NULL) {
                p->out.at[row * p->out.ld + i] = y;
            }
            if (p->rounded != NULL) {
                p->rounded[row * p->D + i] = qvk_to_bfloat16(y);
            }
        }
    }
}

QVK_BODY(qvk_round_chunk, qvk_round) {
    const size_t row = QVK_BLOCK / p->chunks, first = QVK_BLOCK % p->chunks * QVK_CHUNK;
    const size_t end = qvk_chunk_end(first, p->D);
    QVK_THREADS(t) {
        for (size_t i = first + t; i < end; i += QVK_WIDTH) {
            p->out[row * p->D + i] = qvk_to_bfloat16(p->x.at[row * p->x.ld + i]);
        }
    }
}

QVK_BODY(qvk_patch, qvk_patches) {
    const size_t p_width = p->p, across = p->width / p_width, items = 3 * p_width * p_width;
    const size_t top = QVK_BLOCK / across * p_width, left = QVK_BLOCK % across * p_width;
    float *out = p->out + QVK_BLOCK * items;
    QVK_THREADS(t) {
        for (size_t i = t; i < items; i += QVK_WIDTH) {
            const size_t channel = i / (p_width * p_width), y = i / p_width % p_width, x = i % p_width;
            out[i] = p->image[(channel * p->height + top + y) * p->width + left + x];
        }
    }
}

QVK_BODY(qvk_rotate_row, qvk_rotate) {
    const size_t turning = p->T - p->first, half = p->d / 2, position = QVK_BLOCK % turning;
    const float *cosines = p->angles + position * p->d, *sines = cosines + half;
    float *row = p->x + (QVK_BLOCK / turning * p->T + p->first + position) * p->ld_x;
    QVK_THREADS(t) {
        for (size_t i = t; i < p->H * half; i += QVK_WIDTH) {
            const size_t j = i % half, at = i / half * p->d + j;
            const float a = row[at], b = row[at + half];
            const float sine = p->way * sines[j];
            row[at] = a * cosines[j] - b * sine;
            row[at + half] = b * cosines[j] + a * sine;
        }
    }
}

QVK_BODY(qvk_relative_bias_row, qvk_relative_bias) {
    const size_t h = QVK_BLOCK / p->T, query = p->first + QVK_BLOCK % p->T;
    const float *offsets = p->offsets + h * (2 * p->reach + 1);
    float *out = p->out + QVK_BLOCK * p->S;
    QVK_THREADS(t) {
        for (size_t s = t; s < p->S; s += QVK_WIDTH) {
            size_t distance = s > query ? s - query : query - s;
            distance = distance < p->reach ? distance : p->reach;
            out[s] = offsets[s > query ? p->reach + distance : p->reach - distance];
        }
    }
}

QVK_BODY(qvk_likelihood_row, qvk_likelihood) {
    float *row = p->logits + QVK_BLOCK * p->V;
    const size_t target = (size_t)p->targets[QVK_BLOCK];
    QVK_PRIVATE(tops);
    QVK_PRIVATE(sums);
    QVK_THREADS(t) {
        float largest = -INFINITY;
        for (size_t i = t; i < p->V; i += QVK_WIDTH) {
            largest = fmaxf(largest, row[i]);
        }
        QVK_MINE(tops) = largest;
    }
    const float top = QVK_BLOCK_MAX(tops);
    QVK_THREADS(t) {
        float part = 0.0f;
        for (size_t i = t; i < p->V; i += QVK_WIDTH) {
            part += expf(row[i] - top);
        }
        QVK_MINE(sums) = part;
    }
    const float sum = QVK_BLOCK_SUM(sums);
    QVK_THREADS(t) {
        for (size_t i = t; i < p->V; i += QVK_WIDTH) {
            const float score = row[i] - top;
            if (i == target) {
                p->log_probability[QVK_BLOCK] = score - logf(sum);
            }
            row[i] = (i == target ? 1.0f : 0.0f) - expf(score) / sum;
        }
    }
}

QVK_BODY(qvk_gradcam_chunk, qvk_gradcam) {
    const size_t count = p->S - p->first, row = QVK_BLOCK / p->chunks, first = QVK_BLOCK % p->chunks * QVK_CHUNK;
    const size_t end = qvk_chunk_end(first, count);
    QVK_THREADS(t) {
        for (size_t i = first + t; i < end; i += QVK_WIDTH) {
            float sum = 0.0f;
            for (size_t h = 0; h < p->H; h++) {
                const size_t place = (h * p->T + row) * p->S + p->first + i;
                const float g = p->d_probabilities[place];
                sum += p->probabilities[place] * (g < 0.0f ? 0.0f : g);
            }
            p->out[row * count + i] = sum / (float)p->H;
        }
    }
}

QVK_BODY(qvk_mean_rows_chunk, qvk_mean_rows) {
    const size_t first = QVK_BLOCK * QVK_CHUNK, end = qvk_chunk_end(first, p->D);
    QVK_THREADS(t) {
        for (size_t i = first + t; i < end; i += QVK_WIDTH) {
            float sum = 0.0f;
            for (size_t r = 0; r < p->R; r++) {
                sum += p->x[r * p->D + i];
            }
            p->out[i] = sum / (float)p->R;
        }
    }
}

#endif
