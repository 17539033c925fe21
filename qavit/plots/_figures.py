"""Figures of heatmaps, drawn by matplotlib; nothing here but `plot` and `show` touches pyplot."""

from __future__ import annotations

import io
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .._base.arguments import real_number, whole_number
from .._base.files import PathLike, write_whole
from .._base.types import FloatArray
from .._base.warnings import QavitWarning, warn
from ..heatmaps._maps import Maps
from . import _labels as labels
from ._look import (
    KINDS,
    Cmap,
    Kind,
    Look,
    PanelKind,
    are_distributions,
    how_read,
    is_cropped,
    is_zoomed,
    notes_of,
    peaks_in_words,
    view_of,
)
from ._panels import DRAWS, FAINT, INK, Cell, Panels, answers_in_words, heading, panels_of
from ._pixels import check_weight, colormap, scale_of

TITLE_SIZE, NOTE_SIZE, SMALL_SIZE = 10.0, 9.0, 8.0
TITLE_LINE, NOTE_LINE, SMALL_LINE = 0.185, 0.165, 0.145  # their pitches in inches
TITLE_LETTER, NOTE_LETTER, SMALL_LETTER = 0.079, 0.071, 0.062  # their widths
MOST_LINES = 8  # of one text
GAP, MARGIN, BETWEEN_ROWS = 0.16, 0.14, 0.22  # inches
_WITHOUT_WINDOWS = {"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"}


class HeatmapFigure(Figure):
    """A figure outside pyplot that a notebook shows all the same."""

    def _repr_png_(self) -> bytes:
        return render(self, "png", dpi=100)


def make_figure(result: Maps, kind: Optional[Kind], look: Look, figure: Optional[Figure] = None) -> Figure:
    """Draw a result, on an empty figure, which is resized, or on a new one; see `HeatmapResult.figure`."""
    kind = kind or ("panels" if len(result) == 1 else "questions")
    if kind not in KINDS:
        raise ValueError(f"kind: {kind!r} is unknown; expected one of {', '.join(map(repr, KINDS))}")
    check_weight(look.image_weight)
    if look.columns is not None and whole_number(look.columns, "columns") < 1:
        raise ValueError(f"columns: got {look.columns}, expected at least 1")
    if whole_number(look.top, "top") < 1:
        raise ValueError(f"top: got {look.top}, expected at least 1")
    panels = panels_of(result, kind, look)
    bar = None
    if kind != "original" and look.colorbar:
        bar = scale_of(panels.maps, look.vmin, look.vmax) if look.shared else (0.0, 1.0)
    lines = [_caption(result, kind, panels, look) if look.caption is None else look.caption]
    return _lay_out(result, panels, look, bar, lines + notes_of(result, None), figure)


def plot(
    result: Maps,
    ax: Union[Axes, Sequence[Axes], npt.NDArray[Any], None],
    question: Union[int, str, None],
    kind: PanelKind,
    look: Look,
    title: Optional[str],
) -> Any:
    """Draw maps on axes, one each; see `HeatmapResult.plot`."""
    if kind not in DRAWS:
        raise ValueError(f"kind: {kind!r} is unknown; expected one of {', '.join(map(repr, DRAWS))}")
    check_weight(look.image_weight)
    scale = scale_of(result.maps, look.vmin, look.vmax)
    numbers = list(range(len(result))) if question is None else [result.number_of(question)]
    given = [] if ax is None else [ax] if isinstance(ax, Axes) else list(np.asarray(ax, dtype=object).ravel())
    if ax is not None and len(given) != len(numbers):
        raise ValueError(f"ax: {len(given)} axes for {len(numbers)} questions, expected one each; question= chooses one")
    general = [*notes_of(result, None), *(["dashed: what the model saw"] if is_cropped(result) else [])]
    below = [[answers_in_words(result, number), *notes_of(result, number)] for number in numbers]
    every = given
    if not given:
        every, width = _new_axes(view_of(result).aspect, below, general)
    figure: Any = every[0].get_figure()
    for axes, number, own in zip(every, numbers, below):
        DRAWS[kind](axes, result, result.maps[number], scale, look)
        if given:
            width = axes.get_window_extent().width / figure.dpi
        lines = "\n".join(_fitted(heading(result, number) if title is None else title, width, TITLE_LETTER))
        axes.set_title(labels.plain(lines), fontfamily=labels.families(lines), fontsize=TITLE_SIZE)
        small = _small_print(own + general if given else own, width)
        axes.set_xlabel(labels.plain(small), fontfamily=labels.families(small), fontsize=SMALL_SIZE, color=FAINT)
    if look.colorbar and kind != "original":
        _dress_bar(figure.colorbar(_mappable(look.cmap, scale), ax=every), result.maps, True)
    if isinstance(ax, Axes) or (ax is None and len(every) == 1):
        return every[0]
    drawn = np.empty(len(every), dtype=object)
    drawn[:] = every
    return drawn


