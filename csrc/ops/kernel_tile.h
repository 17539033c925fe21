/* The register tile and the loops around it, for float32 or for pairs of bfloat16; included by kernel_template.h with
 * TILE_TARGET, TILE_INLINE, DOT_NAME, ELEMENT, LANES, BROADCAST, PANEL_LOAD, ACCUMULATE and KEEP, which end here. And
 * what makes weights of the scores that such a product gives. */

/* out [rows, columns] (+)= x [rows, depth] panel [depth, PANEL]; rows and vectors are constants where this is inlined,
 * so that the sums stay in registers. Each step loads a row of the panel and broadcasts one element of each row of x. */
TILE_INLINE void DOT_NAME(tile)(tile_state *s, float *out, const ELEMENT *x, const ELEMENT *panel, size_t depth,
                           const size_t rows, const size_t vectors) {
    vec sum[TILE_ROWS][TILE_VECTORS];
    UNROLL
    for (size_t r = 0; r < rows; r++) {
        UNROLL
        for (size_t v = 0; v < vectors; v++) {
            bool part = v + 1 == vectors && s->part != 0;
            float *place = out + r * s->ld_out + v * WIDTH;
            sum[r][v] = !s->add ? zero() : part ? load_part(place, s->part) : load(place);
        }
    }
    const size_t ld_x = s->ld_x;
    for (size_t k0 = 0; k0 < depth; k0 += PREFETCH_STEPS) {
        size_t end = depth - k0 < PREFETCH_STEPS ? depth : k0 + PREFETCH_STEPS;
        if (s->prefetch < s->prefetch_end) {
            __builtin_prefetch(s->prefetch, 0, 2);
            s->prefetch += 64;
        }
        for (size_t k = k0; k < end; k++) {
            const ELEMENT *row = panel + k * PANEL;
            LANES weight[TILE_VECTORS];
            UNROLL
            for (size_t v = 0; v < vectors; v++) {
                weight[v] = PANEL_LOAD(row + v * WIDTH);
            }
            UNROLL
            for (size_t r = 0; r < rows; r++) {
                const LANES element = BROADCAST(x[r * ld_x + k]);
                UNROLL
                for (size_t v = 0; v < vectors; v++) {
                    sum[r][v] = ACCUMULATE(element, weight[v], sum[r][v]);
                }
            }
        }
    }
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

#define TILE_CASE(n)                                                                                  \
    case n:                                                                                           \
        DOT_NAME(tile)(s, out, x, panel, depth, n < TILE_ROWS ? n : TILE_ROWS, vectors);              \
        break;

TILE_INLINE void DOT_NAME(tile_of_rows)(tile_state *s, float *out, const ELEMENT *x, const ELEMENT *panel, size_t depth,
                                   size_t rows, const size_t vectors) {
    switch (rows) {
        TILE_CASE(1)
        TILE_CASE(2)
        TILE_CASE(3)
        TILE_CASE(4)
        TILE_CASE(5)
    default:
        DOT_NAME(tile)(s, out, x, panel, depth, TILE_ROWS, vectors);
    }
}
#undef TILE_CASE

TILE_TARGET static void DOT_NAME(tile_of)(tile_state *s, float *out, const ELEMENT *x, const ELEMENT *panel, size_t depth,
                                     size_t rows, size_t vectors) {
    switch (vectors) {
    case 1:
        DOT_NAME(tile_of_rows)(s, out, x, panel, depth, rows, 1);
        break;
    case 2:
        DOT_NAME(tile_of_rows)(s, out, x, panel, depth, rows, 2);
        break;
#if TILE_VECTORS > 2
    case 3:
        DOT_NAME(tile_of_rows)(s, out, x, panel, depth, rows, 3);
        break;
    default:
        DOT_NAME(tile_of_rows)(s, out, x, panel, depth, rows, 4);
        break;
#endif
    }
}

/* A block of the depth at a time, so that its part of the panel stays in the second-level cache for all rows. */
TILE_TARGET static void DOT_NAME(multiply)(const qv_panel_product *p) {
    const ELEMENT *x = p->x, *panel = p->panel;
    size_t vectors = (p->columns + WIDTH - 1) / WIDTH;
    tile_state s = {.ld_out = p->ld_out,
                    .ld_x = p->ld_x,
                    .part = p->columns % WIDTH,
                    .add = p->add_to_out};
    bool finish = p->bias != NULL || p->epilogue != NULL;
    for (size_t k = 0; k < p->depth || k == 0; k += QV_DEPTH_BLOCK) {
        size_t depth = p->depth - k < QV_DEPTH_BLOCK ? p->depth - k : QV_DEPTH_BLOCK;
        bool last = k + depth == p->depth;
        size_t next = p->depth - k - depth < QV_DEPTH_BLOCK ? p->depth - k - depth : QV_DEPTH_BLOCK;
        s.prefetch = last ? p->prefetch : (const char *)(panel + (k + depth) * PANEL);
        s.prefetch_end = last ? p->prefetch_end : (const char *)(panel + (k + depth + next) * PANEL);
        for (size_t r = 0; r < p->rows; r += TILE_ROWS) {
            size_t rows = p->rows - r < TILE_ROWS ? p->rows - r : TILE_ROWS;
            DOT_NAME(tile_of)(&s, p->out + r * p->ld_out, x + r * p->ld_x + k, panel + k * PANEL, depth, rows, vectors);
            if (last && finish) {
                finish_rows(p, r, rows);
            }
        }
        s.add = true;
    }
}

/* The largest of x [n]; NaN is passed over: exponentiate finds it. */
TILE_INLINE float DOT_NAME(find_largest)(const float *x, size_t n) {
    vec most = set1(-INFINITY), other = most;
    size_t i = 0;
    for (; i + 2 * WIDTH <= n; i += 2 * WIDTH) {
        most = largest(load(x + i), most);
        other = largest(load(x + i + WIDTH), other);
    }
    if (n >= WIDTH) {
        /* The last vectors may overlap those before. */
        most = largest(load(x + (n - i < WIDTH ? n - WIDTH : i)), most);
        other = largest(load(x + n - WIDTH), other);
        return reduce_max(largest(most, other));
    }
    float top = -INFINITY;
    for (; i < n; i++) {
        top = x[i] > top ? x[i] : top;
    }
    return top;
}

TILE_TARGET static float DOT_NAME(exponentiate)(float *x, float scale, size_t n) {
    const float top = DOT_NAME(find_largest)(x, n);
    const vec factor = set1(scale), start = set1(-top * scale);
    vec sum = zero(), other = zero();
    size_t i = 0;
    for (; i + 2 * WIDTH <= n; i += 2 * WIDTH) {
        vec y = multiply_add(load(x + i), factor, start), z = multiply_add(load(x + i + WIDTH), factor, start);
        vec e = keep_nan(exponential(y), y), f = keep_nan(exponential(z), z);
        KEEP(x, i, e, WIDTH);
        KEEP(x, i + WIDTH, f, WIDTH);
        sum = sum + e;
        other = other + f;
    }
    if (i + WIDTH <= n) {
        vec y = multiply_add(load(x + i), factor, start), e = keep_nan(exponential(y), y);
        KEEP(x, i, e, WIDTH);
        sum = sum + e;
        i += WIDTH;
    }
    if (i < n) {
        vec y = multiply_add(load_part(x + i, n - i), factor, start), e = keep_part(keep_nan(exponential(y), y), n - i);
        KEEP(x, i, e, n - i);
        other = other + e;
    }
    return 1.0f / reduce_sum(sum + other);
}

/* Twelve sums that never leave their registers: as fast as the CPU can multiply. */
TILE_TARGET static float DOT_NAME(burn)(size_t steps, const ELEMENT *two) {
    enum { SUMS = 12 };
    const LANES x = BROADCAST(two[0]), y = BROADCAST(two[1]);
    vec sum[SUMS];
    for (size_t i = 0; i < SUMS; i++) {
        sum[i] = zero();
    }
    for (size_t step = 0; step < steps; step++) {
        _Pragma("GCC unroll 12") for (size_t i = 0; i < SUMS; i++) {
            sum[i] = ACCUMULATE(x, y, sum[i]);
        }
    }
    for (size_t i = 1; i < SUMS; i++) {
        sum[0] = sum[0] + sum[i];
    }
    return reduce_sum(sum[0]);
}

#undef TILE_TARGET
#undef TILE_INLINE
#undef DOT_NAME
#undef ELEMENT
#undef LANES
#undef BROADCAST
#undef PANEL_LOAD
#undef ACCUMULATE
#undef KEEP
