"""Position embeddings at another grid."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def _cubic(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weights of the four neighbours at -1, 0, 1, 2 of a point at t in [0, 1), for cubic convolution, a = -0.75."""
    a = -0.75
    distance = np.abs(t[:, None] - np.arange(-1, 3)[None, :])
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    weights: NDArray[np.float64] = np.where(distance <= 1, near, far)
    return weights


def _resize_matrix(old: int, new: int) -> NDArray[np.float64]:
    """[new, old]: cubic interpolation of a row of ``old`` samples at ``new`` evenly spread cell centres."""
    centre = (np.arange(new) + 0.5) * (old / new) - 0.5
    left = np.floor(centre)
    weights = _cubic(centre - left)
    columns = np.clip(left.astype(np.int64)[:, None] + np.arange(-1, 3)[None, :], 0, old - 1)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.repeat(np.arange(new), 4), columns.reshape(-1)), weights.reshape(-1))
    return matrix


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
    matrix = _resize_matrix(old, side)
    grid = positions[1:].astype(np.float64).reshape(old, old, -1)
    resized = np.einsum("yi,xj,ijd->yxd", matrix, matrix, grid, optimize=True)
    return np.concatenate([positions[:1], resized.reshape(side * side, -1).astype(np.float32)])
