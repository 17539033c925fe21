#include "base/cpu.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static qv_cpu_features detect(void) {
    qv_cpu_features cpu = {false, false, false, false};
#if defined(__x86_64__)
    __builtin_cpu_init();
    cpu.avx2_fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    cpu.avx512 = cpu.avx2_fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    cpu.avx512_bf16 = cpu.avx512 && __builtin_cpu_supports("avx512bf16");
#elif defined(__aarch64__)
    cpu.neon = true;
#endif
    const char *level = getenv("QAVIT_CPU");
    if (level != NULL && *level != '\0' && strcmp(level, "avx512_bf16") != 0) {
        cpu.avx512_bf16 = false;
        if (strcmp(level, "avx512") != 0) {
            cpu.avx512 = false;
            if (strcmp(level, "avx2") != 0) {
                cpu.avx2_fma = false;
            }
        }
    }
    return cpu;
}

/* Every op asks, and getenv is neither quick nor safe beside a setenv: the first answer is kept, as bits. */
static atomic_uint known;

qv_cpu_features qv_cpu(void) {
    unsigned bits = atomic_load_explicit(&known, memory_order_relaxed);
    if (bits == 0) {
        qv_cpu_features cpu = detect();
        bits = 1u | (unsigned)cpu.avx2_fma << 1 | (unsigned)cpu.avx512 << 2 | (unsigned)cpu.avx512_bf16 << 3 |
               (unsigned)cpu.neon << 4;
        atomic_store_explicit(&known, bits, memory_order_relaxed);
    }
    return (qv_cpu_features){(bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0, (bits & 16) != 0};
}
