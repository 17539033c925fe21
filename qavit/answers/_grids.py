"""Maps from the matcher's grid to the captioner's."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .._base.arguments import finite_numbers, height_and_width
from .._base.resampling import grid_weights
from .._base.tensors import to_numpy
from .._base.types import FloatArray
from .._base.warnings import QavitWarning, warn
from ..images import CLIP_MEAN, CLIP_STD

_FLOOR = 1e-9  # of a map's largest value: what an entry of zero becomes, so that it can still be drawn


def resample_mass(maps: npt.ArrayLike, grid: tuple[int, int]) -> FloatArray:
    """Maps on another grid over the same picture, by area: what a patch holds goes where the patch lies.

    Parameters
    ----------
    maps : float [..., gh, gw]
    grid : (rows, columns)

    Returns
    -------
    float32 [..., rows, columns]
        Each map's sum is kept, and non-negative maps stay so; on the same grid the values are the same.
    """
    array = finite_numbers(maps, "maps")
    if array.ndim < 2 or 0 in array.shape[-2:]:
        raise ValueError(f"maps: shape {array.shape}, expected [..., gh, gw]")
    if array.shape[-2:] == tuple(grid):
        return array
    rows, columns = (grid_weights(old, new, "area") for old, new in zip(array.shape[-2:], grid))
    return finite_numbers(rows @ array.astype(np.float64) @ columns.T, "maps")


def drawable(maps: npt.ArrayLike) -> FloatArray:
    """Maps that torch.multinomial can draw any number of patches from: zeros become the least bit positive.

    Parameters
    ----------
    maps : float [B, P], non-negative

    Returns
    -------
    float32 [B, P]
        A billionth of its map's largest value where there was nothing, all else unchanged; a map of zeros becomes
        uniform, with a warning.
    """
    array = finite_numbers(maps, "maps").copy()
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"maps: shape {array.shape}, expected [B, P]")
    largest = array.max(axis=1, keepdims=True)
    empty = np.flatnonzero(largest[:, 0] <= 0)
    if empty.size:
        warn(QavitWarning, f"maps {empty.tolist()} of the batch are zero everywhere; patches will be drawn uniformly")
        array[empty] = 1.0 / array.shape[1]
        largest[empty] = 1.0 / array.shape[1]
    least = np.maximum(largest * np.float32(_FLOOR), np.finfo(np.float32).tiny)
    return np.asarray(np.maximum(array, least), np.float32)


def fit_images(images: npt.NDArray[Any], matcher: Any) -> FloatArray:
    """Images as LAVIS normalises them, in the size and normalisation that the matcher takes.

    Parameters
    ----------
    images : float [B, 3, H, W]
        Normalised with LAVIS's mean and standard deviation.
    matcher : Model
        Whose `image_size` and `preprocessing` they are to fit.

    Returns
    -------
    float32 [B, 3, height, width], of its input
        Resized by Pillow's antialiased bicubic filter where the size differs; without keeping the aspect, as LAVIS does.
    """
    images = to_numpy(images, "samples['image']")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape or images.dtype.kind != "f":
        raise ValueError(f"samples['image']: expected floats [B, 3, H, W], got {images.dtype} of shape {list(images.shape)}")
    images = finite_numbers(images, "samples['image']")
    size = height_and_width(matcher.image_size)
    if images.shape[2:] != size:
        images = _resized(images, size)
    # LAVIS's processors ("blip_image_eval") subtract and divide by CLIP's numbers.
    mean, std = matcher.preprocessing.mean, matcher.preprocessing.std
    if np.allclose(mean, CLIP_MEAN, atol=1e-6) and np.allclose(std, CLIP_STD, atol=1e-6):
        return images
    scale = np.array(CLIP_STD, np.float32) / np.array(std, np.float32)
    shift = (np.array(CLIP_MEAN, np.float32) - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.asarray(images * scale[:, None, None] + shift[:, None, None], np.float32)


def _resized(images: FloatArray, size: tuple[int, int]) -> FloatArray:
    """[B, 3, H, W] -> [B, 3, *size], float by float."""
    from PIL import Image

    out = np.empty((*images.shape[:2], *size), np.float32)
    for source, target in zip(images.reshape(-1, *images.shape[2:]), out.reshape(-1, *size)):
        target[:] = np.asarray(Image.fromarray(np.ascontiguousarray(source)).resize(size[::-1], Image.Resampling.BICUBIC))
    return out
