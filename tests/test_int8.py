"""Products of int8 against their NumPy twin, to the last bit: the integers are the same on every CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from reference import close, normal

from qavit import _core

_core_testing = pytest.importorskip("qavit._core_testing", reason="a build in place has it")
from test_backward import in_bfloat16, linear_backward  # noqa: E402
from test_ops import SHAPES, linear, prepare  # noqa: E402

Array = Any
pytestmark = pytest.mark.every_level
ODD = [(3, 16, 1), (2, 17, 2), (5, 129, 3), (8, 15, 4), (9, 31, 5), (11, 64, 7), (4, 8, 18), (6, 5, 31), (30, 300, 4100)]


def same(found: Array, expected: Array) -> None:
    """Equal bits, but for the kind of a NaN."""
    np.testing.assert_array_equal(found, np.asarray(expected, np.float32))


@pytest.mark.parametrize(("rows", "columns", "depth"), SHAPES + ODD)
def test_a_product_is_exact(rows: int, columns: int, depth: int) -> None:
    x, weight = normal(rows, depth), normal(columns, depth, seed=1)
    same(linear(prepare([{"weight": weight}], "int8"), x, columns), reference.linear_int8(x, weight))


@pytest.mark.parametrize("depth", [5, 768, 3072])
def test_it_is_near_the_product_of_floats(depth: int) -> None:
    x, weight, bias = normal(50, depth), normal(70, depth, seed=1), normal(70, seed=2)
    found = linear(prepare([{"weight": weight, "bias": bias}], "int8"), x, 70)
    error = np.abs(found - reference.linear(x, weight, bias)).mean() / np.sqrt(depth)
    assert 0.0005 < error < 0.012, error  # steps of 6 / 255 and 3.5 / 127, some 0.3 of a step wrong: 0.007; 5: 0.005


def test_the_largest_sums() -> None:
    """Whatever a dot product of bytes holds between: 16 bits would not do."""
    x = np.zeros((4, 4096), np.float32)
    x[0], x[1], x[2, ::2], x[3, 1::2] = 1, -1, 1, -1
    weight = np.ones((3, 4096), np.float32)
    weight[1], weight[2, ::2] = -1, -1
    found = linear(prepare([{"weight": weight}], "int8"), x, 3)
    same(found, reference.linear_int8(x, weight))
    close(found, reference.linear(x, weight), 1e-6)


def test_rows_of_one_sign_and_constant_rows() -> None:
    """0 is in the range that a row is cut into steps of, so that it stays 0."""
    x = normal(6, 40)
    x[0], x[1], x[2], x[3] = np.abs(x[0]) + 3, -np.abs(x[1]) - 3, 0, -0.37
    weight = normal(9, 40, seed=1)
    weight[4] = 0
    found = linear(prepare([{"weight": weight}], "int8"), x, 9)
    same(found, reference.linear_int8(x, weight))
    assert not found[2].any()
    assert not found[:, 4].any()


@pytest.mark.parametrize("place", [0, 15, 16, 44])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_a_number(value: float, place: int) -> None:
    x, weight = normal(7, 45), normal(20, 45, seed=1)
    x[3, place] = value
    found = linear(prepare([{"weight": weight}], "int8"), x, 20)
    assert np.isnan(found[3]).all()
    same(found, reference.linear_int8(x, weight))
    weight[5, place], x[3, place] = value, 0
    found = linear(prepare([{"weight": weight}], "int8"), x, 20)
    assert np.isnan(found[:, 5]).all()
    same(found, reference.linear_int8(x, weight))


@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-37, 1e-20, 1e20, 1e37, 3.4e38])
def test_the_smallest_and_the_largest_numbers(size: float) -> None:
    x, weight = normal(5, 33), normal(12, 33, seed=1)
    x = (x / np.abs(x).max() * size).astype(np.float32)
    with np.errstate(over="ignore"):
        same(linear(prepare([{"weight": weight}], "int8"), x, 12), reference.linear_int8(x, weight))
        small = (weight / np.abs(weight).max() * size).astype(np.float32)
        x = normal(5, 33)
        same(linear(prepare([{"weight": small}], "int8"), x, 12), reference.linear_int8(x, small))


def test_a_rows_result_is_its_own() -> None:
    """Neither the rows beside it nor the number of threads have a say."""
    x, weight = normal(900, 130), normal(200, 130, seed=1)
    layer = prepare([{"weight": weight}], "int8")
    whole = linear(layer, x, 200)
    for first, count in ((0, 1), (1, 5), (13, 700), (899, 1)):
        same(linear(layer, np.ascontiguousarray(x[first : first + count]), 200), whole[first : first + count])


@pytest.mark.parametrize("activation", ["linear", "gelu", "quick_gelu"])
@pytest.mark.parametrize("extras", ["", "multiply", "residual", "both"])
@pytest.mark.parametrize("depth", [39, 2100])
def test_epilogue(activation: str, extras: str, depth: int) -> None:
    rows, columns = 19, 83
    x, weight, bias = normal(rows, depth), normal(columns, depth, seed=1) / depth**0.5, normal(columns, seed=2)
    multiply = normal(rows, columns, seed=3) if extras in ("multiply", "both") else None
    residual = normal(rows, columns, seed=4) if extras in ("residual", "both") else None
    found = linear(prepare([{"weight": weight, "bias": bias}], "int8"), x, columns, activation=activation,
                   multiply=multiply, residual=residual)  # fmt: skip
    identity = np.eye(columns)
    expected = reference.linear(reference.linear_int8(x, weight), identity, bias, activation, multiply, residual)
    close(found, expected, 4e-6)


def test_residual_that_is_the_output_and_strides() -> None:
    wide = np.full((31, 90), 7, np.float32)
    x, weight = normal(31, 60)[:, 3:43], normal(70, 40, seed=1)
    out = wide[:, 10:80]
    out[:] = normal(31, 70, seed=3)
    expected = reference.linear_int8(x, weight) + out.astype(np.float64)
    linear(prepare([{"weight": weight}], "int8"), x, 70, residual=out, out=out)
    close(out, expected, 1e-6)
    assert (wide[:, :10] == 7).all()
    assert (wide[:, 80:] == 7).all()


def test_parts_and_sums() -> None:
    parts = [{"weight": normal(30 + 40 * i, 50, seed=i), "bias": normal(30 + 40 * i, seed=9 + i)} for i in range(3)]
    layer, x = prepare(parts, "int8"), normal(21, 50, seed=20)
    first = 0
    for part in parts:
        count = len(part["weight"])
        expected = reference.linear_int8(x, part["weight"]) + part["bias"]
        same(linear(layer, x, count, first=first), expected)
        first += count
    added, scales = normal(70, 50, seed=5), normal(70, seed=6)
    layer = prepare([{"weight": parts[1]["weight"], "add_weight": added, "row_scale": scales}], "int8", -0.25)
    weight = (parts[1]["weight"] + np.float32(-0.25) * added) * scales[:, None]
    same(linear(layer, x, 70), reference.linear_int8(x, weight))


@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 7, 5), (9, 70, 41), (33, 130, 64), (70, 1100, 130)])
def test_the_gradient_is_of_the_weights_that_multiply(rows: int, outputs: int, inputs: int) -> None:
    """Its weights are read in bfloat16, where this CPU has such products."""
    dy, weight = normal(rows, outputs), normal(outputs, inputs, seed=1)
    expected = in_bfloat16(dy) @ in_bfloat16(reference.dequantize(weight))
    close(linear_backward(dy, weight, precision="int8"), expected, 3e-6)


def test_burning_counts_operations() -> None:
    assert _core_testing.burn("int8", 1000) > 0
    named = ("portable", "amx", "neon", "neon_dotprod", "avx2", "avx_vnni", "avx512", "avx512_vnni")
    assert _core.build_info()["kernels"]["int8"] in named
