"""Levels of CPU features that kernels are written for: `python tests/cpu_levels.py` prints those below this machine's."""

from __future__ import annotations

import qavit

LEVELS = ("portable", "avx2", "avx512", "avx512_bf16")


def own_level() -> str:
    """The highest level of this machine, or of this process where QAVIT_CPU names one."""
    features = qavit.build_info()["cpu_features"]
    if not features["avx2_fma"]:
        return "portable"
    return "avx512_bf16" if features["avx512_bf16"] else "avx512" if features["avx512"] else "avx2"


if __name__ == "__main__":
    print(*LEVELS[: LEVELS.index(own_level())])
