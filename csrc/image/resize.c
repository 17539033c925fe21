#include "image/resize.h"

#include "base/cpu.h"
#include "base/memory.h"
#include "base/threads.h"
#include "image/fixed_point.h"

#include <math.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define LOW_BITS 11
#define ROWS_PER_TASK ((size_t)16)

static void axis_free(qv_resize_axis *axis) {
    qv_free(axis->first);
    qv_free(axis->taps);
    qv_free(axis->weights);
    *axis = (qv_resize_axis){0};
}

/* Keys' cubic convolution with a = -1/2. */
static double cubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0) {
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    }
    return x < 2.0 ? (((x - 5.0) * x + 8.0) * x - 4.0) * a : 0.0;
}

static double triangle(double x) {
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

static double box(double x) {
    return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
}

static double hamming(double x) {
    const double pi = 3.14159265358979323846, base = (double)0.54f, swing = (double)0.46f; /* Pillow's are float32 */
    x = fabs(x);
    if (x == 0.0) {
        return 1.0;
    }
    if (x >= 1.0) {
        return 0.0;
    }
    x *= pi;
    return sin(x) / x * (base + swing * cos(x));
}

static double sinc(double x) {
    const double pi = 3.14159265358979323846;
    if (x == 0.0) {
        return 1.0;
    }
    x *= pi;
    return sin(x) / x;
}

static double lanczos(double x) {
    return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0;
}

/* A kernel and how far it reaches; nearest has none. */
static const struct {
    double (*kernel)(double x);
    double support;
} filters[QV_FILTER_COUNT] = {
    [QV_LANCZOS] = {lanczos, 3.0}, [QV_BILINEAR] = {triangle, 1.0}, [QV_BICUBIC] = {cubic, 2.0},
    [QV_BOX] = {box, 0.5},         [QV_HAMMING] = {hamming, 1.0},
};

static qv_status axis_allocate(qv_resize_axis *axis, size_t count, size_t stride, qv_error *err) {
    size_t weights;
    stride = (stride + 3) / 4 * 4;
    *axis = (qv_resize_axis){.count = count, .stride = stride};
    if (qv_multiply_size(count, stride, &weights)) {
        axis->first = qv_allocate(count, sizeof *axis->first);
        axis->taps = qv_allocate(count, sizeof *axis->taps);
        axis->weights = qv_allocate(weights, sizeof *axis->weights);
    }
    if (axis->first == NULL || axis->taps == NULL || axis->weights == NULL) {
        return qv_fail_memory(err, "the weights of a resize");
    }
    memset(axis->weights, 0, weights * sizeof *axis->weights);
    return QV_OK;
}

/* One input an output. Pillow adds up the step, so that its rounding errors add up, too; past its largest pictures a
 * product does. */
static qv_status axis_nearest(qv_resize_axis *axis, size_t size, size_t new_size, size_t begin, size_t count,
                              qv_error *err) {
    const size_t longest_sum = (size_t)1 << 24;
    const double step = (double)size / (double)new_size;
    qv_status status = axis_allocate(axis, count, 1, err);
    if (status != QV_OK) {
        return status;
    }
    double place = step * 0.5;
    if (begin > longest_sum) {
        place += step * (double)begin;
    } else {
        for (size_t i = 0; i < begin; i++) {
            place += step;
        }
    }
    for (size_t i = 0; i < count; i++, place += step) {
        size_t at = (size_t)place;
        axis->first[i] = at < size ? at : size - 1;
        axis->taps[i] = 1;
        axis->weights[i * axis->stride] = QV_WEIGHT_ONE;
    }
    return QV_OK;
}

/* Outputs begin .. begin + count of `size` inputs resized to `new_size`. When shrinking, the kernel widens. */
static qv_status axis_prepare(qv_resize_axis *axis, size_t size, size_t new_size, qv_filter filter, size_t begin,
                              size_t count, qv_error *err) {
    if (filter == QV_NEAREST) {
        return axis_nearest(axis, size, new_size, begin, count, err);
    }
    double scale = (double)size / (double)new_size;
    double stretch = scale < 1.0 ? 1.0 : scale;
    double support = filters[filter].support * stretch, step = 1.0 / stretch;
    qv_status status = axis_allocate(axis, count, 2 * (size_t)ceil(support) + 1, err);
    double *exact = status == QV_OK ? qv_allocate(axis->stride, sizeof *exact) : NULL;
    if (exact == NULL) {
        return status != QV_OK ? status : qv_fail_memory(err, "the weights of a resize");
    }
    for (size_t i = 0; i < count; i++) {
        double centre = ((double)(begin + i) + 0.5) * scale;
        double low = centre - support + 0.5, high = centre + support + 0.5;
        size_t first = low < 0.0 ? 0 : (size_t)low;
        size_t end = high >= (double)size ? size : (size_t)high;
        size_t taps = end - first;
        double sum = 0.0;
        for (size_t t = 0; t < taps; t++) {
            exact[t] = filters[filter].kernel(((double)(t + first) - centre + 0.5) * step);
            sum += exact[t];
        }
        int32_t *row = axis->weights + i * axis->stride;
        for (size_t t = 0; t < taps; t++) {
            double weight = (sum != 0.0 ? exact[t] / sum : exact[t]) * (double)QV_WEIGHT_ONE;
            row[t] = (int32_t)(weight < 0.0 ? weight - 0.5 : weight + 0.5);
        }
        axis->first[i] = first;
        axis->taps[i] = taps;
    }
    qv_free(exact);
    return QV_OK;
}

/* The inputs that the axis reads begin at the one returned, and are *span many; the axis then counts from there. */
static size_t axis_rebase(qv_resize_axis *axis, size_t *span) {
    size_t begin = axis->first[0], last = axis->count - 1;
    *span = axis->first[last] + axis->taps[last] - begin;
    for (size_t i = 0; i < axis->count; i++) {
        axis->first[i] -= begin;
    }
    return begin;
}

/* One of the two passes. */
typedef struct resize_pass resize_pass;
struct resize_pass {
    uint8_t *out;      /* [rows, columns, 3] */
    const uint8_t *in; /* what the axis reads, in_columns wide */
    size_t in_stride;  /* bytes between its rows */
    size_t rows, columns, in_columns;
    const qv_resize_axis *axis;
    void (*row)(uint8_t *out, const uint8_t *row, const resize_pass *pass);
    int16_t *halves; /* [count, stride / 4, 2, 4]: weights >> LOW_BITS, then the bits below; for AVX2's rows */
    int32_t *sums;   /* [lanes, 3 columns], for the vertical pass */
};

/* out [columns, 3] = one row [in_columns, 3] through the pass's axis */
static void resize_row(uint8_t *out, const uint8_t *row, const resize_pass *pass) {
    const qv_resize_axis *axis = pass->axis;
    for (size_t i = 0; i < axis->count; i++) {
        const uint8_t *pixel = row + 3 * axis->first[i];
        const int32_t *weight = axis->weights + i * axis->stride;
        int32_t red = QV_WEIGHT_ROUNDING, green = QV_WEIGHT_ROUNDING, blue = QV_WEIGHT_ROUNDING;
        for (size_t t = 0; t < axis->taps[i]; t++) {
            red += pixel[3 * t] * weight[t];
            green += pixel[3 * t + 1] * weight[t];
            blue += pixel[3 * t + 2] * weight[t];
        }
        out[3 * i] = qv_sum_to_byte(red);
        out[3 * i + 1] = qv_sum_to_byte(green);
        out[3 * i + 2] = qv_sum_to_byte(blue);
    }
}

#if defined(__x86_64__)

static qv_status split_weights(resize_pass *pass, qv_error *err) {
    const qv_resize_axis *axis = pass->axis;
    size_t groups = axis->count * axis->stride / 4;
    pass->halves = qv_allocate(groups, 8 * sizeof *pass->halves);
    if (pass->halves == NULL) {
        return qv_fail_memory(err, "the weights of a resize");
    }
    for (size_t g = 0; g < groups; g++) {
        for (size_t t = 0; t < 4; t++) {
            int32_t weight = axis->weights[4 * g + t];
            pass->halves[8 * g + t] = (int16_t)(weight >> LOW_BITS);
            pass->halves[8 * g + 4 + t] = (int16_t)(weight & ((1 << LOW_BITS) - 1));
        }
    }
    return QV_OK;
}

/* The same sums, four taps at a time: 16-bit multiply-adds of the weights' upper and lower halves. */
__attribute__((target("avx2"))) static void resize_row_avx2(uint8_t *out, const uint8_t *row,
                                                            const resize_pass *pass) {
    const qv_resize_axis *axis = pass->axis;
    const size_t row_bytes = 3 * pass->in_columns;
    /* taps 0 and 1 in the lower lane, 2 and 3 in the upper: r r g g b b 0 0, as 16-bit numbers */
    const __m256i spread = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1, /**/
                                            6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
    const __m256i high_pairs = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    const __m256i low_pairs = _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3);
    for (size_t i = 0; i < axis->count; i++) {
        size_t start = 3 * axis->first[i], taps = axis->taps[i], t = 0;
        const int16_t *halves = pass->halves + 2 * i * axis->stride;
        const int32_t *weight = axis->weights + i * axis->stride;
        __m256i high = _mm256_setzero_si256(), low = _mm256_setzero_si256();
        for (; t < taps && start + 3 * t + 16 <= row_bytes; t += 4) {
            __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)(row + start + 3 * t));
            __m256i pixels = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), spread);
            __m256i both = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)(halves + 2 * t)));
            __m256i upper = _mm256_permutevar8x32_epi32(both, high_pairs);
            __m256i lower = _mm256_permutevar8x32_epi32(both, low_pairs);
            high = _mm256_add_epi32(high, _mm256_madd_epi16(pixels, upper));
            low = _mm256_add_epi32(low, _mm256_madd_epi16(pixels, lower));
        }
        __m256i sums = _mm256_add_epi32(_mm256_slli_epi32(high, LOW_BITS), low);
        __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
        sum = _mm_add_epi32(sum, _mm_set1_epi32(QV_WEIGHT_ROUNDING));
        for (; t < taps; t++) {
            const uint8_t *pixel = row + start + 3 * t;
            __m128i three = _mm_setr_epi32(pixel[0], pixel[1], pixel[2], 0);
            sum = _mm_add_epi32(sum, _mm_mullo_epi32(three, _mm_set1_epi32(weight[t])));
        }
        sum = _mm_srai_epi32(sum, QV_WEIGHT_BITS);
        sum = _mm_packs_epi32(sum, sum);
        uint32_t rgb = (uint32_t)_mm_cvtsi128_si32(_mm_packus_epi16(sum, sum));
        memcpy(out + 3 * i, &rgb, 3);
    }
}

