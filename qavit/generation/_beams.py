"""The beams of one text, by transformers' rules."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .._base.types import FloatArray
from ._decoding import Decoding


class Beam(NamedTuple):
    """One way on: what it ranks by, its new ids, their log-probability, and the logits that each came from."""

    rank: np.float32
    ids: tuple[int, ...]
    score: float
    logits: tuple[FloatArray, ...]


class Beams:
    """The running and the finished beams of one text.

    Attributes
    ----------
    done : bool
    best : list of Beam
        The finished ones, best first.
    """

    def __init__(self, how: Decoding, prompt: int, keep_logits: bool) -> None:
        self._how, self._most, self._keep_logits = how, how.max_length - prompt, keep_logits
        # Only the first beam counts at first: all look alike.
        self._running = [Beam(np.float32(0 if n == 0 else -1e9), (), 0.0, ()) for n in range(how.num_beams)]
        self.best: list[Beam] = []
        self.done = False

    def advance(
        self,
        found: tuple[FloatArray, npt.NDArray[np.int64], npt.NDArray[np.float64]],
        own: slice,
        logits: FloatArray,
    ) -> list[tuple[int, int]]:
        """Take the best continuations of each beam, as the core's best_tokens gives them: rows `own` are this text's.

        Returns
        -------
        list of (int, int)
            The beams that run on, each as the beam it comes from and its new token; empty if none does.
        """
        how, count = self._how, self._how.num_beams
        scores, tokens, log_probabilities = (part[own] for part in found)
        ranks = scores + np.array([beam.rank for beam in self._running], np.float32)[:, None]
        order = np.argsort(-ranks, axis=None, kind="stable")[: 2 * count]
        running: list[Beam] = []
        links: list[tuple[int, int]] = []
        for place, flat in enumerate(order):
            parent, column = divmod(int(flat), scores.shape[1])
            token, old = int(tokens[parent, column]), self._running[parent]
            kept = (*old.logits, logits[own][parent].copy()) if self._keep_logits else ()
            new = Beam(ranks[parent, column], (*old.ids, token), old.score + float(log_probabilities[parent, column]), kept)
            if token == how.eos or len(new.ids) == self._most:
                if place < count:  # the others are there so that enough run on
                    self.best.append(new._replace(rank=self._final(new.rank, len(new.ids))))
            elif len(running) < count:
                running.append(new)
                links.append((parent, token))
        self.best = sorted(self.best, key=lambda beam: -beam.rank)[:count]
        self._running = running
        self.done = not running or self._is_done()
        return [] if self.done else links

    def _final(self, rank: np.float32, length: int) -> np.float32:
        """What a finished beam ranks by."""
        final: np.float32 = rank / np.float32(length**self._how.length_penalty)
        return final

    def _is_done(self) -> bool:
        """Whether there are enough finished beams, and none that runs is worth waiting for."""
        if len(self.best) < self._how.num_beams:
            return False
        if self._how.early_stopping is True:
            return True
        length = len(self._running[0].ids)
        if self._how.early_stopping == "never" and self._how.length_penalty > 0.0:
            length = self._most
        return bool(self._final(self._running[0].rank, length) <= self.best[-1].rank)
