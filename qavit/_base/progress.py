"""How far a long command is: a bar on a terminal, a line now and then elsewhere, or JSON events."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Optional, TextIO, TypeVar

T = TypeVar("T")
LINE_SECONDS = 10.0
BAR_SECONDS = 0.1
NEARLY = 0.999


def duration(seconds: Optional[float]) -> str:
    """A time as a person says it; "unknown time" for None."""
    if seconds is None:
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class Teller:
    """Where it is said how far a command is: always on standard error, events on standard output.

    Parameters
    ----------
    events : bool
        One JSON object a line in place of text.
    bar : bool
        Whether there is a bar, where standard error is a terminal.
    """

    def __init__(self, events: bool = False, bar: bool = True) -> None:
        self.start = self._told = time.monotonic()
        self._events = events
        self._bar: Any = None
        if bar and not events and sys.stderr.isatty():
            from tqdm import tqdm

            layout = "{percentage:3.0f}%|{bar}| {desc}"
            self._bar = tqdm(total=100.0, bar_format=layout, file=sys.stderr, dynamic_ncols=True, desc="starting")

    @property
    def is_due(self) -> bool:
        """Whether it is time to say something again."""
        return time.monotonic() - self._told >= (LINE_SECONDS if self._bar is None else BAR_SECONDS)

    @property
    def has_bar(self) -> bool:
        """Whether there is a bar to be drawn."""
        return self._bar is not None

    def told(self) -> None:
        """Something was said just now."""
        self._told = time.monotonic()

    def show(self, fraction: float, text: str) -> None:
        """Say how far it is, from 0 to 1, and how it goes."""
        self.told()
        percent = 100.0 * min(1.0, max(0.0, fraction))
        if self._bar is None:
            self.say(f"qavit: {percent:.1f}%: {text}", sys.stderr)
        else:
            self._bar.n = percent
            self._bar.set_description_str(text)

    def say(self, text: str, file: Optional[TextIO] = None) -> None:
        """Print a line that a bar leaves whole; to standard output by default."""
        target = sys.stdout if file is None else file
        if self._bar is None:
            print(text, file=target, flush=True)
        else:
            self._bar.write(text, file=target)
            target.flush()

    def event(self, what: str, /, **values: Any) -> None:
        """Print a JSON event, where events are asked for."""
        if self._events:
            self.say(json.dumps({"event": what, **values}, ensure_ascii=False))

    def close(self) -> None:
        """Nothing more is said."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Progress(Generic[T]):
    """Goes through items and shows how far it is, where there is more than one.

    Parameters
    ----------
    items : sequence
    unit : str
        What is counted, in the plural: "pictures".
    """

    def __init__(self, items: Sequence[T], unit: str) -> None:
        self.items, self.unit = items, unit
        self._teller: Optional[Teller] = None

    def __iter__(self) -> Iterator[T]:
        if len(self.items) < 2:
            yield from self.items
            return
        self._teller = teller = Teller()
        try:
            for done, item in enumerate(self.items):
                if teller.is_due:
                    self._show(teller, done)
                yield item
            if teller.has_bar:
                self._show(teller, len(self.items))
        finally:
            teller.close()

    def _show(self, teller: Teller, done: int) -> None:
        spent = time.monotonic() - teller.start
        left = f", {duration(spent / done * (len(self.items) - done))} left" if done else ""
        teller.show(done / len(self.items), f"{done} of {len(self.items)} {self.unit} in {duration(spent)}{left}")

    def say(self, text: str, file: Optional[TextIO] = None) -> None:
        """Print a line that a bar leaves whole; to standard output by default."""
        if self._teller is None:
            print(text, file=sys.stdout if file is None else file, flush=True)
        else:
            self._teller.say(text, file)


