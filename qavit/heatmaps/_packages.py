"""The last picture that each method's own package makes of its map."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import numpy.typing as npt

from .._base.types import FloatArray, PackageNormalization

PACKAGES: tuple[str, ...] = get_args(PackageNormalization)
#: The smallest to 0 and the largest to 1 before the map is spread; so the picture's largest stays below 1.
_BEFORE = {"surgery", "legrad_siglip"}
#: What pytorch-grad-cam adds to the largest value before it divides by it.
_GRADCAM_EPSILON = 1e-7


def package_picture(
    maps: FloatArray, package: str, spread: Callable[[FloatArray], FloatArray], inside: npt.NDArray[np.bool_]
) -> FloatArray:
    """Maps [K, Q, gh, gw] of K blocks, or of them all together, as a package spreads and scales them.

    Parameters
    ----------
    maps : float32 [K, Q, gh, gw]
        The method's own numbers.
    package : str
        One of `PACKAGES`.
    spread : callable
        [..., gh, gw] to [..., height, width].
    inside : bool [height, width]
        What of the picture was seen; elsewhere the result is 0.

    Returns
    -------
    float32 [Q, height, width]
    """
    if not inside.any():
        return spread(np.zeros_like(maps[0]))
    if package == "gradcam":
        layers = spread(_scaled_by_largest(maps)).mean(axis=0, dtype=np.float64)
        return np.where(inside, _scaled_by_largest(layers, inside), 0.0).astype(np.float32)
    summed = maps.sum(axis=0)
    if package in _BEFORE:
        return spread(_zero_to_one(summed).astype(np.float32))
    # Spread, a flat map is flat to a rounding error alone.
    shown = inside & (np.ptp(summed, axis=(-2, -1)) > 0)[:, None, None]
    return np.where(shown, _zero_to_one(spread(summed), inside), 0.0).astype(np.float32)


def _zero_to_one(maps: FloatArray, inside: npt.NDArray[np.bool_] | bool = True) -> npt.NDArray[np.float64]:
    low = maps.min(axis=(-2, -1), keepdims=True, where=inside, initial=np.inf).astype(np.float64)
    span = maps.max(axis=(-2, -1), keepdims=True, where=inside, initial=-np.inf) - low
    return np.where(span > 0, (maps - low) / np.where(span > 0, span, 1.0), 0.0)


def _scaled_by_largest(maps: npt.NDArray[np.floating], inside: npt.NDArray[np.bool_] | bool = True) -> FloatArray:
    shifted = maps - maps.min(axis=(-2, -1), keepdims=True, where=inside, initial=np.inf)
    largest = shifted.max(axis=(-2, -1), keepdims=True, where=inside, initial=0.0)
    return np.asarray(shifted / (_GRADCAM_EPSILON + largest), np.float32)
