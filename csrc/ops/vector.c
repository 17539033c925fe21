/* Small weights as float32, what crosses between the caller's memory and the ops', and the clock of a call's poll. */
#include "ops/ops.h"

#include <stdint.h>
#include <string.h>
#include <time.h>

qv_status qv_vector_copy(const qv_ops *ops, qv_vector *vector, const float *data, size_t count, const char *name,
                         qv_error *err) {
    *vector = (qv_vector){NULL, NULL};
    float *copy = ops->memory != NULL ? ops->memory->allocate(ops->memory, count * sizeof *copy)
                                      : qv_allocate(count, sizeof *copy);
    if (copy == NULL) {
        return qv_fail_memory(err, name);
    }
    *vector = (qv_vector){copy, copy};
    if (ops->memory == NULL) {
        memcpy(copy, data, count * sizeof *copy);
        return QV_OK;
    }
    qv_status status = ops->upload(ops, copy, data, count * sizeof *copy, err);
    if (status != QV_OK) {
        qv_vector_free(ops, vector);
    }
    return status;
}

qv_status qv_vector_prepare(const qv_ops *ops, qv_vector *vector, const qv_tensor *tensor, qv_error *err) {
    *vector = (qv_vector){NULL, NULL};
    if (tensor == NULL) {
        return QV_OK;
    }
    bool readable = tensor->dtype == QV_FLOAT32 && tensor->panel_columns == 0 &&
                    (uintptr_t)tensor->data % sizeof(float) == 0;
    if (readable && ops->memory == NULL) {
        vector->data = tensor->data;
        return QV_OK;
    }
    size_t count = qv_tensor_count(tensor);
    if (readable) {
        return qv_vector_copy(ops, vector, tensor->data, count, tensor->name, err);
    }
    float *copy = qv_allocate(count, sizeof *copy);
    if (copy == NULL) {
        return qv_fail_memory(err, tensor->name);
    }
    qv_tensor_read(copy, tensor, 0, count);
    if (ops->memory == NULL) {
        *vector = (qv_vector){copy, copy};
        return QV_OK;
    }
    qv_status status = qv_vector_copy(ops, vector, copy, count, tensor->name, err);
    qv_free(copy);
    return status;
}

void qv_vector_free(const qv_ops *ops, qv_vector *vector) {
    if (ops->memory != NULL) {
        ops->memory->free(ops->memory, vector->owned);
    } else {
        qv_free(vector->owned);
    }
    *vector = (qv_vector){NULL, NULL};
}

qv_status qv_call_begin(qv_call *call, qv_error *err) {
    return call->ops->begin != NULL ? call->ops->begin(call, err) : QV_OK;
}

qv_status qv_call_end(qv_call *call, qv_status status, qv_error *err) {
    return call->ops->end != NULL ? call->ops->end(call, status, err) : status;
}

const float *qv_give_floats(qv_call *call, float *place, const float *host, size_t count) {
    if (call->ops->memory == NULL) {
        return host;
    }
    call->ops->give(call, place, host, count * sizeof *host);
    return place;
}

float *qv_output_place(const qv_call *call, float *place, float *host) {
    return call->ops->memory == NULL ? host : place;
}

void qv_take_floats(qv_call *call, float *host, const float *from, size_t count) {
    if (host != from) {
        call->ops->take(call, host, from, count * sizeof *host);
    }
}

size_t qv_place_size(const qv_ops *ops, size_t count) {
    return ops->memory == NULL ? 0 : count;
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
