/* Products of int8 weights with rows that are quantised on the fly. kernel_template.h includes it once a form of the dot product
 * of four, with the name INT8(..) makes of what it defines, and
 *   STEP_TARGET, STEP_INLINE    attributes of its functions
 *   INT8_ROWS                   rows of the register tile, where a panel's parts do not lie by themselves before
 *   INT8_PARTS                  vectors of factors of a step: 1, or 2 of 16-bit items, the even ones and the odd ones
 *   INT8_PART(w, part)          those of four int8 in each lane
 *   INT8_STEPS                  steps that a tile takes without a branch
 *   INT8_DOT(sum, x, w)         sum + the products of a part, in each lane
 *   INT8_STORE(out, q)          WIDTH numbers, one a lane, as INT8_PARTS words a step
 *   INT8_BELOW                  what is taken from a row's q and z, so that q is 0 .. 255, or by 128 less -128 .. 127
 *
 * A row x becomes q = z + round(x / s), 0 to 255, with s = (max - min) / 255, z = round(-min / s) and 0 within min .. max; a
 * column w became round(w / t), -127 to 127, with t = max |w| / 127. Then x w = s t (sum q w - z sum w), whose integers are exact
 * as long as they stay within 32 bits (QV_INT8_DEPTH), so that every form gives the same. */

/* A row's steps, then its scale and its zero point. A row that is not finite has the scale NaN. */
STEP_TARGET static void INT8(write)(float *out, const float *x, size_t n) {
    vec high = zero(), low = zero(), wrong = zero();
    size_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        const vec y = load(x + i);
        high = largest(y, high);
        low = largest(-y, low);
        wrong = multiply_add(y, zero(), wrong);
    }
    if (i < n) {
        const vec y = load_part(x + i, n - i);
        high = largest(y, high);
        low = largest(-y, low);
        wrong = multiply_add(y, zero(), wrong);
    }
    const float most = reduce_max(high), least = reduce_max(low);
    const bool finite = reduce_sum(wrong) == 0.0f;
    const size_t words = (n + 3) / 4 * INT8_PARTS, whole = n / WIDTH * WIDTH;
    qv_bits32 *to = (qv_bits32 *)(void *)out;
    /* Both halves by themselves, since their sum may overflow; no less than a number whose inverse is one. */
    float scale = most / 255.0f + least / 255.0f;
    scale = scale > 0x1p-126f ? scale : 0x1p-126f;
    const float inverse = 1.0f / scale, zero_point = __builtin_rintf(least * inverse);
    const vec factor = set1(-inverse), lowest = set1(zero_point - 255.0f);
    const uint32_t kept = (uint32_t)zero_point - INT8_BELOW;
    const words32 point = set1_words(kept);
    out[words] = finite ? scale : NAN;
    to[words + 1] = finite ? kept : 0;
    if (!finite) {
        memset(out, 0, words * sizeof *out);
        return;
    }
    for (i = 0; i < whole; i += WIDTH) {
        INT8_STORE(to + i / 4 * INT8_PARTS, point - round_words(largest(load(x + i) * factor, lowest)));
    }
    if (whole < n) {
        qv_bits32 last[WIDTH / 4 * INT8_PARTS];
        const size_t done = whole / 4 * INT8_PARTS;
        INT8_STORE(last, point - round_words(largest(load_part(x + whole, n - whole) * factor, lowest)));
        memcpy(to + done, last, (words - done) * sizeof *last);
    }
}

/* out [depth, INT8_PARTS, PANEL] = a panel's steps, each part by itself: what many tiles would have to do for each of them */
STEP_INLINE void INT8(part_panel)(qv_bits32 *out, const qv_bits32 *panel, size_t depth) {
    for (size_t k = 0; k < depth; k++) {
        UNROLL
        for (size_t v = 0; v < TILE_VECTORS; v++) {
            const words32 step = load_words(panel + k * PANEL + v * WIDTH);
            UNROLL
            for (size_t part = 0; part < INT8_PARTS; part++) {
                store((float *)(void *)(out + (k * INT8_PARTS + part) * PANEL + v * WIDTH), (vec)INT8_PART(step, part));
            }
        }
    }
}

