"""What a precision, or a converted folder, changes of the maps of one's own pictures and questions."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, Optional, Union

from .._base.arguments import one_line
from .._base.files import PathLike
from .._base.pictures import MAX_PIXELS
from .._base.progress import Progress
from .._base.types import Fit, Heads
from .._demo import demo_scene
from ..images import load_image
from ..methods._registry import MethodLike
from ..metrics._comparison import Differences
from ..models._load import load
from ..models._model import Model
from ._pictures import ImageSource
from ._questions import open_questions

#: Questions that are read before they are asked; those of one picture in them are asked together.
AT_ONCE = 512
FAILURES = (OSError, ValueError, TypeError, RuntimeError, MemoryError)
_SHOWN = {
    "spearman_mean": "rank correlation, mean",
    "spearman_least": "rank correlation, least",
    "same_patch": "same largest patch",
    "difference_mean": "difference, mean",
    "difference_largest": "difference, largest",
    "same_answer": "same answer",
    "score_mean": "score, mean difference",
    "score_largest": "score, largest difference",
}
#: Printed as percent: shares, and differences that are shares of a map's largest value.
_PERCENT = {"same_patch", "same_answer", "difference_mean", "difference_largest"}


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    Attributes
    ----------
    figures : dict of str to float
        As :meth:`qavit.metrics.Differences.summary` gives them; empty where no row has a map on both sides.
    precision, against : str
        What both sides computed in; where the CPU has no products of a precision, that is not what was asked for. With the
        reference's name where it is another model.
    rows, pictures : int
        Maps that were compared, and of how many pictures.
    changed : list of dict
        The rows whose largest patch or answer is another: id, image, question, spearman, and patch or answer of both sides.
    errors : list of (str, str)
        Of the rows that have no map: id and why.
    """

    figures: dict[str, float]
    precision: str
    against: str
    rows: int
    pictures: int
    changed: list[dict[str, Any]] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "precision": self.precision, "against": self.against, "rows": self.rows, "pictures": self.pictures,
            "figures": self.figures, "changed": self.changed,
            "errors": [{"id": row, "error": said} for row, said in self.errors],
        }  # fmt: skip

    def to_csv(self) -> str:
        """A line a figure: figure, value."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("figure", "value"), *self.figures.items()])
        return text.getvalue()

    def __str__(self) -> str:
        width = max(map(len, _SHOWN.values()))
        lines = []
        for name, said in _SHOWN.items():
            if name in self.figures:
                value = self.figures[name]
                shown = f"{100 * value:.2f}%" if name in _PERCENT else f"{value:.5f}"
                lines.append(f"{said.ljust(width)}  {shown}")
        failed = f"; {len(self.errors):,} errors" if self.errors else ""
        same = " (the same: this device has no products of another)" if self.precision == self.against else ""
        lines.append(
            f"{self.precision} against {self.against}{same}; {self.rows:,} maps of {self.pictures:,} pictures; differences "
            f"are of a map's largest value{failed}"
        )
        return "\n".join(lines)


class _Asked(NamedTuple):
    """A row: its picture is an `ImageSource`, or pixels."""

    id: str
    image: Any
    question: str

    @property
    def name(self) -> str:
        return self.image.name if isinstance(self.image, ImageSource) else ""


def compare(
    questions: Union[PathLike, Sequence[PathLike], None] = None,
    *,
    model: Union[Model, PathLike, None] = None,
    against: Union[Model, str] = "float32",
    method: Optional[MethodLike] = None,
    block: Union[int, Sequence[int], None] = None,
    heads: Heads = "mean",
    fit: Optional[Fit] = None,
    images: Optional[PathLike] = None,
    image_name: Optional[str] = None,
    columns: Optional[Mapping[str, str]] = None,
    encoding: Optional[str] = None,
    max_pixels: int = MAX_PIXELS,
    **parts: Any,
) -> Comparison:
    """What a precision changes: each map of the model beside the same one of a reference.

    Parameters
    ----------
    questions : path or list of paths, optional
        As for :func:`open_questions`. None: the bundled scene.
    model : Model, or what `load` takes, optional
        None: what `parts` say, or the bundled model.
    against : {"float32", "bfloat16", ...} or Model
        The reference: a precision in which the model's files are loaded once more; or another model, such as the folder that
        was converted, of the same grid.
    method, block, heads, fit
        As for :meth:`Model.heatmaps`.
    images, image_name, columns, encoding
        As for :func:`open_questions`.
    max_pixels : int
        A larger picture is refused before it is decoded.
    **parts
        `checkpoint`, `vision`, `text`, `tokenizer`, `config`, `precision`, `device`, `image_size`, as for `load`.

    Returns
    -------
    Comparison
        Of `HeatmapResult.raw`, the method's own numbers, patch for patch.

    Raises
    ------
    ValueError, TypeError, OSError
        A file, the model or an argument cannot be used; both sides are the same; their maps have not one shape.
    """
    own, reference = _both_sides(model, against, parts)
    runner = _Runner([(one, one._request(method, block, heads)) for one in (own, reference)], fit, max_pixels)
    if questions is None:
        scene = demo_scene()
        runner.run([_Asked(str(n), scene.picture, text) for n, text in enumerate(scene.questions)])
    else:
        rows = (item for file in open_questions(questions, images, image_name, columns, (), encoding) for item in file)
        for chunk in _chunks(rows):
            runner.run([row for row in (runner.readable(item) for item in chunk) if row is not None])
    figures = runner.meter.summary() if len(runner.meter) else {}
    against_what = f"{reference.precision} of {reference.name}" if isinstance(against, Model) else reference.precision
    return Comparison(
        figures, own.precision, against_what, len(runner.meter), len(runner.pictures), runner.changed, runner.errors
    )


def _both_sides(model: Any, against: Union[Model, str], parts: Mapping[str, Any]) -> tuple[Model, Model]:
    own: Model = model if isinstance(model, Model) else load(None if model is None else os.fspath(model), **parts)
    if isinstance(against, Model):
        if against is own:
            raise ValueError("against: the model itself; expected another one, or a precision")
        return own, against
    if not isinstance(against, str):
        raise TypeError(f"against: expected the name of a precision or a Model, got {type(against).__name__}")
    if against == own.requested_precision:
        raise ValueError(f"against: {against!r} is what the model computes in; expected another precision")
    load_again, (arguments,) = own.__reduce__()
    return own, load_again({**arguments, "precision": against})


def _chunks(rows: Iterator[Any]) -> Iterator[list[Any]]:
    while chunk := list(islice(rows, AT_ONCE)):
        yield chunk


class _Runner:
    """The loop over pictures; sides are the model and its reference, each with what is asked of it."""

    def __init__(self, sides: Sequence[tuple[Model, Any]], fit: Optional[Fit], limit: int) -> None:
        self.sides, self.fit, self.limit = sides, fit, limit
        self.meter = Differences()
        self.pictures: set[Any] = set()
        self.changed: list[dict[str, Any]] = []
        self.errors: list[tuple[str, str]] = []

    def readable(self, item: Any) -> Optional[_Asked]:
        """A row that can be asked; None, and an error, of one that cannot."""
        if item.problem is not None or item.image is None:
            self.errors.append((item.id, item.problem or "no picture is named"))
            return None
        return _Asked(item.id, item.image, item.question)

    def run(self, rows: Sequence[_Asked]) -> None:
        """Ask both sides, a picture after the other."""
        groups: dict[Any, list[_Asked]] = {}
        for row in rows:
            groups.setdefault(row.image if isinstance(row.image, ImageSource) else None, []).append(row)
        for group in Progress(list(groups.values()), "pictures"):
            source = group[0].image
            try:
                picture = load_image(source.read() if isinstance(source, ImageSource) else source, max_pixels=self.limit)
                seen = [model._see(picture, self.fit) for model, _ in self.sides]
            except FAILURES as error:
                self.errors += [(row.id, one_line(error)) for row in group]
                continue
            step = min(model._questions_at_once(request) or len(group) for model, request in self.sides)
            for at in range(0, len(group), step):
                self._ask(seen, group[at : at + step])

    def _ask(self, seen: Sequence[Any], rows: Sequence[_Asked]) -> None:
        first, request = self.sides[0]
        texts = [row.question for row in rows] if first._asks(request.method) else None
        try:
            mine, reference = (model._result(shown, texts, own) for shown, (model, own) in zip(seen, self.sides))
            if mine.raw.shape != reference.raw.shape:
                raise ValueError(f"maps are {mine.raw.shape[1:]} here and {reference.raw.shape[1:]} in the reference")
        except FAILURES as error:
            if len(rows) == 1:
                self.errors.append((rows[0].id, one_line(error)))
                return
            for row in rows:  # one of them is at fault
                self._ask(seen, [row])
            return
        for number, row in enumerate(rows):
            self._compare(mine, reference, 0 if texts is None else number, row)

    def _compare(self, mine: Any, reference: Any, number: int, row: _Asked) -> None:
        scores = [None if side.scores is None else float(side.scores[number]) for side in (mine, reference)]
        answers = [side.answers[number][0][0] if side.answers else None for side in (mine, reference)]
        one, other = mine.raw[number], reference.raw[number]
        found = self.meter.update(
            one, other, score=scores[0], reference_score=scores[1], answer=answers[0], reference_answer=answers[1]
        )
        self.pictures.add(row.image if isinstance(row.image, ImageSource) else None)
        changed: dict[str, Any] = {}
        if not found.same_patch:
            changed["patches"] = [[int(i) for i in divmod(int(side.argmax()), side.shape[1])] for side in (one, other)]
        if answers[0] != answers[1]:
            changed["answers"] = answers
        if changed:
            said = {"id": row.id, "image": row.name, "question": row.question, "spearman": found.spearman}
            self.changed.append({**said, **changed})
