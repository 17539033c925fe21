"""Small files read whole: JSON without duplicate keys, and what a large-file pointer looks like."""

from __future__ import annotations

import json
import mmap
import os
from typing import Any, Union

Path_ = Union[str, "os.PathLike[str]"]
_POINTER = b"version https://git-lfs"
MAX_JSON_BYTES = 64 << 20


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the name {key[:80]!r} appears twice")
            seen.add(key)
    return result


def parse_json(text: bytes, what: str) -> Any:
    """JSON that may be hostile: bad syntax, bad UTF-8, duplicate names and deep nesting are a ValueError."""
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except RecursionError:
        raise ValueError(f"{what}: the JSON is nested too deeply") from None
    except ValueError as err:
        raise ValueError(f"{what}: not the JSON that was expected: {err}") from None


def read_json(path: Path_, limit: int = MAX_JSON_BYTES, *, may_lack: bool = False) -> Any:
    """A JSON file of at most ``limit`` bytes; where it ``may_lack`` and there is none, None."""
    try:
        return parse_json(read_bytes(path, limit), str(path))
    except FileNotFoundError:
        if may_lack:
            return None
        raise


def read_json_object(path: Path_) -> dict[str, Any]:
    """A JSON file that holds an object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def refuse_pointer(data: bytes | mmap.mmap, path: Path_) -> None:
    """Raise where a file is what a clone without Git LFS leaves in its place."""
    if data[: len(_POINTER)] == _POINTER:
        raise ValueError(f"{path}: a pointer of Git LFS, not the file itself; fetch it with: git lfs pull")


def read_bytes(path: Path_, limit: int = MAX_JSON_BYTES) -> bytes:
    """A whole file of at most ``limit`` bytes."""
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    refuse_pointer(data, path)
    if len(data) > limit:
        raise ValueError(f"{path}: longer than the {limit} bytes that are expected at most")
    return data
