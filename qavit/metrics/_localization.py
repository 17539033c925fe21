"""How well maps find what is marked, over many pictures, and how sure that is."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional

import numpy as np
import numpy.typing as npt

from ._agreement import energy_inside, inside_top_k, pointing_hit, segmentation_counts, segmentation_summary

Doubles = npt.NDArray[np.float64]
#: The numbers of one map, in order; what segmentation sums up is behind them.
_OWN = ("pointing", "energy", "area", "inside_top_k")
_COUNTS = 7


class Estimate(NamedTuple):
    """A figure over many pictures.

    Attributes
    ----------
    value : float
    low, high : float or None
        Between which it lies with 95%, had other pictures of the kind been taken; None of a single picture.
    """

    value: float
    low: Optional[float]
    high: Optional[float]


class Localization:
    """Pointing game, energy, highest pixels and segmentation of many maps, with intervals over their pictures.

    Maps of one picture are not independent, so the intervals (percentiles of a bootstrap, Efron 1979) draw pictures, each
    with all of its maps.

    Parameters
    ----------
    tolerance : float
        In pixels, as in :func:`pointing_hit`.
    """

    def __init__(self, tolerance: float = 15.0) -> None:
        self.tolerance = tolerance
        self.reset()

    def update(
        self, heatmap: Any, mask: Any, picture: str = "", label: str = "object", smaller: Optional[tuple[Any, Any]] = None
    ) -> list[float]:
        """Add a map.

        Parameters
        ----------
        heatmap : array_like of float, [H, W]
            Not negative.
        mask : array_like, [H, W]
            1 on the object, 0 elsewhere, -1 where nobody said.
        picture : str
            Whose map it is.
        label : str
            The class of what the mask marks.
        smaller : (map, mask), optional
            The same two at another size, for the figures that sort all pixels: the highest ones, and segmentation, whose
            published figures are at 224 x 224.

        Returns
        -------
        list of float
            The map's numbers, as :meth:`add` takes them.
        """
        sorted_map, sorted_mask = (heatmap, mask) if smaller is None else smaller
        own = [
            float(pointing_hit(heatmap, mask, tolerance=self.tolerance)), energy_inside(heatmap, mask),
            float((np.asarray(mask) == 1).mean()), inside_top_k(sorted_map, sorted_mask),
        ]  # fmt: skip
        numbers = [*own, *map(float, segmentation_counts(sorted_map, sorted_mask))]
        self.add(numbers, picture, label)
        return numbers

    def add(self, numbers: list[float], picture: str = "", label: str = "object") -> None:
        """Add the numbers that :meth:`update` gave of a map. ValueError where they are others."""
        if len(numbers) != len(_OWN) + _COUNTS or not np.isfinite(numbers).all():
            raise ValueError(f"numbers: expected {len(_OWN) + _COUNTS} finite ones, got {numbers!r:.80}")
        self._numbers.append(numbers)
        self._pictures.append(self._known_pictures.setdefault(picture, len(self._known_pictures)))
        self._labels.append(self._known_labels.setdefault(label, len(self._known_labels)))

    def __len__(self) -> int:
        return len(self._numbers)

    def summary(self, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
        """The figures of all maps.

        Parameters
        ----------
        resamples : int
            Of the bootstrap.
        seed : int
            Of its draws.

        Returns
        -------
        dict of str to Estimate
            ``pointing`` (mean over the classes), ``energy`` and, to hold it against, ``area`` (the objects' share of the
            pictures), ``inside_top_k``, ``pixel_accuracy``, ``miou``, ``map``: each from 0 to 1.
        """
        if not self._numbers:
            raise ValueError("no maps yet: call update first")
        numbers, pictures, labels = np.array(self._numbers), np.array(self._pictures), np.array(self._labels)
        found = _figures(numbers, np.ones(len(numbers)), labels)
        count = len(self._known_pictures)
        if count < 2:
            return {name: Estimate(value, None, None) for name, value in found.items()}
        draw = np.random.default_rng(seed)
        drawn = []
        for _ in range(resamples):
            times = np.bincount(draw.integers(count, size=count), minlength=count)[pictures]
            drawn.append(list(_figures(numbers, times.astype(np.float64), labels).values()))
        low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
        return {name: Estimate(value, float(low[i]), float(high[i])) for i, (name, value) in enumerate(found.items())}

    def reset(self) -> None:
        """Forget what was added."""
        self._numbers: list[list[float]] = []
        self._pictures: list[int] = []
        self._labels: list[int] = []
        self._known_pictures: dict[str, int] = {}
        self._known_labels: dict[str, int] = {}


def _figures(numbers: Doubles, times: Doubles, labels: npt.NDArray[np.int_]) -> dict[str, float]:
    """Of maps [N, ...], each counted so many times."""
    total = float(times.sum())
    sums = times @ numbers
    seen = np.bincount(labels, weights=times)
    hits = np.bincount(labels, weights=times * numbers[:, 0])
    own = {name: float(sums[i] / total) for i, name in enumerate(_OWN)}
    own["pointing"] = float((hits[seen > 0] / seen[seen > 0]).mean())
    return {**own, **segmentation_summary(sums[len(_OWN) :], total)}
