"""What a model has made of pictures that it was shown lately, by their content."""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from ..images import Seen

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
    """

    hits: int
    misses: int
    entries: int
    bytes: int
    limit: int


class PictureCache:
    """The entries that were used last, as many as fit; safe to use from many threads, and after a fork.

    What is kept belongs to one core on one device: a model that moves begins with a new one. Whoever holds an entry keeps
    it alive, whatever becomes of it here.

    Parameters
    ----------
    limit : int
        Bytes.
    """

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()
        _caches.add(self)
        self._limit = limit
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

    def __contains__(self, key: Hashable) -> bool:
        with self._lock:
            return key in self._entries

    def get(self, key: Hashable) -> Any:
        """The entry, which counts as used now, or None."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return None
            self._entries.move_to_end(key)
            return found[0]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Add or replace an entry of so many bytes, unless it is larger than all that is kept; nobody may write to it."""
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
        with self._lock:
            return CacheInfo(self._hits, self._misses, len(self._entries), self._bytes, self._limit)

    def clear(self) -> None:
        """Forget all entries, and begin to count anew."""
        with self._lock:
            self._entries.clear()
            self._bytes = self._hits = self._misses = 0

    def emptied(self) -> PictureCache:
        """A new one with the same limit."""
        return PictureCache(self._limit)


_caches: weakref.WeakSet[PictureCache] = weakref.WeakSet()


def _renew_locks() -> None:
    """In a forked child: another thread, that is not there, may have held a lock, in the middle of a change."""
    for cache in list(_caches):
        if cache._lock.locked():
            cache._entries, cache._bytes = OrderedDict(), 0
        cache._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


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
