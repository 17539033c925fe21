/* What every part of the backend stands on: a device's memory, the steps that are told to it, what crosses to it and back, and
 * the turns that calls take on it. */
#include "cuda/cuda_ops.h"

#include "base/memory.h"

#include <stddef.h>
#include <string.h>

/* ---- memory ---- */

static qv_cuda_device *device_of(const qv_memory *memory) {
    return (qv_cuda_device *)(void *)((char *)(uintptr_t)memory - offsetof(qv_cuda_device, memory));
}

void *qv_cuda_allocate(const qv_memory *memory, size_t bytes) {
    qv_cuda_device *device = device_of(memory);
    if (qv_cuda_forked(device)) {
        return NULL; /* nothing of a GPU's may be touched here */
    }
    void *block = device->driver->allocate(device->state, bytes == 0 ? QV_ALIGNMENT : bytes);
    if (block != NULL) {
        atomic_fetch_add(&device->allocations, 1);
        atomic_fetch_add(&device->held, 1);
    }
    return block;
}

void qv_cuda_free(const qv_memory *memory, void *block) {
    qv_cuda_device *device = device_of(memory);
    if (block != NULL && !qv_cuda_forked(device)) {
        device->driver->free(device->state, block);
        atomic_fetch_sub(&device->held, 1);
    }
}

bool qv_cuda_forked(const qv_cuda_device *device) {
    return device->process != qv_os_process();
}

/* ---- steps: the first failure of a call is kept, and what comes after it is left out ---- */

qv_cuda_device *qv_cuda_device_of(qv_call *call) {
    qv_cuda_device *device = qv_cuda_of(call->ops);
    if (qv_call_stopped(call) && device->status == QV_OK) {
        device->status = qv_call_cancel(&device->error);
    }
    device->rounded.of = NULL;
    return device;
}

void qv_cuda_record(qv_cuda_device *device, qv_cuda_stream stream, size_t event) {
    if (device->status == QV_OK) {
        device->status = device->driver->record(device->state, stream, event, &device->error);
    }
}

void qv_cuda_await(qv_cuda_device *device, qv_cuda_stream stream, size_t event) {
    if (device->status == QV_OK) {
        device->status = device->driver->await(device->state, stream, event, &device->error);
    }
}

void qv_cuda_host_await(qv_cuda_device *device, size_t event) {
    if (device->status == QV_OK) {
        device->status = device->driver->host_await(device->state, event, &device->error);
    }
}

void qv_cuda_multiply(qv_cuda_device *device, const qv_cuda_product *product) {
    if (device->status == QV_OK) {
        device->status = device->driver->multiply(device->state, product, &device->error);
    }
}

void qv_cuda_transfer(qv_cuda_device *device, qv_cuda_stream stream, void *to, const void *from, size_t bytes,
                      qv_cuda_direction direction) {
    if (device->status == QV_OK) {
        device->status = device->driver->copy(device->state, stream, to, from, bytes, direction, &device->error);
    }
}

void qv_cuda_launch_kernel(qv_cuda_device *device, qvk_kernel kernel, void *parameters, size_t blocks, unsigned threads,
                           size_t shared) {
    if (blocks == 0) {
        return;
    }
    atomic_fetch_add(&device->launches, 1);
    if (device->status == QV_OK) {
        device->status =
            device->driver->launch(device->state, kernel, parameters, blocks, threads, shared, &device->error);
    }
}

/* ---- to the device ---- */

/* Pinned memory of at least `least` bytes, at most QV_CUDA_STAGE_BYTES of them, and how much there is. The half that is
 * left for it may still be read; the other one is waited for. */
void *qv_cuda_stage(qv_cuda_device *device, size_t least, size_t *room) {
    if (QV_CUDA_STAGE_BYTES - device->stage_used < least) {
        qv_cuda_record(device, QV_CUDA_COMPUTE, EVENT_STAGE + device->stage_half);
        device->stage_busy[device->stage_half] = true;
        device->stage_half = 1 - device->stage_half;
        device->stage_used = 0;
        if (device->stage_busy[device->stage_half]) {
            qv_cuda_host_await(device, EVENT_STAGE + device->stage_half);
            device->stage_busy[device->stage_half] = false;
        }
    }
    *room = QV_CUDA_STAGE_BYTES - device->stage_used;
    return device->stage_out + device->stage_half * QV_CUDA_STAGE_BYTES + device->stage_used;
}

