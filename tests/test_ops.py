"""The core's ops against their NumPy twins, at odd sizes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import reference
from cpu_levels import has_bfloat16
from reference import close, normal

from qavit import build_info

_core_testing = pytest.importorskip("qavit._core_testing", reason="a build in place has it")

Array = Any
pytestmark = pytest.mark.every_level


def entry(array: Array) -> tuple[Any, str, tuple[int, ...], int]:
    """An array as the core's weights dict has it; uint16 is bfloat16."""
    dtype = {"float32": "float32", "float16": "float16", "uint16": "bfloat16"}[array.dtype.name]
    return (array.reshape(-1).view(np.uint8), dtype, array.shape, 0)


def prepare(parts: list[dict[str, Array]], precision: str = "float32", scale: float = 1.0) -> Any:
    weights = {f"{i}.{name}": entry(array) for i, part in enumerate(parts) for name, array in part.items()}
    return _core_testing.prepare(weights, len(parts), precision, scale)


def linear(
    layer: Any,
    x: Array,
    columns: int,
    *,
    first: int = 0,
    activation: str = "linear",
    multiply: Array | None = None,
    residual: Array | None = None,
    out: Array | None = None,
) -> Array:
    if out is None:
        out = np.full((x.shape[0], columns), np.nan, np.float32)
    _core_testing.linear(layer, out, x, first, columns, activation, multiply, residual)
    return out


# rows, columns, depth
SHAPES = [(1, 1, 1), (1, 7, 3), (2, 63, 17), (3, 65, 64), (5, 130, 33), (6, 64, 16), (7, 16, 65), (13, 192, 129)]
SHAPES += [(15, 96, 96), (17, 257, 1025), (65, 33, 2051), (197, 100, 48), (1, 300, 4096), (4, 64, 3000), (800, 70, 20)]


@pytest.mark.parametrize(("rows", "columns", "depth"), SHAPES)
def test_linear(rows: int, columns: int, depth: int) -> None:
    x, weight, bias = normal(rows, depth), normal(columns, depth, seed=1), normal(columns, seed=2)
    layer = prepare([{"weight": weight, "bias": bias}])
    close(linear(layer, x, columns), reference.linear(x, weight, bias), 3e-6)  # 1.5e-6
    layer = prepare([{"weight": weight}])
    close(linear(layer, x, columns), reference.linear(x, weight), 3e-6)  # 1.5e-6


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("rows", [1, 9])
def test_a_product_of_no_depth_is_its_bias(precision: str, rows: int) -> None:
    bias = normal(70)
    layer = prepare([{"weight": np.zeros((70, 0), np.float32), "bias": bias}], precision)
    np.testing.assert_array_equal(linear(layer, np.zeros((rows, 0), np.float32), 70), np.tile(bias, (rows, 1)))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("columns", [15, 64, 100, 150])
@pytest.mark.parametrize("depth", [1, 33, 1030])
def test_a_row_gives_the_same_bits_alone_and_among_others(precision: str, columns: int, depth: int) -> None:
    """Few rows are multiplied by several panels side by side."""
    x, weight, bias = normal(20, depth), normal(columns, depth, seed=1), normal(columns, seed=2)
    same = np.testing.assert_array_equal
    if build_info()["kernels"][precision] == "openblas":  # whose sums are in another order for one row
        same = partial(close, tolerance=3e-6)
    layer, residual = prepare([{"weight": weight, "bias": bias}], precision), normal(20, columns, seed=3)
    whole = linear(layer, x, columns, activation="relu", residual=residual)
    for rows in (1, 2, 3, 4, 7):
        found = linear(layer, x[5 : 5 + rows], columns, activation="relu", residual=residual[5 : 5 + rows])
        same(found, whole[5 : 5 + rows])
        wide = np.full((rows, columns + 2), 7, np.float32)
        wide[:, 1:-1] = residual[5 : 5 + rows]
        own = wide[:, 1:-1]
        linear(layer, x[5 : 5 + rows], columns, residual=own, out=own)
        assert (wide[:, [0, -1]] == 7).all()


@pytest.mark.parametrize("activation", ["linear", "gelu", "gelu_new", "quick_gelu", "relu", "silu"])
@pytest.mark.parametrize("extras", ["", "multiply", "residual", "both"])
@pytest.mark.parametrize("depth", [40, 2100])
def test_epilogue(activation: str, extras: str, depth: int) -> None:
    rows, columns = 19, 83
    x, weight, bias = normal(rows, depth), normal(columns, depth, seed=1) / depth**0.5, normal(columns, seed=2)
    multiply = normal(rows, columns, seed=3) if extras in ("multiply", "both") else None
    residual = normal(rows, columns, seed=4) if extras in ("residual", "both") else None
    found = linear(prepare([{"weight": weight, "bias": bias}]), x, columns, activation=activation, multiply=multiply,
                   residual=residual)  # fmt: skip
    close(found, reference.linear(x, weight, bias, activation, multiply, residual), 4e-6)  # 1.1e-6


@pytest.mark.parametrize("depth", [40, 2100])
def test_residual_that_is_the_output(depth: int) -> None:
    x, weight, bias = normal(31, depth), normal(70, depth, seed=1), normal(70, seed=2)
    out = normal(31, 70, seed=3)
    expected = reference.linear(x, weight, bias, residual=out)
    linear(prepare([{"weight": weight, "bias": bias}]), x, 70, residual=out, out=out)
    close(out, expected, 3e-6)  # 1.5e-6


