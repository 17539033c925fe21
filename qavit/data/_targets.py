"""What texts refer to in pictures: boxes, masks and outlines, from the columns of a table or COCO's annotations."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional, Union

import numpy as np
import numpy.typing as npt

from .._base.files import PathLike
from .._base.pictures import MAX_PIXELS
from ..images import load_image
from ._pictures import ImageSource, plain_file
from ._questions import QuestionFile, Reading

Mask = npt.NDArray[np.bool_]
#: Corners of a box: left, top, right, bottom in pixels of the picture.
Corners = tuple[float, float, float, float]
#: Columns that say where the object is. bbox is COCO's: left, top, width, height.
OUTLINES = ("segmentation", "mask")
SHAPES = ("box", "boxes", "bbox", "bboxes", *OUTLINES)
SOUGHT = (*SHAPES, "label")
MAX_PIXEL = 1e9  # from a picture's corner, in pixels


class Target(NamedTuple):
    """What a text refers to in a picture.

    Attributes
    ----------
    id : str
    image : ImageSource, picture, or None
    text : str
    label : str
        The class of the object; "object" where none is named.
    shapes : tuple of (str, value)
        The parts of the object, each by the column that it stood in.
    problem : str or None
        Why it cannot be asked for.
    """

    id: str
    image: Any
    text: str
    label: str = "object"
    shapes: tuple[tuple[str, Any], ...] = ()
    problem: Optional[str] = None

    @property
    def name(self) -> str:
        """What the input calls the picture."""
        return self.image.name if isinstance(self.image, ImageSource) else ""

    def mask(self, height: int, width: int, size: tuple[int, int]) -> Mask:
        """The object's pixels, bool of `size`, of a picture of height x width. ValueError where it has none."""
        marked = np.zeros(size, bool)
        for column, value in self.shapes:
            marked |= _PARTS[column](value, height, width, size)
        if not marked.any():
            raise ValueError(f"what the text refers to lies outside of the picture, which is {width} x {height}")
        return marked


def read_targets(
    path: PathLike,
    images: Optional[PathLike] = None,
    image_name: Optional[str] = None,
    columns: Union[dict[str, str], None] = None,
    encoding: Optional[str] = None,
) -> list[Target]:
    """The rows of a file; those of one picture and text are one, whose parts belong together.

    Rows that are broken come with their `problem`.
    """
    reading = Reading(image_name, dict(columns or {}), {}, encoding, SOUGHT)
    found: dict[tuple[Any, ...], Target] = {}
    known: set[str] = set()
    for number, item in enumerate(QuestionFile(path, images, reading, "")):
        target = Target(item.id, item.image, item.question, problem=item.problem)
        if target.problem is None:
            try:
                given = dict(zip(SOUGHT, item.kept))
                shapes = tuple((column, _value(column, text)) for column, text in _finest(given))
                target = target._replace(label=given["label"] or "object", shapes=_beside(shapes, path))
            except ValueError as error:
                target = target._replace(problem=f"row {item.id}: {error}")
        key: tuple[Any, ...] = (target.image, target.text, target.label)
        before = None if target.problem is not None else found.get(key)
        if before is None and target.problem is None and item.id in known:
            target = target._replace(problem=f"row {item.id}: another row has this id")
        known.add(item.id)
        key = key if target.problem is None else (number,)
        found[key] = target if before is None else before._replace(shapes=before.shapes + target.shapes)
    return list(found.values())


def _finest(given: dict[str, Optional[str]]) -> list[tuple[str, str]]:
    """What is said of where the object is: its mask or outline where there is one, else its boxes."""
    said = [(column, text) for column in SHAPES if (text := given[column]) is not None and text.strip() not in ("", "[]")]
    if not said:
        raise ValueError(f"nothing says where the object is; expected one of the columns {', '.join(SHAPES)}")
    return [one for one in said if one[0] in OUTLINES] or said


def _value(column: str, text: str) -> Any:
    """What stands in a column, checked: corners, outlines, run lengths, or the path of a mask."""
    if column == "mask" and not text.lstrip().startswith(("{", "[")):
        return text
    try:
        if text.lstrip().startswith(("{", "[")):
            value = json.loads(text)
        else:
            value = [float(one) for one in re.split(r"[,;\s]+", text.strip())]
    except (ValueError, RecursionError):
        raise ValueError(f"{column}: {text!r:.60} is no list of numbers") from None
    if column in OUTLINES:
        return _outlines(column, value)
    boxes = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    return [_corners(column, box) for box in boxes]


