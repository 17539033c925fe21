/* The kernels, written once for any vector width. A file that includes this has defined
 *   TARGET, INLINE    attributes of its functions and of the helpers they inline
 *   WIDTH, vec        floats in a vector, and its type
 *   TILE_ROWS, TILE_VECTORS    the register tile
 *   zero, set1, load, store, load_part, store_part (the first n < WIDTH floats), multiply_add (a b + c), largest,
 *   power_bits (2^n from the float n + 1.5 2^23), clear_below (x < limit ? 0 : value), negative_select,
 *   keep_part (the first n lanes, the others zero), reciprocal, reduce_sum, reduce_max,
 *   transpose_block (WIDTH x WIDTH)
 *   words32 and set1_words, load_words, round_words (to nearest, ties to even), from_words, of as many 32-bit integers, and
 *   for kernel_int8.h multiply_pairs (of two signed 16-bit items a lane, summed) and store_quads
 *   where it has them, FEW_ROWS, MOST_PANELS and PANELS_BESIDE(rows): how many panels few rows are multiplied by at a time;
 *   STEPS_AT_ONCE, PREFETCH_STEPS, and MULTIPLY_ADD, the instruction of multiply_add
 * and KERNELS, the table's name, with NAME, its float32 product's, PACKS_LAYERS and INT8_NAME, its int8 product's.
 * With BYTES_NAME, an int8 product by dot products of four bytes, also TARGET_BYTES,
 * INLINE_BYTES, dot_bytes, store_bytes, has_bytes and BYTES_BELOW (INT8_BELOW of kernel_int8.h). For products of bfloat16
 * also TARGET_BFLOAT16, store_half (the first n lanes in bfloat16), write_pairs, read_pairs and join_pairs; with
 * BFLOAT16_NAME, for the set's own, INLINE_BFLOAT16, the type pairs, set1_pair, load_pairs, has_bfloat16, and dot_pairs, or
 * BFLOAT16_MATRICES and what kernel_matrices.h wants; with TILES_NAME, for that by AMX's tiles, has_tiles; where it has one
 * that is cheaper than exponential, HALF_POWER(y): 2^y for y <= 0, to be rounded to bfloat16, 1 of 0 and NaN of NaN. */

#define PANEL (WIDTH * TILE_VECTORS)
#ifndef MOST_PANELS
#define FEW_ROWS ((size_t)0)
#define MOST_PANELS 1
#endif
#define UNROLL _Pragma("GCC unroll 8")

/* ---- exp and the activations ---- */

/* e^x to about 1 ulp for x <= 88; 0 below -87. x = n ln 2 + r, |r| <= ln 2 / 2; e^r by a minimax polynomial. */
INLINE vec exponential(vec x) {
    const vec shift = set1(0x1.8p23f);
    vec bounded = largest(set1(-87.0f), x);
    vec n = multiply_add(bounded, set1(1.44269504f), shift);
    vec whole = n - shift;
    vec r = multiply_add(whole, set1(-0x1.62e4p-1f), bounded);
    r = multiply_add(whole, set1(-0x1.7f7d1cp-20f), r);
    vec p = set1(0.00138131448f);
    p = multiply_add(p, r, set1(0.00836941879f));
    p = multiply_add(p, r, set1(0.04166845605f));
    p = multiply_add(p, r, set1(0.16666515172f));
    p = multiply_add(p, r, set1(0.49999994040f));
    p = multiply_add(p * r, r, r + set1(1.0f));
    return clear_below(power_bits(p, n), x, set1(-87.0f));
}

/* Phi(x): Phi(-|x|) = exp(-x^2 / 2 - p(|x|)), p a polynomial fitted on [0, 6] (relative error of the result 3e-7);
 * beyond 6 x times it is below 1e-8 and p stays. */
