"""Quantised and sparse tensors of torch.save, made dense when their items are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._weights import ITEM_SIZES, MadeTensor, StoredTensor, UnreadTensor, float_array

#: A sparse tensor may be this many times as large as what is stored of it (or 64 MiB, where that is more).
MAX_GROWTH = 32
_FLOATS = ("float16", "bfloat16", "float32", "float64")


def quantised_tensor(items: StoredTensor, parameters: Any, name_of: Callable[[Any], str]) -> StoredTensor | UnreadTensor:
    """A quantised tensor as float32: (item - zero point) * scale, by tensor or by channel.

    Parameters
    ----------
    items : StoredTensor
        The stored whole numbers.
    parameters : tuple
        (scheme, scale, zero point) or (scheme, scales, zero points, axis), as torch writes them.
    name_of : callable
        The name of a scheme.
    """
    if not isinstance(parameters, tuple) or len(parameters) not in (3, 4):
        raise ValueError("a quantised tensor without its scale and zero point")
    scheme = name_of(parameters[0])
    scale, zero = parameters[1:3]
    if scheme == "torch.per_tensor_affine" and isinstance(scale, (int, float)) and isinstance(zero, (int, float)):

        def whole() -> NDArray[np.float32]:
            values: NDArray[np.float32] = (float_array(items.weight()) - np.float32(zero)) * np.float32(scale)
            return values

        return MadeTensor(items.shape, whole)
    axis = parameters[3] if len(parameters) == 4 else None
    if (
        scheme != "torch.per_channel_affine" or not isinstance(scale, StoredTensor) or not isinstance(zero, StoredTensor)
        or isinstance(axis, bool) or not isinstance(axis, int) or not 0 <= axis < len(items.shape)
        or scale.shape != (items.shape[axis],) or zero.shape != scale.shape
    ):  # fmt: skip
        return UnreadTensor(f"a quantised tensor ({scheme})", items.shape)
    scales, zeros = scale, zero

    def by_channel() -> NDArray[np.float32]:
        shape = [1] * len(items.shape)
        shape[axis] = items.shape[axis]
        by, offset = (float_array(one.weight()).reshape(shape) for one in (scales, zeros))
        return ((float_array(items.weight()) - offset) * by).astype(np.float32)

    return MadeTensor(items.shape, by_channel)


def sparse_tensor(layout: Any, data: Any) -> StoredTensor | UnreadTensor:
    """A sparse tensor of coordinates as a dense float32 one; other layouts are left unread."""
    if not isinstance(data, tuple) or not 3 <= len(data) <= 5:
        raise ValueError("a sparse tensor without its indices, values and size")
    size = data[-1] if isinstance(data[-1], (tuple, list)) else data[2] if len(data) > 2 else None
    if not isinstance(size, (tuple, list)) or not all(isinstance(n, int) and 0 <= n < 1 << 40 for n in size):
        raise ValueError("a sparse tensor without a size")
    shape = tuple(size)
    indices, values = data[:2]
    if layout != "torch.sparse_coo" or not isinstance(indices, StoredTensor) or not isinstance(values, StoredTensor):
        return UnreadTensor(f"a sparse tensor ({str(layout)[:40]})", shape)
    if len(indices.shape) != 2 or not values.shape or indices.shape[1] != values.shape[0]:
        raise ValueError(f"a sparse tensor whose indices {indices.shape} and values {values.shape} do not fit")
    spread = indices.shape[0]
    if values.dtype not in _FLOATS or indices.dtype != "int64" or spread > len(shape) or values.shape[1:] != shape[spread:]:
        return UnreadTensor(f"a sparse tensor of {values.dtype}", shape)
    stored = sum(math.prod(one.shape) * ITEM_SIZES[one.dtype] for one in (indices, values))
    if 4 * math.prod(shape) > max(64 << 20, MAX_GROWTH * stored):
        return UnreadTensor("a sparse tensor much larger than what is stored of it", shape)

    def dense() -> NDArray[np.float32]:
        places = np.frombuffer(_bytes_of(indices), np.int64).reshape(indices.shape)
        limits = np.array(shape[:spread], np.int64)[:, None]
        if (places < 0).any() or (places >= limits).any():
            raise ValueError("a sparse tensor with an index outside of its size")
        result = np.zeros(shape, np.float32)
        np.add.at(result, tuple(places), float_array(values.weight()))
        return result

    return MadeTensor(shape, dense)


def _bytes_of(tensor: StoredTensor) -> Any:
    buffer, dtype, shape, offset = tensor.weight()
    size = math.prod(shape) * ITEM_SIZES[dtype]
    if isinstance(buffer, np.ndarray):
        buffer = buffer.reshape(-1).view(np.uint8)
    return memoryview(buffer)[offset : offset + size]
