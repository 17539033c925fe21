"""Outputs of the vision model, computed when they are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from .._base.arguments import whole_number
from .._base.tensors import as_kind
from ..methods.class_token import read_class
from ..models._question_vit import QAViT


class VisionOutputs:
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
        images: npt.NDArray[np.float32],
        states: npt.NDArray[np.float32] | None,
        mask: npt.NDArray[np.uint8] | None,
        output_attentions: bool,
        output_hidden_states: bool,
        torch: Any,
    ) -> None:
        self.torch = torch
        self._model, self._images, self._states, self._mask = model, images, states, mask
        self._attentions = BlockAttentions(self) if output_attentions else None
        self._hidden_wanted = output_hidden_states
        self._hidden: tuple[Any, ...] | None = None
        self._outputs: dict[str, Any] = {}
        self._maps: dict[int, npt.NDArray[np.float32]] = {}

    @property
    def attentions(self) -> BlockAttentions:
        """Attention probabilities by block, float32 [B, h, T, M + T]: question tokens are the first M keys.

        M = 0 in blocks that the question does not enter.
        """
        if self._attentions is None:
            raise ValueError("attentions: not asked for; call qavit_vision_model(..., output_attentions=True)")
        return self._attentions

    @property
    def hidden_states(self) -> tuple[Any, ...] | None:
        """What enters block 0, then what leaves each block, float32 [B, T, D]; None where they were not asked for."""
        if self._hidden_wanted and self._hidden is None:
            levels = range(self._model.num_blocks + 1)
            result = self._model._run(self._images, self._states, self._mask, (), levels)["hidden"]
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

    def class_maps(self, blocks: Sequence[int]) -> npt.NDArray[np.float32]:
        """The class token's maps, float32 [B, len(blocks), num_patches], without forming whole attentions.

        The first request goes as far as it must; a second one for other blocks reads all blocks in one pass.
        """
        missing = [block for block in dict.fromkeys(blocks) if block not in self._maps]
        if missing:
            if self._maps:
                missing = [block for block in range(self._model.num_blocks) if block not in self._maps]
            taps = [(block, "class") for block in sorted(missing)]
            run = self._model._run(self._images, self._states, self._mask, taps)["attentions"]
            tokens = 0 if self._mask is None else self._mask.shape[1]
            for block in missing:
                self._maps[block] = read_class(run[block], tokens if block in self._model.integrated else 0)
        return np.stack([self._maps[block] for block in blocks], axis=1)

    def _output(self, name: str) -> Any:
        if not self._outputs:
            names = ("last", "pooled")
            result = self._model._run(self._images, self._states, self._mask, (), (), names)
            self._outputs = {name: as_kind(result[name], self.torch) for name in names}
        return self._outputs[name]


class BlockAttentions(Sequence[Any]):
    """Attention probabilities by block, computed when first read: ``attentions[7]`` is float32 [B, h, T, M + T]."""

    def __init__(self, outputs: VisionOutputs) -> None:
        self._of = outputs
        self._blocks: dict[int, Any] = {}

    def __len__(self) -> int:
        return self._of._model.num_blocks

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Any, ...]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self._read(range(*index.indices(len(self))))
        if not -len(self) <= whole_number(index, "attentions") < len(self):
            raise IndexError(f"attentions: block {index} does not exist; the model has blocks 0 to {len(self) - 1}")
        return self._read([index % len(self)])[0]

    def __iter__(self) -> Any:
        return iter(self[:])

    def _read(self, blocks: Sequence[int]) -> tuple[Any, ...]:
        """In one pass; a second request for other blocks reads all of them."""
        missing = [block for block in blocks if block not in self._blocks]
        if missing:
            if self._blocks:
                missing = [block for block in range(len(self)) if block not in self._blocks]
            of = self._of
            wanted = [(block, "raw") for block in sorted(missing)]
            result = of._model._run(of._images, of._states, of._mask, wanted)["attentions"]
            self._blocks.update((block, as_kind(result[block], of.torch)) for block in missing)
        return tuple(self._blocks[block] for block in blocks)