#endif

/* sums [n] += weight * row [n] */
static void add_row(int32_t *restrict sums, const uint8_t *restrict row, int32_t weight, size_t n) {
    for (size_t x = 0; x < n; x++) {
        sums[x] += row[x] * weight;
    }
}

static size_t task_end(size_t task, size_t rows) {
    size_t end = (task + 1) * ROWS_PER_TASK;
    return end < rows ? end : rows;
}

static void across_task(void *context, size_t task, size_t lane) {
    (void)lane;
    const resize_pass *p = context;
    for (size_t y = task * ROWS_PER_TASK; y < task_end(task, p->rows); y++) {
        p->row(p->out + y * 3 * p->columns, p->in + y * p->in_stride, p);
    }
}

static void down_task(void *context, size_t task, size_t lane) {
    const resize_pass *p = context;
    size_t n = 3 * p->columns;
    int32_t *sums = p->sums + lane * n;
    for (size_t y = task * ROWS_PER_TASK; y < task_end(task, p->rows); y++) {
        for (size_t x = 0; x < n; x++) {
            sums[x] = QV_WEIGHT_ROUNDING;
        }
        const int32_t *weights = p->axis->weights + y * p->axis->stride;
        for (size_t t = 0; t < p->axis->taps[y]; t++) {
            add_row(sums, p->in + (p->axis->first[y] + t) * p->in_stride, weights[t], n);
        }
        for (size_t x = 0; x < n; x++) {
            p->out[y * n + x] = qv_sum_to_byte(sums[x]);
        }
    }
}

