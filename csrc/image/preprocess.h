/* From a picture to what a vision model reads: resized, cropped, normalised. */
#ifndef QV_IMAGE_PREPROCESS_H
#define QV_IMAGE_PREPROCESS_H

#include "base/error.h"
#include "image/resize.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    size_t size; /* S */
    bool exact;  /* both edges become S; else the shorter one does, and the middle S x S is cut out */
    float mean[3], std[3];
} qv_preprocessing;

/* A picture that somebody else holds; H and W are at least 1. */
typedef struct {
    const uint8_t *pixels; /* [H, W, 3] */
    size_t H, W;
} qv_picture_view;

#define QV_LEVELS 256

/* What there is to compute, by whatever backend: a resize to S x S, and then levels[c][byte] of each byte of channel c.
 * Freed by qv_resize_plan_free. */
qv_status qv_preprocess_plan(qv_resize_plan *resize, float levels[3][QV_LEVELS], const qv_picture_view *picture,
                             const qv_preprocessing *how, qv_error *err);

/* On the CPU: out [3, S, S] = (resized picture / 255 - mean) / std */
qv_status qv_preprocess(float *out, const qv_picture_view *picture, const qv_preprocessing *how, qv_error *err);

#endif
