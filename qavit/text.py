"""Questions: cleaned, tokenized, and which word each token belongs to."""

from __future__ import annotations

import json
import os
import re
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Union

import numpy as np
from numpy.typing import NDArray

from ._base.once import Turn
from ._base.refusals import refusals

if TYPE_CHECKING:
    from ._base.sentencepiece import CharsMap

PathLike = Union[str, "os.PathLike[str]"]

_REMOVED = re.compile(r'[.!"()*#:;~]')
MAX_TEXT = 1 << 20


def clean_question(text: str, max_words: int = 50) -> str:
    """A question as QA-ViT and LAVIS clean it.

    Lower case, without the characters ``. ! " ( ) * # : ; ~``, without trailing spaces, at most ``max_words`` words
    (parts between single spaces).

    Raises
    ------
    TypeError, ValueError
        Where ``text`` is not a str, or longer than a million characters.
    """
    if not isinstance(text, str):
        raise TypeError(f"question: expected a str, got {type(text).__name__}")
    if len(text) > MAX_TEXT:
        raise ValueError(f"question: {len(text)} characters, expected at most {MAX_TEXT}")
    cleaned = _REMOVED.sub("", text.lower()).rstrip(" ")
    words = cleaned.split(" ")
    return " ".join(words[:max_words]) if len(words) > max_words else cleaned


def context_of(question: str, text: str) -> str:
    """A text behind its question, as PnP-VQA gives it to its reader: the backslash and the n are two characters."""
    return f"{question.lower().strip()} \\n {text.lower().strip()}"


@dataclass(frozen=True)
class TokenBatch:
    """Tokenized texts.

    Attributes
    ----------
    ids : int32 [B, M]
        Padded behind each text with the tokenizer's padding token; M is the longest text's length.
    mask : uint8 [B, M]
        1 for tokens, 0 for padding.
    tokens : list of list of str
        Each text's tokens, special ones included, padding not.
    words : list of list of str
        Each text's words, as they stand between white space.
    word_of : list of list of int
        For each token the number of the word it is part of; -1 for special tokens.
    known : list of bool
        Whether any word of a text, or a part of one, is in the vocabulary.
    unknown : list of list of str
        Each text's words, of those that were read, no part of which is in the vocabulary.
    cut : list of list of str
        Each text's words that were left out at its end.
    """

    ids: NDArray[np.int32]
    mask: NDArray[np.uint8]
    tokens: list[list[str]]
    words: list[list[str]]
    word_of: list[list[int]]
    known: list[bool]
    unknown: list[list[str]]
    cut: list[list[str]]


#: What tokenizers put in the place of what they do not know.
_UNKNOWN = ("<unk>", "[UNK]")


