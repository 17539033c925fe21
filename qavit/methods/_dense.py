"""What the dense methods share: a cosine of each text with every patch, and one forward pass for all texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Optional

import numpy as np

from .._base.types import FloatArray, Heads
from ._look import Look, Readable
from .base import Method


class Dense(Method):
    """A map whose numbers are cosines of a text and patches that left the last block another way: see docs/MODEL.md.

    Such a map is negative where patches speak against the text.
    """

    takes_heads = False
    #: How many of the last blocks have their second path by default, and whether others can be chosen.
    blocks_from_end: ClassVar[int] = 1

    def suits(self, model: Readable) -> bool:
        """Whether there are texts, and patches that lie in their space."""
        return "texts" in model.reads and "attention_head" not in model.reads and not model.question_blocks

    def blocks(self, model: Readable) -> tuple[int, ...]:
        """The blocks that a path can begin in."""
        last = model.num_blocks - 1
        return (last,) if self.blocks_from_end == 1 else tuple(range(model.num_blocks))

    def default(self, model: Readable) -> tuple[int, ...]:
        """The last blocks, as many as the public code has it."""
        return tuple(range(max(0, model.num_blocks - self.blocks_from_end), model.num_blocks))

    def check(self, model: Readable, blocks: Sequence[int]) -> None:
        """ValueError for blocks that do not reach to the last one."""
        last = model.num_blocks - 1
        if self.blocks_from_end == 1:
            if list(blocks) != [last]:
                raise ValueError(f"block: method {self.name!r} is of the last block, {last}, alone; got {list(blocks)}")
        elif len(blocks) > 1 and sorted(blocks) != list(range(min(blocks), last + 1)):
            raise ValueError(
                f"block: method {self.name!r} has a path from a block to the last one, {last}; expected that block, or all "
                f"from it on, got {list(blocks)}"
            )

    def by_block(self, look: Look, blocks: Sequence[int], heads: Optional[Heads]) -> FloatArray:
        """The map of the path that begins in each block."""
        return np.stack([self._from(look, block) for block in blocks], axis=1)

    def read(self, look: Look, blocks: Sequence[int], heads: Optional[Heads]) -> FloatArray:
        """The map of the path that begins in the first of the blocks."""
        return self._from(look, min(blocks))

    def _from(self, look: Look, block: int) -> FloatArray:
        first = None if self.blocks_from_end == 1 else block
        return self.map_of(look, look.dense(self.name, first))

    def map_of(self, look: Look, patches: FloatArray) -> FloatArray:
        """[Q, P] from the patches' unit vectors [N, P, E], N 1 or Q."""
        return cosines(look.texts, patches)


def cosines(texts: FloatArray, patches: FloatArray) -> FloatArray:
    """Of texts [Q, E] with the patches [N, P, E] of one picture, or of each text's own: float32 [Q, P]."""
    if len(patches) == 1:
        return np.asarray(texts @ patches[0].T)
    return np.asarray(np.einsum("qe,qpe->qp", texts, patches))
