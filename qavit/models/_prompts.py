"""Texts in the space of a QA-ViT's pictures: embedded by the CLIP that its tower was made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .. import _core
from .._base.types import FloatArray
from ..checkpoints import open_model
from ._devices import Placement
from ._texts import TEXT_ENCODERS, TextHalf

if TYPE_CHECKING:
    from ..checkpoints._places import PathLike


class Prompts:
    """The text half of a CLIP folder, on a device.

    Raises
    ------
    ValueError
        The folder has no text half, or no tokenizer.
    """

    def __init__(self, folder: PathLike, placement: Placement) -> None:
        source = open_model(vision=folder)
        if source.text is None or source.tokenizer is None:
            lacking = "text half" if source.text is None else "tokenizer"
            raise ValueError(f"vision: {folder} has no {lacking}, which gradients of a text need")
        encoder = getattr(_core, TEXT_ENCODERS[str(source.text["model_type"])])
        self._encoder = encoder(source.text, source.weights, placement.precision, device=placement.device)
        self._half = TextHalf(source, self._encoder.vocab_size, self._encoder.max_tokens)

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Unit embeddings [Q, E]."""
        return np.array([entry.embedding for entry in self._half.entries(texts, self._encoder)], np.float32)
