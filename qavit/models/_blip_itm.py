"""BLIP image-text matching (Li et al., arXiv 2201.12086)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._base.arguments import PNP_VQA_BLOCK
from .._base.types import Precision
from ._cross_attending import Tokens
from ._matcher import Matcher

if TYPE_CHECKING:
    from ..checkpoints._source import ModelSource


class BlipITM(Matcher):
    """BLIP image-text matching, with PnP-VQA's GradCAM: a :class:`Model`.

    Within a call, each different picture goes through the vision half once, whatever the number of questions on it.
    `usable_blocks` are all but the last, from which only the first token reaches the head; `default_block` is 7, as in
    PnP-VQA, or the last usable one of a smaller model.

    Attributes
    ----------
    max_tokens : int
        A longer text is cut, its closing token kept.
    """

    kind = "blip_itm"
    called = "BLIP"
    strips_question_marks = True

    def __init__(
        self, source: ModelSource, *, precision: Precision = "float32", device: Any = "cpu", offload_model: bool = False
    ) -> None:
        super().__init__(source, precision=precision, device=device, offload_model=offload_model)
        first = self._tokenizer.id_of("[ENC]")
        if first is None:
            raise ValueError(f"{source.name}: the tokenizer has no [ENC] token, which starts a text to be matched")
        self._first_token = first

    def _choose_block(self) -> int:
        return min(PNP_VQA_BLOCK, self.usable_blocks[-1])

    def _tokenize(self, texts: Sequence[str], matching: bool = True) -> Tokens:
        """Ids from [ENC] (matching) or [CLS] on."""
        ids, mask, batch = super()._tokenize(texts, matching)
        if matching:
            ids = ids.copy()
            ids[:, 0] = self._first_token
        return Tokens(ids, mask, batch)
