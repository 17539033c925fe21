"""Panels drawn by matplotlib, each on axes."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from .._base.pictures import Picture
from ..heatmaps._grid import largest_patches
from ..heatmaps._maps import Maps
from . import _labels as labels
from ._look import CMAP, Look, is_cropped, view_of
from ._panels import EMPTY, INK, Panel, contours_of, frames_of, weight_of
from ._pixels import colorize, overlay, to_unit

DRAWN_SIDE = 900  # the longer side, in pixels, at which a picture goes into a figure


def draw(axes: Axes, result: Maps, panel: Panel, look: Look) -> None:
    """One panel, without ticks, what is in view as `view_of` says."""
    if panel.kind == "heatmap":
        axes.set_facecolor(EMPTY)
        seen = result.seen
        extent = (seen.left, seen.right, seen.bottom, seen.top)
        axes.imshow(colorize(to_unit(panel.values, panel.scale), look.cmap), extent=extent, interpolation="nearest")
    elif panel.kind == "overlay":
        _draw_pixels(axes, result, overlay(result, panel.values, panel.scale, look.cmap, weight_of(look), _side(result)))
        if look.contours:
            _draw_contours(axes, result, panel, look)
    else:
        faded = overlay(result, result.maps[0], (0.0, 1.0), CMAP, 1.0, _side(result))
        _draw_pixels(axes, result, faded)
        if panel.kind == "patches":
            _draw_patches(axes, result, panel, look)
    for frame in frames_of(result, panel, look):
        _outline(axes, *frame, "none")
    _frame(axes, result)


def _draw_contours(axes: Axes, result: Maps, panel: Panel, look: Look) -> None:
    """Lines of equal value, in the scale's colours on black, which are seen on any picture."""
    across, down, values, levels = contours_of(result, panel)
    if levels:
        colours = colorize(np.asarray(levels), look.cmap) / 255.0
        lines = axes.contour(across, down, values, levels=levels, colors=colours, linewidths=1.6)
        lines.set_path_effects([withStroke(linewidth=3.2, foreground="black")])


def _draw_patches(axes: Axes, result: Maps, panel: Panel, look: Look) -> None:
    """The borders of the patches, and those with the most numbered."""
    seen, values = result.seen, panel.values
    rows, columns = values.shape
    across = [[(seen.left, y), (seen.right, y)] for y in np.linspace(seen.top, seen.bottom, rows + 1)]
    down = [[(x, seen.top), (x, seen.bottom)] for x in np.linspace(seen.left, seen.right, columns + 1)]
    axes.add_collection(LineCollection(across + down, colors=(1.0, 1.0, 1.0, 0.45), linewidths=0.5))
    colours = colorize(to_unit(values, panel.scale), look.cmap)
    for rank, patch in reversed(list(enumerate(largest_patches(values, seen, look.top), start=1))):
        colour = colours[patch.row, patch.column] / 255.0
        _outline(axes, patch.left, patch.top, patch.right, patch.bottom, (*colour, 0.35))
        axes.text(
            (patch.left + patch.right) / 2, (patch.top + patch.bottom) / 2, str(rank), color="white",
            fontsize=8, fontweight="bold", ha="center", va="center_baseline", fontfamily=[labels.BASE],
            path_effects=[withStroke(linewidth=2, foreground="black")], clip_on=True, zorder=3.5,
        )  # fmt: skip


def _outline(axes: Axes, left: float, top: float, right: float, bottom: float, colour: object) -> None:
    """A rectangle in white on black, which is seen on any picture."""
    for face, edge, width in ((colour, "black", 2.6), ("none", "white", 1.4)):
        axes.add_patch(
            Rectangle((left, top), right - left, bottom - top, facecolor=face, edgecolor=edge, linewidth=width, zorder=3)  # type: ignore[arg-type, unused-ignore]
        )


def _draw_pixels(axes: Axes, result: Maps, pixels: Picture) -> None:
    """Pixels over the whole picture's extent."""
    height, width = result.picture_size
    smooth = max(pixels.shape[:2]) >= 300
    axes.imshow(pixels, extent=(0, width, height, 0), interpolation="antialiased" if smooth else "nearest")


def _frame(axes: Axes, result: Maps) -> None:
    """No ticks, the picture in view, a thin line round what the model saw where that is not all."""
    view = view_of(result)
    axes.set(xlim=(view.left, view.right), ylim=(view.bottom, view.top), aspect="equal", xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    seen = result.seen
    if is_cropped(result):
        box = (seen.left, seen.top), seen.right - seen.left, seen.bottom - seen.top
        axes.add_patch(Rectangle(*box, facecolor="none", edgecolor=INK, linewidth=0.8, linestyle=(0, (4, 3))))


def _side(result: Maps) -> int:
    """The longer side, in pixels, at which a picture is drawn: where a part of it is in view, that part is as sharp."""
    view, longest = view_of(result), max(result.picture_size)
    part = max(view.right - view.left, view.bottom - view.top) / longest
    return min(max(DRAWN_SIDE, longest), round(DRAWN_SIDE / part))
