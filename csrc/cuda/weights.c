/* Weights of linear layers: [N, K] of all parts in one piece of the device's memory, in float32 or bfloat16. Offloaded,
 * they wait in pinned host memory. A block's layers have fixed places in one of two buffers. When a block comes to be used,
 * the one that will follow starts on its way into the other buffer, on a stream of its own, as soon as what the compute
 * stream still does with that buffer is done: as far on, or back, as this block was from the one before. */
#include "cuda/cuda_ops.h"

#include "base/memory.h"
#include "cuda/kernel_bodies.h"

#include <string.h>

/* What the device has of a layer. */
typedef struct {
    char *memory;       /* its weights, or NULL: */
    qv_cuda_slot *slot; /* where they wait */
} cuda_weights;

static size_t align(size_t bytes) {
    return (bytes + QV_ALIGNMENT - 1) / QV_ALIGNMENT * QV_ALIGNMENT;
}

/* ---- blocks ---- */

qv_status qv_cuda_next_block(const qv_ops *ops, qv_error *err) {
    qv_cuda_device *device = qv_cuda_of(ops);
    qv_status status = qv_cuda_wait(device, err);
    if (status == QV_OK) {
        device->open_block = device->block_count;
        qv_lock_give(&device->turn);
    }
    return status;
}

/* The block that layers are prepared for, which is made when its first layer comes. */
static qv_cuda_block *open_block(qv_cuda_device *device, qv_error *err) {
    if (device->open_block == device->block_count) {
        if (device->block_count == device->block_capacity) {
            size_t capacity = device->block_capacity * 2 + 16;
            qv_cuda_block *blocks = qv_allocate(capacity, sizeof *blocks);
            if (blocks == NULL) {
                qv_fail_memory(err, "the list of offloaded blocks");
                return NULL;
            }
            if (device->block_count != 0) {
                memcpy(blocks, device->blocks, device->block_count * sizeof *blocks);
            }
            qv_free(device->blocks);
            device->blocks = blocks;
            device->block_capacity = capacity;
        }
        device->blocks[device->block_count++] = (qv_cuda_block){NULL, 0};
    }
    return &device->blocks[device->open_block];
}

static qv_status add_slot(qv_cuda_device *device, qv_cuda_slot **out, size_t bytes, const char *name, qv_error *err) {
    qv_cuda_block *block = open_block(device, err);
    if (block == NULL) {
        return err->code;
    }
    qv_cuda_slot *slot = qv_allocate(1, sizeof *slot);
    void *host = slot != NULL ? device->driver->allocate_pinned(device->state, bytes) : NULL;
    if (host == NULL) {
        qv_free(slot);
        return qv_fail_memory(err, name);
    }
    *slot = (qv_cuda_slot){block->slots, NULL, device->open_block, block->bytes, bytes, host};
    block->slots = slot;
    block->bytes += align(bytes);
    *out = slot;
    return QV_OK;
}

/* Until no copy into the buffer is on its way. */
static void settle(qv_cuda_device *device, size_t buffer) {
    qv_error ignored; /* a device that fails here fails the next call, too */
    (void)device->driver->host_await(device->state, EVENT_READY + buffer, &ignored);
    device->buffers[buffer].holds = QV_CUDA_NO_BLOCK;
}

static void remove_slot(qv_cuda_device *device, qv_cuda_slot *slot) {
    qv_cuda_slot **link = &device->blocks[slot->block].slots;
    while (*link != slot) {
        link = &(*link)->next;
    }
    *link = slot->next;
    for (size_t i = 0; i < QV_CUDA_BUFFERS; i++) {
        if (device->buffers[i].holds == slot->block) {
            settle(device, i);
        }
    }
    device->driver->free_pinned(device->state, slot->host);
    qv_free(slot);
}

void qv_cuda_collect_slots(qv_cuda_device *device) {
    qv_cuda_slot *slot = atomic_exchange(&device->free_slots, NULL);
    while (slot != NULL) {
        qv_cuda_slot *next = slot->next_free;
        remove_slot(device, slot);
        slot = next;
    }
}

/* Models are freed under the interpreter's lock, for which a running call asks now and then: whoever waited here for that
 * call's turn to end would wait for ever. */
