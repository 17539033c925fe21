/* Tensor cores, once for both compilers: D = A B + C of a warp, A [16, k], B [k, 8], C and D [16, 8] in float32, with k = 16
 * in bfloat16 and k = 8 in TF32. Lane l of the warp, with g = l / 4 and i = l % 4, holds (PTX ISA, mma.m16n8k16 and
 * mma.m16n8k8), in words of 32 bits:
 *
 *   bfloat16, the lower column or row in the lower half     TF32
 *   A  [g, 2i..], [g + 8, 2i..],                            [g, i], [g + 8, i], [g, i + 4], [g + 8, i + 4]
 *      [g, 2i + 8..], [g + 8, 2i + 8..]
 *   B  [2i.., g], [2i + 8.., g]                             [i, g], [i + 4, g]
 *   C  [g, 2i], [g, 2i + 1], [g + 8, 2i], [g + 8, 2i + 1]   the same
 *
 * A kernel says QVK_MMA between two phases. nvcc makes it the instruction; on the host the warp's lanes are multiplied
 * together. Words that a thread keeps are declared by QVK_PRIVATE_WORDS. */
#ifndef QV_CUDA_KERNEL_MMA_H
#define QV_CUDA_KERNEL_MMA_H

#include "cuda/kernel_bodies.h"

/* Read and written at once. */
typedef struct __attribute__((aligned(8))) {
    uint32_t at[2];
} qvk_two_words;

typedef struct __attribute__((aligned(16))) {
    uint32_t at[4];
} qvk_four_words;

typedef struct __attribute__((aligned(16))) {
    float at[4];
} qvk_four;

/* x in TF32: 10 bits of fraction, nearest, ties away from zero. */
QVK_FUNCTION uint32_t qvk_to_tf32(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
#else
    const uint32_t bits = qvk_bits(x);
    return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
#endif
}

/* Two in bfloat16, nearest and ties to even, the first in the lower half. */
QVK_FUNCTION uint32_t qvk_to_bfloat16s(float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    uint32_t bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
    return bits;
#else
    return (uint32_t)qvk_to_bfloat16(first) | (uint32_t)qvk_to_bfloat16(second) << 16;
#endif
}

/* 2^x; a GPU's is off by 2 units in the last place, and 0 where it would be denormal. */
QVK_FUNCTION float qvk_power_of_two(float x) {
#if defined(__CUDA_ARCH__)
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
#else
    return exp2f(x);
#endif
}

/* x y as a number of its own: a difference behind it is not joined with it, of which a large one would not come out as 0. */
QVK_FUNCTION float qvk_product_alone(float x, float y) {
#if defined(__CUDA_ARCH__)
    return __fmul_rn(x, y);
#else
    return x * y;
#endif
}

#if defined(__CUDACC__) || defined(QVK_EMULATED)

#define QVK_PRIVATE_WORDS(name, n, m) uint32_t name[n][m]
#define QVK_IN_TURN _Pragma("unroll 1")
#define QVK_WORD(name, i, j) name[i][j]
/* What follows is done by warps of which the condition holds; threads see no barrier there. */
#define QVK_WARPS(condition) if (condition)
#define QVK_WARP (threadIdx.x / 32)
#define QVK_MMA(half, c, a, b) qvk_mma(half, c, a, b)
/* Over the four threads that hold a row of C. */
#define QVK_QUAD_SUM(name, i) name[i] = qvk_quad_reduce<false>(name[i])
#define QVK_QUAD_MAX(name, i) name[i] = qvk_quad_reduce<true>(name[i])

template <bool largest> static __device__ __forceinline__ float qvk_quad_reduce(float value) {
    value = qvk_reduce<largest>(value, __shfl_xor_sync(0xffffffffu, value, 2));
    return qvk_reduce<largest>(value, __shfl_xor_sync(0xffffffffu, value, 1));
}

#else

