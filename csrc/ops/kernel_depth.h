/* The loop over the depth that register tiles share, and what it prefetches meanwhile. For kernel_template.h alone. */

/* Depth steps between two prefetches of the next panel. */
#ifndef PREFETCH_STEPS
#define PREFETCH_STEPS ((size_t)8)
#endif
/* Of these, steps that a tile takes without a branch. */
#ifndef STEPS_AT_ONCE
#define STEPS_AT_ONCE ((size_t)1)
#endif
/* Places of the next panel at which it is prefetched at once for few rows. */
#define STREAMS ((size_t)4)
/* Hides what a pointer or a count was made of, where what the compiler would make of that is slower: pointers added up anew in
 * each step, to save registers. */
#define OPAQUE(value) __asm__("" : "+r"(value))
/* The same of vectors. */
#if defined(__x86_64__)
#define OPAQUE_LANES(x) __asm__("" : "+v"(x))
#elif defined(__aarch64__)
#define OPAQUE_LANES(x) __asm__("" : "+w"(x))
#else
#define OPAQUE_LANES(x) __asm__("" : "+m"(x))
#endif

/* sum + a b, in the register of sum where MULTIPLY_ADD is defined: left to itself the compiler gives sums other registers from
 * step to step, with moves between them. */
INLINE vec add_product(vec sum, vec a, vec b) {
#if defined(MULTIPLY_ADD)
    __asm__(MULTIPLY_ADD " %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
#else
    return multiply_add(a, b, sum);
#endif
}

/* What is still to be prefetched. */
typedef struct {
    const char *next, *end;
    size_t lines; /* of it, in PREFETCH_STEPS of the depth */
    size_t apart; /* bytes from one to the next of the places at which it is prefetched at once; 0: one place */
} prefetch_plan;

/* From here to there: as many lines as bring the next panel in just while this one is used. Where memory gives more at several
 * places at once than at one, so that several panels are used side by side, one or two tiles prefetch at several, none in the
 * page of another; where not, one tile reads as fast as memory gives, and prefetching only disturbs it. */
INLINE prefetch_plan plan_prefetch(const char *from, const char *end, size_t rows, size_t tile_rows) {
    const size_t tiles = rows == 0 ? 1 : (rows + tile_rows - 1) / tile_rows, page = 4096;
    const size_t all = PREFETCH_STEPS * PANEL * sizeof(float) / 64; /* of PREFETCH_STEPS of a panel */
    const size_t lines = (all + tiles - 1) / tiles;
    if (MOST_PANELS == 1 && tiles == 1) {
        return (prefetch_plan){.next = end, .end = end};
    }
    if (MOST_PANELS > 1 && tiles <= 2 && from != end && (size_t)(end - from) >= STREAMS * page) {
        const size_t apart = ((size_t)(end - from) / STREAMS + 63) / 64 * 64;
        return (prefetch_plan){.next = from, .end = from + apart, .lines = lines, .apart = apart};
    }
    return (prefetch_plan){.next = from, .end = end, .lines = lines};
}

/* Two loops: one for any number of places takes a fifth of the time of 8 and 12 rows. */
INLINE void prefetch_some(prefetch_plan *ahead) {
    if (ahead->next >= ahead->end) {
        return;
    }
    if (MOST_PANELS > 1 && ahead->apart != 0) {
        for (size_t i = 0; i < ahead->lines && ahead->next < ahead->end; i += STREAMS, ahead->next += 64) {
            UNROLL
            for (size_t stream = 0; stream < STREAMS; stream++) {
                __builtin_prefetch(ahead->next + stream * ahead->apart, 0, 2);
            }
        }
        return;
    }
    for (size_t i = 0; i < ahead->lines && ahead->next < ahead->end; i++, ahead->next += 64) {
        __builtin_prefetch(ahead->next, 0, 2);
    }
}

/* A tile's sum [rows, vectors] += what `row` [rows] points to times what `panels` do, which move on: `at_once` of its steps
 * without a branch. A step is `words` words of a row and `panel_rows` rows of a panel; WEIGHT(panel, k) are the lanes that
 * multiply word k, SPREAD(word) it in all lanes, ADD(sum, x, w) a sum with their products. A macro: in a function of their own
 * sums would not keep their registers. */
#define ADD_STEPS(n, words, panel_rows, lanes, WEIGHT, SPREAD, ADD)                                                     \
    UNROLL                                                                                                              \
    for (size_t k = 0; k < (n) * (words); k++) {                                                                        \
        lanes weight[TILE_VECTORS * MOST_PANELS];                                                                       \
        UNROLL                                                                                                          \
        for (size_t v = 0; v < vectors; v++) {                                                                          \
            weight[v] = WEIGHT(panels[v / TILE_VECTORS] + v % TILE_VECTORS * WIDTH, k);                                 \
        }                                                                                                               \
        UNROLL                                                                                                          \
        for (size_t r = 0; r < rows; r++) {                                                                             \
            const lanes element = SPREAD(row[r][k]);                                                                    \
            UNROLL                                                                                                      \
            for (size_t v = 0; v < vectors; v++) {                                                                      \
                sum[r][v] = ADD(sum[r][v], element, weight[v]);                                                         \
            }                                                                                                           \
        }                                                                                                               \
    }                                                                                                                   \
    UNROLL                                                                                                              \
    for (size_t r = 0; r < rows; r++) {                                                                                 \
        row[r] += (n) * (words);                                                                                        \
        OPAQUE(row[r]);                                                                                                 \
    }                                                                                                                   \
    UNROLL                                                                                                              \
    for (size_t v = 0; v < vectors; v += TILE_VECTORS) {                                                                \
        panels[v / TILE_VECTORS] += (n) * (panel_rows) * PANEL;                                                         \
        OPAQUE(panels[v / TILE_VECTORS]);                                                                               \
    }

#define ADD_DEPTH(depth, at_once, words, panel_rows, lanes, WEIGHT, SPREAD, ADD)                                        \
    prefetch_plan ahead = s->ahead;                                                                                     \
    size_t left = depth;                                                                                                \
    while (left >= (at_once)) {                                                                                         \
        size_t times = (left < PREFETCH_STEPS ? left : PREFETCH_STEPS) / (at_once);                                     \
        left -= times * (at_once);                                                                                      \
        if ((at_once) < PREFETCH_STEPS) {                                                                               \
            OPAQUE(times);                                                                                              \
        }                                                                                                               \
        prefetch_some(&ahead);                                                                                          \
        for (; times != 0; times--) {                                                                                   \
            ADD_STEPS(at_once, words, panel_rows, lanes, WEIGHT, SPREAD, ADD)                                           \
        }                                                                                                               \
    }                                                                                                                   \
    OPAQUE(left);                                                                                                       \
    for (; (at_once) > 1 && left != 0; left--) {                                                                        \
        ADD_STEPS((size_t)1, words, panel_rows, lanes, WEIGHT, SPREAD, ADD)                                             \
    }                                                                                                                   \
    s->ahead = ahead;
