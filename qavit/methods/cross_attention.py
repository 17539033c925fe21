"""Cross-attention of a decoder: what it looked at while it wrote each token of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import numpy as np

from .._base.types import FloatArray, Heads
from ._look import Look, Readable
from .base import Method


class CrossAttention(Method):
    """The mean over heads, blocks, and the tokens of a text's words."""

    name = "cross_attention"
    takes_heads = False

    def suits(self, model: Readable) -> bool:
        """Whether the model has what is read."""
        return "cross_attention" in model.reads

    def blocks(self, model: Readable) -> tuple[int, ...]:
        """All of them."""
        return model.usable_blocks

    def default(self, model: Readable) -> tuple[int, ...]:
        """All of them, which are read together."""
        return model.usable_blocks

    def check(self, model: Readable, blocks: Sequence[int]) -> None:
        """ValueError for some blocks alone."""
        if tuple(blocks) != model.usable_blocks:
            raise ValueError(f"block: method {self.name!r} reads all blocks together; expected None")

    def by_block(self, look: Look, blocks: Sequence[int], heads: Optional[Heads]) -> FloatArray:
        """The same for every block that is asked for."""
        return np.repeat(look.cross_attention()[:, None], len(blocks), axis=1)


METHOD = CrossAttention()
