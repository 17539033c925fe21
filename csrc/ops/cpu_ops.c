/* The CPU's table of ops. */
#include "ops/cpu_ops.h"

#include "base/cpu.h"

static size_t scratch_bytes(size_t lanes, size_t rows, size_t depth, size_t keys, size_t head_width) {
    (void)rows;
    (void)depth;
    return qv_cpu_attention_scratch(lanes, keys, head_width);
}

const qv_ops qv_cpu_ops = {
    .name = "cpu",
    .linear_prepare = qv_cpu_linear_prepare,
    .linear_free = qv_cpu_linear_free,
    .scratch_bytes = scratch_bytes,
    .linear = qv_cpu_linear,
    .layer_norm = qv_cpu_layer_norm,
    .rms_norm = qv_cpu_rms_norm,
    .attention = qv_cpu_attention,
    .patches = qv_cpu_patches,
    .embedding = qv_cpu_embedding,
    .add = qv_cpu_add,
    .activation = qv_cpu_activation,
    .backward_scratch_bytes = qv_cpu_backward_scratch,
    .linear_backward = qv_cpu_linear_backward,
    .layer_norm_backward = qv_cpu_layer_norm_backward,
    .activation_backward = qv_cpu_activation_backward,
    .attention_backward = qv_cpu_attention_backward,
    .gradcam = qv_cpu_gradcam,
    .unit_length = qv_cpu_unit_length,
    .mean_rows = qv_cpu_mean_rows,
    .copy = qv_cpu_copy,
};

const char *qv_cpu_kernels(qv_precision precision) {
    (void)precision;
    return "openblas";
}

bool qv_cpu_has_bfloat16(void) {
    return false;
}
