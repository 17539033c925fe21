"""Position embeddings at another grid."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .._base.resampling import grid_weights


def resize_positions(positions: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Position embeddings for a grid of another size.

    Parameters
    ----------
    positions : float32 [1 + n * n, D]
        The class token's, then the patches', row by row.
    side : int
        Patches along each side of the new grid.

    Returns
    -------
    float32 [1 + side * side, D]
        The class token's as it was; the patches' interpolated bicubically between cell centres, as
        ``interpolate_pos_encoding`` of transformers does.
    """
    old = math.isqrt(positions.shape[0] - 1)
    if old == side:
        return positions
    matrix = grid_weights(old, side, "cubic_sharp")
    grid = positions[1:].astype(np.float64).reshape(old, old, -1)
    resized = np.einsum("yi,xj,ijd->yxd", matrix, matrix, grid, optimize=True)
    return np.concatenate([positions[:1], resized.reshape(side * side, -1).astype(np.float32)])
