"""A figure as a plan: where its panels, texts and colour bar stand, in inches, whoever draws them."""

from __future__ import annotations

import math
from typing import NamedTuple, Optional

from .._base.arguments import nearest, whole_number
from .._base.types import FloatArray
from ..heatmaps._maps import Maps
from . import _labels as labels
from ._look import (
    KINDS,
    Kind,
    Look,
    are_distributions,
    how_read,
    is_cropped,
    is_zoomed,
    notes_of,
    peaks_in_words,
    view_of,
    which_heads,
)
from ._panels import FAINT, INK, Cell, Panel, Panels, panels_of
from ._pixels import Scale, check_weight, scale_of

TITLE_SIZE, NOTE_SIZE, SMALL_SIZE = 10.0, 9.0, 8.0  # points
TITLE_LINE, NOTE_LINE, SMALL_LINE = 0.185, 0.165, 0.145  # their pitches
TITLE_LETTER, NOTE_LETTER, SMALL_LETTER = 0.079, 0.071, 0.062  # their widths
MOST_LINES = 8  # of one text
GAP, MARGIN, BETWEEN_ROWS = 0.16, 0.14, 0.22


class Place(NamedTuple):
    """A rectangle, counted from the lower left corner."""

    left: float
    bottom: float
    width: float
    height: float


class Line(NamedTuple):
    """One line of text; where its baseline begins, or for centred text its middle."""

    text: str
    x: float
    y: float
    size: float
    colour: str
    centred: bool = False


class Bar(NamedTuple):
    """A colour bar: the values of its ends, those that are marked with what is written at them, and what they are."""

    place: Place
    scale: Scale
    ticks: list[tuple[float, str]]
    name: str


class Sheet(NamedTuple):
    """Everything that stands on a figure."""

    width: float
    height: float
    panels: list[tuple[Place, Panel]]
    lines: list[Line]
    bar: Optional[Bar]


def sheet_of(result: Maps, kind: Optional[Kind], look: Look) -> Sheet:
    """Plan a figure; see `HeatmapResult.figure`."""
    kind = kind or ("panels" if len(result) == 1 else "questions")
    if kind not in KINDS:
        near = nearest(str(kind), KINDS)
        meant = f"; did you mean {near!r}?" if near else ""
        raise ValueError(f"kind: {kind!r} is unknown; expected one of {', '.join(map(repr, KINDS))}{meant}")
    check_weight(look.image_weight)
    if look.columns is not None and whole_number(look.columns, "columns") < 1:
        raise ValueError(f"columns: got {look.columns}, expected at least 1")
    if whole_number(look.top, "top") < 1:
        raise ValueError(f"top: got {look.top}, expected at least 1")
    panels = panels_of(result, kind, look)
    scale = None
    if kind != "original" and look.colorbar:
        scale = scale_of(panels.maps, look.vmin, look.vmax) if look.shared else (0.0, 1.0)
    lines = [_caption(result, kind, panels, look) if look.caption is None else look.caption]
    return _lay_out(result, panels, look, scale, lines + notes_of(result, None))


def _lay_out(result: Maps, panels: Panels, look: Look, scale: Optional[Scale], caption: list[str]) -> Sheet:
    """Place panels in rows, so that pictures of any shape sit without gaps; bar right, caption below."""
    cells = panels.cells
    aspect = view_of(result).aspect
    strip = aspect < 0.34 and look.columns is None  # too wide to stand beside others
    per_row = 1 if strip else min(look.columns or panels.per_row, len(cells))
    rows: list[list[Cell]] = []
    for cell in cells:
        if not rows or cell.starts or len(rows[-1]) == per_row:
            rows.append([])
        rows[-1].append(cell)
    room = 7.2 if strip else 3.3 if per_row <= 2 else 2.9 if per_row <= 4 else 2.2
    width = min(room, 1.45 * room / aspect)
    height = max(width * aspect, 0.3)
    cell_width = max(width, 1.5)
    right = 1.05 if scale is not None else MARGIN
    total_width = MARGIN + per_row * cell_width + (per_row - 1) * GAP + right
    texts = [[_texts(cell, cell_width, per_row) for cell in row] for row in rows]
    heads = [max(len(above) for above, _ in row) * TITLE_LINE for row in texts]
    heads = [head + 0.09 if head else 0.0 for head in heads]
    feet = [max(sum(pitch for *_, pitch in below) for _, below in row) for row in texts]
    small = small_print(caption, total_width - 2 * MARGIN)
    bottom = MARGIN + (0.12 + SMALL_LINE * len(small) if small else 0.0)
    total_height = MARGIN + bottom + sum(heads) + sum(feet) + len(rows) * height + (len(rows) - 1) * BETWEEN_ROWS + 0.04
    placed, lines = [], []
    top = total_height - MARGIN
    first, last = top - heads[0], top
    for row, row_texts, head, foot in zip(rows, texts, heads, feet):
        top -= head
        for column, (cell, (above, below)) in enumerate(zip(row, row_texts)):
            left = MARGIN + column * (cell_width + GAP)
            inset = (cell_width - width) / 2
            placed.append((Place(left + inset, top - height, width, height), cell.panel))
            centred = inset > 1e-6 and cell.span == 1
            x = left + cell_width / 2 if centred else left + inset
            for number, line in enumerate(reversed(above)):
                lines.append(Line(line, x, top + 0.1 + TITLE_LINE * number, TITLE_SIZE, INK, centred))
            y = top - height - 0.02
            for line, size, pitch in below:
                y -= pitch
                lines.append(Line(line, x, y, size, FAINT, centred))
        last = top - height
        top = last - foot - BETWEEN_ROWS
    for number, line in enumerate(reversed(small)):
        lines.append(Line(line, MARGIN, MARGIN * 0.8 + SMALL_LINE * number, SMALL_SIZE, FAINT))
    bar = None
    if scale is not None:
        # Beside very wide pictures the bar is taller than they are, so that its ticks have room.
        tall = min(max(first - last, 1.0), 3.2, total_height - 2 * MARGIN - 0.2)
        middle = min(max((first + last) / 2, MARGIN + 0.1 + tall / 2), total_height - MARGIN - 0.1 - tall / 2)
        bar = bar_of(Place(total_width - right + 0.14, middle - tall / 2, 0.13, tall), scale, panels.maps, look.shared)
    return Sheet(total_width, total_height, placed, lines, bar)


