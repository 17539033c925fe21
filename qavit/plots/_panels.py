"""The panels of a figure: what is in each, whoever draws it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Optional

import numpy as np
import numpy.typing as npt

from .._base.arguments import whole_numbers
from .._base.types import FloatArray
from ..heatmaps._grid import boxes_of, output_size, resample_map
from ..heatmaps._maps import Maps
from ..images import Region
from ._look import LEVELS, Kind, Look, PanelKind, likely_answers, notes_of, spread_blocks
from ._pixels import Scale, scale_of, to_unit

NO_BREAK = "\u00a0"  # a space at which no line ends
INK, FAINT = "#1c1c1e", "#5f5f66"
EMPTY = "#f2f2f4"  # where there is neither picture nor map
MOST_BLOCKS = 8
MOST_HEADS = 6  # in a row


class Panel(NamedTuple):
    """One map [gh, gw], how it is shown, and the values of the two ends of its colours."""

    kind: PanelKind
    values: FloatArray
    scale: Scale


@dataclass(frozen=True)
class Cell:
    """A panel, the text above it, and below it a note and small print, as wide as so many panels."""

    panel: Panel
    title: str = ""
    note: str = ""
    small: str = ""
    span: int = 1
    starts: bool = False  # a row


@dataclass(frozen=True)
class Panels:
    """The panels of a figure, how many go in a row, the maps that they show, and of which blocks if not of the result's."""

    cells: list[Cell]
    per_row: int
    maps: FloatArray
    which: str = ""


class Contours(NamedTuple):
    """A map on a scale from 0 to 1, fine enough for lines, where its values lie in the picture, and the lines' levels."""

    across: npt.NDArray[np.float64]
    down: npt.NDArray[np.float64]
    values: FloatArray
    levels: list[float]


def panels_of(result: Maps, kind: Kind, look: Look) -> Panels:
    """What a kind of figure shows."""
    if kind == "blocks":
        return _block_panels(result, look)
    if kind == "words":
        return _word_panels(result, look)
    if kind == "heads":
        return _head_panels(result, look)
    maps = result.maps
    shown: PanelKind = kind if kind in ("original", "heatmap", "patches") else "overlay"
    cells = [
        Cell(
            _panel(shown, values, maps, look),
            heading(result, index),
            answers_in_words(result, index),
            "\n".join(notes_of(result, index)),
        )
        for index, values in enumerate(maps)
    ]
    if kind == "original":
        return Panels([Cell(cells[0].panel, "Picture")], 1, maps)
    if kind == "panels":
        every = []
        for cell in cells:
            every.append(replace(cell, panel=cell.panel._replace(kind="original"), span=4))
            titles: Sequence[tuple[PanelKind, str]] = (
                ("heatmap", "Attention of each patch"),
                ("overlay", "Over the picture"),
                ("patches", f"The {min(look.top, cell.panel.values.size)} patches with the most"),
            )
            every += [Cell(cell.panel._replace(kind=one), title) for one, title in titles]
        return Panels(every, 4, maps)
    if kind == "questions":
        cells.insert(0, Cell(_panel("original", maps[0], maps, look), "Picture"))
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
            _panel("overlay", every[block, index], shown, look),
            f"{question}\nblock {block}" if question and position == 0 else f"block {block}",
            small="\n".join(notes_of(result, index)) if position == 0 else "",
            span=len(chosen),
        )
        for index, question in enumerate(result.questions)
        for position, block in enumerate(chosen)
    ]
    per_row = len(chosen) if len(result) > 1 else min(len(chosen), 4)
    return Panels(cells, per_row, shown, f"{len(chosen)} of {count} blocks" if len(chosen) < count else "Each block")


def _head_panels(result: Maps, look: Look) -> Panels:
    """Rows of heads for each question: first what became of all of them, unless that is one of them."""
    heads = result.head_maps
    if heads is None:
        raise ValueError(
            "kind: 'heads' needs maps of heads, which this result does not have: ask the model for the block, by a method "
            "that reads heads one by one, such as 'class'"
        )
    count = heads.shape[1]
    merged = {"mean": f"mean of {count} heads", "max": f"largest of {count} heads"}.get(str(result.heads))
    every = heads if merged is None else np.concatenate([result.maps[:, None], heads], axis=1)
    titles = [*([] if merged is None else [merged]), *(f"head {head}" for head in range(count))]
    per_row = math.ceil(len(titles) / math.ceil(len(titles) / MOST_HEADS))
    cells = [
        Cell(
            _panel("overlay", values, every, look),
            f"{question}\n{title}" if question and position == 0 else title,
            small=" ".join(notes_of(result, index)) if position == 0 else "",
            span=per_row,
            starts=position == 0,
        )
        for index, question in enumerate(result.questions)
        for position, (title, values) in enumerate(zip(titles, every[index]))
    ]
    return Panels(cells, per_row, every)


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
            picture = _panel("original", result.maps[index], every, look)
            cells.append(Cell(picture, heading(result, index), small="\n".join(notes_of(result, index))))
        cells += [Cell(_panel("overlay", values, every, look), word) for word, values in zip(words, word_maps)]
    return Panels(cells, min(len(cells), 5), every)


def _panel(kind: PanelKind, values: FloatArray, every: FloatArray, look: Look) -> Panel:
    """A panel of one map among others."""
    return Panel(kind, values, scale_of(every if look.shared else values, look.vmin, look.vmax))


def weight_of(look: Look) -> Optional[float]:
    """The picture's part of an overlay; lines leave it as it is."""
    return 1.0 if look.contours and look.image_weight is None else look.image_weight


def frames_of(result: Maps, panel: Panel, look: Look) -> list[tuple[float, float, float, float]]:
    """(left, top, right, bottom) of what stands out in a panel's map, where that is to be framed."""
    if look.boxes is None or panel.kind == "original":
        return []
    return [(box.left, box.top, box.right, box.bottom) for box in boxes_of(panel.values, result.seen, look.boxes)]


def contours_of(result: Maps, panel: Panel) -> Contours:
    """What lines of equal value are drawn from."""
    values = panel.values
    whole = Region(0.0, 0.0, float(values.shape[1]), float(values.shape[0]))
    size = output_size(4 * max(values.shape), (values.shape[0], values.shape[1]))
    fine = resample_map(to_unit(values, panel.scale), whole, (values.shape[0], values.shape[1]), size, "bicubic")
    seen = result.seen
    rows, columns = fine.shape
    across = seen.left + (np.arange(columns) + 0.5) * (seen.right - seen.left) / columns
    down = seen.top + (np.arange(rows) + 0.5) * (seen.bottom - seen.top) / rows
    return Contours(across, down, fine, [level for level in LEVELS if float(fine.min()) < level < float(fine.max())])


def heading(result: Maps, index: int) -> str:
    """What stands over a map."""
    return result.questions[index] or f"No question (block {result.block})"


def answers_in_words(result: Maps, index: int) -> str:
    """The model's answers in one line."""
    pairs = likely_answers(result, index, 3)
    listed = "  ·  ".join(f"{answer} {chance:.0%}".replace(" ", NO_BREAK) for answer, chance in pairs)
    return f"answer: {listed}" if listed else ""
