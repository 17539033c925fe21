from ._look import KINDS as KINDS
from ._pixels import colorize as colorize

__all__ = [
    "KINDS",
    "colorize",
]
