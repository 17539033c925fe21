"""Texts of a dual encoder: canonical, tokenized, and embedded beside pictures."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

import numpy as np
import numpy.typing as npt

from .._base.types import FloatArray
from ..checkpoints._weights import NOT_FINITE

if TYPE_CHECKING:
    from ..checkpoints._source import ModelSource

CACHED_TEXTS = 4096
#: The core's encoders, by a text half's model_type.
TEXT_ENCODERS = {"t5": "T5Encoder", "bert": "BertEncoder", "roberta": "BertEncoder", "clip_text_model": "ClipTextEncoder"}
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TextEntry(NamedTuple):
    """One text: its unit embedding [E], and the words of it that were left out or are not known."""

    embedding: FloatArray
    cut: list[str]
    unknown: list[str]
    known: bool


class TextHalf:
    """What makes unit embeddings of texts, but for the encoder itself, which a device holds.

    Parameters
    ----------
    source : ModelSource
        With a text half; its tokenizer may be missing.
    rows : int
        Of the encoder's table of words.
    positions : int
        The most tokens that it takes.
    """

    def __init__(self, source: ModelSource, rows: int, positions: int) -> None:
        from ..text import QuestionCache, Tokenizer

        settings: Mapping[str, Any] = source.text or {}
        self.name = source.name
        self.max_tokens = min(positions, int(source.questions["max_tokens"]))
        #: Texts that see both ways see their padding, too: all are as long as the model reads.
        self.whole = settings.get("causal") is False
        self._bert = settings.get("model_type") == "bert"
        self._pad_id = int(settings.get("pad_token_id") or 0)
        self._strip_sep = bool(settings.get("strip_sep_token"))
        self._sigmoid = source.architecture == "siglip"
        self._cache: QuestionCache[TextEntry] = QuestionCache(CACHED_TEXTS)
        self._tokenizer: Optional[Tokenizer] = None
        self._unigram = False
        if source.tokenizer is not None:
            self._tokenizer = Tokenizer(source.tokenizer, rows)
            self._unigram = json.loads(source.tokenizer).get("model", {}).get("type") == "Unigram"

    @property
    def lacks_tokenizer(self) -> bool:
        """Whether texts cannot be given as such."""
        return self._tokenizer is None

    def tokens(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], Optional[npt.NDArray[np.uint8]], Any]:
        """Ids [Q, M], the mask where padding is not seen, and what the tokenizer says of the texts.

        Raises
        ------
        ValueError
            There is no tokenizer.
        """
        if self._tokenizer is None:
            raise ValueError(
                f"{self.name}: it has no tokenizer, so texts can be given as token ids or embeddings alone; give tokenizer= "
                "a tokenizer.json, a vocabulary, or OpenAI's bpe_simple_vocab_16e6.txt.gz"
            )
        batch = self._tokenizer.encode([self._canonical(text) for text in texts], self.max_tokens)
        if not self.whole:
            return batch.ids, batch.mask, batch
        ids = np.full((len(batch.ids), self.max_tokens), self._padding(), np.int32)
        for row, (own, mask) in enumerate(zip(batch.ids, batch.mask)):
            count = int(mask.sum())
            first = self.max_tokens - count if self._tokenizer.pads_left else 0
            ids[row, first : first + count] = own[:count]
        if self._strip_sep:
            ids[ids == self._tokenizer.id_of("[SEP]")] = 0
        return ids, None, batch

    def _canonical(self, text: str) -> str:
        """As SigLIP reads it: lower case; no punctuation in the first edition, whose pieces are a unigram model's."""
        if not self._sigmoid:
            return text
        text = text.lower()
        return re.sub(r"\s+", " ", text.translate(_PUNCTUATION)).strip() if self._unigram else text

    def _padding(self) -> int:
        assert self._tokenizer is not None
        if not self._sigmoid:
            return 0
        end = self._tokenizer.id_of("</s>") if self._unigram else None
        return self._tokenizer.pad if end is None else end

    def mask_of(self, ids: npt.NDArray[Any]) -> Optional[npt.NDArray[np.uint8]]:
        """Which ids of the caller's count: all, but a BERT's padding."""
        return (ids != self._pad_id).astype(np.uint8) if self._bert else None

    def entries(self, texts: Sequence[str], encoder: Any) -> list[TextEntry]:
        """Texts embedded; those that were lately are remembered."""
        known: dict[str, Optional[TextEntry]] = {text: self._cache.get(text) for text in texts}
        new = [text for text, entry in known.items() if entry is None]
        if new:
            ids, mask, batch = self.tokens(new)
            embeddings = self.unit(encoder.encode_pooled(ids, mask))
            for row, text in enumerate(new):
                blank = not text.strip()
                made = TextEntry(embeddings[row], batch.cut[row], batch.unknown[row], blank or batch.known[row])
                self._cache.put(text, made)
                known[text] = made
        return [entry for text in texts if (entry := known[text]) is not None]

    def unit(self, embeddings: FloatArray) -> FloatArray:
        """Each row over its length."""
        return unit(embeddings, self.name)

    def forget(self) -> None:
        """Embeddings of a device that the model has left."""
        self._cache.clear()


def unit(embeddings: FloatArray, name: str) -> FloatArray:
    """Each row over its length.

    Raises
    ------
    ValueError
        A row is not finite, or all zero.
    """
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=-1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise ValueError(f"{name}: an embedding is not finite or of length 0: {NOT_FINITE}")
    return np.asarray(embeddings / lengths, np.float32)
