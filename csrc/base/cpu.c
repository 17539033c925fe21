#include "base/cpu.h"

#include "base/os.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

/* In rising order. */
#if defined(__x86_64__)
static const char *const levels[] = {"portable", "avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16", "amx"};
enum { PORTABLE, AVX2, AVX_VNNI, AVX512, AVX512_VNNI, AVX512_BF16, AMX, LEVELS };
#define LEVEL_NAMES "portable, avx2, avx_vnni, avx512, avx512_vnni, avx512_bf16 or amx"
#elif defined(__aarch64__)
static const char *const levels[] = {"portable", "neon", "neon_dotprod", "neon_bf16"};
enum { PORTABLE, NEON, NEON_DOTPROD, NEON_BF16, LEVELS };
#define LEVEL_NAMES "portable, neon, neon_dotprod or neon_bf16"
#else
static const char *const levels[] = {"portable"};
enum { PORTABLE, LEVELS };
#define LEVEL_NAMES "portable"
#endif

/* What QAVIT_CPU names, the highest level where it is not set, LEVELS where there is none of that name. */
static int wanted_level(void) {
    const char *wanted = getenv("QAVIT_CPU");
    if (wanted == NULL || *wanted == '\0') {
        return LEVELS - 1;
    }
    int level = PORTABLE;
    while (level < LEVELS && strcmp(wanted, levels[level]) != 0) {
        level++;
    }
    return level;
}

qv_status qv_cpu_check(qv_error *err) {
    if (__BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__) {
        return qv_fail(err, QV_ERR_VALUE,
                       "this CPU is big-endian; qavit maps files of weights, which are little-endian, as they are");
    }
    return wanted_level() < LEVELS ? QV_OK
                                   : qv_fail(err, QV_ERR_VALUE, "QAVIT_CPU is '%.40s', expected " LEVEL_NAMES,
                                             getenv("QAVIT_CPU"));
}

/* By the instruction and the system, not by __builtin_cpu_supports, which answers no to everything where the compiler's own
 * library is missing. */
#if defined(__x86_64__)
#if defined(__linux__)
/* There in a process whose instructions on tiles a program carries out (tests/core/tile_emulator.c). */
extern bool qv_emulates_tiles(void) __attribute__((weak, visibility("default")));
#endif

/* Bits of XCR0: which registers the system keeps for a thread. */
static uint32_t kept_registers(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

/* Whether there are tiles; d: EDX of CPUID's leaf 7. */
static bool has_tiles(unsigned d) {
#if defined(__linux__)
    if (qv_emulates_tiles != NULL) {
        return qv_emulates_tiles();
    }
#endif
    const unsigned tiles = 1u << 22 | 1u << 24 | 1u << 25; /* of bfloat16, at all, of int8 */
    const uint32_t tile_state = 0x60000;
    return (d & tiles) == tiles && (kept_registers() & tile_state) == tile_state && qv_os_allow_tiles();
}

static qv_cpu_features detect(int wanted) {
    qv_cpu_features cpu = {0};
    unsigned a, b, c, d, more = 0;
    if (wanted < AVX2 || !__get_cpuid(1, &a, &b, &c, &d) || (c & bit_OSXSAVE) == 0 || (c & bit_FMA) == 0) {
        return cpu;
    }
    const uint32_t state = kept_registers(), avx_state = 0x06, avx512_state = 0xe6;
    const unsigned avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    if ((state & avx_state) != avx_state || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & bit_AVX2) == 0) {
        return cpu;
    }
    bool kept = (state & avx512_state) == avx512_state;
#if defined(__APPLE__)
    kept = true; /* from a thread's first use of them on */
#endif
    cpu.avx2_fma = true;
    cpu.avx512 = wanted >= AVX512 && kept && (b & avx512) == avx512;
    cpu.amx = wanted >= AMX && has_tiles(d); /* who does not want them does not ask the system for them */
    cpu.avx512_vnni = wanted >= AVX512_VNNI && cpu.avx512 && (c & bit_AVX512VNNI) != 0;
    if (a >= 1 && __get_cpuid_count(7, 1, &more, &b, &c, &d)) {
        cpu.avx_vnni = wanted >= AVX_VNNI && (more & bit_AVXVNNI) != 0;
        cpu.avx512_bf16 = wanted >= AVX512_BF16 && cpu.avx512 && (more & bit_AVX512BF16) != 0;
    }
    return cpu;
}
#elif defined(__aarch64__)
static qv_cpu_features detect(int wanted) {
    const unsigned has = qv_os_arm_features();
    return (qv_cpu_features){.neon = wanted >= NEON,
                             .neon_dotprod = wanted >= NEON_DOTPROD && (has & QV_OS_ARM_DOTPROD) != 0,
                             .neon_bf16 = wanted >= NEON_BF16 && (has & QV_OS_ARM_BF16) != 0};
}
#else
static qv_cpu_features detect(int wanted) {
    (void)wanted;
    return (qv_cpu_features){0};
}
#endif

/* KiB of a core's second-level cache. */
static unsigned second_level_cache(void) {
#if defined(__x86_64__)
    unsigned a, b, c, d;
    if (__get_cpuid(0x80000006, &a, &b, &c, &d) && c >> 16 >= 256) {
        return c >> 16;
    }
#endif
    return 1024;
}

/* Every op asks, and getenv is neither quick nor safe beside a setenv: the first answer is kept, as bits; above them the
 * cache, in CACHE_UNIT. */
#define CACHE_UNIT 64u /* KiB */
#define CACHE_BIT 16
static atomic_uint known;

qv_cpu_features qv_cpu(void) {
    unsigned bits = atomic_load_explicit(&known, memory_order_relaxed);
    if (bits == 0) {
        qv_cpu_features cpu = detect(wanted_level());
        const bool each[] = {cpu.avx2_fma, cpu.avx_vnni, cpu.avx512,       cpu.avx512_vnni, cpu.avx512_bf16,
                             cpu.amx,      cpu.neon,     cpu.neon_dotprod, cpu.neon_bf16};
        bits = 1;
        for (size_t i = 0; i < sizeof each / sizeof each[0]; i++) {
            bits |= (unsigned)each[i] << (i + 1);
        }
        bits |= second_level_cache() / CACHE_UNIT << CACHE_BIT;
        atomic_store_explicit(&known, bits, memory_order_relaxed);
    }
    return (qv_cpu_features){.avx2_fma = (bits & 2) != 0,
                             .avx_vnni = (bits & 4) != 0,
                             .avx512 = (bits & 8) != 0,
                             .avx512_vnni = (bits & 16) != 0,
                             .avx512_bf16 = (bits & 32) != 0,
                             .amx = (bits & 64) != 0,
                             .neon = (bits & 128) != 0,
                             .neon_dotprod = (bits & 256) != 0,
                             .neon_bf16 = (bits & 512) != 0,
                             .cache = (size_t)(bits >> CACHE_BIT) * CACHE_UNIT * 1024};
}
