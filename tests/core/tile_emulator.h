/* AMX's instructions on a CPU that has none of them: tile_emulator.c, linked into a program or preloaded into a process. */
#ifndef TESTS_CORE_TILE_EMULATOR_H
#define TESTS_CORE_TILE_EMULATOR_H

#include <stdbool.h>
#include <stddef.h>

#define PUBLIC __attribute__((visibility("default")))

/* What csrc/base/cpu.c asks: there are tiles. */
PUBLIC bool qv_emulates_tiles(void);

/* Instructions that this thread carried out. */
typedef struct {
    size_t configurations, releases, loads, stores, clears, bfloat16_products, int8_products;
} tile_counts;
PUBLIC tile_counts count_tiles(void);
/* Whether this thread's tiles have shapes: after an op they must not. */
PUBLIC bool tiles_are_set(void);

#endif
