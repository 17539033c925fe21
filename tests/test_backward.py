"""The ops' gradients against finite differences of the NumPy twins in float64, and against PyTorch's autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
import torch
from cpu_levels import has_bfloat16
from reference import normal
from test_ops import HUGE, MOSTLY_MEAN, prepare

_core_testing = pytest.importorskip("qavit._core_testing", reason="a build in place has it")

Array = Any
pytestmark = pytest.mark.every_level
# Observed: 7e-7 of the largest gradient.
TOLERANCE = 3e-6
# Attention's in bfloat16, whose factors are rounded to 8 bits, the probabilities and their gradients among them; the largest
# error is that of one item. Observed: 6.8e-3.
ROUNDED = 1.5e-2
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


def linear_backward(dy: Array, weight: Array, dx: Array | None = None, precision: str = "float32") -> Array:
    """dy W, added to dx where it is given, by a layer of the one weight."""
    out = np.full((len(dy), weight.shape[1]), np.nan, np.float32) if dx is None else dx.copy()
    _core_testing.linear_backward(prepare([{"weight": weight}], precision), out, dy, 0, dy.shape[1], dx is not None)
    return out


def in_bfloat16(x: Array) -> Array:
    """x as a product in bfloat16 reads it here, in float64: rounded, where this CPU has such products."""
    return (torch.tensor(x).bfloat16() if has_bfloat16() else torch.tensor(x)).double().numpy()


# rows, outputs, inputs
SHAPES = [(1, 1, 1), (3, 7, 5), (17, 33, 65), (2, 64, 15), (40, 130, 96), (5, 1100, 70), (200, 64, 129)]


@pytest.mark.parametrize(("rows", "outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("accumulate", [False, True])
def test_linear(rows: int, outputs: int, inputs: int, accumulate: bool) -> None:
    dy, weight, dx = normal(rows, outputs), normal(outputs, inputs), normal(rows, inputs, seed=1)
    found = linear_backward(dy, weight, dx if accumulate else None)
    x = torch.zeros(rows, inputs, dtype=torch.float64, requires_grad=True)
    (x @ torch.tensor(weight, dtype=torch.float64).T * torch.tensor(dy, dtype=torch.float64)).sum().backward()
    assert x.grad is not None
    close(found, x.grad.numpy() + (dx if accumulate else 0))


@pytest.mark.parametrize(("rows", "outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("accumulate", [False, True])
def test_linear_in_bfloat16(rows: int, outputs: int, inputs: int, accumulate: bool) -> None:
    """Both factors are rounded, and their sums are not, where the forward pass computes in bfloat16."""
    dy, weight, dx = normal(rows, outputs), normal(outputs, inputs), normal(rows, inputs, seed=1)
    found = linear_backward(dy, weight, dx if accumulate else None, "bfloat16")
    close(found, in_bfloat16(dy) @ in_bfloat16(weight) + (dx if accumulate else 0))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_parts_of_a_layer_go_back_alone_and_together(precision: str) -> None:
    dy, parts = normal(9, 70 + 33 + 64), [normal(n, 75, seed=n) for n in (70, 33, 64)]
    layer = prepare([{"weight": part} for part in parts], precision)
    alone = [
        linear_backward(gradient, part, None, precision) for gradient, part in zip(np.split(dy, [70, 103], axis=1), parts)
    ]
    for first, count, expected in ((0, 70, alone[0]), (70, 97, alone[1] + alone[2]), (0, 167, sum(alone))):
        wide = np.full((9, 80), 7, np.float32)
        _core_testing.linear_backward(layer, wide[:, 2:77], dy[:, first : first + count], first, count, False)
        close(wide[:, 2:77], expected)
        assert (wide[:, :2] == 7).all()
        assert (wide[:, 77:] == 7).all()


def test_linear_by_differences() -> None:
    dy, weight, x = normal(3, 4), normal(4, 5), normal(3, 5)
    close(linear_backward(dy, weight), differences(lambda x: reference.linear(x, weight), x, dy), DIFFERENCES)


def norm_backward(device: str, dy: Array, x: Array, weight: Array, eps: float, rms: bool = False) -> Array:
    """By the CPU's op or a device's."""
    if device != "cpu":
        return _core_testing.device_norm(device, x, weight, None, eps, rms, dy)
    return _core_testing.norm_backward(dy, x, weight, eps, rms)


def norm_gradient(dy: Array, x: Array, weight: Array, rms: bool = False) -> Array:
    """The same by autograd in float64, at eps 1e-5."""
    tensor, factors = torch.tensor(x, dtype=torch.float64, requires_grad=True), torch.tensor(weight, dtype=torch.float64)
    function = torch.nn.functional.rms_norm if rms else torch.nn.functional.layer_norm
    (function(tensor, (x.shape[1],), factors, eps=1e-5) * torch.tensor(dy, dtype=torch.float64)).sum().backward()
    assert tensor.grad is not None
    return tensor.grad.numpy()


@pytest.mark.parametrize("device", ["cpu", "cuda-host"])
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(1, 3), (5, 17), (3, 768), (33, 64)])
def test_norm(rows: int, width: int, rms: bool, device: str) -> None:
    dy, x, weight = normal(rows, width), normal(rows, width, seed=1), normal(width, seed=2)
    close(norm_backward(device, dy, x, weight, 1e-5, rms), norm_gradient(dy, x, weight, rms))


@pytest.mark.parametrize("device", ["cpu", "cuda-host"])
@pytest.mark.parametrize("width", [17, 96, 768, 1027])
@pytest.mark.parametrize(("mean", "deviation"), MOSTLY_MEAN)
def test_layer_norm_of_rows_whose_mean_is_most_of_them(mean: float, deviation: float, width: int, device: str) -> None:
    rng = np.random.default_rng(width)
    x = (mean + deviation * rng.standard_normal((4, width))).astype(np.float32)
    dy, weight = normal(4, width), normal(width, seed=2)
    close(norm_backward(device, dy, x, weight, 1e-5), norm_gradient(dy, x, weight), 2e-6)


@pytest.mark.parametrize("device", ["cpu", "cuda-host"])
@pytest.mark.parametrize("width", [2, 17, 64, 768])
def test_layer_norm_of_a_constant_row_has_the_gradient_of_its_forward(width: int, device: str) -> None:
    x, dy = np.full((3, width), 1000.1, np.float32), normal(3, width)
    centred = dy.astype(np.float64) - dy.mean(axis=1, keepdims=True, dtype=np.float64)
    exact = centred / np.sqrt(np.float64(np.float32(1e-5)))
    close(norm_backward(device, dy, x, np.ones(width, np.float32), 1e-5), exact, 1e-6)


def test_layer_norm_by_differences() -> None:
    dy, x, weight = normal(2, 7), normal(2, 7, seed=1), normal(7, seed=2)
    expected = differences(lambda x: reference.layer_norm(x, weight, None, 1e-3), x, dy)
    close(_core_testing.norm_backward(dy, x, weight, 1e-3, False), expected, DIFFERENCES)


@pytest.mark.parametrize(("rows", "width"), [(1, 3), (2, 7), (3, 33)])
def test_rms_norm_by_differences(rows: int, width: int) -> None:
    dy, x, weight = normal(rows, width), normal(rows, width, seed=1), normal(width, seed=2)
    expected = differences(lambda x: reference.rms_norm(x, weight, 1e-3), x, dy)
    close(_core_testing.norm_backward(dy, x, weight, 1e-3, True), expected, DIFFERENCES)


@pytest.mark.parametrize("name", ["linear", "gelu", "gelu_new", "quick_gelu", "relu", "silu"])
def test_activation(name: str) -> None:
    # Away from 0, where relu has no slope; past one task's 4096 items.
    x = np.concatenate([np.linspace(-12, 12, 4000) + 1e-3, normal(1001) + 1e-3]).astype(np.float32)
    dy = normal(x.size, seed=3)
    close(_core_testing.activation(x, name), reference.activate(x, name))
    wide = x.astype(np.float64)
    slope = (reference.activate(wide + 1e-6, name) - reference.activate(wide - 1e-6, name)) / 2e-6
    close(_core_testing.activation(x, name, dy), dy * slope)
    close(_core_testing.activation(x, name, True), slope)


@pytest.mark.parametrize("device", ["cpu", "cuda-host"])
@pytest.mark.parametrize("name", ["gelu", "gelu_new", "quick_gelu", "relu", "silu"])
def test_slopes_of_huge_values_are_zero_or_one(name: str, device: str) -> None:
    x = np.append(HUGE, np.nan).astype(np.float32)
    dy = np.full(x.size, 3, np.float32)
    if device == "cpu":
        found = _core_testing.activation(x, name, dy)
    else:
        found = _core_testing.device_activation(device, x, name, dy)
    assert np.array_equal(found[:-1], np.where(HUGE > 0, 3, 0))
    # PyTorch's relu lets the gradient of a NaN pass.
    assert found[-1] == 3 if name == "relu" else np.isnan(found[-1])


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


def run_attention(
    case: dict[str, Array], d_out: Array, heads: int, scale: float, causal: bool, keys: bool, *options: Any
) -> Any:
    """options: whether A and G are wanted, the precision, kv_index."""
    length = case.get("extra_length")
    return _core_testing.attention_backward(
        case["q"], case["k"], case["v"], d_out, case.get("extra_k"), case.get("extra_v"),
        None if length is None else length.astype(np.uintp), case.get("key_mask"), case.get("bias"),
        heads, scale, causal, keys, *options,
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


# batch, heads, queries, keys, question tokens, head width: rows alone, tiles of rows and what is left of them, panels of
# keys and of columns, and what is left of these
ATTENTIONS = [
    (1, 1, 1, 1, 0, 1), (1, 2, 2, 33, 2, 24), (2, 3, 3, 9, 0, 5), (2, 3, 5, 7, 0, 4), (1, 4, 33, 65, 0, 16),
    (2, 2, 17, 17, 3, 8), (1, 2, 48, 64, 0, 64), (1, 2, 101, 70, 5, 80), (1, 12, 40, 577, 0, 64),
]  # fmt: skip


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
    alone = run_attention(case, d_out, heads, scale, causal, True, False)
    assert alone[3] is None
    assert alone[4] is None
    assert all(np.array_equal(a, b) for a, b in zip(alone[:3], found))
    assert all(np.array_equal(case[name], before[name]) for name in case)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("batch", "heads", "tokens", "keys", "extra", "width"), ATTENTIONS)
def test_attention_in_bfloat16(batch: int, heads: int, tokens: int, keys: int, extra: int, width: int, causal: bool) -> None:
    case = attention_case(batch, heads, tokens, keys, extra, width)
    d_out, scale = normal(batch, tokens, heads * width, seed=7), width**-0.5
    expected = torch_attention(case, d_out, heads, scale, causal)
    found = run_attention(case, d_out, heads, scale, causal, True, True, "bfloat16")
    for name, array in zip(("d_q", "d_k", "d_v", "A", "G"), found):
        close(array, expected[name], ROUNDED)


@pytest.mark.parametrize("tokens", [1, 2, 3, 50])
def test_attention_over_shared_sets_of_keys(tokens: int) -> None:
    case = {name: array for name, array in attention_case(3, 2, tokens, 37, 0, 8).items() if name != "key_mask"}
    d_out, sets = normal(3, tokens, 16, seed=7), np.array([2, 0, 2], np.uintp)
    own = {**case, "k": case["k"][sets], "v": case["v"][sets]}
    expected = torch_attention(own, d_out, 2, 0.4, False)
    found = run_attention(case, d_out, 2, 0.4, False, False, True, "float32", sets)
    for name, array in zip(("d_q", "A", "G"), (found[0], found[3], found[4])):
        close(array, expected[name])
    with pytest.raises(ValueError, match="shared"):
        run_attention(case, d_out, 2, 0.4, False, True, True, "float32", sets)
    for bad in (sets[:2], sets + 1):
        with pytest.raises(ValueError, match="shapes"):
            run_attention(case, d_out, 2, 0.4, False, False, True, "float32", bad)


@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_attention_by_differences(name: str, tokens: int) -> None:
    heads, scale = 2, 0.7
    case = attention_case(1, heads, tokens, 4, 2, 3, seed=9)
    d_out = normal(1, tokens, 6, seed=7)

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


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("batch", "heads", "tokens", "keys", "width"), [(1, 1, 1, 1, 1), (2, 3, 5, 7, 4), (1, 4, 70, 65, 16)]
)
def test_relevance(batch: int, heads: int, tokens: int, keys: int, width: int, weighted: bool) -> None:
    """The sum over queries of A max(G, 0), or of max(G, 0)."""
    case = {name: array for name, array in attention_case(batch, heads, tokens, keys, 0, width).items() if name in "qkv"}
    d_out, scale = normal(batch, tokens, heads * width, seed=7), width**-0.5
    weights = normal(batch, tokens, seed=8) if weighted else None
    expected = torch_attention(case, d_out, heads, scale, False)
    kept = np.maximum(expected["G"], 0) * (1 if weights is None else weights[:, None, :, None])
    arguments = (case["q"], case["k"], case["v"], d_out, weights, heads, scale)
    close(_core_testing.relevance(*arguments, True), kept.sum(axis=2))
    close(_core_testing.relevance(*arguments, False), (expected["A"] * kept).sum(axis=2))


@pytest.mark.parametrize("softmax", [False, True])
def test_text_scores(softmax: bool) -> None:
    y, texts = normal(33) * 5, normal(7, 33, seed=1)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    tensor = torch.tensor(y, dtype=torch.float64, requires_grad=True)
    cosines = torch.tensor(texts, dtype=torch.float64) @ (tensor / tensor.norm())
    scores = (cosines * 4).softmax(dim=0) if softmax else cosines * 4
    gradients = [torch.autograd.grad(score, tensor, retain_graph=True)[0].numpy() for score in scores]
    found, d_y = _core_testing.text_scores(y, texts, 2, 4, softmax, 4.0, 0.5, -1)
    close(found, cosines.detach().numpy(), 1e-6)
    close(d_y, 0.5 * np.stack(gradients[2:6]))


@pytest.mark.parametrize("answer", [-1, 3])
def test_an_answers_score(answer: int) -> None:
    y = normal(9) * 3
    tensor = torch.tensor(y, dtype=torch.float64, requires_grad=True)
    score = tensor.log_softmax(dim=0)[int(y.argmax()) if answer < 0 else answer]
    score.backward()
    found, d_y = _core_testing.text_scores(y, None, 0, 1, False, 1.0, 2.0, answer)
    close(found, np.array([score.item()]), 1e-6)
    assert tensor.grad is not None
    close(d_y[0], 2 * tensor.grad.numpy())


def test_dots_and_items() -> None:
    x, w = normal(5, 7), normal(3, 7, seed=1)
    close(_core_testing.dots(x, w), w @ x.T, 1e-6)
    assert np.array_equal(_core_testing.multiply_items(x, x[::-1].copy()), x * x[::-1])
    assert np.array_equal(_core_testing.multiply_items(x, w[:1]), x * w[:1])


@pytest.mark.parametrize("first", [0, 1, 6])
def test_gradcam(first: int) -> None:
    probabilities, gradients = np.abs(normal(3, 5, 7)), normal(3, 5, 7, seed=1)
    expected = (probabilities * np.maximum(gradients, 0)).mean(axis=0)[:, first:]
    close(_core_testing.gradcam(probabilities, gradients, first), expected)


@pytest.mark.every_level
@pytest.mark.parametrize(("rows", "vocabulary", "scale"), [(1, 1, 1.0), (3, 7, 2.0), (5, 1031, 3.0), (2, 64, 60.0)])
def test_likelihood(rows: int, vocabulary: int, scale: float) -> None:
    logits = scale * normal(rows, vocabulary)
    targets = np.random.default_rng(2).integers(0, vocabulary, rows).astype(np.int32)
    expected = torch.from_numpy(logits).double().requires_grad_()
    chosen = torch.log_softmax(expected, dim=1)[torch.arange(rows), torch.from_numpy(targets).long()]
    chosen.sum().backward()
    before = logits.copy()
    found, gradient = _core_testing.likelihood(logits, targets)
    assert np.array_equal(logits, before)
    np.testing.assert_allclose(found, chosen.detach().numpy(), rtol=1e-6, atol=1e-6 * scale)
    np.testing.assert_allclose(gradient, expected.grad.numpy(), atol=1e-6)
    for bad in (targets - vocabulary, targets + vocabulary, targets[1:]):
        with pytest.raises(ValueError, match="shapes"):
            _core_testing.likelihood(logits, bad)


def test_threads_do_not_change_the_result() -> None:
    case = attention_case(2, 5, 37, 41, 0, 8)
    d_out, dy, weight = normal(2, 37, 40), normal(19, 70), normal(70, 130)
    threads = _core_testing.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            _core_testing.set_num_threads(count)
            results.append((*run_attention(case, d_out, 5, 0.3, False, True), linear_backward(dy, weight)))
    finally:
        _core_testing.set_num_threads(threads)
    for other in results[1:]:
        for first, second in zip(results[0][:-1], other[:-1]):
            assert np.array_equal(first, second)
        close(other[-1], results[0][-1], 1e-6)  # the product's columns are cut elsewhere; observed 2e-7


def test_bad_shapes_are_refused() -> None:
    layer = prepare([{"weight": normal(4, 5)}])
    for first, count in ((0, 3), (1, 3), (-1, 4)):
        with pytest.raises(ValueError, match="shapes"):
            _core_testing.linear_backward(layer, normal(2, 5), normal(2, count), first, count, False)
    with pytest.raises(ValueError, match="shapes"):
        _core_testing.norm_backward(normal(2, 3), normal(2, 4), normal(4), 1e-5, False)
    case = {"q": normal(1, 2, 4), "k": normal(1, 3, 4), "v": normal(1, 2, 4)}
    with pytest.raises(ValueError, match="shapes"):
        run_attention(case, normal(1, 2, 4), 2, 1.0, False, True)
    for second, first in ((normal(1, 2, 4), 0), (normal(1, 2, 3), -1), (normal(1, 2, 3), 4)):
        with pytest.raises(ValueError, match="shapes"):
            _core_testing.gradcam(normal(1, 2, 3), second, first)
    with pytest.raises(ValueError, match="shapes"):
        linear_backward(normal(2, 4), normal(4, 5), normal(2, 4))
    with pytest.raises(ValueError, match="shapes"):
        _core_testing.activation(normal(4), "relu", normal(3))
    with pytest.raises(ValueError, match="expected one of gelu"):
        _core_testing.activation(normal(4), "tanh")


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
