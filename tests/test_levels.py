"""Parity at every level of CPU features: what is marked every_level, once more on the kernels of lesser CPUs.

A process reads QAVIT_CPU once, so that each level is a process of its own. Left out there: models of real size, and what
does not depend on kernels (bad input, threads, memory, files).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import qavit

LEVELS = ("portable", "avx2", "avx512", "avx512_bf16")
#: What build_info() says of float32 and bfloat16 products.
KERNELS = {
    "portable": ("openblas", "openblas"),
    "avx2": ("avx2", "avx2"),
    "avx512": ("avx512", "avx512"),
    "avx512_bf16": ("avx512", "avx512_bf16"),
}
FILES = ("levels", "ops", "backward", "vit", "text_encoders", "blip", "models", "pnpvqa", "numbers")
INSIDE = "QAVIT_CPU" in os.environ


def own_level() -> str:
    """The highest level of this machine, or of this process."""
    features = qavit.build_info()["cpu_features"]
    if not features["avx2_fma"]:
        return "portable"
    return "avx512_bf16" if features["avx512_bf16"] else "avx512" if features["avx512"] else "avx2"


@pytest.mark.every_level
def test_build_info_names_the_kernels() -> None:
    level = own_level()
    assert level == os.environ.get("QAVIT_CPU", level)
    kernels = qavit.build_info()["kernels"]
    assert (kernels["float32"], kernels["bfloat16"]) == KERNELS[level]


@pytest.mark.every_level
def test_bfloat16_without_its_instructions_is_float32() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    questions = ["where is the red star?", "what color is the circle?"]
    full, low = (
        qavit.load("demo", precision=precision).heatmaps(picture, questions).all_block_maps()
        for precision in ("float32", "bfloat16")
    )
    assert np.array_equal(full, low) == (own_level() != "avx512_bf16")


class Run(NamedTuple):
    process: subprocess.Popen[bytes]
    said: Path


@pytest.fixture(scope="module")
def lower_levels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """A run at each level below this machine's own, all begun at once."""
    folder, logs = Path(__file__).parent, tmp_path_factory.mktemp("levels")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-m", "every_level and not full_size and not slow", *(str(folder / f"test_{name}.py") for name in FILES)]
    runs = {}
    for level in LEVELS[: LEVELS.index(own_level())]:
        with open(logs / level, "w") as said:
            environment = {**os.environ, "QAVIT_CPU": level}
            process = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT, cwd=folder.parent)
        runs[level] = Run(process, logs / level)
    yield runs
    for run in runs.values():
        run.process.kill()
        run.process.wait()


@pytest.mark.skipif(INSIDE, reason="already at a level of its own")
@pytest.mark.parametrize("level", LEVELS)
def test_level(level: str, lower_levels: dict[str, Run]) -> None:
    own = own_level()
    if level == own:
        pytest.skip(f"the suite itself runs at {own}")
    if level not in lower_levels:
        pytest.skip(f"this CPU has no {level}: its level is {own}")
    run = lower_levels[level]
    status = run.process.wait()
    assert status == 0, run.said.read_text()[-4000:]