class Tokenizer:
    """A tokenizer of the tokenizers library (0.13 or later), safe to use from many threads.

    Parameters
    ----------
    json_text : str
        The content of a tokenizer.json.
    vocabulary : int, optional
        Rows of the model's table of embeddings: a tokenizer that can give a larger id is refused.
    """

    def __init__(self, json_text: str, vocabulary: int | None = None) -> None:
        import tokenizers

        self._json = json_text
        self._charsmap: CharsMap | None = None
        with refusals("not a tokenizer.json that this tokenizers library reads"):
            self._tokenizer: Any = tokenizers.Tokenizer.from_str(json_text)
            if "Precompiled" in json_text:
                from ._base.sentencepiece import charsmap_of, without_charsmap

                content = json.loads(json_text)
                self._charsmap = charsmap_of(content)
                if self._charsmap is not None:
                    content = without_charsmap(content)
                    self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
            self._tokenizer.encode("a")  # some faults show only here
        padding, truncation = self._tokenizer.padding, self._tokenizer.truncation
        self.max_tokens: int | None = truncation["max_length"] if truncation else None
        self._side = truncation["direction"] if truncation else "right"
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._turn = Turn()
        self._limit: int | None = None
        self._special: frozenset[str] | None = None
        table: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.size = max(table.values(), default=-1) + 1
        self.pad = next((table[name] for name in ("<pad>", "[PAD]", "<|endoftext|>") if name in table), 0)
        self.pads_left = bool(padding) and padding["direction"] == "left"
        if padding and table.get(padding["pad_token"]) == padding["pad_id"]:
            self.pad = padding["pad_id"]
        self._unknown = {table.get(name) for name in _UNKNOWN}
        self._marked = any("\u2581" in piece for piece in table)
        if vocabulary is not None and self.size > vocabulary:
            raise ValueError(
                f"tokenizer: it has tokens up to number {self.size - 1}, but the text encoder's table has {vocabulary} "
                "rows; this is not the tokenizer of this model"
            )

    @classmethod
    def from_folder(cls, path: PathLike, vocabulary: int | None = None) -> Tokenizer:
        """From a folder with tokenizer.json, vocab.txt (BERT), vocab.json and merges.txt (RoBERTa, CLIP) or a SentencePiece
        model (T5, CamemBERT, XLM-RoBERTa), or from one of these files; settings beside it are obeyed.
        """
        from ._base.vocabularies import read_tokenizer

        json_text = read_tokenizer(Path(path))
        try:
            return cls(json_text, vocabulary)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None

    def to_json(self) -> str:
        """The content of a tokenizer.json."""
        return self._json

    def id_of(self, token: str) -> int | None:
        """A token's number, or None."""
        with self._turn.take():  # the library refuses a question that comes while another thread changes its settings
            number = self._tokenizer.token_to_id(token)
        return None if number is None else int(number)

    def encode(self, texts: Sequence[str], max_tokens: int) -> TokenBatch:
        """Tokenize texts, each cut to ``max_tokens`` with its closing special token kept.

        Parameters
        ----------
        texts : list of str
        max_tokens : int
            Special tokens included; fewer where the tokenizer's own settings say so (`max_tokens`).

        Returns
        -------
        TokenBatch
        """
        if isinstance(texts, str):
            raise TypeError("texts: expected a list of str, got a str")
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"texts: expected a list of str, got a {type(text).__name__} in it")
        if max_tokens < 3:
            raise ValueError(f"max_tokens: {max_tokens}, expected at least 3")
        most = max_tokens if self.max_tokens is None else max(3, min(max_tokens, self.max_tokens))
        mapped: list[tuple[str, Sequence[int]]] = [(text, range(len(text))) for text in texts]
        if self._charsmap is not None:
            with refusals("it fails on this text"):
                mapped = [self._charsmap.replace(text) for text in texts]
        encodings = self._encode([text for text, _ in mapped], most)
        length = max((len(encoding.ids) for encoding in encodings), default=0)
        ids = np.full((len(encodings), length), self.pad, np.int32)
        mask = np.zeros((len(encodings), length), np.uint8)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = encoding.ids
            mask[row, : len(encoding.ids)] = 1
        words = [text.split() for text in texts]
        word_of = [_words_of(text, encoding, origin) for text, encoding, (_, origin) in zip(texts, encodings, mapped)]
        tokens = [list(encoding.tokens) for encoding in encodings]
        read = [_words_read(*parts) for parts in zip(encodings, words, word_of)]
        known = [_known_words(*parts, self._unknown) for parts in zip(encodings, word_of)]
        unknown = [_unknown_words(own[:count], numbers) for own, count, numbers in zip(words, read, known)]
        cut = [own[count:] for own, count in zip(words, read)]
        return TokenBatch(ids, mask, tokens, words, word_of, list(map(bool, known)), unknown, cut)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones left out, as transformers writes it: no space before punctuation.

        Parameters
        ----------
        ids : list of int
            Those that the tokenizer does not know are left out, too.
        """
        return clean_up(joined(self.pieces(ids), self._marked))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each token as it stands in the vocabulary; "" for a special one, or one that the tokenizer does not know."""
        if self._special is None:
            added = json.loads(self._json).get("added_tokens") or []
            self._special = frozenset(token["content"] for token in added if token.get("special"))
        with self._turn.take():
            pieces = [self._tokenizer.id_to_token(int(number)) for number in ids]
        return ["" if piece is None or piece in self._special else piece for piece in pieces]

    def _encode(self, texts: Sequence[str], max_tokens: int) -> list[Any]:
        with self._turn.take():
            if self._limit != max_tokens:
                self._tokenizer.enable_truncation(max_tokens, direction=self._side)
                self._limit = max_tokens
            # One at a time: encode_batch starts threads of its own, which do not survive a fork.
            with refusals("it fails on this text"):
                return [self._tokenizer.encode(text) for text in texts]


_ENDINGS = ("n't", "'m", "'s", "'ve", "'re")
#: What transformers writes without the space in front of it, or around it, in this order.
_GLUED = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), *((f" {end}", end) for end in _ENDINGS))


def joined(pieces: Sequence[str], marked: bool) -> str:
    """The text of pieces of a vocabulary: BERT's ("##" glues a piece), or SentencePiece's (marked: "\u2581" is a space)."""
    kept = [piece for piece in pieces if piece]
    if marked:
        return "".join(kept).replace("\u2581", " ").strip()
    return " ".join(kept).replace(" ##", "").strip()


def clean_up(text: str) -> str:
    """A text without the spaces that tokens leave before punctuation and in contractions."""
    for apart, glued in _GLUED:
        text = text.replace(apart, glued)
    return text


def _words_read(encoding: Any, words: Sequence[str], word_of: Sequence[int]) -> int:
    """How many of a text's words were not cut off; one that lost a part counts as cut."""
    rest = [start for part in encoding.overflowing for start, end in part.offsets if end > start]
    if not rest:
        return len(words)
    end: int = max((end for (_, end), word in zip(encoding.offsets, word_of) if word >= 0), default=0)
    return max(word_of, default=-1) + (1 if min(rest) > end else 0)


def _known_words(encoding: Any, word_of: Sequence[int], unknown: set[int | None]) -> set[int]:
    """The numbers of the words a token of which is in the vocabulary and has a letter or a digit."""
    return {
        word
        for word, number, token in zip(word_of, encoding.ids, encoding.tokens)
        if word >= 0 and number not in unknown and any(map(str.isalnum, token))
    }


