"""Decoding step by step: greedy, by draws, or by beams. Rows that have ended leave the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Optional, Protocol, Union

import numpy as np
import numpy.typing as npt

from .. import _core
from .._base.types import FloatArray
from ._beams import Beam, Beams
from ._decoding import Decoded, Decoding, Ids

Rows = npt.NDArray[np.int32]

#: Logits of so many values are decoded together; more rows take turns.
LOGITS_AT_ONCE = 2**24


class Decoder(Protocol):
    """What the loops ask of a decoder: of the core's, or of one that stands in for it.

    Attributes
    ----------
    vocab_size : int
    max_tokens : int
        The most a text may have; 0: any number.
    """

    vocab_size: int
    max_tokens: int

    def begin(
        self, memory: Any, rows: int, capacity: int, memory_of: Optional[Rows] = None, tokens: Optional[Rows] = None
    ) -> Any:
        """An empty cache of `rows` texts of up to `capacity` tokens."""

    def step(self, cache: Any, ids: Ids) -> FloatArray:
        """Logits [rows, V] behind the last of `ids` [rows, n], which the cache holds from now on."""

    def reorder(self, cache: Any, parents: Rows) -> None:
        """Row i of the cache becomes what its row parents[i] was; up to as many rows as it began with."""


def decode(
    decoder: Decoder,
    memory: Any,
    prompt: Ids,
    how: Decoding,
    *,
    memory_of: Optional[Rows] = None,
    tokens: Optional[Rows] = None,
    keys: Optional[npt.NDArray[np.uint64]] = None,
    keep_logits: bool = False,
) -> list[list[Decoded]]:
    """Texts that go on from `prompt` [R, L], each as it would come out alone: whatever stands beside it.

    Parameters
    ----------
    decoder : Decoder
    memory
        What the decoder's `begin` takes: one memory, or a list of them.
    prompt : int64 [R, L]
        What every text begins with, the start token included.
    how : Decoding
    memory_of : int32 [R], optional
        Which sequence of the memory each row looks at; None: the first.
    tokens : int32 [R, n], optional
        Which rows of its memory it sees.
    keys : uint64 [R, 4], optional
        :meth:`Draws.keys` of each row; needed where tokens are drawn.
    keep_logits : bool

    Returns
    -------
    list of R lists of Decoded
        One each, or the `num_beams` best, best first.

    Raises
    ------
    ValueError
        The lengths leave no room, or the decoder's logits are not finite.
    """
    rows, length = prompt.shape
    if length < 1 or length >= how.max_length:
        raise ValueError(f"max_length: {how.max_length}, expected more than the {length} tokens that a text begins with")
    if 0 < decoder.max_tokens < how.max_length:
        raise ValueError(f"max_length: {how.max_length}, expected at most {decoder.max_tokens}, the decoder's positions")
    if how.do_sample and keys is None:
        raise ValueError("keys: tokens are to be drawn; expected a key for each row")
    run: Callable[..., list[list[Decoded]]] = _by_beams if how.num_beams > 1 else _one_by_one
    found: list[list[Decoded]] = []
    at_once = max(1, LOGITS_AT_ONCE // (decoder.vocab_size * how.num_beams))
    for first in range(0, rows, at_once):
        part = slice(first, min(first + at_once, rows))
        index = np.repeat(np.arange(part.start, part.stop), how.num_beams)
        cache, logits = _first_step(
            decoder, memory, prompt[index], how.max_length,
            np.zeros(len(index), np.int32) if memory_of is None else np.ascontiguousarray(memory_of[index], np.int32),
            None if tokens is None else np.ascontiguousarray(tokens[index], np.int32),
        )  # fmt: skip
        found += run(decoder, cache, prompt[index], logits, how, None if keys is None else keys[part], keep_logits)
    return found


def _first_step(
    decoder: Decoder, memory: Any, prompt: Ids, capacity: int, memory_of: Rows, tokens: Optional[Rows]
) -> tuple[Any, FloatArray]:
    """A cache that holds the prompts, and the logits behind them; rows that begin alike are computed once."""
    rows = len(prompt)
    cache = decoder.begin(memory, rows, capacity, memory_of=memory_of, tokens=tokens)
    known = [part.reshape(rows, -1) for part in (prompt, memory_of, tokens) if part is not None]
    _, first, like = np.unique(np.concatenate(known, axis=1), axis=0, return_index=True, return_inverse=True)
    if len(first) == rows:
        return cache, decoder.step(cache, prompt)
    decoder.reorder(cache, first.astype(np.int32))
    logits = decoder.step(cache, prompt[first])
    like = like.reshape(rows)
    decoder.reorder(cache, like.astype(np.int32))
    return cache, logits[like]


class _Row:
    """A text that is being written."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.score = 0.0
        self.logits: list[FloatArray] = []


def _decoded(text: Union[_Row, Beam]) -> Decoded:
    return Decoded(np.array(text.ids, np.int64), text.score, np.stack(text.logits) if text.logits else None)


def _one_by_one(
    decoder: Decoder, cache: Any, ids: Ids, logits: FloatArray, how: Decoding, keys: Optional[npt.NDArray[np.uint64]],
    keep_logits: bool,
) -> list[list[Decoded]]:  # fmt: skip
    """The best token after the other, or one drawn after the other."""
    rows = [_Row() for _ in ids]
    live = np.arange(len(rows))
    settings = how.sampling.packed()
    drawing = keys.copy() if how.do_sample and keys is not None else None
    for step in range(how.max_length - ids.shape[1]):
        if step > 0:
            logits = decoder.step(cache, ids[:, -1:])
        if drawing is not None:
            drawing[:, 3] = step
        tokens, log_probabilities = _core.next_tokens(logits, ids, settings, drawing)
        for place, number in enumerate(live):
            row = rows[number]
            row.ids.append(int(tokens[place]))
            row.score += float(log_probabilities[place])
            if keep_logits:
                row.logits.append(logits[place].copy())
        ids = np.concatenate([ids, tokens[:, None]], axis=1)
        stay = np.flatnonzero(tokens != (-1 if how.eos is None else how.eos))
        if len(stay) == 0:
            break
        if len(stay) < len(live):
            decoder.reorder(cache, stay.astype(np.int32))
            live, ids = live[stay], ids[stay]
            drawing = None if drawing is None else drawing[stay]
    return [[_decoded(row)] for row in rows]


def _by_beams(
    decoder: Decoder, cache: Any, ids: Ids, logits: FloatArray, how: Decoding, keys: Optional[npt.NDArray[np.uint64]],
    keep_logits: bool,
) -> list[list[Decoded]]:  # fmt: skip
    """Beams of every text, side by side; a text whose beams are done leaves with them."""
    count = how.num_beams
    best = min(2 * count, decoder.vocab_size)
    texts = [Beams(how, ids.shape[1], keep_logits) for _ in range(len(ids) // count)]
    live: Sequence[Beams] = texts
    settings = how.sampling.packed()
    while live:
        found = _core.best_tokens(logits, ids, settings, best)
        parents: list[int] = []
        tokens: list[int] = []
        for place, text in enumerate(live):
            own = slice(place * count, (place + 1) * count)
            running = text.advance(found, own, logits)
            parents += [place * count + parent for parent, _ in running]
            tokens += [token for _, token in running]
        live = [text for text in live if not text.done]
        if live:
            order = np.array(parents, np.int32)
            decoder.reorder(cache, order)
            ids = np.concatenate([ids[order], np.array(tokens, np.int64)[:, None]], axis=1)
            logits = decoder.step(cache, ids[:, -1:])
    return [[_decoded(beam) for beam in text.best] for text in texts]
