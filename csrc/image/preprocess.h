/* From a picture to what a vision model reads: resized, cropped, normalised. */
#ifndef QV_IMAGE_PREPROCESS_H
#define QV_IMAGE_PREPROCESS_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    size_t size; /* S */
    bool exact;  /* both edges become S; else the shorter one does, and the middle S x S is cut out */
    float mean[3], std[3];
} qv_preprocessing;

/* out [3, S, S] = (resized picture [H, W, 3] / 255 - mean) / std */
qv_status qv_preprocess(float *out, const uint8_t *picture, size_t H, size_t W, const qv_preprocessing *how,
                        qv_error *err);

#endif
