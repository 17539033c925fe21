"""Zip and tar archives that may be hostile: what is wrong with one is a ValueError, and memory goes by what it says."""

from __future__ import annotations

import contextlib
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, BinaryIO, Union

Path_ = Union[str, "os.PathLike[str]"]
#: What the standard library raises for a broken archive, beside a ValueError of its own. RuntimeError: an encrypted member.
BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError, NotImplementedError,
    RuntimeError, OverflowError, OSError, ValueError, MemoryError,
)  # fmt: skip


@contextlib.contextmanager
def broken_archives(said: str) -> Iterator[None]:
    """What is wrong with an archive becomes a ValueError that begins with `said`; a file that is not there stays one."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except BROKEN as error:
        raise ValueError(f"{said}: {str(error) or type(error).__name__}") from None


def is_zip(path: Path_) -> bool:
    """Whether a file is a zip archive, also where it is a broken one, at which the standard library's own test may raise."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True


def files_of(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The members that are no folders."""
    return [one for one in archive.infolist() if not one.filename.endswith("/")]


def open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    """A member, open for reading.

    By bzip2 and LZMA a kilobyte may stand for a gigabyte, which the standard library unpacks at once: they are refused.
    """
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename[:80]!r} is packed in another way than zip's usual one, deflate; pack it anew")
    return archive.open(info)


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A member's content: as many bytes as the archive states, and no more than these are unpacked.

    Raises
    ------
    ValueError, and those of `BROKEN`
        It is cut short, damaged, encrypted, or packed in another way than deflate.
    """
    with open_member(archive, info) as file:
        data = file.read(info.file_size)
    if len(data) != info.file_size:
        raise ValueError(f"{info.filename[:80]!r} has {len(data)} bytes, not the {info.file_size} that are stated")
    return data


class _Clamped:
    """A tar file that is never asked for more than it has: a read of many bytes takes their memory before it finds them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size = file, os.fstat(file.fileno()).st_size
        self.tell, self.close = file.tell, file.close

    def read(self, count: int = -1) -> bytes:
        left = max(0, self._size - self._file.tell())
        if count > max(left, tarfile.BLOCKSIZE):  # else older Pythons take a cut header for a whole one
            raise tarfile.ReadError("unexpected end of data")
        return self._file.read(left if count < 0 else min(count, left))

    def seek(self, offset: int, whence: int = 0) -> int:
        # Behind its end there is nothing; the system refuses numbers that are too large.
        return self._file.seek(min(offset, self._size + 1) if whence == 0 else offset, whence)


@contextlib.contextmanager
def open_tar(path: Path_) -> Iterator[tarfile.TarFile]:
    """An uncompressed tar file; go through it by `tar_members`."""
    with open(path, "rb") as file, tarfile.open(fileobj=_Clamped(file), mode="r:") as archive:  # type: ignore[call-overload]
        yield archive


def is_tar(path: Path_) -> bool:
    """Whether a file begins as an uncompressed tar file does."""
    try:
        with open_tar(path):
            return True
    except tarfile.TarError:
        return False


def tar_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of a tar file in order, none of which is remembered.

    A size below zero would lead back to a member that has been, without end: it is a ValueError. So is a header that is
    damaged, which to `tarfile` is the archive's end, unless it is the first.
    """
    before = -1
    for member in archive:
        archive.members = []  # type: ignore[attr-defined]  # else every member ever read is remembered
        if member.size < 0 or member.offset <= before or member.offset_data < member.offset:
            raise ValueError(f"the member {member.name[:80]!r} has no possible place")
        before = member.offset
        yield member
    file = archive.fileobj
    assert file is not None
    file.seek(archive.offset)
    if any(file.read(tarfile.BLOCKSIZE)):
        raise ValueError(f"the header at byte {archive.offset} is damaged")