INLINE vec cumulative(vec x) {
    vec a = largest(x, -x);
    vec bounded = -largest(-a, set1(-6.0f));
    vec p = set1(1.5775106e-06f);
    p = multiply_add(p, bounded, set1(-2.2851644e-05f));
    p = multiply_add(p, bounded, set1(0.00010901712f));
    p = multiply_add(p, bounded, set1(0.00014034829f));
    p = multiply_add(p, bounded, set1(-0.0049509997f));
    p = multiply_add(p, bounded, set1(0.036422413f));
    p = multiply_add(p, bounded, set1(-0.18171163f));
    p = multiply_add(p, bounded, set1(0.79788655f));
    p = multiply_add(p, bounded, set1(0.69314712f));
    vec tail = exponential(-multiply_add(x * set1(0.5f), x, p));
    return negative_select(x, tail, set1(1.0f) - tail);
}

/* 1 / (1 + e^-z); 0 for z < -87 */
INLINE vec sigmoid(vec z) {
    const vec least = set1(-87.0f);
    return clear_below(reciprocal(set1(1.0f) + exponential(-largest(z, least))), z, least);
}

/* u, where gelu's tanh form (1 + tanh(u / 2)) / 2 is the sigmoid of u */
INLINE vec tanh_argument(vec x) {
    return x * multiply_add(x * x, set1(2 * 0.79788456f * 0.044715f), set1(2 * 0.79788456f));
}

INLINE vec apply_activation(vec x, qv_activation activation) {
    switch (activation) {
    case QV_GELU:
        return x * cumulative(x);
    case QV_GELU_TANH:
        return x * sigmoid(tanh_argument(x));
    case QV_QUICK_GELU:
        return x * sigmoid(x * set1(1.702f));
    case QV_RELU:
        return largest(set1(0.0f), x);
    case QV_SILU:
        return x * sigmoid(x);
    case QV_IDENTITY:
        break;
    }
    return x;
}

/* x within -limit .. limit, beyond which a slope is 0 or 1 to the last bit, while its terms may overflow; NaN stays. */
INLINE vec bound(vec x, float limit) {
    return -largest(set1(-limit), -largest(set1(-limit), x));
}

/* x s, s = sigmoid(u): s + x s (1 - s) u' */
INLINE vec sigmoid_slope(vec s, vec x_times_slope) {
    return multiply_add(x_times_slope * s, set1(1.0f) - s, s);
}

INLINE vec activation_slope(vec x, qv_activation activation) {
    vec z;
    switch (activation) {
    case QV_GELU: /* Phi(x) + x phi(x) */
        z = bound(x, 20.0f);
        return multiply_add(z * set1(0.39894228f), exponential(z * z * set1(-0.5f)), cumulative(z));
    case QV_GELU_TANH:
        z = bound(x, 10.0f);
        return sigmoid_slope(sigmoid(tanh_argument(z)),
                             z * multiply_add(z * z, set1(6 * 0.79788456f * 0.044715f), set1(2 * 0.79788456f)));
    case QV_QUICK_GELU:
        z = bound(x * set1(1.702f), 102.0f);
        return sigmoid_slope(sigmoid(z), z);
    case QV_SILU:
        z = bound(x, 102.0f);
        return sigmoid_slope(sigmoid(z), z);
    case QV_RELU: /* of a NaN 1, as in PyTorch */
        return clear_below(set1(1.0f), x, set1(0x1p-149f));
    case QV_IDENTITY:
        break;
    }
    return set1(1.0f);
}

TARGET static void find_slopes(float *x, qv_activation activation, size_t n) {
    size_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        store(x + i, activation_slope(load(x + i), activation));
    }
    if (i < n) {
        store_part(x + i, activation_slope(load_part(x + i, n - i), activation), n - i);
    }
}

TARGET static void activate(float *x, qv_activation activation, size_t n) {
    size_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        store(x + i, apply_activation(load(x + i), activation));
    }
    if (i < n) {
        store_part(x + i, apply_activation(load_part(x + i, n - i), activation), n - i);
    }
}

