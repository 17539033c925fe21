"""safetensors files, mapped in place: the header is read and checked, the data is not touched."""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np

from ..._base.small_files import Path_, parse_json, read_json, refuse_pointer
from .._weights import (
    ITEM_SIZES,
    PANELS,
    Stored,
    Weights,
    base_dtype,
    cast,
    map_open_file,
    panel_columns,
    release_tensor,
    shape_of,
    stored_array,
    stored_shape,
    weight_of,
)

MAX_HEADER_BYTES = 100_000_000
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
_NAMES = {name: code for code, name in _DTYPES.items()}


def map_file(path: Path_) -> mmap.mmap:
    """A whole file mapped read-only; a ValueError where it is empty.

    The map is of the file that was opened: one that is replaced (by a rename) later does not change it. A file that is
    cut short or written in place while it is mapped does, which `check_unchanged` tells.
    """
    with open(path, "rb") as file:
        mapped = map_open_file(file, path)
    refuse_pointer(mapped, path)
    return mapped


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


Header = dict[str, tuple[str, tuple[int, ...], int]]


def parse_header(header: bytes, data_bytes: int, what: str = "header") -> Header:
    """Check a safetensors header against the number of bytes that follow it.

    Returns
    -------
    dict
        name -> (dtype, shape, byte offset from the end of the header), in the order in which the data lies; names that the
        metadata calls other names of a tensor (as safetensors' save_model writes of tied ones) come behind.

    Raises
    ------
    ValueError
        Where anything is not as the format wants it: unknown dtypes, sizes that disagree, gaps, overlaps, data past the
        end, a name that appears twice.
    """
    table = parse_json(header, what)
    if not isinstance(table, dict):
        raise ValueError(f"{what}: expected a JSON object, got {type(table).__name__}")
    metadata = table.pop("__metadata__", None)
    found: list[tuple[int, int, str, str, tuple[int, ...]]] = []
    for name, entry in table.items():
        label = f"{what}: tensor {name[:120]!r}"
        if not isinstance(entry, dict):
            raise ValueError(f"{label}: expected an object with dtype, shape and data_offsets")
        code, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        dtype = _DTYPES.get(code) if isinstance(code, str) else None
        if dtype is None:
            raise ValueError(f"{label}: the dtype {str(code)[:40]!r} is not known")
        if not isinstance(shape, list) or len(shape) > 16 or not all(_is_size(size) for size in shape):
            raise ValueError(f"{label}: the shape {str(shape)[:80]} is not a list of sizes")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(offset) for offset in offsets):
            raise ValueError(f"{label}: data_offsets {str(offsets)[:80]} are not two positions")
        start, end = offsets
        if start > end or end > data_bytes:
            raise ValueError(
                f"{label}: bytes {start} to {end} do not lie inside the file's {data_bytes} bytes of data; "
                "is the download unfinished?"
            )
        if math.prod(shape) * ITEM_SIZES[dtype] != end - start:
            raise ValueError(f"{label}: {end - start} bytes do not hold {dtype} of shape {tuple(shape)}")
        found.append((start, end, name, dtype, tuple(shape)))
    found.sort(key=lambda item: item[:2])
    position = 0
    for start, end, name, _, _ in found:
        if start != position:
            problem = "overlaps the tensor before it" if start < position else "leaves a gap before it"
            raise ValueError(f"{what}: tensor {name[:120]!r} {problem} (it starts at {start}, expected {position})")
        position = end
    if position != data_bytes:
        raise ValueError(f"{what}: the tensors end at byte {position} of {data_bytes}; the file is cut short or too long")
    result = {name: (dtype, shape, start) for start, _, name, dtype, shape in found}
    for alias, name in (metadata if isinstance(metadata, dict) else {}).items():
        if isinstance(name, str) and name in table and alias not in table:
            result[alias] = result[name]
    return result


def open_safetensors(path: Path_) -> Weights:
    """Map a safetensors file.

    Returns
    -------
    dict
        name -> (memory map, dtype, shape, byte offset); nothing is copied.

    Raises
    ------
    FileNotFoundError, ValueError
        Where the file is missing, or is not a whole and consistent safetensors file.
    """
    mapped = map_file(path)
    length = int.from_bytes(mapped[:8], "little") if len(mapped) >= 8 else -1
    if not 0 < length <= min(MAX_HEADER_BYTES, len(mapped) - 8):
        raise ValueError(f"{path}: not a safetensors file, or cut short (the header's length is {length})")
    header = parse_header(mapped[8 : 8 + length], len(mapped) - 8 - length, str(path))
    return {name: (mapped, dtype, shape, 8 + length + start) for name, (dtype, shape, start) in header.items()}


def index_files(path: Path_) -> dict[str, list[str]]:
    """A sharded folder's index (``*.index.json``): file name -> the tensors said to be in it.

    File names must be plain names, so that an index cannot point outside its folder.
    """
    index = read_json(path)
    table = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(table, dict) or not table:
        raise ValueError(f"{path}: expected an object with a weight_map")
    files: dict[str, list[str]] = {}
    for tensor, name in table.items():
        if not isinstance(name, str) or name in {"", ".", ".."} or any(c in name for c in "/\\\0:"):
            raise ValueError(f"{path}: {str(name)[:120]!r} (for {tensor[:80]!r}) is not a plain file name")
        files.setdefault(name, []).append(tensor)
    return files


def join_shards(path: Path_, shards: Iterable[tuple[str, list[str], Stored]]) -> Stored:
    """The tensors of an index's shards (file name, names said to be in it, its tensors) as one dict."""
    joined: Stored = {}
    for name, expected, tensors in shards:
        for tensor in expected:
            if tensor not in tensors:
                raise ValueError(f"{path}: {name} does not hold {tensor[:120]!r}, which the index puts there")
            joined[tensor] = tensors[tensor]
        for tensor, weight in tensors.items():  # other names of tied ones, which an index leaves out
            joined.setdefault(tensor, weight)
    return joined


def write_safetensors(file: BinaryIO, weights: Stored, dtypes: dict[str, str]) -> None:
    """Write tensors as a safetensors file, one at a time, its data starting at a multiple of 64 bytes.

    Matrices in panels come first, called ``NAME.panels``; their sizes are multiples of 64 bytes, so each starts at one.
    (The safetensors package wants every tensor as a bytes object at once, which would hold the whole model twice.)

    Parameters
    ----------
    file : binary file, at its beginning
    weights : dict
        name -> tensor; one that is made is made when its turn comes.
    dtypes : dict
        name -> what it is stored as; a tensor is cast when its turn comes.
    """

    def place(name: str) -> tuple[bool, int, str]:
        return (panel_columns(dtypes[name]) == 0, -ITEM_SIZES[base_dtype(dtypes[name])], name)

    names = sorted(weights, key=place)
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in names:
        dtype = base_dtype(dtypes[name])
        shape = stored_shape(dtypes[name], shape_of(weights[name]))
        end = position + math.prod(shape) * ITEM_SIZES[dtype]
        entry = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        table[name + PANELS if panel_columns(dtypes[name]) else name] = entry
        position = end
    header = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-(len(header) + 8) % 64)
    file.write(struct.pack("<Q", len(header)) + header)
    for name in names:
        tensor = weight_of(weights[name])
        items = stored_array(cast(tensor, dtypes[name]))
        if items.size:
            file.write(items.reshape(-1).view(np.uint8).data)
        release_tensor(tensor)
