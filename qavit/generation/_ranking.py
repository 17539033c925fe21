"""How likely given texts are, those that begin alike by one pass over what they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ._decoding import Ids
from ._loops import LOGITS_AT_ONCE, Decoder, Rows


def log_probabilities(
    decoder: Decoder, memory: Any, start: int, texts: Sequence[Sequence[int]], memory_of: int = 0
) -> npt.NDArray[np.float64]:
    """The log-probability of each text behind the start token, as the sum over its tokens.

    Parameters
    ----------
    decoder : Decoder
    memory
        What the decoder's `begin` takes.
    start : int
        The token that a text begins with.
    texts : sequence of sequences of int
        Their tokens, the end's included; each has at least one, and there is room for all.
    memory_of : int
        Which sequence of the memory they look at.

    Returns
    -------
    float64 [len(texts)]
    """
    found = np.empty(len(texts))
    order = sorted(range(len(texts)), key=lambda number: tuple(texts[number]))
    at_once = max(1, LOGITS_AT_ONCE // decoder.vocab_size)
    for first in range(0, len(order), at_once):
        part = order[first : first + at_once]
        found[part] = _of_part(decoder, memory, start, [texts[number] for number in part], memory_of)
    return found


def _of_part(
    decoder: Decoder, memory: Any, start: int, texts: list[Sequence[int]], memory_of: int
) -> npt.NDArray[np.float64]:
    """The same for texts in order, whose rows, one for each beginning of theirs, fit into one step."""
    scores = np.zeros(len(texts))
    cache = decoder.begin(memory, 1, max(map(len, texts)), memory_of=np.array([memory_of], np.int32))
    new: Ids = np.array([[start]], np.int64)
    row_of = dict.fromkeys(range(len(texts)), 0)
    depth = 0
    while row_of:
        logits = decoder.step(cache, new)
        largest = logits.max(axis=1, keepdims=True)
        total = largest[:, 0] + np.log(np.exp(logits - largest).sum(axis=1, dtype=np.float64))
        for text, row in row_of.items():
            scores[text] += float(logits[row, texts[text][depth]]) - total[row]
        beginnings: dict[tuple[int, int], int] = {}
        row_of = {
            text: beginnings.setdefault((row, texts[text][depth]), len(beginnings))
            for text, row in row_of.items()
            if len(texts[text]) > depth + 1
        }
        depth += 1
        if row_of:
            parents: Rows = np.array([row for row, _ in beginnings], np.int32)
            decoder.reorder(cache, parents)
            new = np.array([[token] for _, token in beginnings], np.int64)
    return scores
