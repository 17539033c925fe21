"""Which patches look at the question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import numpy as np
import numpy.typing as npt

from .._base.types import FloatArray, Heads
from ..heatmaps._distribution import to_distribution
from ._look import Look, Readable
from .attention import attention_to_tokens, merge_heads
from .base import Method


class QuestionTokens(Method):
    """Each patch's attention to the question's tokens."""

    name = "question"

    def suits(self, model: Readable) -> bool:
        """Whether the model has what is read."""
        return "question_attention" in model.reads

    def blocks(self, model: Readable) -> tuple[int, ...]:
        """The blocks whose maps can know the question."""
        return model.question_blocks

    def check(self, model: Readable, blocks: Sequence[int]) -> None:
        """ValueError for a block that does not attend to the question."""
        for block in blocks:
            if block not in model.question_blocks:
                raise ValueError(
                    f"method 'question': block {block} does not attend to the question; blocks "
                    f"{list(model.question_blocks)} do"
                )

    def by_block(self, look: Look, blocks: Sequence[int], heads: Optional[Heads]) -> FloatArray:
        """One map a question and block, as it was read."""
        attention, mask = look.attention(blocks), look.question_mask
        values = [_question_values(attention[block], look.question_tokens(block), heads, mask) for block in blocks]
        return np.stack(values, axis=1)


METHOD = QuestionTokens()


def _question_values(
    attention: npt.ArrayLike, question_tokens: Optional[int], heads: Optional[Heads], mask: Optional[npt.ArrayLike]
) -> FloatArray:
    return merge_heads(attention_to_tokens(attention, question_tokens, mask).sum(axis=-1), heads)


def read_question(
    attention: npt.ArrayLike,
    question_tokens: Optional[int] = None,
    heads: Optional[Heads] = "mean",
    mask: Optional[npt.ArrayLike] = None,
) -> FloatArray:
    """Which patches look at the question: each patch's attention to all question tokens together.

    Parameters
    ----------
    attention : array [..., h, T, M + T]
        Raw attention of a block that sees the question (M > 0).
    question_tokens : int, optional
        M; by default it follows from the shape.
    heads : "mean", "max", int or None
        See `merge_heads`.
    mask : array [..., M], optional
        1 for the tokens that count, 0 for padding.

    Returns
    -------
    float32 array [..., P]; [..., h, P] with heads=None
        Each map sums to 1.
    """
    return to_distribution(_question_values(attention, question_tokens, heads, mask))
