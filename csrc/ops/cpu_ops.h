/* What the files of the CPU backend share. Models include ops/ops.h only. */
#ifndef QV_OPS_CPU_OPS_H
#define QV_OPS_CPU_OPS_H

#include "base/threads.h"
#include "ops/backend.h"
#include "ops/kernels.h"

/* Multiplications below which waking another thread costs more than it gains. */
#define QV_LEAST_SHARED ((size_t)1 << 17)

/* The tasks of an op, on up to `lanes` lanes; none, or not all, where the call is to stop. */
void qv_cpu_run(qv_call *call, size_t lanes, size_t tasks, qv_task run, void *context);

/* What the CPU keeps of a layer: each part in panels of the product, or plain [part_columns, K] for OpenBLAS; the file's or in
 * `owned`. */
typedef struct {
    const qv_product *product; /* NULL: plain */
    const float *parts[QV_MAX_PARTS];
    qv_piece owned;
} qv_cpu_weights;

/* out [columns, count] = inputs k .. k + count of the columns of a panel of `depth` inputs, as float32; k begins a step */
void qv_cpu_unpack(const qv_product *product, float *out, size_t ld_out, const float *panel, size_t depth, size_t columns,
                   size_t k, size_t count);
/* A panel's columns first .. first + columns of the source, and floats that this needs; the same of a panel as qv_cpu_unpack */
size_t qv_int8_spare(const qv_product *product, size_t depth);
void qv_int8_pack_panel(const qv_product *product, float *panel, const qv_linear_source *source, size_t first, size_t columns,
                        size_t depth, float *spare);
void qv_int8_unpack(const qv_product *product, float *out, size_t ld_out, const float *panel, size_t depth, size_t columns,
                    size_t k, size_t count);
qv_status qv_cpu_linear_pack(const qv_ops *ops, qv_pool *pool, qv_linear *layer, const qv_linear_source *sources,
                             qv_error *err);
void qv_cpu_linear_drop(const qv_ops *ops, qv_linear *layer);
void qv_cpu_linear(qv_call *call, qv_rows out, qv_const_rows x, const qv_linear *layer, size_t first, size_t count,
                   const qv_epilogue *epilogue, size_t R);
void qv_cpu_linear_backward(qv_call *call, qv_rows dx, qv_const_rows dy, const qv_linear *layer, size_t first, size_t count,
                            bool accumulate, size_t R);
/* Columns of a task, where a plain product is shared out. However many lanes there are: OpenBLAS rounds the same column in other
 * ways among other numbers of columns. */
enum { QV_SLAB_COLUMNS = 96 };
size_t qv_cpu_linear_scratch(size_t lanes, size_t rows, size_t depth);
size_t qv_cpu_linear_backward_scratch(size_t lanes);

void qv_cpu_attention(qv_call *call, const qv_attention *each, size_t count);
void qv_cpu_attention_backward(qv_call *call, const qv_attention_backward *each, size_t count);
size_t qv_cpu_attention_scratch(size_t lanes, size_t keys, size_t head_width);
size_t qv_cpu_attention_backward_scratch(size_t lanes, size_t keys, size_t head_width);

void qv_cpu_norm(qv_call *call, qv_rows out, qv_const_rows x, const qv_norm *norm, size_t R);
void qv_cpu_norm_backward(qv_call *call, qv_rows dx, qv_const_rows dy, qv_const_rows x, const qv_norm *norm, size_t R);
qv_status qv_cpu_preprocess(qv_call *call, float *out, const qv_picture_view *picture, const qv_preprocessing *how,
                            qv_error *err);
void qv_cpu_patches(qv_call *call, float *out, const float *image, size_t height, size_t width, size_t p);
void qv_cpu_embedding(qv_call *call, float *out, const qv_tensor *table, const int32_t *ids, const float *positions,
                      size_t n, size_t D);
void qv_cpu_rotate(qv_call *call, qv_rows x, const float *angles, bool back, size_t B, size_t T, size_t first, size_t H,
                   size_t d);
void qv_cpu_relative_bias(qv_call *call, float *out, const float *offsets, size_t reach, size_t first, size_t H, size_t T,
                          size_t S);
void qv_cpu_add(qv_call *call, float *out, const float *x, size_t R, size_t D);
void qv_cpu_multiply_items(qv_call *call, qv_rows out, qv_const_rows x, qv_const_rows y, size_t R, size_t D);
void qv_cpu_copy(qv_call *call, qv_rows out, qv_const_rows x, size_t R, size_t D);

void qv_cpu_softmax(qv_call *call, float *x, float scale, size_t R, size_t S);
void qv_cpu_activation(qv_call *call, float *out, const float *x, qv_activation activation, size_t n);
void qv_cpu_activation_backward(qv_call *call, float *dx, const float *dy, const float *x, qv_activation activation,
                                size_t n);
void qv_cpu_likelihood(qv_call *call, float *log_probability, float *logits, const int32_t *targets, size_t R, size_t V);
void qv_cpu_gradcam(qv_call *call, float *out, const float *probabilities, const float *d_probabilities, size_t first,
                    size_t H, size_t T, size_t S);
void qv_cpu_text_scores(qv_call *call, const qv_text_scores *scores);
void qv_cpu_dots(qv_call *call, float *out, qv_const_rows x, qv_const_rows w, size_t Q, size_t R, size_t D);
void qv_cpu_unit_length(qv_call *call, float *x, size_t R, size_t D);
void qv_cpu_row_lengths(qv_call *call, float *out, qv_const_rows x, size_t R, size_t D);
void qv_cpu_head_lengths(qv_call *call, qv_rows out, qv_const_rows x, const float *lengths, float factor, size_t B, size_t T,
                         size_t H, size_t d);
void qv_cpu_mean_rows(qv_call *call, float *out, const float *x, size_t R, size_t D);

/* out [rows, count] = (act(out + bias) * multiply) + residual; `column` is the first column of multiply and residual.
 * bias and epilogue may be NULL. */
void qv_apply_epilogue(qv_rows out, const float *bias, const qv_epilogue *epilogue, size_t column, size_t rows,
                       size_t count);
/* Every lane multiplies in registers for `steps` steps; returns the operations done, all lanes together. */
double qv_cpu_burn(qv_precision precision, size_t lanes, size_t steps);
/* x [n] = act(x) */
void qv_activate(float *x, qv_activation activation, size_t n);
/* x [n] = exp(x - max) / sum over the items; -INFINITY items give 0. All -INFINITY: NaN. */
void qv_softmax(float *x, size_t n);

#endif
