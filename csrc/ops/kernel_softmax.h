/* What makes weights of the scores that a product gives, for the steps of the next one. kernel_template.h includes it once a
 * product, with the name EXPONENTIATE of what it defines, STEP_TARGET, KEEP(x, i, e, n): the n lanes of e become items i .. of
 * x's steps, and WEIGHT_OF(y): exp(y / SCALE_FACTOR), NaN of NaN. The largest is taken away before scale is multiplied by: its
 * own weight is then 1, however large the scores. */

STEP_TARGET static float EXPONENTIATE(float *x, float scale, size_t n) {
    const float top = find_largest(x, n);
    const vec factor = set1(scale * SCALE_FACTOR), start = set1(top);
    vec sum = zero(), other = zero();
    size_t i = 0;
    for (; i + 2 * WIDTH <= n; i += 2 * WIDTH) {
        vec y = (load(x + i) - start) * factor, z = (load(x + i + WIDTH) - start) * factor;
        vec e = WEIGHT_OF(y), f = WEIGHT_OF(z);
        KEEP(x, i, e, WIDTH);
        KEEP(x, i + WIDTH, f, WIDTH);
        sum = sum + e;
        other = other + f;
    }
    if (i + WIDTH <= n) {
        vec y = (load(x + i) - start) * factor, e = WEIGHT_OF(y);
        KEEP(x, i, e, WIDTH);
        sum = sum + e;
        i += WIDTH;
    }
    if (i < n) {
        vec y = (load_part(x + i, n - i) - start) * factor, e = keep_part(WEIGHT_OF(y), n - i);
        KEEP(x, i, e, n - i);
        other = other + e;
    }
    return 1.0f / reduce_sum(sum + other);
}
