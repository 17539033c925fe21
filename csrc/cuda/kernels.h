/* What the kernels take, and which there are. Read by gcc as C11 and by nvcc as C++. */
#ifndef QV_CUDA_KERNELS_H
#define QV_CUDA_KERNELS_H

#include "ops/rows.h"

#include <stddef.h>
#include <stdint.h>

#define QVK_MAX_THREADS 256u
/* Columns of a row that a block of an element-wise kernel takes. */
#define QVK_CHUNK ((size_t)1024)
/* A tile of attention: 16 x 16 threads, each with up to 4 rows, 2 keys and 16 columns. */
#define QVK_SIDE 16u
#define QVK_TILE_ROWS 4
#define QVK_TILE_KEYS 2
#define QVK_TILE_COLUMNS 16
/* A tile of attention on tensor cores: 16 queries a warp, and so many keys. Lines in shared memory are words of 32 bits: one
 * column of TF32, two of bfloat16 (of values, one column of two keys), and between them as many words more as keep those that
 * a warp reads at once in different banks. */
#define QVK_TENSOR_WIDTH 128
#define QVK_TENSOR_STEPS 16
#define QVK_TENSOR_GROUPS 8
#define QVK_TENSOR_VALUE_ROWS 32u
#define QVK_TENSOR_KEYS(half) ((half) ? 64u : 32u)
#define QVK_TENSOR_KEY_WORDS(half, width) ((half) ? (width) / 2 : (width))
#define QVK_TENSOR_KEY_STRIDE(half, width) \
    (QVK_TENSOR_KEY_WORDS(half, width) + (QVK_TENSOR_KEY_WORDS(half, width) % 16 == 0 ? 8 : 0))
#define QVK_TENSOR_VALUE_STRIDE(half, width) ((width) + ((half) ? 8 : 4))
/* Shared memory that a launch may ask for: every GPU gives a block 48 KB, of which the sums and maxima over a block take
 * their part. */
#define QVK_STATIC_BYTES ((size_t)256)
#define QVK_SHARED_BYTES (((size_t)48 << 10) - QVK_STATIC_BYTES)

/* As qv_activation, which C++ does not see. */
enum { QVK_IDENTITY, QVK_GELU, QVK_GELU_TANH, QVK_QUICK_GELU, QVK_RELU, QVK_SILU };

/* A block a row. */
typedef struct {
    qv_rows out;
    qv_const_rows x;
    uint16_t *rounded; /* out in bfloat16, too, rows close together; or NULL */
    const float *weight, *bias; /* [D]; bias may be NULL */
    float eps;
    int rms;
    size_t D;
} qvk_norm;

/* dx may be dy; a block a row. */
typedef struct {
    qv_rows dx;
    qv_const_rows dy, x;
    const float *weight;
    float eps;
    int rms;
    size_t D;
} qvk_norm_backward;

/* out [R, D] = act(x + bias) * multiply + residual; `chunks` blocks a row. x may be out; all but out and x may be none.
 * A stride of 0 repeats a row. With `slope`, out = multiply act'(x), and nothing is added. `rounded` as of a norm, and then
 * there may be no out. */
typedef struct {
    qv_rows out;
    uint16_t *rounded;
    qv_const_rows x;
    const float *bias;
    qv_const_rows multiply, residual;
    int activation, slope;
    size_t D, chunks;
} qvk_elements;

/* out [R, D] = x in bfloat16, nearest and ties to even; `chunks` blocks a row. */
typedef struct {
    uint16_t *out;
    qv_const_rows x;
    size_t D, chunks;
} qvk_round;

/* One pass of a resize (image/resize.h), over rows or columns (`down`) of in [., ., 3], whose rows lie in_stride bytes
 * apart; weights NULL copies. Into bytes [rows, columns, 3], or (levels given) into values [3, rows, columns], which are
 * levels [3, QVK_LEVELS] of the bytes. `chunks` blocks a row. */
