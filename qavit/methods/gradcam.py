"""PnP-VQA's GradCAM: which patches speak for a match of picture and text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import numpy as np

from .._base.types import FloatArray, Heads
from ._look import Look, Readable
from .base import Method


class GradCAM(Method):
    """Cross-attention of the text half times its gradient (Tiong et al. 2022), as salesforce/LAVIS computes it."""

    name = "gradcam"
    takes_heads = False

    def suits(self, model: Readable) -> bool:
        """Whether the model has what is read."""
        return "gradcam" in model.reads

    def blocks(self, model: Readable) -> tuple[int, ...]:
        """The blocks whose maps can know the question."""
        return model.usable_blocks

    def options(self, model: Readable) -> frozenset[str]:
        """What it may be told: of which answer it is, where the model answers."""
        return frozenset({"answer"} & model.reads)

    def by_block(self, look: Look, blocks: Sequence[int], heads: Optional[Heads]) -> FloatArray:
        """One map a question and block, as it was read."""
        values = look.gradcam(blocks)
        return np.stack([values[block] for block in blocks], axis=1)


METHOD = GradCAM()
