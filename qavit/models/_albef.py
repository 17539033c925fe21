"""ALBEF: align before fuse (Li et al., arXiv 2107.07651)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ._cross_attending import Tokens
from ._matcher import Matcher

#: Whose maps the paper and its code show.
PAPER_BLOCK = 8


class ALBEF(Matcher):
    """ALBEF's image-text matching, with its GradCAM of the fused blocks: a :class:`Model`.

    `usable_blocks` are those that attend to the picture (from the 7th on, in the published models) but the last, from which
    only the first token reaches the head; `default_block` is 8, as in the paper, or the last usable one of a smaller model.
    Texts are taken as they are, their ``?`` too. A text is [CLS] words [SEP]; a model loaded with ``config={"sep": False}``
    leaves [SEP] out, as the public code's own tokenizer does.

    Attributes
    ----------
    max_tokens : int
        A longer text is cut; special tokens count.
    """

    kind = "albef"
    called = "ALBEF"

    def _choose_block(self) -> int:
        return min((block for block in self.usable_blocks if block >= PAPER_BLOCK), default=self.usable_blocks[-1])

    def _tokenize(self, texts: Sequence[str], matching: bool = True) -> Tokens:
        """Ids from [CLS] on, without the closing token where the model was not trained with one."""
        tokens = super()._tokenize(texts, matching)
        if (self._source.text or {}).get("closing_tokens", 1):
            return tokens
        mask = tokens.mask.copy()
        mask[np.arange(len(mask)), mask.sum(axis=1) - 1] = 0
        longest = int(mask.sum(axis=1).max(initial=1))
        return Tokens(tokens.ids[:, :longest], mask[:, :longest], tokens.batch)
