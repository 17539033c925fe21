#include "image/preprocess.h"

#include "base/memory.h"

qv_status qv_preprocess_plan(qv_resize_plan *resize, float levels[3][QV_LEVELS], const qv_picture_view *picture,
                             const qv_preprocessing *how, qv_error *err) {
    size_t S = how->size, H = picture->H, W = picture->W, new_height = S, new_width = S;
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
    /* A byte has 256 values in each channel. The scale is applied in double, as a float32 1 / 255 is not exact. */
    for (size_t c = 0; c < 3; c++) {
        for (size_t i = 0; i < QV_LEVELS; i++) {
            levels[c][i] = ((float)((double)i * (1.0 / 255.0)) - how->mean[c]) / how->std[c];
        }
    }
    return qv_resize_plan_make(resize, H, W, new_height, new_width, window, err);
}

qv_status qv_preprocess(float *out, const qv_picture_view *picture, const qv_preprocessing *how, qv_error *err) {
    size_t S = how->size;
    float levels[3][QV_LEVELS];
    qv_resize_plan resize;
    qv_status status = qv_preprocess_plan(&resize, levels, picture, how, err);
    if (status != QV_OK) {
        return status;
    }
    uint8_t *cut = qv_allocate(S * S, 3);
    status = cut != NULL ? qv_resize_run(cut, picture->pixels, picture->W, &resize, err)
                         : qv_fail_memory(err, "a resized picture");
    for (size_t i = 0; status == QV_OK && i < S * S; i++) {
        out[i] = levels[0][cut[3 * i]];
        out[S * S + i] = levels[1][cut[3 * i + 1]];
        out[2 * S * S + i] = levels[2][cut[3 * i + 2]];
    }
    qv_free(cut);
    qv_resize_plan_free(&resize);
    return status;
}
