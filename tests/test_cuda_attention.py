"""Attention on a GPU's tensor cores, beside float64: every width of heads that models have, masks, and what is left over.

"cuda-host" multiplies the fragments of a warp's lanes as a GPU does; scores of rounded factors are then right to float32,
which no wrong place of a fragment survives.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import reference
from reference import close
from test_cuda import present
from test_ops import normal

from qavit import _core_testing

Array = Any
Window = tuple[int, int, int, int]
PRECISIONS = ("bfloat16", "tf32")
#: Of outputs beside float64 over rounded factors, where the weights are what is rounded on the way: by 2^-9 and 2^-11.
#: Observed on cuda-host: 1.7e-3 and 2.4e-4.
ROUNDED_WEIGHTS = {"bfloat16": 4e-3, "tf32": 1e-3}
#: Of outputs beside float64 over the factors as they came. Observed on cuda-host: 7.5e-3 and 8e-4.
ROUNDED = {"bfloat16": 2e-2, "tf32": 2e-3}
#: Of probabilities beside float64 over rounded factors; a GPU's exponential is its own.
PROBABILITIES = {"cuda-host": 3e-6, "cuda": 1e-4}
EXACT = {"cuda-host": 3e-6, "cuda": 1e-4}


@pytest.fixture(params=["cuda-host", "cuda"])
def name(request: pytest.FixtureRequest) -> str:
    return present(request.param)


def to_tf32(x: Array) -> Array:
    """Nearest with 10 bits of fraction, ties away from zero."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def rounded(x: Array, precision: str) -> Array:
    return reference.from_bfloat16(reference.to_bfloat16(x)) if precision == "bfloat16" else to_tf32(x)


def on_device(
    name: str, precision: str, q: Array, k: Array, v: Array | None, *, window: Window | None = None, **how: Any
) -> tuple[Array, Array]:
    """The output, and the window of the probabilities: its first row, rows, first column and columns."""
    index = {key: how.get(key) for key in ("q_index", "kv_index", "key_index")}
    batch = len(q) if index["q_index"] is None else len(index["q_index"])
    keys = how.get("keys", k.shape[1] if index["key_index"] is None else index["key_index"].shape[1])
    out = None if v is None else np.full((batch, *q.shape[1:]), np.nan, np.float32)
    first_row, rows, first_column, columns = window or (0, 0, 0, 0)
    seen = np.full((batch, how["heads"], rows, columns), np.nan, np.float32) if window else None
    _core_testing.attention(
        out, q, k, v, how.get("extra_k"), how.get("extra_v"), how.get("extra_length"), how.get("key_mask"), how.get("bias"),
        index["q_index"], index["kv_index"], seen, index["key_index"], how["heads"], batch, how["scale"],
        how.get("causal", False), how.get("past", 0), keys, first_row, first_column,
        "float32" if precision == "tf32" else precision, name, precision == "tf32",
    )  # fmt: skip
    return out, seen


def check(name: str, precision: str, arrays: tuple[Array, Array, Array], window: Window, **how: Any) -> None:
    found, probabilities = on_device(name, precision, *arrays, window=window, **how)
    near = {key: rounded(value, precision) if key in ("extra_k", "extra_v") else value for key, value in how.items()}
    expected, expected_out = reference.attention(*(rounded(x, precision) for x in arrays), **near)
    assert expected_out is not None
    row, rows, column, columns = window
    expected = expected[:, :, row : row + rows, column : column + columns]
    assert np.abs(probabilities - expected).max() < PROBABILITIES[name]
    close(found, expected_out, ROUNDED_WEIGHTS[precision])
    _, exact_out = reference.attention(*arrays, **how)
    assert exact_out is not None
    close(found, exact_out, ROUNDED[precision])
    alone, _ = on_device(name, precision, *arrays, **how)
    assert np.array_equal(alone, found)  # a window changes nothing
    whole, _ = on_device(name, "float32", *arrays, **how)
    close(whole, exact_out, EXACT[name])
    assert not np.array_equal(whole, found)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("width", [8, 24, 32, 64, 72, 80, 88, 96, 104, 128])
def test_every_width(name: str, precision: str, width: int) -> None:
    q, k, v = normal(2, 21, 2 * width), normal(2, 45, 2 * width, seed=1), normal(2, 45, 2 * width, seed=2)
    check(name, precision, (q, k, v), (0, 21, 0, 45), heads=2, scale=width**-0.5)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("queries", "keys"),
    [(5, 1), (16, 8), (17, 31), (33, 32), (64, 33), (113, 64), (128, 65), (129, 97), (300, 127), (197, 197)],
)
def test_rows_and_keys_left_over(name: str, precision: str, queries: int, keys: int) -> None:
    q, k, v = normal(1, queries, 64), normal(1, keys, 64, seed=1), normal(1, keys, 64, seed=2)
    row, column = queries // 2, keys // 3
    check(name, precision, (q, k, v), (row, queries - row, column, keys - column), heads=1, scale=0.25)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_large_pictures_tokens(name: str, precision: str) -> None:
    q, k, v = normal(1, 577, 80), normal(1, 577, 80, seed=1), normal(1, 577, 80, seed=2)
    check(name, precision, (q, k, v), (0, 1, 1, 576), heads=1, scale=80**-0.5)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("keys", [37, 64, 150])
