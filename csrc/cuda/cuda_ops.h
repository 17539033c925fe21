/* What the files of the CUDA backend share. */
#ifndef QV_CUDA_CUDA_OPS_H
#define QV_CUDA_CUDA_OPS_H

#include "base/os.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "ops/backend.h"

#include <stdatomic.h>

/* Index arrays of a call, in pinned memory and on the device, one behind the other. */
#define QV_CUDA_INDEX_BYTES ((size_t)4 << 20)
/* A half of the pinned memory that goes out, and the one that comes in. */
#define QV_CUDA_STAGE_BYTES ((size_t)4 << 20)
/* Host memory of this many bytes goes out as it lies: the driver then stages it itself, and faster. */
#define QV_CUDA_DIRECT_BYTES ((size_t)512 << 10)
#define QV_CUDA_TAKEN 256
#define QV_CUDA_REMEMBERED 8
/* Blocks of weights on the device at once where they are streamed. */
#define QV_CUDA_BUFFERS ((size_t)2)
#define QV_CUDA_NO_BLOCK SIZE_MAX

/* Which event says what. */
enum { EVENT_STAGE = 0, EVENT_READY = 2, EVENT_IDLE = 4 }; /* + the half, + the buffer */

/* A layer whose weight waits on the host. */
typedef struct qv_cuda_slot qv_cuda_slot;
struct qv_cuda_slot {
    qv_cuda_slot *next; /* of the same block */
    qv_cuda_slot *next_free; /* of those that were let go of */
    size_t block, offset, bytes;
    void *host; /* pinned */
};

typedef struct {
    qv_cuda_slot *slots;
    size_t bytes;
} qv_cuda_block;

typedef struct {
    char *memory;
    size_t holds;  /* the block whose weights are there, or on their way; QV_CUDA_NO_BLOCK */
    bool awaited;  /* the compute stream waits for them already */
} qv_cuda_buffer;

/* x [R, D] in bfloat16, rows close together, for the products that read it; `of` NULL: nothing is there. */
typedef struct {
    void *memory;
    size_t bytes;
    const float *of;
    size_t ld, R, D;
} qv_cuda_rounded;

/* A result that lies in pinned memory until the call ends. */
typedef struct {
    void *host;
    size_t offset, bytes;
} qv_cuda_taken;

struct qv_cuda_device {
    qv_ops ops;       /* first: the ops' address is the device's */
    qv_memory memory; /* likewise found from the address */
    const qv_cuda_driver *driver;
    void *state;
    bool tf32; /* attention in float32 may round to it, and the device can */
    bool offload;
    uint64_t process; /* that opened it */
    qv_lock turn; /* held from begin to end, and while weights are prepared */
    qv_status status;     /* of the call: the first failure */
    qv_error error;

    /* counters */
    atomic_size_t held, allocations;
    atomic_size_t launches, streamed; /* written in turn, read by anybody */

    /* index arrays */
    char *index_host, *index_device;
    size_t index_used;
    struct {
        size_t offset, bytes;
    } remembered[QV_CUDA_REMEMBERED];
    size_t remembered_count;

    /* pinned memory going out (two halves) and coming in */
    char *stage_out, *stage_in;
    size_t stage_half, stage_used;
    bool stage_busy[2];
    qv_cuda_taken taken[QV_CUDA_TAKEN];
    size_t taken_count, taken_bytes;

    qv_cuda_rounded rounded;

    /* what the picture in turn needs on the device */
    void *picture;
    size_t picture_bytes;

    /* offloaded weights */
    qv_cuda_block *blocks;
    size_t block_count, block_capacity, open_block, running;
    size_t buffer_bytes;
    qv_cuda_buffer buffers[QV_CUDA_BUFFERS];
    _Atomic(qv_cuda_slot *) free_slots; /* let go of while the turn was another's */
};

static inline qv_cuda_device *qv_cuda_of(const qv_ops *ops) {
    return (qv_cuda_device *)(void *)ops;
}

/* The device of an op that begins: where the call is to stop, its status says so, and steps are skipped. What was rounded may not
 * be what lies there when it has been. */
qv_cuda_device *qv_cuda_device_of(qv_call *call);