def bar_of(place: Place, scale: Scale, maps: FloatArray, shared: bool = True) -> Bar:
    """A colour bar with its ticks and name: percentages where each map is a distribution."""
    low, high = scale
    scale = low, high if high > low else low + max(abs(low) * 1e-3, 1e-6)
    if not shared:
        return Bar(place, scale, [(low, "low"), (high, "high")], "")
    tall = place.height
    if are_distributions(maps):
        name = "share of attention, each patch" if tall > 1.8 else "share"
        return Bar(place, scale, ticks_between(scale, 5 if tall > 1.2 else 3, percent=True), name)
    return Bar(place, scale, ticks_between(scale, 5 if tall > 1.2 else 3), "value of each patch" if tall > 1.2 else "value")


def ticks_between(scale: Scale, most: int, percent: bool = False) -> list[tuple[float, str]]:
    """Round values on a scale, at most so many steps apart, and how they are written."""
    unit = 0.01 if percent else 1.0
    low, high = scale[0] / unit, scale[1] / unit
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= rough * (1 - 1e-9))
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    digits = next((count for count in range(5) if math.isclose(round(step, count), step, rel_tol=1e-9)), None)
    written = [f"{n * step:.3g}" if digits is None or step >= 1e6 else f"{n * step:.{digits}f}" for n in numbers]
    return [(n * step * unit, f"{text}%" if percent else text) for n, text in zip(numbers, written)]


def small_print(texts: list[str], width: float) -> list[str]:
    """Texts in lines of a width."""
    return [line for text in texts if text for line in fitted(text, width, SMALL_LETTER)]


def fitted(text: str, width: float, letter: float) -> list[str]:
    """A text in lines of a width, with letters of another."""
    return labels.wrap(text, max(12, int(width / letter)), MOST_LINES, measured=True)


def _texts(cell: Cell, width: float, per_row: int) -> tuple[list[str], list[tuple[str, float, float]]]:
    """A panel's lines above it, and those below it, each with its size and pitch."""
    above = [line for part in cell.title.split("\n") for line in fitted(part, width, TITLE_LETTER)]
    span = min(cell.span, per_row)
    wide = width * span + GAP * (span - 1)
    below = [(line, NOTE_SIZE, NOTE_LINE) for line in (fitted(cell.note, wide, NOTE_LETTER) if cell.note else [])]
    below += [(line, SMALL_SIZE, SMALL_LINE) for line in small_print(cell.small.split("\n"), wide)]
    return above if cell.title else [], below


def _blocks_read(result: Maps) -> str:
    """The block that was read, or several."""
    *others, last = map(str, result.block_numbers)
    return f"Blocks {', '.join(others)} and {last}" if others else f"Block {last}"


def _caption(result: Maps, kind: Kind, panels: Panels, look: Look) -> str:
    """How the maps of a figure were read, how far they stand out, and what its panels share."""
    parts = []
    if kind != "original":
        how = "which patches look at each word" if kind == "words" else how_read(result.method)
        compared = kind if kind in ("blocks", "words", "heads") else "questions"
        merged = "" if kind == "heads" else which_heads(result)
        which = f"{panels.which or _blocks_read(result)}{f', {merged}' if merged else ''}"
        each = "each head sums to 1" if kind == "heads" else ""
        parts = [f"{which}: {how}", each, peaks_in_words(panels.maps)]
        if look.shared and (len(result) > 1 or compared != "questions"):
            parts.append(f"one colour scale for all {compared}")
        elif not look.shared:
            parts.append("each map on a colour scale of its own")
    if look.contours and kind not in ("original", "heatmap", "patches"):
        parts.append("lines at a quarter, a half and three quarters of the scale")
    if is_cropped(result):
        parts.append("dashed: what the model saw")
    if is_zoomed(result):
        parts.append("the rest of the picture is cut off here")
    return "; ".join(part for part in parts if part)
