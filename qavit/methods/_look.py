"""What a method is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional, Protocol, Union

import numpy as np
import numpy.typing as npt

from .._base.types import FloatArray, Score


class Options(NamedTuple):
    """What a method may be told beside blocks and heads.

    Attributes
    ----------
    score : "cosine" or "softmax"
        What a gradient is of.
    corrected : bool
        Whether patches that the empty text points at are taken out.
    empty : str or float32 [1, E], optional
        The text that counts as empty; None: the method's own.
    """

    score: Score = "cosine"
    corrected: bool = True
    empty: Union[str, FloatArray, None] = None


class Readable(Protocol):
    """What a method may ask of a model.

    Attributes
    ----------
    reads : frozenset of str
        What a `Look` of this model can be asked for: "attention", "question_attention", "gradcam".
    num_blocks : int
    question_blocks : tuple of int
        The blocks that attend to the question.
    default_block : int
    usable_blocks : tuple of int
        Those that have a map worth looking at by the model's default method.
    """

    @property
    def reads(self) -> frozenset[str]: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def question_blocks(self) -> tuple[int, ...]: ...
    @property
    def default_block(self) -> int: ...
    @property
    def usable_blocks(self) -> tuple[int, ...]: ...


class Look(Protocol):
    """A picture and Q questions inside of a model, or Q pairs of both: what methods read maps from.

    Attributes
    ----------
    grid : tuple of int
        (gh, gw), P = gh * gw.
    question_mask : uint8 [Q, M] or None
        Which question tokens count.
    options : Options
        Those that the method takes; the others are at their defaults.
    """

    options: Options

    @property
    def grid(self) -> tuple[int, int]: ...
    @property
    def question_mask(self) -> Optional[npt.NDArray[np.uint8]]: ...

    def attention(self, blocks: Sequence[int], class_row: bool = False) -> dict[int, FloatArray]:
        """Attention probabilities by block, [Q, h, T, M + T], computed in one pass; of the class token alone if asked."""
        ...

    def question_tokens(self, block: int) -> int:
        """M at a block; 0 where the question does not enter."""
        ...

    def gradcam(self, blocks: Sequence[int]) -> dict[int, FloatArray]:
        """The text half's cross-attention times its gradient, by block, [Q, P]."""
        ...
