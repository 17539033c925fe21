"""BLIP-2's Q-Former as a matcher (Li et al., arXiv 2301.12597)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

import numpy as np

from .._base.types import FloatArray
from ._cross_attending import GradCAMLook, Tokens
from ._matcher import Matcher

if TYPE_CHECKING:
    from ..images import Seen


class BLIP2ITM(Matcher):
    """BLIP-2's image-text matching, with GradCAM of its Q-Former: a :class:`Model`.

    Learned queries attend to the picture in the words' place, so a map is the mean over the queries, and words have none of
    their own. `usable_blocks` are those that attend to the picture, every second one in the published models;
    `default_block` is the first of them at or behind two thirds of all. Texts are taken as they are, their ``?`` too.

    Attributes
    ----------
    num_queries : int
    max_tokens : int
        A longer text is cut, its closing token kept.

    Notes
    -----
    LAVIS has no such map for this model. Attention, gradient and their product are those of its BLIP.
    """

    kind = "blip2_itm"
    called = "BLIP-2"

    @property
    def num_queries(self) -> int:
        """How many queries look at the picture."""
        return int(self._core.queries)

    def _choose_block(self) -> int:
        behind = [block for block in self.usable_blocks if 3 * block >= 2 * self.num_blocks]
        return behind[0] if behind else self.usable_blocks[-1]

    def _look(self, pixels: Seen, questions: Optional[list[str]]) -> GradCAMLook:
        look = super()._look(pixels, questions)
        look.words = None
        return look

    def _cosines(self, image_features: FloatArray, text_features: FloatArray) -> FloatArray:
        """Of the query that is most alike."""
        return np.asarray((image_features @ text_features.T).max(axis=0))

    def _token_maps(self, tokens: Tokens, means: FloatArray, every: FloatArray) -> list[FloatArray]:
        """The mean over the queries, then each query's."""
        each = every.reshape(len(means), self.num_queries, -1)
        return list(np.concatenate([means[:, None], each], axis=1))
