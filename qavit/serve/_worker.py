"""One thread that computes, one thing after another."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, Optional, TypeVar

T = TypeVar("T")


class Worker:
    """A thread of its own, so that requests are answered while the core computes.

    A daemon: what is being computed cannot be interrupted, and a server that ends does not wait for it.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Optional[Callable[[], None]]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="qavit serve", daemon=True)
        self._thread.start()

    async def run(self, job: Callable[[], T]) -> T:
        """What the job returns or raises; to be awaited by one caller at a time."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def set_unless_gone(setter: Callable[[Any], None], value: Any) -> None:
            if not future.done():
                setter(value)

        def work() -> None:
            try:
                found = job()
            except BaseException as error:
                setter, value = future.set_exception, error
            else:
                setter, value = future.set_result, found  # type: ignore[assignment]
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
                loop.call_soon_threadsafe(set_unless_gone, setter, value)

        self._jobs.put(work)
        return await future

    def end(self, seconds: float) -> bool:
        """Take no more jobs; whether the thread has ended within so many seconds."""
        self._jobs.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # and with it what it holds, while the next one is waited for
