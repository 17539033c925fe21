"""What a process has held, and how to start one that says it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .quiet import quiet_environment

ROOT = Path(__file__).resolve().parent.parent


def peak_memory() -> float:
    """The most memory this program has held, in MiB.

    The kernel's VmHWM begins anew where a program is started; getrusage's ru_maxrss, and what GNU time says, begin at what
    the process held before, which is its parent's.
    """
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    if found is None:
        raise RuntimeError("/proc/self/status has no VmHWM: peak memory is measured on Linux only")
    return int(found[1]) / 1024


def start_module(module: str, options: Sequence[str], python: str | Path | None = None) -> dict[str, Any]:
    """Run `python -m benchmarks.<module>` as a process of its own; the JSON in the last line that it prints."""
    command = [str(python or sys.executable), "-m", f"benchmarks.{module}", *options]
    done = subprocess.run(command, cwd=ROOT, env=quiet_environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{module} {' '.join(options)}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
