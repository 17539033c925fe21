/* Streams that do what they are told later than they are told it: see host.h. */
#include "cuda/host.h"

#include "base/memory.h"
#include "base/os.h"

#include <string.h>

typedef struct pinned pinned;
struct pinned {
    pinned *next;
    const char *memory;
    size_t bytes;
};

struct qv_host_streams {
    qv_host_order order;
    qv_host_do run;
    void *state;
    qv_lock lock; /* memory is freed by any thread */
    qv_host_task *first[QV_CUDA_STREAMS], *last[QV_CUDA_STREAMS];
    size_t marked[QV_CUDA_EVENTS], reached[QV_CUDA_EVENTS];
    pinned *pinned;
    bool freed_early;
};

qv_host_streams *qv_host_streams_open(qv_host_order order, qv_host_do run, void *state) {
    qv_host_streams *streams = qv_allocate(1, sizeof *streams);
    if (streams == NULL) {
        return NULL;
    }
    memset(streams, 0, sizeof *streams);
    streams->order = order;
    streams->run = run;
    streams->state = state;
    if (!qv_lock_make(&streams->lock)) {
        qv_free(streams);
        return NULL;
    }
    return streams;
}

void qv_host_streams_close(qv_host_streams *streams) {
    if (streams == NULL) {
        return;
    }
    for (size_t i = 0; i < QV_CUDA_STREAMS; i++) {
        for (qv_host_task *task = streams->first[i], *next; task != NULL; task = next) {
            next = task->next;
            qv_free(task);
        }
    }
    for (pinned *range = streams->pinned, *next; range != NULL; range = next) {
        next = range->next;
        qv_free(range);
    }
    qv_lock_end(&streams->lock);
    qv_free(streams);
}

/* ---- all below: the lock is held ---- */

static bool lies_in(const pinned *range, const void *memory) {
    return (const char *)memory >= range->memory && (const char *)memory < range->memory + range->bytes;
}

static bool is_pinned(const qv_host_streams *streams, const void *memory) {
    for (const pinned *range = streams->pinned; range != NULL; range = range->next) {
        if (lies_in(range, memory)) {
            return true;
        }
    }
    return false;
}

static qv_status run(qv_host_streams *streams, const qv_host_task *task, qv_error *err) {
    if (task->kind == QV_HOST_RECORD) {
        streams->reached[task->event] = task->mark;
    }
    return task->kind == QV_HOST_RECORD || task->kind == QV_HOST_AWAIT ? QV_OK : streams->run(streams->state, task, err);
}

/* The stream's next task, unless it waits for another stream's mark. */
static qv_status step(qv_host_streams *streams, qv_cuda_stream stream, bool *moved, qv_error *err) {
    qv_host_task *task = streams->first[stream];
    *moved = task != NULL && (task->kind != QV_HOST_AWAIT || streams->reached[task->event] >= task->mark);
    if (!*moved) {
        return QV_OK;
    }
    streams->first[stream] = task->next;
    qv_status status = run(streams, task, err);
    qv_free(task);
    return status;
}

/* Where copies go first: all of them, up to one that waits for the compute stream. */
static qv_status copy_ahead(qv_host_streams *streams, qv_error *err) {
    bool moved = streams->order == QV_HOST_COPIES_FIRST;
    qv_status status = QV_OK;
    while (status == QV_OK && moved) {
        status = step(streams, QV_CUDA_COPY, &moved, err);
    }
    return status;
}

/* A step of the stream, or else of one that it waits for; and whatever the copies are ahead. */
static qv_status advance(qv_host_streams *streams, qv_cuda_stream stream, qv_error *err) {
    bool moved;
    qv_status status = step(streams, stream, &moved, err);
    if (status == QV_OK && !moved && streams->first[stream] != NULL) {
        status = step(streams, stream == QV_CUDA_COMPUTE ? QV_CUDA_COPY : QV_CUDA_COMPUTE, &moved, err);
        if (status == QV_OK && !moved) {
            return qv_fail(err, QV_ERR_UNSUPPORTED, "cuda-host: two streams wait for each other");
        }
    }
    return status == QV_OK ? copy_ahead(streams, err) : status;
}

static qv_status finish(qv_host_streams *streams, qv_cuda_stream stream, qv_error *err) {
    qv_status status = QV_OK;
    while (status == QV_OK && streams->first[stream] != NULL) {
        status = advance(streams, stream, err);
    }
    return status;
}

