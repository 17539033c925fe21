"""What is left of logits, what is drawn, and the loops around a decoder, against transformers and NumPy."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from decoders import OfTransformers, Scattered
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from qavit import _core
from qavit.generation import Generated, process_logits
from qavit.generation._decoding import Decoding
from qavit.generation._draws import Draws, check_weights, draw_patches
from qavit.generation._loops import decode
from qavit.generation._processors import Sampling

Array = Any
EOS = 2


@pytest.fixture(autouse=True)
def keep_width() -> Iterator[None]:
    width = _core.get_num_threads()
    yield
    _core.set_num_threads(width)


# ---- what is left of logits ----

SETTINGS = [
    {},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.6},
    {"min_length": 9},
    {"min_length": 8},
    {"temperature": 0.7},
    {"temperature": 2.5, "top_k": 5},
    {"top_k": 1},
    {"top_k": 300},
    {"top_k": 100000},
    {"top_p": 0.9},
    {"top_p": 0.02},
    {"top_p": 0.999},
    {"top_k": 50, "top_p": 0.7},
    {"repetition_penalty": 1.2, "min_length": 10, "temperature": 0.8, "top_k": 20, "top_p": 0.95},
]


def expected_scores(
    logits: Array, ids: Array, repetition_penalty: float = 1.0, min_length: int = 0, temperature: float = 1.0,
    top_k: int = 0, top_p: float = 1.0,
) -> Array:  # fmt: skip
    processors = LogitsProcessorList()
    if repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(repetition_penalty))
    if min_length > 0:
        processors.append(MinLengthLogitsProcessor(min_length, EOS))
    if temperature != 1.0:
        processors.append(TemperatureLogitsWarper(temperature))
    if top_k != 0:
        processors.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        processors.append(TopPLogitsWarper(top_p))
    return processors(torch.from_numpy(ids), torch.from_numpy(logits.copy())).numpy()


@pytest.mark.every_level
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("vocabulary", [7, 145, 3000])
def test_scores_are_those_of_transformers(settings: dict[str, Any], vocabulary: int) -> None:
    random = np.random.default_rng(vocabulary)
    logits = (4 * random.standard_normal((5, vocabulary))).astype(np.float32)
    ids = random.integers(0, vocabulary, (5, 8))
    before = logits.copy()
    scores = process_logits(logits, ids, eos=EOS, **settings)
    want = expected_scores(logits, ids, **settings)
    assert np.array_equal(np.isneginf(scores), np.isneginf(want))
    kept = np.isfinite(want)
    np.testing.assert_allclose(scores[kept], want[kept], rtol=1e-6)
    assert np.array_equal(logits, before)
    assert scores.dtype == np.float32


def test_equal_scores_at_the_edge() -> None:
    logits = np.array([[3, 1, 2, 2, 2, -0.0, 0.0, -np.inf]], np.float32)
    none = np.zeros((1, 0), np.int64)
    assert np.flatnonzero(np.isfinite(process_logits(logits, none, top_k=2))).tolist() == [0, 2, 3, 4]
    for p in (0.05, 0.5, 0.6, 0.75, 0.85, 0.95, 0.97, 0.999):
        assert np.array_equal(process_logits(logits, none, top_p=p), expected_scores(logits, none, top_p=p)), p
    alike = np.zeros((1, 9), np.float32)
    for p in (0.01, 0.4, 0.99):
        assert np.array_equal(process_logits(alike, none, top_p=p), expected_scores(alike, none, top_p=p)), p


def test_what_was_removed_before_stays_removed() -> None:
    logits = np.array([[1.0, -np.inf, 0.5]], np.float32)
    scores = process_logits(logits, np.array([[1, 0]]), repetition_penalty=2.0)
    assert scores.tolist() == [[0.5, -np.inf, 0.5]]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"top_p": 0}, ValueError, "top_p: 0, expected a number above 0, to 1"),
        ({"top_p": 1.5}, ValueError, "top_p: 1.5"),
        ({"top_p": float("nan")}, ValueError, "top_p: nan"),
        ({"top_k": 2.0}, TypeError, "top_k: expected a whole number, got float"),
        ({"top_k": -1}, ValueError, "top_k: -1"),
        ({"top_k": True}, TypeError, "top_k: expected a whole number, got bool"),
        ({"temperature": -1.0}, ValueError, "temperature: -1"),
        ({"temperature": 0}, ValueError, "temperature: 0"),
        ({"temperature": "hot"}, TypeError, "temperature: expected a number, got str"),
        ({"repetition_penalty": 0.0}, ValueError, "repetition_penalty: 0"),
        ({"min_length": -3}, ValueError, "min_length: -3"),
        ({"eos": 9}, ValueError, "eos: 9, expected an id below 4"),
        ({"eos": -1}, ValueError, "eos: -1"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        process_logits(np.zeros((1, 4), np.float32), np.zeros((1, 1), np.int64), **settings)


@pytest.mark.parametrize(
    ("logits", "ids", "message"),
    [
        (np.array([[0, np.nan]]), [[0]], "row 0 holds NaN"),
        (np.array([[0, 1], [np.inf, 0]]), [[0], [1]], "row 1 holds NaN or infinity"),
        (np.array([[-np.inf, -np.inf]]), [[0]], "row 0"),
        (np.zeros((1, 2)), [[2]], "ids: 2 is outside the vocabulary of 2"),
        (np.zeros((1, 2)), [[-1]], "ids: -1 is outside"),
        (np.zeros((1, 2)), [[0], [0]], "ids: 2 rows, expected 1"),
        (np.zeros((1, 0)), [[]], "logits: 0 of them"),
        (np.zeros(3), [[0]], r"logits: expected floats \[B, V\]"),
        (np.zeros((1, 2), int), [[0]], r"logits: expected floats \[B, V\], got int"),
        (np.zeros((1, 2)), [[0.5]], "ids: expected whole numbers"),
    ],
)
def test_bad_rows_are_named(logits: Array, ids: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        process_logits(logits, ids)


def test_a_row_of_which_nothing_is_left() -> None:
    with pytest.raises(ValueError, match=r"row 0 .*nothing"):
        process_logits(np.array([[-np.inf, 1.0]]), [[0]], min_length=2, eos=1)
    with pytest.raises(ValueError, match="row 0"):
        process_logits(np.array([[1e30, 1.0]]), [[0]], temperature=1e-30)


def test_no_rows_are_no_rows() -> None:
    assert process_logits(np.zeros((0, 5)), np.zeros((0, 3), int), top_k=2).shape == (0, 5)


# ---- random numbers ----


@pytest.mark.parametrize(("number", "step"), [(0, 0), (2**64 - 1, 7), (3, 2**64 - 1)])
@pytest.mark.parametrize("key", [(0, 0), (2**64 - 1, 0x0123456789ABCDEF)])
def test_the_generator_is_numpys_philox(number: int, step: int, key: tuple[int, int]) -> None:
    found = _core.random_uniforms(np.array([[*key, number, step]], np.uint64), 22)[0]
    # NumPy counts up before it draws, so its blocks begin with 1.
    philox = np.random.Philox(counter=np.array([0, number, step, 0], np.uint64), key=np.array(key, np.uint64))
    bits = philox.random_raw(18)
    np.testing.assert_array_equal(found[4:], ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52)


def test_a_known_answer() -> None:
    """Random123's kat_vectors: philox4x64 of 10 rounds, counter 0, key 0, begins with 16554d9eca36314c db20fe9d672d0fdc."""
    found = _core.random_uniforms(np.zeros((1, 4), np.uint64), 4)[0]
    words = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert found.tolist() == [((word >> 12) + 0.5) * 2.0**-52 for word in words]


