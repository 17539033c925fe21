#include "image/exif.h"

#include <stdbool.h>
#include <string.h>

#define TAG_ORIENTATION 0x0112u
#define TIFF_SHORT 3u
#define TIFF_LONG 4u

static uint32_t read16(const uint8_t *p, bool big) {
    return big ? (uint32_t)p[0] << 8 | p[1] : (uint32_t)p[1] << 8 | p[0];
}

static uint32_t read32(const uint8_t *p, bool big) {
    return big ? read16(p, big) << 16 | read16(p + 2, big) : read16(p + 2, big) << 16 | read16(p, big);
}

int qv_exif_orientation(const uint8_t *tiff, size_t length) {
    if (length >= 6 && memcmp(tiff, "Exif\0\0", 6) == 0) {
        tiff += 6;
        length -= 6;
    }
    if (length < 8 || (memcmp(tiff, "II*\0", 4) != 0 && memcmp(tiff, "MM\0*", 4) != 0)) {
        return 0;
    }
    bool big = tiff[0] == 'M';
    size_t directory = read32(tiff + 4, big);
    if (directory > length - 2) {
        return 0;
    }
    size_t entries = read16(tiff + directory, big);
    const uint8_t *entry = tiff + directory + 2;
    size_t room = (length - directory - 2) / 12; /* an entry: tag, type, count, value */
    for (size_t i = 0; i < entries && i < room; i++, entry += 12) {
        if (read16(entry, big) != TAG_ORIENTATION || read32(entry + 4, big) != 1) {
            continue;
        }
        uint32_t type = read16(entry + 2, big);
        uint32_t value = type == TIFF_SHORT ? read16(entry + 8, big) : type == TIFF_LONG ? read32(entry + 8, big) : 0;
        return value >= 1 && value <= 8 ? (int)value : 0;
    }
    return 0;
}

int qv_xmp_orientation(const uint8_t *packet, size_t length) {
    static const char key[] = "tiff:Orientation";
    const size_t key_length = sizeof key - 1;
    const uint8_t *end = packet + length;
    for (const uint8_t *p = packet; (size_t)(end - p) > key_length + 2; p++) {
        p = memchr(p, key[0], (size_t)(end - p) - key_length - 2);
        if (p == NULL) {
            return 0;
        }
        if (memcmp(p, key, key_length) != 0) {
            continue;
        }
        /* an attribute, tiff:Orientation="6", or an element, <tiff:Orientation>6< */
        const uint8_t *q = p + key_length;
        q += q[0] == '=' && q[1] == '"' ? 2 : q[0] == '>' ? 1 : 0;
        if (q != p + key_length && q < end && *q >= '1' && *q <= '8') {
            return *q - '0';
        }
    }
    return 0;
}
