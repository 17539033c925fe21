"""Files of torch.save, put together by hand: what torch itself would never write."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile

STOP = b"."


def name(module: str, attribute: str) -> bytes:
    """The pickle operation that names something."""
    return f"c{module}\n{attribute}\n".encode()


def value(plain: object) -> bytes:
    """The pickle operations that push a plain value."""
    return pickle.dumps(plain, 2)[2:-1]


def call(function: bytes, *arguments: bytes) -> bytes:
    """The pickle operations that call a named function."""
    return function + b"(" + b"".join(arguments) + b"tR"


def storage(key="0", items: object = 4, kind="FloatStorage", extra: bytes = b"") -> bytes:
    """The pickle operations that push a storage of an archive's member data/KEY."""
    return b"(" + value("storage") + name("torch", kind) + value(key) + value("cpu") + value(items) + extra + b"tQ"


def tensor(offset: object = 0, size: object = (4,), stride: object = (1,), of: bytes | None = None) -> bytes:
    """The pickle operations that push a tensor."""
    ordered = call(name("collections", "OrderedDict"))
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        storage() if of is None else of, value(offset), value(size), value(stride), value(False), ordered,
    )  # fmt: skip


def entries(**values: bytes) -> bytes:
    """A pickle of a dict."""
    items = b"".join(value(key) + item for key, item in values.items())
    return b"\x80\x02}(" + items + b"u" + STOP


def archive(
    pickled: bytes,
    members: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
    root: str = "archive",
    others: dict[str, bytes] | None = None,
) -> bytes:
    """A zip archive as torch.save lays it out; data/0 holds four float32 where no members are given."""
    if members is None:
        members = {"0": struct.pack("<4f", 1, 2, 3, 4)}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as packed:
        packed.writestr(f"{root}/data.pkl", pickled)
        for key, data in members.items():
            packed.writestr(f"{root}/data/{key}", data)
        for path, data in (others or {}).items():
            packed.writestr(path, data)
    return file.getvalue()


def legacy(pickled: bytes, storages: dict[str, tuple[int, bytes]]) -> bytes:
    """The format before torch 1.6; ``storages``: key -> (stated number of items, bytes)."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system))
    tail = b"".join(struct.pack("<q", count) + data for count, data in storages.values())
    return head + pickled + pickle.dumps(list(storages), 2) + tail
