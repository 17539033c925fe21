"""Where the attention head looks that pools a tower's tokens: SigLIP's, which has no class token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from .._base.types import FloatArray, Heads
from ._look import Look, Readable
from .attention import merge_heads
from .base import Method


class Pool(Method):
    """The attention of the pooling head's one learned query to the patches, behind the last block."""

    name = "pool"
    of_text = False

    def suits(self, model: Readable) -> bool:
        """Whether the model has what is read."""
        return "attention_head" in model.reads

    def blocks(self, model: Readable) -> tuple[int, ...]:
        """The last block's, whose output the head looks over."""
        return (model.num_blocks - 1,)

    def default(self, model: Readable) -> tuple[int, ...]:
        """The same."""
        return self.blocks(model)

    def check(self, model: Readable, blocks: Sequence[int]) -> None:
        """ValueError for another block."""
        if set(blocks) - set(self.blocks(model)):
            raise ValueError(
                f"method 'pool': block {min(blocks)} has no map: the pooling head looks over what leaves the last block, "
                f"{model.num_blocks - 1}"
            )

    def by_block(self, look: Look, blocks: Sequence[int], heads: Optional[Heads]) -> FloatArray:
        """One map a question and block, as it was read."""
        patches = look.grid[0] * look.grid[1]
        return merge_heads(look.pool_attention()[..., -patches:], heads)[:, None]


METHOD = Pool()