TARGET static void scale_row(float *out, const float *x, float factor, size_t n) {
    const vec f = set1(factor);
    size_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        store(out + i, load(x + i) * f);
    }
    for (; i < n; i++) {
        out[i] = x[i] * factor;
    }
}

TARGET static float dot(const float *a, const float *b, size_t n) {
    vec sum = zero(), other = zero();
    size_t i = 0;
    for (; i + 2 * WIDTH <= n; i += 2 * WIDTH) {
        sum = multiply_add(load(a + i), load(b + i), sum);
        other = multiply_add(load(a + i + WIDTH), load(b + i + WIDTH), other);
    }
    for (; i + WIDTH <= n; i += WIDTH) {
        sum = multiply_add(load(a + i), load(b + i), sum);
    }
    if (i < n) {
        other = multiply_add(load_part(a + i, n - i), load_part(b + i, n - i), other);
    }
    return reduce_sum(sum + other);
}

TARGET static void add_scaled(float *out, const float *x, float factor, size_t n) {
    const vec f = set1(factor);
    size_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        store(out + i, multiply_add(load(x + i), f, load(out + i)));
    }
    if (i < n) {
        store_part(out + i, multiply_add(load_part(x + i, n - i), f, load_part(out + i, n - i)), n - i);
    }
}

TARGET static void add_positive(float *out, const float *e, const float *g, float factor, size_t n) {
    const vec f = set1(factor), none = zero();
    size_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        const vec kept = largest(none, load(g + i)) * f, weight = e != NULL ? load(e + i) : set1(1.0f);
        store(out + i, multiply_add(kept, weight, load(out + i)));
    }
    if (i < n) {
        const size_t rest = n - i;
        const vec kept = largest(none, load_part(g + i, rest)) * f, weight = e != NULL ? load_part(e + i, rest) : set1(1.0f);
        store_part(out + i, multiply_add(kept, weight, load_part(out + i, rest)), rest);
    }
}

TARGET static void score_gradient(float *g, const float *e, float factor, size_t n) {
    const vec mean = set1(factor * dot(e, g, n));
    size_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        store(g + i, load(e + i) * (load(g + i) - mean));
    }
    if (i < n) {
        store_part(g + i, load_part(e + i, n - i) * (load_part(g + i, n - i) - mean), n - i);
    }
}

TARGET static void transpose(float *out, size_t ld_out, const float *in, size_t ld_in, size_t rows, size_t columns) {
    size_t whole_rows = rows / WIDTH * WIDTH, whole_columns = columns / WIDTH * WIDTH;
    for (size_t r = 0; r < whole_rows; r += WIDTH) {
        for (size_t c = 0; c < whole_columns; c += WIDTH) {
            transpose_block(out + c * ld_out + r, ld_out, in + r * ld_in + c, ld_in);
        }
    }
    for (size_t r = 0; r < rows; r++) {
        for (size_t c = r < whole_rows ? whole_columns : 0; c < columns; c++) {
            memcpy(out + c * ld_out + r, in + r * ld_in + c, sizeof *out);
        }
    }
}

/* ---- norms ---- */

/* What a norm makes of a row: n = ((x - mean) - missing) inverse. The mean is two floats, because where it is most of the
 * row, no one float is near enough; a row that is constant becomes exactly zeros. An RMS norm's mean is 0. */
typedef struct {
    float mean, missing, inverse;
} row_statistics;

INLINE vec centre(vec x, const row_statistics *s) {
    return (x - set1(s->mean)) - set1(s->missing);
}

/* The last n < WIDTH items, and zeros behind them. */
INLINE vec centre_part(const float *x, const row_statistics *s, size_t n) {
    return keep_part(centre(load_part(x, n), s), n);
}

/* The mean of what is left of x [n] behind `s`. */
INLINE float mean_behind(const float *x, const row_statistics *s, size_t n) {
    vec sum = zero();
    size_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        sum = sum + centre(load(x + i), s);
    }
    if (i < n) {
        sum = sum + centre_part(x + i, s, n - i);
    }
    return reduce_sum(sum) / (float)n;
}

