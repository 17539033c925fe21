/* AVX-512: vectors of 16 floats, a tile of 6 rows and 64 columns; bfloat16 dot products, and AMX's tiles, where the CPU has
 * them. */
#include "base/cpu.h"
#include "ops/kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <math.h>
#include <string.h>

#define FEATURES "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"
#define TARGET __attribute__((target(FEATURES)))
#define INLINE static inline __attribute__((always_inline, target(FEATURES)))
#define TARGET_BYTES __attribute__((target(FEATURES ",avx512vnni")))
#define INLINE_BYTES static inline __attribute__((always_inline, target(FEATURES ",avx512vnni")))
#define TARGET_BFLOAT16 __attribute__((target(FEATURES ",avx512bf16")))
#define INLINE_BFLOAT16 static inline __attribute__((always_inline, target(FEATURES ",avx512bf16")))

#define WIDTH ((size_t)16)
#define TILE_ROWS ((size_t)6)
#define TILE_VECTORS 4
#define STEPS_AT_ONCE ((size_t)4)
#define PREFETCH_STEPS ((size_t)4)
#define MULTIPLY_ADD "vfmadd231ps"
typedef __m512 vec;
typedef uint32_t words32 __attribute__((vector_size(64)));
typedef __m512i pairs; /* of bfloat16 */

INLINE vec zero(void) {
    return _mm512_setzero_ps();
}
INLINE vec set1(float x) {
    return _mm512_set1_ps(x);
}
INLINE vec load(const float *p) {
    return _mm512_loadu_ps(p);
}
INLINE void store(float *p, vec x) {
    _mm512_storeu_ps(p, x);
}
INLINE __mmask16 first_lanes(size_t n) {
    return (__mmask16)((1u << n) - 1u);
}
INLINE vec load_part(const float *p, size_t n) {
    return _mm512_maskz_loadu_ps(first_lanes(n), p);
}
INLINE void store_part(float *p, vec x, size_t n) {
    _mm512_mask_storeu_ps(p, first_lanes(n), x);
}
INLINE vec multiply_add(vec a, vec b, vec c) {
    return _mm512_fmadd_ps(a, b, c);
}
/* b where either is NaN */
INLINE vec largest(vec a, vec b) {
    return _mm512_max_ps(a, b);
}
INLINE vec power_bits(vec x, vec n) {
    __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(n), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), exponent));
}
INLINE vec clear_below(vec value, vec x, vec limit) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), value);
}
/* value, and NaN where x is, whose payload power_bits may have taken for an exponent */
INLINE vec keep_nan(vec value, vec x) {
    return _mm512_mask_mov_ps(value, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
}
/* x < 0 ? a : b, by the sign bit */
INLINE vec negative_select(vec x, vec a, vec b) {
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x)), b, a);
}
INLINE vec keep_part(vec x, size_t n) {
    return _mm512_maskz_mov_ps(first_lanes(n), x);
}
/* 1 / x to about 1 ulp, for x in [2^-126, 2^126]: an estimate of 14 bits and one step of Newton's */
INLINE vec reciprocal(vec x) {
    vec y = _mm512_rcp14_ps(x);
    return _mm512_fmadd_ps(y, _mm512_fnmadd_ps(x, y, set1(1.0f)), y);
}
INLINE float reduce_sum(vec x) {
    return _mm512_reduce_add_ps(x);
}
INLINE float reduce_max(vec x) {
    return _mm512_reduce_max_ps(x);
}

/* out [16, 16] = in^T: pairs, fours, then quarters of the registers change places */
INLINE void transpose_block(float *out, size_t ld_out, const float *in, size_t ld_in) {
    __m512 a[16], b[16];
#pragma GCC unroll 16
    for (size_t i = 0; i < 16; i++) {
        a[i] = load(in + i * ld_in);
    }
#pragma GCC unroll 8
    for (size_t i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < 16; i += 4) {
        a[i] = (__m512)_mm512_unpacklo_pd((__m512d)b[i], (__m512d)b[i + 2]);
        a[i + 1] = (__m512)_mm512_unpackhi_pd((__m512d)b[i], (__m512d)b[i + 2]);
        a[i + 2] = (__m512)_mm512_unpacklo_pd((__m512d)b[i + 1], (__m512d)b[i + 3]);
        a[i + 3] = (__m512)_mm512_unpackhi_pd((__m512d)b[i + 1], (__m512d)b[i + 3]);
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) {
        b[i] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd);
        b[i + 8] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 12] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) {
        store(out + i * ld_out, _mm512_shuffle_f32x4(b[i], b[i + 8], 0x88));
        store(out + (i + 8) * ld_out, _mm512_shuffle_f32x4(b[i], b[i + 8], 0xdd));
        store(out + (i + 4) * ld_out, _mm512_shuffle_f32x4(b[i + 4], b[i + 12], 0x88));
        store(out + (i + 12) * ld_out, _mm512_shuffle_f32x4(b[i + 4], b[i + 12], 0xdd));
    }
}

