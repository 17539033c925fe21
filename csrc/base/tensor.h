/* Read-only views of named weights: where a model's tensors come from, checked by name and shape. */
#ifndef QV_BASE_TENSOR_H
#define QV_BASE_TENSOR_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { QV_FLOAT32, QV_FLOAT16, QV_BFLOAT16, QV_INT8 } qv_dtype;

#define QV_MAX_DIMS ((size_t)4)
/* Matrices of int8 are of at most this depth, so that no sum leaves 32 bits: 255 * 128 * 65536 < 2^31. */
#define QV_INT8_DEPTH ((size_t)65536)

/* A contiguous row-major tensor in memory that somebody else owns and keeps alive. Its address may be unaligned.
 *
 * A matrix [N, K] may also lie there as the kernels multiply it, in panels of panel_columns of its N rows each (a
 * divisor of N): float32 [N / panel_columns, K, panel_columns]; bfloat16, in pairs of an even K,
 * [N / panel_columns, K / 2, panel_columns, 2]; int8, which there is in panels alone, in fours of a K that they divide,
 * [N / panel_columns, K / 4 + 2, panel_columns, 4], of which the last two rows are a float32 and an int32 a column: the scale of
 * its items, and their sum. Its shape is [N, K] all the same. */
typedef struct {
    const char *name;
    qv_dtype dtype;
    size_t dims;
    size_t shape[QV_MAX_DIMS];
    size_t panel_columns; /* 0: row-major */
    const void *data;
    bool mapped; /* in a file mapped read-only: its pages can be dropped, and come back when they are read again */
} qv_tensor;

size_t qv_dtype_size(qv_dtype dtype);
size_t qv_tensor_count(const qv_tensor *tensor);
/* Bytes of a tensor of so many items, whose count is known to fit. */
size_t qv_tensor_bytes(const qv_tensor *tensor);
/* The tensor was copied in another form: if it is mapped, its pages are given back. */
void qv_tensor_release_pages(const qv_tensor *tensor);
/* out [count] = the tensor's items from `first` on in row-major order, as float32, however they are stored */
void qv_tensor_read(float *out, const qv_tensor *tensor, size_t first, size_t count);
/* out [count] = the same items of a (+ scale b, where b is not NULL); spare [count] is used where there is a b */
void qv_tensor_read_sum(float *out, const qv_tensor *a, const qv_tensor *b, float scale, size_t first, size_t count,
                        float *spare);

/* A set of named tensors, sorted by name, with what was asked of it and not found. */
typedef struct {
    const qv_tensor *tensors; /* [count], sorted by name */
    size_t count;
    size_t problems;
    char report[1600]; /* the first few problems, a line each */
} qv_weights;

/* The tensor `name` with exactly this shape (dims sizes follow). A missing or mis-shaped one is noted in the set and
 * NULL returned, so that a loader can ask for everything first and list all that is wrong in one error. */
const qv_tensor *qv_weights_get(qv_weights *weights, const char *name, size_t dims, ...);
/* Any shape; NULL where there is none. For sizes that only the weights know. */
const qv_tensor *qv_weights_peek(const qv_weights *weights, const char *name);
/* QV_ERR_VALUE with the list of problems, if any were noted. `what` names the model. */
qv_status qv_weights_check(const qv_weights *weights, const char *what, qv_error *err);

#endif