INLINE row_statistics find_statistics(const float *x, const qv_norm *norm) {
    const size_t n = norm->D;
    row_statistics s = {0.0f, 0.0f, 0.0f};
    if (norm->kind == QV_LAYER_NORM) {
        s.mean = mean_behind(x, &s, n);
        s.missing = mean_behind(x, &s, n);
    }
    vec squares = zero();
    size_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        const vec centred = centre(load(x + i), &s);
        squares = multiply_add(centred, centred, squares);
    }
    if (i < n) {
        const vec centred = centre_part(x + i, &s, n - i);
        squares = multiply_add(centred, centred, squares);
    }
    const float variance = reduce_sum(squares) / (float)n;
    s.inverse = 1.0f / sqrtf(variance + norm->eps) + 0.0f * variance; /* NaN where it overflows */
    return s;
}

TARGET static void norm_row(float *out, const float *x, const qv_norm *norm) {
    const row_statistics s = find_statistics(x, norm);
    const float *weight = norm->weight.data, *bias = norm->bias.data;
    const size_t whole = norm->D / WIDTH * WIDTH, rest = norm->D - whole;
    const vec inverse = set1(s.inverse);
    for (size_t i = 0; i < whole; i += WIDTH) {
        vec normed = centre(load(x + i), &s) * inverse * load(weight + i);
        if (bias != NULL) {
            normed = normed + load(bias + i);
        }
        store(out + i, normed);
    }
    if (rest != 0) {
        vec normed = centre_part(x + whole, &s, rest) * inverse * load_part(weight + whole, rest);
        if (bias != NULL) {
            normed = normed + load_part(bias + whole, rest);
        }
        store_part(out + whole, normed, rest);
    }
}

/* g = dy weight: dx = (g - mean(g) - n mean(g n)) inverse, the first mean in a layer norm alone */
TARGET static void norm_row_backward(float *dx, const float *dy, const float *x, const qv_norm *norm) {
    const row_statistics s = find_statistics(x, norm);
    const float *weight = norm->weight.data, D = (float)norm->D;
    const size_t whole = norm->D / WIDTH * WIDTH, rest = norm->D - whole;
    vec gradients = zero(), products = zero();
    for (size_t i = 0; i < whole; i += WIDTH) {
        const vec g = load(dy + i) * load(weight + i);
        gradients = gradients + g;
        products = multiply_add(g, centre(load(x + i), &s), products);
    }
    if (rest != 0) {
        const vec g = load_part(dy + whole, rest) * load_part(weight + whole, rest);
        gradients = gradients + g;
        products = multiply_add(g, centre_part(x + whole, &s, rest), products);
    }
    const vec mean = set1(norm->kind == QV_LAYER_NORM ? reduce_sum(gradients) / D : 0.0f);
    const vec slope = set1(reduce_sum(products) / D * s.inverse * s.inverse), inverse = set1(s.inverse);
    for (size_t i = 0; i < whole; i += WIDTH) {
        const vec g = load(dy + i) * load(weight + i), along = centre(load(x + i), &s) * slope;
        store(dx + i, ((g - mean) - along) * inverse);
    }
    if (rest != 0) {
        const vec g = load_part(dy + whole, rest) * load_part(weight + whole, rest);
        const vec along = centre_part(x + whole, &s, rest) * slope;
        store_part(dx + whole, ((g - mean) - along) * inverse, rest);
    }
}

/* ---- products with a packed panel ---- */

INLINE vec finish_vector(vec y, const qv_panel_product *p, size_t r, size_t column, size_t n) {
#define LOAD(pointer) (n == WIDTH ? load(pointer) : load_part(pointer, n))
    if (p->bias != NULL) {
        y = y + LOAD(p->bias + column);
    }
    if (p->epilogue == NULL) {
        return y;
    }
    y = apply_activation(y, p->epilogue->activation);
    if (p->multiply != NULL) {
        y = y * LOAD(p->multiply + r * p->epilogue->multiply.ld + column);
    }
    if (p->residual != NULL) {
        y = y + LOAD(p->residual + r * p->epilogue->residual.ld + column);
    }
    return y;
#undef LOAD
}

