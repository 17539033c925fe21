"""Methods: from a block's raw attention to one map a question.

Raw attention is [..., h, T, M + T]: M question tokens come first among the keys, then the class token, then the
P = T - 1 patches in row-major order. A block that does not see the question has M = 0.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Optional, Union

import numpy as np
import numpy.typing as npt

from .._base.arguments import finite_numbers, whole_number
from .._base.tensors import detached
from .._base.types import FloatArray

Heads = Union[str, int, None]
Method = Union[str, Callable[[Any], Any]]


def to_distribution(values: npt.ArrayLike, axes: int = 1) -> FloatArray:
    """Scale non-negative values so that each map sums to 1.

    Parameters
    ----------
    values : array [..., P] (axes=1) or [..., gh, gw] (axes=2)
        Finite values, none negative.
    axes : int
        How many of the last axes make up one map.

    Returns
    -------
    float32 array of the same shape
        A map that sums to zero comes back as the uniform distribution: nothing in it stands out.
    """
    array = finite_numbers(values, "values", np.float64)
    if array.ndim < axes:
        raise ValueError(f"values: shape {array.shape}, expected at least {axes} axes")
    last = tuple(range(-axes, 0))
    largest = array.max(axis=last, keepdims=True, initial=0.0)
    patches = int(np.prod(array.shape[-axes:]))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shares = array / largest  # sums do not overflow
        total = shares.sum(axis=last, keepdims=True)
        scaled = np.where((largest > 0) & (total > 0), shares / total, 1.0 / max(patches, 1))
    return scaled.astype(np.float32)


def merge_heads(values: npt.ArrayLike, heads: Heads = "mean") -> FloatArray:
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


def read_class(attention: npt.ArrayLike, question_tokens: Optional[int] = None, heads: Heads = "mean") -> FloatArray:
    """Where the class token looks: its attention to the patches, as one distribution a pair.

    Parameters
    ----------
    attention : array [..., h, T, M + T] or [..., h, 1, M + T]
        Raw attention of a block: all queries, or the class token's row alone.
    question_tokens : int, optional
        M. Needed when only the class token's row is given; otherwise it follows from the shape.
    heads : "mean", "max", int or None
        See `merge_heads`.

    Returns
    -------
    float32 array [..., P]; [..., h, P] with heads=None
        Each map sums to 1.
    """
    array, tokens = _checked(attention, question_tokens)
    return to_distribution(merge_heads(array[..., 0, tokens + 1 :], heads))


def read_question(
    attention: npt.ArrayLike,
    question_tokens: Optional[int] = None,
    heads: Heads = "mean",
    mask: Optional[npt.ArrayLike] = None,
) -> FloatArray:
    """Which patches look at the question: each patch's attention to all question tokens together.

    Parameters
    ----------
    attention : array [..., h, T, M + T]
        Raw attention of a block that sees the question (M > 0).
    question_tokens : int, optional
        M; by default it follows from the shape.
    heads : "mean", "max", int or None
        See `merge_heads`.
    mask : array [..., M], optional
        1 for the tokens that count, 0 for padding.

    Returns
    -------
    float32 array [..., P]; [..., h, P] with heads=None
        Each map sums to 1.
    """
    return to_distribution(merge_heads(_to_tokens(attention, question_tokens, mask).sum(axis=-1), heads))


def read_words(
    attention: npt.ArrayLike,
    word_of: Sequence[Sequence[int]],
    question_tokens: Optional[int] = None,
    heads: Heads = "mean",
) -> list[FloatArray]:
    """Which patches look at each word: the question method, one map a word.

    Parameters
    ----------
    attention : array [B, h, T, M + T]
        Raw attention of a block that sees the question.
    word_of : B sequences of at most M ints
        For each token the number of its word; -1 for special tokens and padding.
    question_tokens : int, optional
        M; by default it follows from the shape.
    heads : "mean", "max" or int
        See `merge_heads`.

    Returns
    -------
    list of B float32 arrays [words, P]
        Each map sums to 1. A word's tokens are summed.
    """
    if heads is None:
        raise ValueError("heads: None is not possible for maps of words; expected 'mean', 'max' or a head's number")
    columns = _to_tokens(attention, question_tokens, None)
    if columns.ndim != 4 or len(word_of) != columns.shape[0]:
        raise ValueError(
            f"word_of: {len(word_of)} questions, expected one for each pair in attention of shape {np.shape(attention)}"
        )
    maps = []
    for pair, words in zip(columns, word_of):
        if len(words) > pair.shape[-1]:
            raise ValueError(f"word_of: {len(words)} tokens, but the attention has {pair.shape[-1]} question tokens")
        words = [whole_number(word, "word_of") for word in words]
        count = max(words, default=-1) + 1
        member = np.zeros((pair.shape[-1], count), dtype=np.float32)
        for token, word in enumerate(words):
            if word >= 0:
                member[token, word] = 1.0
        by_word = np.moveaxis(pair @ member, -1, 0)
        maps.append(to_distribution(merge_heads(by_word, heads)) if count else by_word[:, 0])
    return maps


def apply_method(
    method: Method,
    attention: npt.ArrayLike,
    question_tokens: Optional[int] = None,
    heads: Heads = "mean",
    mask: Optional[npt.ArrayLike] = None,
    grid: Optional[tuple[int, int]] = None,
) -> FloatArray:
    """Read one map a pair from raw attention, by a method's name or by any callable.

    Parameters
    ----------
    method : "class", "question" or callable
        A callable gets the raw attention, float32 [B, h, T, M + T], and returns [B, P] or [B, gh, gw]: finite numbers,
        none negative. What it returns is checked and taken as it is, without scaling.
    attention : array [B, h, T, M + T]
    question_tokens : int, optional
        M; by default it follows from the shape.
    heads : "mean", "max", int or None
        See `merge_heads`; not used by a callable.
    mask : array [B, M], optional
        Which question tokens count.
    grid : (gh, gw), optional
        The patch grid, for checking what a callable returns.

    Returns
    -------
    float32 array [B, P]; [B, h, P] with heads=None
    """
    if isinstance(method, str):
        if method == "class":
            return read_class(attention, question_tokens, heads)
        if method == "question":
            return read_question(attention, question_tokens, heads, mask)
        raise ValueError(f"method: {method!r} is unknown; expected 'class', 'question' or a callable")
    if not callable(method):
        raise TypeError(f"method: expected a name or a callable, got {type(method).__name__}")
    array, tokens = _checked(attention, question_tokens)
    if array.ndim != 4:
        raise ValueError(f"attention: a callable method needs [B, h, T, M + T], got shape {array.shape}")
    patches = array.shape[-1] - tokens - 1
    values = np.asarray(detached(method(array)))
    wanted: list[tuple[int, ...]] = [(array.shape[0], patches)]
    if grid is not None:
        wanted.append((array.shape[0], *grid))
    accepted = values.shape in wanted or (
        grid is None and values.ndim == 3 and values.shape[0] == array.shape[0] and values[0].size == patches
    )
    if not accepted:
        shapes = " or ".join(map(str, wanted))
        raise ValueError(f"method: the callable returned shape {values.shape}, expected {shapes}")
    if not np.issubdtype(values.dtype, np.number) or np.issubdtype(values.dtype, np.complexfloating):
        raise ValueError(f"method: the callable returned {values.dtype}, expected real numbers")
    with np.errstate(over="ignore"):
        values = values.reshape(array.shape[0], patches).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("method: the callable returned NaN or infinity, expected finite numbers")
    if (values < 0).any():
        raise ValueError(f"method: the callable returned negative values (least {values.min():g}), expected none")
    return values


def _checked(attention: npt.ArrayLike, question_tokens: Optional[int]) -> tuple[FloatArray, int]:
    """The attention as float32 and M; raises where the shape cannot be [..., h, T or 1, M + T]."""
    array = np.asarray(detached(attention))
    if array.ndim < 3 or array.size == 0 or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"attention: expected floats [..., heads, T, M + T], got {array.dtype} of shape {array.shape}"
        )
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


def _to_tokens(
    attention: npt.ArrayLike, question_tokens: Optional[int], mask: Optional[npt.ArrayLike]
) -> FloatArray:
    """Patches' attention to the question tokens, [..., h, P, M], padding zeroed."""
    array, tokens = _checked(attention, question_tokens)
    if tokens == 0:
        raise ValueError("method: 'question' needs a block that sees the question; this one has no question tokens")
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
