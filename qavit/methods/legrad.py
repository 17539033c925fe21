"""LeGrad: how each block's attention speaks for a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import numpy as np

from .._base.types import FloatArray, Heads
from ._look import Look, Readable
from ._of_gradient import OfGradient, has_score, patches, wanted
from .attention import merge_heads

#: LeGrad's empty text for SigLIP, and how much of that text's map marks a patch that stands out for any text.
EMPTY, STANDS_OUT = "a photo of a", 0.8


class LeGrad(OfGradient):
    """Mean over all queries of max(ds / dA, 0), s the score of the mean of the block's own output tokens.

    LeGrad (Bousselham et al. 2024, arXiv 2404.03214). Of several blocks the sum; by default of the last two. SigLIP's
    attention is its pooling head's, over each block's output, and patches that stand out for the empty text, too, are
    taken out of the sum (``corrected=False`` leaves them in).
    """

    name = "legrad"

    def suits(self, model: Readable) -> bool:
        """Whether there is a score to differentiate."""
        return has_score(model)

    def default(self, model: Readable) -> tuple[int, ...]:
        """The last two blocks."""
        return tuple(range(max(0, model.num_blocks - 2), model.num_blocks))

    def options(self, model: Readable) -> frozenset[str]:
        """Of SigLIP, the correction; where there are answers in place of texts, which."""
        siglip = "attention_head" in model.reads and "texts" in model.reads
        return frozenset({"corrected", "empty"}) if siglip else super().options(model)

    def by_block(self, look: Look, blocks: Sequence[int], heads: Optional[Heads]) -> FloatArray:
        """One map a question and block, each corrected by itself."""
        empty = self._empty(look)
        values = self._of_texts(look, blocks, heads, empty)
        return values if empty is None else _corrected(values[:-1], values[-1:])

    def read(self, look: Look, blocks: Sequence[int], heads: Optional[Heads]) -> FloatArray:
        """The sum of the blocks' maps."""
        empty = self._empty(look)
        values = self._of_texts(look, blocks, heads, empty).sum(axis=1, dtype=np.float64).astype(np.float32)
        return values if empty is None else _corrected(values[:-1], values[-1:])

    def _empty(self, look: Look) -> Optional[FloatArray]:
        return look.empty(EMPTY) if look.has_attention_head and look.options.corrected else None

    @staticmethod
    def _of_texts(look: Look, blocks: Sequence[int], heads: Optional[Heads], empty: Optional[FloatArray]) -> FloatArray:
        """[Q, len(blocks), P], the empty text's behind the others'."""
        found = look.gradients(min(blocks), wanted(("legrad",), blocks), beside=empty)["legrad"]
        queries = 1 if look.has_attention_head else found[blocks[0]].shape[-1] - look.question_tokens(blocks[0])
        return np.stack([merge_heads(patches(look, found[block]) / queries, heads) for block in blocks], axis=1)


METHOD = LeGrad()


def _corrected(maps: FloatArray, empty: FloatArray) -> FloatArray:
    """Maps [Q, ..., P] without the patches where the empty text's [1, ..., P] is high in its own range."""
    least = empty.min(axis=-1, keepdims=True)
    spread = empty.max(axis=-1, keepdims=True) - least
    high = (empty - least) > STANDS_OUT * spread
    return np.asarray(np.where(high, 0, maps), np.float32)
