from ._figures import make_figure as make_figure
from ._pixels import colorize as colorize
from ._pixels import overlay as overlay
from ._protocol import KINDS as KINDS

__all__ = [
    "KINDS",
    "colorize",
    "make_figure",
    "overlay",
]
