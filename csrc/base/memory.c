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
/* Blocks from here on are whole huge pages, which rounds none up by more than a quarter. */
#define HUGE_BLOCK (4 * HUGE_PAGE)

static size_t alignment_of(size_t bytes) {
    return bytes >= HUGE_BLOCK ? HUGE_PAGE : QV_ALIGNMENT;
}

/* Of nothing, too, there is some. */
static size_t round_up(size_t bytes, size_t alignment) {
    return bytes == 0 ? alignment : (bytes + alignment - 1) / alignment * alignment;
}

void *qv_allocate(size_t count, size_t size) {
    size_t bytes;
    if (!qv_multiply_size(count, size, &bytes) || bytes > SIZE_MAX / 2 || allocation_must_fail()) {
        return NULL;
    }
    size_t alignment = alignment_of(bytes);
    bytes = round_up(bytes, alignment);
    void *memory = qv_os_allocate(alignment, bytes);
    if (memory != NULL && alignment == HUGE_PAGE) {
        qv_os_want_large_pages(memory, bytes);
    }
    return memory;
}

void qv_free(void *memory) {
    qv_os_free(memory);
}

/* ---- pools ---- */

/* In front of a stretch's pieces. */
struct qv_stretch {
    atomic_size_t holders; /* its pieces, and the pool while it is open */
    size_t used, capacity; /* bytes, these among them */
};

/* The longest that is begun for shorter pieces. */
#define LONGEST ((size_t)64 << 20)
/* Where reads beyond a block are looked for, every piece is one: gcc says so, and clang. */
#if defined(__has_feature)
#define IS_SANITIZED __has_feature(address_sanitizer)
#else
#define IS_SANITIZED 0
#endif
#if defined(__SANITIZE_ADDRESS__) || IS_SANITIZED
#define SHARES_STRETCHES false
#else
#define SHARES_STRETCHES true
#endif

static void let_go(qv_stretch *stretch) {
    if (stretch != NULL && atomic_fetch_sub(&stretch->holders, 1) == 1) {
        qv_free(stretch);
    }
}

static size_t room_of(const qv_stretch *stretch) {
    return stretch != NULL ? stretch->capacity - stretch->used : 0;
}

/* Twice as long as all before, so that small models stay small. */
static qv_stretch *begin_stretch(const qv_pool *pool, size_t bytes) {
    size_t more = pool->taken < LONGEST / 2 ? 2 * pool->taken : LONGEST, capacity;
    if (!qv_add_size(bytes > more ? bytes : more, QV_ALIGNMENT, &capacity) || capacity > SIZE_MAX / 2) {
        return NULL;
    }
    capacity = round_up(capacity, alignment_of(capacity));
    qv_stretch *stretch = qv_allocate(capacity, 1);
    if (stretch != NULL) {
        *stretch = (qv_stretch){.used = QV_ALIGNMENT, .capacity = capacity};
        atomic_init(&stretch->holders, 1);
    }
    return stretch;
}

bool qv_pool_take(qv_pool *pool, qv_piece *piece, size_t count, size_t size) {
    *piece = (qv_piece){.at = NULL};
    if (pool == NULL || !SHARES_STRETCHES) {
        piece->at = qv_allocate(count, size);
        return piece->at != NULL;
    }
    size_t bytes;
    if (!qv_multiply_size(count, size, &bytes) || bytes > SIZE_MAX / 2) {
        return false;
    }
    bytes = round_up(bytes, QV_ALIGNMENT);
    qv_stretch *stretch = room_of(pool->open) >= bytes ? pool->open : begin_stretch(pool, bytes);
    if (stretch == NULL) {
        return false;
    }
    *piece = (qv_piece){(char *)stretch + stretch->used, stretch};
    atomic_fetch_add(&stretch->holders, 1);
    stretch->used += bytes;
    pool->taken += bytes;
    if (stretch != pool->open) { /* the one with more room left stays open */
        qv_stretch *less = stretch;
        if (room_of(stretch) > room_of(pool->open)) {
            less = pool->open;
            pool->open = stretch;
        }
        let_go(less);
    }
    return true;
}

void qv_piece_free(qv_piece *piece) {
    if (piece->stretch != NULL) {
        let_go(piece->stretch);
    } else {
        qv_free(piece->at);
    }
    *piece = (qv_piece){.at = NULL};
}

void qv_pool_close(qv_pool *pool) {
    let_go(pool->open);
    *pool = (qv_pool){.open = NULL};
}

/* ---- arenas ---- */

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
