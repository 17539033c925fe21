"""What methods read of a vision tower with questions: attention, and what is made along with it in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Optional, Protocol

import numpy as np
import numpy.typing as npt

from .._base.types import FloatArray, Heads
from ..checkpoints._weights import check_unchanged
from ..methods.words import read_words
from ._questions import Encoded
from ._texts import TextHalf
from ._tower_look import HasTower, TowerLook

if TYPE_CHECKING:
    from ..checkpoints._source import ModelSource
    from ..images import Seen


class HasAttention(HasTower, Protocol):
    """What is needed of a model."""

    grid: tuple[int, int]
    integrated: tuple[int, ...]
    answer_names: Optional[list[str]]

    @property
    def _registers(self) -> int: ...
    @property
    def _source(self) -> ModelSource: ...
    @property
    def _prompt_half(self) -> Callable[[], TextHalf]: ...


class AttentionLook(TowerLook):
    """Attention of a tower for one picture and its questions, or for pairs of both."""

    _model: HasAttention
    prompts: Optional[Sequence[str]] = None

    def __init__(
        self,
        model: HasAttention,
        pixels: Seen,
        encoded: Optional[Encoded],
        pair_image: Optional[npt.NDArray[np.int32]],
        answering: bool = False,
    ) -> None:
        self._model, self._pixels, self._encoded, self._pair_image = model, pixels, encoded, pair_image
        self._answering = answering
        self._pooled: Optional[FloatArray] = None
        self._keeps_last = False
        self._last: Optional[FloatArray] = None

    @property
    def grid(self) -> tuple[int, int]:
        return self._model.grid

    @property
    def question_mask(self) -> Optional[npt.NDArray[np.uint8]]:
        return None if self._encoded is None else self._encoded.mask

    def attention(self, blocks: Sequence[int], class_row: bool = False) -> dict[int, FloatArray]:
        kind = "class" if class_row else "raw"
        return self._attentions([(block, kind) for block in sorted(set(blocks))])

    @property
    def registers(self) -> int:
        return self._model._registers

    @property
    def texts(self) -> FloatArray:
        if self.prompts is None or self._model._source.prompts is None:
            return super().texts
        return self._model._prompt_half().embeddings(self.prompts)

    def scores(self) -> Optional[FloatArray]:
        return self.fits

    def pool_attention(self) -> FloatArray:
        looks = self._head_looks
        return np.asarray(self._pass([], outputs=("pool_attention",))["pool_attention"] if looks is None else looks)

    def question_tokens(self, block: int) -> int:
        if self._encoded is None or block not in self._model.integrated:
            return 0
        return int(self._encoded.mask.shape[1])

    @property
    def logit_scale(self) -> float:
        return 1.0 if self._model._source.prompts is None else self._model._prompt_half().logit_scale

    @property
    def answer_head(self) -> Optional[tuple[FloatArray, FloatArray]]:
        head = self._model._answer_head if self._model.answer_names is not None else None
        return None if head is None else (head.weight, head.bias)

    @property
    def inputs(self) -> dict[str, Any]:
        check_unchanged(self._model._files)
        result: dict[str, Any] = {"pixel_values": self._pixels}
        if not isinstance(self._pixels, np.ndarray):
            result = {"pixel_values": [self._pixels.picture], "preprocessing": self._pixels.preprocessing}
        if self._encoded is not None:
            pairs = self._pair_image
            result["pair_image"] = np.arange(len(self._encoded.mask), dtype=np.int32) if pairs is None else pairs
            result["instruct"] = self._encoded.states
            result["instruct_length"] = self._encoded.mask.sum(axis=1, dtype=np.int32)
        return result

    def empty(self, text: str) -> FloatArray:
        given = self.options.empty
        if given is not None and not isinstance(given, str):
            raise ValueError("empty: expected a text")
        return self._model._prompt_half().embeddings([text if given is None else given])

    def _pass(
        self, taps: Sequence[tuple[int, str]], hidden: Sequence[int] = (), outputs: Sequence[str] = ()
    ) -> dict[str, Any]:
        states, mask = (None, None) if self._encoded is None else self._encoded[:2]
        every = tuple(dict.fromkeys([*outputs, *self._along(hidden)]))
        result: dict[str, Any] = self._model._run(
            self._pixels, states, mask, taps, hidden, every, pair_image=self._pair_image
        )
        self._pooled, self._last = result.get("pooled", self._pooled), result.get("last", self._last)
        return result

    def _along(self, hidden: Sequence[int]) -> list[str]:
        """What is going to be asked for beside a pass for such states, so that it is made in the same one."""
        wanted = {"pooled": self._answering and self._pooled is None, "last": self._keeps_last and self._last is None}
        return [name for name, is_wanted in wanted.items() if is_wanted]

    def keep_last(self) -> None:
        """From the pass that the map is read of, keep what leaves the last block, for `take_last`."""
        self._keeps_last = True

    def take_last(self) -> tuple[FloatArray, list[npt.NDArray[np.int64]]]:
        """What leaves the last block, [Q, T, D], which is let go of, and each question's tokens."""
        if self._last is None:
            self._pass([])
        last, self._last, self._keeps_last = self._last, None, False
        assert last is not None
        assert self._encoded is not None
        return last, self._encoded.ids

    def answers(self) -> Optional[list[list[tuple[str, float]]]]:
        if not self._answering:
            return None
        if self._pooled is None:
            self._pass([])
        assert self._pooled is not None
        found: list[list[tuple[str, float]]] = self._model._answer_head.rank(self._pooled)
        named = self.options.answer
        return found * len(named) if self._encoded is None and isinstance(named, (list, tuple)) else found

    def word_maps(self, blocks: Sequence[int], heads: Heads) -> list[FloatArray]:
        """How much each patch attends to each word, at the first block from the last asked one on that can."""
        encoded, model = self._encoded, self._model
        assert encoded is not None
        block = min((i for i in model.integrated if i >= max(blocks)), default=model.integrated[-1])
        maps = []
        for row, (names, word_of) in enumerate(encoded.words):
            one = slice(row, row + 1)  # all rows of the attention are needed, and they are large
            pair = None if self._pair_image is None else self._pair_image[one]
            taps = [(block, "raw")]
            run = model._run(self._pixels, encoded.states[one], encoded.mask[one], taps, pair_image=pair)["attentions"]
            tokens = run[block].shape[3] - run[block].shape[2]
            found = read_words(run[block], [word_of[:tokens]], tokens, heads)[0]
            maps.append(found.reshape(-1, *self.grid)[: len(names)])
        return maps

    def release(self) -> None:
        self._pooled = self._head_looks = None
