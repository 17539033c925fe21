"""Maps beside what people marked: pointing, energy, segmentation, and beside other maps.

Maps are float [H, W]; masks [H, W] hold 1 on the object, 0 elsewhere, -1 where nobody said.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Truth = npt.NDArray[np.bool_]

_EPSILON = 2.2204e-16


def pointing_hit(heatmap: Any, mask: Any, *, tolerance: float = 15.0) -> bool:
    """Whether the map's first maximum lies on the object, or near it (Zhang et al., arXiv 1608.00507).

    Parameters
    ----------
    heatmap : array_like of float, [H, W]
    mask : array_like, [H, W]
    tolerance : float
        Pixels between the maximum and the nearest pixel of the object; published figures use 15 on the full picture.

    Returns
    -------
    bool

    Raises
    ------
    ValueError
        Shapes differ, a map is not finite, or the mask marks nothing.
    """
    values, marked = _checked(heatmap, mask)
    rows, columns = np.nonzero(_object(marked))
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    return bool(((rows - row) ** 2 + (columns - column) ** 2).min() <= tolerance**2)


def energy_inside(heatmap: Any, mask: Any) -> float:
    """The share of the map's mass on the object (Wang et al., arXiv 1910.01279).

    Hold it against the object's share of the area.

    Parameters
    ----------
    heatmap : array_like of float, [H, W]
        Not negative; a map of zeros counts as uniform.
    mask : array_like, [H, W]

    Returns
    -------
    float
        From 0 to 1.
    """
    values, marked = _checked(heatmap, mask)
    inside = _object(marked)
    return float(_as_mass(values)[inside].sum())


def inside_top_k(heatmap: Any, mask: Any) -> float:
    """The share of the map's K highest pixels on the object, which has K pixels (relevance rank accuracy, arXiv 2003.07258).

    Parameters
    ----------
    heatmap : array_like of float, [H, W]
    mask : array_like, [H, W]

    Returns
    -------
    float
        From 0 to 1.
    """
    values, marked = _checked(heatmap, mask)
    inside = _object(marked).ravel()
    count = int(inside.sum())
    highest = np.argsort(-values.ravel(), kind="stable")[:count]
    return float(inside[highest].mean())


def spearman(one: Any, other: Any) -> float:
    """Spearman's rank correlation of two maps, ties by their average rank; 0 where a map is flat."""
    first, second = _pair(one, other)
    return _correlation(_ranks(first.ravel()), _ranks(second.ravel()))


def pearson(one: Any, other: Any) -> float:
    """The linear correlation of two maps (CC of saliency benchmarks); 0 where a map is flat."""
    first, second = _pair(one, other)
    return _correlation(first.ravel(), second.ravel())


def kl_divergence(heatmap: Any, reference: Any) -> float:
    """How far a map is from a reference: sum of q log(eps + q / (p + eps)), each of sum 1 (the MIT saliency benchmark)."""
    values, target = (_as_mass(item) for item in _pair(heatmap, reference))
    return float((target * np.log(_EPSILON + target / (values + _EPSILON))).sum())


def overlap(one: Any, other: Any) -> float:
    """The sum of the smaller values of two maps that sum to 1 each (SIM of saliency benchmarks), from 0 to 1."""
    first, second = (_as_mass(item) for item in _pair(one, other))
    return float(np.minimum(first, second).sum())


class PointingGame:
    """The pointing game over many maps: hits by class, and their mean over the classes.

    Parameters
    ----------
    tolerance : float
        As in :func:`pointing_hit`.
    """

    def __init__(self, tolerance: float = 15.0) -> None:
        self.tolerance = tolerance
        self._hits: dict[str, list[bool]] = {}

    def update(self, heatmap: Any, mask: Any, label: str = "object") -> None:
        """Add a map; `label` is the class of what its mask marks."""
        self._hits.setdefault(label, []).append(pointing_hit(heatmap, mask, tolerance=self.tolerance))

    def summary(self) -> dict[str, float]:
        """``pointing``, the mean over the classes, ``hits``, over all maps, and ``count``."""
        if not self._hits:
            raise ValueError("no maps yet: call update first")
        every = [hit for hits in self._hits.values() for hit in hits]
        means = [float(np.mean(hits)) for hits in self._hits.values()]
        return {"pointing": float(np.mean(means)), "hits": float(np.mean(every)), "count": float(len(every))}

    def reset(self) -> None:
        """Forget what was added."""
        self._hits = {}


