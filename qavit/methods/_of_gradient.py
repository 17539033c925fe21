"""What methods share that read gradients of a text's score, or of an answer's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import numpy as np

from .._base.types import FloatArray, Heads
from ._look import Look, Readable
from .attention import merge_heads
from .base import Method

#: Of a QA-ViT that was opened without the other half of its CLIP.
NO_PROMPTS = "it is of a text's fit: load the model with vision= a CLIP folder that holds both halves, which embeds the text"


class OfGradient(Method):
    """A map of what a score changes with: a text's cosine with the picture, or the log-probability of the best answer."""

    def suits(self, model: Readable) -> bool:
        """Whether there is a score, and what its gradient is read from."""
        return has_score(model) and "class_token" in model.reads

    def lacks(self, model: Readable) -> str:
        """That a QA-ViT's texts have to be embedded by something."""
        return NO_PROMPTS if model.question_blocks and not has_score(model) else ""

    def options(self, model: Readable) -> frozenset[str]:
        """The answer whose map it is, of a model that chooses from a list."""
        return of_answer(model)

    def blocks(self, model: Readable) -> tuple[int, ...]:
        """The blocks whose maps can know the question: all, as their gradients do."""
        return tuple(range(model.num_blocks))

    def default(self, model: Readable) -> tuple[int, ...]:
        """The last block."""
        return (model.num_blocks - 1,)


def has_score(model: Readable) -> bool:
    """Whether a model's tower has something to differentiate."""
    return bool({"texts", "answer_head"} & model.reads)


def of_answer(model: Readable) -> frozenset[str]:
    """The option that says which answer's log-probability is differentiated, where there are no texts."""
    return frozenset({"answer"}) if "answer_head" in model.reads and "texts" not in model.reads else frozenset()


def wanted(names: Sequence[str], blocks: Sequence[int]) -> list[tuple[str, int]]:
    """Pairs as `Look.gradients` takes them."""
    return [(name, block) for name in names for block in sorted(set(blocks))]


def patches(look: Look, values: FloatArray) -> FloatArray:
    """The last P of [..., M + T]: neither question tokens nor what else stands in front of the patches."""
    return values[..., values.shape[-1] - look.grid[0] * look.grid[1] :]


def for_each(values: FloatArray, count: int) -> FloatArray:
    """[N, ...] of one picture, or of a picture each, once an item [count, ...]."""
    return np.broadcast_to(values, (count, *values.shape[1:])) if len(values) == 1 else values


def class_rows(found: dict[str, Any], look: Look, block: int) -> tuple[FloatArray, FloatArray]:
    """A and G of the class token, [Q, h, P]."""
    gradient = found["class_gradient"][block]
    return patches(look, for_each(found["class_attention"][block], len(gradient))), patches(look, gradient)


def times_gradient(look: Look, blocks: Sequence[int], heads: Optional[Heads], scale: float = 1.0) -> FloatArray:
    """A max(G, 0) of the class token at each block, [Q, len(blocks), P]; [Q, len(blocks), h, P] for heads=None."""
    found = look.gradients(min(blocks), wanted(("class_attention", "class_gradient"), blocks), scale=scale)
    maps = []
    for block in blocks:
        attention, gradient = class_rows(found, look, block)
        maps.append(merge_heads(attention * np.maximum(gradient, 0), heads))
    return np.stack(maps, axis=1)


def norm_gradcam(look: Look, blocks: Sequence[int]) -> dict[int, FloatArray]:
    """GradCAM of layer_norm1's output, as pytorch-grad-cam's CLIP example has it, by block, [Q, P]."""
    options = look.options
    softmax = options.score == "softmax"
    if softmax and len(look.texts) < 2:
        raise ValueError("score: 'softmax' is a text's share among the call's texts, of one always 1; give several")
    scale = look.logit_scale if softmax else 1.0
    found = look.gradients(min(blocks), wanted(("gradcam",), blocks), scale=scale, score=options.score)
    return {block: np.maximum(values, 0) for block, values in found["gradcam"].items()}