def test_draws_are_keyed_by_content() -> None:
    pixels = np.zeros((3, 4, 4), np.float32)
    base = Draws.of(1, pixels, "a hat?")
    assert base == Draws.of(1, pixels.copy(), "a hat?")
    others = [Draws.of(2, pixels, "a hat?"), Draws.of(1, pixels + 1, "a hat?"), Draws.of(1, pixels, "a cat?")]
    others.append(Draws.of(1, pixels.reshape(3, 16), "a hat?"))
    assert len({base, *others}) == 5
    for bad, error in ((1.5, TypeError), (2**64, ValueError), (None, TypeError)):
        with pytest.raises(error, match="seed"):
            Draws.of(bad, pixels)


def test_uniforms_lie_between_0_and_1() -> None:
    found = _core.random_uniforms(Draws.of(0, np.zeros(1, np.float32)).keys(np.arange(100)), 1001)
    assert found.shape == (100, 1001)
    assert 0.0 < found.min() < 1e-4
    assert 1.0 - 1e-4 < found.max() < 1.0
    assert abs(found.mean() - 0.5) < 0.002
    assert len(np.unique(found)) == found.size


def chi_square(counts: Array, shares: Array) -> float:
    """How many standard deviations the statistic is off its mean."""
    expected = shares * counts.sum()
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = len(shares) - 1
    return float((statistic - freedom) / (2 * freedom) ** 0.5)


