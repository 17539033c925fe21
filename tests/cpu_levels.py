"""Levels of CPU features that kernels are written for: `python tests/cpu_levels.py` prints those below this machine's."""

from __future__ import annotations

import platform

import qavit

LEVELS = (
    ("portable", "neon", "neon_dotprod", "neon_bf16")
    if platform.machine().lower() in ("aarch64", "arm64")
    else ("portable", "avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16", "amx")
)


def features() -> dict[str, bool]:
    """What this machine has, or this process where QAVIT_CPU names a level; "portable" always."""
    found = qavit.build_info()["cpu_features"]
    return {level: level == "portable" or found.get("avx2_fma" if level == "avx2" else level, False) for level in LEVELS}


def own_level() -> str:
    """The highest level of this machine, or of this process where QAVIT_CPU names one."""
    return max((level for level, there in features().items() if there), key=LEVELS.index)


def has_bfloat16() -> bool:
    """Whether there are products of bfloat16 here; else asking for them gives float32's."""
    kernels = qavit.build_info()["kernels"]
    return bool(kernels["bfloat16"] != kernels["float32"])


if __name__ == "__main__":
    print(*[level for level, there in features().items() if there and level != own_level()])
