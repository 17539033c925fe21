/* Products by AMX's tiles against plain loops, by instructions that tile_emulator.c carries out, on any x86-64 CPU. */
#include "base/os.h"
#include "base/threads.h"
#include "check.h"
#include "ops/kernels.h"
#include "tile_emulator.h"

#include <math.h>
#include <stdio.h>
#include <cpuid.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define PANEL QV_MAX_PANEL
/* Floats between rows of out and of the epilogue's, and behind the last: nothing may be written there. */
#define GAP ((size_t)3)
#define UNTOUCHED 12345.0f

static uint64_t state = 1;

/* Uniform in [-1, 1), the same on every machine. */
static float next_float(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(state >> 11) / (double)(1ull << 52) - 1.0);
}

/* A number that bfloat16 has. */
static uint16_t next_bfloat16(void) {
    float x = next_float();
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)(bits >> 16);
}

static double value_of(uint16_t bfloat16) {
    uint32_t bits = (uint32_t)bfloat16 << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return (double)x;
}

typedef struct {
    size_t rows, columns, steps;
    bool add;
} product_case;

typedef struct {
    const product_case *c;
    uint16_t *x, *panels; /* [rows, steps, 2]; [panels, steps, PANEL, 2] */
    float *bias, *before, *out;
    size_t ld;
} product_data;

static void add_bias(const qv_panel_product *p, size_t first, size_t rows) {
    for (size_t i = 0; i < rows * p->columns; i++) {
        p->out[(first + i / p->columns) * p->ld_out + i % p->columns] += p->bias[i % p->columns];
    }
}

/* Rows first .. of the product, into out. */
static void multiply_rows(const product_data *d, float *out, size_t first, size_t rows) {
    const product_case *c = d->c;
    qv_panel_product product = {.out = out + first * d->ld,
                                .ld_out = d->ld,
                                .x = d->x + first * c->steps * 2,
                                .ld_x = c->steps,
                                .panel = d->panels,
                                .rows = rows,
                                .columns = c->columns,
                                .depth = c->steps,
                                .add_to_out = c->add,
                                .bias = c->add ? NULL : d->bias};
    qv_multiply_tiles(&product, add_bias);
}

static void multiply_alone(void *context, size_t task, size_t lane) {
    (void)lane;
    const product_data *d = context;
    multiply_rows(d, d->out, task, 1);
}

static double expect(const product_data *d, size_t r, size_t n) {
    const product_case *c = d->c;
    double sum = (double)(c->add ? d->before[r * d->ld + n] : d->bias[n]);
    for (size_t k = 0; k < c->steps; k++) {
        const uint16_t *x = d->x + (r * c->steps + k) * 2;
        const uint16_t *w = d->panels + ((n / PANEL * c->steps + k) * PANEL + n % PANEL) * 2;
        sum += value_of(x[0]) * value_of(w[0]) + value_of(x[1]) * value_of(w[1]);
    }
    return sum;
}

