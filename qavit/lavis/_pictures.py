"""LAVIS's and pytorch-grad-cam's pictures of maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .._base.arguments import finite_numbers
from .._base.pictures import Picture
from .._base.resampling import grid_weights
from .._base.tensors import detached
from .._base.types import FloatArray
from ..plots._look import Cmap
from ..plots._pixels import check_weight, colorize, colormap


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
    rows, columns = (grid_weights(old, new, "spline", "zero") for old, new in zip(heat.shape, picture.shape))
    heat = np.clip(rows @ heat @ columns.T, low, high)
    if blur:
        sigma = 0.02 * max(picture.shape[:2])
        heat = _stretch(_gaussian(_gaussian(heat, sigma, 0, "symmetric"), sigma, 1, "symmetric"))
    colours = np.asarray(colormap("jet")(heat)[..., :3], dtype=np.float64)
    if not overlap:
        return colours
    weight = (heat**0.7)[..., None]
    return np.asarray((1.0 - weight) * picture + weight * colours, dtype=np.float64)


def _stretch(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """From 0 to 1 in float64; a flat map gives 0. Rounding of a flat map's blur is not stretched into a pattern."""
    values = values - values.min()
    peak = values.max()
    return values / peak if peak > 1e-12 else np.zeros_like(values)


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
