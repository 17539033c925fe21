"""Figures of heatmaps, drawn by matplotlib; nothing here but `show` touches pyplot."""

from __future__ import annotations

import functools
import io
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np

from .._base.arguments import real_number, whole_number
from .._base.files import PathLike, write_whole
from .._base.types import FloatArray
from .._result import HeatmapResult
from . import _labels as labels
from ._panels import (
    CAPTION_SIZE,
    FAINT,
    INK,
    KINDS,
    NOTE_SIZE,
    TITLE_SIZE,
    Box,
    _Cell,
    _cells,
    _draw_heatmap,
    _draw_original,
    _draw_overlay,
    _draw_patches,
    _heading,
    _Style,
    how_read,
)
from ._pixels import Cmap, Scale, check_weight, colormap, scale_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE, SMALL_LINE = 0.185, 0.165  # pitch of titles and notes, inches
_WITHOUT_WINDOWS = {"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"}


def make_figure(
    result: HeatmapResult,
    kind: Optional[str] = None,
    *,
    cmap: Cmap = "jet",
    image_weight: Optional[float] = None,
    top: int = 5,
    columns: Optional[int] = None,
    blocks: Optional[Sequence[int]] = None,
    shared: bool = True,
    colorbar: bool = True,
    caption: Optional[str] = None,
    figure: Optional[Figure] = None,
) -> Figure:
    """Draw a result.

    Parameters
    ----------
    result : HeatmapResult
    kind : str, optional
        "questions", "panels", "original", "heatmap", "overlay", "patches", "blocks" or "words"; see
        `HeatmapResult.figure`. By default "panels" for one question and "questions" for several.
    cmap : str or Colormap
    image_weight : float, optional
        The picture's part of the sum; by default the colours fade in with the map. See `overlay`.
    top : int
        How many patches to number.
    columns : int, optional
        Panels in a row.
    blocks : sequence of int, optional
        For "blocks": which; by default up to eight, evenly spread, the result's own among them.
    shared : bool
        One colour scale for all panels; False: each panel has its own, and the colour bar says low and high.
    colorbar : bool
    caption : str, optional
        The line at the bottom; by default the block and the method. "" for none.
    figure : matplotlib Figure, optional
        An empty figure to draw on, which is resized; by default a new one, outside pyplot.

    Returns
    -------
    matplotlib.figure.Figure
    """
    kind = kind or ("panels" if len(result) == 1 else "questions")
    if kind not in KINDS:
        raise ValueError(f"kind: {kind!r} is unknown; expected one of {', '.join(map(repr, KINDS))}")
    check_weight(image_weight)
    if columns is not None and whole_number(columns, "columns") < 1:
        raise ValueError(f"columns: got {columns}, expected at least 1")
    if whole_number(top, "top") < 1:
        raise ValueError(f"top: got {top}, expected at least 1")
    cells, per_row, maps = _cells(result, kind, cmap, image_weight, top, blocks, shared)
    if caption is None:
        caption = _caption(result, kind, shared)
    bar = colorbar and kind != "original"
    return _lay_out(result, cells, columns or per_row, maps, cmap, shared, bar, caption, figure)


def plot(
    result: HeatmapResult,
    ax: Optional[Axes] = None,
    *,
    question: Union[int, str] = 0,
    kind: str = "overlay",
    colorbar: bool = True,
    cmap: Cmap = "jet",
    image_weight: Optional[float] = None,
    title: Optional[str] = None,
) -> Axes:
    """Draw one map on given axes, or on a new figure; see `HeatmapResult.plot`."""
    draws = {"original": _draw_original, "heatmap": _draw_heatmap, "overlay": _draw_overlay, "patches": _draw_patches}
    if kind not in draws:
        raise ValueError(f"kind: {kind!r} is unknown; expected one of {', '.join(map(repr, draws))}")
    check_weight(image_weight)
    number = result.number_of(question)
    heading = _heading(result, result.questions[number]) if title is None else title
    style = _Style(cmap, image_weight, 5, scale_of(result.maps))
    values = result.maps[number]

    def draw(axes: Axes) -> None:
        draws[kind](axes, result, values, style)

    if ax is None:
        cell = _Cell(draw, heading)
        bar = colorbar and kind != "original"
        drawn = _lay_out(result, [cell], 1, result.maps, cmap, True, bar, "", None)
        _show_in_notebooks(drawn.axes[0], drawn)
        return drawn.axes[0]
    draw(ax)
    if heading:
        lines = "\n".join(labels.wrap(heading, 44))
        ax.set_title(labels.plain(lines), fontfamily=labels.families(lines), fontsize=TITLE_SIZE)
    if colorbar and kind != "original":
        figure: Any = ax.get_figure()
        _dress_bar(figure.colorbar(_mappable(cmap, style.scale), ax=ax), result.maps, True)
    return ax


