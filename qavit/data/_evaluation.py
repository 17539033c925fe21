"""How well maps find what texts refer to: methods of a model side by side, over a file of boxes or the bundled scene."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Union, cast

from .._base.arguments import one_line
from .._base.files import PathLike, absolute_paths, make_folder, naming, remove_leftovers, write_whole
from .._base.pictures import MAX_PIXELS
from .._base.progress import Progress
from .._base.system import take_lock
from .._base.types import Fit, Heads
from .._demo import demo_scene
from ..images import load_image
from ..metrics._localization import Estimate, Localization
from ..models._load import load
from ..models._model import Model, Request, Shown
from ._pictures import ImageSource
from ._tables import storable
from ._targets import Target, read_targets

ROWS, SETTINGS, TABLE_JSON, TABLE_CSV, LOCK = "rows.jsonl", "settings.json", "table.json", "table.csv", ".lock"
#: Of the picture that maps and objects are compared on, in pixels; the pointing game's tolerance shrinks with a larger one.
LONGEST_EDGE = 1024
#: The same for what sorts all pixels.
SORTED_EDGE = 224
TERMINAL_COLUMNS = 80
FAILURES = (OSError, ValueError, TypeError, RuntimeError, MemoryError)


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found.

    Attributes
    ----------
    methods : dict of str to dict of str to Estimate
        For each method: pointing, energy, area, inside_top_k, pixel_accuracy, miou, map; empty where no row had a map.
    rows, pictures : int
        That have a map by every method.
    errors : list of (str, str, str)
        Of the others: id, method ("" where it is the row's own fault) and why.
    """

    methods: dict[str, dict[str, Estimate]]
    rows: int
    pictures: int
    errors: list[tuple[str, str, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: every estimate is value, low and high."""
        errors = [{"id": row, "method": method, "error": said} for row, method, said in self.errors]
        methods = {
            method: {name: estimate._asdict() for name, estimate in found.items()} for method, found in self.methods.items()
        }
        return {"rows": self.rows, "pictures": self.pictures, "methods": methods, "errors": errors}

    def to_csv(self) -> str:
        """A line a method and figure: method, figure, value, low, high."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("method", "figure", *Estimate._fields))
        writer.writerows((method, name, *one) for method, found in self.methods.items() for name, one in found.items())
        return text.getvalue()

    def __str__(self) -> str:
        names = list(next((found for found in self.methods.values() if found), {}))
        table = [["", *names]]
        for method, found in self.methods.items():
            table.append([method, *(_shown(found[name]) for name in names if found)])
        lines = _aligned(table)
        if len(self.methods) < len(names) and max(map(len, lines)) > TERMINAL_COLUMNS:
            lines = _aligned([list(column) for column in itertools.zip_longest(*table, fillvalue="")])
        said = f"{self.rows:,} texts of {self.pictures:,} pictures; percent, with 95% intervals over pictures"
        failed = f"; {len(self.errors):,} errors" if self.errors else ""
        return "\n".join([*lines, said + failed])


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; rows may end before the first one does."""
    widths = [max(len(row[i]) for row in table if i < len(row)) for i in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table]


def _shown(one: Estimate) -> str:
    value = f"{100 * one.value:.1f}"
    return value if one.low is None or one.high is None else f"{value} [{100 * one.low:.1f}, {100 * one.high:.1f}]"


def evaluate(
    boxes: Optional[PathLike] = None,
    out: Optional[PathLike] = None,
    *,
    model: Union[Model, PathLike, None] = None,
    methods: Union[str, Sequence[str], None] = None,
    block: Union[int, Sequence[int], None] = None,
    heads: Heads = "mean",
    fit: Optional[Fit] = None,
    images: Optional[PathLike] = None,
    image_name: Optional[str] = None,
    columns: Optional[Mapping[str, str]] = None,
    encoding: Optional[str] = None,
    tolerance: float = 15.0,
    resamples: int = 1000,
    seed: int = 0,
    max_pixels: int = MAX_PIXELS,
    again: bool = False,
    **parts: Any,
) -> Evaluation:
    """Compare methods by where texts' objects are.

    Parameters
    ----------
    boxes : path, optional
        A table (.jsonl, .csv, .tsv, .parquet) or .json, a row a text: its picture (``image``, ``image_path`` or
        ``file_name``), the text (``question``, ``text_input``, ``text`` or ``caption``), and where its object is: ``box`` or
        ``boxes`` (left, top, right, bottom), ``bbox`` or ``bboxes`` (left, top, width, height, as COCO and RefCOCO have it),
        ``segmentation`` (COCO's outlines or run lengths) or ``mask`` (a picture, beside the table, that is black around the
        object); ``label``, where there is one, is the object's class. COCO's instances file is taken as it is: its texts are
        the categories' names. Rows of one picture and text are one. None: the bundled scene.
    out : path, optional
        A folder for rows.jsonl, table.json and table.csv. The same call goes on with what is there; rows that failed are
        tried again.
    model : Model, or what `load` takes, optional
        None: what `parts` say, or the bundled model.
    methods : str or sequence of str, optional
        None: the model's default.
    block, heads, fit
        As for :meth:`Model.heatmaps`.
    images, image_name, columns, encoding
        As for :func:`open_questions`.
    tolerance : float
        Of the pointing game, in pixels.
    resamples, seed : int
        Of the intervals' bootstrap.
    max_pixels : int
        A larger picture is refused before it is decoded.
    again : bool
        Do everything anew.
    **parts
        `checkpoint`, `vision`, `text`, `tokenizer`, `config`, `precision`, `device`, `image_size`, as for `load`.

    Returns
    -------
    Evaluation
        Maps are spread over the picture (bilinear, its longer side at most 1024 pixels, or 224 for segmentation and the
        highest pixels); where one has negative values, its smallest counts as 0.

    Raises
    ------
    ValueError, TypeError, OSError
        The file, the model or an argument cannot be used; `out` holds an evaluation of something else, or another
        process is writing into it.
    """
    loaded = model if isinstance(model, Model) else load(None if model is None else os.fspath(model), **parts)
    names = [loaded.default_method] if methods is None else [methods] if isinstance(methods, str) else list(methods)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"methods: {names}, expected at least one, each once")
    requests = {name: loaded._request(cast("Any", name), block, heads) for name in names}
    if boxes is None:
        targets = _bundled_targets()
    else:
        targets = read_targets(boxes, images, image_name, dict(columns or {}), encoding)
    settings = {
        "boxes": None if boxes is None else [os.path.abspath(boxes), os.path.getsize(boxes)], "model": loaded.name,
        "parts": absolute_paths(parts), "precision": loaded.precision, "image_size": loaded.image_size,
        "block": block if block is None or isinstance(block, int) else list(block), "heads": heads, "fit": fit,
        "tolerance": tolerance,
    }  # fmt: skip
    place = None if out is None else make_folder(out, "out")
    with _Kept(place, settings, again) as kept:
        runner = _Runner(loaded, requests, kept, tolerance, fit, max_pixels)
        runner.run(targets)
        found = runner.found(targets, resamples, seed)
        if place is not None:
            table = storable(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
            write_whole(place / TABLE_JSON, table.encode() + b"\n")
            write_whole(place / TABLE_CSV, found.to_csv().encode())
    return found


def _bundled_targets() -> list[Target]:
    scene = demo_scene()
    return [
        Target(str(number), scene.picture, question, shapes=(("boxes", boxes),))
        for number, (question, boxes) in enumerate(zip(scene.questions, scene.boxes))
    ]


class _Kept:
    """Numbers of rows by id and method, in a file that a later call goes on with."""

    def __init__(self, place: Optional[Path], settings: Mapping[str, Any], again: bool) -> None:
        self.numbers: dict[tuple[str, str], list[float]] = {}
        self._file: Any = None
        self._lock: Any = None
        if place is None:
            return
        self._path = place / ROWS
        self._lock = take_lock(place / LOCK, f"out: another process is evaluating into {str(place)!r}")
        try:
            self._open(place, settings, again)
        except BaseException:
            self._lock.close()
            raise

    def _open(self, place: Path, settings: Mapping[str, Any], again: bool) -> None:
        remove_leftovers(place)
        rows, said = place / ROWS, json.dumps(settings, sort_keys=True)
        if not again and rows.exists():
            if not (place / SETTINGS).exists() or (place / SETTINGS).read_bytes() != said.encode():
                raise ValueError(f"out: {str(place)!r} holds an evaluation of something else; take another folder, or again")
            self._read(rows)
        elif rows.exists():
            rows.unlink()
        write_whole(place / SETTINGS, said.encode())
        self._file = open(rows, "a", encoding="utf-8")  # noqa: SIM115 - of as long a life as this object's

    def _read(self, rows: Path) -> None:
        whole = []
        for line in rows.read_bytes().split(b"\n"):
            try:
                row = json.loads(line)
                numbers = [float(one) for one in row["numbers"]]
                Localization().add(numbers)
                self.numbers[str(row["id"]), str(row["method"])] = numbers
                whole.append(line + b"\n")
            except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
                continue  # a row that failed, or a line that a killed process left half written
        write_whole(rows, b"".join(whole))

    def put(self, row: str, method: str, **said: Any) -> None:
        """Keep what is known of a row: numbers=, or error=."""
        if "numbers" in said:
            self.numbers[row, method] = said["numbers"]
        if self._file is not None:
            with naming(self._path):
                self._file.write(json.dumps({"id": row, "method": method, **said}) + "\n")

    def flush(self) -> None:
        if self._file is not None:
            with naming(self._path):
                self._file.flush()

    def __enter__(self) -> _Kept:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._file is not None:
            with self._lock, naming(self._path):
                self._file.close()


class _Runner:
    """The loop over pictures."""

    def __init__(
        self, model: Model, requests: Mapping[str, Request], kept: _Kept, tolerance: float, fit: Optional[Fit], limit: int
    ) -> None:
        self.model, self.requests, self.kept, self.tolerance, self.fit, self.limit = (
            model, requests, kept, tolerance, fit, limit
        )  # fmt: skip
        self.errors: list[tuple[str, str, str]] = []

    def run(self, targets: Sequence[Target]) -> None:
        """Ask for what is not known yet, a picture after the other."""
        groups: dict[Any, list[Target]] = {}
        for target in targets:
            if target.problem is not None:
                self._failed(target, "", target.problem)
            else:
                groups.setdefault(_picture_of(target), []).append(target)
        for group in Progress(list(groups.values()), "pictures"):
            self._picture(group)
            self.kept.flush()

    def _failed(self, target: Target, method: str, said: str) -> None:
        self.errors.append((target.id, method, said))
        self.kept.put(target.id, method, image=target.name, text=target.text, error=said)

    def _picture(self, group: list[Target]) -> None:
        waiting = {
            name: [target for target in group if (target.id, name) not in self.kept.numbers] for name in self.requests
        }
        if not any(waiting.values()):
            return
        source = group[0].image
        try:
            picture = load_image(source.read() if isinstance(source, ImageSource) else source, max_pixels=self.limit)
            shown = self.model._see(picture, self.fit)
        except FAILURES as error:
            for target in group:
                self._failed(target, "", one_line(error))
            return
        for name, asked in waiting.items():
            for chunk in self._chunks(self.requests[name], asked):
                self._ask(name, shown, chunk)

    def _chunks(self, request: Request, asked: list[Target]) -> Iterator[list[Target]]:
        step = self.model._questions_at_once(request) or max(1, len(asked))
        for at in range(0, len(asked), step):
            yield asked[at : at + step]

    def _ask(self, method: str, shown: Shown, asked: list[Target]) -> None:
        height, width = shown.picture.shape[:2]
        scale, size = _at_most(LONGEST_EDGE, height, width)
        small = _at_most(SORTED_EDGE, height, width)[1]
        request = self.requests[method]
        texts = [target.text for target in asked] if self.model._asks(request.method) else None
        try:
            result = self.model._result(shown, texts, request)
        except FAILURES as error:
            if len(asked) == 1:
                self._failed(asked[0], method, one_line(error))
                return
            for target in asked:  # one of them is at fault
                self._ask(method, shown, [target])
            return
        maps, small_maps = result.upsample(size, "bilinear"), result.upsample(small, "bilinear")
        meter = Localization(self.tolerance * scale)
        for number, target in enumerate(asked):
            own = 0 if texts is None else number
            try:
                smaller = small_maps[own], target.mask(height, width, small)
                numbers = meter.update(maps[own], target.mask(height, width, size), smaller=smaller)
            except FAILURES as error:
                self._failed(target, method, one_line(error))
                continue
            self.kept.put(target.id, method, image=target.name, text=target.text, label=target.label, numbers=numbers)

    def found(self, targets: Sequence[Target], resamples: int, seed: int) -> Evaluation:
        """The figures of the rows that have a map by every method, so that methods are compared on the same ones."""
        numbers = self.kept.numbers
        whole = [target for target in targets if all((target.id, name) in numbers for name in self.requests)]
        pictures: dict[Any, str] = {}
        for target in whole:
            pictures.setdefault(_picture_of(target), str(len(pictures)))
        methods: dict[str, dict[str, Estimate]] = {}
        for name in self.requests:
            meter = Localization(self.tolerance)
            for target in whole:
                meter.add(numbers[target.id, name], pictures[_picture_of(target)], target.label)
            methods[name] = meter.summary(resamples, seed) if whole else {}
        return Evaluation(methods, len(whole), len(pictures), self.errors)


def _at_most(longest: int, height: int, width: int) -> tuple[float, tuple[int, int]]:
    """By what a picture is made smaller, and how large it is then."""
    scale = min(1.0, longest / max(height, width))
    return scale, (max(1, round(height * scale)), max(1, round(width * scale)))


def _picture_of(target: Target) -> Optional[ImageSource]:
    """What rows of one picture have in common; None for the bundled scene's."""
    return target.image if isinstance(target.image, ImageSource) else None
