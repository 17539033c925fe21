/* A call on the ops: its begin and end, what crosses between the caller's memory and the ops', and when it is to stop. */
#include "ops/backend.h"

#include "base/os.h"

#include <stdint.h>

qv_status qv_call_begin(qv_call *call, qv_error *err) {
    return call->ops->begin != NULL ? call->ops->begin(call, err) : QV_OK;
}

qv_status qv_call_end(qv_call *call, qv_status status, qv_error *err) {
    if (call->ops->end != NULL) {
        status = call->ops->end(call, status, err);
    }
    return status == QV_OK && call->stopped ? qv_call_cancel(err) : status;
}

/* ---- memory ---- */

size_t qv_place_size(const qv_ops *ops, size_t count) {
    return ops->memory == NULL ? 0 : count;
}

const float *qv_give_floats(qv_call *call, float *place, const float *host, size_t count) {
    if (call->ops->memory == NULL) {
        return host;
    }
    call->ops->give(call, place, host, count * sizeof *host);
    return place;
}

void qv_take_floats(qv_call *call, float *host, const float *from, size_t count) {
    if (host != NULL && host != from) {
        call->ops->take(call, host, from, count * sizeof *host);
    }
}

qv_output qv_output_at(const qv_ops *ops, float *place, float *host, size_t count) {
    return (qv_output){host, ops->memory == NULL ? host : place, count};
}

qv_output qv_output_lay_out(qv_arena *arena, const qv_ops *ops, float *host, size_t count) {
    return qv_output_at(ops, qv_arena_floats(arena, host != NULL ? qv_place_size(ops, count) : 0), host, count);
}

qv_output qv_output_part(const qv_output *output, size_t first, size_t count) {
    bool there = output->at == output->host;
    float *host = output->host != NULL ? output->host + first : NULL;
    return (qv_output){host, there ? host : output->at, count};
}

void qv_output_take(qv_call *call, const qv_output *output) {
    qv_take_floats(call, output->host, output->at, output->count);
}

/* ---- stopping ---- */

#define POLL_NANOSECONDS 20000000

bool qv_call_stopped(qv_call *call) {
    if (call->stopped || call->poll == NULL) {
        return call->stopped;
    }
    int64_t nanoseconds = qv_os_nanoseconds();
    if (call->last_poll == 0) {
        call->last_poll = nanoseconds;
    }
    if (nanoseconds - call->last_poll >= POLL_NANOSECONDS) {
        call->last_poll = nanoseconds;
        call->stopped = call->poll(call->poll_context);
    }
    return call->stopped;
}

qv_status qv_call_cancel(qv_error *err) {
    return qv_fail(err, QV_ERR_CANCELLED, "the call was interrupted");
}
