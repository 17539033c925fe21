"""Maps as distributions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .._base.arguments import finite_numbers
from .._base.types import FloatArray


def to_distribution(values: npt.ArrayLike, axes: int = 1) -> FloatArray:
    """Scale values so that each map sums to 1.

    Parameters
    ----------
    values : array [..., P] (axes=1) or [..., gh, gw] (axes=2)
        Finite values. A map that has negative ones is first shifted by its smallest.
    axes : int
        How many of the last axes make up one map.

    Returns
    -------
    float32 array of the same shape
        A map that sums to zero comes back as the uniform distribution: nothing in it stands out.
    """
    array = finite_numbers(values, "values", np.float64)
    if array.ndim < axes:
        raise ValueError(f"values: shape {array.shape}, expected at least {axes} axes")
    last = tuple(range(-axes, 0))
    array = array - array.min(axis=last, keepdims=True, initial=0.0)
    largest = array.max(axis=last, keepdims=True, initial=0.0)
    patches = int(np.prod(array.shape[-axes:]))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shares = array / largest  # sums do not overflow
        total = shares.sum(axis=last, keepdims=True)
        scaled = np.where((largest > 0) & (total > 0), shares / total, 1.0 / max(patches, 1))
    return scaled.astype(np.float32)
