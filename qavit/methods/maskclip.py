"""MaskCLIP: the last block without its attention."""

from __future__ import annotations

from ._dense import Dense


class MaskCLIP(Dense):
    """Each patch keeps its own value (Zhou et al. 2022, arXiv 2112.01071)."""

    name = "maskclip"


METHOD = MaskCLIP()
