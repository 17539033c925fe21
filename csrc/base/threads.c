#include "base/threads.h"

#include "base/os.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#define MAX_THREADS ((size_t)256)
/* A worker looks so long for new work before it sleeps: the gap between two layers. */
#define SPIN_NANOSECONDS 20000
/* The clock is looked at once in so many turns. */
#define TURNS 16

typedef struct {
    qv_task run;
    void *context;
    size_t tasks;
    size_t width;
    atomic_size_t next_task;          /* of those that are no lane's own */
    atomic_bool begun[MAX_THREADS];   /* each lane's own task */
} job_state;

static struct {
    qv_lock lock; /* what sleeping workers wait with */
    qv_wake wake;
    atomic_flag busy;         /* one parallel call at a time */
    atomic_size_t width;      /* 0: not decided yet */
    size_t workers;           /* threads running, the caller not counted */
    atomic_size_t sleepers;
    atomic_uint generation;   /* a new job: workers compare it with the last one they saw */
    atomic_size_t inside;     /* workers that are looking at `job` */
    job_state job;
    bool ready, fork_handler; /* the lock and the wake are made; a child makes them anew */
    unsigned forks;           /* between this process and the one that first started workers */
} pool = {.busy = ATOMIC_FLAG_INIT};

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* Turns of waiting, until it has been so long as a worker spins. */
typedef struct {
    int64_t end;
    unsigned turns;
} spin;

static bool spins_on(spin *s) {
    if (s->turns++ % TURNS == 0) {
        int64_t now = qv_os_nanoseconds();
        s->end = s->turns == 1 ? now + SPIN_NANOSECONDS : s->end;
        if (now >= s->end) {
            return false;
        }
    }
    relax();
    return true;
}

static size_t clamp_width(size_t n) {
    return n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n;
}

/* What QAVIT_NUM_THREADS says, 0 where it is not set, -1 where it is no number from 1 to MAX_THREADS. */
static long wanted_width(void) {
    const char *wanted = getenv("QAVIT_NUM_THREADS");
    if (wanted == NULL || *wanted == '\0') {
        return 0;
    }
    char *end = NULL;
    long n = *wanted >= '0' && *wanted <= '9' ? strtol(wanted, &end, 10) : 0;
    return n >= 1 && n <= (long)MAX_THREADS && *end == '\0' ? n : -1;
}

qv_status qv_threads_check(qv_error *err) {
    return wanted_width() >= 0 ? QV_OK
                               : qv_fail(err, QV_ERR_VALUE,
                                         "QAVIT_NUM_THREADS is '%.40s', expected a whole number from 1 to 256",
                                         getenv("QAVIT_NUM_THREADS"));
}

size_t qv_thread_count(void) {
    size_t width = atomic_load(&pool.width);
    if (width != 0) {
        return width;
    }
    long n = wanted_width();
    width = n > 0 ? (size_t)n : clamp_width(qv_os_cpus());
    size_t undecided = 0;
    atomic_compare_exchange_strong(&pool.width, &undecided, width);
    return atomic_load(&pool.width);
}

void qv_set_thread_count(size_t n) {
    atomic_store(&pool.width, clamp_width(n));
}

static void run_own(job_state *job, size_t owner, size_t lane) {
    if (!atomic_load_explicit(&job->begun[owner], memory_order_relaxed) && !atomic_exchange(&job->begun[owner], true)) {
        job->run(job->context, owner, lane);
    }
}

/* Take tasks until none is left: the lane's own first, whose data it may still have in its cache, at last those of lanes
 * that have not come. */
static void work(job_state *job, size_t lane) {
    run_own(job, lane, lane);
    for (size_t task = atomic_fetch_add(&job->next_task, 1); task < job->tasks;
         task = atomic_fetch_add(&job->next_task, 1)) {
        job->run(job->context, task, lane);
    }
    for (size_t other = 0; other < job->width; other++) {
        run_own(job, other, lane);
    }
}

static void work_for_ever(void *number) {
    const size_t lane = (size_t)(uintptr_t)number;
    unsigned seen = 0;
    for (;;) {
        unsigned now = atomic_load(&pool.generation);
        for (spin wait = {0, 0}; now == seen && spins_on(&wait);) {
            now = atomic_load(&pool.generation);
        }
        if (now == seen) {
            qv_lock_take(&pool.lock);
            atomic_fetch_add(&pool.sleepers, 1);
            while ((now = atomic_load(&pool.generation)) == seen) {
                qv_wake_wait(&pool.wake, &pool.lock);
            }
            atomic_fetch_sub(&pool.sleepers, 1);
            qv_lock_give(&pool.lock);
        }
        seen = now;
        /* An odd generation is a job being served; an even one means that it has ended. Entering is announced before
         * the check, so that the caller that ends the job sees either the worker inside or the worker turned away. */
        atomic_fetch_add(&pool.inside, 1);
        if ((atomic_load(&pool.generation) & 1u) != 0 && lane < pool.job.width) {
            work(&pool.job, lane);
        }
        atomic_fetch_sub(&pool.inside, 1);
    }
}

/* In a forked child no worker exists and any lock may be held by a thread that is not there: start afresh. */
static void after_fork_in_child(void) {
    pool.ready = false;
    pool.forks++;
    atomic_flag_clear(&pool.busy);
    pool.workers = 0;
    atomic_store(&pool.sleepers, 0);
    atomic_store(&pool.inside, 0);
    atomic_store(&pool.generation, 0);
}

/* Workers are started when first needed and stay, asleep, when the width shrinks. Only the caller that the pool serves
 * comes here. */
static void start_workers(size_t wanted) {
    pool.ready = pool.ready || (qv_lock_make(&pool.lock) && qv_wake_make(&pool.wake));
    if (pool.workers >= wanted || !pool.ready) {
        return;
    }
    pool.fork_handler = pool.fork_handler || qv_os_after_fork(after_fork_in_child);
    while (pool.workers < wanted && qv_os_start_thread(work_for_ever, (void *)(uintptr_t)(pool.workers + 1))) {
        pool.workers++;
    }
}

static void run_alone(size_t tasks, qv_task run, void *context) {
    for (size_t task = 0; task < tasks; task++) {
        run(context, task, 0);
    }
}

bool qv_parallel(size_t width, size_t tasks, qv_task run, void *context) {
    if (width > tasks) {
        width = tasks;
    }
    if (width <= 1 || atomic_flag_test_and_set(&pool.busy)) {
        run_alone(tasks, run, context);
        return true;
    }
    start_workers(width - 1);
    unsigned forks = pool.forks;
    pool.job.run = run;
    pool.job.context = context;
    pool.job.tasks = tasks;
    pool.job.width = width;
    atomic_store(&pool.job.next_task, width);
    for (size_t lane = 0; lane < width; lane++) {
        atomic_store_explicit(&pool.job.begun[lane], false, memory_order_relaxed);
    }
    atomic_fetch_add(&pool.generation, 1); /* odd: open */
    if (atomic_load(&pool.sleepers) != 0) {
        qv_lock_take(&pool.lock);
        qv_wake_all(&pool.wake);
        qv_lock_give(&pool.lock);
    }
    work(&pool.job, 0);
    if (forks != pool.forks) {
        return false; /* the pool has begun afresh, and this job is none of its */
    }
    atomic_fetch_add(&pool.generation, 1); /* even: closed; wait for the workers that are still in a task */
    for (spin wait = {0, 0}; atomic_load(&pool.inside) != 0;) {
        if (!spins_on(&wait)) {
            qv_os_yield();
        }
    }
    atomic_flag_clear(&pool.busy);
    return true;
}