/* 2^y to 3e-6, 0 below -126. y is the whole number below it, which scalef finds by itself, and the rest, which reduce gives. */
INLINE vec half_power(vec y) {
    const vec rest = _mm512_reduce_ps(y, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    vec p = set1(0.013427340f);
    p = multiply_add(p, rest, set1(0.052241345f));
    p = multiply_add(p, rest, set1(0.241280718f));
    p = multiply_add(p, rest, set1(0.693044814f));
    p = multiply_add(p, rest, set1(1.0f));
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(y, set1(-126.0f), _CMP_NLT_UQ), p, y);
}

static bool has_bfloat16(void) {
    return qv_cpu().avx512_bf16;
}

static bool has_tiles(void) {
    return qv_cpu().amx;
}

INLINE_BFLOAT16 pairs set1_pair(uint32_t pair) {
    return _mm512_set1_epi32((int)pair);
}
INLINE_BFLOAT16 pairs load_pairs(const qv_bits32 *p) {
    return _mm512_loadu_si512(p);
}
INLINE_BFLOAT16 vec dot_pairs(pairs x, pairs b, vec sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)b);
}

INLINE_BFLOAT16 void store_half(qv_bits16 *out, vec x, size_t n) {
    __m256i half = (__m256i)_mm512_cvtneps_pbh(x);
    if (n == WIDTH) {
        _mm256_storeu_si256((__m256i *)(void *)out, half);
    } else {
        _mm256_mask_storeu_epi16(out, first_lanes(n), half);
    }
}

/* The first n <= 16 lanes. */
INLINE __mmask16 lanes_of(size_t n) {
    return n < 16 ? first_lanes(n) : (__mmask16)0xffff;
}

TARGET_BFLOAT16 static void write_pairs(float *out, const float *x, size_t n) {
    qv_bits16 *halves = (qv_bits16 *)(void *)out;
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        __m512bh pair = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + i + 16), _mm512_loadu_ps(x + i));
        _mm512_storeu_si512(halves + i, (__m512i)pair);
    }
    for (; i < n; i += 16) {
        __mmask16 lanes = lanes_of(n - i);
        __m256bh half = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(lanes, x + i));
        _mm256_mask_storeu_epi16(halves + i, lanes, (__m256i)half);
    }
    if (n % 2 != 0) {
        halves[n] = 0;
    }
}

TARGET_BFLOAT16 static void read_pairs(float *out, const float *steps, size_t n) {
    const qv_bits16 *halves = (const qv_bits16 *)(const void *)steps;
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 lanes = lanes_of(n - i);
        __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, halves + i));
        _mm512_mask_storeu_epi32(out + i, lanes, _mm512_slli_epi32(wide, 16));
    }
}

TARGET_BFLOAT16 static void join_pairs(float *out, const float *const *rows, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 lanes = lanes_of(n - i);
        __m256bh low = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(lanes, rows[0] + i));
        __m256bh high = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(lanes, rows[1] + i));
        __m512i both = _mm512_or_si512(_mm512_cvtepu16_epi32((__m256i)low),
                                       _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)high), 16));
        _mm512_mask_storeu_epi32(out + i, lanes, both);
    }
}

INLINE words32 set1_words(uint32_t x) {
    return (words32)_mm512_set1_epi32((int)x);
}
INLINE words32 load_words(const qv_bits32 *p) {
    return (words32)_mm512_loadu_si512(p);
}
INLINE words32 round_words(vec x) {
    return (words32)_mm512_cvtps_epi32(x);
}
INLINE vec from_words(words32 x) {
    return _mm512_cvtepi32_ps((__m512i)x);
}
INLINE words32 multiply_pairs(words32 x, words32 w) {
    return (words32)_mm512_madd_epi16((__m512i)x, (__m512i)w);
}
INLINE void store_quads(qv_bits32 *out, words32 q) {
    __m512i both = _mm512_or_si512((__m512i)q, _mm512_slli_epi32(_mm512_bsrli_epi128((__m512i)q, 8), 16));
    __m256i together = _mm512_castsi512_si256(_mm512_maskz_compress_epi64(0x55, both));
    _mm256_storeu_si256((__m256i *)(void *)out, together);
}

static bool has_bytes(void) {
    return qv_cpu().avx512_vnni;
}

INLINE_BYTES words32 dot_bytes(words32 sum, words32 x, words32 w) {
    return (words32)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
}
INLINE_BYTES void store_bytes(qv_bits32 *out, words32 q) {
    _mm_storeu_si128((__m128i *)(void *)out, _mm512_cvtepi32_epi8((__m512i)q));
}

#define HALF_POWER half_power
#define KERNELS qv_kernels_avx512
#define NAME "avx512"
#define PACKS_LAYERS true
#define INT8_NAME "avx512"
#define BYTES_NAME "avx512_vnni"
#define BYTES_BELOW 0u
#define BFLOAT16_NAME "avx512_bf16"
#define TILES_NAME "amx"
#include "ops/kernel_template.h"

#endif
