from ._pixels import colorize as colorize
from ._protocol import KINDS as KINDS

__all__ = [
    "KINDS",
    "colorize",
]