/* Rows first .. of out from column c on; more vectors than a panel's are of panels that lie one behind another. parted: the
 * panel's steps are those of p->spare. */
STEP_INLINE void INT8(tile)(tile_state *s, const qv_panel_product *p, size_t first, size_t c, const size_t rows,
                            const size_t vectors, const bool parted) {
    words32 sum[TILE_ROWS][TILE_VECTORS * MOST_PANELS];
    const qv_bits32 *row[TILE_ROWS], *panels[MOST_PANELS];
    const size_t ld_x = s->ld_x, depth = p->depth;
    const size_t panel_words = (depth + 2) * PANEL;
    const qv_bits32 *x = (const qv_bits32 *)p->x + first * ld_x, *panel = (const qv_bits32 *)p->panel + c / PANEL * panel_words;
    UNROLL
    for (size_t r = 0; r < rows; r++) {
        row[r] = x + r * ld_x;
        UNROLL
        for (size_t v = 0; v < vectors; v++) {
            sum[r][v] = set1_words(0);
        }
    }
    UNROLL
    for (size_t v = 0; v < vectors; v += TILE_VECTORS) {
        panels[v / TILE_VECTORS] = parted ? (const qv_bits32 *)p->spare : panel + v / TILE_VECTORS * panel_words;
    }
#define WEIGHT(panel, k)                              \
    (parted ? load_words((panel) + (k) * PANEL)       \
            : INT8_PART(load_words((panel) + (k) / INT8_PARTS * PANEL), (k) % INT8_PARTS))
    ADD_DEPTH(depth, INT8_STEPS, INT8_PARTS, parted ? INT8_PARTS : 1, words32, WEIGHT, set1_words, INT8_DOT)
#undef WEIGHT
    const qv_bits32 *scales = panel + depth * PANEL, *sums = scales + PANEL;
    UNROLL
    for (size_t r = 0; r < rows; r++) {
        const qv_bits32 *tail = x + r * ld_x + depth * INT8_PARTS;
        const vec scale = (vec)set1_words(tail[0]);
        const words32 point = set1_words(tail[1]);
        UNROLL
        for (size_t v = 0; v < vectors; v++) {
            const size_t place_in_panels = v / TILE_VECTORS * panel_words + v % TILE_VECTORS * WIDTH;
            const words32 exact = sum[r][v] - point * load_words(sums + place_in_panels);
            vec y = from_words(exact) * (scale * (vec)load_words(scales + place_in_panels));
            float *place = p->out + (first + r) * s->ld_out + c + v * WIDTH;
            if (v + 1 == vectors && s->part != 0) {
                if (s->add) {
                    y = y + load_part(place, s->part);
                }
                store_part(place, y, s->part);
            } else {
                if (s->add) {
                    y = y + load(place);
                }
                store(place, y);
            }
        }
    }
}

#define TILE_CASE(n)                                                            \
    case n:                                                                     \
        INT8(tile)(s, p, first, c, n < most ? n : most, vectors, parted); \
        break;

STEP_INLINE void INT8(tile_of_rows)(tile_state *s, const qv_panel_product *p, size_t first, size_t c, size_t rows,
                                   const size_t vectors, const bool parted) {
    const size_t most = parted ? TILE_ROWS : INT8_ROWS;
    switch (rows) {
        TILE_CASE(1)
        TILE_CASE(2)
        TILE_CASE(3)
        TILE_CASE(4)
        TILE_CASE(5)
    default:
        INT8(tile)(s, p, first, c, most, vectors, parted);
    }
}
#undef TILE_CASE

