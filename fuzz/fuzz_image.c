/* Every reader of image bytes: the headers, EXIF and XMP, the decoder, and what a decoded picture goes through. */
#include "image/decode.h"
#include "image/exif.h"
#include "image/preprocess.h"

#include <stdlib.h>

#define MAX_PIXELS ((size_t)1 << 18)
#define MODEL_EDGE ((size_t)9)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length) {
    int orientation = qv_exif_orientation(data, length), from_xmp = qv_xmp_orientation(data, length);
    if (orientation < 0 || orientation > 8 || from_xmp < 0 || from_xmp > 8) {
        abort();
    }
    qv_error err;
    qv_picture picture;
    qv_status status = qv_image_decode(&picture, data, length, true, MAX_PIXELS, &err);
    if (status != QV_OK) {
        return 0;
    }
    size_t H = picture.height, W = picture.width;
    if (H == 0 || W == 0 || H > MAX_PIXELS / W) {
        abort();
    }
    unsigned sum = 0; /* every pixel is initialised and inside the picture */
    for (size_t i = 0; i < 3 * H * W; i++) {
        sum += picture.pixels[i];
    }
    float pixels[3 * MODEL_EDGE * MODEL_EDGE];
    qv_preprocessing how = {.height = MODEL_EDGE, .width = MODEL_EDGE, .rule = (qv_resize_rule)(sum % QV_RESIZE_RULE_COUNT),
                            .edges = {MODEL_EDGE + sum % 3, MODEL_EDGE}, .filter = (qv_filter)(sum % QV_FILTER_COUNT),
                            .rescale = 1.0 / 255.0, .std = {1.0f, 1.0f, 1.0f}};
    const qv_picture_view view = {.pixels = picture.pixels, .H = H, .W = W};
    if (qv_preprocess(pixels, &view, &how, &err) != QV_OK) {
        abort();
    }
    qv_picture_free(&picture);
    return 0;
}
