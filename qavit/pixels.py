"""Pictures of maps as arrays: colours, overlays, and the two functions that existing scripts call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np
import numpy.typing as npt

from .arguments import finite_numbers, real_number
from .heatmaps import FloatArray, HeatmapResult, output_size, resample_map
from .tensors import detached

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
    method: str = "bicubic",
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
    method : "bicubic", "bilinear" or "nearest"
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
    height, width = output_size(size, result.size)
    chosen = result.maps[result.number_of(question)] if values is None else finite_numbers(values, "values")
    if chosen.ndim != 2:
        raise ValueError(f"values: shape {chosen.shape}, expected [gh, gw]")
    heat = resample_map(
        to_unit(chosen, scale or scale_of(result.maps)), result.seen, result.size, (height, width), method
    )
    base = _resize(result.picture, (height, width)).astype(np.float32)
    part = 1.0 - 0.85 * heat[..., None] ** 0.7 if image_weight is None else np.float32(image_weight)
    mixed = part * base + (1.0 - part) * colorize(heat, cmap)
    inside = resample_map(np.ones(result.grid), result.seen, result.size, (height, width), "nearest")[..., None] > 0
    faded = 0.4 * base + 0.6 * 236.0
    return np.asarray(np.where(inside, mixed, faded) + 0.5, dtype=np.uint8)


def show_cam_on_image(
    img: npt.ArrayLike, mask: npt.ArrayLike, use_rgb: bool = True, image_weight: float = 0.5, colormap: Cmap = "jet"
) -> Picture:
    """Blend a map into a picture, as pytorch-grad-cam's function of this name does.

    Parameters
    ----------
    img : float array [H, W, 3] from 0 to 1, or uint8
        The picture.
    mask : array [H, W]
        The map, from 0 to 1.
    use_rgb : bool
        The channels of `img` are red, green, blue; False: blue, green, red (OpenCV's order). The result has the same
        order.
    image_weight : float
        From 0 to 1: the picture's part of the sum; the colours get the rest. The sum is scaled so that its largest
        value is full brightness.
    colormap : str or Colormap

    Returns
    -------
    uint8 array [H, W, 3]
    """
    picture, heat = _unit_picture(img, "img"), finite_numbers(mask, "mask")
    if heat.shape != picture.shape[:2]:
        raise ValueError(f"mask: shape {heat.shape}, expected that of the picture, {picture.shape[:2]}")
    if picture.max() > 1.0 or picture.min() < 0.0:
        raise ValueError(f"img: floats from {picture.min():g} to {picture.max():g}, expected 0 to 1 (or uint8)")
    check_weight(image_weight)
    colours = colorize(heat, colormap).astype(np.float32) / 255.0
    mixed = (1.0 - image_weight) * (colours if use_rgb else colours[..., ::-1]) + image_weight * picture
    peak = mixed.max()
    return np.asarray(255.0 * (mixed / peak if peak > 0 else mixed), dtype=np.uint8)


def getAttMap(  # the name that scripts import
    img: npt.ArrayLike, attMap: npt.ArrayLike, blur: bool = True, overlap: bool = True
) -> npt.NDArray[np.float64]:
    """The picture that LAVIS draws of an attention map: jet, blurred, stronger where there is more attention.

    Parameters
    ----------
    img : float array [H, W, 3] from 0 to 1, or uint8
        The picture.
    attMap : array [gh, gw]
        The map, on any scale; it is not written to. A flat map gives the colour of zero, never NaN.
    blur : bool
        Gaussian blur of 0.02 times the longer side.
    overlap : bool
        Mixes with the picture, the colours by the map to the power of 0.7; False gives the colours alone.

    Returns
    -------
    float64 array [H, W, 3]
        From 0 to 1.
    """
    picture = _unit_picture(img, "img").astype(np.float64)
    if picture.max() > 2.0:  # resizing may overshoot a little
        raise ValueError(f"img: floats from {picture.min():g} to {picture.max():g}, expected 0 to 1 (or uint8)")
    heat = finite_numbers(attMap, "attMap").astype(np.float64)
    if heat.ndim != 2 or heat.size == 0:
        raise ValueError(f"attMap: expected finite numbers [gh, gw], got shape {heat.shape}")
    heat = _stretch(heat)
    if any(new < old for new, old in zip(picture.shape, heat.shape)):
        factors = [old / new for new, old in zip(picture.shape, heat.shape)]
        for axis, factor in enumerate(factors):
            heat = _gaussian(heat, max(0.0, (factor - 1.0) / 2.0), axis, "constant")
    low, high = heat.min(), heat.max()
    rows, columns = (_spline_weights(old, new) for old, new in zip(heat.shape, picture.shape))
    heat = np.clip(rows @ heat @ columns.T, low, high)
    if blur:
        sigma = 0.02 * max(picture.shape[:2])
        heat = _stretch(_gaussian(_gaussian(heat, sigma, 0, "symmetric"), sigma, 1, "symmetric"))
    colours = np.asarray(colormap("jet")(heat)[..., :3], dtype=np.float64)
    if not overlap:
        return colours
    weight = (heat**0.7)[..., None]
    return np.asarray((1.0 - weight) * picture + weight * colours, dtype=np.float64)


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


def _stretch(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """From 0 to 1 in float64; a flat map gives 0. Rounding of a flat map's blur is not stretched into a pattern."""
    values = values - values.min()
    peak = values.max()
    return values / peak if peak > 1e-12 else np.zeros_like(values)


def check_weight(image_weight: Optional[float]) -> None:
    """Raise unless it is None or from 0 to 1."""
    if image_weight is not None and not 0.0 <= real_number(image_weight, "image_weight") <= 1.0:
        raise ValueError(f"image_weight: got {image_weight}, expected 0 to 1")


def _unit_picture(img: npt.ArrayLike, name: str) -> FloatArray:
    """A picture as float32 from 0 to 1."""
    array = np.asarray(detached(img))
    if array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise ValueError(f"{name}: expected [H, W, 3], got shape {array.shape}")
    if array.dtype == np.uint8:
        return array.astype(np.float32) / 255.0
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{name}: expected uint8, or finite floats from 0 to 1, got {array.dtype}")
    return finite_numbers(array, name)


def _resize(picture: Picture, size: tuple[int, int]) -> Picture:
    """The picture at another size: smoothly made smaller, smoothly made larger."""
    if picture.shape[:2] == size:
        return picture
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _spline_weights(old: int, new: int, pad: int = 12) -> npt.NDArray[np.float64]:
    """Cubic spline interpolation [new, old] of samples at pixel centres, zero outside them.

    The samples are extended by `pad` zeros, interpolated by a cubic B-spline with mirrored ends, and read at the new
    pixels' centres.
    """
    length = old + 2 * pad
    system = (np.eye(length) * 4.0 + np.eye(length, k=1) + np.eye(length, k=-1)) / 6.0
    system[0, 1] = system[-1, -2] = 2.0 / 6.0
    coefficients = np.linalg.solve(system, np.eye(length)[:, pad : pad + old])
    position = (np.arange(new) + 0.5) * old / new - 0.5 + pad
    distance = np.abs(position[:, None] - np.arange(length)[None, :])
    inner = 2.0 / 3.0 - distance**2 + distance**3 / 2.0
    outer = (2.0 - distance) ** 3 / 6.0
    basis = np.where(distance <= 1.0, inner, np.where(distance < 2.0, outer, 0.0))
    return np.asarray(basis @ coefficients, dtype=np.float64)


def _gaussian(values: npt.NDArray[np.float64], sigma: float, axis: int, mode: Any) -> npt.NDArray[np.float64]:
    """Gaussian blur along one axis, cut at four standard deviations, by FFT; `mode` is that of `np.pad`."""
    radius = int(4.0 * sigma + 0.5)
    if radius == 0:
        return values
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    count = values.shape[axis]
    padded = np.pad(values, [(radius, radius) if i == axis else (0, 0) for i in range(values.ndim)], mode=mode)
    length = padded.shape[axis]
    shape = [1] * values.ndim
    shape[axis] = -1
    spectrum = np.fft.rfft(padded, length, axis) * np.fft.rfft(kernel, length).reshape(shape)
    full = np.fft.irfft(spectrum, length, axis)
    return np.take(full, np.arange(2 * radius, 2 * radius + count), axis)
