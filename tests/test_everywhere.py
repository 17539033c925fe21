"""The core on the systems that it is written for, by one compiler: scripts/everywhere.sh, and what its programs say."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUN = {"aarch64-linux-musl": "qemu-aarch64-static", "x86_64-linux-musl": None, "x86_64-windows-gnu": "wine"}

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed")


def run(*words: str) -> list[tuple[str, str]]:
    """What the script says, a line each: the target, and what is said of it."""
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([ROOT / "scripts" / "everywhere.sh", *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [(target, said.strip()) for target, _, said in (line.partition(" ") for line in done.stdout.splitlines())]


def test_what_differs_between_systems_compiles() -> None:
    targets = ("x86_64-windows-gnu", "aarch64-macos", "s390x-linux-musl")
    assert run("quick") == [(target, "csrc/base compiles") for target in targets]


@pytest.mark.nightly
def test_ops_and_models_on_every_system() -> None:
    found = run()
    linked = {target for target, said in found if said == "core compiled and linked"}
    assert linked == {
        *(f"{machine}-linux-{libc}" for machine in ("aarch64", "x86_64") for libc in ("gnu", "musl")), "s390x-linux-musl",
        *(f"{machine}-{system}" for machine in ("aarch64", "x86_64") for system in ("macos", "windows-gnu")),
    }  # fmt: skip
    for target, runner in RUN.items():
        if runner is None or shutil.which(runner) is not None:
            said = [words for name, words in found if name == target]
            for program in ("ops_check", "models_check"):
                assert any(words.startswith(program) and words.endswith("; 0 failures") for words in said), target
    if shutil.which("qemu-s390x-static") is not None:
        assert any(name == "s390x-linux-musl" and words.startswith("refused: ") for name, words in found)
