"""Named tensors as the core takes them: views of somebody's memory, copied only where that cannot be helped."""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple, Union

import numpy as np
from numpy.typing import NDArray

#: One tensor: (buffer, dtype, shape, byte offset); row-major, in this machine's byte order. A matrix [N, K] may lie in
#: the panels that the core's products read; its dtype then names their width, as in "float32@64" (see `panel_columns`).
Weight = tuple[Any, str, tuple[int, ...], int]
#: What a model is built from: name -> tensor. A buffer may be a memory map, a bytes object or an array.
Weights = dict[str, Weight]
ITEM_SIZES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
    "bool": 1,
    "complex64": 8,
    "complex128": 16,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
}
#: What the core computes with.
CORE_DTYPES = ("float32", "float16", "bfloat16")
#: Why a result can be NaN or infinite, for messages.
NOT_FINITE = "the weights hold NaN, infinity or too large values, or the picture is far from normalised"
#: What a converted folder stores; int8 only in panels.
STORED_DTYPES = (*CORE_DTYPES, "int8")
#: Rows of an int8 panel behind its items: each column's scale (float32) and the sum of its items (int32).
_INT8_TAIL = 2
#: Deeper matrices have no int8 panels: their sums would not fit in 32 bits.
MAX_INT8_DEPTH = 65536
#: The end of the name, in a converted folder, of a matrix in panels.
PANELS = ".panels"
MAX_PANEL_COLUMNS = 4096
Array = NDArray[Any]
_RAW = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}


class StoredTensor:
    """A tensor in a file, of which nothing has been read: its storage, and where in it the items lie.

    Parameters
    ----------
    storage : object with ``buffer()``
        Gives (buffer, byte offset of the storage's first item); called when the items are needed.
    dtype : str
        A key of ``ITEM_SIZES``.
    shape, strides : tuple of int
        In items. The caller has checked that every item lies inside the storage.
    first : int
        The first item, counted in items from the storage's start.
    """

    __slots__ = ("dtype", "first", "shape", "storage", "strides")

    def __init__(self, storage: Any, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...], first: int) -> None:
        self.storage = storage
        self.dtype = dtype
        self.shape = shape
        self.strides = strides
        self.first = first

    @property
    def contiguous(self) -> bool:
        """Whether the items lie row-major without gaps."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides)):
            if size != 1 and stride != expected:
                return 0 in self.shape
            expected *= size
        return True

    def weight(self) -> Weight:
        """The tensor as the core takes it: a view where the items lie row-major, else a copy."""
        size = ITEM_SIZES[self.dtype]
        if 0 in self.shape:
            return (b"", self.dtype, self.shape, 0)
        buffer, base = self.storage.buffer()
        start = base + self.first * size
        if self.contiguous:
            return (buffer, self.dtype, self.shape, start)
        raw = _RAW.get(self.dtype, self.dtype)
        items = 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides))
        flat = np.frombuffer(buffer, raw, items, start)
        view = np.lib.stride_tricks.as_strided(
            flat, self.shape, tuple(stride * size for stride in self.strides), writeable=False
        )
        return (np.ascontiguousarray(view), self.dtype, self.shape, 0)


class MadeTensor(StoredTensor):
    """A float32 tensor that is computed of others when its items are asked for.

    Parameters
    ----------
    shape : tuple of int
    make : callable
        Gives an array of this shape.
    """

    __slots__ = ("make",)

    def __init__(self, shape: tuple[int, ...], make: Callable[[], Array]) -> None:
        super().__init__(None, "float32", shape, (0,) * len(shape), 0)
        self.make = make

    def weight(self) -> Weight:
        """The tensor as the core takes it, computed anew each time."""
        return from_array(self.make())


class UnreadTensor:
    """A tensor of a kind that is not read: what it is, and its shape."""

    __slots__ = ("shape", "what")

    def __init__(self, what: str, shape: tuple[int, ...] = ()) -> None:
        self.what = what
        self.shape = shape


#: What a reader of files hands on.
Stored = dict[str, Union[Weight, StoredTensor]]


def weight_of(tensor: Weight | StoredTensor) -> Weight:
    """The (buffer, dtype, shape, offset) of either kind."""
    return tensor.weight() if isinstance(tensor, StoredTensor) else tensor


def core_weight(tensor: Weight | StoredTensor) -> Weight:
    """The same of a type that the core computes with."""
    weight = weight_of(tensor)
    known = base_dtype(weight[1]) in CORE_DTYPES or panel_columns(weight[1])
    return weight if known else cast(weight, "float32")


def shape_of(tensor: Weight | StoredTensor) -> tuple[int, ...]:
    """The shape of either kind."""
    return tensor.shape if isinstance(tensor, StoredTensor) else tensor[2]


def dtype_of(tensor: Weight | StoredTensor) -> str:
    """The dtype's name of either kind."""
    return tensor.dtype if isinstance(tensor, StoredTensor) else tensor[1]