/* ---- transfers.c ---- */
/* Steps on a stream. The first failure of a call is kept in the device's status, and what comes after it is left out. */
void qv_cuda_transfer(qv_cuda_device *device, qv_cuda_stream stream, void *to, const void *from, size_t bytes,
                      qv_cuda_direction direction);
void qv_cuda_record(qv_cuda_device *device, qv_cuda_stream stream, size_t event);
void qv_cuda_await(qv_cuda_device *device, qv_cuda_stream stream, size_t event);
void qv_cuda_host_await(qv_cuda_device *device, size_t event);
void qv_cuda_multiply(qv_cuda_device *device, const qv_cuda_product *product);
void qv_cuda_launch_kernel(qv_cuda_device *device, qvk_kernel kernel, void *parameters, size_t blocks, unsigned threads,
                           size_t shared);
/* Room for index arrays of `bytes` in all, so that those of one op stay while the op is put together. */
void qv_cuda_reserve_indices(qv_cuda_device *device, size_t bytes);
/* The device's copy of an index array of the host's; NULL for NULL. Each takes up to QV_ALIGNMENT bytes more. */
const void *qv_cuda_index(qv_cuda_device *device, const void *host, size_t bytes);
/* Pinned memory to write into, at least `least` (up to QV_CUDA_STAGE_BYTES) of it; then sent from there. */
void *qv_cuda_stage(qv_cuda_device *device, size_t least, size_t *room);
void qv_cuda_send_staged(qv_cuda_device *device, void *to, const void *staged, size_t bytes);
/* Bytes for the device, of the host's memory that may be used again at once. */
void qv_cuda_send(qv_cuda_device *device, void *to, const void *host, size_t bytes);
void qv_cuda_give(qv_call *call, void *to, const void *host, size_t bytes);
void qv_cuda_take(qv_call *call, void *host, const void *from, size_t bytes);
/* What was taken, from pinned memory to where it belongs; the compute stream is idle. */
void qv_cuda_hand_over(qv_cuda_device *device);
/* Until the compute stream is idle; the call, if there is one, hears meanwhile whether it should stop. */
void qv_cuda_drain(qv_cuda_device *device, qv_call *call);
/* Other memory of the device, of `bytes`, in place of what is held once what was started is done with it; NULL and 0 after a
 * failure, which the call then says. */
void qv_cuda_replace(qv_cuda_device *device, void **memory, size_t *held, size_t bytes, const char *what);
/* The stream is idle: everything that it read is free again. */
void qv_cuda_forget(qv_cuda_device *device);

/* Whether this process was forked from the one that opened the device: nothing of the GPU may be touched here. */
bool qv_cuda_forked(const qv_cuda_device *device);
/* Wait for the device's turn, which unlocking gives back; an error in a forked process, and where this very thread has it: the
 * poll of a call can run a signal handler, and that anything. */
qv_status qv_cuda_wait(qv_cuda_device *device, qv_error *err);
/* Wait for it, and make this thread's calls go to the device. */
qv_status qv_cuda_take_turn(qv_cuda_device *device, qv_error *err);
void *qv_cuda_allocate(const qv_memory *memory, size_t bytes);
void qv_cuda_free(const qv_memory *memory, void *block);
qv_status qv_cuda_upload(const qv_ops *ops, void *to, const void *host, size_t bytes, qv_error *err);

/* ---- weights.c ---- */
qv_precision qv_cuda_computes_in(const qv_ops *ops, qv_precision wanted);
qv_status qv_cuda_linear_pack(const qv_ops *ops, qv_pool *pool, qv_linear *layer, const qv_linear_source *sources,
                              qv_error *err);
void qv_cuda_linear_drop(const qv_ops *ops, qv_linear *layer);
qv_status qv_cuda_next_block(const qv_ops *ops, qv_error *err);
/* Before a call: buffers as large as the largest block. */
qv_status qv_cuda_prepare_buffers(qv_cuda_device *device, qv_error *err);
/* Where columns `first` .. of the layer lie on the device, [., K] in its precision, by the time that the compute stream
 * comes to what is started next. */
