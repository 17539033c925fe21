"""Questions as a QA-ViT takes them: states of its text encoder's tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._base.tensors import to_numpy
from .._base.types import FloatArray
from .._base.warnings import Note
from ..checkpoints._weights import NOT_FINITE, Origin, check_unchanged
from ..text import Tokenizer, words_with_tokens


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


def encode_questions(
    questions: list[str], tokenizer: Tokenizer, encoder: Any, max_tokens: int, name: str, files: tuple[Origin, ...]
) -> dict[str, Entry]:
    """Cleaned questions, each encoded by itself; the weights' files are looked at again behind the encoder."""
    if not questions:
        return {}
    batch = tokenizer.encode(questions, max_tokens)
    if int(batch.ids.max(initial=0)) >= encoder.vocab_size:
        raise ValueError(
            f"the tokenizer gives id {int(batch.ids.max())}, but the text encoder knows {encoder.vocab_size}: "
            "this is another model's tokenizer"
        )
    new = {}
    lengths = batch.mask.sum(axis=1)
    for length in np.unique(lengths):
        # Without padding: to the last bit, a question's states do not depend on what it is asked along with.
        rows = np.flatnonzero(lengths == length)
        states = encoder.encode(batch.ids[rows, :length])
        check_unchanged(files)
        if not np.isfinite(states).all():
            raise ValueError(f"{name}: a question's states are not finite: {NOT_FINITE}")
        for row, own in zip(rows, states):
            words, word_of = words_with_tokens(batch.words[row], batch.word_of[row])
            ids = batch.ids[row, :length].astype(np.int64)
            entry = Entry(own.copy(), ids, words, word_of, batch.known[row], batch.unknown[row], batch.cut[row])
            entry.states.setflags(write=False)
            new[questions[row]] = entry
    return new


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