def row_views(tensor: Weight | StoredTensor, parts: int) -> list[Weight | StoredTensor]:
    """Equal parts of a tensor's rows; nothing is copied, but where panels reach across a border."""
    shape = shape_of(tensor)
    rows = shape[0] // parts
    if isinstance(tensor, MadeTensor):
        tensor = tensor.weight()
    if isinstance(tensor, StoredTensor):
        step = rows * tensor.strides[0]
        return [
            StoredTensor(tensor.storage, tensor.dtype, (rows, *shape[1:]), tensor.strides, tensor.first + part * step)
            for part in range(parts)
        ]
    buffer, dtype, _, offset = tensor
    columns = panel_columns(dtype)
    if columns and rows % columns:
        buffer, dtype, _, offset = cast(tensor, "float32" if base_dtype(dtype) == "int8" else base_dtype(dtype))
    step = stored_bytes(dtype, (rows, *shape[1:]))
    return [(buffer, dtype, (rows, *shape[1:]), offset + part * step) for part in range(parts)]


def without_leading_ones(tensor: Weight | StoredTensor, dims: int) -> Weight | StoredTensor:
    """The tensor with sizes of 1 in front left out until it has ``dims`` of them."""
    shape = shape_of(tensor)
    extra = max(len(shape) - dims, 0)
    if any(size != 1 for size in shape[:extra]):
        return tensor
    if isinstance(tensor, MadeTensor):
        tensor = tensor.weight()
    if isinstance(tensor, StoredTensor):
        return StoredTensor(tensor.storage, tensor.dtype, shape[extra:], tensor.strides[extra:], tensor.first)
    buffer, dtype, _, offset = tensor
    return (buffer, dtype, shape[extra:], offset)


def base_dtype(dtype: str) -> str:
    """What the items are, without the layout: "float32" of "float32@64"."""
    return dtype.partition("@")[0]


def panel_columns(dtype: str) -> int:
    """How many rows of the matrix a panel holds, as the columns of a product; 0 where the items lie row-major."""
    return int(dtype.partition("@")[2] or 0)


