"""The decoders of the core, against transformers and the public code's numbers; memories, caches, and bad input."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from interrupting import seconds_of, seconds_until_stopped

from qavit import _core

# Of the largest logit. Large scores magnify what is rounded: of such a T5, transformers itself is 6.6e-5 from its float64,
# and the core 4e-5 to 1.1e-4, as its sums are cut. Twice what transformers is off is allowed, too.
TOLERANCE = 1e-4
FEW = settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])


def randomised(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The model with weights large enough that every part of it moves the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if parameter.dim() == 1 else 1.5 * noise / parameter.shape[-1] ** 0.5)
    return model.eval()


def weights_of(model: torch.nn.Module, *leave_out: str) -> dict[str, tuple[Any, str, tuple, int]]:
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    return {
        name: (np.ascontiguousarray(array), "float32", array.shape, 0)
        for name, array in arrays.items()
        if name not in leave_out
    }


def on(device: str | None) -> dict[str, Any]:
    return {} if device is None else {"device": _core.Device(device)}


@contextlib.contextmanager
def in_dtype(model: Any, dtype: torch.dtype) -> Iterator[Any]:
    """Meanwhile; its weights are the same afterwards."""
    with torch.no_grad():
        yield model.to(dtype)
    model.float()


class T5:
    """A T5, by transformers and by the core."""

    def __init__(self, seed: int = 0, precision: str = "float32", device: str | None = None, **config: Any) -> None:
        sizes = {"vocab_size": 37, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 1, "num_decoder_layers": 2}
        settings = {"num_heads": 3, "feed_forward_proj": "relu", "tie_word_embeddings": True, **sizes, **config}
        self.config = transformers.T5Config(**settings)
        self.model = randomised(transformers.T5ForConditionalGeneration(self.config), seed)
        self.width = self.config.d_model
        self.vocabulary = self.config.vocab_size
        options = {**self.config.to_dict(), "model_type": "t5"}
        self.decoder = _core.Decoder(options, weights_of(self.model), precision, **on(device))

    def logits(self, states: np.ndarray, ids: np.ndarray, dtype: torch.dtype = torch.float) -> np.ndarray:
        """Logits [L, V] of ids [L] over states [S, W]."""
        with in_dtype(self.model, dtype) as model:
            read = torch.tensor(states[None], dtype=dtype)
            encoded = transformers.modeling_outputs.BaseModelOutput(last_hidden_state=read)
            output = model(encoder_outputs=encoded, decoder_input_ids=torch.tensor(ids[None]))
        return output.logits[0].numpy()


class Bert:
    """BLIP's text decoder, by transformers and by the core."""

    def __init__(self, seed: int = 0, precision: str = "float32", device: str | None = None, **config: Any) -> None:
        sizes = {"vocab_size": 41, "hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2}
        more = {"intermediate_size": 40, "encoder_hidden_size": 20, "max_position_embeddings": 30}
        more |= {"bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
        self.config = transformers.BlipTextConfig(**{**sizes, **more, **config}, is_decoder=True)
        self.model = randomised(transformers.models.blip.modeling_blip_text.BlipTextLMHeadModel(self.config), seed)
        self.width = self.config.encoder_hidden_size
        self.vocabulary = self.config.vocab_size
        options = {**self.config.to_dict(), "model_type": "bert"}
        self.decoder = _core.Decoder(options, weights_of(self.model), precision, **on(device))

    def logits(self, states: np.ndarray, ids: np.ndarray, dtype: torch.dtype = torch.float) -> np.ndarray:
        with in_dtype(self.model, dtype) as model:
            output = model(
                torch.tensor(ids[None]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                encoder_hidden_states=torch.tensor(states[None], dtype=dtype),
                encoder_attention_mask=torch.ones(1, len(states), dtype=torch.long),
                is_decoder=True,
            )
        return output.logits[0].numpy()


Pair = T5 | Bert


def states_of(pair: Pair, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, pair.width)).astype(np.float32)


def ids_of(pair: Pair, rows: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + 100).integers(0, pair.vocabulary, (rows, length))


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def assert_decodes(pair: Pair, states: np.ndarray, ids: np.ndarray, **read: Any) -> None:
    """All at once, token by token, and in two parts: transformers' logits, in double precision."""
    decoder, (rows, length) = pair.decoder, ids.shape
    rounded, expected = (np.stack([pair.logits(states, row, dtype) for row in ids]) for dtype in (torch.float, torch.double))
    tolerance = max(TOLERANCE, 2 * np.abs(rounded - expected).max() / np.abs(expected).max())
    memory = decoder.read(states, **read)
    assert_close(decoder.step(decoder.begin(memory, rows, length), ids, all=True), expected, tolerance)
    assert_close(decoder.step(decoder.begin(memory, rows, length), ids), expected[:, -1], tolerance)
    cache = decoder.begin(memory, rows, length + 2)
    steps = [decoder.step(cache, ids[:, n : n + 1]) for n in range(length)]
    assert_close(np.stack(steps, axis=1), expected, tolerance)
    cut = (length + 1) // 2
    cache = decoder.begin([memory], rows, length)
    parts = [decoder.step(cache, part, True) for part in np.split(ids, [cut], axis=1) if part.size]
    assert_close(np.concatenate(parts, axis=1), expected, tolerance)
    assert cache.lengths.tolist() == [length] * rows


@pytest.mark.every_level
@FEW
@given(
    d_model=st.sampled_from([7, 16, 33]),
    d_kv=st.sampled_from([1, 3, 8, 17]),
    heads=st.integers(1, 5),
    d_ff=st.sampled_from([1, 15, 64]),
    layers=st.integers(1, 3),
    projection=st.sampled_from(["gated-gelu", "relu"]),
    tied=st.booleans(),
    buckets=st.sampled_from([4, 7, 32]),
    reach=st.sampled_from([17, 128]),
    rows=st.integers(1, 5),
    length=st.integers(1, 40),
    states=st.sampled_from([1, 2, 30, 67]),
    tokens=st.sampled_from([0, 1]),
    seed=st.integers(0, 99),
)
def test_t5_matches_transformers(
    d_model: int, d_kv: int, heads: int, d_ff: int, layers: int, projection: str, tied: bool, buckets: int, reach: int,
    rows: int, length: int, states: int, tokens: int, seed: int,
) -> None:  # fmt: skip
    t5 = T5(
        seed, d_model=d_model, d_kv=d_kv, num_heads=heads, d_ff=d_ff, num_decoder_layers=layers,
        feed_forward_proj=projection, tie_word_embeddings=tied,
        relative_attention_num_buckets=buckets, relative_attention_max_distance=reach,
    )  # fmt: skip
    assert_decodes(t5, states_of(t5, states, seed), ids_of(t5, rows, length, seed), tokens=tokens)


@pytest.mark.every_level
@FEW
@given(
    width=st.sampled_from([8, 17, 33]),
    d=st.sampled_from([1, 8, 17]),
    heads=st.integers(1, 5),
    intermediate=st.sampled_from([1, 15, 64]),
    layers=st.integers(1, 3),
    rows=st.integers(1, 5),
    length=st.integers(1, 28),
    states=st.sampled_from([1, 2, 30, 67]),
    tokens=st.sampled_from([0, 1]),
    seed=st.integers(0, 99),
)
def test_bert_matches_transformers(
    width: int, d: int, heads: int, intermediate: int, layers: int, rows: int, length: int, states: int, tokens: int,
    seed: int,
) -> None:  # fmt: skip
    bert = Bert(
        seed, hidden_size=d * heads, num_attention_heads=heads, intermediate_size=intermediate, num_hidden_layers=layers,
        encoder_hidden_size=width,
    )  # fmt: skip
    assert_decodes(bert, states_of(bert, states, seed), ids_of(bert, rows, length, seed), tokens=tokens)


@pytest.mark.parametrize("tokens", [0, 1])
@pytest.mark.parametrize("make", [T5, Bert])
def test_a_gpus_kernels_give_the_same(make: Any, tokens: int) -> None:
    pair = make(2, device="cuda-host")
    assert_decodes(pair, states_of(pair, 300), ids_of(pair, 3, 7), tokens=tokens)
    states, ids, decoder = states_of(pair, 60), ids_of(pair, 4, 5), pair.decoder
    picked = np.random.default_rng(0).integers(0, 60, (4, 6)).astype(np.int32)
    cache = decoder.begin(decoder.read(states, tokens=0), 4, 5, tokens=picked)
    decoder.step(cache, ids[:, :4], lengths=[4, 2, 3, 4])
    decoder.reorder(cache, np.array([3, 1, 1, 0, 2], np.int32))
    found = decoder.step(cache, ids[[3, 1, 1, 0, 2], 4:])
    for row, (parent, length) in enumerate([(3, 4), (1, 2), (1, 2), (0, 4), (2, 3)]):
        assert_close(found[row], pair.logits(states[picked[parent]], np.append(ids[parent, :length], ids[parent, 4]))[-1])
    weights = decoder.attend(decoder.begin(decoder.read(states), 4, 5), ids)
    cpu = make(2).decoder
    np.testing.assert_allclose(weights, cpu.attend(cpu.begin(cpu.read(states), 4, 5), ids), atol=2e-6)


@pytest.fixture(params=["t5", "bert"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return {"t5": T5, "bert": Bert}[request.param]()


def test_attributes_describe_the_decoder(pair: Pair) -> None:
    decoder = pair.decoder
    expected = {"vocab_size": pair.vocabulary, "width": 24, "cross_width": pair.width, "layers": 2}
    assert {name: getattr(decoder, name) for name in expected} == expected
    assert decoder.max_tokens == (30 if isinstance(pair, Bert) else 0)


@pytest.mark.every_level
def test_few_tokens_need_no_keys(pair: Pair) -> None:
    states, ids = states_of(pair, 700), ids_of(pair, 2, 5)
    memory = pair.decoder.read(states, tokens=2)
    assert memory.absorbed
    assert not pair.decoder.read(states).absorbed
    assert not pair.decoder.read(states, tokens=1000).absorbed
    expected = np.stack([pair.logits(states, row) for row in ids])
    assert_close(pair.decoder.step(pair.decoder.begin(memory, 2, 5), ids, all=True), expected)


@pytest.mark.every_level
def test_each_row_may_see_states_of_its_own(pair: Pair) -> None:
    rng, decoder, ids = np.random.default_rng(1), pair.decoder, ids_of(pair, 5, 7)
    states = states_of(pair, 33)
    tokens = np.stack([rng.permutation(33)[:9] for _ in range(5)]).astype(np.int32)
    cache = decoder.begin(decoder.read(states), 5, 7, tokens=tokens)
    expected = np.stack([pair.logits(states[seen], row) for seen, row in zip(tokens, ids, strict=True)])
    assert_close(decoder.step(cache, ids[:, :4], all=True), expected[:, :4])
    for n in range(4, 7):
        assert_close(decoder.step(cache, ids[:, n : n + 1]), expected[:, n])


@pytest.mark.every_level
@pytest.mark.parametrize("tokens", [0, 1])
def test_rows_read_sequences_of_several_memories(pair: Pair, tokens: int) -> None:
    decoder, ids = pair.decoder, ids_of(pair, 6, 4)
    first, second = states_of(pair, 150, 1), states_of(pair, 240, 2)
    memories = [decoder.read(first, tokens=tokens), decoder.read(second, [100, 60, 80], tokens=tokens)]
    assert all(memory.absorbed == (tokens == 1) for memory in memories)
    sequences = [first, second[:100], second[100:160], second[160:]]
    reads = np.array([3, 3, 0, 2, 1, 1], np.int32)
    cache = decoder.begin(memories, 6, 4, memory_of=reads)
    expected = np.stack([pair.logits(sequences[read], row) for read, row in zip(reads, ids, strict=True)])
    assert_close(decoder.step(cache, ids[:, :2], all=True), expected[:, :2])
    assert_close(decoder.step(cache, ids[:, 2:], all=True), expected[:, 2:])
    # Without memory_of, as many sequences as rows: each its own.
    cache = decoder.begin(memories, 4, 4)
    expected = np.stack([pair.logits(states, row) for states, row in zip(sequences, ids, strict=False)])
    assert_close(decoder.step(cache, ids[:4], all=True), expected)


@pytest.mark.every_level
def test_rows_of_different_lengths_need_no_padding(pair: Pair) -> None:
    decoder, states = pair.decoder, states_of(pair, 12)
    ids, lengths = ids_of(pair, 5, 9), np.array([9, 1, 4, 4, 7])
    expected = [pair.logits(states, row[:length]) for row, length in zip(ids, lengths, strict=True)]
    memory = decoder.read(states)
    logits = decoder.step(decoder.begin(memory, 5, 9), ids, True, lengths)
    last = decoder.step(decoder.begin(memory, 5, 9), ids, lengths=lengths)
    for row, length in enumerate(lengths):
        assert_close(logits[row, :length], expected[row])
        assert not logits[row, length:].any()
        assert_close(last[row], expected[row][-1])
    # From unequal lengths on, by unequal numbers of tokens.
    cache = decoder.begin(memory, 5, 9)
    before = np.array([3, 1, 1, 2, 6])
    decoder.step(cache, ids, lengths=before)
    rest = np.stack([np.roll(row, -count) for row, count in zip(ids, before, strict=True)])
    after = np.maximum(lengths - before, 1)
    logits = decoder.step(cache, rest, True, after)
    for row in (0, 2, 3, 4):
        assert_close(logits[row, : after[row]], expected[row][before[row] :])


@pytest.mark.every_level
def test_rows_are_reordered_as_beams_are(pair: Pair) -> None:
    decoder, ids = pair.decoder, ids_of(pair, 4, 3)
    states = [states_of(pair, 9, seed) for seed in range(3)]
    tokens = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8], [2, 4, 8]], np.int32)
    cache = decoder.begin([decoder.read(s) for s in states], 4, 12, np.array([0, 1, 2, 2], np.int32), tokens)
    decoder.step(cache, ids)
    rows = [(number, list(row)) for number, row in enumerate(ids)]
    for turn, parents in enumerate([[2, 2, 0, 1], [3, 0], [1, 1, 0], [0, 1, 2, 2, 1, 0], [5, 0, 3], [2]]):
        decoder.reorder(cache, parents)
        new = ids_of(pair, len(parents), 1, turn)
        logits = decoder.step(cache, new)
        rows = [(rows[parent][0], [*rows[parent][1], *added]) for parent, added in zip(parents, new, strict=True)]
        for (number, row), found in zip(rows, logits, strict=True):
            seen = states[[0, 1, 2, 2][number]][tokens[number]]
            assert_close(found, pair.logits(seen, np.array(row))[-1])
    assert cache.lengths.tolist() == [9]


@pytest.mark.every_level
@pytest.mark.parametrize("tokens", [0, 1])
def test_attention_to_the_states_is_that_of_transformers(pair: Pair, tokens: int) -> None:
    decoder, ids = pair.decoder, ids_of(pair, 3, 5)
    states = states_of(pair, 120)
    memory = decoder.read(states, tokens=tokens)
    assert memory.absorbed == (tokens == 1)
    weights = decoder.attend(decoder.begin(memory, 3, 5), ids, [5, 2, 5])
    assert weights.shape == (3, 5, 120)
    pair.model.set_attn_implementation("eager")
    with torch.no_grad():
        if isinstance(pair, T5):
            encoded = transformers.modeling_outputs.BaseModelOutput(last_hidden_state=torch.tensor(states[None]))
            cross = [
                pair.model(encoder_outputs=encoded, decoder_input_ids=torch.tensor(row[None]), output_attentions=True)
                for row in ids
            ]
        else:
            cross = [
                pair.model(
                    torch.tensor(row[None]), encoder_hidden_states=torch.tensor(states[None]), output_attentions=True,
                    is_decoder=True,
                )
                for row in ids
            ]  # fmt: skip
    for row, length in enumerate([5, 2, 5]):
        expected = torch.stack(cross[row].cross_attentions).mean(dim=(0, 1, 2)).numpy()[:length]
        assert np.abs(weights[row, :length] - expected).max() <= 1e-5
        assert not weights[row, length:].any()
    picked = np.array([[4, 100], [1, 2], [0, 119]], np.int32)
    some = decoder.attend(decoder.begin(decoder.read(states), 3, 5, tokens=picked), ids)
    assert some.shape == (3, 5, 2)
    np.testing.assert_allclose(some.sum(axis=2), 1, atol=1e-5)
    # As a step, it leaves the tokens in the cache.
    cache = decoder.begin(memory, 3, 5)
    decoder.attend(cache, ids[:, :4])
    assert_close(decoder.step(cache, ids[:, 4:]), np.stack([pair.logits(states, row)[-1] for row in ids]))


def test_many_rows_are_the_same_rows_in_several_passes(pair: Pair) -> None:
    decoder, states, ids = pair.decoder, states_of(pair, 10), ids_of(pair, 700, 4)
    memory = decoder.read(states)
    logits = decoder.step(decoder.begin(memory, 700, 4), ids, all=True)
    for row in (0, 255, 256, 511, 699):
        assert_close(logits[row], pair.logits(states, ids[row]))
    few = decoder.step(decoder.begin(memory, 3, 4), ids[[0, 300, 699]], all=True)
    assert np.abs(few - logits[[0, 300, 699]]).max() <= 4e-6 * np.abs(few).max()


def test_bfloat16_precision_is_close() -> None:
    for make in (T5, Bert):
        exact, rounded = make(3), make(3, "bfloat16")
        states, ids = states_of(exact, 700), ids_of(exact, 2, 6)
        for tokens in (0, 2):
            expected, found = (
                pair.decoder.step(pair.decoder.begin(pair.decoder.read(states, tokens=tokens), 2, 6), ids, all=True)
                for pair in (exact, rounded)
            )
            assert np.abs(found - expected).max() <= 0.1 * np.abs(expected).max()


def test_a_step_that_fails_leaves_the_cache_as_it_was(pair: Pair) -> None:
    decoder, states, ids = pair.decoder, states_of(pair, 5), ids_of(pair, 2, 4)
    cache = decoder.begin(decoder.read(states), 2, 4)
    decoder.step(cache, ids[:, :2])
    for bad, kind, message in (
        (ids, ValueError, r"ids: 4 tokens more in row 0, which holds 2 and has room for 4"),
        (ids[:1], ValueError, r"ids has shape \[1, 4\], expected \[2, n\], at least one for each row"),
        (ids[:, :0], ValueError, r"ids has shape \[2, 0\], expected \[2, n\]"),
        (ids[0], ValueError, "ids has 1 dimensions, expected 2"),
        (ids.astype(float), TypeError, "ids: dtype float64, expected integers"),
        ([[0], [pair.vocabulary]], ValueError, f"ids: row 1 holds {pair.vocabulary} at position 0, expected 0 to"),
        ([[-1], [0]], ValueError, "ids: row 0 holds -1 at position 0"),
    ):
        with pytest.raises(kind, match=message):
            decoder.step(cache, bad)
        with pytest.raises(kind, match=message):
            decoder.attend(cache, bad)
    for lengths, message in (([1], "lengths has 1 items, expected 2"), ([1, 3], "3 tokens in row 1"), ([0, 1], "0 tokens")):
        with pytest.raises(ValueError, match=message):
            decoder.step(cache, ids[:, :2], lengths=lengths)
    for parents, message in (([], "0 rows"), ([0, 2], "row 1 is 2, expected 0 to 1"), ([-1], "row 0 is -1")):
        with pytest.raises(ValueError, match=message):
            decoder.reorder(cache, np.array(parents, np.int32))
    assert cache.lengths.tolist() == [2, 2]
    assert_close(decoder.step(cache, ids[:, 2:]), np.stack([pair.logits(states, row)[-1] for row in ids]))


def test_bad_memories_and_rows_are_named(pair: Pair) -> None:
    decoder, states = pair.decoder, states_of(pair, 6)
    for bad, lengths, message in (
        (states[:, :-1], None, rf"states has shape \[6, {pair.width - 1}\], expected \[S, {pair.width}\]"),
        (states[0], None, "states has 1 dimensions, expected 2"),
        (states[:0], None, "states: sequence 0 of 0 states, expected 1 to"),
        (states, [6, 0], "states: sequence 1 of 0 states"),
        (states, [2, 3], "lengths: their sum is below 6"),
        (states, [2, 5], "lengths: their sum is above 6"),
        (states, [-1, 7], "lengths: item 0 is -1, expected 1 or more"),
        (np.where(states == states[4, 3], np.nan, states), None, "states: nan in state 4, expected finite numbers"),
        (np.where(states == states[5, 0], -np.inf, states), None, "states: -inf in state 5"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder.read(bad, lengths)
    memory, few = decoder.read(states), decoder.read(states_of(pair, 700), tokens=1)
    tokens = np.zeros((2, 3), np.int32)
    for arguments, options, kind, message in (
        ((memory, 0, 4), {}, ValueError, "0 rows of up to 4 tokens"),
        ((memory, 2, 0), {}, ValueError, "2 rows of up to 0 tokens"),
        (([memory] * 3, 2, 4), {}, ValueError, "3 sequences for 2 rows; memory_of must say"),
        (([], 2, 4), {}, ValueError, "0 sequences for 2 rows"),
        ((states, 2, 4), {}, TypeError, "expected a DecoderMemory or several, got numpy.ndarray"),
        ((memory, 2, 4), {"memory_of": [0]}, ValueError, "memory_of has 1 items, expected 2"),
        ((memory, 2, 4), {"memory_of": [0, 1]}, ValueError, "memory_of: row 1 reads 1, expected 0 to 0"),
        ((memory, 2, 4), {"tokens": tokens[:1]}, ValueError, "tokens has 1 rows, expected 2"),
        ((memory, 2, 4), {"tokens": tokens[:, :0]}, ValueError, "tokens: none a row"),
        ((memory, 2, 4), {"tokens": tokens + 6}, ValueError, "tokens: row 0 picks 6, expected 0 to 5"),
        ((memory, 2, 4), {"tokens": tokens - 1}, ValueError, "tokens: row 0 picks -1"),
        ((few, 2, 4), {"tokens": tokens}, ValueError, "row 0 was read for few tokens"),
    ):
        with pytest.raises(kind, match=message):
            decoder.begin(*arguments, **options)
    if isinstance(pair, Bert):
        with pytest.raises(ValueError, match="capacity: 31 tokens a row, expected 1 to 30"):
            decoder.begin(memory, 1, 31)
    other = type(pair)(1)
    cache = decoder.begin(memory, 1, 4)
    with pytest.raises(ValueError, match="memory: it was read by another model"):
        other.decoder.begin(memory, 1, 4)
    with pytest.raises(ValueError, match="cache: it was begun by another model"):
        other.decoder.step(cache, [[0]])
    with pytest.raises(TypeError, match="cache: expected a DecoderCache, got"):
        decoder.step(memory, [[0]])
    for thing in (memory, cache):
        with pytest.raises(TypeError, match="is made by a Decoder"):
            type(thing)()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "'model_type' is None, expected 'bert' or 't5'"),
        ({"model_type": "gpt2"}, "'model_type' is 'gpt2', expected 'bert' or 't5'"),
        ({"model_type": "t5", "tie_word_embeddings": 1}, "'tie_word_embeddings' is 1, expected true or false"),
        ({"model_type": "t5", "num_decoder_layers": 3}, "num_decoder_layers is 3, the weights say 2"),
        ({"model_type": "t5", "feed_forward_proj": "gated-silu"}, "'feed_forward_proj' is 'gated-silu'"),
        ({"model_type": "bert", "num_attention_heads": 4}, "neither config nor weights .* say all of vocab_size"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.Decoder(config, weights_of(T5().model))


def test_missing_weights_are_listed(pair: Pair) -> None:
    names = [name for name in weights_of(pair.model) if "LayerNorm.weight" in name or "layer_norm.weight" in name]
    options = {**pair.config.to_dict(), "model_type": "bert" if isinstance(pair, Bert) else "t5"}
    with pytest.raises(ValueError, match=names[-1]):
        _core.Decoder(options, weights_of(pair.model, names[-1]))


def test_tied_heads_may_be_left_out_of_the_file(pair: Pair) -> None:
    states, ids = states_of(pair, 5), ids_of(pair, 1, 4)
    if isinstance(pair, T5):
        head, words = ["lm_head.weight", "decoder.embed_tokens.weight", "encoder.embed_tokens.weight"], "shared.weight"
    else:
        head, words = ["cls.predictions.decoder.weight"], "bert.embeddings.word_embeddings.weight"
    weights = weights_of(pair.model, *head)
    config = {**pair.config.to_dict(), "model_type": type(pair).__name__.lower()}
    decoder = _core.Decoder(config, weights)
    pair.model.get_output_embeddings().weight = torch.nn.Parameter(torch.tensor(weights[words][0]))
    logits = decoder.step(decoder.begin(decoder.read(states), 1, 4), ids, all=True)
    assert_close(logits[0], pair.logits(states, ids[0]))


def test_caches_and_memories_keep_what_they_need(pair: Pair) -> None:
    class Owner(np.ndarray):
        pass

    states, ids = states_of(pair, 5), ids_of(pair, 1, 3)
    expected = pair.logits(states, ids[0])[-1]
    weights, alive = {}, []
    for name, (array, *rest) in weights_of(pair.model).items():
        view = array.copy().view(Owner)
        alive.append(weakref.ref(view))
        weights[name] = (view, *rest)
        del view
    decoder = _core.Decoder({**pair.config.to_dict(), "model_type": type(pair).__name__.lower()}, weights)
    cache = decoder.begin(decoder.read(states), 1, 3)
    step = decoder.step
    del weights, decoder
    gc.collect()
    assert_close(step(cache, ids)[0], expected)
    del step, cache
    gc.collect()
    assert not any(reference() is not None for reference in alive)


@pytest.mark.skipif(not _core.build_info()["debug"], reason="the failing allocator is in QAVIT_DEBUG builds")
@pytest.mark.parametrize("device", [None, "cuda-host"])
def test_allocation_failures_are_errors(pair: Pair, device: str | None) -> None:
    config = {**pair.config.to_dict(), "model_type": type(pair).__name__.lower()}
    weights, states, ids = weights_of(pair.model), states_of(pair, 300), ids_of(pair, 2, 3)

    def run() -> None:
        decoder = _core.Decoder(config, weights, **on(device))
        memories = [decoder.read(states[:4]), decoder.read(states, [200, 100], 1)]
        cache = decoder.begin(memories, 2, 9, np.array([0, 2], np.int32))
        decoder.step(cache, ids, True)
        decoder.reorder(cache, np.array([1, 0, 1], np.int32))
        decoder.reorder(cache, np.array([1, 0], np.int32))
        decoder.step(cache, ids, lengths=[1, 3])
        decoder.attend(cache, ids)

    failures = 0
    while True:
        _core.fail_allocation(failures + 1)
        try:
            run()
        except MemoryError:
            failures += 1
        else:
            break
        finally:
            _core.fail_allocation(0)
    assert failures > 20


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_fork_goes_on_with_its_rows_on_the_cpu_and_is_told_on_a_gpu() -> None:
    t5, other = T5(), T5(device="cuda-host")
    states, ids = states_of(t5, 9), ids_of(t5, 2, 4)
    cache = t5.decoder.begin(t5.decoder.read(states), 2, 4)
    memory = other.decoder.read(states)
    others = other.decoder.begin(memory, 2, 4)
    t5.decoder.step(cache, ids[:, :2])
    expected = np.stack([t5.logits(states, row)[-1] for row in ids])
    child = os.fork()
    if child == 0:
        told = 0
        with contextlib.suppress(BaseException):
            assert_close(t5.decoder.step(cache, ids[:, 2:]), expected)
            for call in (
                lambda: other.decoder.read(states),
                lambda: other.decoder.begin(memory, 2, 4),
                lambda: other.decoder.step(others, ids),
                lambda: other.decoder.reorder(others, np.array([1], np.int32)),
            ):
                try:
                    call()
                except RuntimeError as error:
                    told += "before this process was forked" in str(error)
        os._exit(told)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    assert_close(t5.decoder.step(cache, ids[:, 2:]), expected)


def test_ctrl_c_ends_a_long_step_and_leaves_the_rows_as_they_were() -> None:
    bert = Bert(hidden_size=256, num_attention_heads=4, intermediate_size=1024, num_hidden_layers=4)
    decoder, ids = bert.decoder, ids_of(bert, 1280, 8)
    states = states_of(bert, 30)
    memory = decoder.read(states)
    few, cache = decoder.begin(memory, 128, 8), decoder.begin(memory, 1280, 8)
    whole = 10 * seconds_of(lambda: decoder.step(few, ids[:128]))
    for part in (20, 10):
        # It stops behind what is running, in one of four blocks in each of ten passes.
        assert seconds_until_stopped(lambda: decoder.step(cache, ids), whole / part) < whole / part + whole / 5
        assert not cache.lengths.any()
    decoder.reorder(cache, np.array([5], np.int32))
    assert_close(decoder.step(cache, ids[5:6, :3])[0], bert.logits(states, ids[5, :3])[-1])


def test_threads_share_a_decoder_and_refuse_to_share_a_cache(pair: Pair) -> None:
    decoder, states = pair.decoder, states_of(pair, 40)
    memory = decoder.read(states)
    ids = ids_of(pair, 8, 6)
    expected = decoder.step(decoder.begin(memory, 8, 6), ids, all=True)
    shared, refused, wrong = decoder.begin(memory, 400, 25), [], []

    def work() -> None:
        for _ in range(10):
            found = decoder.step(decoder.begin(memory, 8, 6), ids, all=True)
            wrong.extend([1] if np.abs(found - expected).max() > 4e-6 * np.abs(expected).max() else [])
            try:
                decoder.step(shared, np.zeros((400, 1), np.int64))
            except RuntimeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert shared.lengths.tolist() == [20 - len(refused)] * 400
    assert all("another thread is writing to it" in message for message in refused)
