"""Texts that would never end: whatever is asked for and whatever a model writes, a decoder stops within its bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from decoders import Scattered
from writers import CONTEXTS, clean_up, picture, writer

from qavit.generation._decoding import MOST_BEAMS, MOST_TOKENS, Decoding
from qavit.generation._loops import decode
from qavit.generation._processors import Sampling

PROMPT = 3


class Endless(Scattered):
    """Logits under which the last token, the end's where there is one, is never likely."""

    def logits(self, cache: dict[str, Any]) -> np.ndarray:
        found = super().logits(cache)
        found[:, 1:] -= np.float32(50)
        return found


@pytest.mark.parametrize("beams", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("vocabulary", [1, 2, 3, 7])
def test_any_decoder_stops_at_its_length(vocabulary: int, beams: int) -> None:
    """Fewer tokens than beams, no end, an end that never comes, or one that may not come."""
    most = 11
    prompt = np.zeros((2, PROMPT), np.int64)
    for eos in (None, vocabulary - 1):
        for least in (0, most):
            how = Decoding(most, eos, Sampling(min_length=least, eos=eos), num_beams=beams)
            decoder = Endless(vocabulary, max_tokens=0)
            if vocabulary == 1 and eos == 0:
                if least:  # the end alone is there, and may not come
                    with pytest.raises(ValueError, match="row 0"):
                        decode(decoder, 0, prompt, how)
                else:
                    assert [len(one.ids) for one, *_ in decode(decoder, 0, prompt, how)] == [1, 1]
                continue
            for text in decode(decoder, 0, prompt, how):
                assert [len(one.ids) for one in text][:1] == [most - PROMPT]
                assert 1 <= len(text) <= beams
                assert all(len(one.ids) <= most - PROMPT and np.isfinite(one.score) for one in text)
            assert len(decoder.steps) == most - PROMPT
            assert max(decoder.steps) <= 2 * beams


KINDS = ["blip_caption", "reader", "blip_vqa", "qavit"]


@pytest.fixture(scope="module", autouse=True)
def cleaned() -> Iterator[None]:
    yield
    clean_up()


def write(kind: str, **asked: Any) -> Any:
    """A text of one of the models."""
    model = writer(kind)
    if kind == "blip_caption":
        return model.generate(picture(0), **asked)[0]
    if kind == "reader":
        return model.answer("where is the dog?", CONTEXTS, **asked)
    return model.answer(picture(0), "where is the dog?", **asked)[0]


def lengths(kind: str, least: int, most: int) -> dict[str, int]:
    """Of a text of `least` to `most` tokens behind its start, as this kind of model calls them."""
    if kind == "blip_caption":
        begun = len(writer(kind)._prompt_ids)
        return {"min_length": begun + least, "max_length": begun + most}
    if kind == "reader":
        return {"min_len": 1 + least, "max_len": 1 + most}
    return {"min_new_tokens": least, "max_new_tokens": most}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beams", [1, 3])
def test_models_that_may_not_end_stop_at_their_length(kind: str, beams: int) -> None:
    """The end is taken from them for as long as the text may be."""
    for most in (1, 12):
        assert len(write(kind, **lengths(kind, most, most), num_beams=beams).ids) == most


@pytest.mark.parametrize("kind", KINDS)
def test_more_beams_than_a_vocabulary_has_tokens(kind: str) -> None:
    model = writer(kind)
    own = model._language._answerer(model._tokenizer).decoder if kind == "qavit" else model._decoder
    beams = min(MOST_BEAMS, 5 + own.vocab_size)
    found = write(kind, **lengths(kind, 0, 2), num_beams=beams)
    assert 1 <= len(found.ids) <= 2
    assert np.isfinite(found.score)


@pytest.mark.parametrize("kind", KINDS)
def test_what_no_memory_would_hold_is_refused_at_the_door(kind: str) -> None:
    for number in (MOST_TOKENS, 10**6, 2**31, 2**63, 10**30):
        with pytest.raises(ValueError, match=r"(max_length|max_new_tokens): \d+, expected (at most|1 to) \d+"):
            write(kind, **lengths(kind, 0, number))
        with pytest.raises(ValueError, match=r"min_length|min_new_tokens"):
            write(kind, **lengths(kind, number, 3))
    for number in (MOST_BEAMS + 1, 10**6, 10**30):
        with pytest.raises(ValueError, match=rf"num_beams: {number}, expected 1 to {MOST_BEAMS}"):
            write(kind, num_beams=number)
    with pytest.raises(ValueError, match=r"num_captions: 1000000000000, expected 1 to 65536"):
        writer("blip_caption").generate(picture(0), num_captions=10**12, do_sample=True)


@pytest.mark.parametrize("kind", KINDS)
def test_an_end_outside_the_vocabulary_is_refused_before_anything_is_written(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file gives one: it is refused when a model is opened. Were it to come through, the core would not look there."""
    from qavit.models import _answering, _captioner, _reader

    def outside(length: int, end: int, sampling: Sampling, *arguments: Any, **options: Any) -> Decoding:
        return Decoding(length, 10**6, dataclasses.replace(sampling, eos=10**6), *arguments, **options)

    for module in (_answering, _captioner, _reader):
        monkeypatch.setattr(module, "Decoding", outside)
    with pytest.raises(ValueError, match="eos: 1000000, expected an id below"):
        write(kind)
