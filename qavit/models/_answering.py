"""Answers: written by a decoder, or chosen from a list by how likely it finds them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

import numpy as np

from .._base.arguments import question_list, whole_number
from ..checkpoints._weights import NOT_FINITE
from ..generation._decoding import MOST_TOKENS, Decoding
from ..generation._generated import Generated
from ..generation._loops import decode
from ..generation._processors import Sampling
from ..generation._ranking import log_probabilities

if TYPE_CHECKING:
    from .._result import HeatmapResult
    from ..text import Tokenizer


class Lengths(NamedTuple):
    """How answers are written: :meth:`Model.answer` says what the parts are."""

    max_new_tokens: int = 30
    min_new_tokens: int = 0
    num_beams: int = 1

    def decoding(self, end: int, room: int) -> Decoding:
        """Checked, for a decoder of up to `room` tokens (0: as many as any), the start's included."""
        most = whole_number(self.max_new_tokens, "max_new_tokens")
        least = whole_number(self.min_new_tokens, "min_new_tokens")
        room = min(room or MOST_TOKENS, MOST_TOKENS)
        if not 1 <= most < room:
            raise ValueError(f"max_new_tokens: {most}, expected 1 to {room - 1}")
        if not 0 <= least <= most:
            raise ValueError(f"min_new_tokens: {least}, expected 0 to max_new_tokens, {most}")
        return Decoding(1 + most, end, Sampling(min_length=1 + least, eos=end), num_beams=self.num_beams)


class Asking(NamedTuple):
    """How answers are asked for, checked but for a decoder's room: :meth:`Model.answer` says what the parts are."""

    lengths: Lengths
    keep_logits: bool
    answers: Optional[list[str]]

    @classmethod
    def of(
        cls,
        *,
        max_new_tokens: int = 30,
        min_new_tokens: int = 0,
        num_beams: int = 1,
        return_logits: bool = False,
        answers: Optional[Sequence[str]] = None,
    ) -> Asking:
        """Of the arguments of :meth:`Model.answer`."""
        lengths, chosen = Lengths(max_new_tokens, min_new_tokens, num_beams), answer_list(answers)
        lengths.decoding(0, 0)
        if chosen is not None and (lengths != Lengths() or return_logits):
            raise ValueError(
                "max_new_tokens, min_new_tokens, num_beams, return_logits: answers= are chosen from, none is written; leave "
                "them out"
            )
        return cls(lengths, return_logits, chosen)


class Answerer(NamedTuple):
    """A decoder of answers, and what its tokens mean.

    Attributes
    ----------
    decoder : _core.Decoder
    tokenizer : Tokenizer
    start, end : int
        The tokens that an answer begins and ends with.
    name : str
        Of the model, for messages.
    """

    decoder: Any
    tokenizer: Tokenizer
    start: int
    end: int
    name: str

    def answer(self, memory: Any, count: int, asking: Asking) -> list[Generated]:
        """An answer to each of `count` sequences of the memory, written or chosen."""
        if asking.answers is not None:
            return self.choose(memory, count, asking.answers)
        return self.write(memory, count, asking.lengths, asking.keep_logits)

    def write(self, memory: Any, count: int, lengths: Lengths, keep_logits: bool = False) -> list[Generated]:
        """An answer to each of `count` sequences of the memory; of beams, the best."""
        how = lengths.decoding(self.end, self.decoder.max_tokens)
        prompt = np.full((count, 1), self.start, np.int64)
        found = decode(
            self.decoder, memory, prompt, how, memory_of=np.arange(count, dtype=np.int32), keep_logits=keep_logits
        )
        return [Generated(self.tokenizer.decode(best.ids.tolist()), best.ids, best.score, best.logits) for best, *_ in found]

    def choose(self, memory: Any, count: int, answers: Sequence[str]) -> list[Generated]:
        """The likeliest of `answers` for each of `count` sequences of the memory, with all of them ranked."""
        texts = self.ids(answers, "answers")
        found = []
        for number in range(count):
            scores = log_probabilities(self.decoder, memory, self.start, texts, number)
            if not np.isfinite(scores).all():
                raise ValueError(f"{self.name}: an answer's probability is not finite: {NOT_FINITE}")
            order = np.argsort(-scores, kind="stable")
            ranked = [(answers[i], float(np.exp(scores[i]))) for i in order]
            found.append(Generated(ranked[0][0], score=float(scores[order[0]]), ranked=ranked))
        return found

    def ids(self, answers: Sequence[str], argument: str) -> list[list[int]]:
        """Each answer's tokens behind the start, the end's included; ValueError for one that cannot be given."""
        room = self.decoder.max_tokens or 512
        batch = self.tokenizer.encode(list(answers), room + 1)
        found = []
        for answer, ids, mask, cut in zip(answers, batch.ids.tolist(), batch.mask, batch.cut):
            own = ids[: int(mask.sum())]
            own = own[1:] if own and own[0] == self.tokenizer.id_of("[CLS]") else own
            if not answer.strip() or len(own) < 2:
                raise ValueError(f"{argument}: {answer!r} has no words")
            if cut or len(own) > room:
                raise ValueError(f"{argument}: {answer[:40]!r}... has more than {room - 1} tokens, what the decoder takes")
            found.append(own)
        return found


def ranked_answers(result: HeatmapResult) -> list[Generated]:
    """The likeliest of a model's own answers for each question of a result, with all of them."""
    return [Generated(ranked[0][0], score=math.log(ranked[0][1]), ranked=ranked) for ranked in result.answers or []]


def with_maps(answers: Sequence[Generated], result: HeatmapResult) -> list[Generated]:
    """Answers, each with its question's map."""
    return [dataclasses.replace(one, result=result[row]) for row, one in enumerate(answers)]


def answer_list(answers: Any) -> Optional[list[str]]:
    """The answers to choose from, or None; TypeError or ValueError for what is no such list."""
    if answers is None:
        return None
    if isinstance(answers, str):
        raise TypeError("answers: expected a list of str, got one str")
    found = question_list(answers, "answers")
    if len(set(found)) != len(found):
        raise ValueError("answers: one of them is there twice")
    return found
