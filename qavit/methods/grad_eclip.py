"""Grad-ECLIP: which patches the class token takes what speaks for a text from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import numpy as np

from .._base.types import FloatArray, Heads
from ._look import Look
from ._of_gradient import OfGradient, class_rows, for_each, patches, wanted

NAMES = ("class_attention", "class_gradient", "key_cosine")


class GradECLIP(OfGradient):
    """max(lam sum_d do v, 0): do the gradient of what the class token attended to, lam the cosine of its query and each key.

    Grad-ECLIP (Zhao et al. 2024, arXiv 2502.18816). With the model's own heads, do v is the sum over heads of the gradient
    of the class token's attention. The public code runs the block with one head, which explains another model:
    ``heads="single"``.
    """

    name = "grad_eclip"
    takes_heads = False
    own_heads = frozenset({"single"})

    def by_block(self, look: Look, blocks: Sequence[int], heads: Optional[Heads]) -> FloatArray:
        """One map a question and block, as it was read; with a single head, of that block and those behind it."""
        if heads == "single":
            return np.stack([self._maps(look, [block], block)[0] for block in blocks], axis=1)
        return np.stack(self._maps(look, blocks, None), axis=1)

    def read(self, look: Look, blocks: Sequence[int], heads: Optional[Heads]) -> FloatArray:
        """The sum of the blocks' maps, as the public code adds them; with a single head, all of them run so."""
        maps = self._maps(look, blocks, min(blocks) if heads == "single" else None)
        return np.asarray(np.sum(maps, axis=0, dtype=np.float64), np.float32)

    def _maps(self, look: Look, blocks: Sequence[int], single_head: Optional[int]) -> list[FloatArray]:
        found = look.gradients(min(blocks), wanted(NAMES, blocks), single_head=single_head)
        return [_map(found, look, block) for block in blocks]


METHOD = GradECLIP()


def _map(found: dict[str, Any], look: Look, block: int) -> FloatArray:
    gradient = class_rows(found, look, block)[1].sum(axis=1)
    cosines = patches(look, for_each(found["key_cosine"][block], len(gradient)))
    least = cosines.min(axis=1, keepdims=True)
    spread = cosines.max(axis=1, keepdims=True) - least
    # Patches whose keys are all the same are as near as can be.
    near = np.divide(cosines - least, spread, out=np.ones_like(cosines), where=spread != 0)
    return np.asarray(np.maximum(near * gradient, 0), np.float32)
