"""SCLIP: the last block, its queries and its keys attending to themselves."""

from __future__ import annotations

from ._dense import Dense


class SCLIP(Dense):
    """softmax(q q') + softmax(k k') in place of softmax(q k') (Wang et al. 2024, arXiv 2312.01597)."""

    name = "sclip"


METHOD = SCLIP()
