"""Raw attention: [..., h, T, M + T].

M question tokens come first among the keys, then the class token, then the P = T - 1 patches in row-major order. A block
that does not see the question has M = 0.
"""

from __future__ import annotations

import operator
from typing import Optional

import numpy as np
import numpy.typing as npt

from .._base.arguments import finite_numbers, whole_number
from .._base.tensors import detached
from .._base.types import FloatArray, Heads


def merge_heads(values: npt.ArrayLike, heads: Optional[Heads] = "mean") -> FloatArray:
    """Merge the head axis of [..., h, N].

    Parameters
    ----------
    values : array [..., h, N]
    heads : "mean", "max", int or None
        Average or largest over the heads, one head by number (negative counts from the end), or None for all of them.

    Returns
    -------
    float32 array [..., N]; [..., h, N] for None
    """
    array = finite_numbers(values, "values")
    if array.ndim < 2 or array.shape[-2] == 0:
        raise ValueError(f"values: shape {array.shape}, expected [..., heads, N]")
    if heads is None:
        return array
    if isinstance(heads, str):
        if heads == "mean":
            return np.asarray(array.mean(axis=-2, dtype=np.float64), dtype=np.float32)
        if heads == "max":
            return np.asarray(array.max(axis=-2), dtype=np.float32)
        raise ValueError(f"heads: {heads!r} is unknown; expected 'mean', 'max', None or the number of a head")
    try:
        head = whole_number(heads, "heads")
    except TypeError:
        kind = type(heads).__name__
        raise TypeError(f"heads: expected 'mean', 'max', None or the number of a head, got {kind}") from None
    count = array.shape[-2]
    if not -count <= head < count:
        raise ValueError(f"heads: head {head} does not exist; the model has {count} heads, 0 to {count - 1}")
    return np.ascontiguousarray(array[..., head, :])


def checked_attention(attention: npt.ArrayLike, question_tokens: Optional[int]) -> tuple[FloatArray, int]:
    """The attention as float32 and M; raises where the shape cannot be [..., h, T or 1, M + T]."""
    array = np.asarray(detached(attention))
    if array.ndim < 3 or array.size == 0 or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"attention: expected floats [..., heads, T, M + T], got {array.dtype} of shape {array.shape}")
    rows, keys = array.shape[-2:]
    tokens = keys - rows if question_tokens is None else operator.index(question_tokens)
    if question_tokens is None and rows == 1:
        raise ValueError("question_tokens: must be given where attention holds the class token's row alone")
    if tokens < 0 or keys - tokens < 2 or rows not in (1, keys - tokens):
        raise ValueError(
            f"attention: shape {array.shape} does not fit {tokens} question tokens; "
            f"expected [..., heads, T, {tokens} + T] or [..., heads, 1, {tokens} + T]"
        )
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False), tokens


def attention_to_tokens(
    attention: npt.ArrayLike, question_tokens: Optional[int], mask: Optional[npt.ArrayLike]
) -> FloatArray:
    """Patches' attention to the question tokens, [..., h, P, M], padding zeroed."""
    array, tokens = checked_attention(attention, question_tokens)
    if tokens == 0:
        raise ValueError("method 'question' needs a block that sees the question; this one has no question tokens")
    if array.shape[-2] == 1:
        raise ValueError("attention: the question method needs all T rows, got the class token's row alone")
    columns = array[..., 1:, :tokens]
    if mask is None:
        return columns
    weights = finite_numbers(mask, "mask")
    if weights.shape != (*array.shape[:-3], tokens):
        raise ValueError(f"mask: shape {weights.shape}, expected {(*array.shape[:-3], tokens)}")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(columns * weights[..., None, None, :], dtype=np.float32)
