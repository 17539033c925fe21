/* AMX: products by tiles, registers of 16 rows of 64 bytes. A panel of steps of 4 bytes and 64 columns is four tiles side by
 * side as it lies, 256 bytes from row to row, and rows of x in steps are tiles as they are. Two by two tiles of sums are held,
 * so that each tile that is loaded is used twice.
 *
 * A row's sums depend on that row and the panel alone: a tile of one row adds up in the order in which a tile of sixteen does,
 * so that few rows go by tiles, too. The last steps of the depth are filled up with zeros to a tile's sixteen.
 *
 * By the assembler rather than by the compilers' intrinsics, of which GCC's do not say that they read memory: what was
 * written to it just before is dropped. */
#include "ops/kernels.h"

#if defined(__x86_64__)

#include <string.h>

#define TILE ((size_t)16)  /* rows of a tile, steps in a row of x's, columns in a row of sums */
#define BLOCK (2 * TILE)   /* rows and columns of sums that are held */
/* Lines of the next panel that are prefetched with 16 steps. */
#define PREFETCH_LINES 4

#define INLINE static inline __attribute__((always_inline))
/* Tiles 0, 1 over 2, 3: sums; 4 over 5: rows of x; 6, 7: columns of the panel. */
#define LOAD_TILE(tile, from, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"(stride) : "memory")
#define STORE_TILE(tile, to, stride) \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(to), "r"(stride) : "memory")
#define CLEAR_TILE(tile) __asm__ volatile("tilezero %%tmm" #tile : :)
#define DOT(instruction, sums, x, columns) \
    __asm__ volatile(instruction " %%tmm" #columns ", %%tmm" #x ", %%tmm" #sums : :)

/* What LDTILECFG reads. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;
_Static_assert(sizeof(tile_shapes) == 64, "as LDTILECFG has it");

/* Whose rows of x are `upper` and, below them, `lower`; either at most 16. */
static void set_shapes(size_t upper, size_t lower) {
    const size_t rows[8] = {upper, upper, lower, lower, upper, lower, TILE, TILE};
    tile_shapes shapes;
    memset(&shapes, 0, sizeof shapes);
    shapes.palette = 1;
    for (size_t tile = 0; tile < 8; tile++) {
        shapes.rows[tile] = (uint8_t)rows[tile];
        shapes.row_bytes[tile] = rows[tile] != 0 ? 64 : 0;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes) : "memory");
}

static void release_tiles(void) {
    __asm__ volatile("tilerelease" : : : "memory");
}

/* Some rows of x and 32 columns of a panel. */
typedef struct {
    const qv_bits32 *x, *panel;
    size_t ld_x, steps, rows;
    const char *prefetch, *prefetch_end;
} tile_block;

/* Of unsigned bytes times signed ones, into integers, or of bfloat16. */
#define DOT_EITHER(bytes, sums, x, columns)   \
    if (bytes) {                              \
        DOT("tdpbusd", sums, x, columns);     \
    } else {                                  \
        DOT("tdpbf16ps", sums, x, columns);   \
    }

INLINE void multiply_tiles(bool lower, const bool bytes) {
    DOT_EITHER(bytes, 0, 4, 6)
    DOT_EITHER(bytes, 1, 4, 7)
    if (lower) {
        DOT_EITHER(bytes, 2, 5, 6)
        DOT_EITHER(bytes, 3, 5, 7)
    }
}

/* The sums += 16 steps of x times 16 of the panel; strides in bytes. */
INLINE void multiply_steps(const qv_bits32 *x, size_t x_stride, const qv_bits32 *panel, size_t panel_stride, bool lower,
                           const bool bytes) {
    LOAD_TILE(6, panel, panel_stride);
    LOAD_TILE(7, panel + TILE, panel_stride);
    LOAD_TILE(4, x, x_stride);
    if (lower) {
        LOAD_TILE(5, x + TILE * x_stride / sizeof *x, x_stride);
    }
    multiply_tiles(lower, bytes);
}

/* The last steps, less than 16, in tiles that are zeros behind them. */
INLINE void multiply_rest(const tile_block *b, size_t done, const bool bytes) {
    qv_bits32 x[BLOCK * TILE], panel[TILE * BLOCK];
    const size_t rest = b->steps - done;
    memset(x, 0, sizeof x);
    memset(panel, 0, sizeof panel);
    for (size_t r = 0; r < b->rows; r++) {
        memcpy(x + r * TILE, b->x + r * b->ld_x + done, rest * sizeof *x);
    }
    for (size_t k = 0; k < rest; k++) {
        memcpy(panel + k * BLOCK, b->panel + (done + k) * QV_MAX_PANEL, BLOCK * sizeof *panel);
    }
    multiply_steps(x, TILE * sizeof *x, panel, BLOCK * sizeof *panel, b->rows > TILE, bytes);
}

/* out [rows, 32] (+)= the block's product; the tiles have its shapes. */
INLINE void multiply_block(tile_block *b, void *out, size_t out_stride, bool add_to_out, const bool bytes) {
    const bool lower = b->rows > TILE;
    char *below = (char *)out + TILE * out_stride;
    if (add_to_out) {
        LOAD_TILE(0, out, out_stride);
        LOAD_TILE(1, (char *)out + 64, out_stride);
        if (lower) {
            LOAD_TILE(2, below, out_stride);
            LOAD_TILE(3, below + 64, out_stride);
        }
    } else {
        CLEAR_TILE(0);
        CLEAR_TILE(1);
        if (lower) {
            CLEAR_TILE(2);
            CLEAR_TILE(3);
        }
    }
    size_t k = 0;
    for (; k + TILE <= b->steps; k += TILE) {
        for (size_t line = 0; line < PREFETCH_LINES && b->prefetch < b->prefetch_end; line++, b->prefetch += 64) {
            __builtin_prefetch(b->prefetch, 0, 2);
        }
        multiply_steps(b->x + k, b->ld_x * sizeof *b->x, b->panel + k * QV_MAX_PANEL, QV_MAX_PANEL * sizeof *b->panel, lower,
                       bytes);
    }
    if (k < b->steps) {
        multiply_rest(b, k, bytes);
    }
    STORE_TILE(0, out, out_stride);
    STORE_TILE(1, (char *)out + 64, out_stride);
    if (lower) {
        STORE_TILE(2, below, out_stride);
        STORE_TILE(3, below + 64, out_stride);
    }
}

