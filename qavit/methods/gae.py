"""GAE: attention and its gradient, propagated from block to block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from .._base.types import FloatArray, Heads
from ._look import Look, Readable
from ._of_gradient import OfGradient, patches, times_gradient


class GAE(OfGradient):
    """The class token's row of R, which begins as 1 and gains mean_h max(A dscore / dA, 0) R at each block.

    Generic attention-model explainability (Chefer et al. 2021, arXiv 2103.15679). The score is a text's logit: its cosine
    times logit_scale, so that maps of several blocks depend on that. By default of the last block alone, as in the public
    code, whose authors found artefacts in maps of all.
    """

    name = "gae"
    takes_heads = False

    def check(self, model: Readable, blocks: Sequence[int]) -> None:
        """ValueError for several blocks that do not reach to the last one."""
        last = model.num_blocks - 1
        if len(blocks) > 1 and sorted(blocks) != list(range(min(blocks), last + 1)):
            raise ValueError(
                f"block: method {self.name!r} goes from a block to the last one, {last}; expected one block, or all from it "
                f"on, got {list(blocks)}"
            )

    def by_block(self, look: Look, blocks: Sequence[int], heads: Optional[Heads]) -> FloatArray:
        """Each block by itself: R of one step."""
        return times_gradient(look, blocks, "mean" if heads is None else heads, look.logit_scale)

    def read(self, look: Look, blocks: Sequence[int], heads: Optional[Heads]) -> FloatArray:
        """R through all of the blocks."""
        if len(blocks) == 1:
            return self.by_block(look, blocks, heads)[:, 0]
        first = min(blocks)
        found = look.gradients(first, scale=look.logit_scale, relevance=first)
        return patches(look, found["relevance"])


METHOD = GAE()