@pytest.mark.every_level
def test_tokens_come_as_often_as_their_scores_say() -> None:
    random = np.random.default_rng(3)
    logits = (2 * random.standard_normal((1, 40))).astype(np.float32)
    ids = np.array([[3, 5]])
    settings = Sampling(1.3, 0, None, 1.5, 20, 0.95)
    scores = process_logits(logits, ids, repetition_penalty=1.3, temperature=1.5, top_k=20, top_p=0.95)[0]
    rows = 100_000
    keys = Draws.of(7, logits).keys(np.arange(rows))
    tokens, _ = _core.next_tokens(logits.repeat(rows, axis=0), ids.repeat(rows, axis=0), settings.packed(), keys)
    counts = np.bincount(tokens, minlength=40)
    assert not counts[np.isneginf(scores)].any()
    shares = np.exp(scores.astype(np.float64) - scores.max())
    kept = np.isfinite(scores)
    assert abs(chi_square(counts[kept], shares[kept] / shares.sum())) < 4


def test_log_probabilities_are_those_of_the_logits() -> None:
    random = np.random.default_rng(5)
    logits = (3 * random.standard_normal((6, 500))).astype(np.float32)
    ids = random.integers(0, 500, (6, 4))
    settings = Sampling(1.4, 9, EOS, 0.5, 7, 0.9)
    want = torch.log_softmax(torch.from_numpy(logits).double(), dim=1).numpy()
    tokens, found = _core.next_tokens(logits, ids, settings.packed(), Draws.of(1, logits).keys(np.arange(6)))
    np.testing.assert_allclose(found, want[np.arange(6), tokens], atol=2e-6)
    assert np.array_equal(_core.token_log_probabilities(logits, tokens[:, None]), found)
    scores, tokens, found = _core.best_tokens(logits, ids, Sampling(1.4, 9, EOS).packed(), 11)
    np.testing.assert_allclose(found, np.take_along_axis(want, tokens, axis=1), atol=2e-6)
    processed = expected_scores(want.astype(np.float32), ids, repetition_penalty=1.4, min_length=9)
    best = np.sort(processed, axis=1)[:, ::-1][:, :11]
    np.testing.assert_allclose(scores, best, atol=3e-6)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_row_is_the_same_in_any_batch(threads: int) -> None:
    random = np.random.default_rng(9)
    logits = random.standard_normal((150, 321)).astype(np.float32)
    ids = random.integers(0, 321, (150, 6))
    settings = Sampling(1.2, 0, EOS, 0.9, 60, 0.8).packed()
    keys = Draws.of(4, logits).keys(np.arange(150))
    tokens, log_probabilities = _core.next_tokens(logits, ids, settings, keys)
    _core.set_num_threads(threads)
    order = random.permutation(150)
    again = _core.next_tokens(logits[order], ids[order], settings, keys[order])
    assert np.array_equal(again[0], tokens[order])
    assert np.array_equal(again[1], log_probabilities[order])
    alone = [_core.next_tokens(logits[i : i + 1], ids[i : i + 1], settings, keys[i : i + 1]) for i in range(20)]
    assert [int(one[0][0]) for one in alone] == tokens[:20].tolist()
    assert [float(one[1][0]) for one in alone] == log_probabilities[:20].tolist()


