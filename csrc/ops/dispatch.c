/* Which kernels this CPU uses, and how its lanes are set to work. */
#include "base/cpu.h"
#include "ops/cpu_ops.h"
#include "ops/kernels.h"

const qv_kernels *qv_kernels_here(void) {
    qv_cpu_features cpu = qv_cpu();
#if defined(__x86_64__)
    if (cpu.avx512) {
        return &qv_kernels_avx512;
    }
    if (cpu.avx2_fma) {
        return &qv_kernels_avx2;
    }
#elif defined(__aarch64__)
    if (cpu.neon) {
        return &qv_kernels_neon;
    }
#else
    (void)cpu;
#endif
    return &qv_kernels_generic;
}

const qv_product *qv_product_here(qv_precision wanted) {
    const qv_kernels *kernels = qv_kernels_here();
    for (size_t i = 1; i < kernels->product_count; i++) {
        const qv_product *product = &kernels->products[i];
        if (product->precision == wanted && (product->runs == NULL || product->runs())) {
            return product;
        }
    }
    return kernels->products;
}

const char *qv_cpu_kernels(qv_precision precision) {
    return qv_product_here(precision)->name;
}

size_t qv_cpu_panel_columns(void) {
    const qv_product *product = qv_product_here(QV_PRECISION_FLOAT32);
    return product->packs_layers ? product->panel_columns : 0;
}

void qv_cpu_run(qv_call *call, size_t lanes, size_t tasks, qv_task run, void *context) {
    if (!qv_call_stopped(call)) {
        qv_parallel(lanes, tasks, run, context);
    }
}
