/* JPEG, PNG and BMP files in memory to pictures. */
#ifndef QV_IMAGE_DECODE_H
#define QV_IMAGE_DECODE_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint8_t *pixels; /* [H, W, 3] red, green, blue; from qv_allocate */
    size_t height, width;
} qv_picture;

/* The picture of a file of `length` bytes, turned as its EXIF orientation says if `exif`. Alpha is dropped, samples of
 * 16 bits keep their upper 8. QV_ERR_VALUE for more than max_pixels, refused before anything is allocated, and for a
 * damaged file; QV_ERR_UNSUPPORTED, with the reason, for what another decoder may still read. */
qv_status qv_image_decode(qv_picture *out, const uint8_t *data, size_t length, bool exif, size_t max_pixels,
                          qv_error *err);

/* Turn or mirror a picture into the orientation EXIF names 1, from orientation 1 to 8. */
qv_status qv_picture_orient(qv_picture *picture, int orientation, qv_error *err);

void qv_picture_free(qv_picture *picture);

#endif
