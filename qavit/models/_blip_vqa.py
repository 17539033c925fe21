"""BLIP visual question answering (Li et al., arXiv 2201.12086): an answer, and which patches speak for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np

from .. import _core
from .._base.arguments import PNP_VQA_BLOCK, question_list
from .._base.types import FloatArray, ImageLike, Precision
from .._base.warnings import warn_of
from ..checkpoints._weights import release_pages
from ..generation._generated import Generated
from ._answering import Answerer, Asking, Lengths
from ._cross_attending import CrossAttending, GradCAMLook, Tokens
from ._devices import Placement
from ._model import Request, Shown

if TYPE_CHECKING:
    from .._result import HeatmapResult
    from ..checkpoints._source import ModelSource
    from ..images import Seen


class BlipVQA(CrossAttending):
    """BLIP visual question answering: a :class:`Model`.

    A question goes through a BERT that attends to the picture, and a decoder that attends to what comes of it writes the
    answer. A map is the gradient of the answer's log-probability on the question's attention to the picture, read as LAVIS
    reads GradCAM; `default_block` is 7, or the last of a smaller model. Questions are taken as they are, "?" included.

    Attributes
    ----------
    max_tokens : int
        A longer question is cut, its closing token kept.
    """

    kind = "blip_vqa"
    called = "BLIP-VQA"
    reads = frozenset({"gradcam", "answer"})

    def __init__(
        self, source: ModelSource, *, precision: Precision = "float32", device: Any = "cpu", offload_model: bool = False
    ) -> None:
        super().__init__(source, precision=precision, device=device, offload_model=offload_model)
        ids = [self._tokenizer.id_of(token) for token in ("[ENC]", "[DEC]", "[SEP]")]
        if None in ids:
            raise ValueError(
                f"{source.name}: the tokenizer lacks one of [ENC], [DEC] and [SEP], which a question starts with, an answer "
                "starts with and an answer ends with"
            )
        self._first_token, self._start, self._end = (int(number or 0) for number in ids)

    def _load_core(self, placement: Placement) -> None:
        source = self._source
        text = dict(source.text or {})
        config = {"vision": dict(source.vision), "text": text}
        device, precision = placement.device, placement.precision
        core = _core.BlipQuestionEncoder(config, source.weights, precision, device=device)
        reads = {**text, "encoder_width": core.width}
        self._decoder = _core.Decoder(reads, source.weights, precision, prefix="text_decoder.", device=device)
        self._picture_cache = self._picture_cache.emptied()
        self._core = core
        release_pages(source.weights)

    def _find_usable(self) -> tuple[int, ...]:
        return tuple(range(self.num_blocks))

    def _choose_block(self) -> int:
        return min(PNP_VQA_BLOCK, self.num_blocks - 1)

    def _tokenize(self, texts: Sequence[str], matching: bool = True) -> Tokens:
        """Ids from [ENC] on."""
        for text in texts:
            if not text.strip():
                raise ValueError(f"questions: {text!r} has no words")
        ids, mask, batch = super()._tokenize(texts, matching)
        ids = ids.copy()
        ids[:, 0] = self._first_token
        return Tokens(ids, mask, batch)

    @property
    def _answerer(self) -> Answerer:
        return Answerer(self._decoder, self._tokenizer, self._start, self._end, self.name)

    def _look(self, pixels: Seen, questions: Optional[list[str]]) -> AnswerLook:
        return AnswerLook(self, pixels, questions or [])

    def answer(
        self,
        image: ImageLike,
        questions: Union[str, Sequence[str]],
        *,
        max_new_tokens: int = 30,
        min_new_tokens: int = 0,
        num_beams: int = 1,
        return_logits: bool = False,
        answers: Optional[Sequence[str]] = None,
    ) -> list[Generated]:
        asking = Asking.of(
            max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens, num_beams=num_beams, return_logits=return_logits,
            answers=answers,
        )  # fmt: skip
        self._check_room(asking)
        asked = question_list(questions)
        shown = self._see(image)
        look = self._look(shown.pixels, asked)
        warn_of([*shown.notes, *look.notes])
        return self._answerer.answer(look.memory(), len(asked), asking)

    def _check_room(self, asking: Asking) -> None:
        if asking.answers is None:
            asking.lengths.decoding(self._end, self._decoder.max_tokens)

    def _check_answers(self) -> None:
        pass

    def _answered(
        self, shown: Shown, questions: list[str], request: Request, **options: Any
    ) -> tuple[HeatmapResult, list[Generated]]:
        asking = Asking.of(**options)
        self._check_room(asking)
        look = self._look(shown.pixels, questions)
        found = self._answerer.answer(look.memory(), len(questions), asking)
        look.give(found)
        return self._result_of(shown, look, questions, request), found


class AnswerLook(GradCAMLook):
    """GradCAM of a :class:`BlipVQA`: of the answer that it writes, or of the one that was given."""

    _model: BlipVQA

    def __init__(self, model: BlipVQA, pixels: Seen, questions: list[str]) -> None:
        super().__init__(model, pixels, questions)
        self._states: Optional[FloatArray] = None
        self._answers: list[str] = []
        self._ids: Optional[list[list[int]]] = None
        self._probabilities = np.zeros(0, np.float32)
        self._d_states: Optional[FloatArray] = None

    @property
    def _lengths(self) -> Any:
        return self._tokens.mask.sum(axis=1, dtype=np.int64)

    def states(self) -> FloatArray:
        """The questions' states [R, D], one question behind the other."""
        if self._states is None:
            if self._image is None:
                (self._image,) = self._model._encode(self._pixels)
            ids, mask, _ = self._tokens
            self._states = self._model._finite(self._model._core.encode_questions(self._image, ids, mask))
        return self._states

    def memory(self) -> _core.DecoderMemory:
        """What the decoder reads of them: a sequence each."""
        return self._model._decoder.read(self.states(), self._lengths)

    def give(self, answers: Sequence[Generated]) -> None:
        """The answers whose maps these are."""
        self._answers = [one.text for one in answers]
        texts = self._model._answerer
        self._ids = [texts.ids([one.text], "answers")[0] if one.ids is None else one.ids.tolist() for one in answers]

    def _answer_ids(self) -> list[list[int]]:
        """Each question's answer, behind the start token."""
        if self._ids is not None:
            return self._ids
        given, count = self.options.answer, len(self._lengths)
        if given is None:
            room = self._model._decoder.max_tokens
            lengths = Lengths(min(Lengths().max_new_tokens, room - 1))
            self.give(self._model._answerer.write(self.memory(), count, lengths))
            return self._ids or []
        self._answers = [given] * count if isinstance(given, str) else question_list(given, "answer")
        if len(self._answers) != count:
            raise ValueError(f"answer: {len(self._answers)} for {count} questions; expected one, or one a question")
        return self._model._answerer.ids(self._answers, "answer")

    def _differentiate(self) -> FloatArray:
        """The gradient of each answer's log-probability with respect to its question's states, [R, D]."""
        if self._d_states is None:
            model, answers = self._model, self._answer_ids()
            counts = np.array([1 + len(ids) for ids in answers])
            ids = np.full((len(answers), counts.max()), model._start, np.int64)
            for row, own in zip(ids, answers):
                row[1 : 1 + len(own)] = own
            found, gradient = model._decoder.gradient(self.states(), self._lengths, ids, counts)
            sums = np.add.reduceat(model._finite(found).astype(np.float64), np.cumsum(counts - 1) - (counts - 1))
            self._probabilities = np.exp(sums).astype(np.float32)
            self._d_states = model._finite(gradient)
        return self._d_states

    def _compute(self, block: int) -> tuple[FloatArray, Optional[FloatArray], FloatArray]:
        ids, mask, _ = self._tokens
        maps, _, every = self._model._core.gradcam(self._image, ids, mask, block, self._differentiate())
        return maps, None, every

    def scores(self) -> Optional[FloatArray]:
        return self._probabilities

    def answers(self) -> Optional[list[list[tuple[str, float]]]]:
        return [[(answer, float(one))] for answer, one in zip(self._answers, self._probabilities)]