const void *qv_cuda_columns(qv_cuda_device *device, const qv_linear *layer, size_t first);
/* Free what was let go of; the turn is the caller's. */
void qv_cuda_collect_slots(qv_cuda_device *device);
void qv_cuda_release_weights(qv_cuda_device *device);

/* ---- pictures.c ---- */
qv_status qv_cuda_preprocess(qv_call *call, float *out, const qv_picture_view *picture, const qv_preprocessing *how,
                             qv_error *err);

/* ---- ops.c ---- */
/* Blocks a row of element-wise kernels, and the blocks in all that never exceed a launch. */
size_t qv_cuda_chunks(size_t D);
/* Threads for a reduction over D items: whole warps, no more than there is work for. */
unsigned qv_cuda_row_threads(size_t D);

size_t qv_cuda_scratch_bytes(size_t lanes, size_t rows, size_t depth, size_t keys, size_t head_width);
void qv_cuda_linear(qv_call *call, qv_rows out, qv_const_rows x, const qv_linear *layer, size_t first, size_t count,
                    const qv_epilogue *epilogue, size_t R);
void qv_cuda_norm(qv_call *call, qv_rows out, qv_const_rows x, const qv_norm *norm, size_t R);
void qv_cuda_attention(qv_call *call, const qv_attention *each, size_t count);
void qv_cuda_patches(qv_call *call, float *out, const float *image, size_t height, size_t width, size_t p);
void qv_cuda_embedding(qv_call *call, float *out, const qv_tensor *table, const int32_t *ids, const float *positions,
                       size_t n, size_t D);
void qv_cuda_rotate(qv_call *call, qv_rows x, const float *angles, bool back, size_t B, size_t T, size_t first, size_t H,
                    size_t d);
void qv_cuda_relative_bias(qv_call *call, float *out, const float *offsets, size_t reach, size_t first, size_t H,
                           size_t T, size_t S);
void qv_cuda_softmax(qv_call *call, float *x, float scale, size_t R, size_t S);
void qv_cuda_add(qv_call *call, float *out, const float *x, size_t R, size_t D);
void qv_cuda_multiply_items(qv_call *call, qv_rows out, qv_const_rows x, qv_const_rows y, size_t R, size_t D);
void qv_cuda_copy(qv_call *call, qv_rows out, qv_const_rows x, size_t R, size_t D);
void qv_cuda_activation(qv_call *call, float *out, const float *x, qv_activation activation, size_t n);

size_t qv_cuda_backward_scratch(size_t lanes, size_t keys, size_t head_width, size_t H, size_t rows);
void qv_cuda_linear_backward(qv_call *call, qv_rows dx, qv_const_rows dy, const qv_linear *layer, size_t first,
                             size_t count, bool accumulate, size_t R);
void qv_cuda_norm_backward(qv_call *call, qv_rows dx, qv_const_rows dy, qv_const_rows x, const qv_norm *norm, size_t R);
void qv_cuda_activation_backward(qv_call *call, float *dx, const float *dy, const float *x, qv_activation activation,
                                 size_t n);
void qv_cuda_attention_backward(qv_call *call, const qv_attention_backward *each, size_t count);
void qv_cuda_likelihood(qv_call *call, float *log_probability, float *logits, const int32_t *targets, size_t R, size_t V);
void qv_cuda_gradcam(qv_call *call, float *out, const float *probabilities, const float *d_probabilities, size_t first,
                     size_t H, size_t T, size_t S);
void qv_cuda_text_scores(qv_call *call, const qv_text_scores *scores);
void qv_cuda_dots(qv_call *call, float *out, qv_const_rows x, qv_const_rows w, size_t Q, size_t R, size_t D);
void qv_cuda_unit_length(qv_call *call, float *x, size_t R, size_t D);
void qv_cuda_row_lengths(qv_call *call, float *out, qv_const_rows x, size_t R, size_t D);
void qv_cuda_head_lengths(qv_call *call, qv_rows out, qv_const_rows x, const float *lengths, float factor, size_t B, size_t T,
                          size_t H, size_t d);
void qv_cuda_mean_rows(qv_call *call, float *out, const float *x, size_t R, size_t D);

#endif
