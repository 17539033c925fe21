#include "base/memory.h"

#include <assert.h>
#include "base/os.h"

#include <stdatomic.h>
#include <stdint.h>

bool qv_multiply_size(size_t a, size_t b, size_t *out) {
    if (__builtin_mul_overflow(a, b, out)) {
        *out = SIZE_MAX;
        return false;
    }
    return true;
}

bool qv_add_size(size_t a, size_t b, size_t *out) {
    if (__builtin_add_overflow(a, b, out)) {
        *out = SIZE_MAX;
        return false;
    }
    return true;
}

#if defined(QV_DEBUG)
static atomic_size_t allocations_until_failure;

void qv_fail_allocation(size_t n) {
    atomic_store(&allocations_until_failure, n);
}

static bool allocation_must_fail(void) {
    size_t left = atomic_load(&allocations_until_failure);
    while (left != 0) {
        if (atomic_compare_exchange_weak(&allocations_until_failure, &left, left - 1)) {
            return left == 1;
        }
    }
    return false;
}
#else
static bool allocation_must_fail(void) {
    return false;
}
#endif

#define HUGE_PAGE ((size_t)2 << 20)

void *qv_allocate(size_t count, size_t size) {
    size_t bytes;
    if (!qv_multiply_size(count, size, &bytes) || bytes > SIZE_MAX / 2 || allocation_must_fail()) {
        return NULL;
    }
    size_t alignment = bytes >= 4 * HUGE_PAGE ? HUGE_PAGE : QV_ALIGNMENT;
    bytes = (bytes + alignment - 1) / alignment * alignment;
    if (bytes == 0) {
        bytes = alignment;
    }
    void *memory = qv_os_allocate(alignment, bytes);
    if (memory != NULL && alignment == HUGE_PAGE) {
        qv_os_want_large_pages(memory, bytes);
    }
    return memory;
}

void qv_free(void *memory) {
    qv_os_free(memory);
}

static void *take(qv_arena *arena, char *base, size_t capacity, size_t *used, size_t count, size_t size) {
    size_t bytes, end;
    if (!qv_multiply_size(count, size, &bytes) || !qv_add_size(bytes, QV_ALIGNMENT - 1, &bytes) ||
        !qv_add_size(*used, bytes / QV_ALIGNMENT * QV_ALIGNMENT, &end)) {
        arena->overflow = true;
        return NULL;
    }
    size_t start = *used;
    *used = end;
    if (base == NULL) {
        return NULL;
    }
    if (end > capacity) {
        arena->overflow = true;
        return NULL;
    }
    return base + start;
}

void *qv_arena_take(qv_arena *arena, size_t count, size_t size) {
    return take(arena, arena->base, arena->capacity, &arena->used, count, size);
}

void *qv_arena_take_host(qv_arena *arena, size_t count, size_t size) {
    return take(arena, arena->host_base, arena->host_capacity, &arena->host_used, count, size);
}

/* In front of a block's host memory. The first stretch follows it, or is a device's. */
typedef struct {
    char *base;
    size_t capacity, host_capacity;
} block_header;

static qv_arena arena_of(const qv_arena_cache *cache, block_header *block) {
    char *host = (char *)block + QV_ALIGNMENT;
    return (qv_arena){
        .base = block->base,
        .capacity = block->capacity,
        .host_base = host + (cache->memory == NULL ? block->capacity : 0),
        .host_capacity = block->host_capacity,
        .block = block,
    };
}

static void free_block(const qv_arena_cache *cache, block_header *block) {
    if (block != NULL && cache->memory != NULL) {
        cache->memory->free(cache->memory, block->base);
    }
    qv_free(block);
}

static block_header *new_block(const qv_arena_cache *cache, size_t bytes, size_t host_bytes) {
    size_t total;
    if (!qv_add_size(cache->memory == NULL ? bytes : 0, QV_ALIGNMENT, &total) ||
        !qv_add_size(total, host_bytes, &total)) {
        return NULL;
    }
    block_header *block = qv_allocate(total, 1);
    if (block == NULL) {
        return NULL;
    }
    *block = (block_header){(char *)block + QV_ALIGNMENT, bytes, host_bytes};
    if (cache->memory != NULL) {
        block->base = cache->memory->allocate(cache->memory, bytes);
        if (block->base == NULL) {
            qv_free(block);
            return NULL;
        }
    }
    return block;
}

qv_arena qv_arena_acquire(qv_arena_cache *cache, const qv_arena *measured) {
    if (measured->overflow) {
        return (qv_arena){.overflow = true};
    }
    size_t slots = sizeof cache->slots / sizeof cache->slots[0];
    for (size_t i = 0; i < slots; i++) {
        block_header *block = atomic_exchange(&cache->slots[i], NULL);
        if (block == NULL) {
            continue;
        }
        if (block->capacity >= measured->used && block->host_capacity >= measured->host_used) {
            return arena_of(cache, block);
        }
        free_block(cache, block);
    }
    block_header *block = new_block(cache, measured->used, measured->host_used);
    return block != NULL ? arena_of(cache, block) : (qv_arena){.base = NULL};
}

void qv_arena_release(qv_arena_cache *cache, qv_arena *arena) {
    void *block = arena->block;
    *arena = (qv_arena){.base = NULL};
    if (block == NULL) {
        return;
    }
    size_t slots = sizeof cache->slots / sizeof cache->slots[0];
    for (size_t i = 0; i < slots; i++) {
        void *empty = NULL;
        if (atomic_compare_exchange_strong(&cache->slots[i], &empty, block)) {
            return;
        }
    }
    free_block(cache, block);
}

void qv_arena_cache_clear(qv_arena_cache *cache) {
    size_t slots = sizeof cache->slots / sizeof cache->slots[0];
    for (size_t i = 0; i < slots; i++) {
        free_block(cache, atomic_exchange(&cache->slots[i], NULL));
    }
}

void qv_arena_check(const qv_arena *arena, const qv_arena *measured) {
#if defined(QV_DEBUG)
    assert(!arena->overflow && arena->used == measured->used && arena->host_used == measured->host_used);
#else
    (void)arena;
    (void)measured;
#endif
}

bool qv_keep(qv_kept *kept, qv_arena_cache *cache, size_t bytes) {
    const qv_arena measured = {.used = bytes};
    kept->arena = qv_arena_acquire(cache, &measured);
    kept->at = kept->arena.base;
    return kept->at != NULL;
}

void qv_kept_free(qv_kept *kept, qv_arena_cache *cache) {
    if (cache->memory == NULL) {
        free_block(cache, kept->arena.block);
    } else {
        qv_arena_release(cache, &kept->arena);
    }
    *kept = (qv_kept){.at = NULL};
}
