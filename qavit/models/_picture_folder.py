"""What models have made of pictures, in a folder: for processes to come, and for others beside this one."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import platform
import re
import stat
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

import numpy as np
import numpy.typing as npt

from .. import _core
from .._base.about import build_info
from .._base.files import PathLike, remove_leftovers, whole_file
from .._base.warnings import PictureCacheWarning, warn
from ..checkpoints._weights import Origin, check_unchanged, origin_of, origins, stored_array

if TYPE_CHECKING:
    from ..checkpoints._source import ModelSource

#: Bytes of a folder: 1600 pictures of an L/14@336 or of BLIP's, 6000 of a B/16.
DEFAULT_LIMIT = 4_000_000_000
#: What begins a file; another number means that other versions cannot read it.
FORMAT = b"qavit kept 0001\n"
NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{32}\.kept")
DTYPE = re.compile(r"[<>|=][fiub][1-8]")
ALIGNMENT = 64
#: An entry may take so much of a folder, and so much of it is made free beyond need, so that it is seldom gone through.
LARGEST_SHARE, SLACK_SHARE = 4, 16
CHUNK = 1 << 24
#: Nanoseconds: a file that was written to a moment ago may be again without its time showing it.
SETTLED = 2_000_000_000


class FolderInfo(NamedTuple):
    """What a folder holds, whoever wrote it, and how often this model read of it."""

    hits: int
    entries: int
    bytes: int
    limit: int


class _File(NamedTuple):
    used: int
    size: int
    path: str


class PictureFolder:
    """Entries as files written whole, the ones used last, as many as fit; many threads and processes may share one.

    A file that is cut, changed, of another model, build or kind of CPU counts as none. Where the folder cannot be written,
    that is said once, and what lies in it is read on.

    Parameters
    ----------
    path : str or path
        Made where it is missing.
    limit : int
        Bytes of all files there. Several processes that write at once may go past it by a sixteenth each for a moment.
    identify : callable
        Given this object: a name for all, beside the picture, that an entry's bits depend on. Called once, when the first
        entry is looked for.
    """

    def __init__(self, path: PathLike, limit: int, identify: Callable[[PictureFolder], str]) -> None:
        self.path, self.limit = Path(os.path.abspath(path)), limit
        self._identify = identify
        self._model: Optional[str] = None
        self._writes = True
        self._hits = 0
        self._known_bytes, self._unseen_bytes = 0, limit + 1  # of the folder, and since it was gone through
        self.renew_locks()

    def renew_locks(self) -> None:
        """Of a forked child, where another thread may have held them."""
        self._lock, self._naming = threading.Lock(), threading.Lock()

    @property
    def largest(self) -> int:
        """Bytes of the largest entry that is kept."""
        return self.limit // LARGEST_SHARE

    def get(self, key: Hashable) -> Any:
        """An entry, its arrays read-only, or None."""
        found = self.read(self._own(), key)
        if found is not None:
            with self._lock:
                self._hits += 1
        return found

    def put(self, key: Hashable, value: Any) -> None:
        """Write an array, or a dict or tuple of such, in place of what is there; nothing where that fails."""
        self.write(self._own(), key, value)

    def read(self, owner: str, key: Hashable) -> Any:
        """As `get`, of what `owner` names."""
        place, name = self._place(owner, key)
        try:
            state = os.stat(place)
            if not stat.S_ISREG(state.st_mode) or state.st_size > self.limit:
                return None
            data = np.fromfile(place, np.uint8)
        except OSError:
            return None
        data.setflags(write=False)
        found = _unpacked(data, name)
        if found is not None:
            with suppress(OSError):  # not ours to write: then it seems older than it is
                os.utime(place)
        return found

    def write(self, owner: str, key: Hashable, value: Any) -> None:
        """As `put`, of what `owner` names."""
        if not self._writes:
            return
        place, name = self._place(owner, key)
        parts = _packed(name, value)
        size = sum(len(part) for part in parts)
        if size > self.largest:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._make_room(size)
            with whole_file(place) as file:
                for part in parts:
                    file.write(part)
        except OSError as error:
            self._writes = False
            why = error.strerror or str(error)
            warn(PictureCacheWarning, f"cache_dir: {self.path} cannot be written ({why}), so nothing more is kept there")

    def info(self) -> FolderInfo:
        """What is there, and how often it was read."""
        files = list(self._files())
        return FolderInfo(self._hits, len(files), sum(file.size for file in files), self.limit)

    def clear(self) -> None:
        """Remove this model's entries, begin to count anew, and try again to write."""
        own = _short(self._own())
        for file in self._files():
            if os.path.basename(file.path).startswith(own):
                _remove(file.path)
        with self._lock:
            self._hits, self._writes, self._unseen_bytes = 0, True, self.limit + 1

    def _own(self) -> str:
        with self._naming:
            if self._model is None:
                self._model = self._identify(self)
            return self._model

    def _place(self, owner: str, key: Hashable) -> tuple[str, str]:
        """Where an entry lies, and its whole name."""
        name = hashlib.sha256(f"{owner} {key!r}".encode()).hexdigest()
        return os.path.join(self.path, f"{_short(owner)}-{name[:32]}.kept"), name

    def _files(self) -> Iterator[_File]:
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    if NAME.fullmatch(entry.name):
                        try:
                            state = entry.stat(follow_symlinks=False)
                        except OSError:  # another process has just removed it
                            continue
                        yield _File(state.st_mtime_ns, state.st_size, entry.path)
        except OSError:
            return

    def _make_room(self, size: int) -> None:
        """Remove what was not used for longest, where `size` bytes more are too many."""
        with self._lock:
            self._known_bytes += size
            self._unseen_bytes += size
            if self._known_bytes <= self.limit and self._unseen_bytes <= self.limit // SLACK_SHARE:
                return
            if self._unseen_bytes > self.limit:
                remove_leftovers(self.path)
            files = sorted(self._files())
            total = sum(file.size for file in files) + size
            if total > self.limit:
                for file in files:
                    if total <= self.limit - self.limit // SLACK_SHARE:
                        break
                    _remove(file.path)
                    total -= file.size
            self._known_bytes, self._unseen_bytes = total, 0


