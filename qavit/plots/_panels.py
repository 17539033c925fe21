"""The panels of a figure: what is in each, and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from .._base.arguments import whole_numbers
from .._base.types import FloatArray
from .._result import HeatmapResult
from ..heatmaps._grid import output_size
from . import _labels as labels
from ._pixels import Cmap, Picture, Scale, colorize, overlay, scale_of, to_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Box = tuple[float, float, float, float]  # left, bottom, width, height
KINDS = ("questions", "panels", "original", "heatmap", "overlay", "patches", "blocks", "words")
NO_BREAK = "\u00a0"  # a space at which no line ends
INK, FAINT = "#1c1c1e", "#6b6b70"
TITLE_SIZE, NOTE_SIZE, CAPTION_SIZE = 10.0, 9.0, 8.0
DRAWN_SIDE = 900  # the longer side, in pixels, at which a picture goes into a figure


@dataclass
class _Cell:
    """One panel of a figure: what draws it, the text above it and the text below it."""

    draw: Callable[[Axes], None]
    title: str = ""
    note: str = ""


@dataclass
class _Style:
    """What every panel of a figure has in common."""

    cmap: Cmap
    image_weight: Optional[float]
    top: int
    scale: Scale


def _cells(
    result: HeatmapResult,
    kind: str,
    cmap: Cmap,
    image_weight: Optional[float],
    top: int,
    blocks: Optional[Sequence[int]],
    shared: bool,
) -> tuple[list[_Cell], int, FloatArray]:
    """The panels of a kind of figure, how many go in a row, and the maps that share its scale."""

    def style(values: FloatArray, every: FloatArray) -> _Style:
        return _Style(cmap, image_weight, top, scale_of(every if shared else values))

    def cell(draw: Any, values: FloatArray, every: FloatArray, title: str, note: str = "") -> _Cell:
        return _Cell(lambda axes: draw(axes, result, values, style(values, every)), title, note)

    maps = result.maps
    headings = [_heading(result, question) for question in result.questions]
    original = _Cell(lambda axes: _draw_original(axes, result, maps[0], style(maps[0], maps)), "Picture")
    if kind == "original":
        return [original], 1, maps
    if kind == "panels":
        cells = []
        for index, heading in enumerate(headings):
            values, note = maps[index], _answers(result, index)
            cells += [
                _Cell(original.draw, heading, note),
                cell(_draw_heatmap, values, maps, "Attention of each patch"),
                cell(_draw_overlay, values, maps, "Over the picture"),
                cell(_draw_patches, values, maps, f"The {min(top, values.size)} patches with the most"),
            ]
        return cells, 4, maps
    if kind == "blocks":
        every = result.all_block_maps()
        chosen = _choose_blocks(len(every), result.block, blocks)
        shown = every[chosen]
        many = len(result) > 1
        cells = [
            cell(
                _draw_overlay,
                every[block, index],
                shown,
                f"{question}\nblock {block}" if question and position == 0 else f"block {block}",
            )
            for index, question in enumerate(result.questions)
            for position, block in enumerate(chosen)
        ]
        return cells, len(chosen) if many else min(len(chosen), 4), shown
    if kind == "words":
        word_maps = result.maps_of_words()
        if result.words is None or word_maps is None:
            raise ValueError("kind: 'words' needs maps of words, which this result does not have")
        pairs = [
            (word, values)
            for words, maps_of_words in zip(result.words, word_maps)
            for word, values in zip(words, maps_of_words)
        ]
        if not pairs:
            raise ValueError("kind: 'words' needs a question with words")
        every = np.stack([values for _, values in pairs])
        return [cell(_draw_overlay, values, every, word) for word, values in pairs], min(len(pairs), 5), every
    draw = {"heatmap": _draw_heatmap, "patches": _draw_patches}.get(kind, _draw_overlay)
    cells = [
        cell(draw, maps[index], maps, heading, _answers(result, index)) for index, heading in enumerate(headings)
    ]
    if kind == "questions":
        cells.insert(0, original)
    return cells, min(len(cells), 4 if len(cells) != 5 else 3), maps


def _draw_original(axes: Axes, result: HeatmapResult, values: FloatArray, style: _Style) -> None:
    """The picture alone, the part that the model did not see faded."""
    _draw_pixels(axes, result, _faded(result))


def _draw_heatmap(axes: Axes, result: HeatmapResult, values: FloatArray, style: _Style) -> None:
    """The map's own patches, over the part that the model saw."""
    axes.set_facecolor("#f2f2f4")
    seen = result.seen
    axes.imshow(
        colorize(to_unit(values, style.scale), style.cmap),
        extent=(seen.left, seen.right, seen.bottom, seen.top),
        interpolation="nearest",
    )
    _frame(axes, result)


