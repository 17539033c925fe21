#include "base/cpu.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

/* In rising order. */
static const char *const levels[] = {"portable", "avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16"};
enum { PORTABLE, AVX2, AVX_VNNI, AVX512, AVX512_VNNI, AVX512_BF16, LEVELS };

/* What QAVIT_CPU names, the highest level where it is not set, LEVELS where there is none of that name. */
static int wanted_level(void) {
    const char *wanted = getenv("QAVIT_CPU");
    if (wanted == NULL || *wanted == '\0') {
        return AVX512_BF16;
    }
    int level = PORTABLE;
    while (level < LEVELS && strcmp(wanted, levels[level]) != 0) {
        level++;
    }
    return level;
}

qv_status qv_cpu_check(qv_error *err) {
    return wanted_level() < LEVELS ? QV_OK
                                   : qv_fail(err, QV_ERR_VALUE,
                                             "QAVIT_CPU is '%.40s', expected portable, avx2, avx_vnni, avx512, avx512_vnni or "
                                             "avx512_bf16",
                                             getenv("QAVIT_CPU"));
}

#if defined(__x86_64__)
/* By the instruction, not by __builtin_cpu_supports, which answers no to everything where the compiler's own library is
 * missing. */
static qv_cpu_features own_features(void) {
    qv_cpu_features cpu = {0};
    unsigned a, b, c, d, more = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & bit_OSXSAVE) == 0 || (c & bit_FMA) == 0) {
        return cpu;
    }
    uint32_t state, unused; /* which registers the system keeps for a thread */
    __asm__ volatile("xgetbv" : "=a"(state), "=d"(unused) : "c"(0));
    const uint32_t avx_state = 0x06, avx512_state = 0xe6;
    const unsigned avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    if ((state & avx_state) != avx_state || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & bit_AVX2) == 0) {
        return cpu;
    }
    bool kept = (state & avx512_state) == avx512_state;
#if defined(__APPLE__)
    kept = true; /* from a thread's first use of them on */
#endif
    cpu.avx2_fma = true;
    cpu.avx512 = kept && (b & avx512) == avx512;
    cpu.avx512_vnni = cpu.avx512 && (c & bit_AVX512VNNI) != 0;
    if (a >= 1 && __get_cpuid_count(7, 1, &more, &b, &c, &d)) {
        cpu.avx_vnni = (more & bit_AVXVNNI) != 0;
        cpu.avx512_bf16 = cpu.avx512 && (more & bit_AVX512BF16) != 0;
    }
    return cpu;
}
#else
static qv_cpu_features own_features(void) {
#if defined(__aarch64__)
    return (qv_cpu_features){.neon = true};
#else
    return (qv_cpu_features){.neon = false};
#endif
}
#endif

static qv_cpu_features detect(void) {
    qv_cpu_features cpu = own_features();
    int wanted = wanted_level();
    cpu.avx2_fma = cpu.avx2_fma && wanted >= AVX2;
    cpu.avx_vnni = cpu.avx_vnni && wanted >= AVX_VNNI;
    cpu.avx512 = cpu.avx512 && wanted >= AVX512;
    cpu.avx512_vnni = cpu.avx512_vnni && wanted >= AVX512_VNNI;
    cpu.avx512_bf16 = cpu.avx512_bf16 && wanted >= AVX512_BF16;
    return cpu;
}

/* Every op asks, and getenv is neither quick nor safe beside a setenv: the first answer is kept, as bits. */
static atomic_uint known;

qv_cpu_features qv_cpu(void) {
    unsigned bits = atomic_load_explicit(&known, memory_order_relaxed);
    if (bits == 0) {
        qv_cpu_features cpu = detect();
        const bool each[] = {cpu.avx2_fma, cpu.avx_vnni, cpu.avx512, cpu.avx512_vnni, cpu.avx512_bf16, cpu.neon};
        bits = 1;
        for (size_t i = 0; i < sizeof each / sizeof each[0]; i++) {
            bits |= (unsigned)each[i] << (i + 1);
        }
        atomic_store_explicit(&known, bits, memory_order_relaxed);
    }
    return (qv_cpu_features){.avx2_fma = (bits & 2) != 0,
                             .avx_vnni = (bits & 4) != 0,
                             .avx512 = (bits & 8) != 0,
                             .avx512_vnni = (bits & 16) != 0,
                             .avx512_bf16 = (bits & 32) != 0,
                             .neon = (bits & 64) != 0};
}