class RunProgress:
    """Counts what is done of a data set and says so.

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
        self._positions = [1.0 if done else 0.0 for done in finished]  # the ends of the last parts that were begun
        self._open: dict[tuple[int, float], float] = {}  # parts that are being done: file and end, and how much of the file
        self._rows: Optional[int] = None
        self._in_parts = 0
        self._begun = False
        self._before = self.fraction
        self._events = events
        self._teller = Teller(events)
        self._start = self._teller.start

    @property
    def fraction(self) -> float:
        """How much of the input is done, from 0 to 1: parts by their places, what is done of others by the rows expected."""
        begun = sum(size * position for size, position in zip(self._sizes, self._positions))
        missing = sum(self._sizes[file] * length for (file, _), length in self._open.items())
        parts = min(1.0, max(0.0, begun - missing) / self._total)
        if not self._rows:
            return parts
        pending = max(0, self.questions - self._in_parts) / self._rows * (1.0 - self._before)
        return max(parts, min(NEARLY, parts + pending))  # all of it only when its last part is written

    def begin(self, estimate: Optional[str] = None, **about: Any) -> None:
        """The first word, with what is to be expected; `rows_estimated` is how many rows are left to do."""
        self._rows = about.get("rows_estimated")
        self._teller.event("start", **about)
        if estimate and not self._events:
            self._teller.say(f"qavit: {estimate}", sys.stderr)

    def start(self, file: int, start: float, position: float) -> None:
        """Told of each part that is begun, by its ends: what lies before the first was done by an earlier run."""
        if not self._begun:
            self._begun = True
            self._positions[file] = start
            self._before = self.fraction
        self._positions[file] = max(self._positions[file], position)
        self._open[file, position] = position - start

    def tick(self, images: int, questions: int, errors: int) -> None:
        """Told of what was done since."""
        self.images += images
        self.questions += questions
        self.errors += errors
        self._show()

    def part(self, file: int, position: float, rows: int, errors: int, problem: Optional[str], **about: Any) -> None:
        """Told of a part that was written, and how much of its file is done with it."""
        self._positions[file] = max(self._positions[file], position)
        self._open.pop((file, position), None)
        self._in_parts += rows
        self._teller.event("part", **about, rows=rows, errors=errors, problem=problem)
        if problem is not None and not self._events:
            what = f"{rows} row{'' if rows == 1 else 's'}"
            self._teller.say(f"qavit: part {about['name']}: {errors} of {what} failed, first: row {problem}", sys.stderr)
        self._show()

    def close(self, **about: Any) -> None:
        """The last word."""
        if self._teller.has_bar:
            self._show(last=True)
        self._teller.event("end", **self._numbers(), **about)
        self._teller.close()

    def abandon(self) -> None:
        """The run ends before its end."""
        self._teller.close()

    def _numbers(self) -> dict[str, Any]:
        elapsed = max(1e-9, time.monotonic() - self._start)
        done = self.fraction - self._before
        return {
            "images": self.images,
            "questions": self.questions,
            "errors": self.errors,
            "seconds": round(elapsed, 3),
            "images_per_second": round(self.images / elapsed, 3),
            "questions_per_second": round(self.questions / elapsed, 3),
            "fraction": round(self.fraction, 6),
            "seconds_left": round(elapsed * (1.0 - self.fraction) / done, 1) if done > 0 else None,
        }

    def _show(self, last: bool = False) -> None:
        if not (last or self._teller.is_due):
            return
        numbers = self._numbers()
        if self._events:
            self._teller.event("progress", **numbers)
            self._teller.told()
            return
        # A bar has a terminal's line, of 80 columns maybe, and what does not fit is cut off.
        images = "" if self._teller.has_bar else f" {numbers['images_per_second']:.1f} images/s,"
        text = (
            f"{self.questions:,} question{'' if self.questions == 1 else 's'},{images} "
            f"{numbers['questions_per_second']:.1f} questions/s, {duration(numbers['seconds_left'])} left, "
            f"{self.errors:,} error{'' if self.errors == 1 else 's'}"
        )
        self._teller.show(self.fraction, text)