def test_strides_leave_the_rest_alone() -> None:
    wide = np.full((9, 200), 7, np.float32)
    x = normal(9, 60)[:, 3:43]
    weight = normal(75, 40, seed=1)
    multiply, residual = normal(9, 90, seed=2)[:, 5:80], normal(9, 99, seed=3)[:, 1:76]
    linear(prepare([{"weight": weight}]), x, 75, multiply=multiply, residual=residual, out=wide[:, 11:86])
    close(wide[:, 11:86], reference.linear(x, weight, None, "linear", multiply, residual), 2e-6)  # 3e-7
    assert (wide[:, :11] == 7).all()
    assert (wide[:, 86:] == 7).all()


@pytest.mark.parametrize("widths", [(64, 64, 64), (70, 10, 65)])
def test_parts(widths: tuple[int, ...]) -> None:
    x = normal(11, 50)
    weights = [normal(n, 50, seed=i) for i, n in enumerate(widths)]
    biases = [normal(n, seed=9 + i) for i, n in enumerate(widths)]
    parts = [{"weight": w, "bias": b} for w, b in zip(weights, biases)]
    del parts[1]["bias"]
    biases[1] = np.zeros_like(biases[1])
    expected = reference.linear(x, np.concatenate(weights), np.concatenate(biases))
    layer = prepare(parts)
    total = sum(widths)
    whole = linear(layer, x, total)
    close(whole, expected, 2e-6)  # 3e-7
    a, b = widths[0], widths[0] + widths[1]
    for first, last in ((0, a), (a, b), (b, total), (0, b), (a, total)):
        np.testing.assert_array_equal(linear(layer, x, last - first, first=first), whole[:, first:last])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_weights(dtype: str) -> None:
    weight, bias, x = normal(90, 45), normal(90, seed=1), normal(8, 45, seed=2)
    if dtype == "float16":
        weight, bias = weight.astype(np.float16), bias.astype(np.float16)
        weight[0, :4] = [6e-8, -6e-5, 65504, 0]
        expected = reference.linear(x, weight, bias)
    else:
        weight, bias = reference.to_bfloat16(weight), reference.to_bfloat16(bias)
        expected = reference.linear(x, reference.from_bfloat16(weight), reference.from_bfloat16(bias))
    close(linear(prepare([{"weight": weight, "bias": bias}]), x, 90), expected, 2e-6)  # 3e-7


def test_half_weights_that_are_not_finite() -> None:
    weight = np.float16([[np.inf, 0], [-np.inf, 0], [np.nan, 0], [65504, 0]])
    found = linear(prepare([{"weight": weight}]), np.float32([[1, 0], [-1, 0]]), 4)
    np.testing.assert_array_equal(found, np.float32([[np.inf, -np.inf, np.nan, 65504], [-np.inf, np.inf, np.nan, -65504]]))


def test_added_weights_and_unaligned_memory() -> None:
    weight, more, x = normal(70, 30), normal(70, 30, seed=1), normal(5, 30)
    bias, more_bias = normal(70), normal(70, seed=1)
    layer = prepare([{"weight": weight, "add_weight": more, "bias": bias, "add_bias": more_bias}], scale=-0.25)
    close(linear(layer, x, 70), reference.linear(x, weight - 0.25 * more, bias - 0.25 * more_bias), 2e-6)  # 3e-7
    buffer = np.zeros(weight.nbytes + 1, np.uint8)
    buffer[1:] = weight.reshape(-1).view(np.uint8)
    layer = _core_testing.prepare({"0.weight": (buffer, "float32", weight.shape, 1)}, 1, "float32", 1.0)
    close(linear(layer, x, 70), reference.linear(x, weight), 2e-6)  # 3e-7


@pytest.mark.parametrize("depth", [30, 64])
@pytest.mark.parametrize("added", [False, True])
def test_rows_of_a_layer_have_scales(depth: int, added: bool) -> None:
    weight, scales, bias, x = normal(70, depth), normal(70, seed=2), normal(70, seed=3), normal(5, depth, seed=4)
    more = {"add_weight": normal(70, depth, seed=1), "add_bias": normal(70, seed=1)} if added else {}
    layer = prepare([{"weight": weight, "bias": bias, "row_scale": scales, **more}], scale=0.5)
    if added:
        weight, bias = weight + 0.5 * more["add_weight"], bias + 0.5 * more["add_bias"]
    close(linear(layer, x, 70), scales * reference.linear(x, weight, bias), 2e-6)


ROTATIONS = [(1, 1, 0, 1, 2), (3, 9, 5, 2, 8), (2, 40, 1, 3, 6)]


