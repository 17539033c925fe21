"""Pictures of maps as arrays: colours, overlays, and the two functions that existing scripts call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional, Union

import numpy as np
import numpy.typing as npt

from .._base.arguments import finite_numbers, real_number
from .._base.tensors import detached
from .._base.types import FloatArray
from .._result import HeatmapResult
from ..heatmaps._grid import output_size, resample_map

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

Picture = npt.NDArray[np.uint8]
Scale = tuple[float, float]
Cmap = Union[str, "Colormap"]


def colorize(values: npt.ArrayLike, cmap: Cmap = "jet") -> Picture:
    """Colours of values from 0 to 1.

    Parameters
    ----------
    values : array [...]
        What lies outside 0 to 1 takes the colour of the nearer end; NaN takes that of 0.
    cmap : str or Colormap
        Any matplotlib colormap.

    Returns
    -------
    uint8 array [..., 3]
    """
    array = np.asarray(detached(values))
    if array.dtype.kind not in "fiub":
        raise TypeError(f"values: expected an array of real numbers, got {array.dtype} ({type(values).__name__})")
    clean = np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=1.0, neginf=0.0)
    table = (colormap(cmap)(np.linspace(0.0, 1.0, 256))[:, :3] * 255.0 + 0.5).astype(np.uint8)
    return np.asarray(table[(np.clip(clean, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)], dtype=np.uint8)


def overlay(
    result: HeatmapResult,
    question: Union[int, str] = 0,
    *,
    cmap: Cmap = "jet",
    image_weight: Optional[float] = None,
    size: Union[int, tuple[int, int], None] = None,
    resampling: str = "bicubic",
    values: Optional[npt.ArrayLike] = None,
    scale: Optional[Scale] = None,
) -> Picture:
    """The picture with one map over it, as pixels.

    Parameters
    ----------
    result : HeatmapResult
    question : int or str
        Which map, by its number or its question.
    cmap : str or Colormap
    image_weight : float, optional
        The picture's part of the sum, from 0 (colours alone) to 1 (the picture alone). By default the colours fade in
        with the map (as the power 0.7 of where a value lies between low and high, at most 0.85).
    size : int, (height, width) or None
        The picture's own size by default; an int is the longer side.
    resampling : "bicubic", "bilinear" or "nearest"
    values : array [gh, gw], optional
        Another map of the same picture, in place of the result's.
    scale : (low, high), optional
        The values of the colormap's two ends; by default the smallest and largest of all maps of the result.

    Returns
    -------
    uint8 array [height, width, 3]
        The part that the model did not see is faded, not coloured.
    """
    check_weight(image_weight)
    height, width = output_size(size, result.picture_size)
    chosen = result.maps[result.number_of(question)] if values is None else finite_numbers(values, "values")
    if chosen.ndim != 2:
        raise ValueError(f"values: shape {chosen.shape}, expected [gh, gw]")
    heat = resample_map(
        to_unit(chosen, scale or scale_of(result.maps)), result.seen, result.picture_size, (height, width), resampling
    )
    base = _resize(result.picture, (height, width)).astype(np.float32)
    part = 1.0 - 0.85 * heat[..., None] ** 0.7 if image_weight is None else np.float32(image_weight)
    mixed = part * base + (1.0 - part) * colorize(heat, cmap)
    inside = resample_map(np.ones(result.grid), result.seen, result.picture_size, (height, width), "nearest")[..., None] > 0
    faded = 0.4 * base + 0.6 * 236.0
    return np.asarray(np.where(inside, mixed, faded) + 0.5, dtype=np.uint8)


def colormap(cmap: Cmap) -> Colormap:
    """A colormap by name, or as it is."""
    import matplotlib
    from matplotlib.colors import Colormap

    if isinstance(cmap, Colormap):
        return cmap
    try:
        return matplotlib.colormaps[cmap]
    except (KeyError, TypeError):
        raise ValueError(f"cmap: {cmap!r} is not a matplotlib colormap; 'jet', 'viridis' and 'turbo' are") from None


def scale_of(maps: FloatArray) -> Scale:
    """The smallest and the largest value."""
    return float(maps.min()), float(maps.max())


def to_unit(values: FloatArray, scale: Scale) -> FloatArray:
    """Values on a scale, as 0 to 1; a flat scale gives 0."""
    low, high = scale
    if high <= low:
        return np.zeros_like(values)
    return np.asarray(np.clip((values - low) / (high - low), 0.0, 1.0), dtype=np.float32)


def check_weight(image_weight: Optional[float]) -> None:
    """Raise unless it is None or from 0 to 1."""
    if image_weight is not None and not 0.0 <= real_number(image_weight, "image_weight") <= 1.0:
        raise ValueError(f"image_weight: got {image_weight}, expected 0 to 1")


def _resize(picture: Picture, size: tuple[int, int]) -> Picture:
    """The picture at another size: smoothly made smaller, smoothly made larger."""
    if picture.shape[:2] == size:
        return picture
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BICUBIC))