static void check_product(const product_case *c) {
    size_t ld = c->columns + GAP, count = c->rows * c->columns, panels = (c->columns + PANEL - 1) / PANEL;
    product_data d = {.c = c, .ld = ld, .x = take(c->rows * c->steps * 2, sizeof *d.x),
                      .panels = take(panels * c->steps * PANEL * 2, sizeof *d.panels), .bias = take(c->columns, sizeof(float)),
                      .before = take(c->rows * ld, sizeof(float)), .out = take(c->rows * ld, sizeof(float))};
    float *whole = take(c->rows * ld, sizeof *whole), *found = take(count, sizeof *found);
    double *expected = take(count, sizeof *expected), wrong[] = {0.0};
    for (size_t i = 0; i < c->rows * c->steps * 2; i++) {
        d.x[i] = next_bfloat16();
    }
    for (size_t i = 0; i < panels * c->steps * PANEL * 2; i++) {
        size_t column = i / (c->steps * PANEL * 2) * PANEL + i / 2 % PANEL;
        d.panels[i] = column < c->columns ? next_bfloat16() : 0;
    }
    for (size_t i = 0; i < c->columns; i++) {
        d.bias[i] = next_float();
    }
    for (size_t i = 0; i < c->rows * ld; i++) {
        d.before[i] = i % ld < c->columns ? next_float() : UNTOUCHED;
    }
    memcpy(whole, d.before, c->rows * ld * sizeof *whole);
    memcpy(d.out, d.before, c->rows * ld * sizeof *whole);
    multiply_rows(&d, whole, 0, c->rows);
    bool left_set = tiles_are_set();
    qv_parallel(3, c->rows, multiply_alone, &d);
    for (size_t i = 0; i < count; i++) {
        found[i] = whole[i / c->columns * ld + i % c->columns];
        expected[i] = expect(&d, i / c->columns, i % c->columns);
    }
    char what[96];
    snprintf(what, sizeof what, "tiles %zu x %zu x %zu%s", c->rows, c->columns, c->steps, c->add ? ", added" : "");
    compare(what, found, expected, count, 1e-6);
    float differ = memcmp(whole, d.out, c->rows * ld * sizeof *whole) != 0 ? 1.0f : 0.0f;
    compare("  each row alone, on three threads: the same bits", &differ, wrong, 1, 0.0);
    float beside = 0.0f;
    for (size_t i = 0; i < c->rows * ld; i++) {
        beside += i % ld >= c->columns && whole[i] != UNTOUCHED ? 1.0f : 0.0f;
    }
    compare("  nothing beside the columns", &beside, wrong, 1, 0.0);
    float set = left_set ? 1.0f : 0.0f;
    compare("  no tiles left set", &set, wrong, 1, 0.0);
    void *memory[] = {d.x, d.panels, d.bias, d.before, d.out, whole, found, expected};
    for (size_t i = 0; i < sizeof memory / sizeof memory[0]; i++) {
        qv_free(memory[i]);
    }
}

/* The emulator ends a process that uses a tile without shapes, which ours never do. */
static void check_refusal(void) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        (void)!freopen("/dev/null", "w", stderr);
        __asm__ volatile("tilezero %tmm0");
        _Exit(0);
    }
    int status = 0;
    float refused = child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) ? (float)WEXITSTATUS(status) : -1.0f;
    double expected = 99.0;
    compare("the exit status of a tile without shapes", &refused, &expected, 1, 0.0);
}

/* The system lets a process have tiles where the CPU has them at most. */
static void check_permission(void) {
    unsigned a, b, c, d;
    bool has = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & 1u << 24) != 0;
    float wrong = qv_os_allow_tiles() && !has ? 1.0f : 0.0f;
    double expected = 0.0;
    compare("tiles that the system allows and the CPU has not", &wrong, &expected, 1, 0.0);
}

int main(void) {
    qv_set_thread_count(3);
    printf("kernels amx, emulated\n");
    check_refusal();
    check_permission();
    /* Rows and columns of one tile, two and more, and between; depths of whole tiles, less, and a rest. */
    static const size_t rows[] = {1, 7, 16, 17, 32, 33, 61}, columns[] = {1, 16, 31, 32, 33, 64, 130};
    static const size_t steps[] = {1, 16, 40};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        for (size_t j = 0; j < sizeof columns / sizeof columns[0]; j++) {
            for (size_t k = 0; k < sizeof steps / sizeof steps[0]; k++) {
                product_case c = {rows[i], columns[j], steps[k], (i + j + k) % 2 != 0};
                check_product(&c);
            }
        }
    }
    product_case deep = {35, 64, 1100, false};
    check_product(&deep);
    tile_counts before = count_tiles();
    const size_t burnt = 3;
    float operations = (float)qv_burn_tiles(burnt);
    tile_counts after = count_tiles();
    float products = (float)(after.bfloat16_products - before.bfloat16_products), per_product = 2 * 16 * 16 * 32;
    double expected = (double)(products * per_product);
    compare("operations of the products that burn made", &operations, &expected, 1, 0.0);
    printf("%zu configurations, %zu releases, %zu loads, %zu stores, %zu products\n", after.configurations, after.releases,
           after.loads, after.stores, after.bfloat16_products);
    return report_failures();
}