def stored_shape(dtype: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which items lie: of [N, K] in panels of C float32 [N / C, K, C], bfloat16 [N / C, K / 2, C, 2].

    int8 has [N / C, K / 4 + 2, C, 4], of which the last two rows are 4 bytes a column: the scale of its items (float32) and
    their sum (int32).
    """
    columns = panel_columns(dtype)
    if columns == 0:
        return shape
    rows, depth = shape
    if base_dtype(dtype) == "bfloat16":
        return (rows // columns, depth // 2, columns, 2)
    if base_dtype(dtype) == "int8":
        return (rows // columns, depth // 4 + _INT8_TAIL, columns, 4)
    return (rows // columns, depth, columns)


def stored_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes that a tensor's items take where they lie."""
    return math.prod(stored_shape(dtype, shape)) * ITEM_SIZES[base_dtype(dtype)]


def named_panels(tensors: Stored, what: str) -> Stored:
    """A file's tensors with those called ``NAME.panels`` as the matrix NAME in panels.

    Raises
    ------
    ValueError
        Where such a tensor has not the shape of panels, or NAME is there too.
    """
    result: Stored = {}
    for name, tensor in tensors.items():
        plain, entry = name, tensor
        if name.endswith(PANELS):
            plain = name[: -len(PANELS)]
            buffer, dtype, shape, offset = weight_of(tensor)
            step = {"float32": 1, "bfloat16": 2, "int8": 4}.get(dtype, 0)
            whole = shape[3:] == ((step,) if step > 1 else ()) and len(shape) >= 3 and step > 0
            depth = (shape[1] - (_INT8_TAIL if step == 4 else 0)) * step if whole else 0
            deepest = MAX_INT8_DEPTH if step == 4 else depth
            if not whole or 0 in shape or shape[2] > MAX_PANEL_COLUMNS or not 0 < depth <= deepest:
                raise ValueError(
                    f"{what}: {name[:120]} of {dtype} has shape {list(shape)}; expected panels, float32 [N / C, K, C], "
                    f"bfloat16 [N / C, K / 2, C, 2] or int8 [N / C, K / 4 + 2, C, 4], of at most "
                    f"{MAX_PANEL_COLUMNS} columns C"
                )
            entry = (buffer, f"{dtype}@{shape[2]}", (shape[0] * shape[2], depth), offset)
        if plain in result:
            raise ValueError(f"{what}: {plain[:120]} is there twice, as a matrix and in panels")
        result[plain] = entry
    return result


def stored_array(weight: Weight) -> Array:
    """A view of a tensor's items as they lie, of `stored_shape`; bfloat16 as its bits in uint16."""
    buffer, dtype, shape, offset = weight
    raw = _RAW.get(base_dtype(dtype), base_dtype(dtype))
    shape = stored_shape(dtype, shape)
    count = math.prod(shape)
    if count == 0:
        return np.empty(shape, raw)
    if isinstance(buffer, np.ndarray):
        buffer = buffer.reshape(-1).view(np.uint8)
    return np.frombuffer(buffer, raw, count, offset).reshape(shape)


def raw_array(weight: Weight) -> Array:
    """A tensor's items row-major, a view where they lie so; bfloat16 as its bits in uint16, int8 as float32."""
    items = stored_array(weight)
    if panel_columns(weight[1]) == 0:
        return items
    if base_dtype(weight[1]) == "int8":
        whole, scales = _int8_items(weight)
        return whole.astype(np.float32) * scales[:, None]
    # [N / C, K, C] or [N / C, K / 2, C, 2]: a panel's columns become rows again
    return np.ascontiguousarray(items.swapaxes(1, 2)).reshape(weight[2])


def float_array(weight: Weight) -> NDArray[np.float32]:
    """A tensor's items as float32: a view where they are that, else a new array."""
    raw = raw_array(weight)
    if base_dtype(weight[1]) == "bfloat16":
        raw = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    values: NDArray[np.float32] = raw.astype(np.float32, copy=False)
    return values


def from_array(array: Array) -> Weight:
    """An array that we own as a tensor for the core."""
    array = np.ascontiguousarray(array)
    return (array, str(array.dtype), array.shape, 0)


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Float32 rounded to the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    quiet_nan = (bits >> np.uint32(16)) | np.uint32(0x40)
    result: NDArray[np.uint16] = np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16)
    return result


def int8_panels(values: NDArray[np.float32], columns: int) -> NDArray[np.int8]:
    """A matrix [N, K] as the panels of int8 products, [N / columns, K / 4 + 2, columns, 4].

    A row w becomes round(w / t), -127 to 127, with t = max |w| / 127; see docs/MODEL.md.

    Raises
    ------
    ValueError
        Where a weight is not finite.
    """
    largest = np.abs(values).max(axis=1)
    if not np.isfinite(largest).all():
        raise ValueError("dtype int8: a weight is NaN or infinite")
    scales = np.maximum(largest / np.float32(127), np.float32(2.0**-126))
    return _place_int8(np.rint(values / scales[:, None]).astype(np.int8), scales, columns)


