"""What a cheaper way of computing changes: maps, scores and answers beside a reference's."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional

import numpy as np
import numpy.typing as npt

from ._agreement import spearman


class MapDifference(NamedTuple):
    """How one map differs from its reference.

    Attributes
    ----------
    spearman : float
        Rank correlation of the patches; 0 where a map is flat.
    same_patch : bool
        Whether the largest patch is the same.
    mean, largest : float
        Of the patches' absolute differences, as shares of the reference's largest value (by absolute value).
    """

    spearman: float
    same_patch: bool
    mean: float
    largest: float


def map_difference(heatmap: Any, reference: Any) -> MapDifference:
    """How a map differs from a reference of the same picture and question.

    Parameters
    ----------
    heatmap, reference : array_like of float, [gh, gw]

    Returns
    -------
    MapDifference

    Raises
    ------
    ValueError
        Shapes differ, or a map is not finite.
    """
    values, target = np.asarray(heatmap, np.float64), np.asarray(reference, np.float64)
    correlation = min(1.0, spearman(values, target))  # which refuses what is no pair of maps
    apart, size = np.abs(values - target), float(np.abs(target).max())
    mean, largest = (float(apart.mean()), float(apart.max())) if size == 0 else (apart.mean() / size, apart.max() / size)
    return MapDifference(correlation, bool(values.argmax() == target.argmax()), float(mean), float(largest))


class Differences:
    """:func:`map_difference` of many maps, with scores and answers, as one set of figures."""

    def __init__(self) -> None:
        self._maps: list[MapDifference] = []
        self._scores: list[float] = []
        self._answers: list[bool] = []

    def update(
        self,
        heatmap: Any,
        reference: Any,
        *,
        score: Optional[float] = None,
        reference_score: Optional[float] = None,
        answer: Optional[str] = None,
        reference_answer: Optional[str] = None,
    ) -> MapDifference:
        """Add a map; scores and answers where both sides have them.

        Parameters
        ----------
        heatmap, reference : array_like of float, [gh, gw]
        score, reference_score : float, optional
        answer, reference_answer : str, optional

        Returns
        -------
        MapDifference
        """
        found = map_difference(heatmap, reference)
        self._maps.append(found)
        if score is not None and reference_score is not None:
            self._scores.append(abs(float(score) - float(reference_score)))
        if answer is not None and reference_answer is not None:
            self._answers.append(answer == reference_answer)
        return found

    def __len__(self) -> int:
        return len(self._maps)

    def summary(self) -> dict[str, float]:
        """The figures over all maps.

        Returns
        -------
        dict of str to float
            ``spearman_mean``, ``spearman_least``; ``same_patch``, a share; ``difference_mean`` of all patches and
            ``difference_largest``. Where there were scores ``score_mean`` and ``score_largest``, absolute differences; where
            there were answers ``same_answer``, a share.

        Raises
        ------
        ValueError
            There are no maps yet.
        """
        if not self._maps:
            raise ValueError("there are no maps yet")
        columns = [np.array(column, np.float64) for column in zip(*self._maps)]
        ranks, same, mean, largest = columns
        found = {
            "spearman_mean": ranks.mean(), "spearman_least": ranks.min(), "same_patch": same.mean(),
            "difference_mean": mean.mean(), "difference_largest": largest.max(),
        }  # fmt: skip
        if self._scores:
            apart: npt.NDArray[np.float64] = np.array(self._scores)
            found |= {"score_mean": apart.mean(), "score_largest": apart.max()}
        if self._answers:
            found["same_answer"] = np.mean(self._answers)
        return {name: float(value) for name, value in found.items()}
