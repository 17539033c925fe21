#include "image/probe.h"

#include "image/exif.h"

#include <stdbool.h>
#include <string.h>

/* Progressive files have about ten scans; each costs a pass over the whole picture. */
#define MAX_SCANS ((size_t)100)

static uint32_t read16_big(const uint8_t *p) {
    return (uint32_t)p[0] << 8 | p[1];
}

static uint32_t read32_big(const uint8_t *p) {
    return read16_big(p) << 16 | read16_big(p + 2);
}

static uint32_t read16_little(const uint8_t *p) {
    return (uint32_t)p[1] << 8 | p[0];
}

static uint32_t read32_little(const uint8_t *p) {
    return read16_little(p + 2) << 16 | read16_little(p);
}

static bool starts_with(const uint8_t *data, size_t length, const char *prefix, size_t prefix_length) {
    return length >= prefix_length && memcmp(data, prefix, prefix_length) == 0;
}

static void note_orientation(qv_image_info *info, int found) {
    if (info->orientation == 0) {
        info->orientation = found;
    }
}

/* ---- JPEG ---- */

enum {
    SOF0 = 0xC0, /* baseline */
    SOF2 = 0xC2, /* progressive */
    DHT = 0xC4,
    JPG = 0xC8,
    DAC = 0xCC,
    SOF15 = 0xCF,
    RST0 = 0xD0,
    SOI = 0xD8,
    EOI = 0xD9,
    SOS = 0xDA,
    APP0 = 0xE0,
    APP1 = 0xE1,
    APP14 = 0xEE,
    TEM = 0x01,
};

static bool stands_alone(uint8_t marker) {
    return (marker >= RST0 && marker <= EOI) || marker == TEM || marker == 0x00;
}

/* A Huffman table has at most 256 codes; the decoder writes as many as the counts add up to. */
static bool huffman_tables_fit(const uint8_t *segment, size_t length) {
    while (length > 0) {
        if (length < 17) {
            return false;
        }
        size_t codes = 0;
        for (size_t i = 1; i <= 16; i++) {
            codes += segment[i];
        }
        if (codes > 256 || codes > length - 17) {
            return false;
        }
        segment += 17 + codes;
        length -= 17 + codes;
    }
    return true;
}

/* How a JPEG of three colours says which they are; -1 where it says nothing. */
typedef struct {
    bool jfif, ids_rgb;
    int adobe;    /* the transform of Adobe's marker */
    size_t scans; /* begun so far */
} jpeg_colours;

/* libjpeg's order: a JFIF marker means YCbCr, then Adobe's marker decides, then the components' names. */
static bool libjpeg_sees_rgb(const jpeg_colours *colours) {
    return !colours->jfif && (colours->adobe >= 0 ? colours->adobe == 0 : colours->ids_rgb);
}

/* The decoder's order: names first. */
static bool decoder_sees_rgb(const jpeg_colours *colours) {
    return colours->ids_rgb || (!colours->jfif && colours->adobe == 0);
}

static void read_colour_marker(jpeg_colours *colours, uint8_t marker, const uint8_t *segment, size_t length) {
    if (marker == APP0 && length >= 14 && starts_with(segment, length, "JFIF\0", 5)) {
        colours->jfif = true;
    } else if (marker == APP14 && length >= 12 && starts_with(segment, length, "Adobe", 5)) {
        colours->adobe = segment[11];
    }
}