void qv_cuda_send_staged(qv_cuda_device *device, void *to, const void *staged, size_t bytes) {
    qv_cuda_transfer(device, QV_CUDA_COMPUTE, to, staged, bytes, QV_CUDA_TO_DEVICE);
    device->stage_used += (bytes + QV_ALIGNMENT - 1) / QV_ALIGNMENT * QV_ALIGNMENT;
}

void qv_cuda_send(qv_cuda_device *device, void *to, const void *host, size_t bytes) {
    if (bytes >= QV_CUDA_DIRECT_BYTES) {
        qv_cuda_transfer(device, QV_CUDA_COMPUTE, to, host, bytes, QV_CUDA_TO_DEVICE);
        return;
    }
    for (size_t done = 0, part; done < bytes && device->status == QV_OK; done += part) {
        size_t room;
        void *staged = qv_cuda_stage(device, QV_ALIGNMENT, &room);
        part = bytes - done < room ? bytes - done : room;
        memcpy(staged, (const char *)host + done, part);
        qv_cuda_send_staged(device, (char *)to + done, staged, part);
    }
}

void qv_cuda_give(qv_call *call, void *to, const void *host, size_t bytes) {
    qv_cuda_send(qv_cuda_device_of(call), to, host, bytes);
}

void qv_cuda_forget(qv_cuda_device *device) {
    device->index_used = device->remembered_count = 0;
    device->stage_half = device->stage_used = 0;
    device->stage_busy[0] = device->stage_busy[1] = false;
}

/* Also after a failure: what was started before it reads pinned memory that is written to next. */
void qv_cuda_drain(qv_cuda_device *device, qv_call *call) {
    bool idle = false;
    while (!idle) {
        qv_error error;
        qv_status status = device->driver->query(device->state, &idle, &error);
        if (status != QV_OK) {
            if (device->status == QV_OK) {
                device->status = status;
                device->error = error;
            }
            return;
        }
        if (!idle && call != NULL) {
            (void)qv_call_stopped(call);
        }
        qv_os_yield();
    }
}

void qv_cuda_replace(qv_cuda_device *device, void **memory, size_t *held, size_t bytes, const char *what) {
    if (device->status != QV_OK) {
        return;
    }
    qv_cuda_drain(device, NULL); /* what was started may still read it */
    qv_cuda_free(&device->memory, *memory);
    *memory = qv_cuda_allocate(&device->memory, bytes);
    *held = *memory != NULL ? bytes : 0;
    if (*memory == NULL && device->status == QV_OK) {
        device->status = qv_fail_memory(&device->error, what);
    }
}

void qv_cuda_reserve_indices(qv_cuda_device *device, size_t bytes) {
    if (QV_CUDA_INDEX_BYTES - device->index_used < bytes) {
        qv_cuda_drain(device, NULL);
        device->index_used = device->remembered_count = 0;
    }
}

const void *qv_cuda_index(qv_cuda_device *device, const void *host, size_t bytes) {
    if (host == NULL || bytes == 0) {
        return NULL;
    }
    /* A block's lengths and masks are those of the block before. */
    for (size_t i = 0; i < device->remembered_count; i++) {
        size_t offset = device->remembered[i].offset;
        if (device->remembered[i].bytes == bytes && memcmp(device->index_host + offset, host, bytes) == 0) {
            return device->index_device + offset;
        }
    }
    size_t offset = device->index_used, room = (bytes + QV_ALIGNMENT - 1) / QV_ALIGNMENT * QV_ALIGNMENT;
    if (room > QV_CUDA_INDEX_BYTES - offset) {
        if (device->status == QV_OK) {
            device->status = qv_fail(&device->error, QV_ERR_UNSUPPORTED, "%s: %zu bytes of indices for one op",
                                     device->driver->name, bytes);
        }
        return device->index_device;
    }
    memcpy(device->index_host + offset, host, bytes);
    qv_cuda_transfer(device, QV_CUDA_COMPUTE, device->index_device + offset, device->index_host + offset, bytes,
                     QV_CUDA_TO_DEVICE);
    device->index_used += room;
    if (device->remembered_count < QV_CUDA_REMEMBERED) {
        device->remembered[device->remembered_count].offset = offset;
        device->remembered[device->remembered_count].bytes = bytes;
        device->remembered_count++;
    }
    return device->index_device + offset;
}

