"""BLIP's captioner (Li et al., arXiv 2201.12086): a picture, and a decoder that describes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._given import Given
from .._source import ModelSource
from .._weights import Stored, Weights
from .bert import bert_decoder_shapes, whole_head
from .blip import blip_vision_shapes, complete_blip, open_blip
from .sizes import Shapes

STEM = "text_decoder.bert."
#: What LAVIS's captions begin with; transformers' begin with whatever they are given.
PROMPT = "a picture of "


def open_files(given: Given) -> ModelSource:
    """BLIP's captioner of a folder, or of a LAVIS checkpoint."""
    prompt = given.asked.options.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise TypeError(f"config['prompt']: expected a str, got {type(prompt).__name__}")
    defaults = {"prompt": PROMPT if given.folder is None else ""}
    return open_blip(given, "blip_caption", "a BLIP captioner", "text_decoder", complete, stem=STEM, defaults=defaults)


def complete(
    tensors: Stored, vision: Mapping[str, Any], text: Mapping[str, Any] | None, size: int | None, name: str
) -> tuple[dict[str, Any], dict[str, Any], Weights]:
    """Both configurations completed from the weights."""
    return complete_blip(whole_head(tensors, "text_decoder."), vision, text, size, name, _shapes, STEM)


def _shapes(vision: Mapping[str, Any], text: Mapping[str, Any], tokens: int) -> Shapes:
    return {**blip_vision_shapes(vision, tokens), **bert_decoder_shapes(text, "text_decoder.", vision["hidden_size"])}
