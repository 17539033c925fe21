from ._figures import make_figure as make_figure
from ._panels import KINDS as KINDS
from ._pixels import colorize as colorize
from ._pixels import overlay as overlay

__all__ = [
    "KINDS",
    "colorize",
    "make_figure",
    "overlay",
]