qv_status qv_cuda_check_process(const qv_cuda_device *device, qv_error *err) {
    return !qv_cuda_forked(device)
               ? QV_OK
               : qv_fail(err, QV_ERR_UNSUPPORTED,
                         "%s: the device was opened before this process was forked, and a GPU's state does not "
                         "survive that; start processes by spawning them",
                         device->driver->name);
}

qv_status qv_cuda_wait(qv_cuda_device *device, qv_error *err) {
    /* Before the lock, which a thread that is not in this process may hold. */
    if (qv_cuda_check_process(device, err) != QV_OK) {
        return err->code;
    }
    if (qv_lock_take(&device->turn)) {
        return QV_OK;
    }
    return qv_fail(err, QV_ERR_UNSUPPORTED,
                   "%s: this thread is in a call on the device already; a signal handler cannot make another on it",
                   device->driver->name);
}

qv_status qv_cuda_take_turn(qv_cuda_device *device, qv_error *err) {
    if (qv_cuda_wait(device, err) != QV_OK) {
        return err->code;
    }
    device->status = device->driver->enter(device->state, &device->error);
    if (device->status != QV_OK) {
        *err = device->error;
        qv_lock_give(&device->turn);
        return err->code;
    }
    return QV_OK;
}

qv_status qv_cuda_upload(const qv_ops *ops, void *to, const void *host, size_t bytes, qv_error *err) {
    qv_cuda_device *device = qv_cuda_of(ops);
    qv_status status = qv_cuda_take_turn(device, err);
    if (status != QV_OK) {
        return status;
    }
    qv_cuda_send(device, to, host, bytes);
    qv_cuda_drain(device, NULL);
    qv_cuda_forget(device);
    status = device->status;
    if (status != QV_OK) {
        *err = device->error;
    }
    qv_lock_give(&device->turn);
    return status;
}

/* ---- from the device ---- */

void qv_cuda_hand_over(qv_cuda_device *device) {
    for (size_t i = 0; device->status == QV_OK && i < device->taken_count; i++) {
        const qv_cuda_taken *taken = &device->taken[i];
        memcpy(taken->host, device->stage_in + taken->offset, taken->bytes);
    }
    device->taken_count = device->taken_bytes = 0;
}

void qv_cuda_take(qv_call *call, void *host, const void *from, size_t bytes) {
    qv_cuda_device *device = qv_cuda_of(call->ops);
    if (bytes == 0) {
        return;
    }
    if (bytes > QV_CUDA_STAGE_BYTES) {
        qv_cuda_transfer(device, QV_CUDA_COMPUTE, host, from, bytes, QV_CUDA_TO_HOST);
        return;
    }
    if (device->taken_count == QV_CUDA_TAKEN || bytes > QV_CUDA_STAGE_BYTES - device->taken_bytes) {
        qv_cuda_drain(device, call);
        qv_cuda_hand_over(device);
    }
    size_t offset = device->taken_bytes;
    qv_cuda_transfer(device, QV_CUDA_COMPUTE, device->stage_in + offset, from, bytes, QV_CUDA_TO_HOST);
    device->taken[device->taken_count++] = (qv_cuda_taken){host, offset, bytes};
    device->taken_bytes += (bytes + QV_ALIGNMENT - 1) / QV_ALIGNMENT * QV_ALIGNMENT;
}
