/* Sizes checked for overflow, aligned memory, and the arena that a forward pass is planned on. */
#ifndef QV_BASE_MEMORY_H
#define QV_BASE_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

#define QV_ALIGNMENT ((size_t)64)

/* *out = a * b, or a + b; false (and *out = SIZE_MAX) when it does not fit. */
bool qv_multiply_size(size_t a, size_t b, size_t *out);
bool qv_add_size(size_t a, size_t b, size_t *out);

/* `count` items of `size` bytes, 64-byte aligned, not cleared; NULL when there is no memory or the size overflows.
 * Freed by qv_free. Large blocks ask for huge pages. */
void *qv_allocate(size_t count, size_t size);
void qv_free(void *memory);

#if defined(QV_DEBUG)
/* The n-th allocation from now fails (1 the next; 0 none). */
void qv_fail_allocation(size_t n);
#endif

/* Memory for many pieces that are read in order and go back about together, as weights do: pieces lie one behind another in
 * stretches, most of them long enough for huge pages, and a stretch goes back with its last piece. */
typedef struct qv_stretch qv_stretch;
typedef struct {
    qv_stretch *open; /* NULL: none yet */
    size_t taken;     /* bytes, of all pieces */
} qv_pool;
typedef struct {
    void *at;
    qv_stretch *stretch; /* NULL: a block of its own */
} qv_piece;

/* piece->at = `count` items of `size` bytes as qv_allocate gives them, false where it would not; pool NULL: a block of its own.
 * One thread at a time takes from a pool, any frees. */
bool qv_pool_take(qv_pool *pool, qv_piece *piece, size_t count, size_t size);
void qv_piece_free(qv_piece *piece);
/* Nothing more is taken. */
void qv_pool_close(qv_pool *pool);

/* Memory that is not the host's: a device's. Safe from any thread. */
typedef struct qv_memory qv_memory;
struct qv_memory {
    void *(*allocate)(const qv_memory *memory, size_t bytes); /* 64-byte aligned; NULL when there is none left */
    void (*free)(const qv_memory *memory, void *block);
};

/* A bump allocator over two stretches: what the ops work on and, for the structs and index arrays that the host alone
 * reads, some of the host's own memory. With base NULL it only measures: the sizes grow, the pointers are NULL. */
typedef struct {
    char *base;
    size_t capacity, used;
    char *host_base;
    size_t host_capacity, host_used;
    bool overflow; /* a size did not fit in size_t, or the arena was too small for what was planned */
    void *block;   /* what the cache keeps */
} qv_arena;

/* `count` items of `size` bytes at a 64-byte boundary. */
void *qv_arena_take(qv_arena *arena, size_t count, size_t size);
/* The same in the host's memory. */
void *qv_arena_take_host(qv_arena *arena, size_t count, size_t size);

/* count floats. */
static inline float *qv_arena_floats(qv_arena *arena, size_t count) {
    return (float *)qv_arena_take(arena, count, sizeof(float));
}

/* Arenas kept between the calls on a model, so that only the first call (of each of several threads) allocates. */
typedef struct {
    _Atomic(void *) slots[8];
    const qv_memory *memory; /* of the arenas' first stretch; NULL: the host's */
} qv_arena_cache;

/* An arena as large as the one that measured (base NULL when there is no memory, or when the sizes overflowed); give it
 * back with qv_arena_release. */
qv_arena qv_arena_acquire(qv_arena_cache *cache, const qv_arena *measured);
void qv_arena_release(qv_arena_cache *cache, qv_arena *arena);
void qv_arena_cache_clear(qv_arena_cache *cache);
/* In QV_DEBUG builds: what was laid out on the arena is what was measured, to the byte. */
void qv_arena_check(const qv_arena *arena, const qv_arena *measured);

/* Memory of the cache's kind that outlives a call: what several calls build up, or share. */
typedef struct {
    void *at; /* 64-byte aligned; NULL: none */
    qv_arena arena;
} qv_kept;

/* kept->at = `bytes` bytes; false where there is no memory. */
bool qv_keep(qv_kept *kept, qv_arena_cache *cache, size_t bytes);
/* The host's goes back to the system; a device's, dear to allocate, waits in the cache for who comes next. */
void qv_kept_free(qv_kept *kept, qv_arena_cache *cache);

#endif