def _unknown_words(words: Sequence[str], known: set[int]) -> list[str]:
    """The others that have a letter or a digit, without the punctuation around them."""
    others = [word for at, word in enumerate(words) if at not in known and any(map(str.isalnum, word))]
    return [re.sub(r"^\W+|\W+$", "", word) for word in others]


def words_with_tokens(words: Sequence[str], word_of: Sequence[int]) -> tuple[list[str], list[int]]:
    """The words that have tokens, and each token's number among them; the others were cut off, or are not known at all."""
    numbers = sorted({number for number in word_of if number >= 0})
    among = {number: position for position, number in enumerate(numbers)}
    return [words[number] for number in numbers], [among.get(number, -1) for number in word_of]


def _words_of(text: str, encoding: Any, origin: Sequence[int]) -> list[int]:
    """For each token the number of the white-space separated word that its characters lie in.

    ``origin``: the character of the text that each of what was tokenized comes from.
    """
    word_at: list[int] = []
    word, inside = -1, False
    for character in text:
        if character.isspace():
            inside = False
            word_at.append(-1)
            continue
        word += not inside
        inside = True
        word_at.append(word)
    word_at = [word_at[place] for place in origin]
    found = []
    for (start, end), special in zip(encoding.offsets, encoding.special_tokens_mask):
        # A piece that is only the mark of a word's beginning belongs to the word behind it.
        characters = () if special else (*word_at[start:end], *word_at[end : end + 1])
        found.append(next((number for number in characters if number >= 0), -1))
    return found


def with_blip_tokens(json_text: str) -> str:
    """A BERT tokenizer with ``[DEC]`` and ``[ENC]`` behind its vocabulary, as LAVIS adds them, if it lacks them."""
    import tokenizers

    tokenizer = Tokenizer(json_text)
    if tokenizer.id_of("[ENC]") is not None:
        return json_text
    result = tokenizers.Tokenizer.from_str(json_text)
    result.add_special_tokens(["[DEC]", "[ENC]"])
    return str(result.to_str())


#: Where bert-base-uncased has some of its tokens, and LAVIS those that it adds: BLIP, BLIP-2 and ALBEF know no others.
_UNCASED = {
    "[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, "the": 1996, "is": 2003, "it": 2009, "what": 2054,
}  # fmt: skip
_ADDED = {"[DEC]": 30522, "[ENC]": 30523}
#: Tokens of bert-base-uncased; and rows that a table may have behind the last token, being a multiple of some number.
_UNCASED_SIZE, _SPARE = 30522, 64


def check_bert(tokenizer: Tokenizer, rows: int) -> None:
    """Raise ValueError unless a tokenizer may be that of a text half by BERT whose table has so many rows.

    A table of bert-base-uncased's size is taken for one: some of its words, and what LAVIS adds, have to be in their places.
    """
    lacking = [name for name in ("[CLS]", "[SEP]") if tokenizer.id_of(name) is None]
    if lacking:
        raise ValueError(f"tokenizer: it has no {' and no '.join(lacking)}; expected BERT's, as its vocab.txt")
    wrong = f"this is not the tokenizer of this model, whose table has {rows} rows"
    if tokenizer.size + _SPARE <= rows:
        raise ValueError(f"tokenizer: it has {tokenizer.size} tokens; {wrong}")
    if not _UNCASED_SIZE <= rows < _UNCASED_SIZE + _SPARE:
        return
    places = {**_UNCASED, **{name: place for name, place in _ADDED.items() if tokenizer.id_of(name) is not None}}
    for name, place in places.items():
        found = tokenizer.id_of(name)
        if found != place:
            said = "is no token of it" if found is None else f"is its number {found}"
            raise ValueError(
                f"tokenizer: {name!r} {said}, in bert-base-uncased's it is number {place}; {wrong} and wants that one's "
                "vocab.txt"
            )


Value = TypeVar("Value")


class QuestionCache(Generic[Value]):
    """The ``capacity`` entries that were used last; safe to use from many threads.

    Parameters
    ----------
    capacity : int
        At least 1.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity: {capacity}, expected at least 1")
        self.capacity = capacity
        self._entries: OrderedDict[Hashable, Value] = OrderedDict()
        self._turn = Turn()

    def __len__(self) -> int:
        with self._turn.take():
            return len(self._entries)

    def get(self, key: Hashable) -> Value | None:
        """The entry, which counts as used now, or None."""
        with self._turn.take():
            value = self._entries.get(key)
            if value is not None:
                self._entries.move_to_end(key)
            return value

    def put(self, key: Hashable, value: Value) -> None:
        """Add or replace an entry; the one that was used longest ago goes when there are too many."""
        with self._turn.take():
            self._entries[key] = value
            self._entries.move_to_end(key)
            while len(self._entries) > self.capacity:
                self._entries.popitem(last=False)

    def clear(self) -> None:
        """Forget all entries."""
        with self._turn.take():
            self._entries.clear()
