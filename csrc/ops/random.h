/* Random numbers by a counter: Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). A number is
 * a function of a key and a counter alone, so that no draw depends on which were drawn before it. */
#ifndef QV_OPS_RANDOM_H
#define QV_OPS_RANDOM_H

#include <stddef.h>
#include <stdint.h>

/* What one stream of draws is keyed by: the key, and the two words of the counter that say whose draw it is. */
typedef struct {
    uint64_t key[2];
    uint64_t number, step;
} qv_random_key;

/* out [4] = the block of random bits of the counter [4] under the key [2] */
void qv_philox(uint64_t out[4], const uint64_t counter[4], const uint64_t key[2]);
/* out [count] = numbers of 52 bits, in the middle of their steps: above 0 and below 1. Number i is of block i / 4. */
void qv_random_uniforms(double *out, const qv_random_key *key, size_t count);

#endif