def test_the_core_refuses_what_does_not_fit() -> None:
    logits, ids = np.zeros((2, 5), np.float32), np.zeros((2, 1), np.int64)
    settings = Sampling().packed()
    with pytest.raises(ValueError, match="keys"):
        _core.next_tokens(logits, ids, settings, np.zeros((2, 3), np.uint64))
    with pytest.raises(ValueError, match="keys"):
        _core.next_tokens(logits, ids, settings, np.zeros((1, 4), np.uint64))
    for count in (0, 6):
        with pytest.raises(ValueError, match=f"count: {count}"):
            _core.best_tokens(logits, ids, settings, count)
    with pytest.raises(ValueError, match="repetition_penalty"):
        _core.process_logits(logits, ids, (0.0, 0, -1, 1.0, 0, 1.0))
    with pytest.raises(ValueError, match="top_k"):
        _core.process_logits(logits, ids, (1.0, 0, -1, 1.0, -1, 1.0))
    with pytest.raises(TypeError, match="settings"):
        _core.process_logits(logits, ids, [1.0, 0, -1, 1.0, 0, 1.0])
    with pytest.raises(ValueError, match="ids: 2 a row, expected 1"):
        _core.token_log_probabilities(logits, np.zeros((2, 2), np.int64))
    with pytest.raises(ValueError, match="ids: 5 is outside"):
        _core.token_log_probabilities(logits, np.full((2, 1), 5))
    with pytest.raises(ValueError, match="negative"):
        _core.random_uniforms(np.zeros((1, 4), np.uint64), -1)


# ---- patches ----


def test_patches_come_in_proportion_to_their_weights() -> None:
    weights = check_weights(np.array([[0.5, 0.2], [0.0, 0.3]]), 4)
    draws = Draws.of(11, np.zeros(2, np.float32))
    first = draw_patches(weights, 1, draws.keys(np.arange(100_000)))[:, 0]
    counts = np.bincount(first, minlength=4)
    assert counts[2] == 0
    assert abs(chi_square(counts[[0, 1, 3]], weights[[0, 1, 3]])) < 4
    pairs = draw_patches(weights, 2, draws.keys(np.arange(100_000)))
    assert (pairs[:, 0] < pairs[:, 1]).all()
    # The first is drawn by weight, the second by what is left of it.
    share = 0.5 * 0.2 / 0.5 + 0.2 * 0.5 / 0.8
    assert abs((pairs == [0, 1]).all(axis=1).mean() - share) < 0.008


def test_patches_without_weight_fill_up() -> None:
    weights = check_weights(np.array([0, 0, 0, 1e-30, 0, 2.0]), 6)
    draws = Draws.of(0, np.zeros(1, np.float32))
    assert draw_patches(weights, 4, draws.keys([0, 9])).tolist() == [[0, 1, 3, 5]] * 2
    assert draw_patches(weights, 6, draws.keys([0])).tolist() == [[0, 1, 2, 3, 4, 5]]
    for bad in (0, 7):
        with pytest.raises(ValueError, match=f"num_patches: {bad}, expected 1 to the 6 patches"):
            draw_patches(weights, bad, draws.keys([0]))