def render(figure: Figure, format: str = "png", dpi: float = 150) -> bytes:
    """A figure as the bytes of a file.

    Parameters
    ----------
    figure : matplotlib Figure
    format : str
        "png", "jpg", "webp", "pdf", "svg", ...: what matplotlib can write.
    dpi : float
        Pixels per inch.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(buffer, format=format, dpi=dpi)
    return buffer.getvalue()


def save_figure(figure: Figure, path: PathLike, dpi: float = 150) -> Path:
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


def show(result: Maps, kind: Optional[Kind], look: Look) -> None:
    """Show a figure in a notebook, or in a window of pyplot."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None and hasattr(shell, "kernel"):
        from IPython.display import Image, display  # type: ignore[import-not-found, unused-ignore]

        display(Image(render(make_figure(result, kind, look), "png", dpi=100)))  # type: ignore[no-untyped-call, unused-ignore]
        return
    from matplotlib import pyplot

    figure = pyplot.figure()
    try:
        make_figure(result, kind, look, figure)
    except BaseException:
        pyplot.close(figure)
        raise
    pyplot.show()
    if pyplot.get_backend().lower() in _WITHOUT_WINDOWS:
        pyplot.close(figure)
        warn(QavitWarning, "there is no display, so no figure was shown; result.save('heatmaps.png') writes it to a file")


def _new_axes(aspect: float, below: list[list[str]], general: list[str]) -> tuple[list[Axes], float]:
    """Axes with room for what stands below each, on a new figure of pyplot where that can be had; and their width."""
    columns = min(len(below), 4 if len(below) != 5 else 3)
    rows = math.ceil(len(below) / columns)
    width = min(4.0 if columns == 1 else 3.2, 5.0 / aspect)
    total = columns * width + 1.2
    lines = max(_small_print(texts, width).count("\n") + 1 for texts in below)
    small = _small_print(general, total)
    height = rows * (width * aspect + 0.55 + SMALL_LINE * lines) + (SMALL_LINE * (small.count("\n") + 2) if small else 0.0)
    figure: Figure
    try:
        from matplotlib import pyplot

        figure = pyplot.figure(figsize=(total, height), layout="constrained")
    except ImportError:  # its backend cannot be loaded, as where there is no display
        figure = HeatmapFigure(figsize=(total, height), layout="constrained")
        FigureCanvasAgg(figure)
    if small:
        figure.supxlabel(labels.plain(small), fontsize=SMALL_SIZE, color=FAINT, fontfamily=labels.families(small))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for spare in grid[len(below) :]:
        spare.remove()
    return list(grid[: len(below)]), width


def _small_print(texts: list[str], width: float) -> str:
    """Texts in lines of a width in inches."""
    return "\n".join(line for text in texts if text for line in _fitted(text, width, SMALL_LETTER))


def _lay_out(
    result: Maps,
    panels: Panels,
    look: Look,
    bar: Optional[tuple[float, float]],
    caption: list[str],
    figure: Optional[Figure],
) -> Figure:
    """Place panels in rows, in inches, so that pictures of any shape sit without gaps; bar right, caption below."""
    cells = panels.cells
    aspect = view_of(result).aspect
    strip = aspect < 0.34 and look.columns is None  # too wide to stand beside others
    per_row = 1 if strip else min(look.columns or panels.per_row, len(cells))
    rows = [cells[start : start + per_row] for start in range(0, len(cells), per_row)]
    room = 7.2 if strip else 3.3 if per_row <= 2 else 2.9 if per_row <= 4 else 2.2
    width = min(room, 1.45 * room / aspect)
    height = max(width * aspect, 0.3)
    cell_width = max(width, 1.5)
    right = 1.05 if bar is not None else MARGIN
    total_width = MARGIN + per_row * cell_width + (per_row - 1) * GAP + right
    texts = [[_texts(cell, cell_width, per_row) for cell in row] for row in rows]
    heads = [max(len(above) for above, _ in row) * TITLE_LINE for row in texts]
    heads = [head + 0.09 if head else 0.0 for head in heads]
    feet = [max(sum(pitch for *_, pitch in below) for _, below in row) for row in texts]
    small = _small_print(caption, total_width - 2 * MARGIN).splitlines()
    bottom = MARGIN + (0.12 + SMALL_LINE * len(small) if small else 0.0)
    total_height = MARGIN + bottom + sum(heads) + sum(feet) + len(rows) * height + (len(rows) - 1) * BETWEEN_ROWS + 0.04
    if figure is None:
        figure = HeatmapFigure()
        FigureCanvasAgg(figure)
    figure.set_size_inches(total_width, total_height)
    figure.set_facecolor("white")
    total = total_width, total_height
    top = total_height - MARGIN
    first, last = top - heads[0], top
    for row, row_texts, head, foot in zip(rows, texts, heads, feet):
        top -= head
        for column, (cell, (above, below)) in enumerate(zip(row, row_texts)):
            left = MARGIN + column * (cell_width + GAP)
            inset = (cell_width - width) / 2
            cell.draw(figure.add_axes(_fractions((left + inset, top - height, width, height), total)))
            x, align = (left + cell_width / 2, "center") if inset > 1e-6 and cell.span == 1 else (left + inset, "left")
            for number, line in enumerate(reversed(above)):
                _write(figure, line, (x, top + 0.1 + TITLE_LINE * number), total, TITLE_SIZE, INK, align)
            y = top - height - 0.02
            for line, size, pitch in below:
                y -= pitch
                _write(figure, line, (x, y), total, size, FAINT, align)
        last = top - height
        top = last - foot - BETWEEN_ROWS
    if bar is not None:
        # Beside very wide pictures the bar is taller than they are, so that its ticks have room.
        tall = min(max(first - last, 1.0), 3.2, total_height - 2 * MARGIN - 0.2)
        middle = min(max((first + last) / 2, MARGIN + 0.1 + tall / 2), total_height - MARGIN - 0.1 - tall / 2)
        place = (total_width - right + 0.14, middle - tall / 2, 0.13, tall)
        axes = figure.add_axes(_fractions(place, total))
        _dress_bar(figure.colorbar(_mappable(look.cmap, bar), cax=axes), panels.maps, look.shared, tall)
    for number, line in enumerate(reversed(small)):
        _write(figure, line, (MARGIN, MARGIN * 0.8 + SMALL_LINE * number), total, SMALL_SIZE, FAINT, "left")
    return figure


