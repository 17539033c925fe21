"""How far a run is: a bar on a terminal, a line a minute elsewhere, or JSON events."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any, Optional, TextIO

from ._plan import Part
from ._worker import PartDone

LINE_SECONDS = 60.0
EVENT_SECONDS = 10.0


class RunProgress:
    """Counts what is done and says so.

    Parameters
    ----------
    sizes : sequence of int
        Of the input files, in bytes; 0 for one that another share reads.
    finished : sequence of bool
        Files of which nothing is left to do.
    events : bool
        One JSON object a line on standard output in place of text on standard error.
    """

    def __init__(self, sizes: Sequence[int], finished: Sequence[bool], events: bool = False) -> None:
        self.images = self.questions = self.errors = 0
        self._total = max(1, sum(sizes))
        self._sizes = list(sizes)
        self._positions = [1.0 if done else 0.0 for done in finished]
        self._start = self._said = time.monotonic()
        self._begun = False
        self._before = self.fraction
        self._events = events
        self._bar: Any = None
        if not events and sys.stderr.isatty():
            from tqdm import tqdm

            layout = "{percentage:3.0f}%|{bar}| {desc}"
            self._bar = tqdm(total=100.0, bar_format=layout, file=sys.stderr, dynamic_ncols=True, desc="starting")

    @property
    def fraction(self) -> float:
        """How much of the input is done, from 0 to 1."""
        return sum(size * position for size, position in zip(self._sizes, self._positions)) / self._total

    def start(self, part: Part) -> None:
        """Told of each part that is begun: what lies before the first was done by an earlier run."""
        if not self._begun:
            self._begun = True
            self._positions[part.file] = part.start
            self._before = self.fraction

    def tick(self, images: int, questions: int, errors: int) -> None:
        """Told of what was done since."""
        self.images += images
        self.questions += questions
        self.errors += errors
        self._show()

    def part(self, done: PartDone) -> None:
        """Told of a part that was written."""
        self._positions[done.file] = max(self._positions[done.file], done.position)
        if self._events:
            self._emit("part", name=done.name, images=done.images, rows=done.rows, errors=done.errors, problem=done.problem)
        elif done.problem is not None:
            what = "row" if done.rows == 1 else "rows"
            self._say(f"qavit: part {done.name}: {done.errors} of {done.rows} {what} failed, first {done.problem}")
        self._show()

    def close(self, **about: Any) -> None:
        """The last word."""
        self._show(last=True)
        if self._bar is not None:
            self._bar.close()
        if self._events:
            self._emit("end", **self._numbers(), **about)

    def abandon(self) -> None:
        """The run ends before its end."""
        if self._bar is not None:
            self._bar.close()

    def begin(self, **about: Any) -> None:
        """The first word."""
        if self._events:
            self._emit("start", **about)

    def _numbers(self) -> dict[str, Any]:
        elapsed = max(1e-9, time.monotonic() - self._start)
        return {
            "images": self.images,
            "questions": self.questions,
            "errors": self.errors,
            "seconds": round(elapsed, 3),
            "images_per_second": round(self.images / elapsed, 3),
            "questions_per_second": round(self.questions / elapsed, 3),
            "fraction": round(self.fraction, 6),
            "seconds_left": self._left(elapsed),
        }

    def _left(self, elapsed: float) -> Optional[float]:
        done = self.fraction - self._before
        return round(elapsed * (1.0 - self.fraction) / done, 1) if done > 0 else None

    def _show(self, last: bool = False) -> None:
        now = time.monotonic()
        every = 0.1 if self._bar is not None else EVENT_SECONDS if self._events else LINE_SECONDS
        if now - self._said < every and not (last and self._bar is not None):
            return
        self._said = now
        numbers = self._numbers()
        if self._events:
            self._emit("progress", **numbers)
            return
        left = numbers["seconds_left"]
        text = (
            f"{self.questions:,} questions, {numbers['images_per_second']:.1f} images/s, "
            f"{numbers['questions_per_second']:.1f} questions/s, {duration(left)} left, {self.errors:,} errors"
        )
        if self._bar is None:
            self._say(f"qavit: {100 * self.fraction:.1f}%: {text}")
        else:
            self._bar.n = 100.0 * self.fraction
            self._bar.set_description_str(text)

    def _say(self, text: str, file: Optional[TextIO] = None) -> None:
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr if file is None else file, flush=True)

    def _emit(self, event: str, **values: Any) -> None:
        self._say(json.dumps({"event": event, **values}, ensure_ascii=False), sys.stdout)


def duration(seconds: Optional[float]) -> str:
    """A time as a person says it; "unknown time" for None."""
    if seconds is None:
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
