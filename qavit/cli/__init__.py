"""The command line, `qavit`."""

from ._main import main

__all__ = ["main"]
