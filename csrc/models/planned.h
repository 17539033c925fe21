/* How every model runs: what a call needs is laid out on an arena, once to measure it and once for good, and then its ops
 * run. So memory is asked for once a call, and hardly ever: the cache keeps arenas. */
#ifndef QV_MODELS_PLANNED_H
#define QV_MODELS_PLANNED_H

#include "ops/ops.h"

typedef struct {
    const char *what; /* whose memory it is, for an error */
    /* Lay everything out, call->scratch too; the pointers are NULL while it is measured. What sizes depend on (call->lanes)
     * is settled before. */
    void (*plan)(void *state, qv_call *call, qv_arena *arena);
    /* The ops, and what the caller gets; whether they were told to stop is asked once, behind it. */
    qv_status (*run)(void *state, qv_call *call, qv_error *err);
} qv_planned;

/* QV_ERR_MEMORY, QV_ERR_CANCELLED (outputs then hold anything), or what `run` says. */
qv_status qv_run_planned(qv_call *call, qv_arena_cache *cache, const qv_planned *planned, void *state, qv_error *err);

/* call->scratch, on the arena. */
void qv_plan_scratch(qv_call *call, qv_arena *arena, size_t bytes);

/* a * b; a product that does not fit marks the arena. */
size_t qv_plan_product(qv_arena *arena, size_t a, size_t b);

#endif
