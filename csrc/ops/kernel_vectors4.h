/* Vectors of 4 floats by the compiler's own: all that kernel_template.h asks of a set but multiply_add. */

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define TARGET
#define INLINE static inline __attribute__((always_inline))
#define WIDTH ((size_t)4)

typedef float vec __attribute__((vector_size(16)));
typedef int32_t integers __attribute__((vector_size(16)));
typedef uint32_t words32 __attribute__((vector_size(16)));

INLINE vec zero(void) {
    return (vec){0, 0, 0, 0};
}
INLINE vec set1(float x) {
    return (vec){x, x, x, x};
}
INLINE vec load(const float *p) {
    vec x;
    memcpy(&x, p, sizeof x);
    return x;
}
INLINE void store(float *p, vec x) {
    memcpy(p, &x, sizeof x);
}
INLINE vec load_part(const float *p, size_t n) {
    vec x = zero();
    for (size_t i = 0; i < n; i++) {
        x[i] = p[i];
    }
    return x;
}
INLINE void store_part(float *p, vec x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        p[i] = x[i];
    }
}
INLINE vec choose(integers mask, vec a, vec b) {
    return (vec)((mask & (integers)a) | (~mask & (integers)b));
}
/* b where either is NaN */
INLINE vec largest(vec a, vec b) {
    return choose((integers)(a > b), a, b);
}
INLINE vec power_bits(vec x, vec n) {
    return (vec)((integers)x + ((integers)n << 23));
}
INLINE vec clear_below(vec value, vec x, vec limit) {
    return (vec)((integers)value & ~(integers)(x < limit));
}
/* value, and NaN where x is, whose payload power_bits may have taken for an exponent */
INLINE vec keep_nan(vec value, vec x) {
    return (vec)((integers)value | (integers)(x != x));
}
/* x < 0 ? a : b, by the sign bit */
INLINE vec negative_select(vec x, vec a, vec b) {
    return choose((integers)x >> 31, a, b);
}
INLINE vec keep_part(vec x, size_t n) {
    for (size_t i = n; i < WIDTH; i++) {
        x[i] = 0.0f;
    }
    return x;
}
INLINE vec reciprocal(vec x) {
    return set1(1.0f) / x;
}
INLINE float reduce_sum(vec x) {
    return (x[0] + x[2]) + (x[1] + x[3]);
}
INLINE float reduce_max(vec x) {
    float a = x[0] > x[2] ? x[0] : x[2], b = x[1] > x[3] ? x[1] : x[3];
    return a > b ? a : b;
}

/* out [4, 4] = in^T */
INLINE void transpose_block(float *out, size_t ld_out, const float *in, size_t ld_in) {
    for (size_t i = 0; i < WIDTH; i++) {
        for (size_t j = 0; j < WIDTH; j++) {
            memcpy(out + i * ld_out + j, in + j * ld_in + i, sizeof *out);
        }
    }
}

INLINE words32 set1_words(uint32_t x) {
    return (words32){x, x, x, x};
}
INLINE words32 load_words(const qv_bits32 *p) {
    words32 x;
    memcpy(&x, p, sizeof x);
    return x;
}
/* |x| below 2^22: the sum has no bits behind the point */
INLINE words32 round_words(vec x) {
    const vec shift = set1(0x1.8p23f);
    return (words32)(x + shift) - (words32)shift;
}
INLINE vec from_words(words32 x) {
    return __builtin_convertvector((integers)x, vec);
}
#if defined(__SSE2__)
INLINE words32 multiply_pairs(words32 x, words32 w) {
    return (words32)_mm_madd_epi16((__m128i)x, (__m128i)w);
}
#else
/* 255 * -128 fits in 16 bits. */
INLINE words32 multiply_pairs(words32 x, words32 w) {
    typedef int16_t halves __attribute__((vector_size(16)));
    const words32 products = (words32)((halves)x * (halves)w);
    return (words32)((integers)(products << 16) >> 16) + (words32)((integers)products >> 16);
}
#endif
INLINE void store_quads(qv_bits32 *out, words32 q) {
    out[0] = q[0] | q[2] << 16;
    out[1] = q[1] | q[3] << 16;
}
