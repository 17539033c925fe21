/* The CPU's table of ops. */
#include "ops/cpu_ops.h"

#include <string.h>

static size_t scratch_bytes(size_t lanes, size_t rows, size_t depth, size_t keys, size_t head_width) {
    size_t attention = qv_cpu_attention_scratch(lanes, keys, head_width), linear = qv_cpu_linear_scratch(lanes, rows, depth);
    return attention > linear ? attention : linear;
}

static size_t backward_scratch_bytes(size_t lanes, size_t keys, size_t head_width, size_t H, size_t rows) {
    (void)H;
    (void)rows;
    size_t attention = qv_cpu_attention_backward_scratch(lanes, keys, head_width), linear = qv_cpu_linear_backward_scratch(lanes);
    return attention > linear ? attention : linear;
}

static qv_precision computes_in(const qv_ops *ops, qv_precision wanted) {
    (void)ops;
    return qv_product_here(wanted)->precision;
}

static void move(qv_call *call, void *out, const void *x, size_t bytes) {
    (void)call;
    memcpy(out, x, bytes);
}

const qv_ops qv_cpu_ops = {
    .name = "cpu",
    .chunk_rows = 1200, /* more would leave the cache */
    .give = move,
    .take = move,
    .computes_in = computes_in,
    .linear_pack = qv_cpu_linear_pack,
    .linear_drop = qv_cpu_linear_drop,
    .scratch_bytes = scratch_bytes,
    .linear = qv_cpu_linear,
    .norm = qv_cpu_norm,
    .attention = qv_cpu_attention,
    .preprocess = qv_cpu_preprocess,
    .patches = qv_cpu_patches,
    .embedding = qv_cpu_embedding,
    .relative_bias = qv_cpu_relative_bias,
    .rotate = qv_cpu_rotate,
    .add = qv_cpu_add,
    .softmax = qv_cpu_softmax,
    .activation = qv_cpu_activation,
    .backward_scratch_bytes = backward_scratch_bytes,
    .linear_backward = qv_cpu_linear_backward,
    .norm_backward = qv_cpu_norm_backward,
    .activation_backward = qv_cpu_activation_backward,
    .attention_backward = qv_cpu_attention_backward,
    .likelihood = qv_cpu_likelihood,
    .gradcam = qv_cpu_gradcam,
    .text_scores = qv_cpu_text_scores,
    .dots = qv_cpu_dots,
    .unit_length = qv_cpu_unit_length,
    .row_lengths = qv_cpu_row_lengths,
    .head_lengths = qv_cpu_head_lengths,
    .mean_rows = qv_cpu_mean_rows,
    .multiply_items = qv_cpu_multiply_items,
    .copy = qv_cpu_copy,
};

typedef struct {
    const qv_product *product;
    size_t steps;
    double operations[256]; /* a lane each */
} burn_work;

static void burn_task(void *context, size_t task, size_t lane) {
    (void)lane;
    burn_work *w = context;
    w->operations[task] = w->product->burn(w->steps);
}

double qv_cpu_burn(qv_precision precision, size_t lanes, size_t steps) {
    burn_work work = {qv_product_here(precision), steps, {0}};
    size_t tasks = lanes < 256 ? lanes : 256;
    qv_parallel(tasks, tasks, burn_task, &work);
    double operations = 0.0;
    for (size_t i = 0; i < tasks; i++) {
        operations += work.operations[i];
    }
    return operations;
}
