"""A part of the questions, drawn at random: which it is depends on the input and on how many are wanted alone."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ._questions import Item, QuestionFile


class Sample(NamedTuple):
    """The rows whose mark is at most `most`; can be pickled.

    Attributes
    ----------
    rows, of : int
        How many rows are in it, and of how many.
    most : int
    """

    rows: int
    of: int
    most: int

    def items(self, source: QuestionFile, file: int) -> Iterator[Item]:
        """Those of a file that are in the sample."""
        for number, item in enumerate(source):
            if mark(file, number) <= self.most:
                yield item


def mark(file: int, row: int) -> int:
    """A number of 64 bits for each row, as if drawn at random."""
    return int.from_bytes(hashlib.blake2b(b"%d:%d" % (file, row), digest_size=8).digest(), "little")


def draw_sample(sources: Sequence[QuestionFile], rows: int) -> Sample:
    """A sample of so many rows of all files, or of all that there are; reads them once.

    Raises
    ------
    ValueError
        There are no rows.
    """
    count = 0

    def marks() -> Iterator[int]:
        nonlocal count
        for file, source in enumerate(sources):
            for number, _ in enumerate(source):
                count += 1
                yield mark(file, number)

    lowest = heapq.nsmallest(rows, marks())
    if not lowest:
        raise ValueError("questions: the files hold none")
    return Sample(len(lowest), count, lowest[-1])
