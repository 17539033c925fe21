"""QA-ViT's own answer: T5 over a picture's tokens and the question (Ganz et al. 2024; code amazon-science/QA-ViT)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Optional

import numpy as np
import numpy.typing as npt

from .. import _core
from .._base.types import FloatArray
from ..checkpoints._weights import NOT_FINITE, release_pages
from ..generation._generated import Generated
from ._answering import Answerer, Lengths
from ._devices import Placement

if TYPE_CHECKING:
    from ..checkpoints._source import ModelSource
    from ..text import Tokenizer

START = 0
#: Tokens of an answer, about: fewer than what keys and values of all of a picture would pay for.
USUAL_TOKENS = 16


class VisualT5:
    """The language model of a QA-ViT whose checkpoint holds it whole.

    Parameters
    ----------
    source : ModelSource
        With a decoder, which is made of its weights when the first answer is asked for.
    encoder : _core.T5Encoder
        That takes pictures.
    placement : Placement
        Where the decoder computes.
    """

    def __init__(self, source: ModelSource, encoder: _core.T5Encoder, placement: Placement) -> None:
        self._source, self._encoder, self._placement = source, encoder, placement
        self._decoder: Optional[_core.Decoder] = None

    def _answerer(self, tokenizer: Tokenizer) -> Answerer:
        source, where = self._source, self._placement
        if self._decoder is None:
            config = {**(source.text or {}), "tie_word_embeddings": False}
            weights = {name: weight for name, weight in source.every_weight().items() if name in source.decoder}
            self._decoder = _core.Decoder(config, weights, where.precision, prefix="text_model.", device=where.device)
            release_pages(weights)
        end = tokenizer.id_of("</s>")
        if end is None:
            raise ValueError(f"{source.name}: the tokenizer has no </s>, which ends an answer")
        return Answerer(self._decoder, tokenizer, START, end, source.name)

    def answer(
        self,
        tokenizer: Tokenizer,
        pictures: FloatArray,
        questions: Sequence[npt.NDArray[np.int64]],
        lengths: Lengths,
        keep_logits: bool = False,
        answers: Optional[Sequence[str]] = None,
    ) -> list[Generated]:
        """An answer to each question: written, or chosen from `answers`.

        Parameters
        ----------
        tokenizer : Tokenizer
        pictures : float32 [Q, T, D]
            What leaves the vision tower's last block, class token included.
        questions : list of Q int64 [M]
            Their tokens.
        lengths, keep_logits, answers
            As :meth:`Model.answer` takes them.
        """
        answerer = self._answerer(tokenizer)
        memories: list[Any] = []
        expected = 0 if answers is not None else min(USUAL_TOKENS, lengths.max_new_tokens) * lengths.num_beams
        for picture, ids in zip(pictures, questions):
            # One at a time, without padding: a question's states do not depend on what it is asked along with.
            states = self._encoder.encode_picture(picture, ids[None])
            if not np.isfinite(states).all():
                raise ValueError(f"{self._source.name}: the states of picture and question are not finite: {NOT_FINITE}")
            memories.append(answerer.decoder.read(states, tokens=expected))
        if answers is not None:
            return answerer.choose(memories, len(memories), answers)
        return answerer.write(memories, len(memories), lengths, keep_logits)
