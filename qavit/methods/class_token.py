"""Where the class token looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import numpy as np
import numpy.typing as npt

from .._base.types import FloatArray, Heads
from ..heatmaps._distribution import to_distribution
from ._look import Look, Readable
from .attention import checked_attention, merge_heads
from .base import Method


class ClassToken(Method):
    """The class token's attention to the patches."""

    name = "class"
    of_text = False

    def suits(self, model: Readable) -> bool:
        """Whether the model has what is read."""
        return {"attention", "class_token"} <= model.reads

    def blocks(self, model: Readable) -> tuple[int, ...]:
        """The blocks whose maps can know the question."""
        return tuple(block for block in range(model.num_blocks) if not self.blind(model, block))

    def blind(self, model: Readable, block: int) -> bool:
        """Whether the class token has not seen the question yet."""
        # The block where the question enters changes what leaves it; its own attention is of what came in.
        return bool(model.question_blocks) and block <= model.question_blocks[0]

    def by_block(self, look: Look, blocks: Sequence[int], heads: Optional[Heads]) -> FloatArray:
        """One map a question and block, as it was read."""
        attention, patches = look.attention(blocks, class_row=True), look.grid[0] * look.grid[1]
        rows = [checked_attention(attention[block], look.question_tokens(block))[0][..., 0, -patches:] for block in blocks]
        return np.stack([merge_heads(row, heads) for row in rows], axis=1)


METHOD = ClassToken()


def read_class(
    attention: npt.ArrayLike, question_tokens: Optional[int] = None, heads: Optional[Heads] = "mean"
) -> FloatArray:
    """Where the class token looks: its attention to the patches, as one distribution a pair.

    Parameters
    ----------
    attention : array [..., h, T, M + T] or [..., h, 1, M + T]
        Raw attention of a block: all queries, or the class token's row alone.
    question_tokens : int, optional
        M. Needed when only the class token's row is given; otherwise it follows from the shape.
    heads : "mean", "max", int or None
        See `merge_heads`.

    Returns
    -------
    float32 array [..., P]; [..., h, P] with heads=None
        Each map sums to 1.
    """
    array, tokens = checked_attention(attention, question_tokens)
    return to_distribution(merge_heads(array[..., 0, tokens + 1 :], heads))
