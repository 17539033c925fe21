/* The host as a CUDA driver: memory is the host's, and a launch runs the kernel's body for one block after the other. Slow,
 * and the same arithmetic. */
#include "cuda/host.h"

#include "base/blas.h"
#include "base/memory.h"
#include "cuda/kernel_attention.h"
#include "cuda/kernel_bodies.h"
#include "cuda/kernel_pictures.h"
#include "cuda/kernel_scores.h"
#include "cuda/kernel_tensor_attention.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    float *shared; /* of one block: QVK_SHARED_BYTES */
    qv_host_order order;
    qv_host_streams *streams;
} host_state;

static qv_status host_do(void *state, const qv_host_task *task, qv_error *err);

static void host_close(void *state) {
    host_state *host = state;
    qv_host_streams_close(host->streams);
    qv_free(host->shared);
    qv_free(host);
}

static qv_status host_open(void **state, size_t ordinal, bool tf32, qv_error *err) {
    (void)tf32;
    if (ordinal >= QV_HOST_ORDERS) {
        return qv_fail(err, QV_ERR_VALUE, "device 'cuda-host:%zu': there are cuda-host, cuda-host:1 and cuda-host:2", ordinal);
    }
    host_state *host = qv_allocate(1, sizeof *host);
    if (host == NULL) {
        return qv_fail_memory(err, "the device cuda-host");
    }
    *host = (host_state){.shared = qv_allocate(QVK_SHARED_BYTES, 1), .order = (qv_host_order)ordinal};
    host->streams = qv_host_streams_open(host->order, host_do, host);
    if (host->shared == NULL || host->streams == NULL) {
        host_close(host);
        return qv_fail_memory(err, "the device cuda-host");
    }
    *state = host;
    return QV_OK;
}

static bool host_has_tensor_cores(void *state) {
    (void)state;
    return true;
}

/* A tile of attention is no slower here than its rows, one after another, would be. */
static size_t host_blocks_at_once(void *state) {
    (void)state;
    return 0;
}

static qv_status host_enter(void *state, qv_error *err) {
    (void)state;
    (void)err;
    return QV_OK;
}

static void *host_allocate(void *state, size_t bytes) {
    const host_state *host = state;
    void *memory = qv_allocate(bytes, 1);
    if (memory != NULL && host->order != QV_HOST_AT_ONCE) {
        memset(memory, 0xff, bytes);
    }
    return memory;
}

/* As cudaFree does, after all that was started. */
static void host_free(void *state, void *memory) {
    qv_error ignored; /* the next look at the stream tells */
    (void)qv_host_finish(((host_state *)state)->streams, &ignored);
    qv_free(memory);
}

static void *host_allocate_pinned(void *state, size_t bytes) {
    void *memory = host_allocate(state, bytes);
    if (memory != NULL && !qv_host_pin(((host_state *)state)->streams, memory, bytes)) {
        qv_free(memory);
        return NULL;
    }
    return memory;
}

static void host_free_pinned(void *state, void *memory) {
    qv_host_unpin(((host_state *)state)->streams, memory);
    qv_free(memory);
}

static qv_status host_copy(void *state, qv_cuda_stream stream, void *to, const void *from, size_t bytes,
                           qv_cuda_direction direction, qv_error *err) {
    (void)direction;
    qv_host_task task = {.kind = QV_HOST_COPY, .to = to, .from = from, .bytes = bytes};
    return qv_host_tell(((host_state *)state)->streams, stream, &task, err);
}

static qv_status tell_event(void *state, qv_cuda_stream stream, qv_host_kind kind, size_t event, qv_error *err) {
    if (event >= QV_CUDA_EVENTS) {
        return qv_fail(err, QV_ERR_UNSUPPORTED, "cuda-host: there is no event %zu", event);
    }
    qv_host_task task = {.kind = kind, .event = event};
    return qv_host_tell(((host_state *)state)->streams, stream, &task, err);
}

static qv_status host_record(void *state, qv_cuda_stream stream, size_t event, qv_error *err) {
    return tell_event(state, stream, QV_HOST_RECORD, event, err);
}

static qv_status host_await_event(void *state, qv_cuda_stream stream, size_t event, qv_error *err) {
    return tell_event(state, stream, QV_HOST_AWAIT, event, err);
}

static qv_status host_reach(void *state, size_t event, qv_error *err) {
    return qv_host_reach(((host_state *)state)->streams, event, err);
}

static qv_status host_query(void *state, bool *idle, qv_error *err) {
    return qv_host_look(((host_state *)state)->streams, idle, err);
}

#define QVK_DEFINE(id, body, parameters)                                                                       \
    static void body##_blocks(const void *p, size_t blocks, unsigned threads, float *shared) {                 \
        for (size_t block = 0; block < blocks; block++) {                                                      \
            body(p, block, threads, shared);                                                                   \
        }                                                                                                      \
    }
QVK_KERNELS(QVK_DEFINE)

