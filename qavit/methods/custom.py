"""A function of the caller's as a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Optional

import numpy as np
import numpy.typing as npt

from .._base.tensors import detached
from .._base.types import FloatArray, Heads
from ._look import Look, Readable
from .attention import checked_attention
from .base import Method, checked_numbers


class Custom(Method):
    """Maps by a function of a block's raw attention."""

    takes_heads = False
    of_text = False

    def __init__(self, function: Callable[[FloatArray], Any]) -> None:
        self.function = function
        self.name = str(getattr(function, "__name__", type(function).__name__))

    def suits(self, model: Readable) -> bool:
        """Whether the model has what is read."""
        return "attention" in model.reads

    def blocks(self, model: Readable) -> tuple[int, ...]:
        """The blocks whose maps can know the question."""
        return tuple(range(model.num_blocks))

    def by_block(self, look: Look, blocks: Sequence[int], heads: Optional[Heads]) -> FloatArray:
        """One map a question and block, as it was read."""
        attention = look.attention(blocks)
        maps = [read_custom(self.function, attention[block], look.question_tokens(block), look.grid) for block in blocks]
        return np.stack(maps, axis=1)


def read_custom(
    function: Callable[[FloatArray], Any],
    attention: npt.ArrayLike,
    question_tokens: Optional[int] = None,
    grid: Optional[tuple[int, int]] = None,
) -> FloatArray:
    """Maps by a function, checked.

    Parameters
    ----------
    function : callable
        It gets the raw attention, float32 [B, h, T, M + T], and returns finite numbers [B, P] or [B, gh, gw].
    attention : array [B, h, T, M + T]
    question_tokens : int, optional
        M; by default it follows from the shape.
    grid : (gh, gw), optional
        The patch grid, which a result [B, gh, gw] must have.

    Returns
    -------
    float32 array [B, P]
        As they were returned.
    """
    array, tokens = checked_attention(attention, question_tokens)
    if array.ndim != 4:
        raise ValueError(f"attention: a function as method needs [B, h, T, M + T], got shape {array.shape}")
    patches = array.shape[-1] - tokens - 1 if grid is None else grid[0] * grid[1]
    values = np.asarray(detached(function(array)))
    wanted: list[tuple[int, ...]] = [(array.shape[0], patches)]
    if grid is not None:
        wanted.append((array.shape[0], *grid))
    accepted = values.shape in wanted or (
        grid is None and values.ndim == 3 and values.shape[0] == array.shape[0] and values[0].size == patches
    )
    if not accepted:
        shapes = " or ".join(map(str, wanted))
        raise ValueError(f"method: the function returned shape {values.shape}, expected {shapes}")
    return checked_numbers(values, (array.shape[0], patches), "the function")