class Segmentation:
    """Maps as segmentations (Chefer et al., arXiv 2012.09838): each at its own mean, after min-max.

    Pixel accuracy and IoU come of sums over all maps, average precision is the mean over maps, both classes
    in one ranking.
    """

    def __init__(self) -> None:
        self.reset()

    def update(self, heatmap: Any, mask: Any) -> None:
        """Add a map with its mask, both [H, W]; pixels of -1 do not count."""
        self._counts.append(segmentation_counts(heatmap, mask))

    def summary(self) -> dict[str, float]:
        """``pixel_accuracy``, ``miou`` and ``map`` (mean average precision), from 0 to 1, and ``count``."""
        if not self._counts:
            raise ValueError("no maps yet: call update first")
        return {**segmentation_summary(np.sum(self._counts, axis=0), len(self._counts)), "count": float(len(self._counts))}

    def reset(self) -> None:
        """Forget what was added."""
        self._counts: list[Doubles] = []


def segmentation_counts(heatmap: Any, mask: Any) -> Doubles:
    """Of one map [7]: pixels that are right, that are labelled; of background and object, intersection; union; precision."""
    values, marked = _checked(heatmap, mask)
    known = marked >= 0
    scaled = _min_max(values)
    predicted = (scaled > scaled.mean())[known]
    truth = (marked == 1)[known]
    sides = ((~predicted, ~truth), (predicted, truth))
    scores = np.concatenate([1.0 - scaled[known], scaled[known]])
    return np.array(
        [
            (predicted == truth).sum(), truth.size, *((found & wanted).sum() for found, wanted in sides),
            *((found | wanted).sum() for found, wanted in sides),
            _average_precision(scores, np.concatenate([~truth, truth])),
        ], np.float64,
    )  # fmt: skip


def segmentation_summary(sums: Doubles, count: float) -> dict[str, float]:
    """``pixel_accuracy``, ``miou`` and ``map`` of the summed counts of `count` maps."""
    return {
        "pixel_accuracy": float(sums[0] / max(sums[1], 1.0)),
        "miou": float((sums[2:4] / (_EPSILON + sums[4:6])).mean()),
        "map": float(sums[6] / count),
    }


def _finite(values: Any, name: str) -> Doubles:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name}: shape {list(array.shape)}, expected [H, W]")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: holds values that are not finite")
    return array


def _pair(one: Any, other: Any) -> tuple[Doubles, Doubles]:
    first, second = _finite(one, "map"), _finite(other, "other map")
    if first.shape != second.shape:
        raise ValueError(f"maps of shapes {list(first.shape)} and {list(second.shape)}, expected the same")
    return first, second


def _checked(heatmap: Any, mask: Any) -> tuple[Doubles, Doubles]:
    values, marked = _finite(heatmap, "map"), _finite(mask, "mask")
    if values.shape != marked.shape:
        raise ValueError(f"mask: shape {list(marked.shape)} for a map of {list(values.shape)}, expected the same")
    if not np.isin(marked, (-1, 0, 1)).all():
        raise ValueError("mask: expected 1 (object), 0 (background) and -1 (not said)")
    return values, marked


def _object(marked: Doubles) -> Truth:
    inside: Truth = marked == 1
    if not inside.any():
        raise ValueError("mask: marks no pixel")
    return inside


def _as_mass(values: Doubles) -> Doubles:
    if (values < 0).any():
        raise ValueError("map: expected no negative values")
    total = values.sum()
    return values / total if total > 0 else np.full_like(values, 1.0 / values.size)


def _min_max(values: Doubles) -> Doubles:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _ranks(values: Doubles) -> Doubles:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[place].astype(np.float64)


def _correlation(first: Doubles, second: Doubles) -> float:
    first, second = first - first.mean(), second - second.mean()
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / lengths if lengths > 0 else 0.0


def _average_precision(scores: Doubles, truth: Truth) -> float:
    """Area under precision over recall, a step a distinct score."""
    order = np.argsort(-scores)
    ends = np.append(np.nonzero(np.diff(scores[order]))[0], scores.size - 1)
    hits = np.cumsum(truth[order])[ends]
    precision, recall = hits / (ends + 1.0), hits / max(int(truth.sum()), 1)
    return float((np.diff(np.concatenate([[0.0], recall])) * precision).sum())
