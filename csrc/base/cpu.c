#include "base/cpu.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

/* In rising order. */
static const char *const levels[] = {"portable", "avx2", "avx512", "avx512_bf16"};
enum { PORTABLE, AVX2, AVX512, AVX512_BF16, LEVELS };

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
                                             "QAVIT_CPU is '%.40s', expected portable, avx2, avx512 or avx512_bf16",
                                             getenv("QAVIT_CPU"));
}

#if defined(__x86_64__)
/* By the instruction, not by __builtin_cpu_supports, which answers no to everything where the compiler's own library is
 * missing. */
static int own_level(void) {
    unsigned a, b, c, d, more;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & bit_OSXSAVE) == 0 || (c & bit_FMA) == 0) {
        return PORTABLE;
    }
    uint32_t state, unused; /* which registers the system keeps for a thread */
    __asm__ volatile("xgetbv" : "=a"(state), "=d"(unused) : "c"(0));
    const uint32_t avx_state = 0x06, avx512_state = 0xe6;
    const unsigned avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    if ((state & avx_state) != avx_state || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & bit_AVX2) == 0) {
        return PORTABLE;
    }
    bool kept = (state & avx512_state) == avx512_state;
#if defined(__APPLE__)
    kept = true; /* from a thread's first use of them on */
#endif
    if (!kept || (b & avx512) != avx512) {
        return AVX2;
    }
    return a >= 1 && __get_cpuid_count(7, 1, &more, &b, &c, &d) && (more & bit_AVX512BF16) != 0 ? AVX512_BF16 : AVX512;
}
#else
static int own_level(void) {
    return PORTABLE;
}
#endif

static qv_cpu_features detect(void) {
    int level = own_level(), wanted = wanted_level();
    level = wanted < level ? wanted : level;
#if defined(__aarch64__)
    bool neon = true;
#else
    bool neon = false;
#endif
    return (qv_cpu_features){level >= AVX2, level >= AVX512, level >= AVX512_BF16, neon};
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
