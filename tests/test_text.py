"""Questions and tokenizers: cleaning, ids as the public code gives them, words of tokens, the cache of questions."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from qavit.text import QuestionCache, Tokenizer, clean_question, with_blip_tokens

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


def test_a_tokenizer_of_another_model_is_refused():
    size = Tokenizer.from_folder(T5, 65).size
    with pytest.raises(ValueError, match=f"up to number {size - 1}, but the text encoder's table has {size - 1} rows"):
        Tokenizer.from_folder(T5, size - 1)
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        Tokenizer.from_json('{"version": "1.0"}')
    with pytest.raises(FileNotFoundError, match=r"holds neither tokenizer\.json"):
        Tokenizer.from_folder(GOLDEN / "qavit_official_late" / "clip")
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        Tokenizer.from_folder(T5 / "absent.json")
    with pytest.raises(TypeError, match="a list of str, got a str"):
        Tokenizer.from_folder(T5).encode("where", 30)


def test_blip_ids_are_laviss():
    folder = GOLDEN / "blip_itm"
    tokenizer = Tokenizer.from_json(with_blip_tokens(Tokenizer.from_folder(folder / "vocab.txt").to_json()), 123)
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
