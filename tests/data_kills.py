"""Runs that are killed at random moments and taken up again: `python data_kills.py QUESTIONS MODEL WHOLE FOLDER KILLS`.

A process of its own, which has imported everything and started no thread: each run is a fork of it and begins at once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pyarrow.parquet
import tokenizers
from data_sets import same_rows

import qavit.data
import qavit.data._pipeline
import qavit.images

__all__ = ["pyarrow", "qavit", "tokenizers"]


def start(questions: str, model: str, out: Path) -> int:
    """A run in a process of its own; its number."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.fsync = lambda _: None  # what is written survives the death of its writer anyway
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            qavit.data.run(questions, out, model=model, part_rows=3, window=30, threads=1)
            code = 0
        finally:
            os._exit(code)
    return process


def finish(process: int) -> int:
    """Its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main(questions: str, model: str, whole: str, folder: str, kills: str) -> None:
    """Print, as JSON, how many parts there were at each kill, and how often a run came to its end."""
    began = time.monotonic()
    assert finish(start(questions, model, Path(folder, "timing"))) == 0
    takes = time.monotonic() - began
    chance = random.Random(0)
    found: list[int] = []
    finished = 0
    while len(found) < int(kills):
        out = Path(folder, str(finished))
        process = start(questions, model, out)
        time.sleep(chance.uniform(0, takes))
        os.kill(process, signal.SIGKILL)
        code = finish(process)
        if code == -signal.SIGKILL:
            parts = out / "parts"
            found.append(len(list(parts.glob("*.parquet"))) if parts.exists() else 0)
            # A machine that has become slower would never get further, nor be interrupted anywhere else.
            takes *= 1.2 if found[-2:-1] == found[-1:] else 1
            continue
        assert code == 0, code
        assert same_rows(Path(whole), out) == 120
        finished += 1
        takes /= 1.2
    out = Path(folder, str(finished))
    assert finish(start(questions, model, out)) == 0
    assert same_rows(Path(whole), out) == 120
    ids = [row.id for row in qavit.data.read_maps(out)]
    assert len(set(ids)) == len(ids) == 120
    left = [path.name for path in Path(folder).glob("*/parts/.*")]
    assert not left, left
    print(json.dumps({"parts": found, "finished": finished + 1, "takes": takes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
