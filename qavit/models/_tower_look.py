"""What methods read from a vision tower beside its attention: gradients of scores, and the mean over heads."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Optional, Protocol

import numpy as np
import numpy.typing as npt

from .. import _core
from .._base.types import FloatArray, Score
from ..checkpoints._weights import Origin, check_unchanged
from ..methods._of_gradient import norm_gradcam
from ._cached_tower import CachedTower
from ._look import ModelLook

if TYPE_CHECKING:
    from ..images import Seen


class HasTower(Protocol):
    """What is needed of a model: `_run` gives a pair's rows in the order of the pairs."""

    reads: frozenset[str]

    @property
    def _vit(self) -> _core.Vit: ...
    @property
    def _tower(self) -> CachedTower: ...
    @property
    def _files(self) -> tuple[Origin, ...]: ...
    @property
    def _vision(self) -> Any: ...
    @property
    def _run(self) -> Any: ...
    @property
    def _answer_head(self) -> Any: ...


class TowerLook(ModelLook):
    """A picture and its questions, or pairs of both, inside of a vision tower.

    `_encoded` begins with the questions' states [Q, M, Dt] and which of their tokens count, [Q, M].
    """

    _model: HasTower
    _pixels: Seen
    _encoded: Any
    _pair_image: Optional[npt.NDArray[np.int32]]
    #: How well each pair's picture fits its text, where that has been computed, [Q].
    fits: Optional[FloatArray] = None
    #: Where the pooling head looks, [N, h, T], of a pass that has made it along the way.
    _head_looks: Optional[FloatArray] = None

    @property
    def tower(self) -> _core.Vit:
        return self._model._vit

    @property
    def has_attention_head(self) -> bool:
        return "attention_head" in self._model.reads

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
        model = self._model
        states, mask = (None, None) if self._encoded is None else self._encoded[:2]
        if states is None and _of_legrad_alone(wanted, relevance, single_head) and "texts" in model.reads:
            return self._legrad(first, wanted, beside, score, scale)
        hidden = self._pass([], (first,))["hidden"][first]
        texts = self.texts if "texts" in model.reads else None
        named = self.options.answer
        if texts is None and named is None and any(name == "legrad" for name, _ in wanted):
            # The model's own answer, whichever is the likeliest by what a block gives.
            named = [ranked[0][0] for ranked in self.answers() or ()] or None
        if texts is None and named is not None:
            how = {"score": score, "scale": scale, "wanted": wanted, "relevance": relevance, "single_head": single_head}
            return self._of_answers(named, hidden, first, states, mask, how)
        if texts is not None and beside is not None:
            texts = np.concatenate([texts, beside])
        found = self.tower.gradients(
            hidden, first, texts, paired=states is not None, score=score, scale=scale, wanted=wanted,
            relevance=relevance, single_head=single_head, **_in_front(states, mask),
        )  # fmt: skip
        if texts is not None:
            fit = found
            if single_head is not None:  # whose score is another model's
                fit = self.tower.gradients(hidden, first, texts, paired=states is not None, **_in_front(states, mask))
            self.image = _unit(fit["image"])
            if states is not None:
                self.fits = np.diagonal(fit["scores"]).copy()
        return found

    def _legrad(
        self, first: int, wanted: Sequence[tuple[str, int]], beside: Optional[FloatArray], score: Score, scale: float
    ) -> dict[str, Any]:
        """LeGrad's gradients alone: what they read of a picture, whatever the texts, is kept of the last pictures."""
        tower = self._model._tower
        texts = self.texts if beside is None else np.concatenate([self.texts, beside])
        key, kept = tower.legrad_kept(self._pixels, wanted)
        hidden = None
        if kept is None:
            hidden = self._pass([], (first,))["hidden"][first]
        else:
            check_unchanged(self._model._files)
        found = self.tower.gradients(
            hidden, first, texts, score=score, scale=scale, wanted=wanted, keep=key is not None and kept is None, kept=kept
        )
        if "kept" in found:
            tower.keep_legrad(key, found.pop("kept"))
        self.image = _unit(found["image"])
        return found

    def _of_answers(
        self, named: Any, hidden: FloatArray, first: int, states: Optional[FloatArray], mask: Any, how: dict[str, Any]
    ) -> dict[str, Any]:
        """Gradients of the answers that are named: one for all questions, or one each."""
        count = len(hidden) if states is not None else 1
        listed = [named] * count if isinstance(named, str) else list(named)
        if states is not None and len(listed) != count:
            raise ValueError(f"answer: {len(listed)} answers for {count} questions; give one for all, or one each")
        numbers = [self._model._answer_head.number_of(name) for name in listed]
        found = []
        for row, number in enumerate(numbers):
            own = slice(row, row + 1) if states is not None else slice(None)
            front = _in_front(states, mask)
            front = {name: array[own] for name, array in front.items()}
            found.append(self.tower.gradients(hidden[own], first, None, answer=number, **how, **front))
        return dict(_joined(found))

    def gradcam(self, blocks: Sequence[int]) -> dict[int, FloatArray]:
        return norm_gradcam(self, blocks)

    def mean_attention(self, blocks: Sequence[int]) -> dict[int, FloatArray]:
        found = self._attentions([(block, "mean") for block in sorted(set(blocks))])
        return {block: self._for_each(array)[:, 0] for block, array in found.items()}

    def pooling_weights(self) -> FloatArray:
        if self.has_attention_head:
            return np.asarray(self.pool_attention().mean(axis=1))
        weights, patches = np.zeros((1, self.tower.tokens), np.float32), self.grid[0] * self.grid[1]
        if self._model._vision.get("pooling", "class") == "class":
            weights[:, 0] = 1
        else:
            weights[:, -patches:] = 1 / patches
        return weights

    def dense(self, method: str, first: Optional[int]) -> FloatArray:
        check_unchanged(self._model._files)
        patches, self.image = self._model._tower.dense(self._pixels, method, first)
        return patches

    @abstractmethod
    def _pass(
        self, taps: Sequence[tuple[int, str]], hidden: Sequence[int] = (), outputs: Sequence[str] = ()
    ) -> dict[str, Any]:
        """One pass of the tower: what is asked for, and along with it what is going to be."""

    def _attentions(self, taps: Sequence[tuple[int, str]]) -> dict[int, FloatArray]:
        looks = any(kind == "mean" for _, kind in taps) and self.has_attention_head
        result = self._pass(taps, outputs=("pool_attention",) if looks else ())
        self._head_looks = result.get("pool_attention")
        found: dict[int, FloatArray] = result["attentions"]
        return found

    def _for_each(self, array: FloatArray) -> FloatArray:
        """What is the picture's own, once a text."""
        return array


def _of_legrad_alone(wanted: Sequence[tuple[str, int]], relevance: Optional[int], single_head: Optional[int]) -> bool:
    """Whether gradients are LeGrad's alone, for which a picture's part is the same for all texts."""
    return bool(wanted) and relevance is None and single_head is None and all(name == "legrad" for name, _ in wanted)


def _unit(image: FloatArray) -> FloatArray:
    """Rows of unit length."""
    lengths = np.linalg.norm(image.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(image / np.maximum(lengths, 1e-12), np.float32)


def _joined(parts: Sequence[Any]) -> Any:
    """Arrays one behind the other, by the same names."""
    if isinstance(parts[0], dict):
        return {name: _joined([part[name] for part in parts]) for name in parts[0]}
    return np.concatenate(parts)


def _in_front(states: Optional[FloatArray], mask: Optional[npt.NDArray[np.uint8]]) -> dict[str, Any]:
    """Question states with the tokens that count in front, and how many these are."""
    if states is None or mask is None:
        return {}
    order = np.argsort(mask == 0, axis=1, kind="stable")
    return {
        "instruct": np.take_along_axis(states, order[:, :, None], axis=1),
        "instruct_length": mask.sum(axis=1, dtype=np.int32),
    }
