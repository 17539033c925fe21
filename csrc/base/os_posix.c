#if !defined(_WIN32)
#include "base/os.h"

#include "base/cgroup.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#if defined(__linux__)
#include <sys/auxv.h>
#include <sys/syscall.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#include <time.h>
#include <unistd.h>

#define STACK_BYTES ((size_t)1 << 20)

_Static_assert(sizeof(pthread_mutex_t) <= sizeof(qv_lock), "a lock has room for the system's");
_Static_assert(sizeof(pthread_cond_t) <= sizeof(qv_wake), "a wake has room for the system's");

/* ---- memory ---- */

void *qv_os_allocate(size_t alignment, size_t bytes) {
    void *memory = NULL;
    return posix_memalign(&memory, alignment, bytes) == 0 ? memory : NULL;
}

void qv_os_free(void *memory) {
    free(memory);
}

void qv_os_want_large_pages(void *memory, size_t bytes) {
#if defined(MADV_HUGEPAGE)
    (void)madvise(memory, bytes, MADV_HUGEPAGE);
#else
    (void)memory;
    (void)bytes;
#endif
}

void qv_os_drop_pages(const void *memory, size_t bytes) {
#if defined(__linux__)
    long page = sysconf(_SC_PAGESIZE);
    if (page > 0) {
        uintptr_t start = (uintptr_t)memory / (uintptr_t)page * (uintptr_t)page;
        (void)madvise((void *)start, (uintptr_t)memory + bytes - start, MADV_DONTNEED);
    }
#else
    (void)memory; /* elsewhere the same call may do nothing, or more */
    (void)bytes;
#endif
}

/* ---- the process, its CPUs and its clock ---- */

uint64_t qv_os_process(void) {
    return (uint64_t)getpid();
}

size_t qv_os_cpus(void) {
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    size_t cpus = online > 0 ? (size_t)online : 1;
#if defined(__linux__)
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        int count = CPU_COUNT(&set);
        cpus = count > 0 ? (size_t)count : cpus;
    }
    size_t quota = qv_cgroup_quota("/proc/self/cgroup", "/sys/fs/cgroup");
    cpus = quota != 0 && quota < cpus ? quota : cpus;
#endif
    return cpus;
}

int64_t qv_os_nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void qv_os_yield(void) {
    sched_yield();
}

bool qv_os_allow_tiles(void) {
#if defined(__linux__) && defined(__x86_64__) && defined(SYS_arch_prctl)
    const long ask_for_state = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM, and a bit's number in XCR0 */
    return syscall(SYS_arch_prctl, ask_for_state, tile_data) == 0;
#else
    return false;
#endif
}

#if defined(__APPLE__) && defined(__aarch64__)
static bool says_yes(const char *name) {
    int has = 0;
    size_t size = sizeof has;
    return sysctlbyname(name, &has, &size, NULL, 0) == 0 && has != 0;
}
#endif

unsigned qv_os_arm_features(void) {
    unsigned features = 0;
#if defined(__linux__) && defined(__aarch64__)
    const unsigned long dotprod = 1ul << 20, bf16 = 1ul << 14; /* HWCAP_ASIMDDP, HWCAP2_BF16 */
    features |= (getauxval(AT_HWCAP) & dotprod) != 0 ? QV_OS_ARM_DOTPROD : 0;
    features |= (getauxval(AT_HWCAP2) & bf16) != 0 ? QV_OS_ARM_BF16 : 0;
#elif defined(__APPLE__) && defined(__aarch64__)
    features |= says_yes("hw.optional.arm.FEAT_DotProd") ? QV_OS_ARM_DOTPROD : 0;
    features |= says_yes("hw.optional.arm.FEAT_BF16") ? QV_OS_ARM_BF16 : 0;
#endif
    return features;
}

/* ---- threads ---- */

typedef struct {
    void (*run)(void *context);
    void *context;
} start;

static void *run_thread(void *argument) {
    start begun = *(start *)argument;
    free(argument);
    begun.run(begun.context);
    return NULL;
}

bool qv_os_start_thread(void (*run)(void *context), void *context) {
    pthread_attr_t attributes;
    pthread_t thread;
    start *begun = malloc(sizeof *begun);
    if (begun == NULL || pthread_attr_init(&attributes) != 0) {
        free(begun);
        return false;
    }
    *begun = (start){run, context};
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    bool started = pthread_create(&thread, &attributes, run_thread, begun) == 0;
    pthread_attr_destroy(&attributes);
    if (!started) {
        free(begun);
    }
    return started;
}

bool qv_os_after_fork(void (*act)(void)) {
    return pthread_atfork(NULL, NULL, act) == 0;
}

static pthread_mutex_t *mutex_of(qv_lock *lock) {
    return (pthread_mutex_t *)(void *)lock->space;
}

static pthread_cond_t *condition_of(qv_wake *wake) {
    return (pthread_cond_t *)(void *)wake->space;
}

bool qv_lock_make(qv_lock *lock) {
    pthread_mutexattr_t attributes;
    if (pthread_mutexattr_init(&attributes) != 0) {
        return false;
    }
    bool made = pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK) == 0 &&
                pthread_mutex_init(mutex_of(lock), &attributes) == 0;
    pthread_mutexattr_destroy(&attributes);
    return made;
}

void qv_lock_end(qv_lock *lock) {
    pthread_mutex_destroy(mutex_of(lock));
}

bool qv_lock_take(qv_lock *lock) {
    return pthread_mutex_lock(mutex_of(lock)) == 0;
}

bool qv_lock_try(qv_lock *lock) {
    return pthread_mutex_trylock(mutex_of(lock)) == 0;
}

void qv_lock_give(qv_lock *lock) {
    pthread_mutex_unlock(mutex_of(lock));
}

bool qv_wake_make(qv_wake *wake) {
    return pthread_cond_init(condition_of(wake), NULL) == 0;
}

void qv_wake_wait(qv_wake *wake, qv_lock *lock) {
    pthread_cond_wait(condition_of(wake), mutex_of(lock));
}

void qv_wake_all(qv_wake *wake) {
    pthread_cond_broadcast(condition_of(wake));
}
#endif
