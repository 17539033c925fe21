"""CLIP Surgery: a second path through the last blocks, freed of what all texts have in common."""

from __future__ import annotations

import numpy as np

from .._base.types import FloatArray
from ._dense import Dense, cosines
from ._look import Look, Options, Readable


class Surgery(Dense):
    """Values attending to themselves, and features shared by the call's texts taken out (Li et al. 2025, arXiv 2304.05653).

    Of one text alone, what it shares with the empty text is taken out.
    """

    name = "surgery"
    blocks_from_end = 6

    def options(self, model: Readable) -> frozenset[str]:
        """The empty text can be another."""
        return frozenset({"empty"})

    def compares(self, options: Options) -> bool:
        """The call's texts are its set of labels."""
        return True

    def map_of(self, look: Look, patches: FloatArray) -> FloatArray:
        """Float32 [Q, P], each text freed of what it shares with the others."""
        texts, image = look.texts, look.image
        if len(texts) == 1 or len(patches) > 1 or image is None:
            return cosines(texts - look.empty(""), patches)
        found = cosines(texts, patches)
        weights = np.exp(2 * (texts @ image[0]))
        shared = found * (weights / weights.mean())[:, None]
        return np.asarray(shared - shared.mean(axis=0))


METHOD = Surgery()