static qv_status tell(qv_host_streams *streams, qv_cuda_stream stream, qv_host_task *task, qv_error *err) {
    if (task->kind == QV_HOST_RECORD) {
        streams->marked[task->event]++;
    }
    task->mark = streams->marked[task->event];
    /* The host's side of a copy is pinned, or the copy is done before the call returns. */
    bool waits = task->kind == QV_HOST_COPY && !is_pinned(streams, task->from) && !is_pinned(streams, task->to);
    if (streams->order == QV_HOST_AT_ONCE || waits) {
        qv_status status = finish(streams, stream, err);
        return status == QV_OK ? run(streams, task, err) : status;
    }
    qv_host_task *kept = qv_allocate(1, sizeof *kept);
    if (kept == NULL) {
        return qv_fail_memory(err, "what a stream is told");
    }
    *kept = *task;
    kept->next = NULL;
    if (streams->first[stream] == NULL) {
        streams->first[stream] = kept;
    } else {
        streams->last[stream]->next = kept;
    }
    streams->last[stream] = kept;
    return copy_ahead(streams, err);
}

static qv_status look(qv_host_streams *streams, bool *idle, qv_error *err) {
    *idle = true;
    if (streams->freed_early) {
        return qv_fail(err, QV_ERR_UNSUPPORTED, "cuda-host: pinned memory was freed before a copy of it was done");
    }
    qv_status status = streams->first[QV_CUDA_COMPUTE] != NULL ? advance(streams, QV_CUDA_COMPUTE, err) : QV_OK;
    *idle = streams->first[QV_CUDA_COMPUTE] == NULL;
    return status;
}

/* ---- the doors, which take the lock ---- */

qv_status qv_host_tell(qv_host_streams *streams, qv_cuda_stream stream, qv_host_task *task, qv_error *err) {
    qv_lock_take(&streams->lock);
    qv_status status = tell(streams, stream, task, err);
    qv_lock_give(&streams->lock);
    return status;
}

qv_status qv_host_look(qv_host_streams *streams, bool *idle, qv_error *err) {
    qv_lock_take(&streams->lock);
    qv_status status = look(streams, idle, err);
    qv_lock_give(&streams->lock);
    return status;
}

qv_status qv_host_reach(qv_host_streams *streams, size_t event, qv_error *err) {
    qv_lock_take(&streams->lock);
    qv_status status = QV_OK;
    while (status == QV_OK && streams->reached[event] < streams->marked[event]) {
        status = advance(streams, streams->first[QV_CUDA_COPY] != NULL ? QV_CUDA_COPY : QV_CUDA_COMPUTE, err);
    }
    qv_lock_give(&streams->lock);
    return status;
}

qv_status qv_host_finish(qv_host_streams *streams, qv_error *err) {
    qv_lock_take(&streams->lock);
    qv_status status = finish(streams, QV_CUDA_COMPUTE, err);
    if (status == QV_OK) {
        status = finish(streams, QV_CUDA_COPY, err);
    }
    qv_lock_give(&streams->lock);
    return status;
}

bool qv_host_pin(qv_host_streams *streams, const void *memory, size_t bytes) {
    if (streams->order == QV_HOST_AT_ONCE) {
        return true;
    }
    pinned *range = qv_allocate(1, sizeof *range);
    if (range == NULL) {
        return false;
    }
    qv_lock_take(&streams->lock);
    *range = (pinned){streams->pinned, memory, bytes};
    streams->pinned = range;
    qv_lock_give(&streams->lock);
    return true;
}

void qv_host_unpin(qv_host_streams *streams, const void *memory) {
    qv_lock_take(&streams->lock);
    pinned **link = &streams->pinned;
    while (*link != NULL && (*link)->memory != memory) {
        link = &(*link)->next;
    }
    pinned *range = *link;
    for (size_t i = 0; range != NULL && i < QV_CUDA_STREAMS; i++) {
        for (const qv_host_task *task = streams->first[i]; task != NULL; task = task->next) {
            bool copies = task->kind == QV_HOST_COPY && (lies_in(range, task->from) || lies_in(range, task->to));
            streams->freed_early = streams->freed_early || copies;
        }
    }
    if (range != NULL) {
        *link = range->next;
        qv_free(range);
    }
    qv_lock_give(&streams->lock);
}
