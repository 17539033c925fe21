#include "image/preprocess.h"

#include "base/memory.h"
#include "image/resize.h"

qv_status qv_preprocess(float *out, const uint8_t *picture, size_t H, size_t W, const qv_preprocessing *how,
                        qv_error *err) {
    size_t S = how->size, new_height = S, new_width = S;
    qv_window window = {0, 0, S, S};
    if (!how->exact && H != W) {
        /* The longer edge is rounded down, and so is the margin in front of the crop. */
        size_t shorter = H < W ? H : W, longer = H < W ? W : H;
        size_t resized = (size_t)((double)(S * longer) / (double)shorter);
        new_height = H < W ? S : resized;
        new_width = H < W ? resized : S;
        window.top = (new_height - S) / 2;
        window.left = (new_width - S) / 2;
    }
    uint8_t *cut = qv_allocate(S * S, 3);
    if (cut == NULL) {
        return qv_fail_memory(err, "a resized picture");
    }
    qv_status status = qv_resize_bicubic(cut, picture, H, W, new_height, new_width, window, err);
    if (status == QV_OK) {
        /* A byte has 256 values in each channel. The scale is applied in double, as a float32 1 / 255 is not exact. */
        float values[3][256];
        for (size_t c = 0; c < 3; c++) {
            for (size_t i = 0; i < 256; i++) {
                values[c][i] = ((float)((double)i * (1.0 / 255.0)) - how->mean[c]) / how->std[c];
            }
        }
        for (size_t i = 0; i < S * S; i++) {
            out[i] = values[0][cut[3 * i]];
            out[S * S + i] = values[1][cut[3 * i + 1]];
            out[2 * S * S + i] = values[2][cut[3 * i + 2]];
        }
    }
    qv_free(cut);
    return status;
}
