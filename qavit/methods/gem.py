"""GEM: a second path through the last blocks, where what is alike attends to itself."""

from __future__ import annotations

from ._dense import Dense


class GEM(Dense):
    """Queries, keys and values attending to themselves, twice (Bousselham et al. 2024, arXiv 2312.00878)."""

    name = "gem"
    blocks_from_end = 6


METHOD = GEM()
