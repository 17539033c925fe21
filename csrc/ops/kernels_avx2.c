/* AVX2 with FMA: vectors of 8 floats, a tile of 6 rows and 16 columns; AMX's tiles of bfloat16 where they are without AVX-512. */
#include "base/cpu.h"
#include "ops/kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <math.h>
#include <string.h>

#define TARGET __attribute__((target("avx2,fma")))
#define INLINE static inline __attribute__((always_inline, target("avx2,fma")))
#define TARGET_BYTES __attribute__((target("avx2,fma,avxvnni")))
#define INLINE_BYTES static inline __attribute__((always_inline, target("avx2,fma,avxvnni")))
#define TARGET_BFLOAT16 TARGET
#define INLINE_BFLOAT16 INLINE

#define WIDTH ((size_t)8)
#define TILE_ROWS ((size_t)6)
#define TILE_VECTORS 2
#define STEPS_AT_ONCE ((size_t)8)
#define MULTIPLY_ADD "vfmadd231ps"
#define FEW_ROWS ((size_t)3)
#define MOST_PANELS 4
#define PANELS_BESIDE(rows) ((size_t)((rows) == 1 ? 4 : 2))
typedef __m256 vec;
typedef uint32_t words32 __attribute__((vector_size(32)));

INLINE vec zero(void) {
    return _mm256_setzero_ps();
}
INLINE vec set1(float x) {
    return _mm256_set1_ps(x);
}
INLINE vec load(const float *p) {
    return _mm256_loadu_ps(p);
}
INLINE void store(float *p, vec x) {
    _mm256_storeu_ps(p, x);
}
INLINE __m256i first_lanes(size_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE vec load_part(const float *p, size_t n) {
    return _mm256_maskload_ps(p, first_lanes(n));
}
INLINE void store_part(float *p, vec x, size_t n) {
    _mm256_maskstore_ps(p, first_lanes(n), x);
}
INLINE vec multiply_add(vec a, vec b, vec c) {
    return _mm256_fmadd_ps(a, b, c);
}
/* b where either is NaN */
INLINE vec largest(vec a, vec b) {
    return _mm256_max_ps(a, b);
}
INLINE vec power_bits(vec x, vec n) {
    __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), exponent));
}
INLINE vec clear_below(vec value, vec x, vec limit) {
    return _mm256_and_ps(value, _mm256_cmp_ps(x, limit, _CMP_NLT_UQ));
}
/* value, and NaN where x is, whose payload power_bits may have taken for an exponent */
INLINE vec keep_nan(vec value, vec x) {
    return _mm256_or_ps(value, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}
/* x < 0 ? a : b, by the sign bit */
INLINE vec negative_select(vec x, vec a, vec b) {
    return _mm256_blendv_ps(b, a, x);
}
INLINE vec keep_part(vec x, size_t n) {
    return _mm256_and_ps(x, _mm256_castsi256_ps(first_lanes(n)));
}
INLINE vec reciprocal(vec x) {
    return set1(1.0f) / x;
}
INLINE float reduce_sum(vec x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
INLINE float reduce_max(vec x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

/* out [8, 8] = in^T: pairs, fours, then halves of the registers change places */
INLINE void transpose_block(float *out, size_t ld_out, const float *in, size_t ld_in) {
    __m256 a[8], b[8];
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; i++) {
        a[i] = load(in + i * ld_in);
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
#pragma GCC unroll 2
    for (size_t i = 0; i < 8; i += 4) {
        a[i] = (__m256)_mm256_unpacklo_pd((__m256d)b[i], (__m256d)b[i + 2]);
        a[i + 1] = (__m256)_mm256_unpackhi_pd((__m256d)b[i], (__m256d)b[i + 2]);
        a[i + 2] = (__m256)_mm256_unpacklo_pd((__m256d)b[i + 1], (__m256d)b[i + 3]);
        a[i + 3] = (__m256)_mm256_unpackhi_pd((__m256d)b[i + 1], (__m256d)b[i + 3]);
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) {
        store(out + i * ld_out, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
        store(out + (i + 4) * ld_out, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    }
}

INLINE words32 set1_words(uint32_t x) {
    return (words32)_mm256_set1_epi32((int)x);
}
INLINE words32 load_words(const qv_bits32 *p) {
    return (words32)_mm256_loadu_si256((const __m256i *)(const void *)p);
}
INLINE words32 round_words(vec x) {
    return (words32)_mm256_cvtps_epi32(x);
}
INLINE vec from_words(words32 x) {
    return _mm256_cvtepi32_ps((__m256i)x);
}
INLINE words32 multiply_pairs(words32 x, words32 w) {
    return (words32)_mm256_madd_epi16((__m256i)x, (__m256i)w);
}
INLINE void store_quads(qv_bits32 *out, words32 q) {
    __m256i pairs = _mm256_or_si256((__m256i)q, _mm256_slli_epi32(_mm256_srli_si256((__m256i)q, 8), 16));
    __m128i both = _mm256_castsi256_si128(_mm256_permute4x64_epi64(pairs, 0x08));
    _mm_storeu_si128((__m128i *)(void *)out, both);
}

static bool has_bytes(void) {
    return qv_cpu().avx_vnni;
}

INLINE_BYTES words32 dot_bytes(words32 sum, words32 x, words32 w) {
    return (words32)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)w);
}
INLINE_BYTES void store_bytes(qv_bits32 *out, words32 q) {
    __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128((__m256i)q), _mm256_extracti128_si256((__m256i)q, 1));
    _mm_storel_epi64((__m128i *)(void *)out, _mm_packus_epi16(halves, halves));
}

static bool has_tiles(void) {
    return qv_cpu().amx;
}

#include "ops/kernel_pairs.h"

#define KERNELS qv_kernels_avx2
#define NAME "avx2"
#define PACKS_LAYERS true
#define INT8_NAME "avx2"
#define BYTES_NAME "avx_vnni"
#define BYTES_BELOW 0u
#define TILES_NAME "amx"
#include "ops/kernel_template.h"

#endif
