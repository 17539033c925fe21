/* The one door to the operating system. os_posix.c and os_windows.c are each all of it, on systems of their kind. */
#ifndef QV_BASE_OS_H
#define QV_BASE_OS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- memory ---- */

/* Memory at a multiple of `alignment`, a power of two of which `bytes` is a multiple; NULL where there is none. */
void *qv_os_allocate(size_t alignment, size_t bytes);
void qv_os_free(void *memory);
/* Ask for pages as large as there are; only advice. */
void qv_os_want_large_pages(void *memory, size_t bytes);
/* Let go of the pages of memory that is mapped from a file, read-only; only advice. */
void qv_os_drop_pages(const void *memory, size_t bytes);

/* ---- the process, its CPUs and its clock ---- */

/* The number of this process, which is another one after a fork. */
uint64_t qv_os_process(void);
/* CPUs that this process may use, at least 1: its affinity, then the quota of its control group, rounded up. */
size_t qv_os_cpus(void);
/* Since some fixed time; never goes back. */
int64_t qv_os_nanoseconds(void);
/* Let another thread run. */
void qv_os_yield(void);
/* Ask that this process may use an x86 CPU's tiles, which add 8 KiB to what is kept for each thread; false where the system
 * does not let it. */
bool qv_os_allow_tiles(void);
/* What the system says of an ARM CPU, as these bits: dot products of bfloat16, and of four bytes. */
enum { QV_OS_ARM_BF16 = 1, QV_OS_ARM_DOTPROD = 2 };
unsigned qv_os_arm_features(void);

/* ---- threads ---- */

/* Run it on a thread of its own, which nobody waits for; false where there can be no more. */
bool qv_os_start_thread(void (*run)(void *context), void *context);
/* Call `act` in each child that is forked from now on; false where that cannot be. */
bool qv_os_after_fork(void (*act)(void));

/* What a system puts in a lock, or in what threads wait for. */
typedef struct {
    void *space[16];
} qv_lock;
typedef struct {
    void *space[16];
} qv_wake;

bool qv_lock_make(qv_lock *lock);
void qv_lock_end(qv_lock *lock);
/* Wait for it. False, at once, where this very thread has it. */
bool qv_lock_take(qv_lock *lock);
/* False where any thread has it. */
bool qv_lock_try(qv_lock *lock);
void qv_lock_give(qv_lock *lock);

bool qv_wake_make(qv_wake *wake);
/* Give the lock, which this thread has, sleep, and take it again: after qv_wake_all, or for no reason. */
void qv_wake_wait(qv_wake *wake, qv_lock *lock);
void qv_wake_all(qv_wake *wake);

#endif
