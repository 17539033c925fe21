"""BLIP visual question answering (Li et al., arXiv 2201.12086): a picture, a question encoder, an answer decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..._base.types import ImageSize
from .._given import Given
from .._source import ModelSource
from .._weights import Stored, Weights
from .bert import bert_decoder_shapes, whole_head
from .blip import blip_shapes, complete_blip, open_blip
from .sizes import Shapes


def open_files(given: Given) -> ModelSource:
    """BLIP-VQA of a folder, or of a LAVIS checkpoint."""
    return open_blip(given, "blip_vqa", "BLIP-VQA", "text_decoder", complete)


def complete(
    tensors: Stored, vision: Mapping[str, Any], text: Mapping[str, Any] | None, size: ImageSize | None, name: str
) -> tuple[dict[str, Any], dict[str, Any], Weights]:
    """Both configurations completed from the weights; the decoder is of the question encoder's sizes."""
    return complete_blip(whole_head(tensors, "text_decoder."), vision, text, size, name, _shapes)


def _shapes(vision: Mapping[str, Any], text: Mapping[str, Any], tokens: int) -> Shapes:
    return {
        **blip_shapes(vision, text, tokens), **bert_decoder_shapes(text, "text_decoder.", text["hidden_size"])
    }  # fmt: skip
