"""The engine of one machine: this process alone, or worker processes with a model each."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Generator, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, Optional

from .._base.warnings import QavitWarning, warn
from ._actor import HeatmapActor
from ._estimate import Pace
from ._plan import Part
from ._worker import About, PartDone, PartWorker, Settings, Tick

MAX_DEATHS = 3  # of workers at one part
POLL_SECONDS = 0.5


class Alone(PartWorker):
    """The process of the run itself, as its only worker."""

    def begin(self, parts: Iterator[Part]) -> None:
        """Told of what there is to do."""
        self._parts = parts

    def run(self, tick: Tick) -> Generator[PartDone, None, None]:
        """Parts one after another."""
        for part in self._parts:
            yield self(part, tick)


class Crew:
    """Worker processes, each of which begins to load its model as soon as this is made.

    The first tells what came of it. `close` ends them, as the end of `run` does.

    Parameters
    ----------
    settings : Settings
    workers : int
    """

    def __init__(self, settings: Settings, workers: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._settings, self._workers = settings, workers
        self._counts = self._context.Array("q", 3)
        self._parts: Iterator[Part] = iter(())
        self._members: list[_Member] = []
        try:
            for number in range(workers):
                self._start(tells=number == 0)
        except BaseException:
            self.close()
            raise

    def about(self) -> About:
        """What the model is; the warnings and errors of its load, and of the trial, are warned of and raised here."""
        first = self._members[0]
        try:
            said, result = first.take(), first.take()
        except (EOFError, OSError):
            first.stop()
            raise RuntimeError(f"the worker that loads the model died ({first.death})") from None
        for message, category, file, line in said:
            if issubclass(category, QavitWarning):
                warn(category, message)
            else:
                warnings.warn_explicit(message, category, file, line)
        if isinstance(result, BaseException):
            raise result
        about: About = result
        return about

    def begin(self, parts: Iterator[Part]) -> None:
        """Told of what there is to do."""
        self._parts = parts

    def measure(self, part: Part, rows: int) -> Pace:
        """How fast the first worker is, by a little of the first part, which it does next; the others begin with theirs."""
        first, *others = self._members
        first.give(part, rows)
        part = next(self._parts)
        for member, another in zip(others, self._parts):
            member.give(another)
        pace: Any = Pace()
        with contextlib.suppress(EOFError, OSError):  # it has died; run() sees to that
            pace = first.take()
        if isinstance(pace, BaseException):
            raise pace
        first.give(part)
        assert isinstance(pace, Pace)
        return pace

    def run(self, tick: Tick) -> Generator[PartDone, None, None]:
        """Parts as they are done.

        A worker that dies is replaced, and its part done again; RuntimeError when a part has cost three workers.
        """
        told = [0, 0, 0]
        again: deque[Part] = deque()
        deaths: dict[str, int] = {}
        try:
            while True:
                while len(self._members) < self._workers or self._idle():
                    part = again.popleft() if again else next(self._parts, None)
                    if part is None:
                        break
                    member = self._idle() or self._start()
                    member.give(part)
                while (idle := self._idle()) is not None:  # there is nothing more to do
                    self._end(idle)
                if not self._members:
                    return
                ready = wait([member.connection for member in self._members], POLL_SECONDS)
                now = self._counts[:]
                tick(*(new - old for new, old in zip(now, told)))
                told = now
                for member in [member for member in self._members if member.connection in ready]:
                    part = member.part
                    assert part is not None
                    try:
                        result = member.take()
                    except (EOFError, OSError):
                        self._end(member)
                        deaths[part.name] = deaths.get(part.name, 0) + 1
                        if deaths[part.name] == MAX_DEATHS:
                            what = f"{MAX_DEATHS} workers died at part {part.name}"
                            raise RuntimeError(f"{what} (the last with {member.death})") from None
                        again.append(part)
                        continue
                    if isinstance(result, BaseException):
                        raise result
                    yield result
        finally:
            self.close()

    def _start(self, tells: bool = False) -> _Member:
        self._members.append(_Member(self._context, self._settings, self._counts, tells))
        return self._members[-1]

    def _idle(self) -> Optional[_Member]:
        return next((member for member in self._members if member.part is None), None)

    def _end(self, member: _Member) -> None:
        member.stop()
        self._members.remove(member)

    def close(self) -> None:
        """End the processes, in the middle of a part if need be."""
        while self._members:
            self._end(self._members[-1])


class _Member:
    """A worker process, and the part it has."""

    def __init__(self, context: Any, settings: Settings, counts: Any, tells: bool) -> None:
        self.connection, theirs = context.Pipe()
        given = theirs, settings, counts, tells
        self.process = context.Process(target=_work, args=given, daemon=True, name="qavit-worker")
        with _script_left_alone(), _interrupts_held():
            self.process.start()
        theirs.close()
        self.part: Optional[Part] = None

    @property
    def death(self) -> str:
        """How it ended."""
        return f"exit code {self.process.exitcode}; -9 is what too little memory gives"

    def give(self, part: Part, measured: Optional[int] = None) -> None:
        """Hand a part over; or one to be measured by, of so many rows."""
        self.part = part
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has died; take() will say so
            self.connection.send((part, measured))

    def take(self) -> Any:
        """What came of the part: a PartDone or a Pace, or what was raised. EOFError when the worker died."""
        result = self.connection.recv()
        self.part = None
        return result

    def stop(self) -> None:
        """End the process, in the middle of a part if need be."""
        self.process.terminate()
        self.process.join()
        self.connection.close()


@contextlib.contextmanager
def _script_left_alone() -> Iterator[None]:
    """Processes that start meanwhile do not import the caller's script again: it need not be guarded by its name."""
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), main.__dict__.pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes that start meanwhile hear of no Ctrl-C, even before they can say so themselves; this one does afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: Connection, settings: Settings, counts: Any, tells: bool) -> None:
    """A worker process: parts in, results out, until its parent has no more or is no more.

    One that `tells` says first what came of the model: what was warned of, and `About` it or what was raised. The others try
    their arguments as well, since they would wait for it; after that the weights are as the kernels want them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which stops its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tick(images: int, questions: int, errors: int) -> None:
        with counts.get_lock():
            counts[0] += images
            counts[1] += questions
            counts[2] += errors

    worker: Optional[PartWorker] = None
    result: Any
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            worker = PartWorker(settings, HeatmapActor(**settings.actor))
            result = worker.about()
        except Exception as error:
            result = error
    warnings.simplefilter("ignore")  # what there is to be said, the first worker's parent says once
    if tells:
        _send(connection, [(str(one.message), one.category, one.filename, one.lineno) for one in said])
        _send(connection, result)
    while True:
        try:
            part, measured = connection.recv()
        except EOFError:
            return
        if worker is not None:
            try:
                result = worker(part, tick) if measured is None else worker.measure(part, measured)
            except Exception as error:
                result = error
        _send(connection, result)


def _send(connection: Connection, what: Any) -> None:
    try:
        connection.send(what)
    except BrokenPipeError:  # the parent is no more
        pass
    except Exception:  # an exception that cannot be pickled
        connection.send(RuntimeError(f"{type(what).__name__}: {what}"))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
