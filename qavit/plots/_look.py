"""What can be drawn and how, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, NamedTuple, Optional, Union, get_args

import numpy as np

from .._base.types import FloatArray
from ..heatmaps._maps import Maps

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

PanelKind = Literal["original", "heatmap", "overlay", "patches"]
Kind = Literal["questions", "panels", "original", "heatmap", "overlay", "patches", "blocks", "words", "heads"]
KINDS: tuple[str, ...] = get_args(Kind)
PANEL_KINDS: tuple[str, ...] = get_args(PanelKind)
Cmap = Union[str, "Colormap"]
CMAP = "viridis"  # even in brightness, also for the colour-blind
FLAT = 1.2  # a map whose peak is so many times its mean says little of any place
STRIP = 3.0  # a picture so many times as long as high is a strip
#: Endings of files of pixels, and what Pillow calls them.
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
#: Of pictures in a notebook, which keeps them all: a third of a PNG's bytes, and colours as fine as the picture.
NOTEBOOK_JPEG = {"quality": 88, "subsampling": 0}
LEVELS = (0.25, 0.5, 0.75)  # of contours, in parts of the scale


@dataclass(frozen=True)
class Look:
    """How a figure looks; see `HeatmapResult.figure`."""

    cmap: Cmap = CMAP
    image_weight: Optional[float] = None
    vmin: Optional[float] = None
    vmax: Optional[float] = None
    shared: bool = True
    top: int = 5
    boxes: Optional[float] = None
    contours: bool = False
    columns: Optional[int] = None
    blocks: Optional[Sequence[int]] = None
    colorbar: bool = True
    caption: Optional[str] = None

    def changed(self) -> set[str]:
        """The names of what is not as it is by default."""
        pairs = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name for name, (value, usual) in pairs.items() if value is not usual and (usual is None or value != usual)}


def likely_answers(result: Maps, question: int, most: int) -> list[tuple[str, float]]:
    """The likeliest answers to a question, those with at least one percent; none where there are no answers."""
    if result.answers is None:
        return []
    answers = result.answers[question][:most]
    return [(answer, float(chance)) for answer, chance in answers if chance >= 0.01] or list(answers[:1])


def spread_blocks(count: int, own: int, most: int) -> list[int]:
    """At most so many of `count` blocks, evenly spread, the result's own among them."""
    chosen = {round(i) for i in np.linspace(0, count - 1, min(count, most))}
    if 0 <= own < count and own not in chosen:
        chosen.remove(min(chosen, key=lambda block: abs(block - own)))
        chosen.add(own)
    return sorted(chosen)


def notes_of(result: Maps, question: Optional[int]) -> list[str]:
    """The notes on one question; for None those on all of them. They begin as sentences do."""
    notes = [note.text[:1].upper() + note.text[1:] for note in result.notes if note.question == question]
    return notes if question is None else [*notes, *_flatness(result.maps[question])]


def _flatness(map_: FloatArray) -> list[str]:
    """What is said under a map that is nearly the same everywhere; a map of zeros, or below them, has no such peak."""
    mean = float(map_.mean())
    if map_.size < 2 or map_.min() < 0 or mean <= 0 or map_.max() >= FLAT * mean:
        return []
    return [f"Nearly flat: {peaks_in_words(map_[None])}, so where it is largest says little"]


def how_read(method: str) -> str:
    """A method in words."""
    known = {
        "class": "where the class token looks",
        "question": "which patches look at the question",
        "gradcam": "GradCAM",
    }
    return known.get(method, f"read by {method}")


def which_heads(result: Maps) -> str:
    """How heads became a result's maps, where that is not their mean."""
    if isinstance(result.heads, int):
        return f"head {result.heads}"
    return {"max": "largest of the heads", "single": "one head"}.get(result.heads, "")


def are_distributions(maps: FloatArray) -> bool:
    """Whether each map's values are shares of one whole."""
    return bool(np.allclose(maps.sum(axis=(-2, -1)), 1.0, atol=1e-3))


def peaks_in_words(maps: FloatArray) -> str:
    """How far the largest values stand out: a flat map's peak is 1 × uniform."""
    means = maps.mean(axis=(-2, -1))
    peaks = [float(high / mean) for high, mean in zip(maps.max(axis=(-2, -1)).ravel(), means.ravel()) if mean > 0]
    if not peaks:
        return ""
    unit = "uniform" if are_distributions(maps) else "the mean"
    low, high = f"{min(peaks):.3g}", f"{max(peaks):.3g}"
    return f"peak {high} × {unit}" if low == high else f"peaks {low} to {high} × {unit}"


class View(NamedTuple):
    """The part of a picture that is drawn, in its pixels."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def aspect(self) -> float:
        """Height over width."""
        return (self.bottom - self.top) / (self.right - self.left)


def is_zoomed(result: Maps) -> bool:
    """Whether a picture is so long and of so little of it was seen that only that part is drawn."""
    short, long = sorted(result.picture_size)
    return is_cropped(result) and long > STRIP * short


def view_of(result: Maps) -> View:
    """The whole picture; of a long one the part that was seen, and a little around it."""
    height, width = result.picture_size
    seen = result.seen
    if not is_zoomed(result):
        return View(0.0, 0.0, float(width), float(height))
    margin = 0.25 * max(seen.right - seen.left, seen.bottom - seen.top)
    return View(
        max(0.0, seen.left - margin), max(0.0, seen.top - margin),
        min(float(width), seen.right + margin), min(float(height), seen.bottom + margin),
    )  # fmt: skip


def is_cropped(result: Maps) -> bool:
    """Whether the model saw less than the whole picture."""
    height, width = result.picture_size
    seen = result.seen
    return seen.left > 0.5 or seen.top > 0.5 or seen.right < width - 0.5 or seen.bottom < height - 0.5
