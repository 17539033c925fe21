"""What a model has made of pictures that it was shown lately, by their content."""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from ..images import Seen
    from ._picture_folder import PictureFolder

#: Bytes: some hundred pictures of a B/16, five of BLIP's.
DEFAULT_LIMIT = 256_000_000
#: Bytes of an entry beside its arrays: a digest, a key, what holds them.
OVERHEAD = 512


class CacheInfo(NamedTuple):
    """What a model's cache of pictures holds, and how often it helped.

    Attributes
    ----------
    hits, misses : int
        Passes of one picture that found something to begin with, and that did not.
    entries, bytes : int
        What is kept now.
    limit : int
        Bytes that are kept at most; 0: nothing is.
    disk_hits : int
        Entries that were read from the folder.
    disk_entries, disk_bytes, disk_limit : int
        What is in the folder now, of whatever model, and how many bytes may be; 0 without a folder.
    """

    hits: int
    misses: int
    entries: int
    bytes: int
    limit: int
    disk_hits: int = 0
    disk_entries: int = 0
    disk_bytes: int = 0
    disk_limit: int = 0


class PictureCache:
    """The entries that were used last, as many as fit; safe to use from many threads, and after a fork.

    What is kept belongs to one core on one device: a model that moves begins with a new one. Whoever holds an entry keeps
    it alive, whatever becomes of it here.

    Parameters
    ----------
    limit : int
        Bytes.

    Attributes
    ----------
    folder : PictureFolder or None
        Where entries are kept as files, too.
    """

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()
        _caches.add(self)
        self._limit = limit
        self.folder: Optional[PictureFolder] = None
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._bytes = self._hits = self._misses = 0

    @property
    def limit(self) -> int:
        """Bytes that are kept at most."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        with self._lock:
            self._limit = limit
            self._shrink()

    @property
    def largest(self) -> int:
        """Bytes of the largest entry that can be kept anywhere; 0: nothing is kept."""
        return max(self._limit, 0 if self.folder is None else self.folder.largest)

    def __contains__(self, key: Hashable) -> bool:
        with self._lock:
            return key in self._entries

    def get(self, key: Hashable) -> Any:
        """The entry in memory, which counts as used now, or None."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return None
            self._entries.move_to_end(key)
            return found[0]

    def find(self, key: Hashable, made_of: Optional[Callable[[Any], tuple[Any, int]]] = None) -> Any:
        """The entry, in memory or in the folder, or None; `made_of` makes it of what the folder has, and tells its bytes."""
        found = self.get(key)
        if found is None and self.folder is not None:
            kept = self.folder.get(key)
            if kept is not None:
                found, size = (kept, bytes_of(kept)) if made_of is None else made_of(kept)
                self.put(key, found, size)
        return found

    def put(self, key: Hashable, value: Any, size: int, on_disk: Any = None) -> None:
        """Add or replace an entry of so many bytes, unless it is larger than all that is kept; nobody may write to it.

        `on_disk`: what of it a folder takes, arrays in dicts and tuples; None: nothing.
        """
        if on_disk is not None and self.folder is not None:
            self.folder.put(key, on_disk)
        size += OVERHEAD
        with self._lock:
            if size > self._limit:
                return
            old = self._entries.pop(key, None)
            self._bytes += size - (0 if old is None else old[1])
            self._entries[key] = value, size
            self._shrink()

    def count(self, hit: bool) -> None:
        """Count a pass that began with something, or with nothing."""
        with self._lock:
            self._hits += hit
            self._misses += not hit

    def _shrink(self) -> None:
        while self._bytes > self._limit:
            _, (_, size) = self._entries.popitem(last=False)
            self._bytes -= size

    def info(self) -> CacheInfo:
        """What is kept, and how often it helped."""
        disk = (0, 0, 0, 0) if self.folder is None else self.folder.info()
        with self._lock:
            return CacheInfo(self._hits, self._misses, len(self._entries), self._bytes, self._limit, *disk)

    def clear(self, disk: bool = False) -> None:
        """Forget all entries, and begin to count anew; with `disk` also those of this model in the folder."""
        with self._lock:
            self._entries.clear()
            self._bytes = self._hits = self._misses = 0
        if disk and self.folder is not None:
            self.folder.clear()

    def emptied(self) -> PictureCache:
        """A new one with the same limit, and no folder."""
        return PictureCache(self._limit)


_caches: weakref.WeakSet[PictureCache] = weakref.WeakSet()


def _renew_locks() -> None:
    """In a forked child: another thread, that is not there, may have held a lock, in the middle of a change."""
    for cache in list(_caches):
        if cache._lock.locked():
            cache._entries, cache._bytes = OrderedDict(), 0
        cache._lock = threading.Lock()
        if cache.folder is not None:
            cache.folder.renew_locks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


def arrays_in(value: Any) -> Iterator[npt.NDArray[Any]]:
    """Those in dicts and tuples of dicts and tuples."""
    if isinstance(value, np.ndarray):
        yield value
        return
    for part in value.values() if isinstance(value, dict) else value:
        yield from arrays_in(part)


def bytes_of(value: Any) -> int:
    """Of all arrays in it."""
    return sum(array.nbytes for array in arrays_in(value))


def digest_of(seen: Seen) -> bytes:
    """A name for the content of one picture as the core takes it: its pixel values, or its bytes and how they become such.

    SHA-256, for which CPUs have instructions: of those that tell contents apart for certain, the fastest of Python's.
    """
    values: npt.NDArray[Any]
    about: tuple[Any, ...]
    if isinstance(seen, np.ndarray):
        values, about = seen, seen.shape
    else:
        values, about = seen.picture, (seen.picture.shape, seen.preprocessing, seen.size)
    found = hashlib.sha256(repr(about).encode())
    found.update(np.ascontiguousarray(values).data)
    return found.digest()
