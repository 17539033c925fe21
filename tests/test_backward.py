"""The ops' gradients against finite differences of the NumPy twins in float64, and against PyTorch's autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
import torch
from reference import normal

_core_testing = pytest.importorskip("qavit._core_testing", reason="a build in place has it")

Array = Any
pytestmark = pytest.mark.every_level
# Observed: 7e-7 of the largest gradient.
TOLERANCE = 3e-6
# Central differences of float64 functions at a step of 1e-5 (float32 limits the found side): observed 2e-7.
DIFFERENCES = 2e-6


def close(found: Array, expected: Array, tolerance: float = TOLERANCE) -> None:
    reference.close(found, expected, tolerance)


def differences(function: Callable[[Array], Array], x: Array, dy: Array, step: float = 1e-5) -> Array:
    """d sum(dy function(x)) / dx, an item at a time."""
    x = x.astype(np.float64)
    gradient = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        high, low = x.copy(), x.copy()
        high[place] += step
        low[place] -= step
        gradient[place] = ((function(high) - function(low)) * dy).sum() / (2 * step)
    return gradient


# rows, outputs, inputs
SHAPES = [(1, 1, 1), (3, 7, 5), (17, 33, 65), (2, 64, 15), (40, 130, 96)]


@pytest.mark.parametrize(("rows", "outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("accumulate", [False, True])
def test_linear(rows: int, outputs: int, inputs: int, accumulate: bool) -> None:
    dy, weight, dx = normal(rows, outputs), normal(outputs, inputs), normal(rows, inputs, seed=1)
    before = dx.copy()
    found = _core_testing.linear_backward(dy, weight, dx if accumulate else None)
    x = torch.zeros(rows, inputs, dtype=torch.float64, requires_grad=True)
    (x @ torch.tensor(weight, dtype=torch.float64).T * torch.tensor(dy, dtype=torch.float64)).sum().backward()
    assert x.grad is not None
    close(found, x.grad.numpy() + (before if accumulate else 0))
    assert np.array_equal(dx, before)


def test_linear_by_differences() -> None:
    dy, weight, x = normal(3, 4), normal(4, 5), normal(3, 5)
    found = _core_testing.linear_backward(dy, weight, None)
    close(found, differences(lambda x: reference.linear(x, weight), x, dy), DIFFERENCES)


@pytest.mark.parametrize(("rows", "width"), [(1, 3), (5, 17), (3, 768), (33, 64)])
@pytest.mark.parametrize("shift", [0.0, 30.0])
def test_layer_norm(rows: int, width: int, shift: float) -> None:
    dy, weight = normal(rows, width), normal(width, seed=2)
    x = (normal(rows, width, seed=1) + shift).astype(np.float32)
    tensor = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    y = torch.nn.functional.layer_norm(tensor, (width,), torch.tensor(weight, dtype=torch.float64), eps=1e-5)
    (y * torch.tensor(dy, dtype=torch.float64)).sum().backward()
    assert tensor.grad is not None
    # A mean of 30 costs five bits of x - mean: observed 9e-6.
    close(_core_testing.layer_norm_backward(dy, x, weight, 1e-5), tensor.grad.numpy(), 2e-5 if shift else TOLERANCE)


def test_layer_norm_by_differences() -> None:
    dy, x, weight = normal(2, 7), normal(2, 7, seed=1), normal(7, seed=2)
    expected = differences(lambda x: reference.layer_norm(x, weight, None, 1e-3), x, dy)
    close(_core_testing.layer_norm_backward(dy, x, weight, 1e-3), expected, DIFFERENCES)


@pytest.mark.parametrize("name", ["linear", "gelu", "gelu_new", "quick_gelu", "relu"])
def test_activation(name: str) -> None:
    # Away from 0, where relu has no slope; past one task's 4096 items.
    x = np.concatenate([np.linspace(-12, 12, 4000) + 1e-3, normal(1001) + 1e-3]).astype(np.float32)
    dy = normal(x.size, seed=3)
    close(_core_testing.activation(x, name), reference.activate(x, name))
    wide = x.astype(np.float64)
    slope = (reference.activate(wide + 1e-6, name) - reference.activate(wide - 1e-6, name)) / 2e-6
    close(_core_testing.activation(x, name, dy), dy * slope)


def attention_case(
    batch: int, heads: int, tokens: int, keys: int, extra: int, width: int, seed: int = 0
) -> dict[str, Array]:
    """Arrays of one attention, with a mask that leaves every query something to see."""
    rng = np.random.default_rng([seed, batch, heads, tokens, keys, extra])
    case: dict[str, Array] = {
        "q": normal(batch, tokens, heads * width),
        "k": normal(batch, keys, heads * width, seed=1),
        "v": normal(batch, keys, heads * width, seed=2),
    }
    if extra:
        case["extra_k"] = normal(batch, extra, heads * width, seed=4)
        case["extra_v"] = normal(batch, extra, heads * width, seed=5)
        case["extra_length"] = rng.integers(0, extra + 1, batch)
    case["key_mask"] = (rng.random((batch, keys)) < 0.8).astype(np.uint8)
    case["key_mask"][:, 0] = 1
    case["bias"] = normal(heads, tokens, keys, seed=6)
    return case


def run_attention(case: dict[str, Array], d_out: Array, heads: int, scale: float, causal: bool, keys: bool) -> Any:
    length = case.get("extra_length")
    return _core_testing.attention_backward(
        case["q"], case["k"], case["v"], d_out, case.get("extra_k"), case.get("extra_v"),
        None if length is None else length.astype(np.uintp), case.get("key_mask"), case.get("bias"),
        heads, scale, causal, keys,
    )  # fmt: skip


def torch_attention(case: dict[str, Array], d_out: Array, heads: int, scale: float, causal: bool) -> dict[str, Array]:
    """The same in float64 by autograd."""
    t = {name: torch.tensor(case[name], dtype=torch.float64) for name in case if case[name].dtype == np.float32}
    for name in ("q", "k", "v"):
        t[name].requires_grad_()

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)

    scores = split(t["q"]) @ split(t["k"]).transpose(2, 3) * scale + t.get("bias", torch.zeros(()))
    keys, tokens = scores.shape[3], scores.shape[2]
    if "key_mask" in case:
        other = ~torch.eye(tokens, keys, dtype=torch.bool) | (not causal)  # a causal query always sees itself
        scores = scores.masked_fill(torch.tensor(case["key_mask"] == 0)[:, None, None, :] & other, -torch.inf)
    if causal:
        scores = scores.masked_fill(torch.arange(keys) > torch.arange(tokens)[:, None], -torch.inf)
    v = t["v"]
    if "extra_k" in case:
        extra = split(t["q"]) @ split(t["extra_k"]).transpose(2, 3) * scale
        unseen = torch.arange(extra.shape[3]) >= torch.tensor(case["extra_length"])[:, None]
        scores = torch.cat([extra.masked_fill(unseen[:, None, None, :], -torch.inf), scores], dim=3)
        v = torch.cat([t["extra_v"], v], dim=1)
    probabilities = scores.softmax(dim=3)
    probabilities.retain_grad()
    out = (probabilities @ split(v)).transpose(1, 2).reshape(t["q"].shape)
    (out * torch.tensor(d_out, dtype=torch.float64)).sum().backward()
    found = {"d_q": t["q"].grad, "d_k": t["k"].grad, "d_v": t["v"].grad, "A": probabilities, "G": probabilities.grad}
    return {name: tensor.detach().numpy() for name, tensor in found.items() if tensor is not None}


# batch, heads, queries, keys, question tokens, head width
ATTENTIONS = [(1, 1, 1, 1, 0, 1), (2, 3, 5, 7, 0, 4), (1, 4, 33, 65, 0, 16), (2, 2, 17, 17, 3, 8), (1, 12, 40, 577, 0, 64)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("batch", "heads", "tokens", "keys", "extra", "width"), ATTENTIONS)
def test_attention(batch: int, heads: int, tokens: int, keys: int, extra: int, width: int, causal: bool) -> None:
    case = attention_case(batch, heads, tokens, keys, extra, width)
    d_out, scale = normal(batch, tokens, heads * width, seed=7), width**-0.5
    before = {name: array.copy() for name, array in case.items()}
    expected = torch_attention(case, d_out, heads, scale, causal)
    found = run_attention(case, d_out, heads, scale, causal, True)
    for name, array in zip(("d_q", "d_k", "d_v", "A", "G"), found):
        close(array, expected[name])
    without_keys = run_attention(case, d_out, heads, scale, causal, False)
    assert without_keys[1] is None
    assert without_keys[2] is None
    assert np.array_equal(without_keys[0], found[0])
    assert all(np.array_equal(case[name], before[name]) for name in case)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_attention_by_differences(name: str) -> None:
    heads, scale = 2, 0.7
    case = attention_case(1, heads, 3, 4, 2, 3, seed=9)
    d_out = normal(1, 3, 6, seed=7)

    def forward(x: Array) -> Array:
        return reference.attention(**{**case, name: x}, heads=heads, scale=scale)[1]

    found = dict(zip("qkv", run_attention(case, d_out, heads, scale, False, True)))
    close(found[name], differences(forward, case[name], d_out), DIFFERENCES)


def test_attention_without_masks() -> None:
    case = {name: array for name, array in attention_case(2, 3, 4, 9, 0, 5).items() if name in "qkv"}
    d_out = normal(2, 4, 15)
    expected = torch_attention(case, d_out, 3, 0.4, False)
    for name, array in zip(("d_q", "d_k", "d_v", "A", "G"), run_attention(case, d_out, 3, 0.4, False, True)):
        close(array, expected[name])


def test_masked_keys_have_no_gradient() -> None:
    case = attention_case(1, 2, 3, 6, 0, 4)
    case["key_mask"] = np.array([[1, 1, 0, 1, 0, 0]], np.uint8)
    _, d_k, d_v, probabilities, _ = run_attention(case, normal(1, 3, 8), 2, 0.5, False, True)
    assert not d_k[0, [2, 4, 5]].any()
    assert not d_v[0, [2, 4, 5]].any()
    assert not probabilities[..., [2, 4, 5]].any()


@pytest.mark.parametrize("first", [0, 1, 6])
def test_gradcam(first: int) -> None:
    probabilities, gradients = np.abs(normal(3, 5, 7)), normal(3, 5, 7, seed=1)
    expected = (probabilities * np.maximum(gradients, 0)).mean(axis=0)[:, first:]
    close(_core_testing.gradcam(probabilities, gradients, first), expected)


def test_threads_do_not_change_the_result() -> None:
    case = attention_case(2, 5, 37, 41, 0, 8)
    d_out, dy, weight = normal(2, 37, 40), normal(19, 70), normal(70, 130)
    threads = _core_testing.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            _core_testing.set_num_threads(count)
            attended = run_attention(case, d_out, 5, 0.3, False, True)
            results.append((*attended, _core_testing.linear_backward(dy, weight, None)))
    finally:
        _core_testing.set_num_threads(threads)
    for other in results[1:]:
        for first, second in zip(results[0][:-1], other[:-1]):
            assert np.array_equal(first, second)
        close(other[-1], results[0][-1], 1e-6)  # the product's columns are cut elsewhere; observed 2e-7


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        _core_testing.linear_backward(normal(2, 3), normal(4, 5), None)
    with pytest.raises(ValueError, match="shapes"):
        _core_testing.layer_norm_backward(normal(2, 3), normal(2, 4), normal(4), 1e-5)
    case = {"q": normal(1, 2, 4), "k": normal(1, 3, 4), "v": normal(1, 2, 4)}
    with pytest.raises(ValueError, match="shapes"):
        run_attention(case, normal(1, 2, 4), 2, 1.0, False, True)
    for second, first in ((normal(1, 2, 4), 0), (normal(1, 2, 3), -1), (normal(1, 2, 3), 4)):
        with pytest.raises(ValueError, match="shapes"):
            _core_testing.gradcam(normal(1, 2, 3), second, first)
    with pytest.raises(ValueError, match="shapes"):
        _core_testing.linear_backward(normal(2, 4), normal(4, 5), normal(2, 4))
    with pytest.raises(ValueError, match="shapes"):
        _core_testing.activation(normal(4), "relu", normal(3))
    with pytest.raises(ValueError, match="expected one of gelu"):
        _core_testing.activation(normal(4), "tanh")
    with pytest.raises(ValueError, match="dy has 1 dimensions, expected 2"):
        _core_testing.linear_backward(normal(2), normal(4, 5), None)


@pytest.mark.parametrize(
    "change",
    [
        {"k": normal(2, 3, 4)},
        {"v": normal(1, 2, 4)},
        {"extra_k": normal(1, 2, 4), "extra_v": normal(1, 3, 4)},
        {"extra_k": normal(2, 2, 4), "extra_v": normal(2, 2, 4)},
        {"extra_k": normal(1, 2, 4), "extra_v": normal(1, 2, 4), "extra_length": np.ones(2, np.uintp)},
        {"key_mask": np.ones((1, 4), np.uint8)},
        {"bias": normal(2, 2, 4)},
        {"bias": normal(1, 2, 3)},
    ],
    ids=lambda change: "-".join(change),
)
def test_bad_shapes_of_attention_are_refused(change: dict[str, Array]) -> None:
    case = {"q": normal(1, 2, 4), "k": normal(1, 3, 4), "v": normal(1, 3, 4)}
    run_attention(case, normal(1, 2, 4), 2, 1.0, False, True)
    with pytest.raises(ValueError, match="shapes"):
        run_attention({**case, **change}, normal(1, 2, 4), 2, 1.0, False, True)
    for heads in (0, 3):
        with pytest.raises(ValueError, match="shapes"):
            run_attention(case, normal(1, 2, 4), heads, 1.0, False, True)
