"""ClearCLIP: the last block's queries attending to themselves, and nothing beside."""

from __future__ import annotations

from ._dense import Dense


class ClearCLIP(Dense):
    """softmax(q q') without what the block adds to, and without its feed-forward (Lan et al. 2024, arXiv 2407.12442)."""

    name = "clearclip"


METHOD = ClearCLIP()