def _texts(cell: Cell, width: float, per_row: int) -> tuple[list[str], list[tuple[str, float, float]]]:
    """A panel's lines above it, and those below it, each with its size and pitch."""
    above = [line for part in cell.title.split("\n") for line in _fitted(part, width, TITLE_LETTER)]
    span = min(cell.span, per_row)
    wide = width * span + GAP * (span - 1)
    below = [(line, NOTE_SIZE, NOTE_LINE) for line in (_fitted(cell.note, wide, NOTE_LETTER) if cell.note else [])]
    below += [(line, SMALL_SIZE, SMALL_LINE) for line in (_fitted(cell.small, wide, SMALL_LETTER) if cell.small else [])]
    return above if cell.title else [], below


def _fitted(text: str, width: float, letter: float) -> list[str]:
    """A text in lines of a width in inches, with letters of another."""
    return labels.wrap(text, max(12, int(width / letter)), MOST_LINES)


def _write(
    figure: Figure, line: str, place: tuple[float, float], total: tuple[float, float], size: float, colour: str, align: str
) -> None:
    """One line of text at a place in inches."""
    figure.text(
        place[0] / total[0], place[1] / total[1], labels.plain(line), fontsize=size, color=colour, ha=align, va="baseline",
        fontfamily=labels.families(line),
    )  # fmt: skip


def _dress_bar(bar: Any, maps: FloatArray, shared: bool, tall: float = 3.0) -> None:
    """Ticks and name of a colour bar so many inches tall: percentages where each map is a distribution."""
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL_SIZE, color=FAINT, labelcolor=INK, length=2.5)
    if not shared:
        bar.set_ticks([0.0, 1.0])
        bar.set_ticklabels(["low", "high"])
        return
    bar.ax.yaxis.set_major_locator(MaxNLocator(5 if tall > 1.2 else 3))
    if are_distributions(maps):
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, 0 if bar.vmax > 0.125 else 1 if bar.vmax > 0.0125 else None))
        text = "share of attention, each patch" if tall > 1.8 else "share"
    else:
        text = "value of each patch" if tall > 1.2 else "value"
    bar.set_label(text, fontsize=SMALL_SIZE, color=FAINT, fontfamily=[labels.BASE])
    for tick in bar.ax.get_yticklabels():
        tick.set_fontfamily([labels.BASE])


def _mappable(cmap: Cmap, scale: tuple[float, float]) -> ScalarMappable:
    """What a colour bar needs to know."""
    low, high = scale
    return ScalarMappable(Normalize(low, high if high > low else low + max(abs(low) * 1e-3, 1e-6)), colormap(cmap))


def _caption(result: Maps, kind: Kind, panels: Panels, look: Look) -> str:
    """How the maps of a figure were read, how far they stand out, and what its panels share."""
    parts = []
    if kind != "original":
        how = "which patches look at each word" if kind == "words" else how_read(result.method)
        compared = kind if kind in ("blocks", "words") else "questions"
        parts = [f"{panels.which or f'Block {result.block}'}: {how}", peaks_in_words(panels.maps)]
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


def _fractions(inches: tuple[float, float, float, float], total: tuple[float, float]) -> tuple[float, float, float, float]:
    """(left, bottom, width, height) in inches as fractions of the figure."""
    return inches[0] / total[0], inches[1] / total[1], inches[2] / total[0], inches[3] / total[1]
