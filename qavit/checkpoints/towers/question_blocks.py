"""QA-ViT's blocks that attend to the question (Ganz et al., arXiv 2402.05472)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._weights import Stored, float_array, weight_of
from .names import _VISION, _unwrap

#: Which blocks of L take the question, by the name of the integration point.
INTEGRATION_POINTS = ("all", "early", "late", "late2", "late3", "sparse")


def integrated_blocks(point: str, blocks: int) -> tuple[int, ...]:
    """The blocks that take the question, for an integration point and a number of blocks."""
    first = {"all": 0, "late": blocks // 2, "late2": 3 * blocks // 4, "late3": blocks // 4}
    if point in first:
        return tuple(range(first[point], blocks))
    if point == "early":
        return tuple(range(blocks // 2))
    if point == "sparse":
        return tuple(range(0, blocks, 2))
    raise ValueError(f"integration_point: expected one of {', '.join(INTEGRATION_POINTS)}, got {point!r}")


def integration_point(found: tuple[int, ...], blocks: int, stated: str | None) -> str:
    """The name of a set of integrated blocks, checked against the one that was stated.

    Raises
    ------
    ValueError
        Where the weights' blocks are not those of ``stated``, or of any integration point.
    """
    if stated is not None:
        expected = integrated_blocks(stated, blocks)
        if expected != found:
            raise ValueError(
                f"integration_point {stated!r} means blocks {_ranges(expected)} of {blocks}, "
                f"but the weights have instruct layers in blocks {_ranges(found)}"
            )
        return stated
    for point in ("late", "all", "early", "late2", "late3", "sparse"):
        if integrated_blocks(point, blocks) == found:
            return point
    raise ValueError(
        f"the weights have instruct layers in blocks {_ranges(found)} of {blocks}, which is none of the integration "
        f"points ({', '.join(INTEGRATION_POINTS)})"
    )


def _ranges(blocks: tuple[int, ...]) -> str:
    if not blocks:
        return "(none)"
    parts: list[list[int]] = []
    for block in blocks:
        if parts and parts[-1][1] == block - 1:
            parts[-1][1] = block
        else:
            parts.append([block, block])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _sort_names(tensors: Stored, name: str) -> Stored:
    """A QA-ViT state dict's tensors by our names; what belongs to the language model's other half is left out."""
    result: Stored = {}
    duplicate: Stored = {}
    for original, tensor in tensors.items():
        plain = _unwrap(original)
        vision = _VISION.search(plain)
        if vision:
            ours = vision[1]
        elif plain.startswith(("decoder.", "lm_head.")) or "translation_mlp" in plain.split("."):
            continue
        elif plain.startswith("instruction_embedder."):
            duplicate["text_model.shared." + plain[len("instruction_embedder.") :]] = tensor
            continue
        elif plain.startswith(("shared.", "encoder.")):
            ours = "text_model." + plain
        elif plain.endswith("visual_projection.weight"):
            ours = "visual_projection.weight"
        else:
            ours = plain
        if ours in result:
            raise ValueError(f"{name}: {ours} is there twice ({original!r} is one of its names)")
        result[ours] = tensor
    for ours, tensor in duplicate.items():
        if ours in result and not _same(result[ours], tensor):
            raise ValueError(f"{name}: instruction_embedder and shared are not the same table ({ours})")
        result.setdefault(ours, tensor)
    return result


def _same(a: Any, b: Any) -> bool:
    one, two = weight_of(a), weight_of(b)
    if one[0] is two[0] and one[1:] == two[1:]:
        return True
    return one[1:3] == two[1:3] and np.array_equal(float_array(one), float_array(two), equal_nan=True)
