"""Slow NumPy twins of the ops in csrc/ops, in float64, and what tests compare with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = Any


def normal(*shape: int, seed: int = 0) -> Array:
    """Random float32 values, other ones for another shape or seed."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def close(found: Array, expected: Array, tolerance: float) -> None:
    """Fails unless the largest difference, relative to the largest expected value, is within the tolerance."""
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    scale = max(float(np.abs(expected).max(initial=0)), 1e-30)
    assert float(np.abs(found - expected).max(initial=0)) <= tolerance * scale


_erf = np.vectorize(math.erf, otypes=[np.float64])


def activate(x: Array, name: str) -> Array:
    """The activation `name` of x."""
    x = np.asarray(x, np.float64)
    if name == "gelu":
        return 0.5 * x * (1 + _erf(x / math.sqrt(2)))
    if name == "gelu_new":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if name == "quick_gelu":
        return x * 0.5 * (1 + np.tanh(0.851 * x))
    if name == "silu":
        return x * 0.5 * (1 + np.tanh(0.5 * x))
    if name == "relu":
        return np.maximum(x, 0)
    return x


def linear(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    activation: str = "linear",
    multiply: Array | None = None,
    residual: Array | None = None,
) -> Array:
    """act(x weight^T + bias) * multiply + residual."""
    y = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    if bias is not None:
        y = y + bias
    y = activate(y, activation)
    if multiply is not None:
        y = y * multiply
    return y if residual is None else y + residual


def softmax(scores: Array) -> Array:
    """Over the last axis; a row of -inf gives zeros."""
    largest = scores.max(axis=-1, keepdims=True)
    e = np.exp(scores - np.where(np.isfinite(largest), largest, 0))
    total = e.sum(axis=-1, keepdims=True)
    return e / np.where(total == 0, 1, total)


def split_heads(x: Array, heads: int) -> Array:
    """[B, T, h d] -> [B, h, T, d]."""
    b, t, width = x.shape
    return np.asarray(x, np.float64).reshape(b, t, heads, width // heads).transpose(0, 2, 1, 3)


def attention(
    q: Array,
    k: Array,
    v: Array | None,
    *,
    heads: int,
    scale: float,
    extra_k: Array | None = None,
    extra_v: Array | None = None,
    extra_length: Array | None = None,
    key_mask: Array | None = None,
    bias: Array | None = None,
    q_index: Array | None = None,
    kv_index: Array | None = None,
    causal: bool = False,
) -> tuple[Array, Array | None]:
    """Probabilities [B, h, T, M + S] and the output [B, T, h d] (None without v)."""
    q = q if q_index is None else q[q_index]
    k = k if kv_index is None else k[kv_index]
    scores = split_heads(q, heads) @ split_heads(k, heads).swapaxes(2, 3) * scale
    batch, _, tokens, keys = scores.shape
    if bias is not None:
        scores = scores + bias
    if key_mask is not None:
        itself = causal & (np.arange(keys) == np.arange(tokens)[:, None])  # is seen whatever the mask says
        scores = np.where((key_mask[:, None, None, :] != 0) | itself, scores, -np.inf)
    if causal:
        scores = np.where(np.arange(keys) <= np.arange(tokens)[:, None], scores, -np.inf)
    if extra_k is not None:
        extra = split_heads(q, heads) @ split_heads(extra_k, heads).swapaxes(2, 3) * scale
        if extra_length is not None:
            seen = np.arange(extra_k.shape[1]) < np.asarray(extra_length)[:, None]
            extra = np.where(seen[:, None, None, :], extra, -np.inf)
        scores = np.concatenate([extra, scores], axis=-1)
    probabilities = softmax(scores)
    if v is None:
        return probabilities, None
    v = v if kv_index is None else v[kv_index]
    if extra_v is not None:
        v = np.concatenate([extra_v, v], axis=1)
    out = (probabilities @ split_heads(v, heads)).transpose(0, 2, 1, 3)
    return probabilities, out.reshape(batch, tokens, -1)


def layer_norm(x: Array, weight: Array, bias: Array | None, eps: float) -> Array:
    """A row at a time."""
    x = np.asarray(x, np.float64)
    y = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + eps) * weight
    return y if bias is None else y + bias


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """A row at a time."""
    x = np.asarray(x, np.float64)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


def to_bfloat16(x: Array) -> Array:
    """The bits (uint16) of x rounded to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: Array) -> Array:
    """The float32 values of bfloat16 bits."""
    return (np.asarray(bits, np.uint32) << 16).view(np.float32)


def quantize_rows(x: Array) -> tuple[Array, Array, Array]:
    """Rows [R, K] for int8 products: q 0 .. 255, scales [R], zero points [R]; what is not finite has the scale NaN."""
    x = np.asarray(x, np.float32)
    finite = np.isfinite(x).all(axis=1)
    x = np.where(finite[:, None], x, np.float32(0))
    most, least = (np.maximum(side.max(axis=1), np.float32(0)) for side in (x, -x))
    scale = np.maximum(most / np.float32(255) + least / np.float32(255), np.float32(2.0**-126))
    inverse = np.float32(1) / scale
    point = np.rint(least * inverse)
    q = point[:, None] + np.minimum(np.rint(x * inverse[:, None]), np.float32(255) - point[:, None])
    q[~finite], point[~finite] = 0, 0
    return q.astype(np.int64), np.where(finite, scale, np.float32(np.nan)), point.astype(np.int64)


def quantize_columns(weight: Array) -> tuple[Array, Array]:
    """A product's columns, rows of weight [N, K]: items -127 .. 127 and scales [N]; what is not finite has the scale NaN."""
    weight = np.asarray(weight, np.float32)
    finite = np.isfinite(weight).all(axis=1)
    weight = np.where(finite[:, None], weight, np.float32(0))
    scale = np.maximum(np.abs(weight).max(axis=1) / np.float32(127), np.float32(2.0**-126))
    return np.rint(weight / scale[:, None]).astype(np.int64), np.where(finite, scale, np.float32(np.nan))


def linear_int8(x: Array, weight: Array) -> Array:
    """x weight^T as an int8 product gives it, to the last bit."""
    q, scale, point = quantize_rows(x)
    items, column_scale = quantize_columns(weight)
    exact = (q - point[:, None]) @ items.T
    return exact.astype(np.float32) * (scale[:, None] * column_scale)


def dequantize(weight: Array) -> Array:
    """The weights that an int8 product multiplies by."""
    items, scale = quantize_columns(weight)
    return items.astype(np.float32) * scale[:, None]
