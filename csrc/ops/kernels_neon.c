/* NEON, which every 64-bit ARM has: vectors of 4 floats, a tile of 6 rows and 16 columns, which leaves 8 of 32 registers for
 * the columns and the rows' items; products of bfloat16 matrices and dot products of four bytes where the CPU has them. */
#include "base/cpu.h"
#include "ops/kernels.h"

#if defined(__aarch64__)

#include <arm_neon.h>
#include <math.h>
#include <string.h>

#include "ops/kernel_vectors4.h"

#define TILE_ROWS ((size_t)6)
#define TILE_VECTORS 4

INLINE vec multiply_add(vec a, vec b, vec c) {
    return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}

/* In the assembler's words, since not every compiler has the intrinsics in functions for more than its own target. */
#if defined(__clang__)
#define BFLOAT16_FEATURE "bf16"
#define BYTES_FEATURE "dotprod"
#else
#define BFLOAT16_FEATURE "+bf16"
#define BYTES_FEATURE "arch=armv8.2-a+dotprod" /* of which the assembler wants to hear both */
#endif
#define TARGET_BFLOAT16 __attribute__((target(BFLOAT16_FEATURE)))
#define INLINE_BFLOAT16 static inline __attribute__((always_inline, target(BFLOAT16_FEATURE)))

typedef uint32_t pairs __attribute__((vector_size(16))); /* of bfloat16 */

static bool has_bfloat16(void) {
    return qv_cpu().neon_bf16;
}

INLINE_BFLOAT16 pairs set1_pair(uint32_t pair) {
    return (pairs){pair, pair, pair, pair};
}
INLINE_BFLOAT16 pairs load_pairs(const qv_bits32 *p) {
    pairs x;
    memcpy(&x, p, sizeof x);
    return x;
}
/* What has BFDOT has this. */
INLINE_BFLOAT16 vec add_matrix(vec sum, pairs x, pairs w) {
    __asm__("bfmmla %0.4s, %1.8h, %2.8h" : "+w"(sum) : "w"(x), "w"(w));
    return sum;
}
INLINE_BFLOAT16 vec join_low(vec a, vec b) {
    return (vec)vzip1q_u64((uint64x2_t)a, (uint64x2_t)b);
}
INLINE_BFLOAT16 vec join_high(vec a, vec b) {
    return (vec)vzip2q_u64((uint64x2_t)a, (uint64x2_t)b);
}
INLINE_BFLOAT16 pairs weave_low(pairs a, pairs b) {
    return (pairs)vzip1q_u32((uint32x4_t)a, (uint32x4_t)b);
}
INLINE_BFLOAT16 pairs weave_high(pairs a, pairs b) {
    return (pairs)vzip2q_u32((uint32x4_t)a, (uint32x4_t)b);
}

#define TARGET_BYTES __attribute__((target(BYTES_FEATURE)))
#define INLINE_BYTES static inline __attribute__((always_inline, target(BYTES_FEATURE)))

static bool has_bytes(void) {
    return qv_cpu().neon_dotprod;
}

/* Of signed bytes with signed ones, hence BYTES_BELOW: what has none but this is older, and more, than what has USDOT. */
INLINE_BYTES words32 dot_bytes(words32 sum, words32 x, words32 w) {
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(x), "w"(w));
    return sum;
}
INLINE_BYTES void store_bytes(qv_bits32 *out, words32 q) {
    const uint16x4_t halves = vmovn_u32((uint32x4_t)q);
    *out = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(halves, halves))), 0);
}

#include "ops/kernel_pairs.h"

#define KERNELS qv_kernels_neon
#define NAME "neon"
#define PACKS_LAYERS true
#define BFLOAT16_NAME "neon_bf16"
#define BFLOAT16_MATRICES
#define INT8_NAME "neon"
#define BYTES_NAME "neon_dotprod"
#define BYTES_BELOW 128u
#include "ops/kernel_template.h"

#endif
