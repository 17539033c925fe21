"""Processes that die in the middle of what they write: at a step of their own, whatever the machine's speed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: What the interpreter tells of changes to a folder.
CHANGES = {"os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def changes(event: str, arguments: tuple[Any, ...], folder: str) -> bool:
    """Whether the event is a change below the folder: a file opened for writing, renamed, removed."""
    if event not in CHANGES and not (event == "open" and arguments[2] & WRITING):
        return False
    return any(folder in os.fsdecode(path) for path in arguments if isinstance(path, (str, bytes, os.PathLike)))


def watch(folder: Path, act: Callable[[int], None]) -> None:
    """From now on, and for good, call act with the number of each change of this process below a folder, before it."""
    begun = [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if changes(event, arguments, str(folder)):
            begun[0] += 1
            act(begun[0])

    sys.addaudithook(hook)


def die(step: int, at: int) -> None:
    """At one step, die as by kill -9."""
    if step == at:
        os.kill(os.getpid(), signal.SIGKILL)


def run(act: Callable[[], object], folder: Path, at: int = 0) -> int:
    """Act in a child that dies at a step below the folder, or (0) does not; how many steps it began in that case."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            watch(folder, lambda step: os.write(writer, b".") and die(step, at))
            act()
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        steps = len(pipe.read())
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (-signal.SIGKILL if at else 0), status
    return steps
