"""One axis of a grid taken to another number of cells, as a matrix of weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float64]
_ONE_THREAD = 200_000  # multiplications; OpenBLAS takes threads from 262,144 on
Kernel = Literal["nearest", "linear", "cubic", "cubic_sharp", "spline", "area"]


def grid_weights(
    old: int,
    new: int,
    kernel: Kernel,
    edge: Literal["repeat", "zero"] = "repeat",
    span: tuple[float, float, float] | None = None,
) -> Weights:
    """Weights that resample `old` values, each at its cell's centre, at the centres of `new` cells over the same length.

    Parameters
    ----------
    old, new : int
        How many cells there are, and how many there are to be.
    kernel : str
        "nearest"; "linear"; "cubic" (Keys's convolution, a = -0.5); "cubic_sharp" (a = -0.75, as PyTorch's bicubic);
        "spline" (the cubic spline through the values); "area" (an old cell's value is shared out by where it lies: sums
        are kept).
    edge : {"repeat", "zero"}
        What lies beyond the outermost values.
    span : (start, stop, length), optional
        Where the old cells start and stop in the length that the new ones cover; by default they cover the same. New
        centres outside have no weights.

    Returns
    -------
    float64 array [new, old]
    """
    start, stop, length = (0.0, float(new), float(new)) if span is None else span
    if kernel == "area":
        edges = (np.arange(new + 1.0) * length / new - start) / (stop - start) * old
        return np.diff(np.clip(edges[:, None] - np.arange(old), 0.0, 1.0), axis=0)
    centres = ((np.arange(new) + 0.5) * length / new - start) / (stop - start) * old - 0.5
    outside = (centres < -0.5) | (centres > old - 0.5)
    pad = 12 if kernel == "spline" else 2  # a spline reaches further: 0.27 ** 12 is 1e-7
    cells = np.arange(-pad, old + pad)
    if kernel == "nearest":
        centres = np.rint(centres)
    weights = _KERNELS[kernel](np.abs(centres[:, None] - cells))
    weights[outside] = 0.0
    extended = np.equal.outer(np.clip(cells, 0, old - 1) if edge == "repeat" else cells, np.arange(old)).astype(np.float64)
    if kernel == "spline":  # the coefficients whose B-splines meet the values, mirrored at the ends
        count = len(cells)
        system = (4.0 * np.eye(count) + np.eye(count, k=1) + np.eye(count, k=-1)) / 6.0
        system[0, 1] = system[-1, -2] = 2.0 / 6.0
        extended = np.asarray(np.linalg.solve(system, extended), np.float64)
    return np.asarray(weights @ extended)


def spread(rows: npt.NDArray[np.float32], values: npt.NDArray[Any], columns: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """Maps [..., gh, gw] taken to [..., height, width] by weights [height, gh] and [width, gw].

    Some rows at a time, so few that NumPy's BLAS wakes no threads for them: their waiting costs more than such products.
    """
    out = np.empty((*values.shape[:-2], len(rows), len(columns)), np.result_type(rows, values))
    step = max(1, _ONE_THREAD // (len(columns) * values.shape[-1]))
    for first in range(0, len(rows), step):
        part = rows[first : first + step]
        np.matmul(part @ values, columns.T, out=out[..., first : first + step, :])
    return out


def smoothed_weights(old: int, new: int, kernel: Kernel) -> Weights:
    """As `grid_weights`, with a kernel that widens where cells become fewer, and ends at the outermost values.

    That is what PyTorch calls antialias and Pillow's filters do.

    Parameters
    ----------
    old, new : int
    kernel : {"linear", "cubic"}

    Returns
    -------
    float64 array [new, old]
    """
    width = max(old / new, 1.0)
    reach = width * (2.0 if kernel == "cubic" else 1.0)
    centres = (np.arange(new) + 0.5)[:, None] * (old / new)
    cells = np.arange(old)
    inside = (cells >= np.floor(centres - reach + 0.5)) & (cells < np.floor(centres + reach + 0.5))
    weights = np.where(inside, _KERNELS[kernel](np.abs(cells + 0.5 - centres) / width), 0.0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _convolution(a: float) -> Callable[[Weights], Weights]:
    """The cubic kernel of Keys 1981 by distance, with its free parameter."""

    def kernel(d: Weights) -> Weights:
        near = ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
        far = ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a
        return np.where(d <= 1.0, near, np.where(d < 2.0, far, 0.0))

    return kernel


def _linear(d: Weights) -> Weights:
    return np.maximum(1.0 - d, 0.0)


def _spline(d: Weights) -> Weights:
    """The cubic B-spline."""
    return np.where(d <= 1.0, 2.0 / 3.0 - d * d + d**3 / 2.0, np.maximum(2.0 - d, 0.0) ** 3 / 6.0)


_KERNELS: dict[str, Callable[[Weights], Weights]] = {
    "nearest": _linear,  # of whole numbers
    "linear": _linear,
    "cubic": _convolution(-0.5),
    "cubic_sharp": _convolution(-0.75),
    "spline": _spline,
}
