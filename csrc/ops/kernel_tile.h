/* The register tile and the loops around it, for steps of one kind. kernel_template.h includes it once a product, with the
 * names of what it defines (TILE, TILE_OF_ROWS, TILE_OF, MULTIPLY, BURN) and
 *   STEP_TARGET, STEP_INLINE    attributes of its functions
 *   ELEMENT, LANES              the type of a step, and a vector of them
 *   BROADCAST, PANEL_LOAD       a step in all lanes; the lanes from memory
 *   ACCUMULATE                  sums + the products of the items of two steps, in each lane
 *   OPERATIONS                  of an ACCUMULATE
 *   SMALL                       a step whose items are 2^-20
 *   TILE_OF_MATRICES            where kernel_matrices.h has the register tile */

#if defined(TILE_OF_MATRICES)
#include "ops/kernel_matrices.h"
#else
/* out [rows, columns] (+)= x [rows, depth] panel [depth, PANEL]; rows and vectors are constants where this is inlined,
 * so that the sums stay in registers. Each step loads a row of the panel and broadcasts one element of each row of x. More
 * vectors than a panel's are of panels that lie one behind another. */
STEP_INLINE void TILE(tile_state *s, float *out, const ELEMENT *x, const ELEMENT *panel, size_t depth,
                      const size_t rows, const size_t vectors) {
    vec sum[TILE_ROWS][TILE_VECTORS * MOST_PANELS];
    const ELEMENT *row[TILE_ROWS], *panels[MOST_PANELS];
    UNROLL
    for (size_t r = 0; r < rows; r++) {
        row[r] = x + r * s->ld_x;
        UNROLL
        for (size_t v = 0; v < vectors; v++) {
            bool part = v + 1 == vectors && s->part != 0;
            float *place = out + r * s->ld_out + v * WIDTH;
            sum[r][v] = !s->add ? zero() : part ? load_part(place, s->part) : load(place);
        }
    }
    UNROLL
    for (size_t v = 0; v < vectors; v += TILE_VECTORS) {
        panels[v / TILE_VECTORS] = panel + v / TILE_VECTORS * depth * PANEL;
    }
#define WEIGHT(panel, k) PANEL_LOAD((panel) + (k) * PANEL)
    ADD_DEPTH(depth, STEPS_AT_ONCE, 1, 1, LANES, WEIGHT, BROADCAST, ACCUMULATE)
#undef WEIGHT
    UNROLL
    for (size_t r = 0; r < rows; r++) {
        UNROLL
        for (size_t v = 0; v < vectors; v++) {
            float *place = out + r * s->ld_out + v * WIDTH;
            if (v + 1 == vectors && s->part != 0) {
                store_part(place, sum[r][v], s->part);
            } else {
                store(place, sum[r][v]);
            }
        }
    }
}
#endif

#define TILE_CASE(n)                                                                                  \
    case n:                                                                                           \
        TILE(s, out, x, panel, depth, n < TILE_ROWS ? n : TILE_ROWS, vectors);              \
        break;

STEP_INLINE void TILE_OF_ROWS(tile_state *s, float *out, const ELEMENT *x, const ELEMENT *panel, size_t depth,
                              size_t rows, const size_t vectors) {
    switch (rows) {
        TILE_CASE(1)
        TILE_CASE(2)
        TILE_CASE(3)
        TILE_CASE(4)
        TILE_CASE(5)
    default:
        TILE(s, out, x, panel, depth, TILE_ROWS, vectors);
    }
}
#undef TILE_CASE

STEP_TARGET static void TILE_OF(tile_state *s, float *out, const ELEMENT *x, const ELEMENT *panel, size_t depth,
                                size_t rows, size_t vectors) {
    switch (vectors) {
    case 1:
        TILE_OF_ROWS(s, out, x, panel, depth, rows, 1);
        break;
    case 2:
        TILE_OF_ROWS(s, out, x, panel, depth, rows, 2);
        break;
#if TILE_VECTORS > 2
    case 3:
        TILE_OF_ROWS(s, out, x, panel, depth, rows, 3);
        break;
    default:
        TILE_OF_ROWS(s, out, x, panel, depth, rows, 4);
        break;
#endif
    }
}

