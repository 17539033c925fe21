"""Interleaved timing: contenders take turns, so that whatever slows the machine slows them all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from qavit import _core, _core_testing


def clock(kind: str) -> Callable[[], float]:
    """Seconds on the wall, or ("cpu") of this process's time on all cores: of use on a busy machine with one thread."""
    return time.perf_counter if kind == "wall" else time.process_time


@dataclass
class Times:
    """Seconds of each contender's runs, in the order they were run."""

    kind: str
    runs: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return statistics.median(self.runs[name])

    def best(self, name: str) -> float:
        return min(self.runs[name])


def interleave(contenders: dict[str, Callable[[], object]], rounds: int, kind: str, pause: float = 0.05) -> Times:
    """Run every contender once a round, after one round that does not count."""
    times = Times(kind, {name: [] for name in contenders})
    for number in range(rounds + 1):
        for name, run in contenders.items():
            time.sleep(pause)
            seconds = timed(run, kind)
            if number > 0:
                times.runs[name].append(seconds)
    return times


def timed(run: Callable[[], object], kind: str) -> float:
    """Seconds of one run."""
    now = clock(kind)
    start = now()
    run()
    return now() - start


def peak(precision: str, kind: str, tries: int = 12) -> float:
    """Operations a second that this machine multiplies in registers alone, the best of several tries."""
    now, best = clock(kind), 0.0
    _core_testing.set_num_threads(_core.get_num_threads())
    for _ in range(tries):
        start = now()
        operations = _core_testing.burn(precision, 4_000_000)
        best = max(best, operations / (now() - start))
    return best
