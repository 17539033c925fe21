/* What the backends of the ops share. Models include ops/ops.h only. */
#ifndef QV_OPS_BACKEND_H
#define QV_OPS_BACKEND_H

#include "ops/ops.h"

/* Whether the call is to stop: asks poll at most every few milliseconds. Ops ask before they begin. */
bool qv_call_stopped(qv_call *call);
/* QV_ERR_CANCELLED, and what an interrupted call says. */
qv_status qv_call_cancel(qv_error *err);

/* out [count] = items of the weight that the layer computes with, from `first` on; spare [count] */
void qv_linear_source_read(float *out, const qv_linear_source *source, size_t first, size_t count, float *spare);
/* The backend's own form stands in for the file's from now on. */
void qv_linear_source_release(const qv_linear_source *source);

#endif
