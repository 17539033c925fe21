"""GradCAM: which patches speak for a match of picture and text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import numpy as np

from .._base.types import FloatArray, Heads
from ._look import Look, Readable
from ._of_gradient import NO_PROMPTS, has_score, of_answer
from .base import Method


class GradCAM(Method):
    """What speaks for a text, times how much (Selvaraju et al. 2017).

    Of a model whose text half looks at the picture, its cross-attention times its gradient, as salesforce/LAVIS and PnP-VQA
    (Tiong et al. 2022) have it. Else layer_norm1's output times its gradient's mean over the patches, as
    pytorch-grad-cam's CLIP example has it.
    """

    name = "gradcam"
    takes_heads = False

    def suits(self, model: Readable) -> bool:
        """Whether the model has what is read."""
        return "gradcam" in model.reads or has_score(model)

    def lacks(self, model: Readable) -> str:
        """That a QA-ViT's texts have to be embedded by something."""
        return NO_PROMPTS if model.question_blocks and not has_score(model) else ""

    def blocks(self, model: Readable) -> tuple[int, ...]:
        """The blocks whose maps can know the question."""
        return model.usable_blocks if "gradcam" in model.reads else tuple(range(model.num_blocks))

    def default(self, model: Readable) -> tuple[int, ...]:
        """PnP-VQA's block, or the last one."""
        return (model.default_block,) if "gradcam" in model.reads else (model.num_blocks - 1,)

    def options(self, model: Readable) -> frozenset[str]:
        """What the gradient is of."""
        return frozenset({"score"} if "texts" in model.reads else {"answer"} & model.reads) | of_answer(model)

    def by_block(self, look: Look, blocks: Sequence[int], heads: Optional[Heads]) -> FloatArray:
        """One map a question and block, as it was read."""
        values = look.gradcam(blocks)
        return np.stack([values[block] for block in blocks], axis=1)


METHOD = GradCAM()
