/* NEON, which every 64-bit ARM has: vectors of 4 floats, a tile of 6 rows and 16 columns. */
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

#define KERNELS qv_kernels_neon
#define NAME "openblas"
#define PACKS_LAYERS false
#define INT8_NAME "portable"
#define PAIR_ROWS ((size_t)4)
#include "ops/kernel_template.h"

#endif
