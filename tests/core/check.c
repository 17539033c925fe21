#include "check.h"

#include "base/memory.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static int failures;

void *take(size_t count, size_t size) {
    void *memory = qv_allocate(count == 0 ? 1 : count, size);
    if (memory == NULL) {
        puts("no memory");
        exit(2);
    }
    return memory;
}

void compare(const char *what, const float *found, const double *expected, size_t count, double tolerance) {
    double scale = 1e-30, worst = 0.0;
    for (size_t i = 0; i < count; i++) {
        scale = fmax(scale, fabs(expected[i]));
    }
    for (size_t i = 0; i < count; i++) {
        double difference = fabs((double)found[i] - expected[i]) / scale;
        worst = isfinite(found[i]) ? fmax(worst, difference) : INFINITY;
    }
    bool good = worst <= tolerance;
    failures += !good;
    printf("%-52s %.1e%s\n", what, worst, good ? "" : "  TOO LARGE");
}

int report_failures(void) {
    printf("%d failures\n", failures);
    return failures != 0;
}
