/* The register tile of bfloat16 by products of matrices: two rows, four items deep, times two columns, which are twice the
 * products of an instruction that goes two deep. kernel_template.h includes it for a set that has
 *   add_matrix(sum, x, w)       sum [2, 2] + x [2, 4] w [2, 4]^T
 *   join_low, join_high         the lower halves of two vectors, and the upper ones
 *   weave_low, weave_high       their items in turns: of the lower halves, and of the upper ones
 * Rows and panels are as other products have them: two steps of a column lie a panel's width apart, and are woven together. */

/* Two rows of a vector of columns, as the sums of its two pairs of columns, and back. */
typedef struct {
    vec left, right;
} square_pair;

STEP_INLINE square_pair square(vec upper, vec lower) {
    return (square_pair){join_low(upper, lower), join_high(upper, lower)};
}

/* Items of two rows: both steps, or the first alone. */
STEP_INLINE pairs join_rows_of(const ELEMENT *upper, const ELEMENT *lower, const bool both) {
    return (pairs){upper[0], both ? upper[1] : 0, lower[0], both ? lower[1] : 0};
}

/* sum [couples of rows, vectors] += two steps of the rows, or one where there is no second */
#define ADD_MATRICES(both)                                                                             \
    {                                                                                                  \
        pairs factor[(TILE_ROWS + 1) / 2];                                                             \
        UNROLL                                                                                         \
        for (size_t c = 0; c < couples; c++) {                                                         \
            factor[c] = join_rows_of(row[2 * c], row[2 * c + 1], both);                                \
        }                                                                                              \
        UNROLL                                                                                         \
        for (size_t v = 0; v < vectors; v++) {                                                         \
            __asm__ volatile("" ::: "memory"); /* loads that come sooner cost sums their registers */  \
            const pairs one = PANEL_LOAD(panel + v * WIDTH);                                           \
            const pairs two = (both) ? PANEL_LOAD(panel + PANEL + v * WIDTH) : (pairs){0, 0, 0, 0};    \
            const pairs left = weave_low(one, two), right = weave_high(one, two);                      \
            UNROLL                                                                                     \
            for (size_t c = 0; c < couples; c++) {                                                     \
                sum[c][v].left = add_matrix(sum[c][v].left, factor[c], left);                          \
                sum[c][v].right = add_matrix(sum[c][v].right, factor[c], right);                       \
            }                                                                                          \
        }                                                                                              \
    }

/* As TILE of kernel_tile.h; a last row without another is multiplied twice. */
STEP_INLINE void TILE(tile_state *s, float *out, const ELEMENT *x, const ELEMENT *panel, size_t depth, const size_t rows,
                      const size_t vectors) {
    square_pair sum[(TILE_ROWS + 1) / 2][TILE_VECTORS];
    const ELEMENT *row[TILE_ROWS + 1];
    const size_t couples = (rows + 1) / 2;
    UNROLL
    for (size_t r = 0; r < 2 * couples; r++) {
        row[r] = x + (r < rows ? r : rows - 1) * s->ld_x;
    }
    UNROLL
    for (size_t c = 0; c < couples; c++) {
        UNROLL
        for (size_t v = 0; v < vectors; v++) {
            const bool part = v + 1 == vectors && s->part != 0, two = 2 * c + 1 < rows;
            const float *upper = out + 2 * c * s->ld_out + v * WIDTH, *lower = upper + (two ? s->ld_out : 0);
            sum[c][v] = !s->add ? square(zero(), zero())
                        : part  ? square(load_part(upper, s->part), load_part(lower, s->part))
                                : square(load(upper), load(lower));
        }
    }
    prefetch_plan ahead = s->ahead;
    for (size_t steps = depth; steps >= 2; steps -= 2) {
        if (steps % PREFETCH_STEPS < 2) {
            prefetch_some(&ahead);
        }
        ADD_MATRICES(true)
        panel += 2 * PANEL;
        UNROLL
        for (size_t r = 0; r < 2 * couples; r++) {
            row[r] += 2;
            OPAQUE(row[r]);
        }
    }
    s->ahead = ahead;
    if (depth % 2 != 0) {
        ADD_MATRICES(false)
    }
    UNROLL
    for (size_t c = 0; c < couples; c++) {
        UNROLL
        for (size_t v = 0; v < vectors; v++) {
            const square_pair both = square(sum[c][v].left, sum[c][v].right);
            const size_t n = v + 1 == vectors && s->part != 0 ? s->part : WIDTH;
            float *place = out + 2 * c * s->ld_out + v * WIDTH;
            if (n == WIDTH) {
                store(place, both.left);
            } else {
                store_part(place, both.left, n);
            }
            if (2 * c + 1 == rows) {
                continue;
            }
            if (n == WIDTH) {
                store(place + s->ld_out, both.right);
            } else {
                store_part(place + s->ld_out, both.right, n);
            }
        }
    }
}
#undef ADD_MATRICES
