"""The answers that a model chooses from, and the linear layer that scores them."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import numpy as np

from .._base.types import FloatArray
from ..checkpoints._weights import NOT_FINITE, float_array

if TYPE_CHECKING:
    from ..checkpoints._source import ModelSource
    from ._model import Model, Request


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

    def number_of(self, answer: str | int) -> int:
        """The row of an answer, by its name or its number."""
        names = self.answer_names
        if isinstance(answer, str) and answer in names:
            return names.index(answer)
        number = answer if isinstance(answer, int) else int(answer) if answer.isdecimal() else -1
        if not 0 <= number < len(names):
            near = ", ".join(map(repr, difflib.get_close_matches(str(answer), names, 3) or names[:3]))
            raise ValueError(f"answer: {answer!r} is none of the model's {len(names)}, such as {near}")
        return number


def classes_asked(model: Model, head: AnswerHead, questions: Any, request: Request) -> tuple[list[str], Request]:
    """A classifier's classes, by names or numbers, in the place of questions: the map is of their log-probability."""
    listed = [questions] if isinstance(questions, (str, int)) else list(questions)
    names = [head.answer_names[head.number_of(one)] for one in listed]
    if not names:
        raise ValueError("questions: no classes; give at least one, or None")
    if "answer" not in request.method.options(model):
        if request.method.name != model.default_method:
            raise ValueError(f"questions: method {request.method.name!r} knows no classes; 'gradcam' and 'gae' do")
        request = model._request("gradcam", None, "mean", request.options)
    return names, request._replace(options=request.options._replace(answer=names))
