#include "base/memory.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

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

bool qv_fail_allocation(size_t n) {
    atomic_store(&allocations_until_failure, n);
    return true;
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
bool qv_fail_allocation(size_t n) {
    (void)n;
    return false;
}

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
    void *memory = NULL;
    if (posix_memalign(&memory, alignment, bytes) != 0) {
        return NULL;
    }
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (alignment == HUGE_PAGE) {
        (void)madvise(memory, bytes, MADV_HUGEPAGE);
    }
#endif
    return memory;
}

void qv_free(void *memory) {
    free(memory);
}

void qv_release_pages(const void *memory, size_t bytes) {
#if defined(__linux__)
    long page = sysconf(_SC_PAGESIZE);
    if (page > 0) {
        uintptr_t start = (uintptr_t)memory / (uintptr_t)page * (uintptr_t)page;
        (void)madvise((void *)start, (uintptr_t)memory + bytes - start, MADV_DONTNEED);
    }
#else
    (void)memory;
    (void)bytes;
#endif
}

void *qv_arena_take(qv_arena *arena, size_t count, size_t size) {
    size_t bytes, end;
    if (!qv_multiply_size(count, size, &bytes) || !qv_add_size(bytes, QV_ALIGNMENT - 1, &bytes) ||
        !qv_add_size(arena->used, bytes / QV_ALIGNMENT * QV_ALIGNMENT, &end)) {
        arena->overflow = true;
        return NULL;
    }
    size_t start = arena->used;
    arena->used = end;
    if (arena->base == NULL) {
        return NULL;
    }
    if (end > arena->capacity) {
        arena->overflow = true;
        return NULL;
    }
    return arena->base + start;
}

/* A cached block starts with its own size, one alignment unit in front of the arena's base. */
typedef struct {
    size_t capacity;
} block_header;

qv_arena qv_arena_acquire(qv_arena_cache *cache, size_t bytes) {
    qv_arena arena = {NULL, 0, 0, false};
    size_t slots = sizeof cache->slots / sizeof cache->slots[0];
    for (size_t i = 0; i < slots; i++) {
        block_header *block = atomic_exchange(&cache->slots[i], NULL);
        if (block == NULL) {
            continue;
        }
        if (block->capacity >= bytes) {
            arena.base = (char *)block + QV_ALIGNMENT;
            arena.capacity = block->capacity;
            return arena;
        }
        qv_free(block);
    }
    size_t total;
    if (!qv_add_size(bytes, QV_ALIGNMENT, &total)) {
        return arena;
    }
    block_header *block = qv_allocate(total, 1);
    if (block != NULL) {
        block->capacity = bytes;
        arena.base = (char *)block + QV_ALIGNMENT;
        arena.capacity = bytes;
    }
    return arena;
}

void qv_arena_release(qv_arena_cache *cache, qv_arena *arena) {
    if (arena->base == NULL) {
        return;
    }
    void *block = arena->base - QV_ALIGNMENT;
    *arena = (qv_arena){NULL, 0, 0, false};
    size_t slots = sizeof cache->slots / sizeof cache->slots[0];
    for (size_t i = 0; i < slots; i++) {
        void *empty = NULL;
        if (atomic_compare_exchange_strong(&cache->slots[i], &empty, block)) {
            return;
        }
    }
    qv_free(block);
}

void qv_arena_cache_clear(qv_arena_cache *cache) {
    size_t slots = sizeof cache->slots / sizeof cache->slots[0];
    for (size_t i = 0; i < slots; i++) {
        qv_free(atomic_exchange(&cache->slots[i], NULL));
    }
}
