"""SentencePiece models (spiece.model, tokenizer.model), read from their protobuf and built anew for the tokenizers library.

The fields are those of sentencepiece_model.proto (Kudo and Richardson, arXiv 1808.06226).
"""

from __future__ import annotations

import array
import base64
import re
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2
MAX_PIECES = 1 << 21
_SPACE = "\u2581"


@dataclass
class Piece:
    """A piece of text, its score (a logarithm of a probability), and its type."""

    text: str
    score: float = 0.0
    type: int = NORMAL


@dataclass
class SentencePieceModel:
    """What a file holds of what encoding needs."""

    pieces: list[Piece] = field(default_factory=list)
    model_type: int = UNIGRAM
    byte_fallback: bool = False
    suffix: bool = False  # white space belongs to the piece before it
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True

    def unknown(self, what: str) -> int:
        """The number of the unknown piece."""
        for number, piece in enumerate(self.pieces):
            if piece.type == UNKNOWN:
                return number
        raise ValueError(f"{what}: not a whole SentencePiece model: none of {len(self.pieces)} pieces is the unknown one")


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("a number is cut short")


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field: an int, or the bytes of a string, a message or a fixed number."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, position = _varint(data, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if size > len(data) - position:
            raise ValueError("a field is cut short")
        yield tag >> 3, data[position : position + size]
        position += size


def _message(value: Any) -> memoryview:
    if not isinstance(value, memoryview):
        raise ValueError("a number where text or a message is expected")
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int):
        raise ValueError("text where a number is expected")
    return value


def read_sentencepiece(data: bytes, what: str) -> SentencePieceModel:
    """A model file's content.

    Raises
    ------
    ValueError
        Where it is no SentencePiece model, or of another kind than unigram and BPE.
    """
    model = SentencePieceModel()
    try:
        for number, value in _fields(memoryview(data)):
            if number == 1:
                model.pieces.append(_piece(_message(value)))
                if len(model.pieces) > MAX_PIECES:
                    raise ValueError(f"more than {MAX_PIECES} pieces")
            elif number == 2:
                _trainer(model, _message(value))
            elif number == 3:
                _normalizer(model, _message(value))
        if model.charsmap:
            CharsMap(model.charsmap)
    except (ValueError, UnicodeDecodeError) as err:
        raise ValueError(f"{what}: not a SentencePiece model: {err}") from None
    if model.model_type not in (UNIGRAM, BPE):
        kind = {3: "words", 4: "characters"}.get(model.model_type, str(model.model_type))
        raise ValueError(f"{what}: a SentencePiece model of {kind}, expected unigram or BPE")
    if model.suffix or not model.escape_whitespaces:
        raise ValueError(f"{what}: a SentencePiece model that does not put white space in front of its pieces")
    if not model.pieces:
        raise ValueError(f"{what}: not a SentencePiece model: it holds no pieces")
    return model


def _piece(message: memoryview) -> Piece:
    piece = Piece("")
    for number, value in _fields(message):
        if number == 1:
            piece.text = str(_message(value), "utf-8")
        elif number == 2:
            piece.score = struct.unpack("<f", _message(value))[0] if len(_message(value)) == 4 else float("nan")
        elif number == 3:
            piece.type = _number(value)
    if not -1e30 < piece.score < 1e30 or piece.type not in range(NORMAL, BYTE + 1) or not piece.text:
        raise ValueError(f"the piece {piece.text[:40]!r} of type {piece.type} and score {piece.score}")
    return piece


def _trainer(model: SentencePieceModel, message: memoryview) -> None:
    for number, value in _fields(message):
        if number == 3:
            model.model_type = _number(value)
        elif number == 24:
            model.suffix = bool(_number(value))
        elif number == 35:
            model.byte_fallback = bool(_number(value))


def _normalizer(model: SentencePieceModel, message: memoryview) -> None:
    for number, value in _fields(message):
        if number == 2:
            model.charsmap = bytes(_message(value))
        elif number == 3:
            model.add_dummy_prefix = bool(_number(value))
        elif number == 4:
            model.remove_extra_whitespaces = bool(_number(value))
        elif number == 5:
            model.escape_whitespaces = bool(_number(value))


def build_tokenizer(model: SentencePieceModel, vocabulary: list[Piece], unknown: int) -> Any:
    """A tokenizer of the tokenizers library that encodes as SentencePiece does, without special tokens around.

    Parameters
    ----------
    vocabulary : list of Piece
        The model's pieces by the numbers that they get, with what a model's convention puts among them.
    unknown : int
        The unknown piece's number among them.
    """
    import tokenizers
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

    own = [piece for piece in vocabulary if piece.type == USER_DEFINED]
    if model.model_type == UNIGRAM:
        lowest = min((piece.score for piece in vocabulary if piece.type == NORMAL), default=0.0)
        # What stands for bytes, or is not used, is no text that a piece could be found for.
        scored = [
            (piece.text, lowest if piece.type in (BYTE, UNUSED) else piece.score) for piece in vocabulary
        ]  # fmt: skip
        result = tokenizers.Tokenizer(models.Unigram(scored, unknown, model.byte_fallback))
    else:
        table = {piece.text: number for number, piece in enumerate(vocabulary)}
        if len(table) != len(vocabulary):
            raise ValueError("two pieces are the same text")
        bpe = models.BPE(
            vocab=table,
            merges=_merges(vocabulary),
            unk_token=vocabulary[unknown].text,
            fuse_unk=True,
            byte_fallback=model.byte_fallback,
            ignore_merges=bool(own),
        )
        result = tokenizers.Tokenizer(bpe)
    steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(rf"\A +|[ {_SPACE}]+\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps.append(normalizers.Replace(" ", _SPACE))
    if model.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    result.normalizer = normalizers.Sequence(steps)
    if own:  # always whole, and never part of another piece
        pattern = _alternatives(piece.text for piece in own)
        result.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    result.decoder = decoders.Metaspace(_SPACE)
    return result


def _merges(vocabulary: list[Piece]) -> list[tuple[str, str]]:
    """Pairs of pieces that make a third, the best of what they make first: SentencePiece's order of merging."""
    normal = {piece.text: (-piece.score, number) for number, piece in enumerate(vocabulary) if piece.type == NORMAL}
    found = [
        (*rank, text[:cut], text[cut:])
        for text, rank in normal.items()
        for cut in range(1, len(text))
        if text[:cut] in normal and text[cut:] in normal
    ]
    return [(left, right) for _, _, left, right in sorted(found)]


def _alternatives(texts: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))


