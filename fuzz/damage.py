"""Damage by chance: to bytes, and to what a JSON text says."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

TOKENS = [
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"tR",
    b")R", b"R", b"b", b"\x81", b"\x93", b"Q", b"(", b"t", b"}", b"]", b"2", b"\x85", b"\x86", b"h\x00", b"q\x00",
    b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"\x8b\xff\xff\xff\x7f",
    b"X\xff\xff\xff\xff", b"\x95" + b"\xff" * 8, b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06",
    b"PK\x06\x07", b"\xff" * 8, bytes(8), b"../", b'"', b"{", b"[", b"]}", b'"shape"', b'"F32"', b'"data_offsets"', b"-1",
    b"1e999", b"NaN", b"18446744073709551616", b"null", b"true", b"\\ud800", b"1" + b"0" * 400, b"\x1f\x8b\x08", b"\r\n",
    b"\t", b";", b'""', b",", b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"data:;base64,", b"data:,", b"%00", b"=", b"==", b"\x7f",
    b"HTTP/1.1", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"Expect: 100-continue\r\n", b"Host: ",
]  # fmt: skip
ODD = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    255,
    1 << 31,
    1 << 63,
    1 << 64,
    10**400,
    0.5,
    -0.0,
    1e308,
    1e-320,
    float("inf"),
    float("nan"),
    "",
    "0",
    "a",
    "\0",
    "\ud800",
    "\u2028",
    "../../x",
    "x" * 5000,
    "{0}",
    "%s",
    [],
    [[]],
    [0],
    [None],
    {},
    {"": 0},
    {"a": {"b": []}},
]
DEEP = 3000


def damaged(chance: random.Random, contents: list[bytes]) -> bytes:
    """One of the contents, damaged."""
    data = chance.choice(contents)
    if chance.random() < 0.4 and (said := damaged_json(chance, data)) is not None:
        return said
    return damaged_bytes(chance, data, contents)


def damaged_json(chance: random.Random, data: bytes) -> bytes | None:
    """A JSON text, or one of its lines, that says something else; None for what is no JSON."""
    if data[:1] not in (b"{", b"["):
        return None
    try:
        return _dumped(_changed(chance, json.loads(data)))
    except (ValueError, RecursionError):
        pass
    lines = data.split(b"\n")
    at = chance.randrange(len(lines))
    try:
        lines[at] = _dumped(_changed(chance, json.loads(lines[at])))
    except (ValueError, RecursionError):
        return None
    return b"\n".join(lines)


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode().replace(b'"@DEEP@"', b"[" * DEEP + b"]" * DEEP)


def _changed(chance: random.Random, whole: Any) -> Any:
    """The value with one to three of its parts replaced, removed, repeated or swapped for another part."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places: list[tuple[Any, Any]] = []
        waiting = [whole]
        while waiting:
            at = waiting.pop()
            keys = list(at) if isinstance(at, dict) else range(len(at)) if isinstance(at, list) else ()
            places += [(at, key) for key in keys]
            waiting += [at[key] for key in keys if isinstance(at[key], (dict, list))]
        if not places:
            return copy.deepcopy(chance.choice(ODD))
        holder, key = chance.choice(places)
        way = chance.randrange(6)
        if way == 0:
            del holder[key]
        elif way == 1:
            other, its = chance.choice(places)
            holder[key] = copy.deepcopy(other[its]) if _has(other, its) else None
        elif way == 2 and isinstance(holder, dict):
            holder[chance.choice(("id", "\ud800", "", "x" * 300, str(key) + "s"))] = holder.pop(key)
        elif way == 3 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] = chance.choice(
                (-holder[key], holder[key] + 1, holder[key] * 1000, holder[key] * 3, str(holder[key]))
            )
        else:
            holder[key] = "@DEEP@" if chance.random() < 0.03 else copy.deepcopy(chance.choice(ODD))
    return whole


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def damaged_bytes(chance: random.Random, content: bytes, contents: list[bytes]) -> bytes:
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 3, 5, 12))):
        position = chance.randrange(len(data) + 1)
        kind = chance.randrange(8)
        if kind == 0 and data:
            data[position % len(data)] ^= 1 << chance.randrange(8)
        elif kind == 1 and data:
            data[position % len(data)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        elif kind == 2:
            del data[position : position + chance.choice((1, 2, 4, 30))]
        elif kind == 3:
            data[position:position] = chance.choice(TOKENS)
        elif kind == 4:
            token = chance.choice(TOKENS)
            data[position : position + len(token)] = token
        elif kind == 5:
            data[position:position] = data[position : position + chance.choice((1, 8, 100))] * chance.choice((1, 2, 50))
        elif kind == 6:
            other = chance.choice(contents)
            start = chance.randrange(len(other)) if other else 0
            data[position : position + 20] = other[start : start + 20]
        elif chance.random() < 0.2:
            del data[position:]
        if len(data) > 1 << 20:
            del data[1 << 20 :]
    return bytes(data)
