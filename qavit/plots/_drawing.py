"""What results can do with themselves on paper; matplotlib is loaded when it is used."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy.typing as npt

from .._base.files import PathLike, write_whole
from .._base.pictures import Picture
from .._base.types import Resampling
from ..heatmaps._archive import archive_of, array_of
from ..heatmaps._maps import Maps
from ._look import CMAP, FORMATS, NOTEBOOK_JPEG, Cmap, Kind, Look, PanelKind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Drawing(Maps):
    """The drawing half of `qavit.HeatmapResult`."""

    def overlay(
        self,
        question: Union[int, str] = 0,
        *,
        cmap: Cmap = CMAP,
        image_weight: Optional[float] = None,
        size: Union[int, tuple[int, int], None] = None,
        resampling: Resampling = "bicubic",
        vmin: Optional[float] = None,
        vmax: Optional[float] = None,
        shared: bool = True,
    ) -> Picture:
        """The picture with one map over it, as pixels.

        Parameters
        ----------
        question : int or str
            Which map, by its number or its question.
        cmap : str or Colormap
            Any of matplotlib's.
        image_weight : float, optional
            The picture's part of the sum, from 0 (colours alone) to 1 (the picture alone). By default the colours fade
            in with the map (as the power 0.7 of where a value lies on the scale, at most 0.85).
        size : int, (height, width) or None
            The picture's own size by default; an int is the longer side.
        resampling : {"bicubic", "bilinear", "nearest"}
        vmin, vmax : float, optional
            The values of the colormap's two ends; by default 0, and the peak or three times the mean of all maps of the
            result, whichever is more: a flat map looks flat.
        shared : bool
            Colours on the scale shared by all maps of the result; False: on one of this map alone.

        Returns
        -------
        uint8 array [height, width, 3]
            The part that the model did not see is faded, not coloured.
        """
        from ._pixels import overlay, scale_of

        values = self.maps[self.number_of(question)]
        scale = scale_of(self.maps if shared else values, vmin, vmax)
        return overlay(self, values, scale, cmap, image_weight, size, resampling)

    def plot(
        self,
        ax: Union[Axes, Sequence[Axes], npt.NDArray[Any], None] = None,
        *,
        question: Union[int, str, None] = None,
        kind: PanelKind = "overlay",
        cmap: Cmap = CMAP,
        image_weight: Optional[float] = None,
        vmin: Optional[float] = None,
        vmax: Optional[float] = None,
        shared: bool = True,
        boxes: Optional[float] = None,
        contours: bool = False,
        colorbar: bool = True,
        title: Optional[str] = None,
    ) -> Any:
        """Draw maps, each on axes of its own.

        Parameters
        ----------
        ax : matplotlib Axes or several, optional
            Where to draw, one for each question; by default a new figure of pyplot, which `pyplot.show` shows.
        question : int or str, optional
            One map alone, by its number or its question.
        kind : {"original", "heatmap", "overlay", "patches"}
        cmap, image_weight, vmin, vmax, shared
            As for `overlay`.
        boxes : float, optional
            Frames what stands out: the threshold of `HeatmapResult.boxes`, such as 0.5.
        contours : bool
            Lines at a quarter, a half and three quarters of the colour scale, in place of colours that hide the picture
            (with `image_weight`, over them).
        colorbar : bool
            Adds a colour bar; of several maps that are each on a scale of its own, one from low to high.
        title : str, optional
            The question by default; "" for none. The answer and notes stand below the axes.

        Returns
        -------
        matplotlib.axes.Axes, or an array of them
            An array where several were given or made.
        """
        from ._figures import plot

        return plot(
            self,
            ax,
            question,
            kind,
            Look(cmap, image_weight, vmin, vmax, shared, boxes=boxes, contours=contours, colorbar=colorbar),
            title,
        )

    def figure(
        self,
        kind: Optional[Kind] = None,
        *,
        cmap: Cmap = CMAP,
        image_weight: Optional[float] = None,
        vmin: Optional[float] = None,
        vmax: Optional[float] = None,
        shared: bool = True,
        top: int = 5,
        boxes: Optional[float] = None,
        contours: bool = False,
        columns: Optional[int] = None,
        blocks: Optional[Sequence[int]] = None,
        colorbar: bool = True,
        caption: Optional[str] = None,
    ) -> Figure:
        """A matplotlib figure that does not belong to pyplot.

        Parameters
        ----------
        kind : str, optional
            "questions": the picture and an overlay for each question, side by side, with one colour bar (the default
            for several questions); "panels": original, heatmap, overlay and patches, a row for each question (the
            default for one); "original", "heatmap", "overlay", "patches": one of them for each question; "blocks":
            block by block; "words": a map for each word; "heads": every head of the block, behind what was made of all.
        cmap, image_weight
            As for `overlay`.
        vmin, vmax : float, optional
            The values of the colour scale's two ends, as for `overlay`.
        shared : bool
            One colour scale for all panels; False: each panel has its own, and the colour bar says low and high.
        top : int
            How many patches to number.
        boxes : float, optional
            Frames what stands out: the threshold of `HeatmapResult.boxes`, such as 0.5.
        contours : bool
            Lines at a quarter, a half and three quarters of the colour scale, in place of colours that hide the picture
            (with `image_weight`, over them).
        columns : int, optional
            Panels in a row.
        blocks : sequence of int, optional
            For "blocks": which; by default up to eight, evenly spread, the result's own among them.
        colorbar : bool
        caption : str, optional
            The line at the bottom; by default the block, how it was read, and by how much the peak exceeds a flat map.
            Notes stand below it in any case.
        """
        from ._figures import make_figure

        look = Look(cmap, image_weight, vmin, vmax, shared, top, boxes, contours, columns, blocks, colorbar, caption)
        return make_figure(self, kind, look)

    def save(
        self,
        path: PathLike,
        kind: Optional[Kind] = None,
        *,
        dpi: Optional[float] = None,
        cmap: Cmap = CMAP,
        image_weight: Optional[float] = None,
        vmin: Optional[float] = None,
        vmax: Optional[float] = None,
        shared: bool = True,
        top: int = 5,
        boxes: Optional[float] = None,
        contours: bool = False,
        columns: Optional[int] = None,
        blocks: Optional[Sequence[int]] = None,
        colorbar: bool = True,
        caption: Optional[str] = None,
    ) -> Path:
        """Save as the file name's ending says.

        Parameters
        ----------
        path : str or path
            .png, .jpg, .webp, .pdf or .svg: a figure; .html: the page of `to_html`; .npy: the maps; .npz: the maps and
            all that belongs to them (read with `np.load`, no pickle).
        kind, cmap, image_weight, vmin, vmax, shared, top, boxes, contours, columns, blocks, colorbar, caption
            As for `figure`; a page takes cmap, vmin, vmax and shared.
        dpi : float, optional
            Pixels per inch of a figure, 150 by default.

        Returns
        -------
        pathlib.Path
            The file, written whole or not at all.

        Raises
        ------
        ValueError
            The ending is unknown, or an option means nothing to such a file.
        """
        target = Path(path)
        ending = target.suffix.lower()
        look = Look(cmap, image_weight, vmin, vmax, shared, top, boxes, contours, columns, blocks, colorbar, caption)
        given = look.changed() | ({"kind"} if kind is not None else set()) | ({"dpi"} if dpi is not None else set())
        if ending in {".npy", ".npz"}:
            _refuse(given, target)
            return write_whole(target, archive_of(self) if ending == ".npz" else array_of(self))
        if ending in {".html", ".htm"}:
            _refuse(given - {"cmap", "vmin", "vmax", "shared"}, target)
            return self.to_html(target, cmap=cmap, vmin=vmin, vmax=vmax, shared=shared)
        dpi = 150.0 if dpi is None else dpi
        if ending in FORMATS:
            return write_whole(target, _as_file(self, kind, look, ending, dpi))
        from ._figures import make_figure, save_figure

        return save_figure(make_figure(self, kind, look), target, dpi)

    def to_html(
        self,
        path: PathLike,
        *,
        title: Optional[str] = None,
        cmap: Cmap = CMAP,
        vmin: Optional[float] = None,
        vmax: Optional[float] = None,
        shared: bool = True,
        blocks: bool = True,
        heads: bool = False,
    ) -> Path:
        """One self-contained page to look at and pass on; it needs no network.

        Parameters
        ----------
        path : str or path
            The file to write.
        title : str, optional
            The page's heading.
        cmap : str or Colormap
            The colormap that it opens with.
        vmin, vmax : float, optional
            The values of the colour scale's two ends, as for `overlay`.
        shared : bool
            Whether it opens with one colour scale for all questions.
        blocks : bool
            Puts in the maps of every block where they can be computed.
        heads : bool
            Puts in the maps of every head of the result's block, to be chosen by number: 300,000 values at most.

        Raises
        ------
        ValueError
            There are no maps of heads, or too many of them for a page.
        """
        from ._page import render

        page = render(self, title, Look(cmap, vmin=vmin, vmax=vmax, shared=shared), blocks, heads)
        return write_whole(path, page.encode("utf-8"))

    def show(
        self,
        kind: Optional[Kind] = None,
        *,
        cmap: Cmap = CMAP,
        image_weight: Optional[float] = None,
        vmin: Optional[float] = None,
        vmax: Optional[float] = None,
        shared: bool = True,
        top: int = 5,
        boxes: Optional[float] = None,
        contours: bool = False,
        columns: Optional[int] = None,
        blocks: Optional[Sequence[int]] = None,
        colorbar: bool = True,
        caption: Optional[str] = None,
    ) -> None:
        """Show a figure: in a notebook as a picture, elsewhere in a window of pyplot. All is as for `figure`."""
        look = Look(cmap, image_weight, vmin, vmax, shared, top, boxes, contours, columns, blocks, colorbar, caption)
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if shell is not None and hasattr(shell, "kernel"):
            from IPython.display import Image, display  # type: ignore[import-not-found, unused-ignore]

            display(Image(_as_file(self, kind, look, ".jpg", 100.0, fine=True)))  # type: ignore[no-untyped-call, unused-ignore]
            return
        from ._figures import show

        show(self, kind, look)

    def _repr_jpeg_(self) -> bytes:
        return _as_file(self, None, Look(), ".jpg", 100.0, fine=True)


def _as_file(result: Maps, kind: Optional[Kind], look: Look, ending: str, dpi: float, fine: bool = False) -> bytes:
    """A figure as a file of pixels; drawn by matplotlib where only that sets its texts right."""
    options = NOTEBOOK_JPEG if fine else {}
    from ._raster import draw_pixels, encode

    image = draw_pixels(result, kind, look, dpi)
    if image is not None:
        return encode(image, ending, dpi, options)
    from ._figures import make_figure, render

    return render(make_figure(result, kind, look), ending[1:], dpi, options)


def _refuse(given: set[str], target: Path) -> None:
    """Raise for options that mean nothing to a file of this kind."""
    if given:
        raise ValueError(f"{', '.join(sorted(given))}: for figures alone, and {target.name!r} is not one")
