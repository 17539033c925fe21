"""NACLIP: the last block's keys attending to themselves and to what lies near."""

from __future__ import annotations

from ._dense import Dense


class NACLIP(Dense):
    """softmax(k k' + a Gaussian of the distance between patches), and no more (Hajimiri et al. 2025, arXiv 2404.08181)."""

    name = "naclip"


METHOD = NACLIP()