def _remove(path: str) -> None:
    with suppress(OSError):  # another process was quicker, or this one may not
        os.unlink(path)


def _short(owner: str) -> str:
    return hashlib.sha256(owner.encode()).hexdigest()[:16]


# ---- files ----


def _packed(name: str, value: Any) -> list[Any]:
    """A file's parts: format, SHA-256 of what follows, size of the header, header, arrays."""
    arrays: list[npt.NDArray[Any]] = []
    tree = _described(value, arrays)
    about = [[array.dtype.str, list(array.shape)] for array in arrays]
    header = json.dumps({"name": name, "tree": tree, "arrays": about}, default=int).encode()
    parts: list[Any] = [len(header).to_bytes(8, "little"), header]
    size = len(FORMAT) + hashlib.sha256().digest_size + 8 + len(header)
    for array in arrays:
        parts.append(bytes(-size % ALIGNMENT))
        parts.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        size += len(parts[-2]) + array.nbytes
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return [FORMAT, digest.digest(), *parts]


def _unpacked(data: npt.NDArray[np.uint8], name: str) -> Any:
    """The value in a file's bytes, views of these; None where they are not whole, or of another name."""
    start = len(FORMAT) + hashlib.sha256().digest_size
    if data[: len(FORMAT)].tobytes() != FORMAT:
        return None
    if hashlib.sha256(data[start:].data).digest() != data[len(FORMAT) : start].tobytes():
        return None
    try:
        at = start + 8 + int.from_bytes(data[start : start + 8].tobytes(), "little")
        header = json.loads(data[start + 8 : at].tobytes())
        if header["name"] != name:
            return None
        arrays = []
        for kind, shape in header["arrays"]:
            at += -at % ALIGNMENT
            # Of other texts NumPy would have Python compile a part.
            if DTYPE.fullmatch(str(kind)) is None or min(shape, default=0) < 0:
                return None
            dtype = np.dtype(str(kind))
            size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            arrays.append(data[at : at + size].view(dtype).reshape(shape))
            at += size
        return _rebuilt(header["tree"], arrays)
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):  # whole, but not written by this module
        return None


def _described(value: Any, arrays: list[npt.NDArray[Any]]) -> Any:
    """A value's structure, with numbers in place of its arrays, which are added to `arrays`."""
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return len(arrays) - 1
    if isinstance(value, dict):
        return {"dict": [[key, _described(part, arrays)] for key, part in value.items()]}
    return {"tuple": [_described(part, arrays) for part in value]}


def _rebuilt(tree: Any, arrays: list[npt.NDArray[Any]]) -> Any:
    if isinstance(tree, int):
        return arrays[tree]
    if "dict" in tree:
        return {key: _rebuilt(part, arrays) for key, part in tree["dict"]}
    return tuple(_rebuilt(part, arrays) for part in tree["tuple"])


# ---- what bits depend on ----


@cache
def _core_digest() -> str:
    """Of the compiled core: another build may add in another order."""
    return hashlib.sha256(Path(str(_core.__file__)).read_bytes()).hexdigest()


def model_digest(source: ModelSource, precision: str, folder: PictureFolder) -> str:
    """A name for a model on this machine's CPU: weights, sizes, precision, the core and the kernels that compute.

    Weights that lie in mapped files are told by the digests of these, which `folder` remembers beside path, size, time and
    inode: the next process reads none of them. Others were made in memory, and are gone through.
    """
    build = build_info()
    about = {
        "core": _core_digest(),
        "machine": platform.machine(),
        "build": [build[name] for name in ("version", "blas", "blas_kernels", "cpu_features", "kernels", "panel_columns")],
        "model": [source.architecture, source.vision, source.text, precision],
    }
    found = hashlib.sha256(json.dumps(about, sort_keys=True, default=repr).encode())
    files: dict[int, str] = {}
    for name, weight in sorted(source.weights.items()):
        buffer, dtype, shape, offset = weight
        origin = origin_of(buffer)
        if origin is None:
            offset, content = 0, hashlib.sha256(np.ascontiguousarray(stored_array(weight)).data).hexdigest()
        else:
            if id(buffer) not in files:
                files[id(buffer)] = _file_digest(buffer, origin, folder)
            content = files[id(buffer)]
        found.update(repr((name, dtype, tuple(shape), offset, content)).encode())
    check_unchanged(origins(source.weights))
    return found.hexdigest()


def _file_digest(mapped: mmap.mmap, origin: Origin, folder: PictureFolder) -> str:
    """SHA-256 of a mapped file, remembered."""
    key = (origin.path, origin.size, origin.written, origin.inode)
    known = folder.read("files", key)
    if isinstance(known, np.ndarray):
        return known.tobytes().hex()
    check_unchanged((origin,))
    digest, view = hashlib.sha256(), memoryview(mapped)
    for start in range(0, len(view), CHUNK):
        digest.update(view[start : start + CHUNK])
        if hasattr(mmap, "MADV_DONTNEED"):  # so that a large file does not fill this process's memory
            mapped.madvise(mmap.MADV_DONTNEED, start, min(CHUNK, len(view) - start))
    check_unchanged((origin,))
    if abs(time.time_ns() - origin.written) > SETTLED:
        folder.write("files", key, np.frombuffer(digest.digest(), np.uint8))
    return digest.hexdigest()
