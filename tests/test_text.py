"""Questions and tokenizers: cleaning, ids as the public code gives them, words of tokens, the cache of questions."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from qavit.text import QuestionCache, Tokenizer, check_bert, clean_question, with_blip_tokens, words_with_tokens

GOLDEN = Path(__file__).parent / "data" / "golden"
T5 = GOLDEN / "qavit_official_late" / "t5"


def test_questions_are_cleaned_as_the_public_code_does():
    assert clean_question('Where is the "RED" car?!  ') == "where is the red car?"
    assert clean_question('a.b!c"d(e)f*g#h:i;j~k') == "abcdefghijk"
    assert clean_question("  two  spaces stay") == "  two  spaces stay"
    assert clean_question(" ".join("w" * 3 for _ in range(60))) == " ".join(["www"] * 50)
    assert clean_question("one two three", 2) == "one two"
    assert clean_question("") == ""
    with pytest.raises(TypeError, match="question: expected a str, got int"):
        clean_question(3)
    with pytest.raises(ValueError, match="characters"):
        clean_question("a" * (1 << 21))


@pytest.mark.parametrize("name", ["late", "early"])
def test_ids_are_the_public_codes(name):
    folder = GOLDEN / f"qavit_official_{name}"
    questions = json.loads((folder / "cases.json").read_text())["questions"]
    tokenizer = Tokenizer.from_folder(folder / "t5", 65)
    with np.load(folder / "golden.npz") as golden:
        batch = tokenizer.encode([clean_question(question) for question in questions], 30)
        np.testing.assert_array_equal(batch.ids, golden["batch_ids"])
        np.testing.assert_array_equal(batch.mask, golden["batch_mask"])
        for number, question in enumerate(questions):
            single = tokenizer.encode([clean_question(question)], 30)
            np.testing.assert_array_equal(single.ids, golden[f"q{number}_ids"])
            assert single.mask.all()


def test_truncation_keeps_the_closing_token_and_words_are_told():
    tokenizer = Tokenizer.from_folder(T5)
    batch = tokenizer.encode(["where is the red car?", "is there a person on the left side of the street"], 9)
    assert batch.ids.shape == (2, 9)
    assert [row[-1] for row in batch.tokens] == ["</s>", "</s>"]
    assert batch.words[0] == ["where", "is", "the", "red", "car?"]
    whole = tokenizer.encode(["where is the red car?"], 30)
    assert whole.tokens[0] == ["▁wh", "e", "re", "▁i", "s", "▁the", "▁", "re", "d", "▁c", "ar", "?", "</s>"]
    assert whole.word_of[0] == [0, 0, 0, 1, 1, 2, 3, 3, 3, 4, 4, 4, -1]
    assert tokenizer.encode([], 30).ids.shape == (0, 0)
    assert tokenizer.encode([""], 30).tokens == [["</s>"]]
    for texts, limit, error, message in (
        ("where?", 30, TypeError, "texts: expected a list of str, got a str"),
        (["where?", b"what?"], 30, TypeError, "texts: expected a list of str, got a bytes in it"),
        (["where?"], 2, ValueError, "max_tokens: 2, expected at least 3"),
    ):
        with pytest.raises(error, match=message):
            tokenizer.encode(texts, limit)


def test_words_without_tokens_are_left_out():
    assert words_with_tokens(["a", "星", "b", "c"], [0, 2, 2, -1]) == (["a", "b"], [0, 1, 1, -1])
    assert words_with_tokens(["星"], [-1]) == ([], [-1])
    tokenizer = Tokenizer.from_folder(T5)
    batch = tokenizer.encode(["where is the car?", "红色的汽车在哪里?", "???", "red 汽车"], 30)
    assert batch.known == [True, False, False, True]


def test_a_tokenizer_of_another_model_is_refused():
    size = Tokenizer.from_folder(T5, 65).size
    with pytest.raises(ValueError, match=f"up to number {size - 1}, but the text encoder's table has {size - 1} rows"):
        Tokenizer.from_folder(T5, size - 1)
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        Tokenizer('{"version": "1.0"}')
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer: none of tokenizer\.json, vocab\.txt, .*spiece\.model"):
        Tokenizer.from_folder(GOLDEN / "qavit_official_late" / "clip")
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        Tokenizer.from_folder(T5 / "absent.json")
    with pytest.raises(TypeError, match="a list of str, got a str"):
        Tokenizer.from_folder(T5).encode("where", 30)


def test_a_tokenizer_that_makes_its_library_panic_is_refused():
    broken = json.loads((T5 / "tokenizer.json").read_text())
    broken["post_processor"]["single"][1]["SpecialToken"]["id"] = "</t>"
    broken["post_processor"]["special_tokens"]["</t>"] = {"id": "</t>", "ids": [1], "tokens": ["</t>"]}
    Tokenizer(json.dumps(broken))
    broken["post_processor"]["special_tokens"] = {}
    with pytest.raises(ValueError, match="tokenizer: not a tokenizer"):
        Tokenizer(json.dumps(broken))


def test_blip_ids_are_laviss():
    folder = GOLDEN / "blip_itm"
    tokenizer = Tokenizer(with_blip_tokens(Tokenizer.from_folder(folder / "vocab.txt").to_json()), 123)
    assert (tokenizer.id_of("[DEC]"), tokenizer.id_of("[ENC]"), tokenizer.size) == (121, 122, 123)
    questions = json.loads((folder / "cases.json").read_text())["questions"]
    with np.load(folder / "golden.npz") as golden:
        batch = tokenizer.encode([question.strip("?") for question in questions], 35)
        ids = golden["ids"].copy()
        ids[:, 0] = batch.ids[:, 0]  # LAVIS puts [ENC] there after tokenizing
        np.testing.assert_array_equal(batch.ids, ids)
        np.testing.assert_array_equal(batch.mask, golden["mask"])
    assert batch.tokens[0][0] == "[CLS]"
    assert with_blip_tokens(tokenizer.to_json()) == tokenizer.to_json()


def test_questions_are_forgotten_when_there_are_too_many():
    cache: QuestionCache[int] = QuestionCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert (cache.get("a"), cache.get("b"), cache.get("c"), len(cache)) == (1, None, 3, 2)
    cache.clear()
    assert (cache.get("a"), len(cache)) == (None, 0)
    with pytest.raises(ValueError, match="capacity: 0"):
        QuestionCache(0)


def test_threads_share_a_tokenizer_and_a_cache():
    tokenizer = Tokenizer.from_folder(T5)
    cache: QuestionCache[list[int]] = QuestionCache(3)
    texts = ["where is the red car?", "is there a person", "what is the man holding in his right hand"]
    expected = {(text, n): tokenizer.encode([text], n).ids[0].tolist() for text in texts for n in (5, 30)}
    wrong: list[object] = []

    def work(seed: int) -> None:
        for step in range(200):
            text, limit = texts[(seed + step) % 3], (5, 30)[(seed * step) % 2]
            ids = tokenizer.encode([text], limit).ids[0].tolist()
            cache.put(text, expected[text, 30])
            if ids != expected[text, limit] or cache.get(text) not in (None, expected[text, 30]):
                wrong.append((text, limit, ids))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(cache) == 3


TEXTS = [
    "where is the red car?", "what's the man's name, and why?", "Ünïcode and  two spaces", "it'll be 42 dogs at 3.5 km", "",
    "walking walked cats", "a-b c_d e/f", "\t tabs\nand lines", "ca\u0301fe \u4f60\u597d",
]  # fmt: skip


def byte_pairs(folder: Path, clip: bool) -> None:
    """A small vocab.json and merges.txt, trained here."""
    from tokenizers import ByteLevelBPETokenizer, CharBPETokenizer

    sentences = [text.lower() for text in TEXTS] * 3 + ["where is the man walking the red dog"] * 5
    if clip:
        trained = CharBPETokenizer(suffix="</w>", lowercase=True, bert_normalizer=False, split_on_whitespace_only=True)
        trained.train_from_iterator(sentences, 150, special_tokens=[], suffix="</w>", min_frequency=1)
        # CLIP's alphabet is the 256 bytes, each alone and as the end of a word.
        from tokenizers.pre_tokenizers import ByteLevel

        alphabet = sorted(ByteLevel.alphabet())
        merges = [
            line
            for line in trained_merges(trained, folder)
            if all(set(p.replace("</w>", "")) <= set(alphabet) for p in line.split())
        ]
        pieces = alphabet + [letter + "</w>" for letter in alphabet]
        pieces += [piece for piece in dict.fromkeys("".join(line.split()) for line in merges) if piece not in pieces]
        pieces += ["<|startoftext|>", "<|endoftext|>"]
        (folder / "vocab.json").write_text(json.dumps({piece: n for n, piece in enumerate(pieces)}))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    else:
        trained = ByteLevelBPETokenizer()
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        trained.train_from_iterator(sentences, 320, min_frequency=1, special_tokens=special)
        trained.save_model(str(folder))


def trained_merges(trained, folder: Path) -> list[str]:
    trained.save_model(str(folder))
    return [line for line in (folder / "merges.txt").read_text().splitlines() if line and not line.startswith("#version")]


@pytest.mark.parametrize("kind", ["roberta", "clip", "bert", "bert cased"])
def test_vocabularies_give_transformers_ids(kind, tmp_path):
    transformers = pytest.importorskip("transformers")

    if kind.startswith("bert"):
        (tmp_path / "vocab.txt").write_text((GOLDEN / "blip_itm" / "vocab.txt").read_text())
        lower = kind == "bert"
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
        theirs = transformers.BertTokenizer.from_pretrained(tmp_path, do_lower_case=lower)
    else:
        byte_pairs(tmp_path, kind == "clip")
        factory = transformers.CLIPTokenizer if kind == "clip" else transformers.RobertaTokenizer
        theirs = factory.from_pretrained(tmp_path)
    ours = Tokenizer.from_folder(tmp_path)
    for limit in (8, 40):
        batch = ours.encode(TEXTS, limit)
        expected = theirs(TEXTS, truncation=True, max_length=limit)["input_ids"]
        for row, ids in enumerate(expected):
            assert batch.ids[row][batch.mask[row] == 1].tolist() == ids, (TEXTS[row], batch.tokens[row])
    again = Tokenizer(ours.to_json())
    np.testing.assert_array_equal(again.encode(TEXTS, 40).ids, ours.encode(TEXTS, 40).ids)
    whole = ours.encode(TEXTS, 60)
    for row, text in enumerate(TEXTS):
        # Every word has tokens, in order; special tokens have none.
        numbers = [number for number in whole.word_of[row] if number >= 0]
        assert sorted(set(numbers)) == list(range(len(text.split())))
        assert numbers == sorted(numbers)
        assert (whole.word_of[row][0], whole.word_of[row][-1]) == (-1, -1)


def test_hostile_vocabularies_are_refused(tmp_path):
    def refused(message: str, **files: str) -> None:
        for old in tmp_path.iterdir():
            old.unlink()
        for name, content in files.items():
            (tmp_path / name.replace("_", ".")).write_text(content)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            Tokenizer.from_folder(tmp_path)

    refused(r"\[CLS\] is missing", vocab_txt="a\nb\n")
    refused("needs merges.txt beside it", vocab_json="{}")
    refused("neither RoBERTa's nor CLIP's vocabulary", vocab_json="{}", merges_txt="")
    refused("expected an object of token numbers", vocab_json='{"<s>": "x"}', merges_txt="")
    refused("expected an object of token numbers", vocab_json="[]", merges_txt="")
    refused("appears twice", vocab_json='{"<s>": 0, "<s>": 1}', merges_txt="")
    refused("is not a pair of pieces", vocab_json='{"<s>": 0, "</s>": 1}', merges_txt="a b c")
    refused(r"merges\.txt", vocab_json='{"<s>": 0, "</s>": 1}', merges_txt="a b")
    refused("nested too deeply", vocab_json="[" * 100_000, merges_txt="")
    refused(r"not a tokenizer\.json", tokenizer_json="{")


def bert(words: dict[str, int], size: int) -> Tokenizer:
    """A WordPiece tokenizer of so many tokens, these among them."""
    places = {place: word for word, place in words.items()}
    vocabulary = {places.get(place, f"w{place}"): place for place in range(size)}
    model = tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]")
    return Tokenizer(tokenizers.Tokenizer(model).to_str())


@pytest.mark.parametrize(
    ("moved", "size", "rows", "wrong"),
    [
        ({}, 30524, 30524, None),
        ({}, 30522, 30522, None),
        ({}, 30524, 30528, None),
        ({}, 28996, 30524, "it has 28996 tokens; this is not the tokenizer of this model, whose table has 30524 rows"),
        ({"the": 5}, 30524, 30524, "'the' is its number 5, in bert-base-uncased's it is number 1996"),
        ({"the": None}, 30524, 30524, "'the' is no token of it"),
        ({"[ENC]": 30522, "[DEC]": 30523}, 30524, 30524, r"'\[DEC\]' is its number 30523"),
        ({"[CLS]": 40000}, 40001, 40001, None),
        ({"[CLS]": None, "[SEP]": None}, 40001, 40001, r"no \[CLS\] and no \[SEP\]; expected BERT's"),
    ],
)
def test_a_tokenizer_of_another_bert_is_refused(
    moved: dict[str, int | None], size: int, rows: int, wrong: str | None
) -> None:
    places = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, "the": 1996, "is": 2003, "it": 2009}
    places |= {"what": 2054, "[DEC]": 30522, "[ENC]": 30523}
    chosen = {word: place for word, place in {**places, **moved}.items() if place is not None}
    tokenizer = bert(chosen, size)
    if wrong is None:
        check_bert(tokenizer, rows)
    else:
        with pytest.raises(ValueError, match=f"tokenizer: .*{wrong}"):
            check_bert(tokenizer, rows)
