"""Numbers on a grid of patches: normalising, resampling, statistics, boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, TypedDict, Union

import numpy as np
import numpy.typing as npt

from .._base.arguments import finite_numbers, real_number, whole_number
from .._base.resampling import Kernel, grid_weights, spread
from .._base.types import FloatArray, Normalization, Resampling
from ..images import Region
from ._distribution import to_distribution

NORMALIZATIONS = (None, "minmax", "sum", "max")
RESAMPLINGS = ("bicubic", "bilinear", "nearest")
_KERNELS: dict[str, Kernel] = {"bicubic": "cubic", "bilinear": "linear", "nearest": "nearest"}


@dataclass(frozen=True)
class Patch:
    """One patch of a map; its edges are in pixels of the picture that was given."""

    index: int
    row: int
    column: int
    value: float
    left: float
    top: float
    right: float
    bottom: float


class Box(NamedTuple):
    """A connected part of a map that stands out; edges in pixels of the picture that was given."""

    left: float
    top: float
    right: float
    bottom: float
    share: float
    peak: float


class MapStatistics(TypedDict):
    """One map in numbers; see `map_statistics`."""

    attention_mean: float
    attention_std: float
    attention_max: float
    entropy: float
    top_patches: list[int]


def normalize_maps(maps: npt.ArrayLike, normalize: Optional[Normalization] = None, shared: bool = True) -> FloatArray:
    """Scale maps by name; flat maps never give NaN.

    Parameters
    ----------
    maps : array [Q, gh, gw] or [gh, gw]
    normalize : None, "minmax", "sum" or "max"
        None leaves the values as they are; "minmax" takes the smallest to 0 and the largest to 1; "max" divides by the
        largest; "sum" makes each map sum to 1 (always map by map).
    shared : bool
        One scale for all maps, so that they can be compared; False scales each by itself.

    Returns
    -------
    float32 array of the same shape
        A flat map is 0 under "minmax"; a map of zeros stays zero under "max" and is uniform under "sum".
    """
    array = finite_numbers(maps, "maps").astype(np.float64)
    if array.ndim < 2 or array.size == 0:
        raise ValueError(f"maps: expected [Q, gh, gw] or [gh, gw], got shape {array.shape}")
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize: {normalize!r} is unknown; expected None, 'minmax', 'sum' or 'max'")
    if normalize is None:
        return array.astype(np.float32)
    if normalize == "sum":
        return to_distribution(array, axes=2)
    axes = None if shared else (-2, -1)
    low = array.min(axis=axes, keepdims=True) if normalize == "minmax" else np.zeros(1)
    span = array.max(axis=axes, keepdims=True) - low
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(span > 0, (array - low) / span, 0.0).astype(np.float32)


def map_statistics(values: npt.ArrayLike, top: int = 5) -> MapStatistics:
    """Describe one map in numbers.

    Parameters
    ----------
    values : array [gh, gw] or [P]
        A map; finite, none negative.
    top : int
        How many patches to name.

    Returns
    -------
    MapStatistics
        A dict. attention_mean, attention_std, attention_max: floats, of the values as they are. entropy: float, in nats, of
        the map scaled to sum 1; from 0 (one patch has everything) to ln P (flat). top_patches: indices into the flattened
        map, the largest first.
    """
    flat = finite_numbers(values, "values").astype(np.float64).ravel()
    if flat.size == 0:
        raise ValueError(f"values: expected finite numbers [gh, gw], got shape {np.shape(values)}")
    share = to_distribution(np.maximum(flat, 0.0)).astype(np.float64)
    seen = share[share > 0]
    return {
        "attention_mean": float(flat.mean()),
        "attention_std": float(flat.std()),
        "attention_max": float(flat.max()),
        "entropy": float(max(0.0, -(seen * np.log(seen)).sum())),
        "top_patches": [int(index) for index in _largest(flat, top)],
    }


def resample_map(
    values: npt.ArrayLike,
    region: Region,
    picture_size: tuple[int, int],
    size: Union[int, tuple[int, int]],
    resampling: Resampling = "bicubic",
) -> FloatArray:
    """Spread patch maps over the picture they belong to.

    Parameters
    ----------
    values : array [..., gh, gw]
        Patch values; each is taken to sit at its patch's centre.
    region : Region
        The part of the picture that the grid covers, in the picture's pixels.
    picture_size : (height, width)
        The picture's size, which `region` refers to.
    size : (height, width) or int
        How many pixels to compute for the whole picture; an int is the longer side.
    resampling : "bicubic", "bilinear" or "nearest"
        "bicubic" is smooth and never leaves the range of the map's own values.

    Returns
    -------
    float32 array [..., height, width]
        Zero outside the region.
    """
    if resampling not in RESAMPLINGS:
        raise ValueError(f"resampling: {resampling!r} is unknown; expected one of {', '.join(map(repr, RESAMPLINGS))}")
    array = finite_numbers(values, "values")
    if array.ndim < 2 or array.size == 0:
        raise ValueError(f"values: expected [..., gh, gw], got shape {array.shape}")
    if not isinstance(region, Region):
        raise TypeError(f"region: expected a Region(left, top, right, bottom), got {type(region).__name__}")
    size = output_size(size, picture_size)
    kernel = _KERNELS[resampling]
    height, width = picture_size
    rows = grid_weights(array.shape[-2], size[0], kernel, span=(region.top, region.bottom, height)).astype(np.float32)
    columns = grid_weights(array.shape[-1], size[1], kernel, span=(region.left, region.right, width)).astype(np.float32)
    spread_out = np.asarray(spread(rows, array, columns), dtype=np.float32)
    if resampling != "bicubic":
        return spread_out
    inside = np.outer(rows.any(axis=1), columns.any(axis=1)).astype(np.float32)
    low = array.min(axis=(-2, -1), keepdims=True)
    high = array.max(axis=(-2, -1), keepdims=True)
    return np.asarray(np.clip(spread_out, low * inside, high * inside), dtype=np.float32)


def patch_of(values: FloatArray, seen: Region, index: int) -> Patch:
    """One patch of a map [gh, gw] over the part of a picture that was seen, by its index in the flattened map."""
    row, column = divmod(index, values.shape[1])
    height, width = (seen.bottom - seen.top) / values.shape[0], (seen.right - seen.left) / values.shape[1]
    left, top = seen.left + column * width, seen.top + row * height
    return Patch(index, row, column, float(values[row, column]), left, top, left + width, top + height)


def largest_patches(values: FloatArray, seen: Region, k: int) -> list[Patch]:
    """The patches of a map [gh, gw] with the largest values, the largest first; equal ones in reading order."""
    if whole_number(k, "k") < 1:
        raise ValueError(f"k: got {k}, expected at least 1")
    return [patch_of(values, seen, int(index)) for index in _largest(values.ravel(), k)]


def boxes_of(values: FloatArray, seen: Region, threshold: float) -> list[Box]:
    """Boxes around what stands out in a map [gh, gw], the largest share first; see `HeatmapResult.boxes`."""
    if not 0.0 < real_number(threshold, "threshold") <= 1.0:
        raise ValueError(f"threshold: got {threshold}, expected more than 0 and at most 1")
    scaled = normalize_maps(values, "minmax")
    total = float(values.sum())
    boxes = []
    for group in _connected(scaled >= threshold if scaled.any() else np.zeros_like(scaled, dtype=bool)):
        patches = [patch_of(values, seen, index) for index in group]
        boxes.append(
            Box(
                min(patch.left for patch in patches),
                min(patch.top for patch in patches),
                max(patch.right for patch in patches),
                max(patch.bottom for patch in patches),
                sum(patch.value for patch in patches) / total if total > 0 else 0.0,
                max(patch.value for patch in patches),
            )
        )
    return sorted(boxes, key=lambda box: -box.share)


def _largest(flat: npt.NDArray[Any], count: int) -> npt.NDArray[np.intp]:
    """Indices of the largest values, equal ones in order."""
    return np.argsort(-flat, kind="stable")[:count]


def _connected(mask: npt.NDArray[np.bool_]) -> list[list[int]]:
    """Groups of set patches that touch by edge or corner, as indices into the flattened grid."""
    rows, columns = mask.shape
    waiting = {int(index) for index in np.flatnonzero(mask)}
    groups = []
    while waiting:
        front = [min(waiting)]
        waiting.remove(front[0])
        group = []
        while front:
            row, column = divmod(front.pop(), columns)
            group.append(row * columns + column)
            for r in range(max(row - 1, 0), min(row + 2, rows)):
                for c in range(max(column - 1, 0), min(column + 2, columns)):
                    if r * columns + c in waiting:
                        waiting.remove(r * columns + c)
                        front.append(r * columns + c)
        groups.append(group)
    return groups


def output_size(size: Union[int, Sequence[int], None], picture_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) from what the caller asked for."""
    if size is None:
        return picture_size
    if isinstance(size, (Sequence, np.ndarray)):
        if len(size) != 2:
            raise ValueError(f"size: got {tuple(size)}, expected (height, width)")
        height, width = whole_number(size[0], "size"), whole_number(size[1], "size")
    else:
        longer = whole_number(size, "size")
        scale = longer / max(picture_size)
        height, width = (max(1, round(side * scale)) for side in picture_size) if longer > 0 else (0, 0)
    if height < 1 or width < 1:
        raise ValueError(f"size: got {size}, expected at least one pixel each way")
    return height, width