def render(figure: Figure, format: str = "png", dpi: int = 150) -> bytes:
    """A figure as the bytes of a file.

    Parameters
    ----------
    figure : matplotlib Figure
    format : str
        "png", "jpg", "webp", "pdf", "svg", ...: what matplotlib can write.
    dpi : int
        Pixels per inch.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(buffer, format=format, dpi=dpi)
    return buffer.getvalue()


def save_figure(figure: Figure, path: PathLike, dpi: int = 150) -> Path:
    """Write a figure as its file name's ending says, whole or not at all."""
    target = Path(path)
    known = figure.canvas.get_supported_filetypes()
    ending = target.suffix.lower().lstrip(".")
    if ending not in known:
        usual = [name for name in ("png", "jpg", "webp", "pdf", "svg") if name in known]
        raise ValueError(
            f"path: {target.name!r} ends in {target.suffix!r}; expected .{', .'.join(usual)} or another of matplotlib's for "
            "a figure (of a result also .html, .npz or .npy)"
        )
    if not 10 <= real_number(dpi, "dpi") <= 2400:
        raise ValueError(f"dpi: got {dpi}, expected 10 to 2400")
    return write_whole(target, render(figure, ending, dpi))


def show(result: HeatmapResult, kind: Optional[str] = None, **options: Any) -> None:
    """Show a figure in a notebook, or in a window of pyplot."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None and hasattr(shell, "kernel"):
        from IPython.display import Image, display  # type: ignore[import-not-found, unused-ignore]

        display(Image(render(make_figure(result, kind, **options), "png", dpi=100)))  # type: ignore[no-untyped-call, unused-ignore]
        return
    from matplotlib import pyplot

    figure = pyplot.figure()
    try:
        make_figure(result, kind, figure=figure, **options)
    except BaseException:
        pyplot.close(figure)
        raise
    pyplot.show()
    if pyplot.get_backend().lower() in _WITHOUT_WINDOWS:
        pyplot.close(figure)
        warnings.warn(
            "there is no display, so no figure was shown; result.save('heatmaps.png') writes it to a file", stacklevel=3
        )


def _lay_out(
    result: HeatmapResult,
    cells: list[_Cell],
    per_row: int,
    maps: FloatArray,
    cmap: Cmap,
    shared: bool,
    colorbar: bool,
    caption: str,
    figure: Optional[Figure],
) -> Figure:
    """Place panels in rows, in inches, so that pictures of any shape sit without gaps; bar right, caption below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    per_row = min(per_row, len(cells))
    rows = [cells[start : start + per_row] for start in range(0, len(cells), per_row)]
    aspect = result.picture_size[0] / result.picture_size[1]
    room = 3.3 if per_row <= 2 else 2.9 if per_row <= 4 else 2.2
    width = min(room, 1.45 * room / aspect)
    height = max(width * aspect, 0.3)
    cell_width = max(width, 1.5)
    fit = max(12, int(cell_width / 0.079))
    heads = [max(len(_title_lines(cell.title, fit)) for cell in row) * LINE for row in rows]
    feet = [max(len(labels.wrap(cell.note, fit + 4)) if cell.note else 0 for cell in row) * SMALL_LINE for row in rows]
    heads = [head + 0.09 if head else 0.0 for head in heads]
    gap, margin = 0.16, 0.14
    right = 1.05 if colorbar else margin
    bottom = margin + (0.26 if caption else 0.0)
    total_width = margin + per_row * cell_width + (per_row - 1) * gap + right
    total_height = margin + bottom + sum(heads) + sum(feet) + len(rows) * height + (len(rows) - 1) * 0.22 + 0.04
    if figure is None:
        figure = Figure()
        FigureCanvasAgg(figure)
        _show_in_notebooks(figure, figure)
    figure.set_size_inches(total_width, total_height)
    figure.set_facecolor("white")
    top = total_height - margin
    first, last = top - heads[0], top
    for row, head, foot in zip(rows, heads, feet):
        top -= head
        for column, cell in enumerate(row):
            left = margin + column * (cell_width + gap)
            inset = (cell_width - width) / 2
            box = (left + inset, top - height, width, height)
            _draw_cell(figure, cell, box, left, cell_width, fit, (total_width, total_height))
        last = top - height
        top = last - foot - 0.22
    if colorbar:
        # Beside very wide pictures the bar is taller than they are, so that its ticks have room.
        tall = min(max(first - last, 1.0), 3.2, total_height - 2 * margin - 0.2)
        middle = min(max((first + last) / 2, margin + 0.1 + tall / 2), total_height - margin - 0.1 - tall / 2)
        place = (total_width - right + 0.14, middle - tall / 2, 0.13, tall)
        axes = figure.add_axes(_fractions(place, total_width, total_height))
        bar = figure.colorbar(_mappable(cmap, scale_of(maps) if shared else (0.0, 1.0)), cax=axes)
        _dress_bar(bar, maps, shared, tall)
    if caption:
        lines = "\n".join(labels.wrap(caption, int((total_width - 2 * margin) / 0.062), 1))
        figure.text(
            margin / total_width, margin * 0.8 / total_height, labels.plain(lines), fontsize=CAPTION_SIZE, color=FAINT,
            fontfamily=labels.families(lines), va="bottom",
        )  # fmt: skip
    return figure