#define QVK_PRIVATE_WORDS(name, n, m) uint32_t name[n][m][QVK_MAX_THREADS]
#define QVK_IN_TURN
#define QVK_WORD(name, i, j) name[i][j][t]
#define QVK_WARPS(condition)
#define QVK_MMA(half, c, a, b) qvk_mma(half, c, a, b, qvk_width)
#define QVK_QUAD_SUM(name, i) qvk_quad_sum(name[i], qvk_width)
#define QVK_QUAD_MAX(name, i) qvk_quad_max(name[i], qvk_width)

static inline void qvk_quad_sum(float *items, unsigned n) {
    for (unsigned first = 0; first < n; first += 4) {
        float sum = qvk_sum(items + first, 4);
        for (unsigned i = 0; i < 4; i++) {
            items[first + i] = sum;
        }
    }
}

static inline void qvk_quad_max(float *items, unsigned n) {
    for (unsigned first = 0; first < n; first += 4) {
        float top = qvk_max(items + first, 4);
        for (unsigned i = 0; i < 4; i++) {
            items[first + i] = top;
        }
    }
}

#endif

#if defined(__CUDACC__)

/* Before compute capability 8.0 nobody launches the kernels that come here. */
static __device__ __forceinline__ void qvk_mma(const bool half, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    if (half) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
#else
    (void)half;
    c[0] = __uint_as_float(a[0] + a[1] + a[2] + a[3] + b[0] + b[1]);
    __trap();
#endif
}

#else

/* Which word of which lane holds an element, and which half of the word. */
typedef struct {
    unsigned lane, word, upper;
} qvk_place_of;

static inline qvk_place_of qvk_place_in_a(bool half, unsigned row, unsigned k) {
    const qvk_place_of place = {row % 8 * 4 + (half ? k % 8 / 2 : k % 4), row / 8 + 2 * (half ? k / 8 : k / 4), half ? k % 2 : 0};
    return place;
}

static inline qvk_place_of qvk_place_in_b(bool half, unsigned k, unsigned column) {
    const qvk_place_of place = {column * 4 + (half ? k % 8 / 2 : k % 4), half ? k / 8 : k / 4, half ? k % 2 : 0};
    return place;
}

/* The factor that a word holds; of TF32 the lower 13 bits do not count. */
static inline float qvk_factor(bool half, uint32_t word, unsigned upper) {
    return qvk_float(!half ? word & 0xffffe000u : upper != 0 ? word & 0xffff0000u : word << 16);
}

#endif

#if !defined(__CUDACC__) && !defined(QVK_EMULATED)

static inline void qvk_mma(bool half, float (*c)[QVK_MAX_THREADS], uint32_t (*a)[QVK_MAX_THREADS],
                           uint32_t (*b)[QVK_MAX_THREADS], unsigned width) {
    const unsigned depth = half ? 16 : 8;
    for (unsigned first = 0; first < width; first += 32) {
        float factors[16][8];
        for (unsigned k = 0; k < depth; k++) {
            for (unsigned column = 0; column < 8; column++) {
                const qvk_place_of at = qvk_place_in_b(half, k, column);
                factors[k][column] = qvk_factor(half, b[at.word][first + at.lane], at.upper);
            }
        }
        for (unsigned row = 0; row < 16; row++) {
            float sums[8];
            for (unsigned column = 0; column < 8; column++) {
                sums[column] = c[row / 8 * 2 + column % 2][first + row % 8 * 4 + column / 2];
            }
            for (unsigned k = 0; k < depth; k++) {
                const qvk_place_of at = qvk_place_in_a(half, row, k);
                const float factor = qvk_factor(half, a[at.word][first + at.lane], at.upper);
                for (unsigned column = 0; column < 8; column++) {
                    sums[column] += factor * factors[k][column];
                }
            }
            for (unsigned column = 0; column < 8; column++) {
                c[row / 8 * 2 + column % 2][first + row % 8 * 4 + column / 2] = sums[column];
            }
        }
    }
}

#endif

#endif