@pytest.mark.parametrize(("batch", "tokens", "first", "heads", "width"), ROTATIONS)
def test_rotate(batch: int, tokens: int, first: int, heads: int, width: int) -> None:
    angles = normal(tokens - first, width // 2, seed=1)
    table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    wide = normal(batch, tokens, heads * width + 3)
    x, expected = wide[..., 1:-2], wide[..., 1:-2].astype(np.float64)
    turned = expected[:, first:].reshape(batch, tokens - first, heads, 2, width // 2)
    a, b = turned[..., 0, :], turned[..., 1, :]
    cosines, sines = np.cos(angles)[:, None], np.sin(angles)[:, None]
    expected[:, first:] = np.stack([a * cosines - b * sines, b * cosines + a * sines], axis=3).reshape(
        batch, tokens - first, heads * width
    )
    before = wide.copy()
    _core_testing.rotate(x, table, heads)
    close(x, expected, 1e-6)
    np.testing.assert_array_equal(x[:, :first], before[:, :first, 1:-2])
    np.testing.assert_array_equal(wide[..., [0, -2, -1]], before[..., [0, -2, -1]])
    _core_testing.rotate(x, table, heads, True)
    close(x, before[..., 1:-2], 1e-6)
    with pytest.raises(ValueError, match="do not fit together"):
        _core_testing.rotate(x, table, heads + 1)


@pytest.mark.every_level
@pytest.mark.parametrize("tokens", [1, 7, 300])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("width", [1, 17, 64])
def test_head_lengths(tokens: int, heads: int, width: int) -> None:
    measured, wide = normal(2, tokens, 33), normal(2, tokens, heads * width + 2, seed=1)
    wide[0, 0, 1:-1] = 0
    x, out = wide[..., 1:-1], np.empty((2, tokens, heads * width), np.float32)
    _core_testing.head_lengths(out, x, measured, 0.25, heads)
    split = x.astype(np.float64).reshape(2, tokens, heads, width)
    units = split / np.maximum(np.linalg.norm(split, axis=-1, keepdims=True), 1e-12)
    wanted = np.sqrt(0.25 * np.linalg.norm(measured.astype(np.float64), axis=-1).mean(axis=1))
    expected = (units * wanted[:, None, None, None]).reshape(out.shape)
    close(out, expected, 1e-6)
    _core_testing.head_lengths(x, x, measured, 0.25, heads)
    np.testing.assert_array_equal(x, out)
    huge = np.full((1, 1, heads * width), 1e38, np.float32)
    _core_testing.head_lengths(huge, huge, measured[:1, :1], 1.0, heads)
    assert np.isnan(huge).all()
    with pytest.raises(ValueError, match="do not fit together"):
        _core_testing.head_lengths(out, x, measured, 1.0, heads + 1 if width == 1 else heads * width + 1)


def test_bias_of_attention_is_a_part_of_a_larger_one() -> None:
    q, k, v, bias = normal(2, 3, 8), normal(2, 5, 8, seed=1), normal(2, 5, 8, seed=2), normal(2, 3, 9, seed=3)
    found, expected = np.empty_like(q), np.empty_like(q)
    attention(found, q, k, v, heads=2, scale=0.5, bias=bias[..., :5])
    attention(expected, q, k, v, heads=2, scale=0.5, bias=np.ascontiguousarray(bias[..., :5]))
    np.testing.assert_array_equal(found, expected)
    attention(found, q, k, v, heads=2, scale=0.5, bias=bias[:1, :, :5])
    attention(expected, q, k, v, heads=2, scale=0.5, bias=np.repeat(bias[:1, :, :5], 2, axis=0))
    np.testing.assert_array_equal(found, expected)


def test_convolution_weight_is_a_matrix() -> None:
    weight, x = normal(24, 3, 4, 4), normal(5, 48)
    close(linear(prepare([{"weight": weight}]), x, 24), reference.linear(x, weight.reshape(24, 48)), 2e-6)  # 3e-7


def test_lanes_do_not_change_a_bit() -> None:
    before = _core_testing.get_num_threads()
    weight, x = normal(333, 1300), normal(100, 1300, seed=1)
    q, k = normal(2, 45, 96), normal(2, 70, 96, seed=1)
    gain = normal(1300, seed=2)
    try:
        results = []
        for threads in (1, 2, 3, 7):
            _core_testing.set_num_threads(threads)
            out, probabilities = np.empty((2, 45, 96), np.float32), np.empty((2, 3, 45, 70), np.float32)
            attention(out, q, k, k, probabilities=probabilities, heads=3, scale=0.2)
            normed = np.empty_like(x)
            _core_testing.norm(normed, x, gain, None, 1e-5, False)
            results.append((linear(prepare([{"weight": weight}]), x, 333), out, probabilities, normed))
        for other in results[1:]:
            for a, b in zip(results[0], other):
                np.testing.assert_array_equal(a, b)
    finally:
        _core_testing.set_num_threads(before)


@pytest.mark.parametrize(("rows", "columns", "depth"), SHAPES)
def test_linear_bfloat16(rows: int, columns: int, depth: int) -> None:
    x, weight, bias = normal(rows, depth), normal(columns, depth, seed=1), normal(columns, seed=2)
    found = linear(prepare([{"weight": weight, "bias": bias}], "bfloat16"), x, columns)
    expected = reference.linear(x, weight, bias)
    rounded = [reference.from_bfloat16(reference.to_bfloat16(a)) for a in (x, weight)]
    in_bfloat16 = reference.linear(*rounded, bias)
    if has_bfloat16():
        close(found, in_bfloat16, 4e-6)  # 1e-6
    else:
        close(found, expected, 3e-6)  # 1.5e-6


def attention(
    out: Array | None,
    q: Array,
    k: Array,
    v: Array | None,
    *,
    heads: int,
    scale: float,
    probabilities: Array | None = None,
    extra_k: Array | None = None,
    extra_v: Array | None = None,
    extra_length: Array | None = None,
    key_mask: Array | None = None,
    bias: Array | None = None,
    q_index: Array | None = None,
    kv_index: Array | None = None,
    key_index: Array | None = None,
    keys: int | None = None,
    causal: bool = False,
    past: int = 0,
    first_row: int = 0,
    first_column: int = 0,
    precision: str = "float32",
) -> None:
    batch = len(q) if q_index is None else len(q_index)
    count = key_index.shape[1] if key_index is not None else k.shape[1] if keys is None else keys
    _core_testing.attention(out, q, k, v, extra_k, extra_v, extra_length, key_mask, bias, q_index, kv_index, probabilities,
                            key_index, heads, batch, scale, causal, past, count, first_row, first_column,
                            precision)  # fmt: skip


@pytest.mark.every_level
@pytest.mark.parametrize("tokens", [1, 2, 5, 40])
def test_attention_over_a_part_of_each_set(tokens: int) -> None:
    """Queries that go on from keys before them, and keys that are picked."""
    q, k, v = normal(4, tokens, 48), normal(3, 71, 48, seed=1), normal(3, 71, 48, seed=2)
    kv_index, past = np.array([2, 0, 0, 1], np.uintp), 71 - tokens - 9
    out, probabilities = np.empty_like(q), np.empty((4, 3, tokens, past + tokens), np.float32)
    more = {"heads": 3, "scale": 0.2, "bias": normal(3, tokens, past + tokens, seed=3)}
    more = {"probabilities": probabilities, **more}
    attention(out, q, k, v, kv_index=kv_index, keys=past + tokens, past=past, causal=True, **more)
    near = [x[kv_index, : past + tokens] for x in (k, v)]
    hidden = np.where(np.arange(past + tokens) > past + np.arange(tokens)[:, None], -np.inf, 0)
    expected, expected_out = reference.attention(q, *near, heads=3, scale=0.2, bias=more["bias"] + hidden)
    assert np.abs(probabilities - expected).max() < 2e-6  # 3e-7
    close(out, expected_out, 3e-6)  # 7e-7
    key_index = np.stack([np.random.default_rng(row).permutation(71)[:13] for row in range(4)]).astype(np.int32)
    probabilities = np.empty((4, 3, tokens, 13), np.float32)
    attention(
        out, q, k, v, heads=3, scale=0.2, kv_index=kv_index, key_index=key_index, probabilities=probabilities
    )  # fmt: skip
    picked = [x[kv_index[:, None], key_index] for x in (k, v)]
    expected, expected_out = reference.attention(q, *picked, heads=3, scale=0.2)
    assert np.abs(probabilities - expected).max() < 2e-6  # 3e-7
    close(out, expected_out, 3e-6)  # 6e-7


def test_attention_of_no_queries() -> None:
    keys = normal(2, 3, 8)
    for batch, tokens in ((2, 0), (0, 4)):
        q, out = np.zeros((batch, tokens, 8), np.float32), np.zeros((batch, tokens, 8), np.float32)
        attention(out, q, keys[:batch], keys[:batch], heads=2, scale=1.0)


# batch, heads, tokens, keys, extra keys, head width
ATTENTION = [(1, 1, 1, 1, 0, 1), (2, 3, 7, 5, 0, 16), (1, 2, 17, 65, 3, 32), (2, 2, 63, 63, 0, 64)]
ATTENTION += [(1, 3, 65, 129, 30, 64)]
ATTENTION += [
    (3, 2, 1, 145, 0, 32),
    (2, 4, 1, 100, 7, 64),
    (2, 2, 3, 200, 1, 80),
    (1, 1, 100, 40, 0, 65),
    (1, 2, 33, 577, 16, 64),
]


@pytest.mark.parametrize(("batch", "heads", "tokens", "keys", "extra", "width"), ATTENTION)
@pytest.mark.parametrize("options", ["", "mask", "bias", "causal", "length", "all"])
def test_attention(batch: int, heads: int, tokens: int, keys: int, extra: int, width: int, options: str) -> None:
    size = heads * width
    q, k, v = normal(batch, tokens, size), normal(batch, keys, size, seed=1), normal(batch, keys, size, seed=2)
    more: dict[str, Any] = {}
    if extra:
        more["extra_k"], more["extra_v"] = normal(batch, extra, size, seed=3), normal(batch, extra, size, seed=4)
        if options in ("length", "all"):
            more["extra_length"] = np.arange(batch, dtype=np.uintp) % (extra + 1)
    if options in ("mask", "all"):
        more["key_mask"] = (normal(batch, keys, seed=5) > 0).astype(np.uint8)
        more["key_mask"][:, 0] = 1
    if options in ("bias", "all"):
        more["bias"] = normal(heads, tokens, keys, seed=6)
    more["causal"] = options in ("causal", "all")
    probabilities = np.full((batch, heads, tokens, extra + keys), np.nan, np.float32)
    out = np.full((batch, tokens, size), np.nan, np.float32)
    attention(out, q, k, v, heads=heads, scale=width**-0.5, probabilities=probabilities, **more)
    expected, expected_out = reference.attention(q, k, v, heads=heads, scale=width**-0.5, **more)
    assert np.abs(probabilities - expected).max() < 2e-6  # 5e-7
    close(out, expected_out, 3e-6)  # 8e-7
    alone = np.full_like(out, np.nan)
    attention(alone, q, k, v, heads=heads, scale=width**-0.5, **more)
    np.testing.assert_allclose(alone, out, rtol=0, atol=2e-6)  # the probabilities that nobody asked for change nothing
    only = np.full_like(probabilities, np.nan)
    attention(None, q, k, None, heads=heads, scale=width**-0.5, probabilities=only, **more)
    np.testing.assert_array_equal(only, probabilities)


@pytest.mark.parametrize(("batch", "heads", "tokens", "keys", "extra", "width"), ATTENTION)
def test_attention_bfloat16(batch: int, heads: int, tokens: int, keys: int, extra: int, width: int) -> None:
    size = heads * width
    q, k, v = normal(batch, tokens, size), normal(batch, keys, size, seed=1), normal(batch, keys, size, seed=2)
    more: dict[str, Any] = {}
    if extra:
        more["extra_k"], more["extra_v"] = normal(batch, extra, size, seed=3), normal(batch, extra, size, seed=4)
    probabilities = np.full((batch, heads, tokens, extra + keys), np.nan, np.float32)
    out = np.full((batch, tokens, size), np.nan, np.float32)
    attention(out, q, k, v, heads=heads, scale=width**-0.5, probabilities=probabilities, precision="bfloat16", **more)
    expected, expected_out = reference.attention(q, k, v, heads=heads, scale=width**-0.5, **more)
    if not has_bfloat16():
        assert np.abs(probabilities - expected).max() < 2e-6  # 5e-7
        close(out, expected_out, 3e-6)  # 1e-6
    else:
        assert np.abs(probabilities - expected).max() < 1e-2  # 3e-3
        close(out, expected_out, 2e-2)  # 7e-3
        if tokens > 2:
            q, k, v, *others = [reference.from_bfloat16(reference.to_bfloat16(a)) for a in (q, k, v, *more.values())]
            more = dict(zip(more, others))
            expected, expected_out = reference.attention(q, k, v, heads=heads, scale=width**-0.5, **more)
            assert np.abs(probabilities - expected).max() < 5e-6  # 1e-6
            close(out, expected_out, 5e-3)  # 2e-3, of rounding the weights


@pytest.mark.parametrize("window", [(0, 1, 0, 73), (5, 3, 10, 40), (40, 10, 72, 1), (49, 1, 13, 60), (0, 0, 0, 0)])
def test_probability_window(window: tuple[int, int, int, int]) -> None:
    first_row, rows, first_column, columns = window
    q, k, extra = normal(2, 50, 48), normal(2, 60, 48, seed=1), normal(2, 13, 48, seed=2)
    buffer = np.full((2, 3, rows, columns), np.nan, np.float32)
    out = np.empty((2, 50, 48), np.float32)
    attention(out, q, k, k, heads=3, scale=0.25, extra_k=extra, extra_v=extra, probabilities=buffer,
              first_row=first_row, first_column=first_column)  # fmt: skip
    expected, expected_out = reference.attention(q, k, k, heads=3, scale=0.25, extra_k=extra, extra_v=extra)
    expected = expected[:, :, first_row : first_row + rows, first_column : first_column + columns]
    assert np.abs(buffer - expected).max(initial=0) < 2e-6  # 3e-7
    close(out, expected_out, 3e-6)  # 6e-7


@pytest.mark.parametrize("tokens", [1, 20])
@pytest.mark.parametrize("shared_queries", [True, False])
def test_shared_sets(tokens: int, shared_queries: bool) -> None:
    kv_index = np.array([1, 1, 0, 1], np.uintp)
    q_index = kv_index if shared_queries else np.array([0, 2, 1, 2], np.uintp)
    q, k, v = normal(3, tokens, 64), normal(2, 37, 64, seed=1), normal(2, 37, 64, seed=2)
    more = {"extra_k": normal(4, 6, 64, seed=3), "extra_v": normal(4, 6, 64, seed=4)}
    more["extra_length"] = np.array([6, 2, 0, 3], np.uintp)
    more["q_index"], more["kv_index"] = q_index, kv_index
    out, probabilities = np.empty((4, tokens, 64), np.float32), np.empty((4, 2, tokens, 43), np.float32)
    attention(out, q, k, v, heads=2, scale=0.2, probabilities=probabilities, **more)
    expected, expected_out = reference.attention(q, k, v, heads=2, scale=0.2, **more)
    assert np.abs(probabilities - expected).max() < 2e-6  # 3e-7
    close(out, expected_out, 3e-6)  # 5e-7


def test_attention_on_views_of_one_buffer() -> None:
    qkv = normal(2, 30, 3 * 64)
    q, k, v = qkv[..., :64], qkv[..., 64:128], qkv[..., 128:]
    wide = np.full((2, 30, 100), 7, np.float32)
    attention(wide[..., 20:84], q, k, v, heads=1, scale=0.1)
    close(wide[..., 20:84], reference.attention(q, k, v, heads=1, scale=0.1)[1], 3e-6)  # 6e-7
    assert (wide[..., :20] == 7).all()
    assert (wide[..., 84:] == 7).all()


def test_softmax_range() -> None:
    q = np.array([[[1], [40], [-1000]]], np.float32)
    k = np.linspace(-4, 4, 65, dtype=np.float32).reshape(1, 65, 1)  # exact products
    found = np.empty((1, 1, 3, 65), np.float32)
    attention(None, q, k, None, heads=1, scale=1.0, probabilities=found)
    expected, _ = reference.attention(q, k, None, heads=1, scale=1.0)
    np.testing.assert_allclose(found, expected, rtol=3e-6, atol=2e-38)  # 8e-7
    mask = np.zeros((1, 65), np.uint8)
    attention(None, q, k, None, heads=1, scale=1.0, probabilities=found, key_mask=mask)
    assert np.isnan(found).all()


def test_weights_that_stay_inside_in_bfloat16() -> None:
    """Of scores that bfloat16 has exactly; a value that is 1 for one key alone shows that key's weight."""
    keys, queries = 65, np.array([1, 40, -1000, 0, np.nan, np.inf, -np.inf], np.float32)
    q, k = np.zeros((1, 7, keys), np.float32), np.zeros((1, keys, keys), np.float32)
    q[0, :, 0], k[0, :, 0] = queries, np.linspace(-4, 4, keys)
    mask = np.ones((1, keys), np.uint8)
    mask[0, 5:9] = 0
    out = np.empty((1, 7, keys), np.float32)
    for hidden in (None, mask):
        attention(out, q, k, np.eye(keys, dtype=np.float32)[None], heads=1, scale=0.7, precision="bfloat16", key_mask=hidden)
        expected, _ = reference.attention(q[:, :4], k, None, heads=1, scale=0.7, key_mask=hidden)
        np.testing.assert_allclose(out[0, :4], expected[0, 0], rtol=5e-3, atol=2e-38)  # 4e-3, of rounding the weights
        assert (out[0, :4, expected[0, 0, 0] == 0] == 0).all()
        assert np.isnan(out[0, 4:]).all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("scale", [0.125, 1.0, 3.7])
def test_the_largest_score_weighs_one_however_large(precision: str, tokens: int, scale: float) -> None:
    """Softmax of scores up to float32's largest, of numbers that bfloat16 has; beyond it they are refused as NaN."""
    v = normal(1, 40, 8, seed=2)
    for size in (1e3, 1e9, 2.0**30, 2.0**31, 1e12, 1e20, 1e30, 3e38):
        exact = reference.from_bfloat16(reference.to_bfloat16(np.float32([size])))[0]
        for row in (normal(1, 40, 1, seed=3), -np.abs(normal(1, 40, 1, seed=4)), np.ones((1, 40, 1), np.float32)):
            k = reference.from_bfloat16(reference.to_bfloat16(row / np.abs(row).max()))
            q = np.full((1, tokens, 1), exact, np.float32)
            found, out = np.empty((1, 1, tokens, 40), np.float32), np.empty((1, tokens, 8), np.float32)
            attention(out, np.tile(q, 8) * np.float32([1] + [0] * 7), np.tile(k, 8), v, heads=1, scale=scale,
                      probabilities=found, precision=precision)  # fmt: skip
            expected, _ = reference.attention(q, k, None, heads=1, scale=scale)
            np.testing.assert_allclose(found, expected, rtol=3e-6, atol=2e-38)
            close(out, np.einsum("bhts,bsd->btd", expected, v), 2e-2 if precision == "bfloat16" else 3e-6)
    for bad in (3e38, np.inf, -np.inf):
        q = np.full((1, tokens, 8), bad, np.float32)
        found = np.empty((1, 1, tokens, 40), np.float32)
        attention(None, q, np.full((1, 40, 8), 2, np.float32), None, heads=1, scale=scale, probabilities=found)
        assert np.isnan(found).all()


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0xFFC000FF, 0x7F800001, 0x7F800000, 0xFF800000])
@pytest.mark.parametrize("tokens", [1, 5])
def test_what_is_not_finite_is_nan_in_every_probability(bits: int, tokens: int) -> None:
    bad = np.uint32(bits).view(np.float32)
    for keys in (3, 40):
        q, k = normal(1, tokens, 8), normal(1, keys, 8, seed=1)
        found = np.empty((1, 1, tokens, keys), np.float32)
        for array, place in ((q, (0, slice(None), 3)), (k, (0, slice(None), 2)), (k, (0, keys - 1, 2))):
            kept = array.copy()
            array[place] = bad
            attention(None, q, k, None, heads=1, scale=1.0, probabilities=found)
            array[...] = kept
            # One key at minus infinity is a key that is not seen.
            rows = np.isnan(found).all(axis=-1)
            assert (rows | np.isfinite(found).all(axis=-1)).all()
            assert rows.all() or (np.isinf(bad) and place[1] == keys - 1)


