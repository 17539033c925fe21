/* Resizing of 8-bit pictures, antialiased when shrinking (but for nearest), in the fixed-point arithmetic of Pillow's
 * Image.resize: the same bytes as Pillow 13 gives. */
#ifndef QV_IMAGE_RESIZE_H
#define QV_IMAGE_RESIZE_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* By Pillow's numbers, which settings files hold. */
typedef enum { QV_NEAREST, QV_LANCZOS, QV_BILINEAR, QV_BICUBIC, QV_BOX, QV_HAMMING, QV_FILTER_COUNT } qv_filter;

/* The part of the resized picture that is wanted; nothing else is computed. */
typedef struct {
    size_t top, left, height, width;
} qv_window;

/* One axis of a resize: output i is the sum over t < taps[i] of input[first[i] + t] * weights[i * stride + t]. */
typedef struct {
    size_t count, stride; /* count 0: the axis keeps its length and has no pass */
    size_t *first;        /* [count] */
    size_t *taps;         /* [count] */
    int32_t *weights;     /* [count, stride], zero behind the taps; stride is a multiple of 4 */
} qv_resize_axis;

/* A resize as it is to be computed, by whatever backend. The axes count from the first row and column that are read. */
typedef struct {
    size_t top, left, rows, columns; /* what is read of the picture */
    qv_resize_axis across, down;
    bool down_first; /* where there are both passes; the bytes between them are rounded, so their order shows */
} qv_resize_plan;

/* On failure nothing is held. */
qv_status qv_resize_plan_make(qv_resize_plan *plan, size_t H, size_t W, size_t new_height, size_t new_width,
                              qv_filter filter, qv_window window, qv_error *err);
void qv_resize_plan_free(qv_resize_plan *plan);
/* out [window.height, window.width, 3] = that window of the picture [., W, 3] resized, on the CPU */
qv_status qv_resize_run(uint8_t *out, const uint8_t *picture, size_t W, const qv_resize_plan *plan, qv_error *err);

/* All of it: out [window.height, window.width, 3] = that window of picture [H, W, 3] resized to new_height x new_width */
qv_status qv_resize(uint8_t *out, const uint8_t *picture, size_t H, size_t W, size_t new_height, size_t new_width,
                    qv_filter filter, qv_window window, qv_error *err);

#endif