static qv_status host_launch(void *state, qvk_kernel kernel, void *parameters, size_t blocks, unsigned threads,
                             size_t shared, qv_error *err) {
#define QVK_SIZE(id, body, parameters) sizeof(parameters),
    static const size_t sizes[] = {QVK_KERNELS(QVK_SIZE)};
    host_state *host = state;
    if (blocks == 0 || blocks > INT32_MAX || threads == 0 || threads > QVK_MAX_THREADS || threads % 32 != 0 ||
        shared > QVK_SHARED_BYTES) {
        return qv_fail(err, QV_ERR_UNSUPPORTED, "kernel %d: %zu blocks of %u threads with %zu bytes cannot be launched",
                       (int)kernel, blocks, threads, shared);
    }
    qv_host_task task = {.kind = QV_HOST_LAUNCH, .kernel = kernel, .blocks = blocks, .shared = shared, .threads = threads};
    memcpy(&task.parameters, parameters, sizes[kernel]);
    return qv_host_tell(host->streams, QV_CUDA_COMPUTE, &task, err);
}

static void launch_now(host_state *host, const qv_host_task *task) {
#define QVK_ENTRY(id, body, parameters) body##_blocks,
    static void (*const kernels[])(const void *, size_t, unsigned, float *) = {QVK_KERNELS(QVK_ENTRY)};
    /* What a block leaves in shared memory is not there for the next launch. */
    memset(host->shared, 0xff, task->shared);
#if defined(QV_CUDA_EMULATED)
    (void)kernels;
    qv_emulated_launch(task->kernel, &task->parameters, task->blocks, task->threads, task->shared);
#else
    kernels[task->kernel](&task->parameters, task->blocks, task->threads, host->shared);
#endif
}

/* [rows, columns] bfloat16 as floats, in a new array */
static float *widen(const void *bits, size_t ld, size_t rows, size_t columns) {
    float *out = qv_allocate(rows * columns, sizeof *out);
    for (size_t i = 0; out != NULL && i < rows * columns; i++) {
        out[i] = qvk_float((uint32_t)((const uint16_t *)bits)[i / columns * ld + i % columns] << 16);
    }
    return out;
}

static qv_status host_multiply(void *state, const qv_cuda_product *p, qv_error *err) {
    qv_host_task task = {.kind = QV_HOST_MULTIPLY, .product = *p};
    return qv_host_tell(((host_state *)state)->streams, QV_CUDA_COMPUTE, &task, err);
}

static qv_status multiply_now(const qv_cuda_product *p, qv_error *err) {
    size_t weight_rows = p->plain_order ? p->K : p->N, weight_columns = p->plain_order ? p->N : p->K;
    const float *x = p->x, *weight = p->weight;
    float *wide_x = NULL, *wide_weight = NULL;
    size_t ld_x = p->ld_x, ld_weight = p->ld_weight;
    if (p->bfloat16) {
        x = wide_x = widen(p->x, ld_x, p->R, p->K);
        weight = wide_weight = widen(p->weight, ld_weight, weight_rows, weight_columns);
        ld_x = p->K;
        ld_weight = weight_columns;
        if (wide_x == NULL || wide_weight == NULL) {
            qv_free(wide_x);
            qv_free(wide_weight);
            return qv_fail_memory(err, "a product on cuda-host");
        }
    }
    for (size_t r = 0; p->residual != NULL && p->residual != p->out && r < p->R; r++) {
        memcpy(p->out + r * p->ld_out, p->residual + r * p->ld_residual, p->N * sizeof *p->out);
    }
    qv_sgemm(p->out, p->ld_out, x, ld_x, false, weight, ld_weight, !p->plain_order, 1.0f,
             p->residual != NULL ? 1.0f : 0.0f, p->R, p->N, p->K);
    for (size_t i = 0; i < p->R * p->N; i++) {
        float *item = p->out + i / p->N * p->ld_out + i % p->N;
        *item = qvk_activate(*item + (p->bias != NULL ? p->bias[i % p->N] : 0.0f), (int)p->activation);
    }
    qv_free(wide_x);
    qv_free(wide_weight);
    return QV_OK;
}

static qv_status host_do(void *state, const qv_host_task *task, qv_error *err) {
    if (task->kind == QV_HOST_COPY && task->bytes != 0) {
        memcpy(task->to, task->from, task->bytes);
    } else if (task->kind == QV_HOST_LAUNCH) {
        launch_now(state, task);
    } else if (task->kind == QV_HOST_MULTIPLY) {
        return multiply_now(&task->product, err);
    }
    return QV_OK;
}

const qv_cuda_driver qv_cuda_host_driver = {
    .name = "cuda-host",
    .open = host_open,
    .close = host_close,
    .has_tensor_cores = host_has_tensor_cores,
    .blocks_at_once = host_blocks_at_once,
    .enter = host_enter,
    .allocate = host_allocate,
    .free = host_free,
    .allocate_pinned = host_allocate_pinned,
    .free_pinned = host_free_pinned,
    .copy = host_copy,
    .record = host_record,
    .await = host_await_event,
    .host_await = host_reach,
    .query = host_query,
    .launch = host_launch,
    .multiply = host_multiply,
};