def test_a_draw_of_patches_is_its_own() -> None:
    weights = np.random.default_rng(0).random(30)
    draws = Draws.of(3, np.zeros(1, np.float32))
    every = draw_patches(weights, 5, draws.keys(np.arange(8)))
    assert np.array_equal(draw_patches(weights, 5, draws.keys([6, 2])), every[[6, 2]])
    assert len(np.unique(every, axis=0)) == 8


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (np.zeros(4), ValueError, "weights: all are 0"),
        ([1, -1, 1, 1], ValueError, "weights: -1 among the weights"),
        ([1, np.nan, 1, 1], ValueError, "weights: NaN"),
        ([1, 1], ValueError, "expected one for each of 4 patches"),
        ("four", TypeError, "weights"),
    ],
)
def test_bad_weights_are_named(weights: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_weights(weights, 4)


# ---- the loops ----


@pytest.fixture(scope="module")
def causal() -> Any:
    """A small random model of transformers, whose texts end now and then."""
    torch.manual_seed(2)
    config = GPT2Config(
        vocab_size=17,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=1,
        eos_token_id=EOS,
        tie_word_embeddings=False,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.4 * torch.randn_like(parameter))
    return model


def generate(model: Any, prompt: Array, count: int = 1, **options: Any) -> tuple[list[list[int]], Array]:
    """transformers' texts behind the prompt, up to and with their end, and its own scores of beams."""
    out = model.generate(
        torch.from_numpy(prompt), attention_mask=torch.ones(prompt.shape, dtype=torch.long), pad_token_id=0,
        eos_token_id=EOS, num_return_sequences=count, return_dict_in_generate=True, output_scores=True,
        **{"do_sample": False, **options},
    )  # fmt: skip
    texts = []
    for row in out.sequences[:, prompt.shape[1] :].tolist():
        texts.append(row[: row.index(EOS) + 1] if EOS in row else row)
    return texts, getattr(out, "sequences_scores", None)


PROMPT = np.array([[1, 5, 9], [1, 7, 3], [4, 4, 4], [1, 0, 16], [11, 12, 13]])


@pytest.mark.parametrize(
    "settings", [{}, {"min_length": 9}, {"repetition_penalty": 1.5}, {"repetition_penalty": 1.3, "min_length": 12}]
)
def test_greedy_is_that_of_transformers(causal: Any, settings: dict[str, Any]) -> None:
    decoder = OfTransformers(causal)
    how = Decoding(20, EOS, Sampling(eos=EOS, **settings))
    found = decode(decoder, 0, PROMPT, how, keep_logits=True)
    want, _ = generate(causal, PROMPT, max_length=20, **settings)
    assert [one.ids.tolist() for (one,) in found] == want
    for prompt, (one,) in zip(PROMPT, found):
        whole = np.concatenate([prompt, one.ids])
        with torch.no_grad():
            logits = causal(torch.from_numpy(whole[None])).logits[0, len(prompt) - 1 : -1]
        np.testing.assert_allclose(one.logits, logits.numpy(), atol=1e-5)
        score = torch.log_softmax(logits.double(), dim=1)[np.arange(len(one.ids)), one.ids].sum()
        assert one.score == pytest.approx(float(score), abs=1e-4)


def test_rows_that_have_ended_leave_the_batch(causal: Any) -> None:
    decoder = OfTransformers(causal)
    lengths = [len(one.ids) for (one,) in decode(decoder, 0, PROMPT, Decoding(20, EOS))]
    assert len(set(lengths)) > 1
    assert decoder.steps == [sum(length > step for length in lengths) for step in range(max(lengths))]


def test_texts_that_begin_alike_begin_once() -> None:
    decoder = Scattered(50)
    prompt = np.array([[1, 5], [1, 6], [1, 5], [1, 5]])
    keys = Draws.of(0, np.zeros(1, np.float32)).keys(np.arange(4))
    how = Decoding(9, None, do_sample=True)
    found = decode(decoder, [3, 4], prompt, how, memory_of=np.array([0, 0, 1, 0], np.int32), keys=keys)
    assert decoder.steps[:2] == [3, 4]
    for row, of in enumerate([3, 3, 4, 3]):
        ((alone,),) = decode(decoder, of, prompt[row, None], how, keys=keys[row, None])
        assert np.array_equal(found[row][0].ids, alone.ids)
    decode(decoder, 3, prompt[:2], Decoding(9, None, num_beams=4))
    assert decoder.steps[-7:-5] == [2, 8]


@pytest.mark.parametrize("beams", [2, 3, 5])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"length_penalty": 2.0},
        {"length_penalty": 0.0},
        {"length_penalty": -1.0},
        {"early_stopping": True},
        {"early_stopping": "never"},
        {"early_stopping": "never", "length_penalty": -0.5},
        {"min_length": 9},
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 1.2, "min_length": 7, "length_penalty": 0.7, "early_stopping": True},
        {"max_length": 4},
    ],
)
def test_beams_are_those_of_transformers(causal: Any, beams: int, settings: dict[str, Any]) -> None:
    options = {"max_length": 20, **settings}
    own = {name: options.pop(name) for name in ("repetition_penalty", "min_length") if name in options}
    found = decode(
        OfTransformers(causal), 0, PROMPT, Decoding(eos=EOS, sampling=Sampling(eos=EOS, **own), num_beams=beams, **options)
    )
    want, scores = generate(causal, PROMPT, beams, num_beams=beams, **{**options, **own})
    assert [one.ids.tolist() for text in found for one in text] == want
    assert all(len(text) == beams for text in found)
    if not own:
        power = options.get("length_penalty", 1.0)
        ranks = [one.score / len(one.ids) ** power for text in found for one in text]
        np.testing.assert_allclose(ranks, scores.numpy(), rtol=1e-4)


