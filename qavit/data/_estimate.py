"""How long a run will take, told before it begins."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Optional

from .._base.progress import duration
from ._actor import HeatmapActor
from ._plan import Group, Part
from ._rows import MapRow

COUNTED_BYTES = 64 << 20  # of input whose rows are counted; of more, how many there are is told from the first part
MEASURED_SECONDS, MEASURED_GROUPS = 1.0, 4  # whichever is first ends the measuring
WORTH_SECONDS = 10.0  # a run that takes no longer is not measured closer
GOOD_PARTS_EACH = 5  # of a worker: what waits for the last one is then a tenth of the run


class Estimate(NamedTuple):
    """About what a run has to do.

    Attributes
    ----------
    rows : int
        That are left to do.
    seconds : float or None
        By the clock; None where no row of the first part could be computed.
    each : float or None
        Seconds a row, in this process.
    measured : int
        Rows that it was measured on.
    """

    rows: int
    seconds: Optional[float]
    each: Optional[float]
    measured: int

    def text(self) -> str:
        """As a person says it."""
        rows = f"about {self.rows:,} question{'' if self.rows == 1 else 's'}"
        if self.seconds is None or self.each is None:
            return f"{rows}; how long they take could not be told by the first ones, which failed"
        return f"{rows}, {duration(self.seconds)}: {self.each:.2g} s each, measured on {self.measured}"

    def advice(self, workers: int, part_rows: int) -> str:
        """How more workers would have something to do; empty where there is no need. A part is one worker's."""
        parts_each = self.rows / part_rows / workers
        if workers == 1 or self.seconds is None or self.seconds < WORTH_SECONDS or parts_each >= 2:
            return ""
        better = math.ceil(self.rows / (GOOD_PARTS_EACH * workers))
        return f"; {workers} workers share that better in smaller parts (--part-rows {better})"

    def to_dict(self) -> dict[str, Any]:
        """For the first event."""
        seconds = None if self.seconds is None else round(self.seconds, 3)
        return {"rows_estimated": self.rows, "seconds_estimated": seconds}


class Pace(NamedTuple):
    """How fast one worker is.

    Attributes
    ----------
    each : float or None
        Seconds a row; None where no row could be computed.
    measured : int
        Rows that it was measured on.
    """

    each: Optional[float] = None
    measured: int = 0

    def estimate(self, rows: int, speed: float) -> Estimate:
        """Of so many rows, by workers that are together so many times as fast as the one that was measured."""
        return Estimate(rows, None if self.each is None else self.each * rows / speed, self.each, self.measured)


def rows_left(part: Part, sizes: Sequence[int], left: Sequence[int], share: float) -> int:
    """About how many rows there are from a part on, itself among them.

    Parameters
    ----------
    part : Part
        The first that is to be done.
    sizes : sequence of int
        Of the input files, in bytes.
    left : sequence of int
        The files that something is left to do for, the part's first.
    share : float
        Of these files' parts, how much is to be done here.
    """
    taken = max(part.position - part.start, 1e-9) * sizes[part.file]
    bytes_left = (1.0 - part.start) * sizes[part.file] + sum(sizes[file] for file in left if file != part.file)
    return max(part.rows, round(part.rows * bytes_left / taken * share))


def measure(actor: HeatmapActor, part: Part, rows: int) -> tuple[Pace, dict[int, list[MapRow]]]:
    """Compute a little of a part: how fast that goes, and the rows of those groups that were computed whole.

    Parameters
    ----------
    actor : HeatmapActor
    part : Part
    rows : int
        How many are to be done, of which this is a beginning.
    """
    first: Optional[float] = None
    spent, done = 0.0, 0
    known: dict[int, list[MapRow]] = {}
    for number, group in _samples(part):
        start = time.perf_counter()
        (found,) = actor.compute([group])
        took = time.perf_counter() - start
        if group is part.groups[number]:
            known[number] = found
        well = sum(row.error is None for row in found)
        if well == 0:
            continue
        if first is None:
            first = took / well
            if took >= MEASURED_SECONDS or first * rows < WORTH_SECONDS:
                break
        else:  # by now weights are read
            spent, done = spent + took, done + well
            if spent >= MEASURED_SECONDS:
                break
    return Pace(spent / done if done else first, done or int(first is not None)), known


def _samples(part: Part) -> Iterator[tuple[int, Group]]:
    """One question, then pictures with all of theirs, each with its place."""
    places = [place for place, group in enumerate(part.groups) if any(row.problem is None for row in group.rows)]
    if places:
        image, rows = part.groups[places[0]]
        yield places[0], Group(image, [next(row for row in rows if row.problem is None)])
    for place in places[1 : 1 + MEASURED_GROUPS]:
        yield place, part.groups[place]
