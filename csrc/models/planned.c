#include "models/planned.h"

qv_status qv_run_planned(qv_call *call, qv_arena_cache *cache, const qv_planned *planned, void *state, qv_error *err) {
    qv_arena measured = {.base = NULL};
    planned->plan(state, call, &measured);
    qv_arena arena = qv_arena_acquire(cache, &measured);
    if (arena.base == NULL) {
        return qv_fail_memory(err, planned->what);
    }
    planned->plan(state, call, &arena);
    qv_arena_check(&arena, &measured);
    qv_status status = arena.overflow ? qv_fail_memory(err, planned->what) : qv_call_begin(call, err);
    if (status == QV_OK) {
        status = qv_call_end(call, planned->run(state, call, err), err);
    }
    qv_arena_release(cache, &arena);
    return status;
}

void qv_plan_scratch(qv_call *call, qv_arena *arena, size_t bytes) {
    call->scratch = qv_arena_take(arena, bytes, 1);
}

size_t qv_plan_product(qv_arena *arena, size_t a, size_t b) {
    size_t product;
    arena->overflow = !qv_multiply_size(a, b, &product) || arena->overflow;
    return product;
}
