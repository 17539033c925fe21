/* What an image file says about itself, read without decoding it: format, size, orientation, and whether the decoder
 * in decode.c may be given it. */
#ifndef QV_IMAGE_PROBE_H
#define QV_IMAGE_PROBE_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

typedef enum { QV_IMAGE_OTHER, QV_IMAGE_JPEG, QV_IMAGE_PNG, QV_IMAGE_BMP } qv_image_format;

typedef struct {
    qv_image_format format;
    size_t height, width; /* as stored, before any turning; 0 where the header was not understood */
    int orientation;      /* EXIF's, 1 to 8; 1 where the file says nothing */
    size_t end;           /* bytes that belong to the picture; what follows is not decoded */
    const char *unsupported; /* why another decoder must be asked; NULL when this one will do */
} qv_image_info;

/* QV_ERR_VALUE for a file that no decoder should be given: a checksum that does not fit, or so many scans that
 * decoding them would take hours. */
qv_status qv_image_probe(qv_image_info *info, const uint8_t *data, size_t length, qv_error *err);

#endif
