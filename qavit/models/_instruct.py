"""Questions as a QA-ViT's tower takes them: encoded and remembered, or given as states."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._base.tensors import to_numpy
from .._base.types import FloatArray
from .._base.warnings import Note


class Encoded(NamedTuple):
    """Encoded questions, their words with the tokens that make them, and what is to be said of them."""

    states: FloatArray
    mask: npt.NDArray[np.uint8]
    words: list[tuple[list[str], list[int]]]
    notes: list[Note]
    ids: list[npt.NDArray[np.int64]]


class Entry(NamedTuple):
    """One encoded question, as it is remembered."""

    states: FloatArray
    ids: npt.NDArray[np.int64]
    words: list[str]
    word_of: list[int]
    known: bool
    unknown: list[str]
    cut: list[str]


def instruct_states_of(
    states: Any, mask: Any, count: int, width: int
) -> tuple[FloatArray | None, npt.NDArray[np.uint8] | None]:
    """States [B, M, Dt] of B = `count` questions and which tokens count, as they were given to :meth:`Model.vision`."""
    if states is None:
        return None, None
    if isinstance(states, tuple) and len(states) == 2:
        states, own_mask = states
        mask = own_mask if mask is None else mask
    with np.errstate(over="ignore"):
        states = to_numpy(states, "instruct_states").astype(np.float32, copy=False)
    if states.ndim != 3 or states.shape[2] != width or states.shape[1] == 0:
        raise ValueError(f"instruct_states: shape {list(states.shape)}, expected [B, M, {width}] with M at least 1")
    if states.shape[0] != count:
        raise ValueError(f"instruct_states: {states.shape[0]} questions for {count} pictures; give one a picture")
    if mask is None:
        full = np.ones(states.shape[:2], np.uint8)
        return states, full
    mask = (to_numpy(mask, "instruct_mask") != 0).astype(np.uint8)
    if mask.shape != states.shape[:2]:
        raise ValueError(f"instruct_mask: shape {list(mask.shape)}, expected {list(states.shape[:2])}")
    if not mask.any(axis=1).all():
        raise ValueError("instruct_mask: a question has no token that counts")
    return states, mask
