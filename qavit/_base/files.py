"""Writing files whole: a reader, or a run that is taken up again, never sees half of one."""

from __future__ import annotations

import os
import platform
import re
import secrets
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Union

from .system import is_running, sync_folder

PathLike = Union[str, "os.PathLike[str]"]


def write_whole(path: PathLike, data: bytes) -> Path:
    """Write a file so that it is there whole or not at all.

    Parameters
    ----------
    path : str or path
        Where to; an existing file is replaced, or what a symbolic link points to. Its folder must exist.
    data : bytes
        All of the content.

    Returns
    -------
    pathlib.Path
        The file written.

    Raises
    ------
    FileNotFoundError
        When the folder does not exist.
    IsADirectoryError
        When `path` is a folder.
    """
    with whole_file(path) as file:
        file.write(data)
    return Path(path)


@contextmanager
def whole_file(path: PathLike, durable: bool = False) -> Iterator[BinaryIO]:
    """A file to write into that takes its name at the end of the block, and is gone if the block fails.

    Parameters
    ----------
    path : str or path
        As for `write_whole`.
    durable : bool
        Have the disk hold all of it, and then its name, before the block ends.

    Yields
    ------
    binary file
        Hidden beside `path`, named ``.NAME.MACHINE-PROCESS-RANDOM.part``.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path: the folder {str(target.parent)!r} does not exist; create it first")
    if target.is_dir():
        raise IsADirectoryError(f"path: {str(target)!r} is a folder, expected the name of a file")
    name = target.name if len(os.fsencode(target.name)) <= 200 else "long-name"  # a name has room for 255 bytes
    part = target.with_name(f".{name}.{_HERE}-{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with open(part, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, target)
        if durable:
            sync_folder(target.parent)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(part)):
            raise
        # What could not be written is, to the caller, the file that was asked for.
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """What is written meanwhile is this file's: an error that names none, such as that of a full disk, names it."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def make_folder(path: PathLike, argument: str) -> Path:
    """The folder, made where it is missing, its parents too; NotADirectoryError where a file has its name."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{argument}: {str(folder)!r} is a file, expected a folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def absolute_paths(parts: Mapping[str, Any]) -> dict[str, Any]:
    """What of a model's parts is a file or folder here, as an absolute path; "demo" is the bundled model, not a folder."""
    names = ("path", "model", "checkpoint", "vision", "text", "tokenizer", "reader")
    named = {name: parts[name] for name in names if parts.get(name) not in (None, "demo")}
    return {name: os.path.abspath(value) for name, value in named.items() if os.path.exists(value)}


#: This machine: folders may be shared, and process numbers are each machine's own.
_HERE = f"{zlib.crc32(platform.node().encode()):08x}"


def remove_leftovers(folder: PathLike) -> None:
    """Remove what processes of this machine that were killed while they wrote into a folder have left there."""
    pattern = re.compile(rf"\..+\.{_HERE}-(\d+)-[0-9a-f]{{8}}\.part")
    for entry in Path(folder).iterdir():
        match = pattern.fullmatch(entry.name)
        if match and not is_running(int(match[1])):
            entry.unlink(missing_ok=True)