static const char *read_frame(qv_image_info *info, jpeg_colours *colours, const uint8_t *segment, size_t length) {
    if (info->width != 0) {
        return "it has several frames";
    }
    if (length < 6 || segment[0] != 8) {
        return "its samples are not of 8 bits";
    }
    info->height = read16_big(segment + 1);
    info->width = read16_big(segment + 3);
    if (info->height == 0 || info->width == 0) {
        return "its header gives no size";
    }
    if (segment[5] != 1 && segment[5] != 3) {
        return "it is neither grey nor of three colours";
    }
    if (length < 6 + 3 * (size_t)segment[5]) {
        return "its frame header is cut short";
    }
    /* The decoder's filter for chroma halved in one direction only is wrong at the picture's edge. */
    const uint8_t *part = segment + 6; /* of each component: name, sampling, table */
    if (segment[5] == 3 && (part[4] != 0x11 || part[7] != 0x11 || (part[1] != 0x11 && part[1] != 0x22))) {
        return "its chroma sampling is neither 4:4:4 nor 4:2:0";
    }
    colours->ids_rgb = segment[5] == 3 && segment[6] == 'R' && segment[9] == 'G' && segment[12] == 'B';
    return NULL;
}

/* One segment of `length` bytes after its size field; a reason when the decoder cannot have the file. */
static const char *read_segment(qv_image_info *info, jpeg_colours *colours, uint8_t marker, const uint8_t *segment,
                                size_t length) {
    if (marker == DHT) {
        return huffman_tables_fit(segment, length) ? NULL : "a Huffman table is broken";
    }
    if (marker >= SOF0 && marker <= SOF2) {
        return read_frame(info, colours, segment, length);
    }
    if (marker > SOF2 && marker <= SOF15 && marker != JPG && marker != DAC) {
        return "its coding is lossless, hierarchical or arithmetic";
    }
    if (marker == APP0 || marker == APP14) {
        /* Between scans a colour marker comes too late for libjpeg. */
        if (colours->scans > 0) {
            return "a colour marker is out of place";
        }
        read_colour_marker(colours, marker, segment, length);
    } else if (marker == APP1 && starts_with(segment, length, "Exif\0\0", 6)) {
        note_orientation(info, qv_exif_orientation(segment, length));
    } else if (marker == APP1 && starts_with(segment, length, "http://ns.adobe.com/xap/1.0/\0", 29) &&
               info->orientation == 0) {
        note_orientation(info, qv_xmp_orientation(segment + 29, length - 29));
    }
    return NULL;
}

/* Where a scan's coded data ends: at the next marker that is neither stuffing nor a restart. */
static size_t skip_scan(const uint8_t *data, size_t length, size_t at) {
    while (at < length) {
        const uint8_t *p = memchr(data + at, 0xFF, length - at);
        if (p == NULL) {
            return length;
        }
        at = (size_t)(p - data);
        if (at + 1 >= length) {
            return length;
        }
        uint8_t marker = data[at + 1];
        if (marker != 0x00 && marker != 0xFF && !(marker >= RST0 && marker < SOI)) {
            return at;
        }
        at += marker == 0xFF ? 1 : 2;
    }
    return length;
}

/* Where the decoder's idea of a segment differs from ours it still meets only tables that fit: every FF C4 after the
 * header is looked at, whatever it is part of. */
static bool later_tables_fit(const uint8_t *data, size_t length, size_t at) {
    while (at + 4 <= length) {
        const uint8_t *p = memchr(data + at, 0xFF, length - at - 3);
        if (p == NULL) {
            return true;
        }
        at = (size_t)(p - data) + 1;
        if (data[at] != DHT) {
            continue;
        }
        size_t size = read16_big(data + at + 1);
        if (size < 2 || size > length - at - 1 || !huffman_tables_fit(data + at + 3, size - 2)) {
            return false;
        }
    }
    return true;
}