def charsmap_of(tokenizer: dict[str, Any]) -> CharsMap | None:
    """The table that `build_tokenizer` put into a tokenizer, from its JSON; None where another program made it.

    The tokenizers library looks whole graphemes up in such a table, and so reads it otherwise than SentencePiece, of
    letters with marks above all. A normaliser that itself turns white space into SentencePiece's is meant to be its own.
    """
    normalizer = tokenizer.get("normalizer")
    steps = normalizer.get("normalizers") if isinstance(normalizer, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        return None
    own = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if not steps or steps[0].get("type") != "Precompiled" or own not in steps:
        return None
    kept: list[str] = []
    split = tokenizer.get("pre_tokenizer")
    if isinstance(split, dict) and split.get("type") == "Split":
        pattern = (split.get("pattern") or {}).get("Regex")
        if isinstance(pattern, str):
            kept = [re.sub(r"\\(.)", r"\1", one) for one in re.split(r"(?<!\\)\|", pattern)]
            if _alternatives(kept) != pattern:
                kept = []
    try:
        return CharsMap(base64.b64decode(steps[0].get("precompiled_charsmap") or "", validate=True), kept)
    except (ValueError, TypeError) as err:
        raise ValueError(f"the normaliser's table: {err}") from None


def without_charsmap(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer's JSON without the table, for texts in which its entries are replaced already."""
    steps = tokenizer["normalizer"]["normalizers"][1:]
    return {**tokenizer, "normalizer": {**tokenizer["normalizer"], "normalizers": steps}}


class CharsMap:
    """A SentencePiece normaliser's table: at each place of a text the longest piece of text that it lists is replaced.

    The table is a double-array trie (Aoe, 1989; laid out as darts-clone does) over UTF-8, then the replacements, each
    ended by a zero byte.

    Parameters
    ----------
    data : bytes
        ``precompiled_charsmap``.
    kept : list of str
        Texts that stay as they are: the model's user-defined symbols.
    """

    def __init__(self, data: bytes, kept: Sequence[str] = ()) -> None:
        self._kept = sorted((text.encode() for text in kept if text), key=len, reverse=True)
        size = int.from_bytes(data[:4], "little")
        if len(data) < 4 or size % 4 or size == 0 or size > len(data) - 4:
            raise ValueError("the normaliser's table is cut short")
        self._units = memoryview(data)[4 : 4 + size].cast("I") if sys.byteorder == "little" else _swapped(data[4 : 4 + size])
        self._texts = data[4 + size :]

    def _longest(self, data: bytes, start: int) -> tuple[int, int] | None:
        """How many bytes from ``start`` on the table's longest entry takes, and where its replacement begins."""
        units, found = self._units, None
        node = _offset(units[0])
        for position in range(start, len(data)):
            byte = data[position]
            if byte == 0:
                break
            node ^= byte
            if node >= len(units):
                break
            unit = units[node]
            if unit & 0x800000FF != byte:
                break
            node ^= _offset(unit)
            if unit >> 8 & 1:
                if node >= len(units):
                    break
                found = (position + 1 - start, units[node] & 0x7FFFFFFF)
        return found

    def _replacement(self, begin: int) -> bytes:
        end = self._texts.find(b"\0", begin)
        return self._texts[begin : end if end >= 0 else len(self._texts)]

    def replace(self, text: str) -> tuple[str, list[int]]:
        """The text with all entries replaced, and which character of the old text each of the new one comes from.

        Raises
        ------
        ValueError
            For lone surrogates, and where the table is damaged.
        """
        data = text.encode("utf-8")
        parts: list[str] = []
        origin: list[int] = []
        at = character = 0
        while at < len(data):
            own = next((text for text in self._kept if data.startswith(text, at)), None)
            found = self._longest(data, at) if own is None else None
            width = found[0] if found else len(own) if own is not None else _width(data[at])
            try:
                old = data[at : at + width].decode("utf-8")
                new = self._replacement(found[1]).decode("utf-8") if found else old
            except UnicodeDecodeError as error:
                raise ValueError(f"the normaliser's table is damaged: {error}") from None
            parts.append(new)
            read = len(old)
            origin += [character] * len(new) if found else range(character, character + read)
            character += read
            at += width
        return "".join(parts), origin


def _swapped(data: bytes) -> memoryview:
    return memoryview(array.array("I", [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]))


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)


def _width(byte: int) -> int:
    return 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
