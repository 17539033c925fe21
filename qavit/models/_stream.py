"""Many pictures, one result after another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from .._base.arguments import one_line
from .._base.warnings import warn_of

if TYPE_CHECKING:
    from .._result import HeatmapResult

Shown = TypeVar("Shown")
AHEAD = 2


def stream(
    pictures: Iterable[Any], questions: Any, see: Callable[[Any], Shown], ask: Callable[[Shown, Any], HeatmapResult]
) -> Iterator[HeatmapResult]:
    """A result a picture; `see` runs in another thread, `AHEAD` pictures before `ask`."""
    if isinstance(pictures, (str, bytes, bytearray)) or not isinstance(pictures, Iterable) or hasattr(pictures, "read"):
        raise TypeError(f"pictures: expected several, in a list or a generator, got one {type(pictures).__name__}")
    return _results(iter(pictures), questions, see, ask)


def _results(
    pictures: Iterator[Any], questions: Any, see: Callable[[Any], Shown], ask: Callable[[Shown, Any], HeatmapResult]
) -> Iterator[HeatmapResult]:
    waiting: deque[tuple[int, Any, Future[Shown]]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="qavit-decode")
    try:
        for number, item in enumerate(pictures):
            picture, asked = _pair(number, item, questions)
            waiting.append((number, asked, pool.submit(see, picture)))
            if len(waiting) > AHEAD:
                yield _finish(*waiting.popleft(), ask)
        while waiting:
            yield _finish(*waiting.popleft(), ask)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pair(number: int, item: Any, questions: Any) -> tuple[Any, Any]:
    """A picture and its questions."""
    if not isinstance(item, tuple):
        return item, questions
    if len(item) != 2:
        raise ValueError(f"pictures[{number}]: a tuple of {len(item)}, expected a picture, or (picture, questions)")
    if questions is not None:
        raise ValueError(f"pictures[{number}]: questions of its own, and questions= for all; give one or the other")
    return item


def _finish(number: int, asked: Any, shown: Future[Shown], ask: Callable[[Shown, Any], HeatmapResult]) -> HeatmapResult:
    try:
        result = ask(shown.result(), asked)
    except (OSError, ValueError, TypeError) as error:
        _raise_numbered(number, error)
    warn_of(result.notes)
    return result


def _raise_numbered(number: int, error: Exception) -> NoReturn:
    """The same kind of error, with the picture's number before its message."""
    kinds = (FileNotFoundError, PermissionError, OSError, TypeError, ValueError)
    kind = next(kind for kind in kinds if isinstance(error, kind))
    raise kind(f"pictures[{number}]: {one_line(error)}") from error
