/* A device: its memory, what crosses to it and back, and the turns that calls take on it. */
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

/* ---- to the device ---- */

/* Pinned memory of at least `least` bytes, at most QV_CUDA_STAGE_BYTES of them, and how much there is. The half that is
 * left for it may still be read; the other one is waited for. */
void *qv_cuda_stage(qv_cuda_device *device, size_t least, size_t *room) {
    if (QV_CUDA_STAGE_BYTES - device->stage_used < least) {
        QV_CUDA_DO(device, record(device->state, QV_CUDA_COMPUTE, EVENT_STAGE + device->stage_half, &device->error));
        device->stage_busy[device->stage_half] = true;
        device->stage_half = 1 - device->stage_half;
        device->stage_used = 0;
        if (device->stage_busy[device->stage_half]) {
            QV_CUDA_DO(device, host_await(device->state, EVENT_STAGE + device->stage_half, &device->error));
            device->stage_busy[device->stage_half] = false;
        }
    }
    *room = QV_CUDA_STAGE_BYTES - device->stage_used;
    return device->stage_out + device->stage_half * QV_CUDA_STAGE_BYTES + device->stage_used;
}

void qv_cuda_send_staged(qv_cuda_device *device, void *to, const void *staged, size_t bytes) {
    QV_CUDA_DO(device, copy(device->state, QV_CUDA_COMPUTE, to, staged, bytes, QV_CUDA_TO_DEVICE, &device->error));
    device->stage_used += (bytes + QV_ALIGNMENT - 1) / QV_ALIGNMENT * QV_ALIGNMENT;
}

void qv_cuda_send(qv_cuda_device *device, void *to, const void *host, size_t bytes) {
    for (size_t done = 0, part; done < bytes && device->status == QV_OK; done += part) {
        size_t room;
        void *staged = qv_cuda_stage(device, QV_ALIGNMENT, &room);
        part = bytes - done < room ? bytes - done : room;
        memcpy(staged, (const char *)host + done, part);
        qv_cuda_send_staged(device, (char *)to + done, staged, part);
    }
}

static void give(qv_call *call, void *to, const void *host, size_t bytes) {
    qv_cuda_send(qv_cuda_of(call->ops), to, host, bytes);
}

/* The stream is idle: everything that it read is free again. */
static void forget(qv_cuda_device *device) {
    device->index_used = device->remembered_count = 0;
    device->stage_half = device->stage_used = 0;
    device->stage_busy[0] = device->stage_busy[1] = false;
}

/* Also after a failure: what was started before it reads pinned memory that is written to next. The call, if there is one,
 * hears meanwhile whether it should stop. */
