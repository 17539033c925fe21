"""The answers that a model chooses from, and the linear layer that scores them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._base.types import FloatArray
from ..checkpoints._weights import NOT_FINITE, float_array

if TYPE_CHECKING:
    from ..checkpoints._source import ModelSource


class AnswerHead:
    """The rows of ``answer_head.weight`` and their names.

    Parameters
    ----------
    source : ModelSource
        With answers.
    width : int
        Of the class token.

    Raises
    ------
    ValueError
        A tensor is missing or has another shape.
    """

    def __init__(self, source: ModelSource, width: int) -> None:
        self.name = source.name
        self.answer_names = list(source.answers or ())
        self.weight = self._read(source, "answer_head.weight", (len(self.answer_names), width))
        self.bias = self._read(source, "answer_head.bias", (len(self.answer_names),))

    @staticmethod
    def _read(source: ModelSource, name: str, shape: tuple[int, ...]) -> FloatArray:
        if name not in source.weights:
            raise ValueError(f"{source.name}: config.json lists answers, but {name} {list(shape)} is missing")
        values = float_array(source.weights[name])
        if values.shape != shape:
            raise ValueError(f"{source.name}: {name} has shape {list(values.shape)}, expected {list(shape)}")
        return values

    def rank(self, pooled: FloatArray) -> list[list[tuple[str, float]]]:
        """For each normed class token [B, D], the answers with their probabilities, likeliest first."""
        logits = pooled @ self.weight.T + self.bias
        if not np.isfinite(logits).all():
            raise ValueError(f"{self.name}: the answers' scores are not finite: {NOT_FINITE}")
        logits -= logits.max(axis=1, keepdims=True)
        probabilities = np.exp(logits)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        return [[(self.answer_names[i], float(row[i])) for i in np.argsort(-row, kind="stable")] for row in probabilities]
