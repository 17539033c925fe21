"""What reading a file must not do, and what watches that it does not."""

from __future__ import annotations

import gc
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUNNING = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "ctypes.dlopen",
)
CHANGING = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")
LIBRARIES = tuple({os.path.realpath(place) for place in (sys.prefix, sys.base_prefix, *sys.path[-3:]) if place})
MEMORY_MB = 384  # that one file of at most a megabyte may take, beyond what all before it took
DESCRIPTORS = 24  # that a thousand files may leave open: caches keep a few


class Found(Exception):
    """Something that reading a file must not do."""


@dataclass
class Kind:
    """A kind of files, or of requests.

    Attributes
    ----------
    seeds : list of bytes
        Contents to begin with; at least one of them is read without complaint.
    path : Path
        Where the damaged content is written before it is read.
    read : callable
        Reads it, and looks at what came of it.
    pack : callable, optional
        What is written is made of the damaged content by this, so that a checksum does not hide what lies below it.
    named : bool
        Whether each refusal has to name the file, or its folder.
    """

    seeds: list[bytes]
    path: Path
    read: Callable[[Path], object]
    pack: Callable[[bytes], bytes] = bytes
    named: bool = True


class Watch:
    """Raises where code is run, or a file outside of `inside` is written, while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.inside = "\0"
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and (event in RUNNING or self._is_foreign(event, arguments) or self._writes(event, arguments)):
            self.on = False
            raise Found(f"{event}: {arguments!r:.200}")

    @staticmethod
    def _is_foreign(event: str, arguments: tuple[Any, ...]) -> bool:
        """Whether code is run or made that is no installed library's; ast.literal_eval makes "<unknown>", and runs none."""
        if event not in ("exec", "compile"):
            return False
        name = arguments[1] if event == "compile" else getattr(arguments[0], "co_filename", "")
        name = os.fsdecode(name) if isinstance(name, (str, bytes)) else ""
        own = os.path.realpath(name).startswith((*LIBRARIES, str(Path(__file__).parent.parent)))
        return not (own or name.startswith("<frozen") or (event == "compile" and name == "<unknown>"))

    def _writes(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            mode, flags = arguments[1], arguments[2]
            text = isinstance(mode, str) and any(letter in mode for letter in "wax+")
            if not text and not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)):
                return False
        elif event not in CHANGING:
            return False
        where = arguments[0]
        return not isinstance(where, (str, bytes, os.PathLike)) or not os.path.realpath(os.fsdecode(where)).startswith(
            self.inside
        )


WATCH = Watch()
for encoding in (
    "cp437",
    "latin1",
    "utf-16",
    "utf-32",
    "utf-16-le",
    "utf-16-be",
    "utf-8-sig",
    "raw_unicode_escape",
    "idna",
    "ascii",
):
    "a".encode(encoding)  # a codec's module is imported (which runs code) when it is first used


def read_once(kind: Kind, data: bytes, slow: float) -> bool:
    """Whether a damaged content is read; False where it is refused as it should be. Raises for what must not be."""
    WATCH.on = False
    kind.path.write_bytes(kind.pack(data))
    most, began = _peak(), time.process_time()
    try:
        WATCH.on = True
        kind.read(kind.path)
        read = True
    except (ValueError, FileNotFoundError) as error:
        WATCH.on, read = False, False
        # A decoder's own error says nothing to a person: qavit's are plain ones, made of a sentence.
        if type(error) not in (ValueError, FileNotFoundError):
            raise Found(f"{type(error).__name__} instead of a ValueError") from error
        if kind.named and not any(name in str(error) for name in (kind.path.name, str(kind.path.parent))):
            raise Found(f"the refusal does not name the file: {str(error)[:200]!r}") from error
    finally:
        WATCH.on = False
    if time.process_time() - began > slow:
        raise Found(f"{time.process_time() - began:.1f} s of processor time")
    if _peak() - most > MEMORY_MB:
        raise Found(f"{_peak() - most:.0f} MB of memory")
    return read


class Descriptors:
    """Counts, now and then, what is left open."""

    def __init__(self) -> None:
        self._calls, self._known = 0, 0

    def look(self) -> None:
        """To be called after each file."""
        self._calls += 1
        if self._calls % 1000:
            return
        count = self._open()
        if self._known and count > self._known + DESCRIPTORS:
            gc.collect()
            if (count := self._open()) > self._known + DESCRIPTORS:
                raise Found(f"{count - self._known} descriptors were left open by a thousand files")
        self._known = self._known or count

    @staticmethod
    def _open() -> int:
        return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