#define QVK_LEVELS 256
typedef struct {
    uint8_t *bytes;
    float *values;
    const float *levels;
    const uint8_t *in;
    size_t in_stride;
    const size_t *first, *taps;
    const int32_t *weights; /* [., stride] */
    size_t stride;
    int down;
    size_t rows, columns, chunks;
} qvk_resize;

/* out [P, 3 p p]; a block a patch. */
typedef struct {
    float *out;
    const float *image; /* [3, height, width] */
    size_t height, width, p;
} qvk_patches;

/* Rows `first` to T of each sequence; a block a row. */
typedef struct {
    float *x;
    size_t ld_x;
    const float *angles; /* [T - first, d] */
    float way;           /* 1, or -1 back */
    size_t T, first, H, d;
} qvk_rotate;

/* out [H, T, S]; a block a row. */
typedef struct {
    float *out;
    const float *offsets; /* [H, 2 reach + 1] */
    size_t reach, first, T, S;
} qvk_relative_bias;

/* x [., S]; a block a row. */
typedef struct {
    float *x;
    float scale;
    size_t S;
} qvk_softmax_rows;

/* As qv_attention (ops/ops.h). The tiles: a block some rows of one head of one b; the rows: a block one row. `rounded` as of a
 * norm, on tensor cores. */
typedef struct {
    qv_rows out;
    uint16_t *rounded;
    qv_const_rows q, k, v, extra_k, extra_v;
    const size_t *extra_length;
    const uint8_t *key_mask;
    const float *bias;
    size_t ld_bias, bias_rows;
    const size_t *q_index, *kv_index;
    size_t kv_stride; /* rows */
    const int32_t *key_index;
    int causal;
    size_t past;
    float scale;
    float *probabilities;
    size_t first_row, row_count, first_column, column_count;
    size_t H, T, S, M, d;
    size_t rows; /* B H T */
} qvk_attention;

/* Several that are launched together, which a launch's 4 KB of parameters hold: a block a row, those of the first in front. */
#define QVK_TOGETHER 8
typedef struct {
    qvk_attention each[QVK_TOGETHER];
    size_t count;
} qvk_attentions;

/* As qv_attention_backward. The rows: a block one (b, h, t); with kept_* [B, H, T, S] they leave what the keys need:
 * A and dS of the S keys. The keys: a block one (b, h, s). */
typedef struct {
    qvk_attention forward;
    qv_const_rows d_out;
    qv_rows d_q, d_k, d_v;
    float *probabilities, *d_probabilities;
    float *kept_probabilities, *kept_d_scores;
} qvk_attention_backward;

typedef struct {
    qvk_attention_backward each[QVK_TOGETHER];
    size_t count;
} qvk_attentions_backward;

/* out [B H, keys] = sum over t of weights[t] A max(G, 0), without A where it is NULL; `chunks` blocks a row. */
typedef struct {
    float *out;
    const float *probabilities, *d_probabilities; /* [B, H, T, keys] */
    const float *weights;                         /* [B, T], or NULL */
    size_t H, T, keys, chunks;
} qvk_relevance;

/* As qv_text_scores. A block a text, each with all the cosines [Q] in shared memory; of an answer, one block. */
typedef struct {
    float *scores, *d_y;
    const float *y, *texts;
    size_t Q, E, first;
    int softmax;
    float scale, factor;
    size_t answer;
} qvk_text_scores;

/* out [Q, R] = w x^T; a block a row of x. */
typedef struct {
    float *out;
    qv_const_rows x, w;
    size_t Q, R, D;
} qvk_dots;

/* As the op; a block a row. */
typedef struct {
    float *log_probability, *logits;
    const int32_t *targets;
    size_t V;
} qvk_likelihood;

/* out [T, S - first] = mean over h of A max(G, 0); `chunks` blocks a row. */
typedef struct {
    float *out;
    const float *probabilities, *d_probabilities; /* [H, T, S] */
    size_t first, H, T, S, chunks;
} qvk_gradcam;

/* Each row of x to unit length; a block a row. */
typedef struct {
    float *x;
    size_t D;
} qvk_unit_length;

