"""SentencePiece models: the ids of the sentencepiece package, on models that it trains here, by each family's convention."""

from __future__ import annotations

import contextlib
import io
import json
import random
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qavit._base.sentencepiece import CharsMap, read_sentencepiece
from qavit.text import Tokenizer

spm = pytest.importorskip("sentencepiece")
WORDS = [
    "where", "is", "the", "car", "red", "ball", "what", "colour", "na\u00efve", "nai\u0308ve", "Stra\u00dfe", "\u65e5\u672c",
    "\ufb01re", "\u2163", "\u00e9lan", "e\u0301lan", "\u2460", "\uff76\uff9e", "\ud55c\uad6d", "\u1112\u1161\u11ab",
    "\U0001f600", "\U0001f469\u200d\U0001f467", "don't", "??", "\t", "  ", "\u00a0", "\u3000", "\u200b", "\ufb00\ufb03",
    "\u00bd", "\u201cq\u201d", "\u2581", "\u0130", "\u01c6", "\u0301", "\r\n", "3.5",
]  # fmt: skip
SCRIPTS = [(0x20, 0x24F), (0x300, 0x36F), (0x370, 0x1FFF), (0x2000, 0x33FF), (0xAC00, 0xD7A3), (0xF900, 0xFFEF)]
LETTERS = "abc defg  hijk?.,'\u0301\u00e9\u00e8\u00fc\u00df\u00a0"
SPECIAL = {"t5": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}, "camembert": {}, "xlm-roberta": {}}


@lru_cache
def trained(kind: str, rule: str, options: tuple[tuple[str, Any], ...] = ()) -> bytes:
    chance = random.Random(1)
    made = ["".join(chance.choice("abcdefghijklmnop") for _ in range(chance.randint(2, 9))) for _ in range(300)]
    sentences = (" ".join(chance.choice(WORDS + made) for _ in range(chance.randint(2, 12))) for _ in range(3000))
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=sentences, model_writer=out, model_type=kind, normalization_rule_name=rule, minloglevel=2,
        hard_vocab_limit=False, num_threads=1, **{"vocab_size": 400, **dict(options)},
    )  # fmt: skip
    return out.getvalue()


def lines(count: int, seed: int = 0) -> Iterator[str]:
    """Words, letters with marks and white space of all kinds, and characters of every script."""
    chance = random.Random(seed)
    for _ in range(count):
        kind = chance.random()
        if kind < 0.4:
            yield " ".join(chance.choice(WORDS) for _ in range(chance.randint(0, 10)))
        elif kind < 0.7:
            yield "".join(chance.choice(LETTERS) for _ in range(chance.randint(0, 40)))
        elif kind < 0.9:
            yield "".join(chance.choice(WORDS) for _ in range(chance.randint(0, 8)))
        else:
            yield "".join(chr(chance.randint(*chance.choice(SCRIPTS))) for _ in range(chance.randint(1, 15)))


def folder_of(folder: Path, family: str, data: bytes, **settings: Any) -> Path:
    name = "spiece.model" if family == "t5" else "sentencepiece.bpe.model"
    (folder / name).write_bytes(data)
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def expected_ids(family: str, ids: list[int]) -> list[int]:
    """The family's numbers of SentencePiece's: moved, and between special tokens."""
    if family == "t5":
        return [*ids, 1]
    if family == "camembert":  # <unk> is 3, what is behind it in the model begins at 5
        return [5, *(3 if one == 0 else one + 4 for one in ids), 6]
    return [0, *(3 if one == 0 else one + 1 for one in ids), 2]


CASES = [
    ("t5", "unigram", "nmt_nfkc", ()),
    ("t5", "unigram", "identity", ()),
    ("camembert", "unigram", "nmt_nfkc", ()),
    ("xlm-roberta", "unigram", "nmt_nfkc", ()),
    ("t5", "bpe", "nmt_nfkc", ()),
    ("t5", "unigram", "nmt_nfkc_cf", ()),
    ("t5", "bpe", "nfkc", (("byte_fallback", True), ("vocab_size", 700))),
    ("t5", "unigram", "nmt_nfkc", (("user_defined_symbols", "<sep>,car"), ("vocab_size", 420))),
    ("t5", "bpe", "identity", (("add_dummy_prefix", False), ("remove_extra_whitespaces", False))),
    ("t5", "unigram", "nmt_nfkc", (("remove_extra_whitespaces", False),)),
]


def check(case: tuple[Any, ...], folder: Path, count: int, seed: int) -> None:
    family, kind, rule, options = case
    data = trained(kind, rule, (*options, *SPECIAL[family].items()))
    theirs = spm.SentencePieceProcessor(model_proto=data)
    ours = Tokenizer.from_folder(folder_of(folder, family, data))
    ours = Tokenizer(ours.to_json())  # as a converted folder gives it back
    for line in lines(count, seed):
        found = ours.encode([line], 4096).ids[0].tolist()
        assert found == expected_ids(family, theirs.encode(line)), repr(line)


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join([*case[:3], *(name for name, _ in case[3])]))
def test_ids_are_sentencepieces(case, tmp_path):
    check(case, tmp_path, 5000 if case in CASES[:3:2] else 1000, 0)


@pytest.mark.nightly
@pytest.mark.parametrize("case", [CASES[0], CASES[2]], ids=["t5", "camembert"])
def test_ids_of_a_hundred_thousand_lines(case, tmp_path):
    check(case, tmp_path, 100_000, 7)


