/* Rows of floats, as ops and kernels take them. Read by C and, in the kernels of a GPU, by C++. */
#ifndef QV_OPS_ROWS_H
#define QV_OPS_ROWS_H

#include <stddef.h>

/* Row r begins at at + r ld. `at` NULL: there are none. */
typedef struct {
    float *at;
    size_t ld;
} qv_rows;
typedef struct {
    const float *at;
    size_t ld;
} qv_const_rows;

#endif
