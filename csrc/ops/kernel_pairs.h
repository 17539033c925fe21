/* Pairs of bfloat16 in plain C, for a set without instructions for it: TARGET_BFLOAT16 and INLINE_BFLOAT16 are defined. To
 * nearest, ties to even; NaN stays NaN. */

INLINE_BFLOAT16 uint32_t round_to_bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16, quiet = bits >> 16 | 0x40u;
    return x == x ? rounded : quiet;
}

INLINE_BFLOAT16 void store_half(qv_bits16 *out, vec x, size_t n) {
    float lanes[WIDTH];
    store(lanes, x);
    for (size_t i = 0; i < n; i++) {
        out[i] = (qv_bits16)round_to_bfloat16(lanes[i]);
    }
}

TARGET_BFLOAT16 static void write_pairs(float *out, const float *x, size_t n) {
    qv_bits16 *halves = (qv_bits16 *)(void *)out;
    for (size_t i = 0; i < n; i++) {
        halves[i] = (qv_bits16)round_to_bfloat16(x[i]);
    }
    if (n % 2 != 0) {
        halves[n] = 0;
    }
}

TARGET_BFLOAT16 static void read_pairs(float *out, const float *steps, size_t n) {
    const qv_bits16 *halves = (const qv_bits16 *)(const void *)steps;
    qv_bits32 *bits = (qv_bits32 *)(void *)out;
    for (size_t i = 0; i < n; i++) {
        bits[i] = (qv_bits32)halves[i] << 16;
    }
}

TARGET_BFLOAT16 static void join_pairs(float *out, const float *const *rows, size_t n) {
    qv_bits32 *pairs_out = (qv_bits32 *)(void *)out;
    for (size_t i = 0; i < n; i++) {
        pairs_out[i] = round_to_bfloat16(rows[0][i]) | round_to_bfloat16(rows[1][i]) << 16;
    }
}
