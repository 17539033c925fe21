"""Pictures of maps as arrays: colours and overlays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np
import numpy.typing as npt

from .._base.arguments import real_number
from .._base.pictures import Picture
from .._base.tensors import detached
from .._base.types import FloatArray, Resampling
from ..heatmaps._grid import output_size, resample_map
from ..heatmaps._maps import Maps
from ._look import CMAP, Cmap

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

Scale = tuple[float, float]
REACH = 3.0  # scales reach at least so many times the mean, so that a flat map is pale


def colorize(values: npt.ArrayLike, cmap: Cmap = CMAP) -> Picture:
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
    result: Maps,
    values: FloatArray,
    scale: Scale,
    cmap: Cmap,
    image_weight: Optional[float],
    size: Union[int, tuple[int, int], None],
    resampling: Resampling = "bicubic",
) -> Picture:
    """The picture with one map [gh, gw] over it, as pixels; see `HeatmapResult.overlay`."""
    check_weight(image_weight)
    shape = output_size(size, result.picture_size)
    heat = resample_map(to_unit(values, scale), result.seen, result.picture_size, shape, resampling)
    inside = resample_map(np.ones(values.shape), result.seen, result.picture_size, shape, "nearest")[..., None] > 0
    base = _resize(result.picture, shape).astype(np.float32)
    part = 1.0 - fade_in(heat[..., None]) if image_weight is None else np.float32(image_weight)
    mixed = part * base + (1.0 - part) * colorize(heat, cmap)
    faded = 0.4 * base + 0.6 * 236.0
    return np.asarray(np.where(inside, mixed, faded) + 0.5, dtype=np.uint8)


def fade_in(heat: Any) -> Any:
    """How much of the picture a value from 0 to 1 hides, where colours fade in with the map."""
    return 0.85 * heat**0.7


def colormap(cmap: Cmap) -> Colormap:
    """A colormap by name, or as it is."""
    import matplotlib
    from matplotlib.colors import Colormap

    if isinstance(cmap, Colormap):
        return cmap
    try:
        return matplotlib.colormaps[cmap]
    except (KeyError, TypeError):
        raise ValueError(f"cmap: {cmap!r} is not a matplotlib colormap; 'viridis', 'jet' and 'turbo' are") from None


def scale_of(maps: FloatArray, vmin: Optional[float] = None, vmax: Optional[float] = None) -> Scale:
    """The values of a colormap's two ends: as given, else from zero to the peak, at least three times the mean."""
    low = min(0.0, float(maps.min())) if vmin is None else real_number(vmin, "vmin")
    high = max(float(maps.max()), REACH * float(maps.mean())) if vmax is None else real_number(vmax, "vmax")
    if (vmin is not None or vmax is not None) and not low < high:
        raise ValueError(f"vmin, vmax: the scale goes from {low:g} to {high:g}, expected a vmin below vmax")
    return low, high


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
