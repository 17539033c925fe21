"""The panels of a figure: what is in each, and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .._base.arguments import whole_numbers
from .._base.pictures import Picture
from .._base.types import FloatArray
from ..heatmaps._grid import boxes_of, largest_patches, output_size, resample_map
from ..heatmaps._maps import Maps
from ..images import Region
from . import _labels as labels
from ._look import CMAP, LEVELS, Kind, Look, is_cropped, likely_answers, notes_of, spread_blocks, view_of
from ._pixels import Scale, colorize, overlay, scale_of, to_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NO_BREAK = "\u00a0"  # a space at which no line ends
INK, FAINT = "#1c1c1e", "#5f5f66"
DRAWN_SIDE = 900  # the longer side, in pixels, at which a picture goes into a figure
MOST_BLOCKS = 8


@dataclass(frozen=True)
class Cell:
    """One panel: what draws it, the text above it, and below it a note and small print, as wide as so many panels."""

    draw: Callable[[Axes], None]
    title: str = ""
    note: str = ""
    small: str = ""
    span: int = 1


@dataclass(frozen=True)
class Panels:
    """The panels of a figure, how many go in a row, the maps that they show, and of which blocks if not of the result's."""

    cells: list[Cell]
    per_row: int
    maps: FloatArray
    which: str = ""


def panels_of(result: Maps, kind: Kind, look: Look) -> Panels:
    """What a kind of figure shows."""
    if kind == "blocks":
        return _block_panels(result, look)
    if kind == "words":
        return _word_panels(result, look)
    maps = result.maps
    cells = [
        Cell(
            _draws(kind, result, values, maps, look),
            heading(result, index),
            answers_in_words(result, index),
            " ".join(notes_of(result, index)),
        )
        for index, values in enumerate(maps)
    ]
    if kind == "original":
        return Panels([Cell(cells[0].draw, "Picture")], 1, maps)
    if kind == "panels":
        every = []
        for cell, values in zip(cells, maps):
            every.append(replace(cell, draw=_draws("original", result, values, maps, look), span=4))
            for one, title in (
                ("heatmap", "Attention of each patch"),
                ("overlay", "Over the picture"),
                ("patches", f"The {min(look.top, values.size)} patches with the most"),
            ):
                every.append(Cell(_draws(one, result, values, maps, look), title))
        return Panels(every, 4, maps)
    if kind == "questions":
        cells.insert(0, Cell(_draws("original", result, maps[0], maps, look), "Picture"))
    return Panels(cells, min(len(cells), 4 if len(cells) != 5 else 3), maps)


def _block_panels(result: Maps, look: Look) -> Panels:
    """A row of blocks for each question."""
    every = result.block_maps
    if every is None:
        raise ValueError("kind: 'blocks' needs maps of other blocks, which this result does not have nor can compute")
    count = len(every)
    if look.blocks is None:
        chosen = spread_blocks(count, result.block_numbers[-1], MOST_BLOCKS)
    else:
        asked = whole_numbers(look.blocks, "blocks")
        if not asked or not all(-count <= block < count for block in asked):
            raise ValueError(f"blocks: got {asked}, expected numbers from 0 to {count - 1}")
        chosen = [block % count for block in asked]
    shown = every[chosen]
    cells = [
        Cell(
            _draws("overlay", result, every[block, index], shown, look),
            f"{question}\nblock {block}" if question and position == 0 else f"block {block}",
            small=" ".join(notes_of(result, index)) if position == 0 else "",
            span=len(chosen),
        )
        for index, question in enumerate(result.questions)
        for position, block in enumerate(chosen)
    ]
    per_row = len(chosen) if len(result) > 1 else min(len(chosen), 4)
    return Panels(cells, per_row, shown, f"{len(chosen)} of {count} blocks" if len(chosen) < count else "Each block")


