/* The arithmetic of a resize: sums of bytes times integer weights. Read by gcc as C11 and by nvcc as C++, so that a GPU
 * gives the same bytes as the CPU. */
#ifndef QV_IMAGE_FIXED_POINT_H
#define QV_IMAGE_FIXED_POINT_H

#include <stdint.h>

/* Weights are integers of this many fractional bits: 8 of the 32 are the pixel's, 2 are kept for overshoot. */
#define QV_WEIGHT_BITS 22
#define QV_WEIGHT_ONE ((int32_t)1 << QV_WEIGHT_BITS)
/* What a sum begins with. */
#define QV_WEIGHT_ROUNDING ((int32_t)1 << (QV_WEIGHT_BITS - 1))

#if defined(__CUDACC__)
#define QV_FIXED_POINT static __device__ __forceinline__
#else
#define QV_FIXED_POINT static inline
#endif

QV_FIXED_POINT uint8_t qv_sum_to_byte(int32_t sum) {
    const int32_t value = sum >> QV_WEIGHT_BITS;
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

#endif
