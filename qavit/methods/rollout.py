"""Attention rollout: which patches reach the class token through all blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import numpy as np

from .._base.types import FloatArray, Heads
from ._look import Look, Readable
from ._of_gradient import patches
from .base import Method


class Rollout(Method):
    """The class token's row of the product of (A + 1) / 2, A the mean over heads, from the last block down.

    Abnar & Zuidema 2020 (arXiv 2005.00928). Where a head or a mean pools in place of a class token, its weights stand for
    that row's beginning. Question tokens are left out of a QA-ViT's attention, and its rows add up to 1 again. Of several
    blocks the product; by default of all.
    """

    name = "rollout"
    takes_heads = False
    of_text = False

    def suits(self, model: Readable) -> bool:
        """Whether the model has what is read."""
        return "attention" in model.reads

    def blocks(self, model: Readable) -> tuple[int, ...]:
        """The blocks whose maps can know the question."""
        first = model.question_blocks[0] if model.question_blocks else -1
        return tuple(range(first + 1, model.num_blocks))

    def default(self, model: Readable) -> tuple[int, ...]:
        """All blocks."""
        return tuple(range(model.num_blocks))

    def by_block(self, look: Look, blocks: Sequence[int], heads: Optional[Heads]) -> FloatArray:
        """Each block by itself."""
        attention, row = look.mean_attention(blocks), look.pooling_weights()
        return np.stack([patches(look, _through(row, attention[block])) for block in blocks], axis=1)

    def read(self, look: Look, blocks: Sequence[int], heads: Optional[Heads]) -> FloatArray:
        """All of the blocks, one behind the other."""
        attention, row = look.mean_attention(blocks), look.pooling_weights()
        for block in sorted(set(blocks), reverse=True):
            row = _through(row, attention[block])
        return patches(look, row)


METHOD = Rollout()


def _through(row: FloatArray, attention: FloatArray) -> FloatArray:
    """The row [., T] times (A + 1), whose rows add up to 1, A [Q, T, M + T] without the M question tokens."""
    tokens = attention.shape[1]
    own = attention[..., attention.shape[2] - tokens :]
    weights = np.broadcast_to(row, (len(own), tokens)) / (1 + own.sum(axis=-1, dtype=np.float32))
    return np.asarray(weights + np.matmul(weights[:, None], own)[:, 0], np.float32)