def test_logits_of_beams_are_those_that_their_ids_came_from(causal: Any) -> None:
    how = Decoding(14, EOS, num_beams=3)
    for prompt, text in zip(PROMPT, decode(OfTransformers(causal), 0, PROMPT, how, keep_logits=True)):
        for one in text:
            whole = np.concatenate([prompt, one.ids])
            with torch.no_grad():
                logits = causal(torch.from_numpy(whole[None])).logits[0, len(prompt) - 1 : -1]
            np.testing.assert_allclose(one.logits, logits.numpy(), atol=1e-5)


def sampled(decoder: Any, rows: list[int], numbers: list[int], **settings: Any) -> list[tuple[list[int], float]]:
    prompt = PROMPT[rows]
    keys = np.concatenate([Draws.of(3, PROMPT[row]).keys([number]) for row, number in zip(rows, numbers)])
    tokens = np.array([[row, number] for row, number in zip(rows, numbers)], np.int32)
    how = Decoding(16, EOS, Sampling(eos=EOS, **settings), do_sample=True)
    of = np.array(rows, np.int32)
    found = decode(decoder, list(range(5)), prompt, how, memory_of=of, tokens=tokens, keys=keys)
    return [(one.ids.tolist(), one.score) for (one,) in found]


def test_a_text_is_the_same_whatever_stands_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Scattered(50)
    rows, numbers = [0, 1, 2, 3, 4] * 4, [i // 5 for i in range(20)]
    every = sampled(decoder, rows, numbers, top_k=30, top_p=0.95)
    assert len({tuple(ids) for ids, _ in every}) > 15
    order = np.random.default_rng(0).permutation(20)
    shuffled = sampled(decoder, [rows[i] for i in order], [numbers[i] for i in order], top_k=30, top_p=0.95)
    assert shuffled == [every[i] for i in order]
    monkeypatch.setattr("qavit.generation._loops.LOGITS_AT_ONCE", 150)
    assert sampled(decoder, rows, numbers, top_k=30, top_p=0.95) == every
    assert max(decoder.steps[-20:]) <= 3


def test_texts_are_drawn_as_their_probabilities_say() -> None:
    """Two tokens of four: their joint frequencies."""
    decoder = Scattered(4, spread=1.0)
    rows = 20_000
    prompt = np.zeros((rows, 1), np.int64)
    how = Decoding(3, None, Sampling(), do_sample=True)
    keys = Draws.of(0, np.zeros(1, np.float32)).keys(np.arange(rows))
    found = np.array([one.ids for (one,) in decode(decoder, 5, prompt, how, keys=keys)])
    cache = decoder.begin(5, 5, 3)
    first = decoder.step(cache, np.zeros((5, 1), np.int64))[0]
    second = decoder.step(cache, np.array([[0], [1], [2], [3], [0]]))[:4]
    shares = np.exp(first - first.max()) / np.exp(first - first.max()).sum()
    joint = shares[:, None] * np.exp(second) / np.exp(second).sum(axis=1, keepdims=True)
    counts = np.bincount(found[:, 0] * 4 + found[:, 1], minlength=16)
    assert abs(chi_square(counts, joint.ravel())) < 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 0}, "max_length: 0"),
        ({"sampling": Sampling(min_length=30)}, "min_length: 30, expected at most max_length, 20"),
        ({"num_beams": 0}, "num_beams: 0"),
        ({"num_beams": 2, "do_sample": True}, "num_beams: beams are not drawn from"),
        ({"sampling": Sampling(top_k=3)}, "top_k, top_p: they say how to draw"),
        ({"length_penalty": float("nan")}, "length_penalty"),
        ({"early_stopping": "soon"}, "early_stopping: 'soon'"),
    ],
)
def test_what_cannot_be_decoded_so_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoding(**{"max_length": 20, "eos": EOS, **settings})


