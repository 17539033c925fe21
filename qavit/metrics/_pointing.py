"""How much of a map lies where it should."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .._result import HeatmapResult


def attention_inside(result: HeatmapResult, question: int, boxes: Sequence[Sequence[float]]) -> float:
    """How much of a map lies in boxes.

    Parameters
    ----------
    result : HeatmapResult
    question : int
        Which map.
    boxes : sequence of (left, top, right, bottom)
        In pixels of the picture; they should not overlap.

    Returns
    -------
    float
        From 0 to 1. A patch that a box covers in part counts in part.
    """
    rows, columns = result.grid
    seen = result.seen
    x = np.linspace(seen.left, seen.right, columns + 1)
    y = np.linspace(seen.top, seen.bottom, rows + 1)
    cover = np.zeros(result.grid)
    for left, top, right, bottom in boxes:
        across = np.clip(np.minimum(x[1:], right) - np.maximum(x[:-1], left), 0, None) / (x[1] - x[0])
        down = np.clip(np.minimum(y[1:], bottom) - np.maximum(y[:-1], top), 0, None) / (y[1] - y[0])
        cover += np.outer(down, across)
    values = result.maps[question]
    total = float(values.sum())
    return float((values * np.minimum(cover, 1.0)).sum() / total) if total > 0 else 0.0
