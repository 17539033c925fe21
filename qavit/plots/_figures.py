"""Figures of heatmaps by matplotlib; nothing here but `plot` and `show` touches pyplot."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from .._base.arguments import real_number
from .._base.files import PathLike, write_whole
from .._base.warnings import QavitWarning, warn
from ..heatmaps._maps import Maps
from . import _labels as labels
from ._axes import draw
from ._look import NOTEBOOK_JPEG, PANEL_KINDS, Cmap, Kind, Look, PanelKind, is_cropped, notes_of, view_of
from ._panels import FAINT, INK, Panel, answers_in_words, heading
from ._pixels import check_weight, colormap, scale_of
from ._sheet import SMALL_LINE, SMALL_SIZE, TITLE_LETTER, TITLE_SIZE, Bar, Place, bar_of, fitted, sheet_of, small_print

_WITHOUT_WINDOWS = {"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"}


class HeatmapFigure(Figure):
    """A figure outside pyplot that a notebook shows all the same."""

    def _repr_jpeg_(self) -> bytes:
        return render(self, "jpg", 100, NOTEBOOK_JPEG)


def make_figure(result: Maps, kind: Optional[Kind], look: Look, figure: Optional[Figure] = None) -> Figure:
    """Draw a result, on an empty figure, which is resized, or on a new one; see `HeatmapResult.figure`."""
    sheet = sheet_of(result, kind, look)
    if figure is None:
        figure = HeatmapFigure()
        FigureCanvasAgg(figure)
    figure.set_size_inches(sheet.width, sheet.height)
    figure.set_facecolor("white")

    def axes_at(place: Place) -> Axes:
        width, height = sheet.width, sheet.height
        return figure.add_axes((place.left / width, place.bottom / height, place.width / width, place.height / height))

    for place, panel in sheet.panels:
        draw(axes_at(place), result, panel, look)
    if sheet.bar is not None:
        axes = axes_at(sheet.bar.place)
        _dress_bar(figure.colorbar(_mappable(look.cmap, sheet.bar.scale), cax=axes), sheet.bar)
    for line in sheet.lines:
        figure.text(
            line.x / sheet.width, line.y / sheet.height, labels.plain(line.text), fontsize=line.size, color=line.colour,
            ha="center" if line.centred else "left", va="baseline", fontfamily=labels.families(line.text),
        )  # fmt: skip
    return figure


def plot(
    result: Maps,
    ax: Union[Axes, Sequence[Axes], npt.NDArray[Any], None],
    question: Union[int, str, None],
    kind: PanelKind,
    look: Look,
    title: Optional[str],
) -> Any:
    """Draw maps on axes, one each; see `HeatmapResult.plot`."""
    if kind not in PANEL_KINDS:
        raise ValueError(f"kind: {kind!r} is unknown; expected one of {', '.join(map(repr, PANEL_KINDS))}")
    check_weight(look.image_weight)
    numbers = list(range(len(result))) if question is None else [result.number_of(question)]
    scales = [scale_of(result.maps if look.shared else result.maps[number], look.vmin, look.vmax) for number in numbers]
    given = [] if ax is None else [ax] if isinstance(ax, Axes) else list(np.asarray(ax, dtype=object).ravel())
    if ax is not None and len(given) != len(numbers):
        raise ValueError(f"ax: {len(given)} axes for {len(numbers)} questions, expected one each; question= chooses one")
    general = [*notes_of(result, None), *(["dashed: what the model saw"] if is_cropped(result) else [])]
    below = [[answers_in_words(result, number), *notes_of(result, number)] for number in numbers]
    every = given
    if not given:
        every, width = _new_axes(view_of(result).aspect, below, general)
    figure: Any = every[0].get_figure()
    for axes, number, own, scale in zip(every, numbers, below, scales):
        draw(axes, result, Panel(kind, result.maps[number], scale), look)
        if given:
            width = axes.get_window_extent().width / figure.dpi
        lines = "\n".join(fitted(heading(result, number) if title is None else title, width, TITLE_LETTER))
        axes.set_title(labels.plain(lines), fontfamily=labels.families(lines), fontsize=TITLE_SIZE)
        small = "\n".join(small_print(own + general if given else own, width))
        axes.set_xlabel(labels.plain(small), fontfamily=labels.families(small), fontsize=SMALL_SIZE, color=FAINT)
    if look.colorbar and kind != "original":
        same = look.shared or len(numbers) == 1
        bar = bar_of(Place(0.0, 0.0, 0.13, 3.0), scales[0] if same else (0.0, 1.0), result.maps, same)
        _dress_bar(figure.colorbar(_mappable(look.cmap, bar.scale), ax=every), bar)
    if isinstance(ax, Axes) or (ax is None and len(every) == 1):
        return every[0]
    drawn = np.empty(len(every), dtype=object)
    drawn[:] = every
    return drawn


def render(figure: Figure, format: str = "png", dpi: float = 150, options: Optional[Mapping[str, int]] = None) -> bytes:
    """A figure as the bytes of a file.

    Parameters
    ----------
    figure : matplotlib Figure
    format : str
        "png", "jpg", "webp", "pdf", "svg", ...: what matplotlib can write.
    dpi : float
        Pixels per inch.
    options : dict, optional
        Of Pillow, for files that it writes.
    """
    buffer = io.BytesIO()
    extra: dict[str, Any] = {"pil_kwargs": dict(options)} if options else {}  # which other files refuse
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(buffer, format=format, dpi=dpi, **extra)
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
    """Show a figure in a window of pyplot."""
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
    lines = max(1, *(len(small_print(texts, width)) for texts in below))
    small = small_print(general, total)
    height = rows * (width * aspect + 0.55 + SMALL_LINE * lines) + (SMALL_LINE * (len(small) + 1) if small else 0.0)
    figure: Figure
    try:
        from matplotlib import pyplot

        figure = pyplot.figure(figsize=(total, height), layout="constrained")
    except ImportError:  # its backend cannot be loaded, as where there is no display
        figure = HeatmapFigure(figsize=(total, height), layout="constrained")
        FigureCanvasAgg(figure)
    if small:
        text = "\n".join(small)
        figure.supxlabel(labels.plain(text), fontsize=SMALL_SIZE, color=FAINT, fontfamily=labels.families(text))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for spare in grid[len(below) :]:
        spare.remove()
    return list(grid[: len(below)]), width


def _dress_bar(bar: Any, plan: Bar) -> None:
    """Ticks and name of a colour bar."""
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL_SIZE, color=FAINT, labelcolor=INK, length=2.5)
    bar.set_ticks([value for value, _ in plan.ticks])
    bar.set_ticklabels([text for _, text in plan.ticks], fontfamily=[labels.BASE])
    bar.set_label(plan.name, fontsize=SMALL_SIZE, color=FAINT, fontfamily=[labels.BASE])


def _mappable(cmap: Cmap, scale: tuple[float, float]) -> ScalarMappable:
    """What a colour bar needs to know."""
    return ScalarMappable(Normalize(*scale), colormap(cmap))
