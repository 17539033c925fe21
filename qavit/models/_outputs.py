"""What models give beside maps: encoded questions, attentions, hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from .._base.arguments import whole_number
from .._base.types import FloatArray


class EncodedQuestions(NamedTuple):
    """Questions as the vision model takes them.

    Attributes
    ----------
    states : ndarray of float32, [B, M, Dt]
        The text encoder's last hidden states; zero where the mask is.
    mask : ndarray of uint8, [B, M]
        1 for a token of the question, 0 for padding.
    """

    states: FloatArray
    mask: npt.NDArray[np.uint8]


class BlockAttentions(Sequence[FloatArray]):
    """Attention probabilities by block: ``attentions[7]`` is block 7's, [B, h, T, M + T] (M = 0 before questions enter).

    Only the blocks that were computed are there; asking for another is an IndexError that says which are.
    """

    def __init__(self, by_block: dict[int, FloatArray], num_blocks: int) -> None:
        self._by_block = by_block
        self._num_blocks = num_blocks

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks that are there."""
        return tuple(sorted(self._by_block))

    def __len__(self) -> int:
        return self._num_blocks

    @overload
    def __getitem__(self, index: int) -> FloatArray: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[FloatArray, ...]: ...
    def __getitem__(self, index: int | slice) -> FloatArray | tuple[FloatArray, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(self._num_blocks)))
        index = whole_number(index, "attentions")
        block = index + self._num_blocks if index < 0 else index
        if block not in self._by_block:
            raise IndexError(f"attention of block {index} was not computed; there are blocks {list(self.blocks)}")
        return self._by_block[block]

    def __repr__(self) -> str:
        return f"BlockAttentions(blocks {list(self.blocks)} of {self._num_blocks})"

    def __iter__(self) -> Iterator[FloatArray]:
        return (self._by_block[block] for block in self.blocks)


class VisionOutput(NamedTuple):
    """What :meth:`qavit.QAViT.vision` returns; a part that was not asked for is None.

    Attributes
    ----------
    last_hidden_state : ndarray of float32, [B, T, D], or None
        What leaves the last block.
    pooler_output : ndarray of float32, [B, D], or None
        The normed class token.
    attentions : BlockAttentions or None
        By block, [B, h, T, M + T].
    hidden_states : tuple of ndarray of float32, [B, T, D], or None
        What enters block 0, then what leaves each block.
    """

    last_hidden_state: FloatArray | None
    pooler_output: FloatArray | None
    attentions: BlockAttentions | None
    hidden_states: tuple[FloatArray, ...] | None
