/* A GPU's threads, one at a time, for the device cuda-host: the side of the kernels that nvcc compiles, compiled for the host.
 *
 * Each thread of a block has a stack of its own and runs until it comes to a barrier, to an exchange within its warp, or to
 * its end; then another one runs. The barrier lets a block go on when all its threads have come, an exchange a warp. The
 * order of threads and blocks is the rising one, the falling one, or a shuffled one, in turn by launch: where a barrier is
 * missing, one order has a thread read what another has not written yet, or write what another still reads. What a barrier
 * leaves some threads behind, or the end of shared memory written over, ends the process with a message. */
#undef _FORTIFY_SOURCE

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

namespace {

enum state { READY, AT_BARRIER, AT_EXCHANGE, DONE };

constexpr unsigned WARP = 32, THREADS = 256, WORDS = 6, PRODUCT = WARP;
constexpr size_t STACK = 64 << 10, SHARED_FLOATS = (48 << 10) / sizeof(float);

struct coordinates {
    unsigned x;
};

struct thread {
    state now;
    jmp_buf here;
    ucontext_t start;
    bool started;
    unsigned exchanges;
    /* To the warp: one exchange may be read while the next one is written. */
    unsigned steps[2];
    uint32_t given[2][WORDS];
    alignas(64) char stack[STACK];
};

thread *threads;
jmp_buf scheduler;
unsigned at;
coordinates threadIdx, blockIdx, blockDim;
void (*kernel_body)(const void *);
const void *kernel_parameters;

[[noreturn]] void give_up(const char *what) {
    fprintf(stderr, "emulated GPU: %s\n", what);
    abort();
}

void wait_as(state what) {
    threads[at].now = what;
    if (_setjmp(threads[at].here) == 0) {
        _longjmp(scheduler, 1);
    }
}

void __syncthreads() {
    wait_as(AT_BARRIER);
}

/* Give the warp `count` words; `step`, by which its threads exchange, or PRODUCT. Returns which of the two it was. */
unsigned exchange(unsigned step, const uint32_t *words, unsigned count) {
    thread &self = threads[at];
    const unsigned turn = self.exchanges++ % 2;
    self.steps[turn] = step;
    memcpy(self.given[turn], words, count * sizeof *words);
    wait_as(AT_EXCHANGE);
    return turn;
}

/* What another thread of the warp gave in that exchange. */
const uint32_t *given_by(unsigned other, unsigned turn, unsigned step) {
    if (threads[other].exchanges < threads[at].exchanges || threads[other].steps[turn] != step) {
        give_up("threads of a warp exchange at different places");
    }
    return threads[other].given[turn];
}

float __shfl_xor_sync(unsigned mask, float value, unsigned step) {
    uint32_t word;
    if (mask != 0xffffffffu) {
        give_up("an exchange without all of a warp");
    }
    memcpy(&word, &value, sizeof word);
    const unsigned turn = exchange(step, &word, 1);
    memcpy(&value, given_by(at ^ step, turn, step), sizeof value);
    return value;
}

}

alignas(16) thread_local float memory[SHARED_FLOATS + 1];

#define QVK_EMULATED 1
#define __device__
#define __forceinline__ inline
#define __shared__ thread_local
#include "cuda/kernel_attention.h"
#include "cuda/kernel_bodies.h"
#include "cuda/kernel_mma.h"

/* A warp's product: each thread gives its factors, and makes its own part of the result of those of all. */
static void qvk_mma(bool half, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const uint32_t words[WORDS] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const unsigned turn = exchange(PRODUCT, words, WORDS), first = at / WARP * WARP, lane = at % WARP;
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (unsigned k = 0; k < (half ? 16 : 8); k++) {
            const qvk_place_of x = qvk_place_in_a(half, row, k), y = qvk_place_in_b(half, k, column);
            const uint32_t *x_words = given_by(first + x.lane, turn, PRODUCT), *y_words = given_by(first + y.lane, turn, PRODUCT);
            c[i] += qvk_factor(half, x_words[x.word], x.upper) * qvk_factor(half, y_words[4 + y.word], y.upper);
        }
    }
}

