"""Products by AMX's tiles, by instructions that tile_emulator.c carries out. `make levels` runs parity on them."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qavit import build_info

ROOT = Path(__file__).parent.parent
FLAGS = ["-std=c11", "-O2", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
SOURCES = ["csrc/base/memory.c", "csrc/base/error.c", "csrc/base/threads.c", "csrc/base/os_posix.c", "csrc/base/cgroup.c"]
SOURCES += ["csrc/ops/kernels_amx.c", "tests/core/tiles_check.c", "tests/core/tile_emulator.c", "tests/core/check.c"]

pytestmark = [
    pytest.mark.skipif(
        platform.system() != "Linux" or platform.machine() != "x86_64", reason="the emulator is for Linux on x86-64"
    ),
    pytest.mark.skipif(
        build_info()["cpu_features"]["amx"], reason="this CPU has tiles of its own, on which every test of products runs"
    ),
]


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_products_by_tiles(compiler: str, tmp_path: Path) -> None:
    """Odd sizes, bits that do not depend on how many rows there are, nothing beside the columns, no tiles left set."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    command = [compiler, *FLAGS, "-D_GNU_SOURCE", "-Icsrc", "-Itests/core", *SOURCES, "-pthread", "-lm", "-ldl"]
    subprocess.run([*command, "-o", tmp_path / "check"], cwd=ROOT, check=True)
    done = subprocess.run([tmp_path / "check"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "0 failures"), done.stdout[-3000:] + done.stderr


SCRIPT = """
import ctypes
import numpy as np
from qavit import _core_testing, build_info
from test_ops import linear, normal, prepare
_core_testing.set_num_threads(1)
x, layer = normal(70, 90), prepare([{"weight": normal(100, 90, seed=1), "bias": normal(100, seed=2)}], "bfloat16")
whole = linear(layer, x, 100)
alone = all(np.array_equal(linear(layer, x[i : i + 1], 100)[0], whole[i]) for i in range(70))
print(build_info()["kernels"]["bfloat16"], alone, bool(ctypes.CDLL(None).tiles_are_set() & 255))
"""


def run(level: str, preload: str) -> list[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *(p for p in sys.path if p)])
    environment = {**os.environ, "LD_PRELOAD": preload, "QAVIT_CPU": level, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_a_process_with_tiles() -> None:
    """A row gives the same bits alone, and an op leaves no tiles set; a level below hides them."""
    built = subprocess.run([ROOT / "scripts" / "tile_emulator.sh"], capture_output=True, text=True, check=True)
    preload = built.stdout.strip()
    assert run("amx", preload) == ["amx", "True", "False"]
    assert run("avx2", preload) == ["avx2", "True", "False"]
