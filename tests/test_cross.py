"""The core's ops and whole models on other CPUs, under qemu: aarch64 and x86-64, with what they may have and without."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ("aarch64-linux-gnu-gcc", "gcc", "qemu-aarch64-static", "qemu-x86_64-static")


def run(*words: str) -> dict[str, str]:
    """What scripts/cross.sh says of each program, "NAME, PROGRAM" -> its kernels and failures."""
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([ROOT / "scripts" / "cross.sh", *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return dict(line.split(": ", 1) for line in done.stdout.splitlines() if line.endswith("; 0 failures"))


@pytest.mark.skipif(shutil.which("clang") is None, reason="clang is not installed")
def test_ops_and_models_by_another_compiler() -> None:
    assert {"clang, ops", "clang, models"} <= run("clang").keys()


@pytest.mark.nightly
@pytest.mark.skipif(any(shutil.which(tool) is None for tool in TOOLS), reason=f"one of {', '.join(TOOLS)} is not installed")
def test_ops_and_models_on_other_cpus() -> None:
    found = run()
    for programs in ("ops", "models"):
        assert found[f"aarch64, {programs}"].startswith("kernels neon, bfloat16 neon_bf16, int8 neon_dotprod,")
        for cpu, int8 in (("cortex-a57", "neon"), ("neoverse-n1", "neon_dotprod")):
            assert found[f"aarch64-{cpu}, {programs}"].startswith(f"kernels neon, bfloat16 neon, int8 {int8},")
        if platform.machine() == "x86_64":
            assert found[f"x86_64-avx2, {programs}"].startswith("kernels avx2")
            assert found[f"x86_64-plain, {programs}"].startswith("kernels openblas")