def test_question_tokens_of_any_length(name: str, precision: str, keys: int) -> None:
    """Question tokens in front, some of which do not count, sets that are shared, and keys that are not seen."""
    q, k, v = normal(3, 40, 128), normal(2, keys, 128, seed=1), normal(2, keys, 128, seed=2)
    how = {"heads": 2, "scale": 0.2, "extra_k": normal(4, 39, 128, seed=3), "extra_v": normal(4, 39, 128, seed=4)}
    how |= {"q_index": np.array([0, 2, 1, 2], np.uintp), "kv_index": np.array([1, 1, 0, 1], np.uintp)}
    check(name, precision, (q, k, v), (3, 30, 20, keys), **how)
    how["extra_length"] = np.array([39, 2, 0, 33], np.uintp)
    check(name, precision, (q, k, v), (3, 30, 20, keys), **how)
    how["key_mask"] = (np.random.default_rng(5).random((4, keys)) < 0.7).astype(np.uint8)
    check(name, precision, (q, k, v), (0, 40, 0, 39 + keys), **how)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tokens", [20, 77, 130])
def test_causal_attention_and_bias(name: str, precision: str, tokens: int) -> None:
    q, k, v = (normal(2, tokens, 128, seed=seed) for seed in range(3))
    how: dict[str, Any] = {"heads": 2, "scale": 0.3, "causal": True}
    check(name, precision, (q, k, v), (0, tokens, 0, tokens), **how)
    how["key_mask"] = (np.random.default_rng(5).random((2, tokens)) < 0.5).astype(np.uint8)
    check(name, precision, (q, k, v), (tokens // 2, 5, 0, tokens), **how)
    how = {"heads": 2, "scale": 0.3, "bias": normal(2, tokens, tokens, seed=3), "key_mask": how["key_mask"]}
    check(name, precision, (q, k, v), (0, tokens, 0, tokens), **how)
    how["bias"] = how["bias"][:1]  # of all heads
    check(name, precision, (q, k, v), (0, tokens, 0, tokens), **how)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_part_of_each_set(name: str, precision: str) -> None:
    """Queries that go on from keys before them, and keys that are picked."""
    tokens, past = 40, 23
    q, k, v = normal(4, tokens, 64), normal(3, 71, 64, seed=1), normal(3, 71, 64, seed=2)
    kv_index, seen = np.array([2, 0, 0, 1], np.uintp), past + tokens
    how: dict[str, Any] = {"heads": 1, "scale": 0.2}
    found, _ = on_device(name, precision, q, k, v, kv_index=kv_index, keys=seen, past=past, causal=True, **how)
    near = [rounded(x, precision) for x in (q, k[kv_index, :seen], v[kv_index, :seen])]
    hidden = np.where(np.arange(seen) > past + np.arange(tokens)[:, None], -np.inf, 0)
    close(found, reference.attention(*near, bias=hidden, **how)[1], ROUNDED_WEIGHTS[precision])
    key_index = np.stack([np.random.default_rng(row).permutation(71)[:13] for row in range(4)]).astype(np.int32)
    found, _ = on_device(name, precision, q, k, v, kv_index=kv_index, key_index=key_index, **how)
    near = [rounded(x, precision) for x in (q, k[kv_index[:, None], key_index], v[kv_index[:, None], key_index])]
    close(found, reference.attention(*near, **how)[1], ROUNDED_WEIGHTS[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_probabilities_alone(name: str, precision: str) -> None:
    q, k = normal(2, 30, 64), normal(2, 70, 64, seed=1)
    _, found = on_device(name, precision, q, k, None, window=(0, 30, 0, 70), heads=1, scale=0.2)
    expected = reference.attention(rounded(q, precision), rounded(k, precision), None, heads=1, scale=0.2)[0]
    assert np.abs(found - expected).max() < PROBABILITIES[name]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_does_not_go_by_fours_and_few_rows_stay_exact(name: str, precision: str) -> None:
    for queries, width, ld in ((20, 20, 20), (20, 64, 66), (1, 64, 64), (4, 64, 64), (20, 136, 136)):
        q, k, v = (normal(1, rows, ld, seed=seed)[:, :, :width] for seed, rows in enumerate((queries, 30, 30)))
        found, _ = on_device(name, precision, q, k, v, heads=1, scale=0.2)
        close(found, reference.attention(q, k, v, heads=1, scale=0.2)[1], EXACT[name])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_numbers_that_are_none_are_seen(name: str, precision: str) -> None:
    q, k, v = (normal(2, 40, 64, seed=seed) for seed in range(3))
    mask = np.ones((2, 40), np.uint8)
    mask[1] = 0  # nothing is seen: as on the CPU, no number
    q[0, 7, 3] = np.nan
    found, _ = on_device(name, precision, q, k, v, key_mask=mask, heads=1, scale=0.2)
    assert np.isnan(found[0, 7]).all()
    assert np.isnan(found[1]).all()
    assert np.isfinite(np.delete(found[0], 7, axis=0)).all()
    q[0, 7, 3], k[0, 5, 9] = 1, np.inf
    found, _ = on_device(name, precision, q, k, v, heads=1, scale=0.2)
    assert np.isnan(found[0][q[0, :, 9] > 0]).all()
    assert np.isfinite(found[1]).all()
    q, k = 3e4 * q, 3e4 * np.nan_to_num(k, posinf=1)  # scores of 1e9 do not overflow on the way
    found, seen = on_device(name, precision, q, k, v, window=(0, 40, 0, 40), heads=1, scale=1.0)
    assert np.isfinite(found).all()
    assert np.abs(seen.sum(axis=-1) - 1).max() < 1e-5


def test_the_benchmark_of_attention_runs_on_the_host(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("benchmarks", reason="benchmarks are in the repository alone")
    from benchmarks import cuda_attention

    cuda_attention.measure("cuda-host", True, 1, True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["precision"] for line in lines] == 2 * ["float32", "tf32", "bfloat16"]
    assert all(line["gigaflops"] > 0 for line in lines)
    assert [line["off"] == 0 for line in lines] == 2 * [True, False, False]