def test_words_are_told_through_the_normaliser(tmp_path):
    data = trained("unigram", "nmt_nfkc", tuple(SPECIAL["t5"].items()))
    tokenizer = Tokenizer.from_folder(folder_of(tmp_path, "t5", data))
    text = "where  is\u3000the \ufb01re nai\u0308ve \u2163 ball"
    batch = tokenizer.encode([text], 100)
    assert batch.words[0] == text.split()
    numbers = batch.word_of[0]
    assert numbers[-1] == -1
    assert sorted(set(numbers[:-1])) == list(range(len(text.split())))
    assert numbers[:-1] == sorted(numbers[:-1])
    assert tokenizer.pad == 0


def test_t5s_extra_ids_and_padding(tmp_path):
    data = trained("unigram", "nmt_nfkc", tuple(SPECIAL["t5"].items()))
    pieces = len(read_sentencepiece(data, "x").pieces)
    tokenizer = Tokenizer.from_folder(folder_of(tmp_path, "t5", data))
    assert tokenizer.size == pieces + 100
    assert (tokenizer.id_of("<extra_id_0>"), tokenizer.id_of("<extra_id_99>")) == (pieces + 99, pieces)
    none = Tokenizer.from_folder(folder_of(tmp_path, "t5", data, extra_ids=0))
    assert none.size == pieces
    (tmp_path / "tokenizer_config.json").unlink()
    assert Tokenizer.from_folder(folder_of(tmp_path, "mt5", data)).size == pieces
    for settings, message in (
        ({"extra_ids": "x"}, "extra_ids is 'x'"),
        ({"do_lower_case": True}, "do_lower_case is true, which spiece.model cannot obey"),
        ({"sp_model_kwargs": {"enable_sampling": True}}, "sp_model_kwargs .* cannot be obeyed"),
        ({"tokenizer_class": "AlbertTokenizer"}, "a SentencePiece model of 'AlbertTokenizer', expected one of T5"),
    ):
        with pytest.raises(ValueError, match=message):
            Tokenizer.from_folder(folder_of(tmp_path, "t5", data, **settings))
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").unlink()
    for old in tmp_path.glob("*.model"):
        old.unlink()
    other = trained("unigram", "nmt_nfkc")
    (tmp_path / "tokenizer.model").write_bytes(other)
    with pytest.raises(ValueError, match="nothing tells whose SentencePiece model it is"):
        Tokenizer.from_folder(tmp_path)


def piece(text: str, kind: int = 1, score: float = -1.0) -> bytes:
    body = b"\n" + bytes([len(text.encode())]) + text.encode() + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind])
    return b"\n" + bytes([len(body)]) + body


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it holds no pieces"),
        (piece("<pad>", 3), "none of 1 pieces is the unknown one"),
        (piece("<unk>", 2)[:-3], "cut short"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "a number is cut short"),
        (b"\x0b", "a field of kind 3"),
        (b"\x08\x05", "a number where text or a message is expected"),
        (piece("a", 9), "the piece 'a' of type 9"),
        (piece("a", 1, float("nan")), "the piece 'a' of type 1 and score nan"),
        (piece("<unk>", 2) + b"\x12\x02\x18\x03", "a SentencePiece model of words"),
        (piece("<unk>", 2) + b"\x12\x03\xc0\x01\x01", "does not put white space in front"),
        (piece("<unk>", 2) + b"\x1a\x05\x12\x03\x08\x00\x00", "the normaliser's table is cut short"),
        (b"<!DOCTYPE html>", "not a SentencePiece model"),
    ],
)
def test_broken_models_are_refused(data, message, tmp_path):
    with pytest.raises(ValueError, match=rf"spiece\.model: .*{message}"):
        Tokenizer.from_folder(folder_of(tmp_path, "t5", data))


def test_damaged_models_are_read_or_refused(tmp_path):
    data = trained("unigram", "nmt_nfkc", tuple(SPECIAL["t5"].items()))
    head, chance = data[:6000], random.Random(3)
    model = read_sentencepiece(data, "x")
    for number in range(60):
        damaged = bytearray(head if number % 2 else data)
        for _ in range(chance.randint(1, 5)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        with contextlib.suppress(ValueError):
            Tokenizer.from_folder(folder_of(tmp_path, "t5", bytes(damaged))).encode(["where is the \ufb01re?"], 30)
        table = bytearray(model.charsmap)
        for _ in range(20):
            table[chance.randrange(len(table))] = chance.randrange(256)
        with contextlib.suppress(ValueError):
            text, origin = CharsMap(bytes(table)).replace("where is the \ufb01re \u1112\u1161\u11ab?")
            assert len(text) == len(origin)
    assert np.asarray(CharsMap(model.charsmap).replace("a\u0301")[1]).tolist() == [0]


def test_a_table_that_replaces_by_half_a_letter_is_damaged():
    units = [0] * 256  # "a", whose replacement is the first of the texts behind
    units[0], units[1 ^ ord("a")], units[0x70] = 1 << 10, ord("a") | 1 << 8 | (0x70 ^ (1 ^ ord("a"))) << 10, 1 << 31
    head = np.array([4 * len(units), *units], "<u4").tobytes()
    assert CharsMap(head + "\u00e9\0".encode()).replace("cat") == ("c\u00e9t", [0, 1, 2])
    with pytest.raises(ValueError, match="the normaliser's table is damaged") as caught:
        CharsMap(head + b"\xc3\0").replace("cat")
    assert type(caught.value) is ValueError
