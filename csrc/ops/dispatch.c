/* Which kernels this CPU uses, and how its lanes are set to work. */
#include "base/cpu.h"
#include "ops/cpu_ops.h"
#include "ops/kernels.h"

#include <stdatomic.h>

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

typedef struct {
    qv_call *call;
    qv_task run;
    void *context;
    atomic_bool stopped; /* the call is: for lanes that are not its own thread */
} asking_work;

static void run_unless_stopped(void *context, size_t task, size_t lane) {
    asking_work *w = context;
    if (lane == 0 && qv_call_stopped(w->call)) {
        atomic_store_explicit(&w->stopped, true, memory_order_relaxed);
    }
    if (!atomic_load_explicit(&w->stopped, memory_order_relaxed)) {
        w->run(w->context, task, lane);
    }
}

void qv_cpu_run(qv_call *call, size_t lanes, size_t tasks, qv_task run, void *context) {
    if (qv_call_stopped(call)) {
        return;
    }
    if (!call->polls_in_ops) {
        qv_parallel(lanes, tasks, run, context);
        return;
    }
    asking_work work = {.call = call, .run = run, .context = context};
    if (!qv_parallel(lanes, tasks, run_unless_stopped, &work)) {
        call->stopped = true; /* its poll forked this process: here it cannot be brought to its end */
    }
}