def test_norms_of_what_overflows_are_nan() -> None:
    x = normal(2, 40) * np.float32([[1e30], [1.0]])
    for rms in (False, True):
        out = np.empty_like(x)
        _core_testing.norm(out, x, np.ones(40, np.float32), None, 1e-5, rms)
        assert np.isnan(out[0]).all()
        assert np.isfinite(out[1]).all()


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "quick_gelu", "relu", "silu"])
def test_activation_range(activation: str) -> None:
    x = np.concatenate([np.linspace(-12, 12, 4801), [-1e4, -100, -30, 30, 100, 1e4, 0.0]]).astype(np.float32)
    found = linear(prepare([{"weight": np.eye(1, dtype=np.float32)}]), x.reshape(-1, 1), 1, activation=activation)
    expected = reference.activate(x, activation)
    np.testing.assert_allclose(found[:, 0], expected, rtol=3e-6, atol=3e-7)  # 9e-7, 1e-7


HUGE = np.float32([-3e38, -1e38, -1e30, -1e20, -1e19, -1e4, 1e4, 1e19, 1e20, 1e30, 1e38, 3e38])


@pytest.mark.parametrize("device", ["cpu", "cuda-host"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "quick_gelu", "relu", "silu"])
def test_activations_of_huge_values_are_zero_or_the_value(activation: str, device: str) -> None:
    expected = np.maximum(HUGE, 0)
    if device != "cpu":
        assert np.array_equal(_core_testing.device_activation(device, HUGE, activation, None), expected)
        return
    assert np.array_equal(_core_testing.activation(HUGE, activation), expected)
    layer = prepare([{"weight": np.eye(1, dtype=np.float32)}])
    assert np.array_equal(linear(layer, HUGE[:, None], 1, activation=activation)[:, 0], expected)


