"""What is computed when somebody first asks for it, by whichever thread that is."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Optional


class Turn:
    """One thread at a time. A forked child begins anew: who had the turn in its parent is not there to give it back."""

    def __init__(self) -> None:
        self._locks: dict[int, AbstractContextManager[Any]] = {}

    def take(self) -> AbstractContextManager[Any]:
        """Held within ``with``; the thread that has it may take it again."""
        return self._locks.setdefault(os.getpid(), threading.RLock())


class Once:
    """A computation that runs the first time it is called.

    Parameters
    ----------
    compute : callable
    turn : Turn
        Shared by all computations that read and change the same things.
    """

    def __init__(self, compute: Callable[[], Any], turn: Turn) -> None:
        self._compute: Optional[Callable[[], Any]] = compute
        self._turn = turn
        self._value: Any = None

    def __call__(self) -> Any:
        with self._turn.take():
            compute = self._compute
            if compute is not None:
                self._value = compute()
                self._compute = None
            return self._value
