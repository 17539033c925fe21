"""A vision tower that goes on from what it has made of a picture before."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

import numpy as np
import numpy.typing as npt

from .. import _core
from .._base.types import FloatArray
from ._picture_cache import PictureCache, arrays_in, bytes_of, digest_of

if TYPE_CHECKING:
    from ..images import CorePreprocessing, Seen

Attention = Sequence[tuple[int, str]]
#: Questions as `_core.Vit.forward` takes them: pair_image, instruct, instruct_length.
Pairs = tuple[npt.NDArray[np.int32], FloatArray, npt.NDArray[np.int32]]
NO_PAIRS = (None, None, None)
#: The key of queries, keys and values, and what the core calls them.
QKV = "qkv"
#: They are kept where they are no more than one part in so many of all that is: states of other pictures save far more.
OTHERS = 8


class Wanted(NamedTuple):
    """What is wanted of a pass: see `_core.Vit.forward`."""

    attention: tuple[tuple[int, str], ...]
    hidden: tuple[int, ...]
    outputs: tuple[str, ...]


class CachedTower:
    """A tower, and what it has made of pictures.

    Of a picture that comes alone, with any number of questions, two things are kept. States, what enters a block, as far as
    no question has entered: any later pass begins with the deepest one that comes before all that it is asked for. And
    where there is no question, all that a pass gave, for one that asks for the same. Of the picture that was asked about
    last, also queries, keys and values of the first block of questions, which are three times as large as what enters it.

    Of LeGrad, what its gradients read of a picture, whatever the texts.

    No result differs by a bit from that of a pass that begins with the picture. What attention is read of is part of how a
    block is computed, and so is how many of its rows are needed. States are therefore kept and used of passes alone that
    read no attention before them, and that go on behind them or end with all of their rows.

    Parameters
    ----------
    vit : _core.Vit
    cache : PictureCache
        For this tower, or towers of other sizes with the same weights.
    on_cpu : bool
        A GPU makes queries, keys and values again before they could be brought to it.
    """

    def __init__(self, vit: _core.Vit, cache: PictureCache, on_cpu: bool = True) -> None:
        self.vit, self.cache, self.on_cpu = vit, cache, on_cpu
        #: The first block that takes a question; how many there are where none does.
        self.first = vit.integrated[0] if vit.integrated else vit.blocks

    def forward(
        self,
        seen: Seen,
        pairs: Optional[Pairs] = None,
        attention: Attention = (),
        hidden: Iterable[int] = (),
        outputs: Sequence[str] = (),
    ) -> dict[str, Any]:
        """As `_core.Vit.forward`; the arrays are the caller's own."""
        wanted = Wanted(tuple(attention), tuple(hidden), tuple(outputs))
        if len(seen) != 1 or self.cache.largest == 0:
            return self._run(seen, pairs, wanted)
        return self._known(seen, pairs, wanted, digest_of(seen))

    def dense(self, seen: Seen, method: str, first: Optional[int]) -> tuple[FloatArray, FloatArray]:
        """As `_core.Vit.dense`; read-only."""
        cache = self.cache
        key = (digest_of(seen), method, first) if len(seen) == 1 and cache.largest else None
        found = None if key is None else cache.find(key)
        if key is not None:
            cache.count(found is not None)
        if found is None:
            given, how = _as_core_takes(seen)
            found = self.vit.dense(given, method, first, how)
            if key is not None:
                cache.put(key, _read_only(found), bytes_of(found), found)
        patches, image = found
        return patches, image

    def legrad_kept(self, seen: Seen, wanted: Sequence[tuple[str, int]]) -> tuple[Hashable, Optional[FloatArray]]:
        """A picture's key, or None where nothing is kept of it, and `kept` as `_core.Vit.gradients` takes it, or None."""
        cache = self.cache
        if len(seen) != 1 or cache.largest == 0:
            return None, None
        key = (digest_of(seen), tuple(wanted))
        found: Optional[FloatArray] = cache.find(key)
        if found is not None:
            cache.count(True)
        return key, found

    def keep_legrad(self, key: Hashable, kept: FloatArray) -> None:
        """Keep what `_core.Vit.gradients` gave for another text on the same picture."""
        self.cache.put(key, _read_only(kept), kept.nbytes, kept)

    def _run(self, seen: Seen, pairs: Optional[Pairs], wanted: Wanted) -> dict[str, Any]:
        given, how = _as_core_takes(seen)
        index, instruct, lengths = pairs or NO_PAIRS
        return self.vit.forward(given, index, instruct, lengths, *wanted, how)

    def _known(self, seen: Seen, pairs: Optional[Pairs], wanted: Wanted, digest: bytes) -> dict[str, Any]:
        cache, vit, first = self.cache, self.vit, self.first
        # What is read of pictures alone; of a tower that takes questions, whatever lies before these.
        alone = pairs is None
        everything = (digest, wanted)
        if alone and (found := cache.find(everything)) is not None:
            cache.count(True)
            return dict(_copied(found))
        border = min(first, min((block for block, _ in wanted.attention), default=vit.blocks))
        reach = max([block + 1 for block, _ in wanted.attention] + [vit.blocks if wanted.outputs else 0])
        states: dict[int, FloatArray] = {}
        for level in wanted.hidden:
            kept = cache.find((digest, level)) if level <= border and (level < reach or reach == 0) else None
            if kept is not None:
                states[level] = kept
        rest = wanted._replace(hidden=tuple(level for level in wanted.hidden if level not in states))
        if not (rest.attention or rest.hidden or rest.outputs):
            cache.count(True)
            return {"attentions": {}, "hidden": {level: states[level].copy() for level in wanted.hidden}}
        end = max([reach, *rest.hidden])
        extra = (first,) if 0 < first <= border and first < end and first not in rest.hidden else ()
        size = 3 * vit.tokens * vit.hidden_size * np.dtype(np.float32).itemsize
        keeps_qkv = self.on_cpu and not alone and 0 < first <= border and first < end and OTHERS * size <= cache.limit
        kept_qkv = cache.get(QKV) if keeps_qkv else None
        qkv = kept_qkv[1] if kept_qkv is not None and kept_qkv[0] == digest else None
        if keeps_qkv and qkv is None:
            rest = rest._replace(outputs=(*rest.outputs, QKV))
        result = self._from_states(seen, pairs, rest, extra, digest, border, qkv)
        made = result.pop(QKV, None)
        if made is not None:
            cache.put(QKV, (digest, _read_only(made)), made.nbytes)
        new = {level: array for level, array in result["hidden"].items() if level <= border and level not in states}
        for level, array in new.items():
            own = array if level in extra else array.copy()
            cache.put((digest, level), _read_only(own), own.nbytes, own)
        for level in extra:
            result["hidden"].pop(level, None)
        result["hidden"].update((level, array.copy()) for level, array in states.items())
        if alone and (wanted.attention or wanted.outputs) and bytes_of(result) <= cache.largest:
            own = _read_only(_copied(result))
            cache.put(everything, own, bytes_of(own), own)
        return result

    def _from_states(
        self,
        seen: Seen,
        pairs: Optional[Pairs],
        wanted: Wanted,
        extra: tuple[int, ...],
        digest: bytes,
        border: int,
        qkv: Optional[FloatArray],
    ) -> dict[str, Any]:
        """From the deepest state that comes before all that is wanted; `qkv` of what enters the first block of questions."""
        cache = self.cache
        needed = [*(block for block, _ in wanted.attention), *(level - 1 for level in wanted.hidden)]
        deepest = min([border, self.vit.blocks - 1, *needed])
        for level in range(deepest, 0, -1):
            states = cache.find((digest, level))
            if states is not None:
                cache.count(True)
                own = wanted._replace(hidden=(*wanted.hidden, *(one for one in extra if one > level)))
                index, instruct, lengths = pairs or NO_PAIRS
                given = qkv if level == self.first else None
                return self.vit.forward(None, index, instruct, lengths, *own, None, states, level, given)
        cache.count(False)
        return self._run(seen, pairs, wanted._replace(hidden=(*wanted.hidden, *extra)))


def _as_core_takes(seen: Seen) -> tuple[Any, Optional[CorePreprocessing]]:
    """Pixel values, or pictures and how they become such."""
    return (seen, None) if isinstance(seen, np.ndarray) else ([seen.picture], seen.preprocessing)


def _read_only(value: Any) -> Any:
    for array in arrays_in(value):
        array.setflags(write=False)
    return value


def _copied(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    return {name: _copied(part) for name, part in value.items()}
