/* Status codes and messages: how every function of the core that can fail says so. */
#ifndef QV_BASE_ERROR_H
#define QV_BASE_ERROR_H

#include <stdbool.h>

typedef enum {
    QV_OK = 0,
    QV_ERR_VALUE,       /* an argument, a file or a weight is not what it must be */
    QV_ERR_MEMORY,      /* an allocation failed */
    QV_ERR_CANCELLED,   /* the caller asked to stop (Ctrl-C) */
    QV_ERR_UNSUPPORTED, /* not in this build or on this CPU */
} qv_status;

typedef struct {
    qv_status code;
    char message[2048];
} qv_error;

/* How what takes long learns, on the thread that called it, that it should stop; `stop` NULL: never. */
typedef struct {
    bool (*stop)(void *context);
    void *context;
} qv_poll;

/* Fill `err` (never NULL) and return `code`, so that a failing function ends in `return qv_fail(...)`. */
#if defined(__MINGW32__)
__attribute__((format(gnu_printf, 3, 4)))
#elif defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
qv_status qv_fail(qv_error *err, qv_status code, const char *format, ...);

/* QV_ERR_MEMORY, naming what the memory was for. */
qv_status qv_fail_memory(qv_error *err, const char *what);

#endif
