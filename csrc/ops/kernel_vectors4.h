/* Vectors of 4 floats by the compiler's own: all that kernel_template.h asks of a set but multiply_add. */

#define TARGET
#define INLINE static inline __attribute__((always_inline))
#define WIDTH ((size_t)4)

typedef float vec __attribute__((vector_size(16)));
typedef int32_t integers __attribute__((vector_size(16)));

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