static qv_status probe_jpeg(qv_image_info *info, const uint8_t *data, size_t length, qv_error *err) {
    static const char cut_short[] = "it is cut short";
    jpeg_colours colours = {.adobe = -1};
    size_t at = 2, first_scan = length;
    for (;;) {
        if (length - at < 2 || data[at] != 0xFF) {
            info->unsupported = length - at < 2 ? cut_short : "there are stray bytes between its segments";
            return QV_OK;
        }
        while (at < length && data[at] == 0xFF) {
            at++;
        }
        if (at == length) {
            info->unsupported = cut_short;
            return QV_OK;
        }
        uint8_t marker = data[at++];
        if (marker == EOI && colours.scans > 0) {
            break;
        }
        if (stands_alone(marker)) {
            info->unsupported = "a marker is out of place";
            return QV_OK;
        }
        size_t size = length - at < 2 ? 0 : read16_big(data + at);
        if (size < 2 || size > length - at) {
            info->unsupported = cut_short;
            return QV_OK;
        }
        info->unsupported = read_segment(info, &colours, marker, data + at + 2, size - 2);
        if (info->unsupported != NULL) {
            return QV_OK;
        }
        at += size;
        if (marker == SOS) {
            if (info->width == 0) {
                info->unsupported = "it has no frame header";
                return QV_OK;
            }
            if (++colours.scans > MAX_SCANS) {
                return qv_fail(err, QV_ERR_VALUE, "the JPEG has more than %zu scans", MAX_SCANS);
            }
            first_scan = first_scan < at ? first_scan : at;
            at = skip_scan(data, length, at);
        }
    }
    info->end = at;
    if (!later_tables_fit(data, info->end, first_scan)) {
        info->unsupported = "a Huffman table is broken";
    } else if (libjpeg_sees_rgb(&colours) != decoder_sees_rgb(&colours)) {
        info->unsupported = "its markers disagree about its colours";
    }
    return QV_OK;
}

/* ---- PNG ---- */

/* table[0] is the usual CRC-32 table, table[k] what k more zero bytes make of it. */
static void make_crc_tables(uint32_t table[8][256]) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0u);
        }
        table[0][i] = crc;
    }
    for (size_t k = 1; k < 8; k++) {
        for (size_t i = 0; i < 256; i++) {
            table[k][i] = table[k - 1][i] >> 8 ^ table[0][table[k - 1][i] & 255];
        }
    }
}

static uint32_t crc32_of(uint32_t table[8][256], const uint8_t *data, size_t length) {
    uint32_t crc = 0xFFFFFFFFu;
    for (; length >= 8; length -= 8, data += 8) {
        uint32_t low = read32_little(data) ^ crc, high = read32_little(data + 4);
        crc = table[7][low & 255] ^ table[6][low >> 8 & 255] ^ table[5][low >> 16 & 255] ^ table[4][low >> 24] ^
              table[3][high & 255] ^ table[2][high >> 8 & 255] ^ table[1][high >> 16 & 255] ^ table[0][high >> 24];
    }
    for (; length > 0; length--, data++) {
        crc = crc >> 8 ^ table[0][(crc ^ *data) & 255];
    }
    return ~crc;
}

/* Of a chunk's type and its `length` bytes. A fuzzer cannot guess checksums. */
static bool checksum_fits(uint32_t table[8][256], const uint8_t *type, size_t length) {
    bool fits = crc32_of(table, type, length + 4) == read32_big(type + 4 + length);
#if defined(FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION)
    fits = true;
#endif
    return fits;
}

static bool is_type(const uint8_t *type, const char *name) {
    return memcmp(type, name, 4) == 0;
}

/* Whether a text chunk may hold an orientation that takes more than this file to read: ImageMagick's hexadecimal
 * "Raw profile type exif", or XMP that is compressed or not where it belongs. */
static bool is_packed_orientation(const uint8_t *type, const uint8_t *body, size_t size) {
    static const char profile[] = "Raw profile type exif", xmp[] = "XML:com.adobe.xmp";
    bool text = is_type(type, "tEXt") || is_type(type, "zTXt") || is_type(type, "iTXt");
    return text && (starts_with(body, size, profile, sizeof profile) || starts_with(body, size, xmp, sizeof xmp));
}

