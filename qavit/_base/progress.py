"""How far a long command is: a bar on a terminal, a plain line now and then elsewhere, always on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Optional, TextIO, TypeVar

T = TypeVar("T")
PLAIN_EVERY = 10.0  # seconds between plain lines


class Progress(Generic[T]):
    """Goes through items and shows how far it is, where there is more than one.

    Parameters
    ----------
    items : sequence
    unit : str
        What is counted, in the plural: "pictures".
    """

    def __init__(self, items: Sequence[T], unit: str) -> None:
        self.items = items
        self.unit = unit
        self._bar: Any = None

    def __iter__(self) -> Iterator[T]:
        if len(self.items) < 2:
            yield from self.items
        elif sys.stderr.isatty():
            from tqdm import tqdm

            with tqdm(self.items, unit=f" {self.unit}", file=sys.stderr, dynamic_ncols=True) as self._bar:
                yield from self._bar
            self._bar = None
        else:
            yield from self._plainly()

    def _plainly(self) -> Iterator[T]:
        """Items, with a line about every ten seconds."""
        start = said = time.monotonic()
        for done, item in enumerate(self.items):
            now = time.monotonic()
            if now - said >= PLAIN_EVERY:
                left = (now - start) / done * (len(self.items) - done) if done else 0.0
                about = f", about {_duration(left)} left" if done else ""
                text = f"{done} of {len(self.items)} {self.unit} in {_duration(now - start)}{about}"
                print(text, file=sys.stderr, flush=True)
                said = now
            yield item

    def say(self, text: str, file: Optional[TextIO] = None) -> None:
        """Print a line that a bar leaves whole; to standard output by default."""
        target = sys.stdout if file is None else file
        if self._bar is None:
            print(text, file=target, flush=True)
        else:
            self._bar.write(text, file=target)
            target.flush()


def _duration(seconds: float) -> str:
    """A time as a person says it: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
