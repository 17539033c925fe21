"""Texts of a dual encoder: canonical, tokenized, and embedded beside pictures."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
import numpy.typing as npt

from .. import _core
from .._base.types import FloatArray
from ..checkpoints._weights import NOT_FINITE, Weights, float_array
from ._devices import Placement

TEXT_ENCODERS = {"t5": "T5Encoder", "bert": "BertEncoder", "roberta": "BertEncoder", "clip_text_model": "ClipTextEncoder"}
CACHED_TEXTS = 4096
#: exp(logit_scale) of CLIPs whose files do not hold it: where training ends, at the largest that it may be.
USUAL_SCALE = 100.0
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TextEntry(NamedTuple):
    """One text: its unit embedding [E], and the words of it that were left out or are not known."""

    embedding: FloatArray
    cut: list[str]
    unknown: list[str]
    known: bool


class TextHalf:
    """A text encoder with all that makes unit embeddings of texts.

    Parameters
    ----------
    name : str
        The model's, for messages.
    text : dict
        The text half's configuration.
    weights : dict
        With the text half's.
    tokenizer : str, optional
        JSON text of the tokenizers library; without it texts are given as token ids alone.
    max_tokens : int
    sigmoid : bool
        Whether it is SigLIP's.
    placement : Placement
        Where it computes.
    """

    def __init__(
        self, name: str, text: Mapping[str, Any], weights: Weights, tokenizer: Optional[str], max_tokens: int, sigmoid: bool,
        placement: Placement,
    ) -> None:  # fmt: skip
        from ..text import QuestionCache, Tokenizer

        encoder = getattr(_core, TEXT_ENCODERS[str(text["model_type"])])
        self._encoder = encoder(dict(text), weights, placement.precision, device=placement.device)
        self.name = name
        self.embedding_dim: int = self._encoder.projection_dim
        self.max_tokens = min(self._encoder.max_tokens, max_tokens)
        #: Texts that see both ways see their padding, too: all are as long as the model reads.
        self.whole = text.get("causal") is False
        self._bert = text.get("model_type") == "bert"
        self._pad_id = int(text.get("pad_token_id") or 0)
        self._strip_sep, self._clean = bool(text.get("strip_sep_token")), text.get("clean")
        self._sigmoid = sigmoid
        self.logit_scale = _number(name, weights, "logit_scale", exponential=True, otherwise=USUAL_SCALE)
        self.logit_bias = _number(name, weights, "logit_bias")
        self._cache: QuestionCache[TextEntry] = QuestionCache(CACHED_TEXTS)
        self._tokenizer: Optional[Tokenizer] = None
        self._unigram = False
        if tokenizer is not None:
            self._tokenizer = Tokenizer(tokenizer, self._encoder.vocab_size)
            self._unigram = json.loads(tokenizer).get("model", {}).get("type") == "Unigram"

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
        """As open_clip's settings have it cleaned.

        Else SigLIP's is lower case, without punctuation in the first edition, whose pieces are a unigram model's.
        """
        clean = self._clean
        if clean is None and self._sigmoid:
            clean = "without punctuation" if self._unigram else "lower"
        if clean is None:
            return text
        if clean == "canonicalize":
            text = text.replace("_", " ")
        if clean != "whitespace":
            text = text.lower()
        if clean in ("canonicalize", "without punctuation"):
            text = text.translate(_PUNCTUATION)
        return text if clean == "lower" and self._clean is None else re.sub(r"\s+", " ", text).strip()

    def _padding(self) -> int:
        assert self._tokenizer is not None
        if not self._sigmoid:
            return 0
        end = self._tokenizer.id_of("</s>") if self._unigram else None
        return self._tokenizer.pad if end is None else end

    def of_ids(self, ids: npt.NDArray[np.int64]) -> FloatArray:
        """Unit embeddings of the caller's token ids [Q, M], which all count but for a BERT's padding."""
        return self.unit(self._encoder.encode_pooled(ids, (ids != self._pad_id).astype(np.uint8) if self._bert else None))

    def entries(self, texts: Sequence[str]) -> list[TextEntry]:
        """Texts embedded; those that were lately are remembered."""
        known: dict[str, Optional[TextEntry]] = {text: self._cache.get(text) for text in texts}
        new = [text for text, entry in known.items() if entry is None]
        if new:
            ids, mask, batch = self.tokens(new)
            embeddings = self.unit(self._encoder.encode_pooled(ids, mask))
            for row, text in enumerate(new):
                blank = not text.strip()
                made = TextEntry(embeddings[row], batch.cut[row], batch.unknown[row], blank or batch.known[row])
                self._cache.put(text, made)
                known[text] = made
        return [entry for text in texts if (entry := known[text]) is not None]

    def unit(self, embeddings: FloatArray) -> FloatArray:
        """Each row over its length."""
        return unit(embeddings, self.name)

    def embeddings(self, texts: Sequence[str]) -> FloatArray:
        """Unit embeddings [Q, E]."""
        return np.array([entry.embedding for entry in self.entries(texts)], np.float32)


def _number(name: str, weights: Weights, key: str, exponential: bool = False, otherwise: float = 0.0) -> float:
    """A number among the weights."""
    if key not in weights:
        return otherwise
    value = float(float_array(weights[key]).reshape(-1)[0])
    if not np.isfinite(value) or (exponential and value > 20.0):
        raise ValueError(f"{name}: {key} is {value}, expected a number that scales cosines")
    return float(np.exp(value)) if exponential else value


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