def _numbers(column: str, values: Any, expected: str) -> list[float]:
    numbers = isinstance(values, list) and all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in values)
    if not numbers or not all(abs(one) <= MAX_PIXEL for one in values):  # nor is NaN
        raise ValueError(f"{column}: {_shown(values)}, expected {expected}")
    return [float(one) for one in values]


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.60}"
    except (ValueError, RecursionError):  # a number of thousands of digits, a list in a list in a list ...
        return type(value).__name__


def _corners(column: str, box: Any) -> Corners:
    sizes = column.startswith("bbox")
    expected = "left, top, width, height" if sizes else "left, top, right, bottom"
    numbers = _numbers(column, box, expected)
    if len(numbers) != 4:
        raise ValueError(f"{column}: {_shown(box)}, expected {expected}")
    left, top, right, bottom = numbers
    if sizes:
        right, bottom = left + right, top + bottom
    if not (right > left and bottom > top):
        raise ValueError(f"{column}: {box!r:.60} is empty; expected {expected}")
    return left, top, right, bottom


def _outlines(column: str, value: Any) -> Any:
    if isinstance(value, dict):
        size, counts = value.get("size"), value.get("counts")
        if isinstance(counts, str):
            raise ValueError(f"{column}: compressed run lengths; decode them first (pycocotools.mask.decode)")
        lengths = _numbers(column, counts, "run lengths")
        edges = _numbers(column, size, "size: height and width")
        if len(edges) != 2 or min(edges) < 1 or edges[0] * edges[1] > MAX_PIXELS or not all(map(float.is_integer, edges)):
            raise ValueError(f"{column}: {_shown(size)}, expected the height and width of a picture")
        whole = all(length >= 0 and length.is_integer() for length in lengths)
        if not whole or sum(lengths) != edges[0] * edges[1]:
            raise ValueError(f"{column}: the run lengths do not make up the size {_shown(size)}")
        return {"size": [int(edge) for edge in edges], "counts": [int(length) for length in lengths]}
    polygons = [_numbers(column, polygon, "outlines x, y, x, y, ...") for polygon in value]
    if not polygons or any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        raise ValueError(f"{column}: expected outlines of at least three points x, y")
    return polygons


def _beside(shapes: tuple[tuple[str, Any], ...], path: PathLike) -> tuple[tuple[str, Any], ...]:
    """Paths of masks are beside the file that names them."""
    folder = os.path.dirname(os.path.abspath(path))
    return tuple((column, os.path.join(folder, value) if isinstance(value, str) else value) for column, value in shapes)


# ---- pixels ----


def _box_pixels(boxes: Sequence[Corners], height: int, width: int, size: tuple[int, int]) -> Mask:
    """Pixels whose centres lie in a box, or the one that its middle lies in."""
    marked = np.zeros(size, bool)
    down, across = size[0] / height, size[1] / width
    for left, top, right, bottom in boxes:
        rows, columns = (
            _between(low * scale, high * scale, count)
            for low, high, scale, count in ((top, bottom, down, size[0]), (left, right, across, size[1]))
        )
        marked[rows, columns] = True
    return marked


def _between(low: float, high: float, count: int) -> slice:
    first, end = int(np.ceil(low - 0.5)), int(np.ceil(high - 0.5))
    if first >= end and 0 <= (low + high) / 2 < count:
        first = int((low + high) / 2)
        end = first + 1
    return slice(max(first, 0), max(end, 0))


def _outlined_pixels(value: Any, height: int, width: int, size: tuple[int, int]) -> Mask:
    from PIL import Image, ImageDraw

    if isinstance(value, str):
        levels = load_image(plain_file(value)).max(axis=2)
        return _sampled(levels > 0, size)
    if isinstance(value, dict):
        rows, columns = value["size"]
        runs = np.repeat(np.arange(len(value["counts"])) % 2 == 1, value["counts"])
        return _sampled(runs.reshape(columns, rows).T, size)
    canvas = Image.new("1", (size[1], size[0]))
    pen = ImageDraw.Draw(canvas)
    for polygon in value:
        pen.polygon([(x * size[1] / width, y * size[0] / height) for x, y in zip(polygon[::2], polygon[1::2])], fill=1)
    return np.asarray(canvas, bool)


def _sampled(mask: Mask, size: tuple[int, int]) -> Mask:
    """The nearest pixels of another size; what falls between all of them, where it lies."""
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1) for old, new in zip(mask.shape, size)
    )
    sampled = mask[np.ix_(rows, columns)]
    if not sampled.any():
        y, x = np.nonzero(mask)
        sampled[y * size[0] // mask.shape[0], x * size[1] // mask.shape[1]] = True
    return sampled


_PARTS: dict[str, Any] = {
    **dict.fromkeys(("box", "boxes", "bbox", "bboxes"), _box_pixels),
    **dict.fromkeys(OUTLINES, _outlined_pixels),
}