/* Bias, activation and the rest on rows first.. of out, which the tile has just left in the first-level cache. */
TARGET static void finish_rows(const qv_panel_product *p, size_t first, size_t rows) {
    size_t whole = p->columns / WIDTH * WIDTH;
    for (size_t r = first; r < first + rows; r++) {
        float *out = p->out + r * p->ld_out;
        for (size_t c = 0; c < whole; c += WIDTH) {
            store(out + c, finish_vector(load(out + c), p, r, c, WIDTH));
        }
        if (whole < p->columns) {
            size_t n = p->columns - whole;
            store_part(out + whole, finish_vector(load_part(out + whole, n), p, r, whole, n), n);
        }
    }
}

#include "ops/kernel_depth.h"

/* The state of a product that its tiles share: whether sums begin with what out holds, and what is still to be prefetched. */
typedef struct {
    size_t ld_out, ld_x;
    size_t part; /* floats in the last vector of a row; 0: all */
    bool add;
    prefetch_plan ahead;
} tile_state;

/* The rows of the next tile. What is more than one tile and less than two is shared evenly: a tile of one or two rows takes as
 * long as one of four, since its sums wait for each other. */
INLINE size_t next_rows(size_t left, size_t tile_rows) {
    return left <= tile_rows ? left : left < 2 * tile_rows ? (left + 1) / 2 : tile_rows;
}

