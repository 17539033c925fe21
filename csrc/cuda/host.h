/* Between the two files of the host as a CUDA driver. */
#ifndef QV_CUDA_HOST_H
#define QV_CUDA_HOST_H

#include "cuda/driver.h"

/* When what is told to a stream is done: at once, or as a GPU may do it, as late as can be. The copy stream then runs ahead
 * of the compute stream wherever it may ("cuda-host:1"), or does nothing that nobody waits for ("cuda-host:2"). What
 * lacks an event, or memory that is written to too early, gives wrong numbers under one of them. */
typedef enum { QV_HOST_AT_ONCE, QV_HOST_COPIES_FIRST, QV_HOST_COPIES_LAST, QV_HOST_ORDERS } qv_host_order;

#define QV_HOST_MEMBER(id, body, parameters) parameters id;
typedef union {
    QVK_KERNELS(QV_HOST_MEMBER)
} qv_host_parameters;
#undef QV_HOST_MEMBER

typedef enum { QV_HOST_COPY, QV_HOST_LAUNCH, QV_HOST_MULTIPLY, QV_HOST_RECORD, QV_HOST_AWAIT } qv_host_kind;

typedef struct qv_host_task qv_host_task;
struct qv_host_task {
    qv_host_task *next;
    qv_host_kind kind;
    /* a copy */
    void *to;
    const void *from;
    size_t bytes;
    /* a launch */
    qvk_kernel kernel;
    size_t blocks, shared;
    unsigned threads;
    qv_host_parameters parameters;
    qv_cuda_product product;
    /* an event, and which of its marks */
    size_t event, mark;
};

/* Do a copy, a launch or a product now. */
typedef qv_status (*qv_host_do)(void *state, const qv_host_task *task, qv_error *err);

typedef struct qv_host_streams qv_host_streams;
qv_host_streams *qv_host_streams_open(qv_host_order order, qv_host_do run, void *state);
void qv_host_streams_close(qv_host_streams *streams);
/* Tell a stream a task, of which a copy is kept. */
qv_status qv_host_tell(qv_host_streams *streams, qv_cuda_stream stream, qv_host_task *task, qv_error *err);
/* Do a little on the compute stream; *idle says whether nothing is left. */
qv_status qv_host_look(qv_host_streams *streams, bool *idle, qv_error *err);
/* Until the event's latest mark is reached. */
qv_status qv_host_reach(qv_host_streams *streams, size_t event, qv_error *err);
/* Until nothing is left on any stream. */
qv_status qv_host_finish(qv_host_streams *streams, qv_error *err);
/* Pinned memory that came, or goes; a copy of it that is still to be done makes the next look fail. */
bool qv_host_pin(qv_host_streams *streams, const void *memory, size_t bytes);
void qv_host_unpin(qv_host_streams *streams, const void *memory);

#if defined(QV_CUDA_EMULATED)
/* In a build for tests: the kernel as a GPU's threads run it (tests/core/emulated_gpu.cpp). */
void qv_emulated_launch(qvk_kernel kernel, const void *parameters, size_t blocks, unsigned threads, size_t shared);
#endif

#endif
