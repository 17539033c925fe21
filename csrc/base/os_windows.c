#if defined(_WIN32)
#include "base/os.h"

#include <malloc.h>
#include <process.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <windows.h>

#define STACK_BYTES (1u << 20)

/* ---- memory ---- */

void *qv_os_allocate(size_t alignment, size_t bytes) {
    return _aligned_malloc(bytes, alignment);
}

void qv_os_free(void *memory) {
    _aligned_free(memory);
}

/* Large pages need a privilege that processes do not have, and a view's pages go when the system wants them. */
void qv_os_want_large_pages(void *memory, size_t bytes) {
    (void)memory;
    (void)bytes;
}

void qv_os_drop_pages(const void *memory, size_t bytes) {
    (void)memory;
    (void)bytes;
}

/* ---- the process, its CPUs and its clock ---- */

uint64_t qv_os_process(void) {
    return GetCurrentProcessId();
}

size_t qv_os_cpus(void) {
    DWORD_PTR own, all;
    size_t cpus = 0;
    /* Both are 0 in a process that has threads in several groups of CPUs. */
    if (GetProcessAffinityMask(GetCurrentProcess(), &own, &all)) {
        for (; own != 0; own &= own - 1) {
            cpus++;
        }
    }
    cpus = cpus != 0 ? cpus : GetActiveProcessorCount(ALL_PROCESSOR_GROUPS);
    return cpus != 0 ? cpus : 1;
}

int64_t qv_os_nanoseconds(void) {
    LARGE_INTEGER count, frequency;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&frequency);
    int64_t seconds = count.QuadPart / frequency.QuadPart, rest = count.QuadPart % frequency.QuadPart;
    return seconds * 1000000000 + rest * 1000000000 / frequency.QuadPart;
}

void qv_os_yield(void) {
    SwitchToThread();
}

bool qv_os_allow_tiles(void) {
    return false;
}

unsigned qv_os_arm_features(void) {
    return 0;
}

/* ---- threads ---- */

typedef struct {
    void (*run)(void *context);
    void *context;
} start;

static unsigned __stdcall run_thread(void *argument) {
    start begun = *(start *)argument;
    free(argument);
    begun.run(begun.context);
    return 0;
}

bool qv_os_start_thread(void (*run)(void *context), void *context) {
    start *begun = malloc(sizeof *begun);
    if (begun == NULL) {
        return false;
    }
    *begun = (start){run, context};
    uintptr_t thread = _beginthreadex(NULL, STACK_BYTES, run_thread, begun, STACK_SIZE_PARAM_IS_A_RESERVATION, NULL);
    if (thread == 0) {
        free(begun);
        return false;
    }
    CloseHandle((HANDLE)thread);
    return true;
}

bool qv_os_after_fork(void (*act)(void)) {
    (void)act; /* nothing forks */
    return true;
}

/* A slim lock does not know who has it. */
typedef struct {
    SRWLOCK lock;
    atomic_ulong owner; /* a thread's number, which is never 0 */
} owned_lock;

_Static_assert(sizeof(owned_lock) <= sizeof(qv_lock), "a lock has room for the system's");
_Static_assert(sizeof(CONDITION_VARIABLE) <= sizeof(qv_wake), "a wake has room for the system's");

static owned_lock *owned(qv_lock *lock) {
    return (owned_lock *)(void *)lock->space;
}

bool qv_lock_make(qv_lock *lock) {
    InitializeSRWLock(&owned(lock)->lock);
    atomic_init(&owned(lock)->owner, 0);
    return true;
}

void qv_lock_end(qv_lock *lock) {
    (void)lock;
}

bool qv_lock_take(qv_lock *lock) {
    if (atomic_load(&owned(lock)->owner) == GetCurrentThreadId()) {
        return false;
    }
    AcquireSRWLockExclusive(&owned(lock)->lock);
    atomic_store(&owned(lock)->owner, GetCurrentThreadId());
    return true;
}

bool qv_lock_try(qv_lock *lock) {
    if (!TryAcquireSRWLockExclusive(&owned(lock)->lock)) {
        return false;
    }
    atomic_store(&owned(lock)->owner, GetCurrentThreadId());
    return true;
}

void qv_lock_give(qv_lock *lock) {
    atomic_store(&owned(lock)->owner, 0);
    ReleaseSRWLockExclusive(&owned(lock)->lock);
}

bool qv_wake_make(qv_wake *wake) {
    InitializeConditionVariable((CONDITION_VARIABLE *)(void *)wake->space);
    return true;
}

void qv_wake_wait(qv_wake *wake, qv_lock *lock) {
    atomic_store(&owned(lock)->owner, 0);
    SleepConditionVariableSRW((CONDITION_VARIABLE *)(void *)wake->space, &owned(lock)->lock, INFINITE, 0);
    atomic_store(&owned(lock)->owner, GetCurrentThreadId());
}

void qv_wake_all(qv_wake *wake) {
    WakeAllConditionVariable((CONDITION_VARIABLE *)(void *)wake->space);
}
#endif