def norm(device: str, x: Array, weight: Array, bias: Array | None, eps: float, rms: bool = False) -> Array:
    """By the CPU's op or a device's."""
    if device != "cpu":
        return _core_testing.device_norm(device, x, weight, bias, eps, rms, None)
    out = np.empty_like(x)
    _core_testing.norm(out, x, weight, bias, eps, rms)
    return out


@pytest.mark.parametrize("device", ["cpu", "cuda-host"])
@pytest.mark.parametrize("eps", [1e-12, 1e-5])
@pytest.mark.parametrize("width", [1, 3, 15, 17, 65, 768, 1027])
def test_layer_norm_of_rows_whose_mean_is_all_of_them(width: int, eps: float, device: str) -> None:
    constants = np.float32([0.1, -3.3333, 777.77, 10000.1, 1e-20, 0])
    x, bias = np.repeat(constants[:, None], width, axis=1), normal(width, seed=2)
    assert np.array_equal(norm(device, x, normal(width, seed=1), bias, eps), np.repeat(bias[None], len(x), axis=0))


# mean, deviation
MOSTLY_MEAN = [(0, 1), (10, 0.1), (100, 0.01), (1000, 1), (1000, 0.01), (1000, 0.001), (-1e6, 10)]


@pytest.mark.parametrize("device", ["cpu", "cuda-host"])
@pytest.mark.parametrize("width", [17, 96, 768, 1027])
@pytest.mark.parametrize(("mean", "deviation"), MOSTLY_MEAN)
def test_layer_norm_of_rows_whose_mean_is_most_of_them(mean: float, deviation: float, width: int, device: str) -> None:
    x = (mean + deviation * np.random.default_rng(width).standard_normal((6, width))).astype(np.float32)
    ones = np.ones(width, np.float32)
    close(norm(device, x, ones, None, 1e-5), reference.layer_norm(x, ones, None, 1e-5), 1e-6)


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 7), (5, 96), (17, 65), (100, 768), (33, 1027)])
def test_norms(rows: int, width: int) -> None:
    x = normal(rows, width + 3)[:, 2 : 2 + width] + 2
    weight, bias = normal(width, seed=1), normal(width, seed=2)
    wide = np.full((rows, width + 5), 7, np.float32)
    for bias_or_none in (bias, None):
        _core_testing.norm(wide[:, 1 : 1 + width], x, weight, bias_or_none, 1e-5, False)
        close(wide[:, 1 : 1 + width], reference.layer_norm(x, weight, bias_or_none, 1e-5), 3e-6)  # 8e-7
    _core_testing.norm(wide[:, 1 : 1 + width], x, weight, None, 1e-6, True)
    close(wide[:, 1 : 1 + width], reference.rms_norm(x, weight, 1e-6), 3e-6)  # 3e-7
    assert (wide[:, 0] == 7).all()
    assert (wide[:, 1 + width :] == 7).all()


