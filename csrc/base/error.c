#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>

qv_status qv_fail(qv_error *err, qv_status code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(err->message, sizeof err->message, format, arguments);
    va_end(arguments);
    err->code = code;
    return code;
}

qv_status qv_fail_memory(qv_error *err, const char *what) {
    return qv_fail(err, QV_ERR_MEMORY, "out of memory: %s", what);
}
