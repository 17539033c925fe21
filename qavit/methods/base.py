"""What a method is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Optional

import numpy as np

from .._base.types import FloatArray, Heads
from ._look import Look, Options, Readable


class Method(ABC):
    """One way of reading a map.

    Attributes
    ----------
    name : str
        What ``method=`` calls it.
    takes_heads : bool
        Whether ``heads=`` means something to it.
    own_heads : frozenset of str
        What ``heads=`` may be for this method alone.
    of_text : bool
        Whether a dual encoder's map is of a text; else it is the same for every one, and needs none.
    """

    name: str
    takes_heads: ClassVar[bool] = True
    own_heads: ClassVar[frozenset[str]] = frozenset()
    of_text: ClassVar[bool] = True

    @abstractmethod
    def suits(self, model: Readable) -> bool:
        """Whether the model has what this method reads."""

    def lacks(self, model: Readable) -> str:
        """What to do about a model that does not suit, in an error; empty where nothing can be done."""
        return ""

    @abstractmethod
    def blocks(self, model: Readable) -> tuple[int, ...]:
        """The blocks that have a map by this method that can know the question."""

    @abstractmethod
    def by_block(self, look: Look, blocks: Sequence[int], heads: Optional[Heads]) -> FloatArray:
        """The method's own numbers, one map a block: float32 [Q, len(blocks), P]; [Q, len(blocks), h, P] for heads=None."""

    def default(self, model: Readable) -> tuple[int, ...]:
        """The blocks that are read when none is named."""
        usable = self.blocks(model)
        if model.default_block in usable or not usable:
            return (model.default_block,)
        return (min(usable, key=lambda block: (abs(block - model.default_block), -block)),)

    def options(self, model: Readable) -> frozenset[str]:
        """The fields of `Options` that mean something to it."""
        return frozenset()

    def check_options(self, model: Readable, options: Options) -> None:
        """Raise ValueError for an option that is set and means nothing to it."""
        taken, defaults = self.options(model), Options()
        for name in Options._fields:
            value, default = getattr(options, name), getattr(defaults, name)
            if name not in taken and value is not default and (default is None or value != default):
                raise ValueError(f"{name}: method {self.name!r} does not take it")

    def compares(self, options: Options) -> bool:
        """Whether a text's map depends on the call's other texts."""
        return options.score == "softmax"

    def check(self, model: Readable, blocks: Sequence[int]) -> None:
        """Raise ValueError for a block that has no map by this method."""
        del model, blocks  # any has one

    def blind(self, model: Readable, block: int) -> bool:
        """Whether the map of a block that can be read cannot know the question."""
        return False

    def read(self, look: Look, blocks: Sequence[int], heads: Optional[Heads]) -> FloatArray:
        """One map a question, float32 [Q, P]; of several blocks, what the method makes of them together: their mean.

        With heads=None one a head, [Q, h, P].
        """
        values = self.by_block(look, blocks, heads)
        return values[:, 0] if len(blocks) == 1 else np.asarray(values.mean(axis=1, dtype=np.float64), np.float32)


def checked_numbers(values: Any, shape: tuple[int, ...], what: str) -> FloatArray:
    """What foreign code gave for maps, as float32 of a shape; ValueError where it is no such thing."""
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.number) or np.issubdtype(array.dtype, np.complexfloating):
        raise ValueError(f"method: {what} returned {array.dtype}, expected real numbers")
    with np.errstate(over="ignore"):
        array = array.reshape(shape).astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"method: {what} returned NaN or infinity, expected finite numbers")
    return array
