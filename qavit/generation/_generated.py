"""What a decoder wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

import numpy as np
import numpy.typing as npt

from .._base.types import FloatArray

if TYPE_CHECKING:
    from .._result import HeatmapResult


@dataclass(frozen=True, eq=False)
class Generated:
    """A text that a model generated, or chose.

    Attributes
    ----------
    text : str
    ids : int64 [n] or None
        The new ones: no start, no prompt; the end's id where it was emitted. None where the text was chosen from a list.
    score : float
        The sum of the ids' log-probabilities by the softmax of the model's logits, the end's included, whatever settings
        chose them.
    logits : float32 [n, V] or None
        The model's own at each id, where they were asked for.
    ranked : list of (str, float) or None
        Answers with their probabilities, best first, where they are chosen from a list.
    result : HeatmapResult or None
        Where the model looked, where there is a map.
    """

    text: str
    ids: Optional[npt.NDArray[np.int64]] = None
    score: float = 0.0
    logits: Optional[FloatArray] = None
    ranked: Optional[list[tuple[str, float]]] = None
    result: Optional[HeatmapResult] = None

    def __str__(self) -> str:
        return self.text
