"""What models give beside maps: encoded questions, attentions, hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Union

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


class BlockAttentions(Mapping[int, FloatArray]):
    """Attention probabilities of the blocks that were asked for: ``attentions[7]`` is block 7's, [B, h, T, M + T].

    M = 0 before questions enter. Its keys are blocks; a negative one counts from the model's last, and asking for a block
    that was not computed is a KeyError that says which were.
    """

    def __init__(self, by_block: dict[int, FloatArray], num_blocks: int) -> None:
        self._by_block = dict(sorted(by_block.items()))
        self._num_blocks = num_blocks

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks that are there."""
        return tuple(self._by_block)

    def __getitem__(self, block: int) -> FloatArray:
        number = whole_number(block, "attentions")
        number += self._num_blocks if number < 0 else 0
        if number not in self._by_block:
            raise KeyError(f"attention of block {block} was not computed; there are blocks {list(self.blocks)}")
        return self._by_block[number]

    def __len__(self) -> int:
        return len(self._by_block)

    def __iter__(self) -> Iterator[int]:
        return iter(self._by_block)

    def __repr__(self) -> str:
        return f"BlockAttentions(blocks {list(self.blocks)} of {self._num_blocks})"


class VisionOutput(NamedTuple):
    """What :meth:`qavit.Model.vision` returns; a part that was not asked for is None.

    Attributes
    ----------
    last_hidden_state : ndarray of float32, [B, T, D], or None
        What leaves the last block.
    pooler_output : ndarray of float32, [B, D], or None
        The normed class token.
    attentions : tuple of ndarray, BlockAttentions or None
        [B, h, T, M + T] of every block, or by block of those that were asked for.
    hidden_states : tuple of ndarray of float32, [B, T, D], or None
        What enters block 0, then what leaves each block.
    """

    last_hidden_state: FloatArray | None
    pooler_output: FloatArray | None
    attentions: Union[tuple[FloatArray, ...], BlockAttentions, None]
    hidden_states: tuple[FloatArray, ...] | None
