/* Pictures, patches and look-ups: what comes in front of the first product. */
#include "ops/cpu_ops.h"

#include <string.h>

qv_status qv_cpu_preprocess(qv_call *call, float *out, const qv_picture_view *picture, const qv_preprocessing *how,
                            qv_error *err) {
    return qv_call_stopped(call) ? QV_OK : qv_preprocess(out, picture, how, err);
}

typedef struct {
    float *out;
    const float *image;
    size_t height, width, p;
} patches_work;

static void patch_row(void *context, size_t task, size_t lane) {
    (void)lane;
    const patches_work *w = context;
    size_t p = w->p, across = w->width / p;
    for (size_t x = 0; x < across; x++) {
        float *out = w->out + (task * across + x) * 3 * p * p;
        for (size_t c = 0; c < 3; c++) {
            for (size_t y = 0; y < p; y++) {
                memcpy(out, w->image + (c * w->height + task * p + y) * w->width + x * p, p * sizeof *out);
                out += p;
            }
        }
    }
}

void qv_cpu_patches(qv_call *call, float *out, const float *image, size_t height, size_t width, size_t p) {
    patches_work work = {out, image, height, width, p};
    qv_cpu_run(call, call->lanes, height / p, patch_row, &work);
}

void qv_cpu_embedding(qv_call *call, float *out, const qv_tensor *table, const int32_t *ids, const float *positions,
                      size_t n, size_t D) {
    (void)call;
    for (size_t i = 0; i < n; i++) {
        qv_tensor_read(out + i * D, table, (size_t)ids[i] * D, D);
        for (size_t c = 0; positions != NULL && c < D; c++) {
            out[i * D + c] += positions[i * D + c];
        }
    }
}

void qv_cpu_relative_bias(qv_call *call, float *out, const float *offsets, size_t reach, size_t first, size_t H, size_t T,
                          size_t S) {
    (void)call;
    for (size_t h = 0; h < H; h++, offsets += 2 * reach + 1) {
        for (size_t t = first; t < first + T; t++) {
            for (size_t s = 0; s < S; s++) {
                size_t distance = s > t ? s - t : t - s;
                distance = distance < reach ? distance : reach;
                out[s] = offsets[s > t ? reach + distance : reach - distance];
            }
            out += S;
        }
    }
}

typedef struct {
    qv_rows x;
    const float *angles; /* [T - first, d] */
    float way; /* 1, or -1 back */
    size_t T, first, H, d;
} rotate_work;

/* Row `task` of those that turn. */
static void rotate_row(void *context, size_t task, size_t lane) {
    (void)lane;
    const rotate_work *w = context;
    size_t turning = w->T - w->first, half = w->d / 2, t = task % turning;
    const float *cosines = w->angles + t * w->d, *sines = cosines + half;
    float *a = w->x.at + (task / turning * w->T + w->first + t) * w->x.ld;
    for (size_t h = 0; h < w->H; h++, a += w->d) {
        float *b = a + half;
        for (size_t j = 0; j < half; j++) {
            float sine = w->way * sines[j], turned = a[j] * cosines[j] - b[j] * sine;
            b[j] = b[j] * cosines[j] + a[j] * sine;
            a[j] = turned;
        }
    }
}

void qv_cpu_rotate(qv_call *call, qv_rows x, const float *angles, bool back, size_t B, size_t T, size_t first, size_t H,
                   size_t d) {
    rotate_work work = {x, angles, back ? -1.0f : 1.0f, T, first, H, d};
    qv_cpu_run(call, call->lanes, B * (T - first), rotate_row, &work);
}
