"""Which patches look at each word of a question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import numpy as np
import numpy.typing as npt

from .._base.arguments import whole_number
from .._base.types import FloatArray, Heads
from ..heatmaps._distribution import to_distribution
from .attention import attention_to_tokens, merge_heads


def read_words(
    attention: npt.ArrayLike,
    word_of: Sequence[Sequence[int]],
    question_tokens: Optional[int] = None,
    heads: Optional[Heads] = "mean",
) -> list[FloatArray]:
    """Which patches look at each word: the question method, one map a word.

    Parameters
    ----------
    attention : array [B, h, T, M + T]
        Raw attention of a block that sees the question.
    word_of : B sequences of at most M ints
        For each token the number of its word; -1 for special tokens and padding.
    question_tokens : int, optional
        M; by default it follows from the shape.
    heads : "mean", "max" or int
        See `merge_heads`.

    Returns
    -------
    list of B float32 arrays [words, P]
        Each map sums to 1. A word's tokens are summed.
    """
    if heads is None:
        raise ValueError("heads: None is not possible for maps of words; expected 'mean', 'max' or a head's number")
    columns = attention_to_tokens(attention, question_tokens, None)
    if columns.ndim != 4 or len(word_of) != columns.shape[0]:
        raise ValueError(
            f"word_of: {len(word_of)} questions, expected one for each pair in attention of shape {np.shape(attention)}"
        )
    maps = []
    for pair, words in zip(columns, word_of):
        if len(words) > pair.shape[-1]:
            raise ValueError(f"word_of: {len(words)} tokens, but the attention has {pair.shape[-1]} question tokens")
        words = [whole_number(word, "word_of") for word in words]
        count = max(words, default=-1) + 1
        member = np.zeros((pair.shape[-1], count), dtype=np.float32)
        for token, word in enumerate(words):
            if word >= 0:
                member[token, word] = 1.0
        by_word = np.moveaxis(pair @ member, -1, 0)
        maps.append(to_distribution(merge_heads(by_word, heads)) if count else by_word[:, 0])
    return maps