STEP_TARGET static void INT8(tile_of)(tile_state *s, const qv_panel_product *p, size_t first, size_t c, size_t rows) {
    const size_t left = p->columns - c, columns = left < PANEL ? left : PANEL;
    s->part = columns % WIDTH;
    switch ((columns + WIDTH - 1) / WIDTH) {
    case 1:
        INT8(tile_of_rows)(s, p, first, c, rows, 1, false);
        break;
#if TILE_VECTORS > 2
    case 2:
        INT8(tile_of_rows)(s, p, first, c, rows, 2, false);
        break;
    case 3:
        INT8(tile_of_rows)(s, p, first, c, rows, 3, false);
        break;
#endif
    default:
        INT8(tile_of_rows)(s, p, first, c, rows, TILE_VECTORS, false);
    }
}

#if MOST_PANELS > 1
/* As MULTIPLY_FEW of kernel_tile.h: rows first .. of all panels. */
STEP_TARGET static void INT8(multiply_few)(tile_state *s, const qv_panel_product *p) {
    const size_t columns = PANEL * PANELS_BESIDE(p->rows), whole = p->columns / columns * columns;
    for (size_t c = 0; c < whole; c += columns) {
        if (p->rows == 1) {
            INT8(tile)(s, p, 0, c, 1, TILE_VECTORS * PANELS_BESIDE(1), false);
        } else if (p->rows == 2) {
            INT8(tile)(s, p, 0, c, 2, TILE_VECTORS * PANELS_BESIDE(2), false);
        } else {
            INT8(tile)(s, p, 0, c, 3, TILE_VECTORS * PANELS_BESIDE(3), false);
        }
    }
    for (size_t c = whole; c < p->columns; c += PANEL) {
        INT8(tile_of)(s, p, 0, c, p->rows);
    }
}
#endif

/* The depth in one piece: the sums are integers, which `out` cannot hold. */
STEP_TARGET static void INT8(multiply)(const qv_panel_product *p) {
    tile_state s = {.ld_out = p->ld_out, .ld_x = p->ld_x, .add = p->add_to_out};
#if MOST_PANELS > 1
    if (p->rows <= FEW_ROWS && p->columns > PANEL) {
        INT8(multiply_few)(&s, p);
        if (p->bias != NULL || p->epilogue != NULL) {
            finish_rows(p, 0, p->rows);
        }
        return;
    }
#endif
    const bool parted = INT8_PARTS > 1 && p->spare != NULL && p->columns == PANEL && p->rows >= 3 * TILE_ROWS;
    const size_t most = parted ? TILE_ROWS : INT8_ROWS;
    if (parted) {
        INT8(part_panel)((qv_bits32 *)p->spare, (const qv_bits32 *)p->panel, p->depth);
    }
    s.ahead = plan_prefetch(p->prefetch, p->prefetch_end, p->rows, most);
    for (size_t r = 0, rows; r < p->rows; r += rows) {
        rows = next_rows(p->rows - r, most);
        if (parted) {
            INT8(tile_of_rows)(&s, p, r, 0, rows, TILE_VECTORS, INT8_PARTS > 1);
        } else {
            INT8(tile_of)(&s, p, r, 0, rows);
        }
        if (p->bias != NULL || p->epilogue != NULL) {
            finish_rows(p, r, rows);
        }
    }
}

/* As BURN of kernel_tile.h; the factors are not known beforehand, lest the sums be. */
STEP_TARGET static double INT8(burn)(size_t steps) {
    enum { SUMS = 12 };
    const words32 x = set1_words((uint32_t)steps & 0x00030003u), y = set1_words((uint32_t)steps & 0x00050005u);
    words32 sum[SUMS];
    for (size_t i = 0; i < SUMS; i++) {
        sum[i] = set1_words((uint32_t)i);
    }
    for (size_t step = 0; step < steps; step++) {
        _Pragma("GCC unroll 12") for (size_t i = 0; i < SUMS; i++) {
            sum[i] = INT8_DOT(sum[i], x, y);
        }
    }
    for (size_t i = 1; i < SUMS; i++) {
        sum[0] = sum[0] + sum[i];
    }
    return sum[0][0] != 1 ? (double)(steps * SUMS * 2 * 4 / INT8_PARTS * WIDTH) : 0.0;
}