static void let_go(qv_cuda_device *device, qv_cuda_slot *slot) {
    slot->next_free = atomic_load(&device->free_slots);
    while (!atomic_compare_exchange_weak(&device->free_slots, &slot->next_free, slot)) {
    }
    qv_error ignored;
    if (!qv_cuda_forked(device) && qv_lock_try(&device->turn)) {
        if (device->driver->enter(device->state, &ignored) == QV_OK) {
            qv_cuda_collect_slots(device);
        }
        qv_lock_give(&device->turn);
    }
}

qv_status qv_cuda_prepare_buffers(qv_cuda_device *device, qv_error *err) {
    size_t largest = 0;
    for (size_t i = 0; i < device->block_count; i++) {
        largest = device->blocks[i].bytes > largest ? device->blocks[i].bytes : largest;
    }
    if (largest <= device->buffer_bytes) {
        return QV_OK;
    }
    device->buffer_bytes = 0;
    for (size_t i = 0; i < QV_CUDA_BUFFERS; i++) {
        settle(device, i);
        qv_cuda_free(&device->memory, device->buffers[i].memory);
        device->buffers[i] = (qv_cuda_buffer){qv_cuda_allocate(&device->memory, largest), QV_CUDA_NO_BLOCK, false};
        if (device->buffers[i].memory == NULL) {
            return qv_fail_memory(err, "two blocks of weights on the GPU");
        }
    }
    device->buffer_bytes = largest;
    device->running = QV_CUDA_NO_BLOCK;
    return QV_OK;
}

/* Start the block on its way into the buffer that is not computed with, unless it is in one; which one, is returned. */
static size_t fetch(qv_cuda_device *device, size_t block) {
    size_t place = device->buffers[0].holds == device->running ? 1 : 0;
    for (size_t i = 0; i < QV_CUDA_BUFFERS; i++) {
        if (device->buffers[i].holds == block) {
            return i;
        }
    }
    qv_cuda_buffer *buffer = &device->buffers[place];
    qv_cuda_record(device, QV_CUDA_COMPUTE, EVENT_IDLE + place);
    qv_cuda_await(device, QV_CUDA_COPY, EVENT_IDLE + place);
    for (const qv_cuda_slot *slot = device->blocks[block].slots; slot != NULL; slot = slot->next) {
        qv_cuda_transfer(device, QV_CUDA_COPY, buffer->memory + slot->offset, slot->host, slot->bytes, QV_CUDA_TO_DEVICE);
    }
    qv_cuda_record(device, QV_CUDA_COPY, EVENT_READY + place);
    buffer->holds = device->status == QV_OK ? block : QV_CUDA_NO_BLOCK;
    buffer->awaited = false;
    atomic_fetch_add(&device->streamed, 1);
    return place;
}

/* The block that is likely to follow `block`, when `before` came before it. */
static size_t guess_next(size_t block, size_t before) {
    return before == QV_CUDA_NO_BLOCK ? block + 1 : block + (block - before); /* back past 0 wraps: there is no such block */
}

/* Where the whole weight lies. */
static const char *find_weights(qv_cuda_device *device, const cuda_weights *weights) {
    if (weights->slot == NULL) {
        return weights->memory;
    }
    const qv_cuda_slot *slot = weights->slot;
    size_t place = fetch(device, slot->block);
    qv_cuda_buffer *buffer = &device->buffers[place];
    if (!buffer->awaited) {
        qv_cuda_await(device, QV_CUDA_COMPUTE, EVENT_READY + place);
        buffer->awaited = true;
    }
    if (device->running != slot->block) {
        size_t next = guess_next(slot->block, device->running);
        device->running = slot->block;
        if (next < device->block_count && device->blocks[next].slots != NULL) {
            fetch(device, next);
        }
    }
    return buffer->memory + slot->offset;
}

static size_t item_bytes(const qv_linear *layer) {
    return layer->precision == QV_PRECISION_BFLOAT16 ? sizeof(uint16_t) : sizeof(float);
}

const void *qv_cuda_columns(qv_cuda_device *device, const qv_linear *layer, size_t first) {
    return find_weights(device, layer->packed) + first * layer->depth * item_bytes(layer);
}

void qv_cuda_release_weights(qv_cuda_device *device) {
    qv_cuda_collect_slots(device);
    for (size_t i = 0; i < QV_CUDA_BUFFERS; i++) {
        settle(device, i);
        qv_cuda_free(&device->memory, device->buffers[i].memory);
    }
}

