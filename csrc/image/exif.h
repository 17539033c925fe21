/* Where a camera notes which way up it was held. Both readers take hostile bytes and never fail. */
#ifndef QV_IMAGE_EXIF_H
#define QV_IMAGE_EXIF_H

#include <stddef.h>
#include <stdint.h>

/* Orientation 1 to 8 from a TIFF block, "Exif\0\0" before it or not; 0 where it says none. */
int qv_exif_orientation(const uint8_t *tiff, size_t length);

/* The same from an XMP packet's tiff:Orientation. */
int qv_xmp_orientation(const uint8_t *packet, size_t length);

#endif