def test_arrays_that_do_not_fit_are_refused_by_name() -> None:
    layer, out, x = prepare([{"weight": normal(6, 4)}]), np.empty((3, 6), np.float32), normal(3, 4)
    still = out.copy()
    for bad, error, message in (
        (x.astype(np.float64), TypeError, "x: expected a float32 array"),
        (x.tolist(), TypeError, "x: expected a float32 array"),
        (np.zeros((1, 1, 1, 3, 4), np.float32), ValueError, "x: expected an aligned array of 1 to 4 dimensions"),
        (np.zeros(49, np.uint8)[1:].view(np.float32).reshape(3, 4), ValueError, "x: expected an aligned array"),
        (normal(3, 8)[:, ::2], ValueError, "x: its rows are not contiguous"),
        (normal(3, 2, 4)[:, :1], ValueError, "x: its rows do not lie one stride apart"),
        (normal(3, 5), ValueError, "do not fit the layer"),
        (normal(2, 4), ValueError, "do not fit the layer"),
    ):
        with pytest.raises(error, match=message):
            linear(layer, bad, 6, out=out)
    still.flags.writeable = False
    with pytest.raises(ValueError, match="out: expected an aligned array"):
        linear(layer, x, 6, out=still)
    for name in ("multiply", "residual"):
        with pytest.raises(ValueError, match="do not fit the layer"):
            linear(layer, x, 6, **{name: normal(3, 5)})
        with pytest.raises(TypeError, match=f"{name}: expected a float32 array"):
            linear(layer, x, 6, **{name: 1.0})
    with pytest.raises(ValueError, match="expected one of gelu"):
        linear(layer, x, 6, activation="tanh")
    for first, last in ((-1, 5), (1, 7), (0, 5), (1, 6)):  # not of one part alone, too
        with pytest.raises(ValueError, match="do not fit the layer"):
            linear(layer, x, last - first, first=first)
    for first, last in ((0, 5), (5, 6), (2, 4)):  # the op gives whole parts of a layer, here of 6 columns
        with pytest.raises(ValueError, match="do not fit the layer"):
            linear(layer, x, last - first, first=first)
    for bad_norm in ((out, x, normal(4), None), (x, x, normal(5), None), (x, x, normal(4), normal(3))):
        with pytest.raises(ValueError, match="do not fit together"):
            _core_testing.norm(*bad_norm, 1e-5, False)
    q = normal(1, 2, 8)
    for misfit in ({"q": normal(2, 8)}, {"heads": 3}, {"heads": 0}, {"k": normal(1, 2, 6)}, {"v": normal(1, 2, 6)},
                   {"probabilities": np.empty((2, 2, 2), np.float32)}, {"out": np.empty((1, 1, 8), np.float32)},
                   {"probabilities": np.empty((1, 2, 2, 3), np.float32)}, {"v": None}, {"v": normal(2, 2, 8)},
                   {"probabilities": np.empty((1, 2, 1, 2), np.float32), "first_row": 2}, {"bias": normal(2, 2, 3)},
                   {"key_mask": np.ones((1, 3), np.uint8)}, {"extra_k": normal(1, 3, 8)},
                   {"extra_k": normal(1, 3, 8), "extra_v": normal(1, 2, 8)}, {"kv_index": np.array([1], np.uintp)},
                   {"extra_length": np.ones(2, np.uintp)}):  # fmt: skip
        with pytest.raises(ValueError, match="do not fit together"):
            attention(**{"out": np.empty_like(q), "q": q, "k": q, "v": q, "heads": 2, "scale": 1.0, **misfit})
    wide = np.zeros((1, 2, 2, 5), np.float32)
    with pytest.raises(ValueError, match="do not fit together"):
        attention(None, q, q, q, heads=2, scale=1.0, probabilities=wide[..., :2])
    with pytest.raises(ValueError, match="bias: its rows overlap"):
        attention(None, q, q, q, heads=2, scale=1.0, bias=np.broadcast_to(np.float32(0), (2, 2, 2)))
    with pytest.raises(ValueError, match="key_mask has 1 dimensions, expected 2"):
        attention(None, q, q, q, heads=2, scale=1.0, key_mask=np.ones(2, np.uint8))


