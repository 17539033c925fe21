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
INLINE vec add_product(vec sum, vec a, vec b) {
    return multiply_add(a, b, sum);
}

#define KERNELS qv_kernels_generic
#define NAME "openblas"
#define PACKS_LAYERS false
#define INT8_NAME "portable"
#define PAIR_ROWS ((size_t)4)
#include "ops/kernel_template.h"
