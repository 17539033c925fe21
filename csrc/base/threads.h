/* The one thread pool. A parallel call is cut into tasks; the caller and the pool's workers take them in turn.
 * While the pool serves one caller, another caller runs its tasks itself: results never depend on who ran a task. */
#ifndef QV_BASE_THREADS_H
#define QV_BASE_THREADS_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>

/* task < tasks; lane < the width the call began with, and no two tasks run on one lane at once (for scratch). */
typedef void (*qv_task)(void *context, size_t task, size_t lane);

/* Run `tasks` tasks on at most `width` lanes and return when all are done. Memory written by tasks is visible after. The
 * caller is lane 0, a worker the same lane in every call; task n < width begins on lane n, unless that is late. False where a
 * task of lane 0 forked this process: in the child, tasks that workers had begun are lost. */
bool qv_parallel(size_t width, size_t tasks, qv_task run, void *context);

/* The pool's width: QAVIT_NUM_THREADS, else the CPUs this process may use (affinity and container quota), at least 1. */
size_t qv_thread_count(void);
/* QV_ERR_VALUE where QAVIT_NUM_THREADS is no number from 1 to 256. */
qv_status qv_threads_check(qv_error *err);
/* Takes effect with the next parallel call. n is clamped to 1..256. */
void qv_set_thread_count(size_t n);

#endif
