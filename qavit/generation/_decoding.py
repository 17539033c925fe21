"""How texts are decoded, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Optional, Union

import numpy as np
import numpy.typing as npt

from .._base.arguments import real_number, whole_number
from .._base.types import FloatArray
from ._processors import Sampling

Ids = npt.NDArray[np.int64]

#: A text has at most so many tokens and beams, whatever is asked for: a decoder that never ends one would fill the memory.
MOST_TOKENS, MOST_BEAMS = 4096, 1024


class Decoded(NamedTuple):
    """One text: its new ids, the end's where it was emitted; their log-probability; logits [n, V] if asked for."""

    ids: Ids
    score: float
    logits: Optional[FloatArray]


@dataclass(frozen=True)
class Decoding:
    """How texts are decoded; lengths count what a text begins with.

    Attributes
    ----------
    max_length : int
        A text ends there at the latest; 1 to `MOST_TOKENS`.
    eos : int or None
        The token that ends a text; None: only the length does.
    sampling : Sampling
        Temperature, top-k and top-p are for draws alone.
    do_sample : bool
        Draw the next token instead of taking the best.
    num_beams : int
        1: no beams. With more, up to `MOST_BEAMS`, transformers' beam search.
    length_penalty : float
        A finished beam's log-probability is divided by its number of new tokens to this power.
    early_stopping : bool or "never"
        True: stop with `num_beams` finished; False: when no running beam would come before the worst of them now; "never":
        when none ever could.

    Raises
    ------
    TypeError, ValueError
        Something is not of its kind or range, or does not go together; the message names it.
    """

    max_length: int
    eos: Optional[int]
    sampling: Sampling = field(default_factory=Sampling)
    do_sample: bool = False
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: Union[bool, Literal["never"]] = False

    def __post_init__(self) -> None:
        if not 1 <= whole_number(self.max_length, "max_length") <= MOST_TOKENS:
            raise ValueError(f"max_length: {self.max_length}, expected 1 to {MOST_TOKENS}")
        if self.sampling.min_length > self.max_length:
            raise ValueError(f"min_length: {self.sampling.min_length}, expected at most max_length, {self.max_length}")
        if not 1 <= whole_number(self.num_beams, "num_beams") <= MOST_BEAMS:
            raise ValueError(f"num_beams: {self.num_beams}, expected 1 to {MOST_BEAMS}")
        if not np.isfinite(real_number(self.length_penalty, "length_penalty")):
            raise ValueError(f"length_penalty: {self.length_penalty}, expected a finite number")
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(f"early_stopping: {self.early_stopping!r}, expected True, False or 'never'")
        if self.do_sample and self.num_beams > 1:
            raise ValueError("num_beams: beams are not drawn from; expected do_sample=False or num_beams=1")
        if self.sampling.draws and not self.do_sample:
            raise ValueError("temperature, top_k, top_p: they say how to draw; expected do_sample=True beside them")
