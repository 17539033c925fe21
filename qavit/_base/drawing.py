"""matplotlib, whatever the environment says of its windows: files need none."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys


def import_despite_backend() -> None:
    """Import matplotlib where MPLBACKEND names a backend that may not be there, which would end the import.

    A notebook's own backend is handed on to every program that it starts, whatever environment that runs in.
    """
    if "MPLBACKEND" not in os.environ or "matplotlib" in sys.modules:
        return
    asked = os.environ.pop("MPLBACKEND")
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError:  # what needs it says so
        return
    finally:
        os.environ["MPLBACKEND"] = asked
    with contextlib.suppress(ValueError, RuntimeError, ImportError):  # windows need it, and will say what is wrong
        matplotlib.rcParams["backend"] = asked