def _draw_overlay(axes: Axes, result: HeatmapResult, values: FloatArray, style: _Style) -> None:
    """The map, smooth, over the picture."""
    pixels = overlay(
        result,
        cmap=style.cmap,
        image_weight=style.image_weight,
        size=_drawn_size(result),
        values=values,
        scale=style.scale,
    )
    _draw_pixels(axes, result, pixels)


def _draw_patches(axes: Axes, result: HeatmapResult, values: FloatArray, style: _Style) -> None:
    """The borders of the patches, and those with the most numbered."""
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    _draw_pixels(axes, result, _faded(result))
    seen = result.seen
    rows, columns = values.shape
    across = [[(seen.left, y), (seen.right, y)] for y in np.linspace(seen.top, seen.bottom, rows + 1)]
    down = [[(x, seen.top), (x, seen.bottom)] for x in np.linspace(seen.left, seen.right, columns + 1)]
    axes.add_collection(LineCollection(across + down, colors=(1.0, 1.0, 1.0, 0.45), linewidths=0.5))
    one = HeatmapResult(values[None], [""], result.picture, result.region)
    colours = colorize(to_unit(values, style.scale), style.cmap)
    for rank, patch in reversed(list(enumerate(one.top_patches(style.top)[0], start=1))):
        box = (patch.left, patch.top), patch.right - patch.left, patch.bottom - patch.top
        colour = colours[patch.row, patch.column] / 255.0
        axes.add_patch(Rectangle(*box, facecolor=(*colour, 0.35), edgecolor="black", linewidth=2.6))
        axes.add_patch(Rectangle(*box, facecolor="none", edgecolor="white", linewidth=1.4))
        axes.text(
            (patch.left + patch.right) / 2, (patch.top + patch.bottom) / 2, str(rank), color="white",
            fontsize=8, fontweight="bold", ha="center", va="center_baseline", fontfamily=[labels.BASE],
            path_effects=[withStroke(linewidth=2, foreground="black")],
        )  # fmt: skip
    _frame(axes, result)


def _draw_pixels(axes: Axes, result: HeatmapResult, pixels: Picture) -> None:
    """Pixels over the whole picture's extent."""
    height, width = result.picture_size
    smooth = max(pixels.shape[:2]) >= 300
    axes.imshow(pixels, extent=(0, width, height, 0), interpolation="antialiased" if smooth else "nearest")
    _frame(axes, result)


def _frame(axes: Axes, result: HeatmapResult) -> None:
    """No ticks, the whole picture in view, a thin line round what the model saw where that is not all."""
    from matplotlib.patches import Rectangle

    height, width = result.picture_size
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    seen = result.seen
    if _cropped(result):
        box = (seen.left, seen.top), seen.right - seen.left, seen.bottom - seen.top
        axes.add_patch(Rectangle(*box, facecolor="none", edgecolor=INK, linewidth=0.8, linestyle=(0, (4, 3))))


def _drawn_size(result: HeatmapResult) -> tuple[int, int]:
    """The size at which pixels go into a figure."""
    return output_size(DRAWN_SIDE, result.picture_size)


def _faded(result: HeatmapResult) -> Picture:
    """The picture at drawing size, faded where the model did not look."""
    return overlay(result, image_weight=1.0, size=_drawn_size(result))


def _cropped(result: HeatmapResult) -> bool:
    """Whether the model saw less than the whole picture."""
    height, width = result.picture_size
    seen = result.seen
    return seen.left > 0.5 or seen.top > 0.5 or seen.right < width - 0.5 or seen.bottom < height - 0.5


def _heading(result: HeatmapResult, question: str) -> str:
    """What stands over a map."""
    return question or f"No question (block {result.block})"


def _answers(result: HeatmapResult, index: int, most: int = 3) -> str:
    """The model's answers in one line, those with at least one percent."""
    if result.answers is None:
        return ""
    likely = [pair for pair in result.answers[index][:most] if pair[1] >= 0.01] or result.answers[index][:1]
    return "  ·  ".join(f"{answer} {chance:.0%}".replace(" ", NO_BREAK) for answer, chance in likely)


def how_read(method: str) -> str:
    """A method in words."""
    known = {
        "class": "where the class token looks",
        "question": "which patches look at the question",
        "gradcam": "GradCAM",
    }
    return known.get(method, f"{method} method")


def _choose_blocks(count: int, own: int, blocks: Optional[Sequence[int]]) -> list[int]:
    """Which blocks to draw."""
    if blocks is None:
        chosen = {round(i) for i in np.linspace(0, count - 1, min(count, 8))}
        if 0 <= own < count and own not in chosen:
            chosen.remove(min(chosen, key=lambda block: abs(block - own)))
            chosen.add(own)
        return sorted(chosen)
    chosen_blocks = whole_numbers(blocks, "blocks")
    if not chosen_blocks or not all(-count <= block < count for block in chosen_blocks):
        raise ValueError(f"blocks: got {chosen_blocks}, expected numbers from 0 to {count - 1}")
    return [block % count for block in chosen_blocks]
