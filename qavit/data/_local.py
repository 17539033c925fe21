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

from ._actor import HeatmapActor
from ._plan import Part
from ._worker import PartDone, PartWorker, Settings, Tick

MAX_DEATHS = 3  # of workers at one part
POLL_SECONDS = 0.5


def run_here(actor: HeatmapActor, settings: Settings, parts: Iterator[Part], tick: Tick) -> Generator[PartDone, None, None]:
    """Parts one after another in this process."""
    worker = PartWorker(settings, actor)
    for part in parts:
        yield worker(part, tick)


def run_processes(settings: Settings, parts: Iterator[Part], workers: int, tick: Tick) -> Generator[PartDone, None, None]:
    """Parts in worker processes, as they are done.

    A worker that dies is replaced, and its part done again; RuntimeError when a part has cost three workers.
    """
    context = multiprocessing.get_context("spawn")
    counts = context.Array("q", 3)
    told = [0, 0, 0]
    again: deque[Part] = deque()
    deaths: dict[str, int] = {}
    members: list[_Member] = []
    try:
        while True:
            while len(members) < workers or any(member.part is None for member in members):
                part = again.popleft() if again else next(parts, None)
                if part is None:
                    break
                idle = next((member for member in members if member.part is None), None)
                if idle is None:
                    idle = _Member(context, settings, counts)
                    members.append(idle)
                idle.give(part)
            busy = [member for member in members if member.part is not None]
            if not busy:
                return
            ready = wait([member.connection for member in busy], POLL_SECONDS)
            now = counts[:]
            tick(*(new - old for new, old in zip(now, told)))
            told = now
            for member in busy:
                if member.connection not in ready:
                    continue
                part = member.part
                assert part is not None
                try:
                    result = member.take()
                except (EOFError, OSError):
                    members.remove(member)
                    member.stop()
                    deaths[part.name] = deaths.get(part.name, 0) + 1
                    if deaths[part.name] == MAX_DEATHS:
                        raise RuntimeError(
                            f"{MAX_DEATHS} workers died at part {part.name} (the last with exit code "
                            f"{member.process.exitcode}; -9 is what too little memory gives)"
                        ) from None
                    again.append(part)
                    continue
                if isinstance(result, BaseException):
                    raise result
                yield result
    finally:
        for member in members:
            member.stop()


class _Member:
    """A worker process, and the part it has."""

    def __init__(self, context: Any, settings: Settings, counts: Any) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, settings, counts), daemon=True, name="qavit-worker")
        with _script_left_alone():
            self.process.start()
        theirs.close()
        self.part: Optional[Part] = None

    def give(self, part: Part) -> None:
        """Hand a part over."""
        self.part = part
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has died; take() will say so
            self.connection.send(part)

    def take(self) -> Any:
        """What came of the part: a PartDone, or what was raised. EOFError when the worker died."""
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


def _work(connection: Connection, settings: Settings, counts: Any) -> None:
    """A worker process: parts in, results out, until its parent has no more or is no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which stops its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")  # the parent has said them once

    def tick(images: int, questions: int, errors: int) -> None:
        with counts.get_lock():
            counts[0] += images
            counts[1] += questions
            counts[2] += errors

    worker: Optional[PartWorker] = None
    while True:
        try:
            part: Part = connection.recv()
        except EOFError:
            return
        try:
            worker = worker or PartWorker(settings)
            result: Any = worker(part, tick)
        except Exception as error:
            result = error
        try:
            connection.send(result)
        except BrokenPipeError:
            return
        except Exception:  # an exception that cannot be pickled
            connection.send(RuntimeError(f"{type(result).__name__}: {result}"))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
