/* Any CPU, by the compiler's vectors of 4 floats (SSE2 and the like): a tile of 6 rows and 8 columns. */
#include "ops/kernels.h"

#include <math.h>
#include <string.h>

#include "ops/kernel_vectors4.h"

#define TILE_ROWS ((size_t)6)
#define TILE_VECTORS 2

INLINE vec multiply_add(vec a, vec b, vec c) {
    return a * b + c;
}

#define KERNELS qv_kernels_generic
#define NAME "openblas"
#define PACKS_LAYERS false
#define INT8_NAME "portable"
#include "ops/kernel_template.h"
