/* Pictures on their way to a model: the bytes that the resize reads go out through pinned memory, and what the model reads
 * is made of them on the device. */
#include "cuda/cuda_ops.h"

#include "base/memory.h"
#include "image/preprocess.h"

#include <string.h>

_Static_assert(QVK_LEVELS == QV_LEVELS, "the kernel knows how many levels a byte has");

typedef struct {
    size_t *first, *taps;
    int32_t *weights;
} device_axis;

/* What a picture needs on the device besides its values, one behind the other. */
typedef struct {
    uint8_t *bytes;  /* [rows, columns, 3], the part that is read */
    uint8_t *middle; /* between two passes */
    device_axis across, down;
    float *levels; /* [3, QV_LEVELS] */
} device_picture;

static void lay_out_axis(device_axis *axis, qv_arena *arena, const qv_resize_axis *from) {
    axis->first = qv_arena_take(arena, from->count, sizeof *axis->first);
    axis->taps = qv_arena_take(arena, from->count, sizeof *axis->taps);
    axis->weights = qv_arena_take(arena, from->count, from->stride * sizeof *axis->weights);
}

static void lay_out(device_picture *picture, qv_arena *arena, const qv_resize_plan *plan) {
    bool two = plan->across.count != 0 && plan->down.count != 0;
    picture->bytes = qv_arena_take(arena, plan->rows, 3 * plan->columns);
    size_t rows = plan->down_first ? plan->down.count : plan->rows;
    size_t columns = plan->down_first ? plan->columns : plan->across.count;
    picture->middle = qv_arena_take(arena, two ? rows : 0, 3 * columns);
    lay_out_axis(&picture->across, arena, &plan->across);
    lay_out_axis(&picture->down, arena, &plan->down);
    picture->levels = qv_arena_floats(arena, 3 * QV_LEVELS);
}

/* Memory for a picture, kept for the next one; it grows to what the largest needs. */
static void make_room(qv_cuda_device *device, size_t bytes) {
    if (bytes > device->picture_bytes) {
        qv_cuda_replace(device, &device->picture, &device->picture_bytes, bytes + bytes / 4, "a picture on the GPU");
    }
}

/* to (the device's) = rows of row_bytes, packed, from the host's `stride` bytes apart */
static void send_rows(qv_cuda_device *device, uint8_t *to, const uint8_t *from, size_t stride, size_t row_bytes,
                      size_t rows) {
    size_t total = rows * row_bytes;
    if (stride == row_bytes) {
        qv_cuda_send(device, to, from, total);
        return;
    }
    for (size_t done = 0, part; done < total && device->status == QV_OK; done += part) {
        size_t room;
        uint8_t *staged = qv_cuda_stage(device, QV_ALIGNMENT, &room);
        part = total - done < room ? total - done : room;
        for (size_t i = 0, piece; i < part; i += piece) {
            size_t row = (done + i) / row_bytes, column = (done + i) % row_bytes, left = part - i;
            piece = row_bytes - column < left ? row_bytes - column : left;
            memcpy(staged + i, from + row * stride + column, piece);
        }
        qv_cuda_send_staged(device, to + done, staged, part);
    }
}

static void send_axis(qv_cuda_device *device, const device_axis *to, const qv_resize_axis *from) {
    qv_cuda_send(device, to->first, from->first, from->count * sizeof *from->first);
    qv_cuda_send(device, to->taps, from->taps, from->count * sizeof *from->taps);
    qv_cuda_send(device, to->weights, from->weights, from->count * from->stride * sizeof *from->weights);
}

/* One pass over in [., columns, 3] bytes; an axis of count 0 copies. Into bytes, or by the levels into values. */
static void run_pass(qv_cuda_device *device, const qv_resize_axis *axis, const device_axis *weights, bool down,
                     const uint8_t *in, size_t rows, size_t columns, uint8_t *bytes, float *values,
                     const float *levels) {
    bool copies = axis->count == 0;
    qvk_resize p = {
        .bytes = bytes,
        .values = values,
        .levels = levels,
        .in = in,
        .in_stride = 3 * columns,
        .first = copies ? NULL : weights->first,
        .taps = copies ? NULL : weights->taps,
        .weights = copies ? NULL : weights->weights,
        .stride = axis->stride,
        .down = down ? 1 : 0,
        .rows = down && !copies ? axis->count : rows,
        .columns = !down && !copies ? axis->count : columns,
    };
    p.chunks = qv_cuda_chunks(p.columns);
    qv_cuda_launch_kernel(device, QVK_RESIZE, &p, p.rows * p.chunks, QVK_MAX_THREADS, 0);
}

static void run_passes(qv_cuda_device *device, float *out, const device_picture *picture, const qv_resize_plan *plan) {
    const qv_resize_axis *axes[2] = {&plan->across, &plan->down};
    const device_axis *weights[2] = {&picture->across, &picture->down};
    const uint8_t *in = picture->bytes;
    size_t rows = plan->rows, columns = plan->columns, last = plan->down.count != 0 ? 1 : 0;
    if (plan->across.count != 0 && plan->down.count != 0) {
        size_t first = plan->down_first ? 1 : 0;
        last = 1 - first;
        run_pass(device, axes[first], weights[first], first == 1, in, rows, columns, picture->middle, NULL, NULL);
        in = picture->middle;
        rows = first == 1 ? plan->down.count : rows;
        columns = first == 0 ? plan->across.count : columns;
    }
    run_pass(device, axes[last], weights[last], last == 1, in, rows, columns, NULL, out, picture->levels);
}

/* A picture that does not fill the model's input is made on the host. */
static qv_status send_values(qv_cuda_device *device, float *out, const qv_picture_view *picture,
                             const qv_preprocessing *how, qv_error *err) {
    const size_t values = 3 * how->height * how->width;
    float *made = qv_allocate(values, sizeof *made);
    qv_status status = made != NULL ? qv_preprocess(made, picture, how, err) : qv_fail_memory(err, "a padded picture");
    if (status == QV_OK) {
        qv_cuda_send(device, out, made, values * sizeof *made);
    }
    qv_free(made);
    return status;
}

qv_status qv_cuda_preprocess(qv_call *call, float *out, const qv_picture_view *picture, const qv_preprocessing *how,
                             qv_error *err) {
    qv_cuda_device *device = qv_cuda_device_of(call);
    qv_preprocess_plan all;
    if (call->stopped) {
        return QV_OK;
    }
    qv_status status = qv_preprocess_plan_make(&all, picture, how, err);
    if (status != QV_OK) {
        return status;
    }
    qv_resize_plan *plan = &all.resize;
    device_picture there;
    qv_arena measured = {.base = NULL};
    if (all.seen.height < how->height || all.seen.width < how->width) {
        status = send_values(device, out, picture, how, err);
        goto done;
    }
    lay_out(&there, &measured, plan);
    if (measured.overflow) {
        status = qv_fail_memory(err, "a picture on the GPU");
        goto done;
    }
    make_room(device, measured.used);
    if (device->status == QV_OK) {
        qv_arena arena = {.base = device->picture, .capacity = device->picture_bytes};
        lay_out(&there, &arena, plan);
        const uint8_t *read = picture->pixels + 3 * (plan->top * picture->W + plan->left);
        send_rows(device, there.bytes, read, 3 * picture->W, 3 * plan->columns, plan->rows);
        send_axis(device, &there.across, &plan->across);
        send_axis(device, &there.down, &plan->down);
        qv_cuda_send(device, there.levels, all.levels, sizeof all.levels);
        run_passes(device, out, &there, plan);
    }
done:
    qv_resize_plan_free(plan);
    return status;
}
