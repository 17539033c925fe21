"""Levels of CPU features that kernels are written for: `python tests/cpu_levels.py` prints those below this machine's."""

from __future__ import annotations

import qavit

LEVELS = ("portable", "avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16")


def features() -> dict[str, bool]:
    """What this machine has, or this process where QAVIT_CPU names a level; "portable" always."""
    found = qavit.build_info()["cpu_features"]
    return {level: level == "portable" or found.get("avx2_fma" if level == "avx2" else level, False) for level in LEVELS}


def own_level() -> str:
    """The highest level of this machine, or of this process where QAVIT_CPU names one."""
    return max((level for level, there in features().items() if there), key=LEVELS.index)


if __name__ == "__main__":
    print(*[level for level, there in features().items() if there and level != own_level()])
