"""Ctrl-C in the middle of a call, in shares of its processor time: neither other programs nor a slow build change those."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest


@contextlib.contextmanager
def signal_after(seconds: float, handler: Callable[..., Any] = signal.default_int_handler) -> Iterator[None]:
    """SIGPROF when this process has computed for so long."""
    before = signal.signal(signal.SIGPROF, handler)
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def seconds_of(call: Callable[[], Any]) -> float:
    """What a call takes of the processors."""
    start = time.process_time()
    call()
    return time.process_time() - start


def seconds_until_stopped(call: Callable[[], Any], after: float) -> float:
    """What a call takes of them that is interrupted after so many seconds of it."""
    start = time.process_time()
    with signal_after(after), pytest.raises(KeyboardInterrupt):
        call()
    return time.process_time() - start