def _int8_items(weight: Weight) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The items [N, K] of int8 panels, and the scales [N]."""
    panels = stored_array(weight)
    scales = np.ascontiguousarray(panels[:, -2]).view(np.float32).reshape(-1)
    return np.ascontiguousarray(panels[:, :-_INT8_TAIL].swapaxes(1, 2)).reshape(weight[2]), scales


def _place_int8(items: NDArray[np.int8], scales: NDArray[np.float32], columns: int) -> NDArray[np.int8]:
    rows, depth = items.shape
    panels = np.empty((rows // columns, depth // 4 + _INT8_TAIL, columns, 4), np.int8)
    panels[:, :-_INT8_TAIL] = items.reshape(-1, columns, depth // 4, 4).swapaxes(1, 2)
    panels[:, -2] = scales.view(np.int8).reshape(-1, columns, 4)
    panels[:, -1] = items.sum(axis=1, dtype=np.int32).view(np.int8).reshape(-1, columns, 4)
    return panels


def cast(weight: Weight, dtype: str) -> Weight:
    """The tensor in another of the core's dtypes, panels among them; itself where it is that already.

    Raises
    ------
    ValueError
        Where a finite value has no finite float16, or a value that is not finite no int8.
    """
    if weight[1] == dtype:
        return weight
    if base_dtype(weight[1]) == base_dtype(dtype) == "int8" and panel_columns(weight[1]) and panel_columns(dtype):
        return (_place_int8(*_int8_items(weight), panel_columns(dtype)), dtype, weight[2], 0)
    if "@" in weight[1]:
        own = base_dtype(weight[1])
        return cast((raw_array(weight), "float32" if own == "int8" else own, weight[2], 0), dtype)
    columns = panel_columns(dtype)
    if columns and base_dtype(dtype) == "int8":
        return (int8_panels(float_array(weight), columns), dtype, weight[2], 0)
    if columns:
        rows, depth = weight[2]
        items = stored_array(cast(weight, base_dtype(dtype)))
        last = (2,) if base_dtype(dtype) == "bfloat16" else ()
        panels = items.reshape(rows // columns, columns, depth // (2 if last else 1), *last).swapaxes(1, 2)
        return (np.ascontiguousarray(panels), dtype, weight[2], 0)
    values = float_array(weight)
    if dtype == "float32":
        return from_array(values)
    if dtype == "bfloat16":
        return (bfloat16_bits(values), dtype, weight[2], 0)
    if dtype != "float16":
        raise ValueError(f"dtype: expected one of {', '.join(CORE_DTYPES)}, got {dtype!r}")
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.array_equal(np.isfinite(half), np.isfinite(values)):
        raise ValueError("dtype float16: a weight is larger than 65504; use bfloat16 or float32")
    return from_array(half)


def release_tensor(weight: Weight) -> None:
    """`release_pages` for one tensor that was read."""
    if isinstance(weight[0], mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        start = weight[3] // mmap.PAGESIZE * mmap.PAGESIZE
        size = stored_bytes(weight[1], weight[2])
        weight[0].madvise(mmap.MADV_DONTNEED, start, weight[3] + size - start)


def release_pages(weights: Weights) -> None:
    """Let the system take back the pages of mapped files, which were read to pack the weights; they stay mapped.

    What is read again comes from the page cache, or from the disk.
    """
    if hasattr(mmap, "MADV_DONTNEED"):
        for mapped in {id(weight[0]): weight[0] for weight in weights.values()}.values():
            if isinstance(mapped, mmap.mmap):
                mapped.madvise(mmap.MADV_DONTNEED)


class Origin(NamedTuple):
    """The file that a map is of, as it was when it was mapped."""

    path: str
    device: int
    inode: int
    size: int
    written: int  # nanoseconds


_origins: weakref.WeakKeyDictionary[mmap.mmap, Origin] = weakref.WeakKeyDictionary()


def map_open_file(file: BinaryIO, path: str | os.PathLike[str]) -> mmap.mmap:
    """A whole open file mapped read-only, remembering what it is a map of; a ValueError where it is empty."""
    state = os.fstat(file.fileno())
    if state.st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    _origins[mapped] = Origin(os.path.abspath(path), state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
    return mapped


def origin_of(buffer: Any) -> Origin | None:
    """The file that a tensor's buffer is a map of, or None."""
    return _origins.get(buffer) if isinstance(buffer, mmap.mmap) else None


def origins(weights: Weights) -> tuple[Origin, ...]:
    """The files that tensors are mapped from, for `check_unchanged`."""
    maps = {id(weight[0]): weight[0] for weight in weights.values() if isinstance(weight[0], mmap.mmap)}
    return tuple(_origins[mapped] for mapped in maps.values() if mapped in _origins)


def check_unchanged(files: tuple[Origin, ...]) -> None:
    """Raise where a mapped file was written to in place: what is mapped is then no longer what was loaded.

    A file that was replaced by renaming, or removed, is another one: the map still shows what it did.

    Raises
    ------
    ValueError
        Naming the file.
    """
    for file in files:
        try:
            state = os.stat(file.path)
        except OSError:
            continue
        same = (state.st_dev, state.st_ino) == (file.device, file.inode)
        if same and (state.st_size, state.st_mtime_ns) != (file.size, file.written):
            raise ValueError(
                f"{file.path}: the file was written to after the model was loaded from it; load the model again (and "
                "replace files by renaming, which leaves models that are loaded alone)"
            )
