#include "ops/random.h"

#define ROUNDS 10

/* *low = the lower half of a b; returns the upper one. */
static uint64_t multiply_wide(uint64_t *low, uint64_t a, uint64_t b) {
    const uint64_t mask = 0xFFFFFFFFu;
    uint64_t lower = (a & mask) * (b & mask), cross = (a >> 32) * (b & mask) + (lower >> 32);
    uint64_t other = (a & mask) * (b >> 32) + (cross & mask);
    *low = (other << 32) | (lower & mask);
    return (a >> 32) * (b >> 32) + (cross >> 32) + (other >> 32);
}

void qv_philox(uint64_t out[4], const uint64_t counter[4], const uint64_t key[2]) {
    uint64_t x[4] = {counter[0], counter[1], counter[2], counter[3]}, k[2] = {key[0], key[1]};
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t low0, low1;
        uint64_t high0 = multiply_wide(&low0, UINT64_C(0xD2E7470EE14C6C93), x[0]);
        uint64_t high1 = multiply_wide(&low1, UINT64_C(0xCA5A826395121157), x[2]);
        x[0] = high1 ^ x[1] ^ k[0];
        x[1] = low1;
        x[2] = high0 ^ x[3] ^ k[1];
        x[3] = low0;
        k[0] += UINT64_C(0x9E3779B97F4A7C15);
        k[1] += UINT64_C(0xBB67AE8584CAA73B);
    }
    for (int i = 0; i < 4; i++) {
        out[i] = x[i];
    }
}

void qv_random_uniforms(double *out, const qv_random_key *key, size_t count) {
    for (size_t first = 0; first < count; first += 4) {
        const uint64_t counter[4] = {first / 4, key->number, key->step, 0};
        uint64_t bits[4];
        qv_philox(bits, counter, key->key);
        for (size_t i = 0; i < 4 && first + i < count; i++) {
            out[first + i] = ((double)(bits[i] >> 12) + 0.5) * 0x1p-52;
        }
    }
}