static size_t task_count(size_t rows) {
    return (rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK;
}

/* out [rows, axis->count, 3] from in [rows, in_columns, 3] */
static qv_status resize_across(uint8_t *out, const uint8_t *in, size_t in_stride, size_t in_columns, size_t rows,
                               const qv_resize_axis *axis, size_t lanes, qv_error *err) {
    resize_pass p = {.out = out, .in = in, .in_stride = in_stride, .rows = rows, .columns = axis->count,
                     .in_columns = in_columns, .axis = axis, .row = resize_row};
#if defined(__x86_64__)
    if (qv_cpu().avx2_fma) {
        qv_status status = split_weights(&p, err);
        if (status != QV_OK) {
            return status;
        }
        p.row = resize_row_avx2;
    }
#else
    (void)err;
#endif
    qv_parallel(lanes, task_count(rows), across_task, &p);
    qv_free(p.halves);
    return QV_OK;
}

/* out [axis->count, columns, 3] from in [., columns, 3] */
static qv_status resize_down(uint8_t *out, const uint8_t *in, size_t in_stride, size_t columns,
                             const qv_resize_axis *axis, size_t lanes, qv_error *err) {
    resize_pass p = {.out = out, .in = in, .in_stride = in_stride, .rows = axis->count, .columns = columns,
                     .axis = axis};
    p.sums = qv_allocate(lanes, 3 * columns * sizeof *p.sums);
    if (p.sums == NULL) {
        return qv_fail_memory(err, "the sums of a resize");
    }
    qv_parallel(lanes, task_count(p.rows), down_task, &p);
    qv_free(p.sums);
    return QV_OK;
}

qv_status qv_resize_plan_make(qv_resize_plan *plan, size_t H, size_t W, size_t new_height, size_t new_width,
                              qv_filter filter, qv_window window, qv_error *err) {
    *plan = (qv_resize_plan){.top = window.top, .left = window.left, .rows = window.height, .columns = window.width};
    qv_status status = QV_OK;
    if (new_height != H) {
        status = axis_prepare(&plan->down, H, new_height, filter, window.top, window.height, err);
    }
    if (status == QV_OK && new_width != W) {
        status = axis_prepare(&plan->across, W, new_width, filter, window.left, window.width, err);
    }
    if (status != QV_OK) {
        qv_resize_plan_free(plan);
        return status;
    }
    if (plan->down.count != 0) {
        plan->top = axis_rebase(&plan->down, &plan->rows);
    }
    if (plan->across.count != 0) {
        plan->left = axis_rebase(&plan->across, &plan->columns);
    }
    /* Pillow 13 goes down first where the height loses more than twice what the width loses, Pillow before 13 never. */
    plan->down_first = H > new_height && (new_width > W || H - new_height > 2 * (W - new_width));
    return QV_OK;
}

void qv_resize_plan_free(qv_resize_plan *plan) {
    axis_free(&plan->across);
    axis_free(&plan->down);
}

qv_status qv_resize_run(uint8_t *out, const uint8_t *picture, size_t W, const qv_resize_plan *plan, qv_error *err) {
    const qv_resize_axis *across = &plan->across, *down = &plan->down;
    size_t lanes = qv_thread_count(), stride = 3 * W, rows = plan->rows, columns = plan->columns;
    const uint8_t *in = picture + plan->top * stride + 3 * plan->left;
    if (across->count == 0 && down->count == 0) {
        for (size_t y = 0; y < rows; y++) {
            memcpy(out + y * 3 * columns, in + y * stride, 3 * columns);
        }
        return QV_OK;
    }
    if (down->count == 0) {
        return resize_across(out, in, stride, columns, rows, across, lanes, err);
    }
    if (across->count == 0) {
        return resize_down(out, in, stride, columns, down, lanes, err);
    }
    uint8_t *middle = plan->down_first ? qv_allocate(down->count, 3 * columns) : qv_allocate(rows, 3 * across->count);
    qv_status status;
    if (middle == NULL) {
        status = qv_fail_memory(err, "a picture half resized");
    } else if (plan->down_first) {
        status = resize_down(middle, in, stride, columns, down, lanes, err);
        if (status == QV_OK) {
            status = resize_across(out, middle, 3 * columns, columns, down->count, across, lanes, err);
        }
    } else {
        status = resize_across(middle, in, stride, columns, rows, across, lanes, err);
        if (status == QV_OK) {
            status = resize_down(out, middle, 3 * across->count, across->count, down, lanes, err);
        }
    }
    qv_free(middle);
    return status;
}

qv_status qv_resize(uint8_t *out, const uint8_t *picture, size_t H, size_t W, size_t new_height, size_t new_width,
                    qv_filter filter, qv_window window, qv_error *err) {
    qv_resize_plan plan;
    qv_status status = qv_resize_plan_make(&plan, H, W, new_height, new_width, filter, window, err);
    if (status == QV_OK) {
        status = qv_resize_run(out, picture, W, &plan, err);
        qv_resize_plan_free(&plan);
    }
    return status;
}
