#include "base/cpu.h"

#include <stdlib.h>
#include <string.h>

qv_cpu_features qv_cpu(void) {
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