def _draw_cell(
    figure: Figure,
    cell: _Cell,
    box: Box,
    left: float,
    cell_width: float,
    fit: int,
    total: tuple[float, float],
) -> None:
    """One panel with its title above and its note below; lengths in inches."""
    axes = figure.add_axes(_fractions(box, *total))
    cell.draw(axes)
    centred = box[2] < cell_width - 1e-6
    x = (left + cell_width / 2) / total[0] if centred else box[0] / total[0]
    align = "center" if centred else "left"
    above = _title_lines(cell.title, fit)
    below = labels.wrap(cell.note, fit + 4) if cell.note else []
    texts = [
        (line, box[1] + box[3] + 0.1 + LINE * (len(above) - 1 - number), TITLE_SIZE, INK)
        for number, line in enumerate(above)
    ] + [(line, box[1] - 0.17 - SMALL_LINE * number, NOTE_SIZE, FAINT) for number, line in enumerate(below)]
    for line, y, size, colour in texts:
        figure.text(
            x, y / total[1], labels.plain(line), fontsize=size, color=colour, ha=align, va="baseline",
            fontfamily=labels.families(line),
        )  # fmt: skip


def _dress_bar(bar: Any, maps: FloatArray, shared: bool, tall: float = 3.0) -> None:
    """Ticks and name of a colour bar so many inches tall: percentages where each map is a distribution."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=CAPTION_SIZE, color=FAINT, labelcolor=INK, length=2.5)
    if not shared:
        bar.set_ticks([0.0, 1.0])
        bar.set_ticklabels(["low", "high"])
        return
    bar.ax.yaxis.set_major_locator(MaxNLocator(5 if tall > 1.2 else 3))
    if np.allclose(maps.sum(axis=(-2, -1)), 1.0, atol=1e-3):
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
        text = "share of attention, each patch" if tall > 1.8 else "share"
    else:
        text = "value of each patch" if tall > 1.2 else "value"
    bar.set_label(text, fontsize=CAPTION_SIZE, color=FAINT, fontfamily=[labels.BASE])
    for tick in bar.ax.get_yticklabels():
        tick.set_fontfamily([labels.BASE])


def _show_in_notebooks(object: Any, figure: Figure) -> None:
    """Let a notebook show a figure, or the axes in it, that pyplot knows nothing of."""
    object._repr_png_ = functools.partial(render, figure, "png", 100)


def _mappable(cmap: Cmap, scale: Scale) -> Any:
    """What a colour bar needs to know."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    low, high = scale
    if 0.0 < low < 0.005 * high:
        low = 0.0  # invisible in the colours, and the bar begins with a number
    return ScalarMappable(Normalize(low, high if high > low else low + max(abs(low) * 1e-3, 1e-6)), colormap(cmap))


def _title_lines(title: str, columns: int) -> list[str]:
    """A title's lines; its own line breaks are kept."""
    return [line for part in title.split("\n") for line in labels.wrap(part, columns)] if title else []


def _caption(result: HeatmapResult, kind: str, shared: bool) -> str:
    """How the maps of a figure were read, and what its panels share."""
    if kind == "original":
        return ""
    how, panels = f"Block {result.block}: {how_read(result.method)}", "questions"
    if kind == "blocks":
        how, panels = f"Each block: {how_read(result.method)}", "blocks"
    elif kind == "words":
        how, panels = "Which patches look at each word", "words"
    many = shared and (len(result) > 1 or panels != "questions")
    return f"{how}; one colour scale for all {panels}" if many else how


def _fractions(inches: Box, width: float, height: float) -> Box:
    """(left, bottom, width, height) in inches as fractions of the figure."""
    return inches[0] / width, inches[1] / height, inches[2] / width, inches[3] / height