/* out [R] = length of each row; a block a row. */
typedef struct {
    float *out;
    qv_const_rows x;
    size_t D;
} qvk_row_lengths;

/* Each head of x to the length sqrt(factor mean(lengths of its b)); a block a row of the B T. */
typedef struct {
    qv_rows out;
    qv_const_rows x;
    const float *lengths; /* [B, T] */
    float factor;
    size_t T, H, d;
} qvk_head_lengths;

/* out [D] = mean of R rows; `chunks` blocks in all. */
typedef struct {
    float *out;
    const float *x;
    size_t R, D;
} qvk_mean_rows;

/* X(id, body, parameters): every kernel, once. */
#define QVK_KERNELS(X)                                                 \
    X(NORM, qvk_norm_row, qvk_norm)                                    \
    X(NORM_BACKWARD, qvk_norm_backward_row, qvk_norm_backward)         \
    X(ELEMENTS, qvk_elements_chunk, qvk_elements)                      \
    X(ROUND, qvk_round_chunk, qvk_round)                               \
    X(RESIZE, qvk_resize_chunk, qvk_resize)                            \
    X(PATCHES, qvk_patch, qvk_patches)                                 \
    X(RELATIVE_BIAS, qvk_relative_bias_row, qvk_relative_bias)         \
    X(SOFTMAX, qvk_softmax_row, qvk_softmax_rows)                      \
    X(ROTATE, qvk_rotate_row, qvk_rotate)                              \
    X(ATTENTION_ROW, qvk_attention_row, qvk_attention)                 \
    X(ATTENTION_ROWS, qvk_attention_rows, qvk_attentions)              \
    X(ATTENTION_64, qvk_attention_tile_64, qvk_attention)              \
    X(ATTENTION_128, qvk_attention_tile_128, qvk_attention)            \
    X(ATTENTION_256, qvk_attention_tile_256, qvk_attention)            \
    X(BFLOAT16_ATTENTION_64, qvk_bfloat16_attention_64, qvk_attention) \
    X(BFLOAT16_ATTENTION_80, qvk_bfloat16_attention_80, qvk_attention) \
    X(BFLOAT16_ATTENTION_96, qvk_bfloat16_attention_96, qvk_attention) \
    X(BFLOAT16_ATTENTION_128, qvk_bfloat16_attention_128, qvk_attention)\
    X(TF32_ATTENTION_64, qvk_tf32_attention_64, qvk_attention)         \
    X(TF32_ATTENTION_80, qvk_tf32_attention_80, qvk_attention)         \
    X(TF32_ATTENTION_96, qvk_tf32_attention_96, qvk_attention)         \
    X(TF32_ATTENTION_128, qvk_tf32_attention_128, qvk_attention)       \
    X(ATTENTION_BACKWARD_ROW, qvk_backward_row, qvk_attention_backward) \
    X(ATTENTION_BACKWARD_ROWS, qvk_backward_rows, qvk_attentions_backward) \
    X(ATTENTION_BACKWARD_KEY, qvk_backward_key, qvk_attention_backward) \
    X(RELEVANCE, qvk_relevance_chunk, qvk_relevance)                   \
    X(TEXT_SCORES, qvk_text_score, qvk_text_scores)                    \
    X(DOTS, qvk_dots_row, qvk_dots)                                    \
    X(LIKELIHOOD, qvk_likelihood_row, qvk_likelihood)                  \
    X(GRADCAM, qvk_gradcam_chunk, qvk_gradcam)                         \
    X(UNIT_LENGTH, qvk_unit_length_row, qvk_unit_length)               \
    X(ROW_LENGTHS, qvk_row_length, qvk_row_lengths)                     \
    X(HEAD_LENGTHS, qvk_head_lengths_row, qvk_head_lengths)             \
    X(MEAN_ROWS, qvk_mean_rows_chunk, qvk_mean_rows)

#define QVK_ID(id, body, parameters) QVK_##id,
typedef enum { QVK_KERNELS(QVK_ID) QVK_KERNEL_COUNT } qvk_kernel;
#undef QVK_ID

#endif
