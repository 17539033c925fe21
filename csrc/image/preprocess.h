/* From a picture to what a vision model reads: resized, cropped or padded, normalised. */
#ifndef QV_IMAGE_PREPROCESS_H
#define QV_IMAGE_PREPROCESS_H

#include "base/error.h"
#include "image/resize.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define QV_LEVELS 256
#define QV_MAX_MODEL_EDGE ((size_t)1 << 14)

/* What the resized picture's height and width are. */
typedef enum {
    QV_RESIZE_NONE,     /* the picture's */
    QV_RESIZE_EXACT,    /* edges[0] and edges[1] */
    QV_RESIZE_SHORTEST, /* the shorter is edges[0], the ratio kept; the longer at most edges[1], where that is not 0 */
    QV_RESIZE_LONGEST,  /* the longer is edges[0], the ratio kept */
    QV_RESIZE_COVER,    /* the ratio kept, no edge is shorter than its own of edges */
    QV_RESIZE_INSIDE,   /* likewise, none is longer */
    QV_RESIZE_RULE_COUNT
} qv_resize_rule;

typedef struct {
    size_t height, width; /* the model's: of the resized picture the middle is taken, black where it is smaller */
    qv_resize_rule rule;
    size_t edges[2];
    qv_filter filter;
    bool even_margins; /* an odd margin is halved to the nearest even number (torchvision), else down (transformers) */
    double rescale;    /* what bytes are multiplied by */
    float mean[3], std[3];
} qv_preprocessing;

/* A picture that somebody else holds; H and W are at least 1. */
typedef struct {
    const uint8_t *pixels; /* [H, W, 3] */
    size_t H, W;
} qv_picture_view;

/* Where the model's height x width lie in the resized picture: top and left are below 0 where they reach past it. */
typedef struct {
    size_t new_height, new_width;
    ptrdiff_t top, left;
} qv_placement;

qv_placement qv_place_picture(size_t H, size_t W, const qv_preprocessing *how);

/* What there is to compute, by whatever backend: a resize of what is seen, a window of the model's height x width,
 * and then levels[c][byte] of each byte of channel c. The resize is freed by qv_resize_plan_free. */
typedef struct {
    qv_resize_plan resize;
    qv_window seen;
    float levels[3][QV_LEVELS];
} qv_preprocess_plan;

qv_status qv_preprocess_plan_make(qv_preprocess_plan *plan, const qv_picture_view *picture, const qv_preprocessing *how,
                                  qv_error *err);

/* On the CPU: out [3, height, width] = (resized picture * rescale - mean) / std */
qv_status qv_preprocess(float *out, const qv_picture_view *picture, const qv_preprocessing *how, qv_error *err);

#endif
