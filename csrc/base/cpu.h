/* What this CPU can do, as far as a kernel was written for it. */
#ifndef QV_BASE_CPU_H
#define QV_BASE_CPU_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct {
    bool avx2_fma;
    bool avx_vnni;    /* dot products of four bytes, in 256 bits */
    bool avx512;      /* F, BW, DQ, VL */
    bool avx512_vnni; /* in 512 */
    bool avx512_bf16; /* and its bfloat16 dot product */
    bool amx;         /* tiles, of bfloat16 and of int8, which the system lets this process use */
    bool neon;
    bool neon_dotprod; /* dot products of four bytes */
    bool neon_bf16;    /* and of bfloat16 */
    size_t cache;      /* bytes of a core's second-level cache; where the CPU does not tell, what most have at least */
} qv_cpu_features;

/* QAVIT_CPU in the environment hides everything above the level that it names: portable, avx2, avx_vnni, avx512, avx512_vnni,
 * avx512_bf16 or amx; on ARM portable, neon, neon_dotprod or neon_bf16. */
qv_cpu_features qv_cpu(void);
/* QV_ERR_VALUE where QAVIT_CPU is another word, or the CPU is big-endian. */
qv_status qv_cpu_check(qv_error *err);

#endif
