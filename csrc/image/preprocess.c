#include "image/preprocess.h"

#include "base/memory.h"

#include <math.h>

static size_t shorter_of(size_t a, size_t b) {
    return a < b ? a : b;
}

/* One picture's edge by the other's ratio, rounded down. */
static size_t scaled(double edge, size_t numerator, size_t denominator) {
    double result = edge * (double)numerator / (double)denominator;
    return result < 1.0 ? 1 : (size_t)result;
}

static size_t nearest(double x) {
    double result = nearbyint(x); /* ties to even */
    return result < 1.0 ? 1 : (size_t)result;
}

/* The shorter edge becomes `edge`, but the longer one at most `limit`: transformers' get_size_with_aspect_ratio. */
static void bounded_size(qv_placement *place, size_t H, size_t W, size_t edge, size_t limit) {
    double low = (double)shorter_of(H, W), high = (double)(H < W ? W : H), exact = (double)edge;
    if (high / low * exact > (double)limit) {
        exact = (double)limit * low / high;
        edge = nearest(exact);
    }
    if ((H <= W && H == edge) || (W <= H && W == edge)) {
        place->new_height = H;
        place->new_width = W;
    } else if (W < H) {
        place->new_width = edge;
        place->new_height = scaled(exact, H, W);
    } else {
        place->new_height = edge;
        place->new_width = scaled(exact, W, H);
    }
}

/* Half of what sticks out; below 0 where `edge` is shorter than the model's. */
static ptrdiff_t margin(size_t edge, size_t size, bool even) {
    if (edge >= size) {
        size_t whole = (edge - size) / 2, odd = (edge - size) % 2;
        return (ptrdiff_t)(even && odd && whole % 2 == 1 ? whole + 1 : whole);
    }
    size_t missing = size - edge;
    return -(ptrdiff_t)(even ? missing / 2 : (missing + 1) / 2);
}

qv_placement qv_place_picture(size_t H, size_t W, const qv_preprocessing *how) {
    qv_placement place = {.new_height = H, .new_width = W};
    const size_t *edges = how->edges;
    switch (how->rule) {
    case QV_RESIZE_EXACT:
        place.new_height = edges[0];
        place.new_width = edges[1];
        break;
    case QV_RESIZE_SHORTEST:
        if (edges[1] != 0) {
            bounded_size(&place, H, W, edges[0], edges[1]);
            break;
        }
        /* The longer edge is rounded down. */
        place.new_height = H <= W ? edges[0] : (size_t)((double)(edges[0] * H) / (double)W);
        place.new_width = W <= H ? edges[0] : (size_t)((double)(edges[0] * W) / (double)H);
        break;
    case QV_RESIZE_LONGEST: {
        double ratio = (double)(H < W ? W : H) / (double)edges[0];
        place.new_height = nearest((double)H / ratio);
        place.new_width = nearest((double)W / ratio);
        break;
    }
    case QV_RESIZE_COVER:
        /* One edge is exact, the other rounded down. */
        if ((double)edges[0] * (double)W >= (double)edges[1] * (double)H) {
            place.new_height = edges[0];
            place.new_width = scaled((double)edges[0], W, H);
        } else {
            place.new_height = scaled((double)edges[1], H, W);
            place.new_width = edges[1];
        }
        break;
    case QV_RESIZE_INSIDE: {
        double down = (double)H / (double)edges[0], across = (double)W / (double)edges[1];
        double ratio = down > across ? down : across;
        place.new_height = nearest((double)H / ratio);
        place.new_width = nearest((double)W / ratio);
        break;
    }
    case QV_RESIZE_NONE:
    case QV_RESIZE_RULE_COUNT:
        break;
    }
    place.top = margin(place.new_height, how->height, how->even_margins);
    place.left = margin(place.new_width, how->width, how->even_margins);
    return place;
}

qv_status qv_preprocess_plan_make(qv_preprocess_plan *plan, const qv_picture_view *picture, const qv_preprocessing *how,
                                  qv_error *err) {
    const qv_placement place = qv_place_picture(picture->H, picture->W, how);
    plan->seen = (qv_window){
        .top = place.top < 0 ? (size_t)-place.top : 0,
        .left = place.left < 0 ? (size_t)-place.left : 0,
        .height = shorter_of(place.new_height, how->height),
        .width = shorter_of(place.new_width, how->width),
    };
    qv_window cut = plan->seen;
    cut.top = place.top < 0 ? 0 : (size_t)place.top;
    cut.left = place.left < 0 ? 0 : (size_t)place.left;
    /* A byte has 256 values in each channel. The scale is applied in double, as a float32 1 / 255 is not exact. */
    for (size_t c = 0; c < 3; c++) {
        for (size_t i = 0; i < QV_LEVELS; i++) {
            plan->levels[c][i] = ((float)((double)i * how->rescale) - how->mean[c]) / how->std[c];
        }
    }
    return qv_resize_plan_make(&plan->resize, picture->H, picture->W, place.new_height, place.new_width, how->filter, cut,
                               err);
}

qv_status qv_preprocess(float *out, const qv_picture_view *picture, const qv_preprocessing *how, qv_error *err) {
    const size_t items = how->height * how->width;
    qv_preprocess_plan plan;
    qv_status status = qv_preprocess_plan_make(&plan, picture, how, err);
    if (status != QV_OK) {
        return status;
    }
    const qv_window seen = plan.seen;
    uint8_t *cut = qv_allocate(seen.height * seen.width, 3);
    status = cut != NULL ? qv_resize_run(cut, picture->pixels, picture->W, &plan.resize, err)
                         : qv_fail_memory(err, "a resized picture");
    for (size_t c = 0; status == QV_OK && c < 3; c++) {
        float *plane = out + c * items;
        const float *levels = plan.levels[c];
        if (seen.height < how->height || seen.width < how->width) {
            for (size_t i = 0; i < items; i++) {
                plane[i] = levels[0];
            }
        }
        for (size_t y = 0; y < seen.height; y++) {
            float *row = plane + (seen.top + y) * how->width + seen.left;
            const uint8_t *bytes = cut + 3 * y * seen.width + c;
            for (size_t x = 0; x < seen.width; x++) {
                row[x] = levels[bytes[3 * x]];
            }
        }
    }
    qv_free(cut);
    qv_resize_plan_free(&plan.resize);
    return status;
}