#if MOST_PANELS > 1
/* Few rows, and any number of panels one behind another: some of them side by side, so that memory is read at several places
 * at once, which is faster than at one. Each column adds up in the same order as by itself. */
STEP_TARGET static void MULTIPLY_FEW(const qv_panel_product *p) {
    const ELEMENT *x = p->x, *panel = p->panel;
    const size_t columns = PANEL * PANELS_BESIDE(p->rows), whole = p->columns / columns * columns;
    tile_state s = {.ld_out = p->ld_out, .ld_x = p->ld_x, .add = p->add_to_out};
    for (size_t c = 0; c < whole; c += columns) {
        if (p->rows == 1) {
            TILE(&s, p->out + c, x, panel + c * p->depth, p->depth, 1, TILE_VECTORS * PANELS_BESIDE(1));
        } else if (p->rows == 2) {
            TILE(&s, p->out + c, x, panel + c * p->depth, p->depth, 2, TILE_VECTORS * PANELS_BESIDE(2));
        } else {
            TILE(&s, p->out + c, x, panel + c * p->depth, p->depth, 3, TILE_VECTORS * PANELS_BESIDE(3));
        }
    }
    for (size_t c = whole; c < p->columns; c += PANEL) {
        s.part = p->columns - c < PANEL ? (p->columns - c) % WIDTH : 0;
        size_t vectors = ((p->columns - c < PANEL ? p->columns - c : PANEL) + WIDTH - 1) / WIDTH;
        TILE_OF(&s, p->out + c, x, panel + c * p->depth, p->depth, p->rows, vectors);
    }
    if (p->bias != NULL || p->epilogue != NULL) {
        finish_rows(p, 0, p->rows);
    }
}
#endif

/* A block of the depth at a time, so that its part of the panel stays in the second-level cache for all rows. */
STEP_TARGET static void MULTIPLY(const qv_panel_product *p) {
#if MOST_PANELS > 1
    if (p->rows <= FEW_ROWS && p->columns > PANEL) {
        MULTIPLY_FEW(p);
        return;
    }
#endif
    const ELEMENT *x = p->x, *panel = p->panel;
    size_t vectors = (p->columns + WIDTH - 1) / WIDTH;
    tile_state s = {.ld_out = p->ld_out,
                    .ld_x = p->ld_x,
                    .part = p->columns % WIDTH,
                    .add = p->add_to_out};
    bool finish = p->bias != NULL || p->epilogue != NULL;
    const size_t block = qv_depth_block(p->depth);
    for (size_t k = 0; k < p->depth || k == 0; k += block) {
        size_t depth = p->depth - k < block ? p->depth - k : block;
        bool last = k + depth == p->depth;
        size_t next = p->depth - k - depth < block ? p->depth - k - depth : block;
        const char *then = last ? p->prefetch : (const char *)(panel + (k + depth) * PANEL);
        const char *end = last ? p->prefetch_end : (const char *)(panel + (k + depth + next) * PANEL);
        s.ahead = plan_prefetch(then, end, p->rows, TILE_ROWS);
        for (size_t r = 0, rows; r < p->rows; r += rows) {
            rows = next_rows(p->rows - r, TILE_ROWS);
            TILE_OF(&s, p->out + r * p->ld_out, x + r * p->ld_x + k, panel + k * PANEL, depth, rows, vectors);
            if (last && finish) {
                finish_rows(p, r, rows);
            }
        }
        s.add = true;
    }
}

/* Twelve sums that never leave their registers: as fast as the CPU can multiply. */
STEP_TARGET static double BURN(size_t steps) {
    enum { SUMS = 12 };
    const ELEMENT small[2] = {SMALL, SMALL};
    const LANES x = BROADCAST(small[0]), y = BROADCAST(small[1]);
    vec sum[SUMS];
    for (size_t i = 0; i < SUMS; i++) {
        sum[i] = zero();
    }
    for (size_t step = 0; step < steps; step++) {
        _Pragma("GCC unroll 12") for (size_t i = 0; i < SUMS; i++) {
            sum[i] = ACCUMULATE(sum[i], x, y);
        }
    }
    for (size_t i = 1; i < SUMS; i++) {
        sum[0] = sum[0] + sum[i];
    }
    return reduce_sum(sum[0]) >= 0.0f ? (double)(steps * SUMS * OPERATIONS) : 0.0;
}