/* The largest of x [n]; NaN is passed over: exponentiate finds it. */
INLINE float find_largest(const float *x, size_t n) {
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

static void copy_row(float *out, const float *const *rows, size_t n) {
    memcpy(out, rows[0], n * sizeof *out);
}

#define TILE tile_float32
#define TILE_OF_ROWS tile_of_rows_float32
#define TILE_OF tile_of_float32
#define MULTIPLY multiply_float32
#define EXPONENTIATE exponentiate_float32
#define MULTIPLY_FEW multiply_few_float32
#define BURN burn_float32
#define STEP_TARGET TARGET
#define STEP_INLINE INLINE
#define OPERATIONS (2 * WIDTH)
#define ELEMENT float
#define LANES vec
#define BROADCAST(x) set1(x)
#define PANEL_LOAD(pointer) load(pointer)
#define ACCUMULATE(sum, x, b) add_product(sum, x, b)
#define SMALL 0x1p-20f
#define KEEP(x, i, e, n) ((n) == WIDTH ? store((x) + (i), e) : store_part((x) + (i), e, n))
#define SCALE_FACTOR 1.0f
#define WEIGHT_OF(y) keep_nan(exponential(y), y)
#include "ops/kernel_tile.h"
#include "ops/kernel_softmax.h"

#if defined(BFLOAT16_NAME) || defined(TILES_NAME)
#undef TILE
#undef TILE_OF_ROWS
#undef TILE_OF
#undef MULTIPLY
#undef EXPONENTIATE
#undef BURN
#undef MULTIPLY_FEW
#undef STEP_TARGET
#undef STEP_INLINE
#undef OPERATIONS
#undef ELEMENT
#undef LANES
#undef BROADCAST
#undef PANEL_LOAD
#undef ACCUMULATE
#undef SMALL
#undef KEEP
#define TILE tile_bfloat16
#define TILE_OF_ROWS tile_of_rows_bfloat16
#define TILE_OF tile_of_bfloat16
#define MULTIPLY multiply_bfloat16
#define EXPONENTIATE exponentiate_items_bfloat16
#define MULTIPLY_FEW multiply_few_bfloat16
#define BURN burn_bfloat16
#define STEP_TARGET TARGET_BFLOAT16
#define STEP_INLINE INLINE_BFLOAT16
#define ELEMENT qv_bits32
#define LANES pairs
#define BROADCAST(x) set1_pair(x)
#define PANEL_LOAD(pointer) load_pairs(pointer)
#if defined(BFLOAT16_MATRICES)
#define TILE_OF_MATRICES
#define ACCUMULATE(sum, x, b) add_matrix(sum, x, b)
#define OPERATIONS (8 * WIDTH)
#else
#define ACCUMULATE(sum, x, b) dot_pairs(x, b, sum)
#define OPERATIONS (4 * WIDTH)
#endif
#define SMALL 0x35803580u
#define KEEP(x, i, e, n) store_half((qv_bits16 *)(void *)(x) + (i), e, n)
#if defined(HALF_POWER)
#undef SCALE_FACTOR
#undef WEIGHT_OF
#define SCALE_FACTOR 1.44269504f
#define WEIGHT_OF(y) HALF_POWER(y)
#endif
#if defined(BFLOAT16_NAME)
#include "ops/kernel_tile.h"
#endif
#include "ops/kernel_softmax.h"

static float exponentiate_bfloat16(float *x, float scale, size_t n) {
    const float inverse = exponentiate_items_bfloat16(x, scale, n);
    if (n % 2 != 0) {
        ((qv_bits16 *)(void *)x)[n] = 0;
    }
    return inverse;
}
#endif

#if defined(TILES_NAME)
static void multiply_tiles(const qv_panel_product *p) {
    qv_multiply_tiles(p, finish_rows);
}

static void multiply_byte_tiles(const qv_panel_product *p) {
    qv_multiply_byte_tiles(p, finish_rows);
}
#endif

/* ---- int8 ---- */

/* The even items of four int8 in each lane, or the odd ones, as 16 bits. */
INLINE words32 spread(words32 bytes, size_t part) {
    typedef int16_t halves __attribute__((vector_size(4 * WIDTH)));
    typedef uint16_t unsigned_halves __attribute__((vector_size(4 * WIDTH)));
    const halves upper = part == 0 ? (halves)((unsigned_halves)bytes << 8) : (halves)bytes;
    return (words32)(upper >> 8);
}

/* The sum is made opaque, or the compiler, to which integers add up in any order, would do so behind all products. */
INLINE words32 add_pairs(words32 sum, words32 x, words32 w) {
    sum = sum + multiply_pairs(x, w);
    OPAQUE_LANES(sum);
    return sum;
}

#undef STEP_TARGET
#undef STEP_INLINE
#define STEP_TARGET TARGET
#define STEP_INLINE INLINE
#define INT8(name) name##_spread
#define INT8_ROWS ((size_t)4) /* to spread takes registers */
#define INT8_PARTS ((size_t)2)
#define INT8_PART(w, part) spread(w, part)
#define INT8_STEPS ((STEPS_AT_ONCE + 1) / 2)
#define INT8_DOT(sum, x, w) add_pairs(sum, x, w)
#define INT8_STORE(out, q) store_quads(out, q)
#define INT8_BELOW 0u
#include "ops/kernel_int8.h"

#if defined(BYTES_NAME)
#undef STEP_TARGET
#undef STEP_INLINE
#undef INT8
#undef INT8_ROWS
#undef INT8_PARTS
#undef INT8_PART
#undef INT8_STEPS
#undef INT8_DOT
#undef INT8_STORE
#undef INT8_BELOW
#define STEP_TARGET TARGET_BYTES
#define STEP_INLINE INLINE_BYTES
#define INT8(name) name##_bytes
#define INT8_ROWS TILE_ROWS
#define INT8_PARTS ((size_t)1)
#define INT8_PART(w, part) (w)
#define INT8_STEPS STEPS_AT_ONCE
#define INT8_DOT(sum, x, w) dot_bytes(sum, x, w)
#define INT8_STORE(out, q) store_bytes(out, q)
#define INT8_BELOW BYTES_BELOW
#include "ops/kernel_int8.h"
#endif

#include "ops/kernel_records.h"
