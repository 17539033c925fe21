"""QA-ViT's blocks that attend to the question (Ganz et al., arXiv 2402.05472)."""

from __future__ import annotations

from typing import Any

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


def integration_point(found: tuple[int, ...], blocks: int, stated: Any, what: str) -> str:
    """The name of a set of integrated blocks, checked against the one that was stated; ``what`` is the model's name.

    Raises
    ------
    ValueError
        Where the weights' blocks are not those of ``stated``, or of any integration point.
    """
    if stated is not None:
        if stated not in INTEGRATION_POINTS:
            expected = ", ".join(INTEGRATION_POINTS)
            raise ValueError(f"{what}: integration_point: expected one of {expected}, got {stated!r:.60}")
        meant = integrated_blocks(stated, blocks)
        if meant != found:
            raise ValueError(
                f"{what}: integration_point {stated!r} means blocks {_ranges(meant)} of {blocks}, "
                f"but the weights have instruct layers in blocks {_ranges(found)}"
            )
        return str(stated)
    for point in ("late", "all", "early", "late2", "late3", "sparse"):
        if integrated_blocks(point, blocks) == found:
            return point
    raise ValueError(
        f"{what}: the weights have instruct layers in blocks {_ranges(found)} of {blocks}, which is none of the integration "
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
