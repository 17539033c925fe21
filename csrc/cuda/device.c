/* A device: its calls, its table of ops, and how it is opened. */
#include "cuda/cuda_ops.h"

#include "base/memory.h"

#include <string.h>

/* ---- calls ---- */

static qv_status begin(qv_call *call, qv_error *err) {
    qv_cuda_device *device = qv_cuda_of(call->ops);
    qv_status status = qv_cuda_take_turn(device, err);
    if (status != QV_OK) {
        return status;
    }
    qv_cuda_collect_slots(device);
    status = qv_cuda_prepare_buffers(device, err);
    if (status != QV_OK) {
        qv_lock_give(&device->turn);
        return status;
    }
    qv_cuda_forget(device);
    device->taken_count = device->taken_bytes = 0;
    device->running = QV_CUDA_NO_BLOCK;
    device->rounded.of = NULL;
    return QV_OK;
}

static qv_status end(qv_call *call, qv_status status, qv_error *err) {
    qv_cuda_device *device = qv_cuda_of(call->ops);
    qv_cuda_drain(device, call);
    if (status == QV_OK && device->status != QV_OK) {
        *err = device->error;
        status = device->status;
    }
    if (status == QV_OK) {
        qv_cuda_hand_over(device);
    }
    qv_cuda_collect_slots(device);
    qv_lock_give(&device->turn);
    return status;
}

/* ---- opening ---- */

static const qv_ops table = {
    .chunk_rows = 9600, /* 16 images of 577 tokens: enough tiles of a product for every multiprocessor */
    .begin = begin,
    .end = end,
    .give = qv_cuda_give,
    .take = qv_cuda_take,
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
    .softmax = qv_cuda_softmax,
    .rotate = qv_cuda_rotate,
    .add = qv_cuda_add,
    .multiply_items = qv_cuda_multiply_items,
    .copy = qv_cuda_copy,
    .activation = qv_cuda_activation,
    .backward_scratch_bytes = qv_cuda_backward_scratch,
    .linear_backward = qv_cuda_linear_backward,
    .norm_backward = qv_cuda_norm_backward,
    .activation_backward = qv_cuda_activation_backward,
    .attention_backward = qv_cuda_attention_backward,
    .likelihood = qv_cuda_likelihood,
    .gradcam = qv_cuda_gradcam,
    .text_scores = qv_cuda_text_scores,
    .dots = qv_cuda_dots,
    .unit_length = qv_cuda_unit_length,
    .row_lengths = qv_cuda_row_lengths,
    .head_lengths = qv_cuda_head_lengths,
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
        device->tf32 = options->tf32 && driver->has_tensor_cores(device->state);
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
        qv_cuda_free(&device->memory, device->rounded.memory);
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
        .launches = atomic_load(&device->launches),
        .streamed = atomic_load(&device->streamed),
    };
}