def _word_panels(result: Maps, look: Look) -> Panels:
    """The picture under its question, then a map for each of its words."""
    maps_of_words = result.word_maps
    if result.words is None or maps_of_words is None:
        raise ValueError("kind: 'words' needs maps of words, which this result does not have")
    there = [values for values in maps_of_words if len(values)]
    if not there:
        raise ValueError("kind: 'words' needs a question with words")
    every = np.concatenate(there)
    cells = []
    for index, (words, word_maps) in enumerate(zip(result.words, maps_of_words)):
        if words:
            picture = _draws("original", result, result.maps[index], every, look)
            cells.append(Cell(picture, heading(result, index), small=" ".join(notes_of(result, index))))
        cells += [Cell(_draws("overlay", result, values, every, look), word) for word, values in zip(words, word_maps)]
    return Panels(cells, min(len(cells), 5), every)


def _draws(kind: str, result: Maps, values: FloatArray, every: FloatArray, look: Look) -> Callable[[Axes], None]:
    """What draws a panel of one map among others."""
    draw = DRAWS.get(kind, _draw_overlay)
    return lambda axes: draw(axes, result, values, scale_of(every if look.shared else values, look.vmin, look.vmax), look)


def _draw_original(axes: Axes, result: Maps, values: FloatArray, scale: Scale, look: Look) -> None:
    """The picture alone, the part that the model did not see faded."""
    _draw_pixels(axes, result, _faded(result))


def _draw_heatmap(axes: Axes, result: Maps, values: FloatArray, scale: Scale, look: Look) -> None:
    """The map's own patches, over the part that the model saw."""
    axes.set_facecolor("#f2f2f4")
    seen = result.seen
    extent = (seen.left, seen.right, seen.bottom, seen.top)
    axes.imshow(colorize(to_unit(values, scale), look.cmap), extent=extent, interpolation="nearest")
    _draw_boxes(axes, result, values, look)
    _frame(axes, result)


def _draw_overlay(axes: Axes, result: Maps, values: FloatArray, scale: Scale, look: Look) -> None:
    """The map, smooth, over the picture."""
    weight = 1.0 if look.contours and look.image_weight is None else look.image_weight
    _draw_pixels(axes, result, overlay(result, values, scale, look.cmap, weight, _side(result)))
    if look.contours:
        _draw_contours(axes, result, values, scale, look)
    _draw_boxes(axes, result, values, look)


def _draw_contours(axes: Axes, result: Maps, values: FloatArray, scale: Scale, look: Look) -> None:
    """Lines of equal value, in the scale's colours on black, which are seen on any picture."""
    from matplotlib.patheffects import withStroke

    side = 4 * max(values.shape)
    whole = Region(0.0, 0.0, float(values.shape[1]), float(values.shape[0]))
    fine = resample_map(to_unit(values, scale), whole, values.shape, output_size(side, values.shape), "bicubic")
    seen = result.seen
    rows, columns = fine.shape
    across = seen.left + (np.arange(columns) + 0.5) * (seen.right - seen.left) / columns
    down = seen.top + (np.arange(rows) + 0.5) * (seen.bottom - seen.top) / rows
    levels = [level for level in LEVELS if float(fine.min()) < level < float(fine.max())]
    if levels:
        colours = colorize(np.asarray(levels), look.cmap) / 255.0
        lines = axes.contour(across, down, fine, levels=levels, colors=colours, linewidths=1.6)
        lines.set_path_effects([withStroke(linewidth=3.2, foreground="black")])
    _frame(axes, result)


