/* Small weights as float32, and the clock of a call's poll. */
#include "ops/ops.h"

#include <stdint.h>
#include <time.h>

qv_status qv_vector_prepare(qv_vector *vector, const qv_tensor *tensor, qv_error *err) {
    *vector = (qv_vector){NULL, NULL};
    if (tensor == NULL) {
        return QV_OK;
    }
    if (tensor->dtype == QV_FLOAT32 && (uintptr_t)tensor->data % sizeof(float) == 0) {
        vector->data = tensor->data;
        return QV_OK;
    }
    size_t count = qv_tensor_count(tensor);
    float *copy = qv_allocate(count, sizeof *copy);
    if (copy == NULL) {
        return qv_fail_memory(err, tensor->name);
    }
    qv_tensor_read(copy, tensor, 0, count);
    vector->owned = copy;
    vector->data = copy;
    return QV_OK;
}

void qv_vector_free(qv_vector *vector) {
    qv_free(vector->owned);
    *vector = (qv_vector){NULL, NULL};
}

#define POLL_NANOSECONDS 20000000

bool qv_call_stopped(qv_call *call) {
    if (call->stopped || call->poll == NULL) {
        return call->stopped;
    }
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t nanoseconds = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    if (call->last_poll == 0) {
        call->last_poll = nanoseconds;
    }
    if (nanoseconds - call->last_poll >= POLL_NANOSECONDS) {
        call->last_poll = nanoseconds;
        call->stopped = call->poll(call->poll_context);
    }
    return call->stopped;
}
