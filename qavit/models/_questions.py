"""Questions as a QA-ViT takes them: states of its text encoder's tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

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


class Entry(NamedTuple):
    """One encoded question, as it is remembered."""

    states: FloatArray
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
            entry = Entry(own.copy(), words, word_of, batch.known[row], batch.unknown[row], batch.cut[row])
            entry.states.setflags(write=False)
            new[questions[row]] = entry
    return new