static qv_status probe_png(qv_image_info *info, const uint8_t *data, size_t length, qv_error *err) {
    uint32_t table[8][256];
    make_crc_tables(table);
    static const char xmp_key[] = "XML:com.adobe.xmp\0\0\0"; /* and its flags: not compressed */
    int from_xmp = 0;
    bool packed = false;
    size_t at = 8;
    for (bool first = true;; first = false) {
        size_t size = length - at < 12 ? 0 : read32_big(data + at);
        if (length - at < 12 || size > length - at - 12) {
            info->unsupported = "it is cut short";
            return QV_OK;
        }
        const uint8_t *type = data + at + 4, *body = data + at + 8;
        bool critical = (type[0] & 0x20) == 0, ends = is_type(type, "IEND");
        if (first != is_type(type, "IHDR") || (first && size != 13) ||
            (critical && !first && !ends && !is_type(type, "PLTE") && !is_type(type, "IDAT"))) {
            info->unsupported = "it has chunks that are out of place or unknown";
            return QV_OK;
        }
        bool fits = checksum_fits(table, type, size);
        if (critical && !ends && !fits) { /* what stands after the picture's end does not harm it */
            return qv_fail(err, QV_ERR_VALUE, "the PNG is damaged: the checksum of its %.4s chunk does not fit",
                           (const char *)type);
        }
        if (first) {
            info->width = read32_big(body);
            info->height = read32_big(body + 4);
        } else if (fits && is_type(type, "eXIf")) {
            note_orientation(info, qv_exif_orientation(body, size));
        } else if (fits && is_type(type, "iTXt") && starts_with(body, size, xmp_key, sizeof xmp_key - 1)) {
            from_xmp = qv_xmp_orientation(body, size);
        } else if (is_packed_orientation(type, body, size)) {
            packed = true;
        }
        at += size + 12;
        if (ends) {
            break;
        }
    }
    note_orientation(info, from_xmp);
    if (info->width == 0 || info->height == 0) {
        info->unsupported = "its header gives no size";
    } else if (packed && info->orientation == 0) {
        info->unsupported = "its orientation is in a packed text";
    }
    info->end = at;
    return QV_OK;
}

/* ---- BMP ---- */

static void probe_bmp(qv_image_info *info, const uint8_t *data, size_t length) {
    info->unsupported = "it is a BMP of a rare kind";
    if (length < 54) {
        return;
    }
    size_t offset = read32_little(data + 10), header = read32_little(data + 14);
    uint32_t width = read32_little(data + 18), height = read32_little(data + 22);
    uint32_t bits = read16_little(data + 28), compression = read32_little(data + 30);
    if ((header != 40 && header != 108 && header != 124) || (bits != 24 && bits != 32) || compression != 0) {
        return;
    }
    height = height >> 31 ? 0u - height : height; /* negative: the rows go from the top */
    info->width = width;
    info->height = height;
    if (width == 0 || height == 0 || width >> 28 || height >> 31) {
        info->unsupported = "its header gives no size";
        return;
    }
    uint64_t row = ((uint64_t)width * bits / 8 + 3) / 4 * 4;
    if (offset < 14 + header || offset > length || row * height > length - offset) {
        info->unsupported = "it is cut short";
        return;
    }
    info->unsupported = NULL;
    info->end = length;
}

qv_status qv_image_probe(qv_image_info *info, const uint8_t *data, size_t length, qv_error *err) {
    *info = (qv_image_info){.format = QV_IMAGE_OTHER, .unsupported = "it is not a JPEG, PNG or BMP"};
    qv_status status = QV_OK;
    if (starts_with(data, length, "\xFF\xD8\xFF", 3)) {
        *info = (qv_image_info){.format = QV_IMAGE_JPEG};
        status = probe_jpeg(info, data, length, err);
    } else if (starts_with(data, length, "\x89PNG\r\n\x1A\n", 8)) {
        *info = (qv_image_info){.format = QV_IMAGE_PNG};
        status = probe_png(info, data, length, err);
    } else if (starts_with(data, length, "BM", 2)) {
        *info = (qv_image_info){.format = QV_IMAGE_BMP};
        probe_bmp(info, data, length);
    }
    if (info->orientation == 0) {
        info->orientation = 1;
    }
    return status;
}
