"""Captions of the patches that a map picks, by the rules of LAVIS's forward_cap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .._base.arguments import real_number, whole_number
from .._base.warnings import QavitWarning, warn

MOST_DRAWN = 10
"""Captions decoded for each that is wanted, before fewer have to do."""


class CaptionSettings(NamedTuple):
    """How captions are drawn; lengths count the prompt."""

    num_captions: int
    num_patches: int
    max_length: int
    min_length: int
    top_p: float
    top_k: int
    repetition_penalty: float
    seed: int

    def checked(self) -> CaptionSettings:
        """The same; ValueError or TypeError where one of them cannot be."""
        for name in ("num_captions", "num_patches", "max_length", "min_length", "top_k", "seed"):
            least = 1 if name in ("num_captions", "num_patches", "max_length") else 0
            if whole_number(getattr(self, name), name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        for name in ("top_p", "repetition_penalty"):
            if not real_number(getattr(self, name), name) > 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected more than 0")
        return self


class Caption(NamedTuple):
    """A caption, and the patches that it was drawn from: int32 [num_patches], from 0, ascending."""

    text: str
    patches: npt.NDArray[np.int32]


def collect(draw: Callable[[int, int], Sequence[Caption]], wanted: int) -> list[Caption]:
    """As many captions as wanted, none of which is a part of one before it; fewer, with a warning, where there are no more.

    LAVIS decodes anew for every question until each has its captions, and for ever where a question has too few. Here a
    question has its own draws, only what is missing is drawn, and at most `MOST_DRAWN` for each that is wanted.

    Parameters
    ----------
    draw : callable
        From the number of the first caption and how many: captions, in the order of their numbers.
    wanted : int
    """
    kept: list[Caption] = []
    drawn = 0
    while len(kept) < wanted and drawn < MOST_DRAWN * wanted:
        count = min(wanted - len(kept), MOST_DRAWN * wanted - drawn)
        for caption in draw(drawn, count):
            if not any(caption.text in before.text for before in kept):
                kept.append(caption)
        drawn += count
    if len(kept) < wanted:
        warn(
            QavitWarning,
            f"{len(kept)} of {wanted} captions: {drawn} were drawn, and the others are parts of these; more patches "
            "(num_patches) or words to draw from (top_k) give more",
        )
    return kept
