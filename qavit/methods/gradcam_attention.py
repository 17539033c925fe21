"""GradCAM of attention: where the class token looks, times how much that speaks for a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import numpy as np

from .._base.types import FloatArray, Heads
from ._look import Look, Readable
from ._of_gradient import OfGradient, has_score, patches, times_gradient
from .attention import merge_heads


class GradCAMOfAttention(OfGradient):
    """A max(dscore / dA, 0) of the class token, a head at a time (Li et al. 2021, ALBEF, on self-attention).

    SigLIP has no class token: there it is the attention of its pooling head, which stands behind the last block.
    """

    name = "gradcam_attention"

    def suits(self, model: Readable) -> bool:
        """Whether the model has what is read."""
        return has_score(model) and bool({"class_token", "attention_head"} & model.reads)

    def blocks(self, model: Readable) -> tuple[int, ...]:
        """The blocks whose maps can know the question."""
        every = super().blocks(model)
        return every[-1:] if "attention_head" in model.reads else every

    def check(self, model: Readable, blocks: Sequence[int]) -> None:
        """ValueError where the map is the pooling head's, for any block but the one in front of it."""
        last = model.num_blocks - 1
        if "attention_head" in model.reads and set(blocks) != {last}:
            raise ValueError(
                f"block: method {self.name!r} is of the pooling head behind block {last} here; got {list(blocks)}"
            )

    def by_block(self, look: Look, blocks: Sequence[int], heads: Optional[Heads]) -> FloatArray:
        """One map a question and block, as it was read."""
        if not look.has_attention_head:
            return times_gradient(look, blocks, heads)
        behind = max(blocks) + 1
        found = look.gradients(behind - 1, [("class_attention", behind), ("class_gradient", behind)])
        gradient = found["class_gradient"][behind]
        values = patches(look, found["class_attention"][behind]) * np.maximum(patches(look, gradient), 0)
        return np.stack([merge_heads(values, heads)] * len(blocks), axis=1)


METHOD = GradCAMOfAttention()