static void drain(qv_cuda_device *device, qv_call *call) {
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

void qv_cuda_drain(qv_cuda_device *device) {
    drain(device, NULL);
}

void qv_cuda_reserve_indices(qv_cuda_device *device, size_t bytes) {
    if (QV_CUDA_INDEX_BYTES - device->index_used < bytes) {
        qv_cuda_drain(device);
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
    QV_CUDA_DO(device, copy(device->state, QV_CUDA_COMPUTE, device->index_device + offset, device->index_host + offset,
                            bytes, QV_CUDA_TO_DEVICE, &device->error));
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

/* Wait for the other calls, and make this thread's calls go to the device; the turn is given back by unlocking. */
static qv_status take_turn(qv_cuda_device *device, qv_error *err) {
    if (qv_cuda_wait(device, err) != QV_OK) {
        return err->code;
    }
    device->status = device->driver->enter(device->state, &device->error);
    if (device->status != QV_OK) {
        *err = device->error;
        qv_lock_give(&device->turn);
        return err->code;
    }
    qv_cuda_collect_slots(device);
    return QV_OK;
}

qv_status qv_cuda_upload(const qv_ops *ops, void *to, const void *host, size_t bytes, qv_error *err) {
    qv_cuda_device *device = qv_cuda_of(ops);
    qv_status status = take_turn(device, err);
    if (status != QV_OK) {
        return status;
    }
    qv_cuda_send(device, to, host, bytes);
    qv_cuda_drain(device);
    forget(device);
    status = device->status;
    if (status != QV_OK) {
        *err = device->error;
    }
    qv_lock_give(&device->turn);
    return status;
}

/* ---- from the device ---- */

static void take(qv_call *call, void *host, const void *from, size_t bytes) {
    qv_cuda_device *device = qv_cuda_of(call->ops);
    if (bytes == 0) {
        return;
    }
    if (device->taken_count == QV_CUDA_TAKEN || bytes > QV_CUDA_STAGE_BYTES - device->taken_bytes) {
        QV_CUDA_DO(device, copy(device->state, QV_CUDA_COMPUTE, host, from, bytes, QV_CUDA_TO_HOST, &device->error));
        return;
    }
    size_t offset = device->taken_bytes;
    QV_CUDA_DO(device, copy(device->state, QV_CUDA_COMPUTE, device->stage_in + offset, from, bytes, QV_CUDA_TO_HOST,
                            &device->error));
    device->taken[device->taken_count++] = (qv_cuda_taken){host, offset, bytes};
    device->taken_bytes += (bytes + QV_ALIGNMENT - 1) / QV_ALIGNMENT * QV_ALIGNMENT;
}

/* ---- calls ---- */

static qv_status begin(qv_call *call, qv_error *err) {
    qv_cuda_device *device = qv_cuda_of(call->ops);
    qv_status status = take_turn(device, err);
    if (status != QV_OK) {
        return status;
    }
    status = qv_cuda_prepare_buffers(device, err);
    if (status != QV_OK) {
        qv_lock_give(&device->turn);
        return status;
    }
    forget(device);
    device->taken_count = device->taken_bytes = 0;
    device->running = QV_CUDA_NO_BLOCK;
    return QV_OK;
}

static qv_status end(qv_call *call, qv_status status, qv_error *err) {
    qv_cuda_device *device = qv_cuda_of(call->ops);
    drain(device, call);
    if (status == QV_OK && device->status != QV_OK) {
        *err = device->error;
        status = device->status;
    }
    for (size_t i = 0; status == QV_OK && i < device->taken_count; i++) {
        const qv_cuda_taken *taken = &device->taken[i];
        memcpy(taken->host, device->stage_in + taken->offset, taken->bytes);
    }
    qv_cuda_collect_slots(device);
    qv_lock_give(&device->turn);
    return status;
}

qv_cuda_device *qv_cuda_device_of(qv_call *call) {
    qv_cuda_device *device = qv_cuda_of(call->ops);
    if (qv_call_stopped(call) && device->status == QV_OK) {
        device->status = qv_call_cancel(&device->error);
    }
    return device;
}

void qv_cuda_launch_kernel(qv_cuda_device *device, qvk_kernel kernel, void *parameters, size_t blocks, unsigned threads,
                           size_t shared) {
    if (blocks != 0) {
        device->launches++;
        QV_CUDA_DO(device, launch(device->state, kernel, parameters, blocks, threads, shared, &device->error));
    }
}

/* ---- opening ---- */

static const qv_ops table = {
    .chunk_rows = 9600, /* 16 images of 577 tokens: enough tiles of a product for every multiprocessor */
    .begin = begin,
    .end = end,
    .give = give,
    .take = take,
    .upload = qv_cuda_upload,
    .next_block = qv_cuda_next_block,
    .computes_in = qv_cuda_computes_in,
    .linear_pack = qv_cuda_linear_pack,
    .linear_drop = qv_cuda_linear_drop,
    .scratch_bytes = qv_cuda_scratch_bytes,
    .linear = qv_cuda_linear,
    .norm = qv_cuda_norm,
    .attention = qv_cuda_attention,
    .preprocess = qv_cuda_preprocess,
    .patches = qv_cuda_patches,
    .embedding = qv_cuda_embedding,
    .relative_bias = qv_cuda_relative_bias,
    .rotate = qv_cuda_rotate,
    .add = qv_cuda_add,
    .copy = qv_cuda_copy,
    .activation = qv_cuda_activation,
    .backward_scratch_bytes = qv_cuda_backward_scratch,
    .linear_backward = qv_cuda_linear_backward,
    .norm_backward = qv_cuda_norm_backward,
    .activation_backward = qv_cuda_activation_backward,
    .attention_backward = qv_cuda_attention_backward,
    .gradcam = qv_cuda_gradcam,
    .unit_length = qv_cuda_unit_length,
    .mean_rows = qv_cuda_mean_rows,
};

bool qv_cuda_built(void) {
#if defined(QV_HAVE_CUDA)
    return true;
#else
    return false;
#endif
}

/* `kind`, or `kind` and ":N": *ordinal */
static bool read_ordinal(const char *name, const char *kind, size_t *ordinal) {
    size_t length = strlen(kind);
    *ordinal = 0;
    if (strncmp(name, kind, length) != 0 || (name[length] != '\0' && name[length] != ':')) {
        return false;
    }
    const char *digit = name + length + (name[length] == ':' ? 1 : 0);
    if (name[length] == ':' && *digit == '\0') {
        return false;
    }
    for (; *digit != '\0'; digit++) {
        if (*digit < '0' || *digit > '9' || *ordinal > 1000000) {
            return false;
        }
        *ordinal = *ordinal * 10 + (size_t)(*digit - '0');
    }
    return true;
}

static qv_status choose_driver(const qv_cuda_driver **driver, size_t *ordinal, const char *name, qv_error *err) {
    if (read_ordinal(name, qv_cuda_host_driver.name, ordinal)) {
        *driver = &qv_cuda_host_driver;
        return QV_OK;
    }
    if (!read_ordinal(name, "cuda", ordinal)) {
        return qv_fail(err, QV_ERR_VALUE, "device: expected 'cpu', 'cuda' or 'cuda:N', got '%.60s'", name);
    }
#if defined(QV_HAVE_CUDA)
    size_t count;
    qv_status status = qv_cuda_count(&count, err);
    if (status == QV_OK && *ordinal >= count) {
        status = count == 1 ? qv_fail(err, QV_ERR_VALUE, "device '%s': there is one GPU, cuda:0", name)
                            : qv_fail(err, QV_ERR_VALUE, "device '%s': there are %zu GPUs, cuda:0 to cuda:%zu", name, count,
                                      count - 1);
    }
    *driver = &qv_cuda_gpu_driver;
    return status;
#else
    return qv_fail(err, QV_ERR_UNSUPPORTED,
                   "device '%s': this build of qavit has no CUDA; build it with QAVIT_CUDA=1, or use device='cpu'", name);
#endif
}

qv_status qv_cuda_check(const char *name, qv_error *err) {
    const qv_cuda_driver *driver;
    size_t ordinal;
    return choose_driver(&driver, &ordinal, name, err);
}

static qv_status allocate_stages(qv_cuda_device *device, qv_error *err) {
    const qv_cuda_driver *driver = device->driver;
    device->index_host = driver->allocate_pinned(device->state, QV_CUDA_INDEX_BYTES);
    device->stage_out = driver->allocate_pinned(device->state, 2 * QV_CUDA_STAGE_BYTES);
    device->stage_in = driver->allocate_pinned(device->state, QV_CUDA_STAGE_BYTES);
    device->index_device = qv_cuda_allocate(&device->memory, QV_CUDA_INDEX_BYTES);
    if (device->index_host == NULL || device->stage_out == NULL || device->stage_in == NULL ||
        device->index_device == NULL) {
        return qv_fail_memory(err, "what goes to and from a GPU");
    }
    return QV_OK;
}

qv_status qv_cuda_open(qv_cuda_device **out, const char *name, const qv_cuda_options *options, qv_error *err) {
    *out = NULL;
    const qv_cuda_driver *driver = NULL;
    size_t ordinal;
    qv_status status = choose_driver(&driver, &ordinal, name, err);
    if (status != QV_OK) {
        return status;
    }
    qv_cuda_device *device = qv_allocate(1, sizeof *device);
    if (device == NULL) {
        return qv_fail_memory(err, "a device");
    }
    memset(device, 0, sizeof *device);
    if (!qv_lock_make(&device->turn)) {
        qv_free(device);
        return qv_fail_memory(err, "a device's lock");
    }
    device->driver = driver;
    device->offload = options->offload;
    device->process = qv_os_process();
    device->open_block = device->running = QV_CUDA_NO_BLOCK;
    for (size_t i = 0; i < QV_CUDA_BUFFERS; i++) {
        device->buffers[i].holds = QV_CUDA_NO_BLOCK;
    }
    device->memory = (qv_memory){qv_cuda_allocate, qv_cuda_free};
    device->ops = table;
    device->ops.name = driver->name;
    device->ops.memory = &device->memory;
    status = driver->open(&device->state, ordinal, options->tf32, err);
    if (status == QV_OK) {
        status = allocate_stages(device, err);
    }
    if (status != QV_OK) {
        qv_cuda_close(device);
        return status;
    }
    *out = device;
    return QV_OK;
}

void qv_cuda_close(qv_cuda_device *device) {
    if (device == NULL) {
        return;
    }
    /* After a fork the GPU's state belongs to the parent: only the host's memory can be freed here. */
    qv_error ignored;
    if (device->state != NULL && !qv_cuda_forked(device)) {
        (void)device->driver->enter(device->state, &ignored);
        qv_cuda_release_weights(device);
        qv_cuda_free(&device->memory, device->index_device);
        qv_cuda_free(&device->memory, device->picture);
        device->driver->free_pinned(device->state, device->index_host);
        device->driver->free_pinned(device->state, device->stage_out);
        device->driver->free_pinned(device->state, device->stage_in);
        device->driver->close(device->state);
    }
    qv_free(device->blocks);
    qv_lock_end(&device->turn);
    qv_free(device);
}

const qv_ops *qv_cuda_ops(const qv_cuda_device *device) {
    return &device->ops;
}

qv_cuda_counters qv_cuda_count_up(const qv_cuda_device *device) {
    return (qv_cuda_counters){
        .held = atomic_load(&device->held),
        .allocations = atomic_load(&device->allocations),
        .launches = device->launches,
        .streamed = device->streamed,
    };
}
