/* The CPU's table of ops. */
#include "ops/cpu_ops.h"

#include "base/cpu.h"
#include "base/threads.h"
#include "ops/kernels.h"

static size_t scratch_bytes(size_t lanes, size_t rows, size_t depth, size_t keys, size_t head_width) {
    size_t attention = qv_cpu_attention_scratch(lanes, keys, head_width), linear = qv_cpu_linear_scratch(rows, depth);
    return attention > linear ? attention : linear;
}

const qv_ops qv_cpu_ops = {
    .name = "cpu",
    .chunk_rows = 1200, /* more would leave the cache */
    .give = qv_cpu_move,
    .take = qv_cpu_move,
    .linear_prepare = qv_cpu_linear_prepare,
    .linear_free = qv_cpu_linear_free,
    .scratch_bytes = scratch_bytes,
    .linear = qv_cpu_linear,
    .layer_norm = qv_cpu_layer_norm,
    .rms_norm = qv_cpu_rms_norm,
    .attention = qv_cpu_attention,
    .preprocess = qv_cpu_preprocess,
    .patches = qv_cpu_patches,
    .embedding = qv_cpu_embedding,
    .relative_bias = qv_cpu_relative_bias,
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

const qv_kernels *qv_kernels_here(void) {
#if defined(__x86_64__)
    qv_cpu_features cpu = qv_cpu();
    if (cpu.avx512) {
        return &qv_kernels_avx512;
    }
    if (cpu.avx2_fma) {
        return &qv_kernels_avx2;
    }
#endif
    return &qv_kernels_generic;
}

const char *qv_cpu_kernels(qv_precision precision) {
    return precision == QV_PRECISION_BFLOAT16 && qv_cpu_has_bfloat16() ? "avx512_bf16" : qv_kernels_here()->name;
}

size_t qv_cpu_panel_columns(void) {
    const qv_kernels *kernels = qv_kernels_here();
    return kernels->packs_weights ? kernels->panel_columns : 0;
}

bool qv_cpu_has_bfloat16(void) {
    return qv_kernels_here()->multiply_bfloat16 != NULL && qv_cpu().avx512_bf16;
}

typedef struct {
    qv_precision precision;
    size_t steps;
    double operations[256]; /* a lane each */
} burn_work;

static void burn_task(void *context, size_t task, size_t lane) {
    (void)lane;
    burn_work *w = context;
    w->operations[task] = qv_kernels_here()->burn(w->precision, w->steps);
}

double qv_cpu_burn(qv_precision precision, size_t lanes, size_t steps) {
    bool in_bfloat16 = precision == QV_PRECISION_BFLOAT16 && qv_cpu_has_bfloat16();
    burn_work work = {in_bfloat16 ? QV_PRECISION_BFLOAT16 : QV_PRECISION_FLOAT32, steps, {0}};
    size_t tasks = lanes < 256 ? lanes : 256;
    qv_parallel(tasks, tasks, burn_task, &work);
    double operations = 0.0;
    for (size_t i = 0; i < tasks; i++) {
        operations += work.operations[i];
    }
    return operations;
}
