"""A reader: an answer out of texts, by T5; Fusion-in-Decoder (Izacard and Grave, arXiv 2007.01282)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Optional, Union

import numpy as np
import numpy.typing as npt

from .. import _core
from .._base.arguments import question_list
from .._base.tensors import detached
from .._base.types import FloatArray, Precision
from .._base.warnings import QuestionCutWarning, warn
from ..checkpoints._weights import NOT_FINITE, check_unchanged, release_pages
from ..generation._decoding import Decoding
from ..generation._generated import Generated
from ..generation._loops import decode
from ..generation._processors import Sampling
from ._devices import Placement
from ._model import Model

if TYPE_CHECKING:
    from ..checkpoints._source import ModelSource

#: About so many tokens an answer has, whatever it may have: by that the decoder chooses how to read contexts.
USUAL_ANSWER = 8
#: Tokens of a context at most, where the tokenizer's own settings say none: the encoder's limit.
MAX_TOKENS = 4096


class _Read(NamedTuple):
    """What the encoder made of contexts: states [S, D] of all of them, and how many are each one's."""

    states: FloatArray
    lengths: npt.NDArray[np.int64]


class Reader(Model):
    """A T5 that answers a question out of texts: a :class:`Model` that sees no pictures.

    Each context is encoded alone, and one answer is decoded over the states of all. UnifiedQA v2, flan-T5, and other T5
    folders.

    Attributes
    ----------
    max_tokens : int
        A longer context is cut.
    """

    kind = "reader"
    takes_questions = True
    default_method = ""
    default_block = 0
    usable_blocks = ()
    grid = (0, 0)
    image_size = patch_size = 0
    reads = frozenset()

    def __init__(
        self, source: ModelSource, *, precision: Precision = "float32", device: Any = "cpu", offload_model: bool = False
    ) -> None:
        from ..text import QuestionCache, Tokenizer

        if source.text is None or source.tokenizer is None:
            raise ValueError(f"{source.name}: a reader needs a tokenizer; give tokenizer= a spiece.model or tokenizer.json")
        self._start, self._end = int(source.text["decoder_start_token_id"]), int(source.text["eos_token_id"])
        self.num_blocks, self.num_heads = int(source.text["num_decoder_layers"]), int(source.text["num_heads"])
        self._last: QuestionCache[_Read] = QuestionCache(1)
        super().__init__(source, precision, device, offload_model)
        self._tokenizer = Tokenizer(source.tokenizer, self._decoder.vocab_size)
        self.max_tokens = min(MAX_TOKENS, self._tokenizer.max_tokens or MAX_TOKENS)
        last = int(self._tokenizer.encode(["a"], self.max_tokens).ids[0, -1])
        if last != self._end:
            raise ValueError(
                f"tokenizer: its texts end in token {last}, the reader's in {self._end}: this is another model's tokenizer"
            )

    def __repr__(self) -> str:
        return (
            f"Reader({self.name!r}: {self.num_blocks} decoder blocks, texts of {self.max_tokens} tokens, {self.precision})"
        )

    def _load_core(self, placement: Placement) -> None:
        text, weights = dict(self._source.text or {}), self._source.every_weight()
        encoder = _core.T5Encoder(text, weights, placement.precision, device=placement.device)
        decoder = _core.Decoder(text, weights, placement.precision, "text_model.", device=placement.device)
        release_pages(weights)
        self._encoder, self._decoder = encoder, decoder
        self._last.clear()

    def answer(  # type: ignore[override]
        self,
        question: Optional[str],
        contexts: Union[str, Sequence[str]],
        max_len: int = 20,
        min_len: int = 0,
        num_beams: int = 1,
        return_logits: bool = False,
    ) -> Generated:
        r"""Answer a question out of contexts, read together.

        Parameters
        ----------
        question : str or None
            Put in front of each context as PnP-VQA does: both in lower case, ``\n`` (two characters) between them. None:
            contexts are whole texts.
        contexts : str or list of str
            At least one. They do not see each other: their order is of no matter.
        max_len, min_len : int
            Of the answer in tokens, the start token counted: 20 leaves 19; up to 4096.
        num_beams : int
            1: the likeliest token after the other. More, up to 1024: beam search.
        return_logits : bool

        Returns
        -------
        Generated
            `ids` are without the start token.

        Raises
        ------
        TypeError, ValueError
            A text is no str or has no words, there is no context, or the lengths leave no room for an answer.

        Warns
        -----
        QuestionCutWarning
            A context is longer than `max_tokens`.
        """
        how = Decoding(max_len, self._end, Sampling(min_length=min_len, eos=self._end), num_beams=num_beams)
        read = self._read(_texts_of(question, contexts))
        memory = self._decoder.read(read.states, tokens=num_beams * max(min_len, min(max_len, USUAL_ANSWER)))
        ((found, *_),) = decode(
            self._decoder, memory, np.array([[self._start]], np.int64), how, keep_logits=bool(return_logits)
        )
        return Generated(self._tokenizer.decode(found.ids.tolist()), found.ids, found.score, found.logits)

    def logits(self, contexts: Union[str, Sequence[str]], ids: npt.ArrayLike) -> FloatArray:
        """The decoder's logits behind each token of a given text.

        Parameters
        ----------
        contexts : str or list of str
            Whole texts.
        ids : int [L]
            The start token first.

        Returns
        -------
        ndarray of float32, [L, V]
        """
        read, row = self._read(_texts_of(None, contexts)), self._row(ids)
        memory = self._decoder.read(read.states, tokens=len(row))
        return self._finite(self._decoder.step(self._decoder.begin(memory, 1, len(row)), row[None], all=True)[0])

    def attention(self, question: Optional[str], contexts: Union[str, Sequence[str]], ids: npt.ArrayLike) -> FloatArray:
        """How much each context was attended to when an answer was written.

        Parameters
        ----------
        question, contexts
            As :meth:`answer` had them; what it encoded last is not encoded again.
        ids : int [n]
            The answer's, as in :class:`qavit.generation.Generated`: without the start token.

        Returns
        -------
        ndarray of float32, [n, C]
            Of the step that chose each token, the cross-attention that fell on each context, the mean over blocks and heads;
            each row sums to 1.
        """
        read = self._read(_texts_of(question, contexts))
        row = np.concatenate([[self._start], self._row(ids)[:-1]])
        memory = self._decoder.read(read.states, tokens=len(row))
        weights = self._finite(self._decoder.attend(self._decoder.begin(memory, 1, len(row)), row[None])[0])
        starts = np.cumsum(read.lengths) - read.lengths
        return np.add.reduceat(weights, starts, axis=1, dtype=np.float32)

    # ---- parts ----

    def _read(self, texts: list[str]) -> _Read:
        """The states of texts, each encoded alone; those of the last ones are remembered."""
        key = repr(texts)
        known = self._last.get(key)
        if known is not None:
            return known
        check_unchanged(self._files)
        batch = self._tokenizer.encode(texts, MAX_TOKENS)
        for number, cut in enumerate(batch.cut):
            if cut:
                warn(
                    QuestionCutWarning,
                    f"contexts: number {number} has more than {self.max_tokens} tokens; left out: {' '.join(cut)[:80]!r}",
                )
        states = self._encoder.encode(batch.ids, batch.mask)[batch.mask != 0]
        check_unchanged(self._files)
        if not np.isfinite(states).all():
            raise ValueError(f"{self.name}: a context's states are not finite: {NOT_FINITE}")
        read = _Read(states, batch.mask.sum(axis=1, dtype=np.int64))
        self._last.put(key, read)
        return read

    def _row(self, ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
        row = np.asarray(detached(ids))
        if row.dtype.kind not in "iu" or row.ndim != 1 or row.size == 0:
            raise ValueError(f"ids: expected whole numbers [L], at least one, got {row.dtype} {list(row.shape)}")
        if row.min() < 0 or row.max() >= self._decoder.vocab_size:
            raise ValueError(f"ids: {row.min()} to {row.max()}, expected 0 to {self._decoder.vocab_size - 1}")
        return row.astype(np.int64)

    def _request(self, *_: Any) -> NoReturn:
        self._no_pictures()

    def _see(self, image: Any, fit: Optional[str] = None) -> NoReturn:
        self._no_pictures()

    def _look(self, pixels: Any, questions: Optional[list[str]]) -> NoReturn:
        self._no_pictures()

    def _no_pictures(self) -> NoReturn:
        raise TypeError(f"{self.name}: a reader sees no pictures and has no maps; its answer() is out of texts")


def _texts_of(question: Optional[str], contexts: Union[str, Sequence[str]]) -> list[str]:
    """What the encoder is given: contexts behind their question, or as they are."""
    from ..text import context_of

    texts = question_list(contexts, "contexts")
    if question is not None:
        if not isinstance(question, str):
            raise TypeError(f"question: expected a str or None, got {type(question).__name__}")
        (question,) = question_list(question, "question")
        if not question.strip():
            raise ValueError(f"question: {question!r} has no words")
        texts = [context_of(question, text) for text in texts]
    for number, text in enumerate(texts):
        if not text.strip():
            raise ValueError(f"contexts: number {number} has no words")
    return texts
