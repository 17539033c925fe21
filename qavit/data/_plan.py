"""What is done together, and in which file it ends: a function of the input and of two numbers, whatever the engine."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Optional

from ._pictures import ImageSource
from ._questions import Item, QuestionFile
from ._sample import Sample

ENGINES = ("local", "ray")
WINDOW, PART_ROWS = 8192, 512
MAX_WINDOW_BYTES = 1 << 28  # of pictures that the input itself holds


class Row(NamedTuple):
    """One question of a group; `problem` says why it cannot be asked, `kept` are texts of columns that are kept."""

    id: str
    question: str
    problem: Optional[str]
    kept: tuple[Optional[str], ...] = ()


class Group(NamedTuple):
    """A picture and its questions within a window."""

    image: Optional[ImageSource]
    rows: list[Row]


class Part(NamedTuple):
    """What becomes one file of output.

    Attributes
    ----------
    file, number : int
        Which file of the input, and which part of it, both from 0.
    groups : list of Group
    start, position : float
        How much of the input file lies before it, and how much with it, from 0 to 1.
    """

    file: int
    number: int
    groups: list[Group] = []  # noqa: RUF012
    start: float = 0.0
    position: float = 0.0

    @property
    def name(self) -> str:
        """Of the file, without its ending."""
        return f"{self.file:05d}-{self.number:06d}"

    @property
    def rows(self) -> int:
        """How many questions."""
        return sum(len(group.rows) for group in self.groups)


class Shard(NamedTuple):
    """The i-th of n shares of the work, i from 0.

    Where there are at least n input files, a share is whole files, so that nobody reads what others do; else it is every
    n-th part.
    """

    number: int = 0
    total: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From "i/n"; ValueError unless 0 <= i < n."""
        first, slash, last = text.partition("/")
        if not (slash and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
            raise ValueError(f"shard: got {text!r}, expected i/n with i from 0 to n - 1, such as 0/4")
        return cls(int(first), int(last))

    def has_file(self, file: int, files: int) -> bool:
        """Whether any part of an input file is in this share."""
        return files < self.total or file % self.total == self.number

    def has_part(self, part: Part, files: int) -> bool:
        """Whether a part is in this share."""
        return part.file % self.total == self.number if files >= self.total else part.number % self.total == self.number

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


def plan_file(
    source: QuestionFile, file: int, window: int, part_rows: int, sample: Optional[Sample] = None
) -> Iterator[Part]:
    """The parts of one input file, in order.

    Parameters
    ----------
    source : QuestionFile
    file : int
        Its number.
    window : int
        Rows that are looked at together: questions of one picture meet when they stand in the same window.
    part_rows : int
        The most rows of a part. A picture's questions share a part unless they are more than that.
    sample : Sample, optional
        Only the rows of it.

    Yields
    ------
    Part
    """
    number, start = 0, 0.0
    for items in _windows(source if sample is None else sample.items(source, file), window):
        _warn_of_twins(source, items)
        each = (source.position - start) / len(items)
        for groups in _filled(_grouped(items, part_rows), part_rows):
            end = start + each * sum(len(group.rows) for group in groups)
            yield Part(file, number, groups, start, end)
            number, start = number + 1, end


def _warn_of_twins(source: QuestionFile, items: list[Item]) -> None:
    """Say it where rows of a window have one id: each gets its map, and none can be found by that id."""
    if len({item.id for item in items}) < len(items):
        twin, count = Counter(item.id for item in items).most_common(1)[0]
        warnings.warn(f"{source.path}: {count} rows have the same id {twin!r}; no map can be found by it", stacklevel=2)


def _filled(groups: Iterable[Group], most: int) -> Iterator[list[Group]]:
    """Groups in a row of at most `most` rows together."""
    waiting: list[Group] = []
    count = 0
    for group in groups:
        if count + len(group.rows) > most:
            yield waiting
            waiting, count = [], 0
        waiting.append(group)
        count += len(group.rows)
    if waiting:
        yield waiting


def _windows(source: Iterable[Item], window: int) -> Iterator[list[Item]]:
    items: list[Item] = []
    held = 0
    for item in source:
        items.append(item)
        held += len(item.image.data) if item.image is not None and item.image.data is not None else 0
        if len(items) == window or held > MAX_WINDOW_BYTES:
            yield items
            items, held = [], 0
    if items:
        yield items


def _grouped(items: list[Item], most: int) -> Iterator[Group]:
    """Items by picture, pictures in the order of their first appearance, no group of more than `most` rows."""
    by_image: dict[Optional[ImageSource], list[Row]] = {}
    for item in items:
        by_image.setdefault(item.image, []).append(Row(item.id, item.question, item.problem, item.kept))
    for image, rows in by_image.items():
        for start in range(0, len(rows), most):
            yield Group(image, rows[start : start + most])
