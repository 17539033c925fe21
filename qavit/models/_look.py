"""What a model gives methods to read, and what else a result is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Optional

from .. import _core
from .._base.types import FloatArray, Heads, Score
from .._base.warnings import Note
from ..heatmaps._distribution import to_distribution
from ..methods._look import Look, Options
from ..methods.base import Method


class ModelLook(Look, ABC):
    """What a model gives methods to read, and what else a result is made of."""

    questions: list[str]
    options = Options()
    image: Optional[FloatArray] = None
    words: Optional[list[list[str]]] = None
    notes: Sequence[Note] = ()

    @abstractmethod
    def word_maps(self, blocks: Sequence[int], heads: Heads) -> list[FloatArray]:
        """A question each [words, gh, gw]."""

    @property
    def texts(self) -> FloatArray:
        raise TypeError("texts: this model has no embeddings of texts in its pictures' space")

    @property
    def logit_scale(self) -> float:
        return 1.0

    @property
    def logit_bias(self) -> float:
        return 0.0

    @property
    def answer_head(self) -> Optional[tuple[FloatArray, FloatArray]]:
        return None

    @property
    def tower(self) -> _core.Vit:
        raise TypeError("tower: this model's vision tower cannot be asked")

    @property
    def registers(self) -> int:
        return 0

    def pool_attention(self) -> FloatArray:
        raise TypeError("pool_attention: this model's vision tower has no attention head")

    @property
    def has_attention_head(self) -> bool:
        return False

    def gradients(
        self,
        first: int,
        wanted: Sequence[tuple[str, int]] = (),
        *,
        beside: Optional[FloatArray] = None,
        score: Score = "cosine",
        scale: float = 1.0,
        relevance: Optional[int] = None,
        single_head: Optional[int] = None,
    ) -> dict[str, Any]:
        raise TypeError("gradients: this model's vision tower cannot be asked")

    def dense(self, method: str, first: Optional[int]) -> FloatArray:
        raise TypeError("dense: this model's vision tower cannot be asked")

    def mean_attention(self, blocks: Sequence[int]) -> dict[int, FloatArray]:
        raise TypeError("mean_attention: this model's vision tower cannot be asked")

    def pooling_weights(self) -> FloatArray:
        raise TypeError("pooling_weights: this model's vision tower cannot be asked")

    @property
    def inputs(self) -> dict[str, Any]:
        raise TypeError("inputs: this model's vision tower cannot be asked")

    def cross_attention(self) -> FloatArray:
        raise TypeError("cross_attention: this model writes no texts")

    def empty(self, text: str) -> FloatArray:
        raise TypeError("empty: this model has no embeddings of texts in its pictures' space")

    def scores(self) -> Optional[FloatArray]:
        """How well the picture fits each text; None where nothing says so."""
        return None

    def score_notes(self) -> Sequence[Note]:
        """What the scores say against the maps, before `release`."""
        return ()

    def answers(self) -> Optional[list[list[tuple[str, float]]]]:
        """Ranked answers; None where there are none."""
        return None

    @abstractmethod
    def release(self) -> None:
        """Let go of what can be computed again."""


def maps_of_heads(look: ModelLook, method: Method, blocks: Sequence[int], count: int) -> FloatArray:
    """The map of each head for so many questions, [Q, H, gh, gw], each summing to 1."""
    values = method.read(look, blocks, None).reshape(count, -1, *look.grid)
    look.release()
    return to_distribution(values, axes=2)
