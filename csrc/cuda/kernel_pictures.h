/* Pictures: the passes of a resize and, in the last one, what a vision model reads. The weights come from the host, which
 * makes them for the CPU's resize, too (image/resize.h), and sums of integers have one value in any order. */
#ifndef QV_CUDA_KERNEL_PICTURES_H
#define QV_CUDA_KERNEL_PICTURES_H

#include "cuda/kernel_bodies.h"
#include "image/fixed_point.h"

QVK_BODY(qvk_resize_chunk, qvk_resize) {
    const size_t y = QVK_BLOCK / p->chunks, begin = QVK_BLOCK % p->chunks * QVK_CHUNK;
    const size_t end = qvk_chunk_end(begin, p->columns), step = p->down ? p->in_stride : 3;
    QVK_THREADS(t) {
        for (size_t x = begin + t; x < end; x += QVK_WIDTH) {
            const size_t i = p->down ? y : x, taps = p->weights != NULL ? p->taps[i] : 1;
            const size_t first = p->weights != NULL ? p->first[i] : i;
            const uint8_t *pixel = p->in + (p->down ? 3 * x : y * p->in_stride) + first * step;
            int32_t sums[3] = {QV_WEIGHT_ROUNDING, QV_WEIGHT_ROUNDING, QV_WEIGHT_ROUNDING};
            for (size_t k = 0; k < taps; k++, pixel += step) {
                const int32_t weight = p->weights != NULL ? p->weights[i * p->stride + k] : QV_WEIGHT_ONE;
                QVK_UNROLL for (unsigned c = 0; c < 3; c++) {
                    sums[c] += pixel[c] * weight;
                }
            }
            QVK_UNROLL for (unsigned c = 0; c < 3; c++) {
                const uint8_t byte = qv_sum_to_byte(sums[c]);
                if (p->levels != NULL) {
                    p->values[(c * p->rows + y) * p->columns + x] = p->levels[c * QVK_LEVELS + byte];
                } else {
                    p->bytes[3 * (y * p->columns + x) + c] = byte;
                }
            }
        }
    }
}

#endif
