"""Where a tower's register tokens look (Darcet et al., arXiv 2309.16588)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import numpy as np

from .._base.types import FloatArray, Heads
from ._look import Look, Readable
from .attention import merge_heads
from .base import Method


class Registers(Method):
    """The mean of the register tokens' attention to the patches."""

    name = "registers"
    of_text = False

    def suits(self, model: Readable) -> bool:
        """Whether the model has what is read."""
        return {"attention", "registers"} <= model.reads

    def blocks(self, model: Readable) -> tuple[int, ...]:
        """Every block."""
        return tuple(range(model.num_blocks))

    def by_block(self, look: Look, blocks: Sequence[int], heads: Optional[Heads]) -> FloatArray:
        """One map a question and block, as it was read."""
        attention, patches = look.attention(blocks), look.grid[0] * look.grid[1]
        found = []
        for block in blocks:
            prefix = attention[block].shape[-2] - patches
            rows = attention[block][..., prefix - look.registers : prefix, -patches:]
            found.append(merge_heads(np.asarray(rows.mean(axis=-2, dtype=np.float64), np.float32), heads))
        return np.stack(found, axis=1)


METHOD = Registers()