def _draw_patches(axes: Axes, result: Maps, values: FloatArray, scale: Scale, look: Look) -> None:
    """The borders of the patches, and those with the most numbered."""
    from matplotlib.collections import LineCollection
    from matplotlib.patheffects import withStroke

    _draw_pixels(axes, result, _faded(result))
    seen = result.seen
    rows, columns = values.shape
    across = [[(seen.left, y), (seen.right, y)] for y in np.linspace(seen.top, seen.bottom, rows + 1)]
    down = [[(x, seen.top), (x, seen.bottom)] for x in np.linspace(seen.left, seen.right, columns + 1)]
    axes.add_collection(LineCollection(across + down, colors=(1.0, 1.0, 1.0, 0.45), linewidths=0.5))
    colours = colorize(to_unit(values, scale), look.cmap)
    for rank, patch in reversed(list(enumerate(largest_patches(values, seen, look.top), start=1))):
        colour = colours[patch.row, patch.column] / 255.0
        _outline(axes, patch.left, patch.top, patch.right, patch.bottom, (*colour, 0.35))
        axes.text(
            (patch.left + patch.right) / 2, (patch.top + patch.bottom) / 2, str(rank), color="white",
            fontsize=8, fontweight="bold", ha="center", va="center_baseline", fontfamily=[labels.BASE],
            path_effects=[withStroke(linewidth=2, foreground="black")], clip_on=True,
        )  # fmt: skip
    _draw_boxes(axes, result, values, look)
    _frame(axes, result)


DRAWS = {"original": _draw_original, "heatmap": _draw_heatmap, "overlay": _draw_overlay, "patches": _draw_patches}


def _draw_boxes(axes: Axes, result: Maps, values: FloatArray, look: Look) -> None:
    """What stands out in the map, framed."""
    for box in [] if look.boxes is None else boxes_of(values, result.seen, look.boxes):
        _outline(axes, box.left, box.top, box.right, box.bottom, "none")


def _outline(axes: Axes, left: float, top: float, right: float, bottom: float, colour: object) -> None:
    """A rectangle in white on black, which is seen on any picture."""
    from matplotlib.patches import Rectangle

    for face, edge, width in ((colour, "black", 2.6), ("none", "white", 1.4)):
        axes.add_patch(
            Rectangle((left, top), right - left, bottom - top, facecolor=face, edgecolor=edge, linewidth=width)  # type: ignore[arg-type, unused-ignore]
        )


def _draw_pixels(axes: Axes, result: Maps, pixels: Picture) -> None:
    """Pixels over the whole picture's extent."""
    height, width = result.picture_size
    smooth = max(pixels.shape[:2]) >= 300
    axes.imshow(pixels, extent=(0, width, height, 0), interpolation="antialiased" if smooth else "nearest")
    _frame(axes, result)


def _frame(axes: Axes, result: Maps) -> None:
    """No ticks, the whole picture in view, a thin line round what the model saw where that is not all."""
    from matplotlib.patches import Rectangle

    view = view_of(result)
    axes.set(xlim=(view.left, view.right), ylim=(view.bottom, view.top), aspect="equal", xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    seen = result.seen
    if is_cropped(result):
        box = (seen.left, seen.top), seen.right - seen.left, seen.bottom - seen.top
        axes.add_patch(Rectangle(*box, facecolor="none", edgecolor=INK, linewidth=0.8, linestyle=(0, (4, 3))))


def _faded(result: Maps) -> Picture:
    """The picture at drawing size, faded where the model did not look."""
    return overlay(result, result.maps[0], (0.0, 1.0), CMAP, 1.0, _side(result))


def _side(result: Maps) -> int:
    """The longer side, in pixels, at which a picture is drawn: where a part of it is in view, that part is as sharp."""
    view, longest = view_of(result), max(result.picture_size)
    part = max(view.right - view.left, view.bottom - view.top) / longest
    return min(max(DRAWN_SIDE, longest), round(DRAWN_SIDE / part))


def heading(result: Maps, index: int) -> str:
    """What stands over a map."""
    return result.questions[index] or f"No question (block {result.block})"


def answers_in_words(result: Maps, index: int) -> str:
    """The model's answers in one line."""
    pairs = likely_answers(result, index, 3)
    listed = "  ·  ".join(f"{answer} {chance:.0%}".replace(" ", NO_BREAK) for answer, chance in pairs)
    return f"answer: {listed}" if listed else ""
