"""Files that torch.save wrote (.pth, .pt, .bin), read without torch and without running anything in them.

A file holds a pickle (see `pickles`), and beside it the storages that its tensors are views of. Storages of the
zip format are mapped in place where they are not compressed; the format before torch 1.6 is a pickle with the storages
behind it, and is mapped as well.
"""

from __future__ import annotations

import itertools
import mmap
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

from ..._base.small_files import Path_
from .._weights import ITEM_SIZES
from .pickle_names import MAX_PICKLE_BYTES, Storage, is_count
from .pickles import plain, read_pickle, storage_dtype, storage_identity
from .safetensors_files import map_file

#: A compressed archive may grow to this many times the file's size (or to 64 MiB, where that is more).
MAX_INFLATION = 32
_PICKLE = b"\x80"  # what a pickle of torch.save's begins with
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class _Archive:
    """The zip format: data.pkl, and data/NAME for each storage."""

    def __init__(self, mapped: mmap.mmap, path: Path_) -> None:
        self.mapped = mapped
        self.path = path
        self.zip = zipfile.ZipFile(_MapFile(mapped))
        self.members: dict[str, zipfile.ZipInfo] = {}
        self.inflated = 0
        self.storages: dict[str, Storage] = {}
        names = self.zip.infolist()
        pickles = [info.filename for info in names if info.filename.rsplit("/", 1)[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError("a zip archive that torch.save did not write (it holds no data.pkl, or several)")
        self.root = pickles[0][: -len("data.pkl")]
        for info in names:
            if info.filename in self.members:
                raise ValueError(f"the archive holds {info.filename[:120]!r} twice")
            self.members[info.filename] = info
        self.starts = {name: self.data_start(info) for name, info in self.members.items()}
        spans = sorted((self.starts[name], info.compress_size) for name, info in self.members.items())
        for (start, size), (following, _) in itertools.pairwise(spans):
            if start + size > following:
                raise ValueError("members of the archive overlap")
        order = self.read("byteorder", 16) if self.root + "byteorder" in self.members else b"little"
        if order not in (b"little", b"big"):
            raise ValueError(f"the byte order {order!r}")
        self.swap = order.decode() != sys.byteorder

    def data_start(self, info: zipfile.ZipInfo) -> int:
        """Where a member's bytes begin, from its local header."""
        start = info.header_offset
        header = self.mapped[start : start + 30]
        if start < 0 or len(header) != 30 or header[:4] != b"PK\x03\x04":
            raise ValueError(f"the member {info.filename[:120]!r} has no header")
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"the member {info.filename[:120]!r} is encrypted, or packed in an unknown way")
        start += 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        if info.compress_size < 0 or start + info.compress_size > len(self.mapped):
            raise ValueError(f"the member {info.filename[:120]!r} reaches past the file's end")
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            raise ValueError(f"the member {info.filename[:120]!r} states two sizes")
        return start

    def read(self, name: str, limit: int) -> bytes:
        """A small member, checked against its checksum."""
        info = self.members.get(self.root + name)
        if info is None or info.file_size > limit:
            raise ValueError(f"{name} is missing, or longer than {limit} bytes")
        buffer, start = self.content(info)
        data = bytes(buffer[start : start + info.file_size])
        if zlib.crc32(data) != info.CRC:
            raise ValueError(f"{name}: the checksum does not match")
        return data

    def content(self, info: zipfile.ZipInfo) -> tuple[Any, int]:
        """A member's bytes: in the map where it is stored, else inflated, within the stated limit."""
        start = self.starts[info.filename]
        if info.compress_type == zipfile.ZIP_STORED:
            return self.mapped, start
        self.inflated += info.file_size
        limit = max(64 << 20, MAX_INFLATION * len(self.mapped))
        if self.inflated > limit:
            raise ValueError(f"it grows to more than {limit} bytes when it is unpacked")
        inflater = zlib.decompressobj(-15)
        try:
            with memoryview(self.mapped) as view, view[start : start + info.compress_size] as packed:
                data = inflater.decompress(packed, info.file_size + 1)
        except zlib.error as err:
            raise ValueError(f"the member {info.filename[:120]!r} does not unpack: {err}") from None
        if len(data) != info.file_size or not inflater.eof or zlib.crc32(data) != info.CRC:
            raise ValueError(f"the member {info.filename[:120]!r} does not unpack to its stated size and checksum")
        return data, 0

    def fetch(self, info: zipfile.ZipInfo) -> tuple[Any, int]:
        """`content`, when a tensor's items are asked for: errors name the file then too."""
        try:
            return self.content(info)
        except ValueError as err:
            raise ValueError(f"{self.path}: {err}") from None

    def find_storage(self, identity: Any) -> Storage:
        _, kind, key, _, count = storage_identity(identity, 5)[:5]
        key, dtype = str(key), storage_dtype(kind)
        size = count * ITEM_SIZES[dtype]
        info = self.members.get(f"{self.root}data/{key}")
        if info is None or size > info.file_size:
            have = "missing" if info is None else f"{info.file_size} bytes"
            raise ValueError(f"the storage {key[:80]!r} is {have}, expected {size} bytes")
        storage = self.storages.get(key)
        if storage is None or storage.dtype != dtype or storage.bytes != size:
            member = info
            storage = self.storages[key] = Storage(dtype, size, lambda: self.fetch(member), self.swap)
        return storage

    def load(self) -> Any:
        data = self.read("data.pkl", MAX_PICKLE_BYTES)
        return plain(read_pickle(data, 0, len(data), self.find_storage)[0])


class _MapFile:
    """A memory map as the seekable file that zipfile reads its directory from, without a position shared by others."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self.mapped = mapped
        self.position = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self.position, len(self.mapped))[whence]
        if base + offset < 0:
            raise OSError("a position before the file's start")
        self.position = base + offset
        return self.position

    def read(self, count: int = -1) -> bytes:
        end = len(self.mapped) if count is None or count < 0 else min(len(self.mapped), self.position + count)
        data = self.mapped[self.position : end] if self.position < end else b""
        self.position += len(data)
        return data


class _Legacy:
    """The format before torch 1.6: magic number, version, system, the pickle, the storages' names, the storages."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self.mapped = mapped
        self.found: dict[str, Storage] = {}
        self.places: dict[str, int] = {}

    def read(self, position: int, find: Callable[[Any], Any] | None = None) -> tuple[Any, int]:
        return read_pickle(self.mapped, position, len(self.mapped), find or self.no_storage)

    @staticmethod
    def no_storage(identity: Any) -> Any:
        raise ValueError("a storage where none is expected")

    def find_storage(self, identity: Any) -> Any:
        identity = storage_identity(identity, 5)
        kind, key, _, count = identity[1:5]
        view = identity[5] if len(identity) > 5 else None
        key, dtype = str(key), storage_dtype(kind)
        size = count * ITEM_SIZES[dtype]
        whole = self.found.get(key)
        if whole is None:
            whole = self.found[key] = Storage(dtype, size, lambda: (self.mapped, self.places[key]), self.swap)
        elif whole.bytes != size or whole.dtype != dtype:
            raise ValueError(f"the storage {key[:80]!r} has two sizes")
        if view is None:
            return whole
        if not isinstance(view, tuple) or len(view) != 3 or not all(is_count(number) for number in view[1:]):
            raise ValueError("a view of a storage without offset and size")
        start, count = view[1] * ITEM_SIZES[dtype], view[2] * ITEM_SIZES[dtype]
        if start + count > size:
            raise ValueError("a view that reaches past its storage")
        parent = whole

        def part() -> tuple[Any, int]:
            buffer, offset = parent.buffer()
            return buffer, offset + start

        return Storage(dtype, count, part, swap=False)

    def load(self) -> Any:
        magic, position = self.read(0)
        if magic != _LEGACY_MAGIC:
            raise ValueError("not a file that torch.save wrote")
        version, position = self.read(position)
        system, position = self.read(position)
        if version != 1001 or not isinstance(system, dict):
            raise ValueError("a version of the format that is not 1001")
        self.swap = bool(system.get("little_endian", True)) != (sys.byteorder == "little")
        root, position = self.read(position, self.find_storage)
        keys, position = self.read(position)
        if not isinstance(keys, list) or not all(isinstance(key, (str, int)) for key in keys):
            raise ValueError("the storages have no list")
        if {str(key) for key in keys} != set(self.found) or len(keys) != len(self.found):
            raise ValueError("the list of storages does not match the tensors")
        for key in keys:
            storage = self.found[str(key)]
            count = int.from_bytes(self.mapped[position : position + 8], "big" if self.swap else "little")
            if count * ITEM_SIZES[storage.dtype] != storage.bytes or storage.bytes > len(self.mapped) - position - 8:
                raise ValueError(
                    f"the storage {str(key)[:80]!r} is cut short, or not of its stated size; is the download unfinished?"
                )
            self.places[str(key)] = position + 8
            position += 8 + storage.bytes
        return plain(root)


def read_torch_file(path: Path_) -> Any:
    """What ``torch.save`` wrote, as plain containers, numbers, text and `StoredTensor`.

    Nothing in the file is run, and no tensor's items are read before they are asked for.

    Raises
    ------
    FileNotFoundError
        Where there is no such file.
    ValueError
        Where the file is cut short or damaged, or asks for anything but tensors and plain containers; the message names
        what it asked for.
    """
    mapped = map_file(path)
    try:
        if mapped[:2] == b"PK":
            return _Archive(mapped, path).load()
        if mapped[:1] != _PICKLE:
            raise ValueError("neither a file of torch.save nor safetensors")
        return _Legacy(mapped).load()
    except (
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        OverflowError,
        struct.error,
        zlib.error,
    ) as err:
        raise ValueError(f"{path}: {err}") from None
    except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError, UnicodeError, RecursionError) as err:
        raise ValueError(f"{path}: not a whole file of torch.save: {err}; is the download unfinished?") from None
