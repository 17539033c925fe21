"""All benchmarks, and one Markdown table of them at the end: python -m benchmarks.everything [--quick].

Each part is a process of its own. What it prints goes to benchmarks/results/PART.txt, its rows into the table, which is
printed and written to benchmarks/results/bench.md; every row has both sides, from one run. `--quick`: small models and one
round, to try it; the numbers say nothing.
"""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from .peak import ROOT
from .quiet import quiet_environment
from .table import Row, markdown, read_rows

RESULTS = ROOT / "benchmarks" / "results"
TABLE = "bench.md"
#: Part: module, its options with `--quick`, and whether it takes --clock and --threads.
PARTS: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "models": ("run", ("--only", "clip-small", "demo", "--rounds", "1"), True),
    "next_question": ("next_question_bench", ("--small", "--rounds", "1"), True),
    "methods": ("methods_bench", ("--small", "--rounds", "1"), True),
    "blip": ("blip_bench", ("--small", "--scenarios", "one", "--repeats", "1"), False),
    "captions": ("captions_bench", ("--small", "--captions", "4", "--repeats", "1"), False),
    "reader": ("reader_bench", ("--size", "small", "--contexts", "4", "--repeats", "1"), False),
    "memory": ("memory_bench", ("--small", "--repeats", "1"), False),
    "typing": ("typing_bench", ("--models", "demo", "--keys", "1"), False),
    "drawing": ("drawing_bench", ("--rounds", "1"), False),
}


def run_part(name: str, options: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """One part's rows, and lines on what is not in them."""
    module, quick, clocked = PARTS[name]
    file, log = RESULTS / f"{name}.json", RESULTS / f"{name}.txt"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"benchmarks.{module}", "--rows", str(file), *(quick if options.quick else ())]
    if clocked:
        command += ["--clock", options.clock, *(("--threads", str(options.threads)) if options.threads else ())]
    with log.open("w") as out:
        done = subprocess.run(command, cwd=ROOT, env=quiet_environment(), stdout=out, stderr=out, check=False)
    if done.returncode != 0 or not file.exists():
        last = (log.read_text().strip().splitlines() or ["it said nothing"])[-1]
        return [], [f"failed: {name}, see {log.relative_to(ROOT)}: {last}"]
    return read_rows(file)


def heading(options: argparse.Namespace) -> str:
    """What the numbers are of."""
    import qavit

    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"model name\s*: (.+)", text)
    build = qavit.build_info()
    kernels = ", ".join(f"{precision} {name}" for precision, name in build["kernels"].items())
    threads = options.threads or build["threads"]
    trial = " A trial with small models: the numbers say nothing." if options.quick else ""
    return (
        f"{date.today().isoformat()}, {found[1] if found else platform.processor()}, {threads} threads, {options.clock} "
        f"time; qavit's kernels: {kernels}. Milliseconds are medians, both sides of a row from one run; ratio: peer's by "
        f"qavit's.{trial}"
    )


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts to run")
    parser.add_argument("--quick", action="store_true", help="small models, one round: to try it")
    parser.add_argument("--threads", type=int, help="of the parts that take them (default: all CPUs)")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time, with --threads 1")
    options = parser.parse_args(given)
    RESULTS.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    notes: list[str] = []
    for name in options.only:
        found, said = run_part(name, options)
        rows, notes = [*rows, *found], [*notes, *said]
    lines = [heading(options), "", markdown(rows), *([""] if notes else []), *(f"- {note}" for note in notes)]
    text = "\n".join(lines) + "\n"
    (RESULTS / TABLE).write_text(text)
    print(text, end="")
    return 1 if any(note.startswith("failed") for note in notes) else 0


if __name__ == "__main__":
    raise SystemExit(main())
