/* Bicubic resizing of 8-bit pictures, antialiased when shrinking, in the fixed-point arithmetic of Pillow's
 * Image.resize(..., BICUBIC): the same bytes as Pillow 13 gives. */
#ifndef QV_IMAGE_RESIZE_H
#define QV_IMAGE_RESIZE_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

/* The part of the resized picture that is wanted; nothing else is computed. */
typedef struct {
    size_t top, left, height, width;
} qv_window;

/* out [window.height, window.width, 3] = that window of picture [H, W, 3] resized to new_height x new_width */
qv_status qv_resize_bicubic(uint8_t *out, const uint8_t *picture, size_t H, size_t W, size_t new_height,
                            size_t new_width, qv_window window, qv_error *err);

#endif