def test_a_text_that_never_ends_is_bounded() -> None:
    class Endless(Scattered):
        def logits(self, cache: dict[str, Any]) -> Array:
            return np.tile(np.array([0, 1, -np.inf, 0], np.float32), (len(cache["ids"]), 1))

    decoder = Endless(4, max_tokens=30)
    prompt = np.zeros((2, 4), np.int64)
    assert [one.ids.tolist() for (one,) in decode(decoder, 0, prompt, Decoding(30, EOS))] == [[1] * 26] * 2
    assert len(decode(decoder, 0, prompt, Decoding(30, EOS, num_beams=2))[0][0].ids) == 26
    with pytest.raises(ValueError, match="max_length: 31, expected at most 30, the decoder's positions"):
        decode(decoder, 0, prompt, Decoding(31, EOS))
    with pytest.raises(ValueError, match="max_length: 4, expected more than the 4 tokens"):
        decode(decoder, 0, prompt, Decoding(4, EOS))
    with pytest.raises(ValueError, match="keys"):
        decode(decoder, 0, prompt, Decoding(9, EOS, do_sample=True))


def test_a_decoder_whose_logits_are_not_finite() -> None:
    class Broken(Scattered):
        def logits(self, cache: dict[str, Any]) -> Array:
            return np.full((len(cache["ids"]), 4), np.nan, np.float32)

    with pytest.raises(ValueError, match="row 0 holds NaN"):
        decode(Broken(4), 0, np.zeros((2, 1), np.int64), Decoding(9, EOS))


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals are the main thread's")
def test_ctrl_c_stops_between_steps() -> None:
    class Interrupted(Scattered):
        def logits(self, cache: dict[str, Any]) -> Array:
            if cache["ids"].shape[1] == 5:
                signal.raise_signal(signal.SIGINT)
            return super().logits(cache)

    decoder = Interrupted(9)
    with pytest.raises(KeyboardInterrupt):
        decode(decoder, 0, np.zeros((2, 1), np.int64), Decoding(50, None))
    assert len(decoder.steps) == 5


def test_what_was_generated_reads_as_its_text() -> None:
    assert str(Generated("a hat")) == "a hat"
    assert Generated("a hat").ids is None