/* The same where out has fewer than 32 columns. */
static void multiply_part(tile_block *b, float *out, size_t ld_out, size_t columns, bool add_to_out) {
    float sums[BLOCK * BLOCK];
    if (add_to_out) {
        memset(sums, 0, sizeof sums);
        for (size_t r = 0; r < b->rows; r++) {
            memcpy(sums + r * BLOCK, out + r * ld_out, columns * sizeof *out);
        }
    }
    multiply_block(b, sums, BLOCK * sizeof *sums, add_to_out, false);
    for (size_t r = 0; r < b->rows; r++) {
        memcpy(out + r * ld_out, sums + r * BLOCK, columns * sizeof *out);
    }
}

/* Let the block be of the product's rows from r on, and the tiles of that many. */
static void take_rows(tile_block *b, const qv_panel_product *p, size_t r) {
    const size_t rows = p->rows - r < BLOCK ? p->rows - r : BLOCK;
    if (rows != b->rows) {
        set_shapes(rows < TILE ? rows : TILE, rows < TILE ? 0 : rows - TILE);
    }
    b->rows = rows;
    b->x = (const qv_bits32 *)p->x + r * p->ld_x;
}

void qv_multiply_tiles(const qv_panel_product *p, void (*finish)(const qv_panel_product *p, size_t first, size_t rows)) {
    tile_block block = {.ld_x = p->ld_x, .steps = p->depth, .prefetch = p->prefetch, .prefetch_end = p->prefetch_end};
    const bool finishes = p->bias != NULL || p->epilogue != NULL;
    for (size_t r = 0; r < p->rows; r += BLOCK) {
        take_rows(&block, p, r);
        for (size_t c = 0; c < p->columns; c += BLOCK) {
            float *out = p->out + r * p->ld_out + c;
            block.panel = (const qv_bits32 *)p->panel + c / QV_MAX_PANEL * QV_MAX_PANEL * p->depth + c % QV_MAX_PANEL;
            if (p->columns - c >= BLOCK) {
                multiply_block(&block, out, p->ld_out * sizeof *out, p->add_to_out, false);
            } else {
                multiply_part(&block, out, p->ld_out, p->columns - c, p->add_to_out);
            }
        }
        if (finishes) {
            finish(p, r, block.rows);
        }
    }
    release_tiles();
}

/* out [rows, columns] (+)= what the block's integers [rows, 32] mean, as in kernel_int8.h; `tail`: of the panel, at these
 * columns. */
static void dequantise(const tile_block *b, float *out, size_t ld_out, const uint32_t *sums, const qv_bits32 *tail,
                       size_t columns, bool add_to_out) {
    float scales[BLOCK];
    memcpy(scales, tail, columns * sizeof *scales);
    for (size_t r = 0; r < b->rows; r++) {
        float scale;
        memcpy(&scale, b->x + r * b->ld_x + b->steps, sizeof scale);
        const uint32_t point = b->x[r * b->ld_x + b->steps + 1];
        float *row = out + r * ld_out;
        for (size_t c = 0; c < columns; c++) {
            const float y = (float)(int32_t)(sums[r * BLOCK + c] - point * tail[QV_MAX_PANEL + c]) * (scale * scales[c]);
            row[c] = add_to_out ? y + row[c] : y;
        }
    }
}

void qv_multiply_byte_tiles(const qv_panel_product *p,
                            void (*finish)(const qv_panel_product *p, size_t first, size_t rows)) {
    tile_block block = {.ld_x = p->ld_x, .steps = p->depth, .prefetch = p->prefetch, .prefetch_end = p->prefetch_end};
    const bool finishes = p->bias != NULL || p->epilogue != NULL;
    uint32_t sums[BLOCK * BLOCK];
    for (size_t r = 0; r < p->rows; r += BLOCK) {
        take_rows(&block, p, r);
        for (size_t c = 0; c < p->columns; c += BLOCK) {
            const size_t columns = p->columns - c < BLOCK ? p->columns - c : BLOCK;
            block.panel = (const qv_bits32 *)p->panel + c;
            multiply_block(&block, sums, BLOCK * sizeof *sums, false, true);
            dequantise(&block, p->out + r * p->ld_out + c, p->ld_out, sums, block.panel + p->depth * QV_MAX_PANEL, columns,
                       p->add_to_out);
        }
        if (finishes) {
            finish(p, r, block.rows);
        }
    }
    release_tiles();
}

/* As many operations as four tiles of sums can take without a load. */
INLINE double burn(size_t steps, const bool bytes) {
    set_shapes(TILE, TILE);
    for (size_t step = 0; step < steps; step++) {
        multiply_tiles(true, bytes);
    }
    release_tiles();
    return (double)steps * 4 * 2 * (double)(TILE * TILE * (bytes ? 4 : 2) * TILE);
}

double qv_burn_tiles(size_t steps) {
    return burn(steps, false);
}

double qv_burn_byte_tiles(size_t steps) {
    return burn(steps, true);
}

#endif
