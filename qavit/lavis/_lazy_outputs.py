"""Outputs of the vision model, computed when they are looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from .._base.arguments import whole_number
from .._base.tensors import as_kind
from .._base.types import FloatArray
from ..methods.class_token import read_class
from ..models._question_vit import QAViT


class LazyBlocks(Sequence[Any]):
    """A value for each block, computed when it is first read, then kept: in all else a tuple.

    The first request goes as far as it must; a second one for other blocks computes all of them in one pass.
    """

    def __init__(self, count: int, compute: Callable[[list[int]], Mapping[int, Any]], name: str) -> None:
        self._count, self._compute, self._name = count, compute, name
        self._known: dict[int, Any] = {}

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Any, ...]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.several(range(*index.indices(self._count)))
        if not -self._count <= whole_number(index, self._name) < self._count:
            raise IndexError(f"{self._name}: block {index} does not exist; the model has blocks 0 to {self._count - 1}")
        return self.several([index % self._count])[0]

    def __iter__(self) -> Iterator[Any]:
        return iter(self[:])

    def several(self, blocks: Sequence[int]) -> tuple[Any, ...]:
        """The values of blocks, in one pass."""
        missing = {block for block in blocks if block not in self._known}
        if missing:
            if self._known:
                missing = set(range(self._count)) - set(self._known)
            self._known.update(self._compute(sorted(missing)))
        return tuple(self._known[block] for block in blocks)


class LazyVisionOutput:
    """What `PNPVQAWithQAViT.qavit_vision_model` returns; each part is computed when it is first read, then kept.

    Tensors where the images or states were torch tensors, arrays otherwise.

    Attributes
    ----------
    torch : module or None
        torch, where the parts are tensors.
    """

    def __init__(
        self,
        model: QAViT,
        images: FloatArray,
        states: FloatArray | None,
        mask: npt.NDArray[np.uint8] | None,
        output_attentions: bool,
        output_hidden_states: bool,
        torch: Any,
    ) -> None:
        self.torch = torch
        self._model, self._inputs = model, (images, states, mask)
        self._wants_attentions, self._wants_hidden = output_attentions, output_hidden_states
        self._attentions = LazyBlocks(model.num_blocks, self._compute_attentions, "attentions")
        self._class_maps = LazyBlocks(model.num_blocks, self._compute_class_maps, "class_maps")
        self._hidden: tuple[Any, ...] | None = None
        self._outputs: dict[str, Any] = {}

    @property
    def attentions(self) -> LazyBlocks:
        """Attention probabilities by block, float32 [B, h, T, M + T]: question tokens are the first M keys.

        M = 0 in blocks that the question does not enter.
        """
        if not self._wants_attentions:
            raise ValueError("attentions: not asked for; call qavit_vision_model(..., output_attentions=True)")
        return self._attentions

    @property
    def hidden_states(self) -> tuple[Any, ...] | None:
        """What enters block 0, then what leaves each block, float32 [B, T, D]; None where they were not asked for."""
        if self._wants_hidden and self._hidden is None:
            levels = range(self._model.num_blocks + 1)
            result = self._model._run(*self._inputs, (), levels)["hidden"]
            self._hidden = tuple(as_kind(result[level], self.torch) for level in levels)
        return self._hidden

    @property
    def last_hidden_state(self) -> Any:
        """What leaves the last block, float32 [B, T, D]."""
        return self._output("last")

    @property
    def pooler_output(self) -> Any:
        """The normed class token, float32 [B, D]."""
        return self._output("pooled")

    def class_maps(self, blocks: Sequence[int]) -> FloatArray:
        """The class token's maps, float32 [B, len(blocks), num_patches], without forming whole attentions."""
        return np.stack(self._class_maps.several(blocks), axis=1)

    def _compute_attentions(self, blocks: list[int]) -> dict[int, Any]:
        attentions = self._model._run(*self._inputs, [(block, "raw") for block in blocks])["attentions"]
        return {block: as_kind(attentions[block], self.torch) for block in blocks}

    def _compute_class_maps(self, blocks: list[int]) -> dict[int, FloatArray]:
        attentions = self._model._run(*self._inputs, [(block, "class") for block in blocks])["attentions"]
        mask = self._inputs[2]
        tokens = 0 if mask is None else mask.shape[1]
        return {block: read_class(attentions[block], tokens if block in self._model.integrated else 0) for block in blocks}

    def _output(self, name: str) -> Any:
        if not self._outputs:
            names = ("last", "pooled")
            result = self._model._run(*self._inputs, (), (), names)
            self._outputs = {name: as_kind(result[name], self.torch) for name in names}
        return self._outputs[name]