#include "cuda/kernel_pictures.h"
#include "cuda/kernel_scores.h"
#include "cuda/kernel_tensor_attention.h"

namespace {

/* A thread's life: one kernel after the other. */
void live() {
    for (;;) {
        kernel_body(kernel_parameters);
        wait_as(DONE);
    }
}

void go_on(unsigned t) {
    at = t;
    threadIdx = {t};
    if (_setjmp(scheduler) != 0) {
        return;
    }
    if (threads[t].started) {
        _longjmp(threads[t].here, 1);
    }
    threads[t].started = true;
    setcontext(&threads[t].start);
    give_up("a thread could not be started");
}

bool all_are(unsigned first, unsigned count, state what) {
    for (unsigned t = first; t < first + count; t++) {
        if (threads[t].now != what) {
            return false;
        }
    }
    return true;
}

void release(unsigned first, unsigned count) {
    for (unsigned t = first; t < first + count; t++) {
        threads[t].now = READY;
    }
}

/* The i-th of n in one of three orders; 97 is prime to every n here. */
unsigned in_order(unsigned order, unsigned i, unsigned n) {
    return order == 0 ? i : order == 1 ? n - 1 - i : (unsigned)((97ull * i + 41) % n);
}

void run_block(unsigned order) {
    const unsigned n = blockDim.x;
    for (unsigned t = 0; t < n; t++) {
        threads[t].now = READY;
        threads[t].exchanges = 0;
    }
    while (!all_are(0, n, DONE)) {
        bool moved = false;
        for (unsigned i = 0; i < n; i++) {
            const unsigned t = in_order(order, i, n), first = t / WARP * WARP;
            if (threads[t].now != READY) {
                continue;
            }
            moved = true;
            go_on(t);
            if (all_are(first, WARP, AT_EXCHANGE)) {
                release(first, WARP);
                break; /* from the front of the order again */
            }
        }
        if (all_are(0, n, AT_BARRIER)) {
            release(0, n);
        } else if (!moved) {
            give_up("some threads wait at a barrier that others do not come to");
        }
    }
}

#define QVK_DEFINE(id, body, parameters)                  \
    void body##_thread(const void *p) {                   \
        body(static_cast<const parameters *>(p));         \
    }
QVK_KERNELS(QVK_DEFINE)

#define QVK_ENTRY(id, body, parameters) body##_thread,
void (*const bodies[])(const void *) = {QVK_KERNELS(QVK_ENTRY)};

void make_threads() {
    threads = static_cast<thread *>(calloc(THREADS, sizeof(thread)));
    for (unsigned t = 0; threads != nullptr && t < THREADS; t++) {
        getcontext(&threads[t].start);
        threads[t].start.uc_stack.ss_sp = threads[t].stack;
        threads[t].start.uc_stack.ss_size = STACK;
        makecontext(&threads[t].start, live, 0);
    }
    if (threads == nullptr) {
        give_up("no memory");
    }
}

}

extern "C" void qv_emulated_launch(qvk_kernel kernel, const void *parameters, size_t blocks, unsigned width, size_t shared) {
    static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
    static unsigned launches;
    pthread_mutex_lock(&one_at_a_time);
    if (threads == nullptr) {
        make_threads();
    }
    const unsigned order = launches++ % 3, count = static_cast<unsigned>(blocks);
    const size_t floats = shared / sizeof(float);
    kernel_body = bodies[kernel];
    kernel_parameters = parameters;
    blockDim = {width};
    for (unsigned i = 0; i < count; i++) {
        blockIdx = {in_order(order % 2, i, count)};
        memset(memory, 0xff, sizeof memory);
        run_block(order);
        static const unsigned char untouched[sizeof(float)] = {0xff, 0xff, 0xff, 0xff};
        if (memcmp(&memory[floats], untouched, sizeof untouched) != 0) {
            give_up("a block wrote behind its shared memory");
        }
    }
    pthread_mutex_unlock(&one_at_a_time);
}
