/* What the core's check programs share: a failed check is counted, and printed with its difference. */
#ifndef TESTS_CORE_CHECK_H
#define TESTS_CORE_CHECK_H

#include <stddef.h>

/* Memory for count items, or the end of the program. */
void *take(size_t count, size_t size);

/* The largest difference over the largest expected value, against the tolerance; not a number counts as infinite. */
void compare(const char *what, const float *found, const double *expected, size_t count, double tolerance);

/* The last line of every program, and its exit status. */
int report_failures(void);

#endif
