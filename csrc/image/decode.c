/* The one file that knows stb_image. */
#include "image/decode.h"

#include "base/memory.h"
#include "image/probe.h"

#include <limits.h>
#include <string.h>

#if defined(QV_HAVE_STB)

/* stb_image allocates without a context: what one decode may ask for at a time, and why it was refused. */
static _Thread_local struct {
    size_t limit;
    bool over_limit, no_memory;
} budget;

/* Cleared: a file may leave parts of its picture undescribed. */
static void *allocate_within_budget(size_t bytes) {
    if (bytes > budget.limit) {
        budget.over_limit = true;
        return NULL;
    }
    void *memory = qv_allocate(bytes, 1);
    if (memory == NULL) {
        budget.no_memory = true;
        return NULL;
    }
    return memset(memory, 0, bytes);
}

static void *grow_within_budget(void *memory, size_t old_bytes, size_t new_bytes) {
    void *grown = allocate_within_budget(new_bytes);
    if (grown != NULL && memory != NULL) {
        memcpy(grown, memory, old_bytes < new_bytes ? old_bytes : new_bytes);
        qv_free(memory);
    }
    return grown;
}

#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wextra"
#endif
#if defined(__clang__)
/* In a damaged JPEG the bit reader shifts by more than a word; the bits it then makes up index nothing. */
#pragma clang attribute push(__attribute__((no_sanitize("shift"))), apply_to = function)
#endif
#define STBI_MALLOC(bytes) allocate_within_budget(bytes)
#define STBI_REALLOC_SIZED(memory, old_bytes, new_bytes) grow_within_budget(memory, old_bytes, new_bytes)
#define STBI_REALLOC(memory, new_bytes) NULL /* unused where REALLOC_SIZED is defined */
#define STBI_FREE(memory) qv_free(memory)
#define STBI_ASSERT(condition) ((void)0)
#define STBI_NO_STDIO
#define STBI_NO_LINEAR
#define STBI_NO_HDR
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#define STBI_ONLY_BMP
#define STBI_MAX_DIMENSIONS (1 << 24)
#if defined(__ARM_NEON)
#define STBI_NEON
#endif
#define STB_IMAGE_IMPLEMENTATION
#include <stb/stb_image.h>
#if defined(__clang__)
#pragma clang attribute pop
#endif
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

/* A file checked by qv_image_probe. */
static qv_status decode_with_stb(qv_picture *out, const uint8_t *data, const qv_image_info *info, qv_error *err) {
    if (info->end > INT_MAX) {
        return qv_fail(err, QV_ERR_UNSUPPORTED, "the file is larger than 2 GiB");
    }
    /* The largest single buffer an honest file needs is the inflated data of a PNG of four 16-bit channels, grown by
     * doubling; the compressed bytes are gathered by doubling too. */
    size_t width, height;
    if (!qv_add_size(info->width, 64, &width) || !qv_add_size(info->height, 64, &height) ||
        !qv_multiply_size(width, height, &budget.limit) || !qv_multiply_size(budget.limit, 16, &budget.limit) ||
        !qv_add_size(budget.limit, 2 * info->end + 65536, &budget.limit)) {
        return qv_fail(err, QV_ERR_VALUE, "%zu x %zu pixels are too many", info->width, info->height);
    }
    budget.over_limit = budget.no_memory = false;
    int found_width = 0, found_height = 0, channels = 0;
    uint8_t *pixels = stbi_load_from_memory(data, (int)info->end, &found_width, &found_height, &channels, 3);
    if (pixels == NULL) {
        if (budget.no_memory) {
            return qv_fail_memory(err, "a decoded picture");
        }
        if (budget.over_limit) {
            return qv_fail(err, QV_ERR_VALUE, "the file holds more data than its %zu x %zu pixels need", info->width,
                           info->height);
        }
        return qv_fail(err, QV_ERR_UNSUPPORTED, "the file cannot be decoded: %s", stbi_failure_reason());
    }
    *out = (qv_picture){pixels, (size_t)found_height, (size_t)found_width};
    if (out->height != info->height || out->width != info->width) {
        qv_picture_free(out);
        return qv_fail(err, QV_ERR_UNSUPPORTED, "the file cannot be decoded: it gives two sizes");
    }
    return QV_OK;
}

#else

static qv_status decode_with_stb(qv_picture *out, const uint8_t *data, const qv_image_info *info, qv_error *err) {
    (void)out, (void)data, (void)info;
    return qv_fail(err, QV_ERR_UNSUPPORTED, "this build has no image decoder");
}

#endif

qv_status qv_image_decode(qv_picture *out, const uint8_t *data, size_t length, bool exif, size_t max_pixels,
                          qv_error *err) {
    *out = (qv_picture){NULL, 0, 0};
    qv_image_info info;
    qv_status status = qv_image_probe(&info, data, length, err);
    if (status != QV_OK) {
        return status;
    }
    size_t pixels;
    if (!qv_multiply_size(info.height, info.width, &pixels) || pixels > max_pixels) {
        return qv_fail(err, QV_ERR_VALUE, "%zu x %zu pixels, more than max_pixels = %zu", info.width, info.height,
                       max_pixels);
    }
    if (info.unsupported != NULL) {
        return qv_fail(err, QV_ERR_UNSUPPORTED, "the file cannot be decoded: %s", info.unsupported);
    }
    status = decode_with_stb(out, data, &info, err);
    if (status == QV_OK && exif) {
        status = qv_picture_orient(out, info.orientation, err);
    }
    if (status != QV_OK) {
        qv_picture_free(out);
    }
    return status;
}

#define TILE ((size_t)32)

qv_status qv_picture_orient(qv_picture *picture, int orientation, qv_error *err) {
    if (orientation <= 1 || orientation > 8) {
        return QV_OK;
    }
    size_t H = picture->height, W = picture->width;
    uint8_t *turned = qv_allocate(H * W, 3);
    if (turned == NULL) {
        return qv_fail_memory(err, "a turned picture");
    }
    /* Pixel (y, x) of the result comes from row `first_row` +- (y or x) and column `first_column` +- (x or y). */
    bool swapped = orientation >= 5;
    bool rows_reversed = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    bool columns_reversed = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    size_t height = swapped ? W : H, width = swapped ? H : W;
    for (size_t y0 = 0; y0 < height; y0 += TILE) {
        for (size_t x0 = 0; x0 < width; x0 += TILE) {
            size_t y1 = y0 + TILE < height ? y0 + TILE : height, x1 = x0 + TILE < width ? x0 + TILE : width;
            for (size_t y = y0; y < y1; y++) {
                for (size_t x = x0; x < x1; x++) {
                    size_t row = swapped ? x : y, column = swapped ? y : x;
                    row = rows_reversed ? H - 1 - row : row;
                    column = columns_reversed ? W - 1 - column : column;
                    memcpy(turned + 3 * (y * width + x), picture->pixels + 3 * (row * W + column), 3);
                }
            }
        }
    }
    qv_picture_free(picture);
    *picture = (qv_picture){turned, height, width};
    return QV_OK;
}

void qv_picture_free(qv_picture *picture) {
    qv_free(picture->pixels);
    *picture = (qv_picture){NULL, 0, 0};
}