/* ---- preparation ---- */

/* Rows of a source are read, summed and rounded so many items at a time. */
#define PART_ITEMS ((size_t)1 << 16)

typedef struct {
    float items[PART_ITEMS], spare[PART_ITEMS];
} workspace;

/* to (the device's memory, or pinned) = the source's weight in the layer's precision */
static qv_status write_part(const qv_ops *ops, char *to, bool pinned, const qv_linear_source *source, bool bfloat16,
                            workspace *work, qv_error *err) {
    size_t total = qv_tensor_count(source->weight), size = bfloat16 ? sizeof(uint16_t) : sizeof(float);
    qv_status status = QV_OK;
    for (size_t first = 0; first < total && status == QV_OK; first += PART_ITEMS) {
        size_t count = total - first < PART_ITEMS ? total - first : PART_ITEMS;
        qv_linear_source_read(work->items, source, first, count, work->spare);
        uint16_t *bits = (uint16_t *)(void *)work->spare;
        for (size_t i = 0; bfloat16 && i < count; i++) {
            bits[i] = qvk_to_bfloat16(work->items[i]);
        }
        const void *from = bfloat16 ? (const void *)bits : work->items;
        if (pinned) {
            memcpy(to + first * size, from, count * size);
        } else {
            status = qv_cuda_upload(ops, to + first * size, from, count * size, err);
        }
    }
    qv_linear_source_release(source);
    return status;
}

/* Memory for `bytes` of weights: on the device, or a slot. Returns where to write. */
static char *make_room(qv_cuda_device *device, cuda_weights *weights, size_t bytes, const char *name, qv_error *err) {
    if (!device->offload || device->open_block == QV_CUDA_NO_BLOCK) {
        weights->memory = qv_cuda_allocate(&device->memory, bytes);
        if (weights->memory == NULL) {
            qv_fail_memory(err, name);
        }
        return weights->memory;
    }
    qv_status status = qv_cuda_wait(device, err);
    if (status == QV_OK) {
        status = add_slot(device, &weights->slot, bytes, name, err);
        qv_lock_give(&device->turn);
    }
    return status == QV_OK ? weights->slot->host : NULL;
}

qv_precision qv_cuda_computes_in(const qv_ops *ops, qv_precision wanted) {
    const qv_cuda_device *device = qv_cuda_of(ops);
    bool full = wanted == QV_PRECISION_FLOAT32 || !device->driver->has_tensor_cores(device->state);
    return full ? QV_PRECISION_FLOAT32 : QV_PRECISION_BFLOAT16; /* there are no int8 products on a GPU */
}

qv_status qv_cuda_linear_pack(const qv_ops *ops, qv_pool *pool, qv_linear *layer, const qv_linear_source *sources,
                              qv_error *err) {
    (void)pool;
    const char *name = sources[0].weight->name;
    size_t item = item_bytes(layer);
    cuda_weights *weights = qv_allocate(1, sizeof *weights);
    workspace *work = qv_allocate(1, sizeof *work);
    qv_status status = QV_OK;
    char *to = NULL;
    if (weights == NULL || work == NULL) {
        qv_free(weights);
        status = qv_fail_memory(err, name);
        goto done;
    }
    *weights = (cuda_weights){NULL, NULL};
    layer->packed = weights;
    to = make_room(qv_cuda_of(ops), weights, layer->columns * layer->depth * item, name, err);
    status = to != NULL ? QV_OK : err->code;
    for (size_t i = 0; i < layer->parts && status == QV_OK; i++) {
        status = write_part(ops, to, weights->slot != NULL, &sources[i], layer->precision == QV_PRECISION_BFLOAT16, work, err);
        to += layer->part_columns[i] * layer->depth * item;
    }
done:
    qv_free(work);
    return status;
}

void qv_cuda_linear_drop(const qv_ops *ops, qv_linear *layer) {
    qv_cuda_device *device = qv_cuda_of(ops);
    cuda_weights *weights = layer->packed;
    qv_cuda_free(&device->memory, weights->memory);
    if (weights->slot != NULL) {
        let_go(device, weights->slot);
    }
    qv_free(weights);
}