def test_layers_that_cannot_be_made_are_refused_by_name() -> None:
    weight = entry(normal(6, 4))
    for parts in (0, 4):
        with pytest.raises(ValueError, match=f"parts: {parts}, expected 1 to 3"):
            _core_testing.prepare({"0.weight": weight}, parts, "float32", 1.0)
    with pytest.raises(ValueError, match="precision is 'float64', expected 'float32', 'bfloat16', 'int8' or 'int8_mixed'"):
        _core_testing.prepare({"0.weight": weight}, 1, "float64", 1.0)
    with pytest.raises(TypeError, match=r"expected \(buffer, dtype, shape, offset\)"):
        _core_testing.prepare({"0.weight": weight[:3]}, 1, "float32", 1.0)
    array = weight[0]
    for bad, error, message in (
        ((array, "int8", (6, 4), 0), ValueError, "dtype int8, expected float32, float16 or bfloat16"),
        ((array, "float32", (1, 1, 1, 6, 4), 0), ValueError, "5 dimensions, at most 4 are expected"),
        ((array, "float32", (2**40, 2**40), 0), ValueError, "the shape is too large"),
        ((array, "float32", (6, -4), 0), OverflowError, "negative"),
        ((array, "float32", (6, 4), -1), ValueError, "96 bytes at -1 do not lie inside the buffer of 96"),
        ((array, "float32", (6, 4), 1), ValueError, "96 bytes at 1 do not lie inside the buffer of 96"),
        ((array[::2], "float32", (6, 2), 0), ValueError, "not C-contiguous"),
        (("text", "float32", (1, 1), 0), TypeError, "bytes-like"),
    ):
        with pytest.raises(error, match=message):
            _core_testing.prepare({"0.weight": bad}, 1, "float32", 1.0)
    with pytest.raises(TypeError, match="weights: expected names, got int"):
        _core_testing.prepare({0: weight}, 1, "float32", 1.0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_burning_does_what_it_says(precision: str) -> None:
    """The peak that benchmarks compare with: as many operations as it was told, none for none."""
    once, twice = _core_testing.burn(precision, 1000), _core_testing.burn(precision, 2000)
    assert 0 < once < twice
    assert twice == pytest.approx(2 * once)
    assert _core_testing.burn(precision, -1) == 0
    with pytest.raises(ValueError, match="precision"):
        _core_testing.burn("int4", 1)
