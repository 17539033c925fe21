"""BLIP's captioner (Li et al., arXiv 2201.12086): a picture, and a decoder that describes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..._base.types import ImageSize
from .._given import Given
from .._source import ModelSource
from .._weights import Stored, Weights, shape_of
from .bert import bert_decoder_shapes, whole_head
from .blip import LAYERS, POSITIONS, Kind, core_names, finish, open_kind, text_config, vision_config, vision_shapes
from .sizes import count_blocks

DECODER = "text_decoder."
#: What LAVIS's captions begin with; transformers' begin with whatever they are given.
PROMPT = "a picture of "


def open_files(given: Given) -> ModelSource:
    """BLIP's captioner of a folder, or of a LAVIS checkpoint."""
    prompt = given.asked.options.get("prompt", PROMPT if given.folder is None else "")
    if not isinstance(prompt, str):
        raise TypeError(f"config['prompt']: expected a str, got {type(prompt).__name__}")
    options = ("embed_dim", "max_txt_len", "prompt")
    source = open_kind(given, Kind("blip_caption", "a BLIP captioner", _lacks, complete, options, keeps=(DECODER,)))
    source.defaults["prompt"] = prompt
    if source.tokenizer is not None:
        from ...text import with_blip_tokens

        source.tokenizer = with_blip_tokens(source.tokenizer)
    return source


def _lacks(tensors: Stored) -> str | None:
    first = DECODER + "bert.encoder.layer.0.crossattention."
    return None if any(name.startswith(first) for name in tensors) else "its decoder has no cross-attention"


def complete(
    tensors: Stored, vision: Mapping[str, Any], text: Mapping[str, Any] | None, size: ImageSize | None, name: str
) -> tuple[dict[str, Any], dict[str, Any], Weights]:
    """Both configurations completed from the weights."""
    tensors = core_names(whole_head(tensors, DECODER))
    stem = DECODER + "bert."
    half = {"text_encoder." + key[len(stem) :]: tensor for key, tensor in tensors.items() if key.startswith(stem)}
    pictures = vision_config(tensors, vision, size, name)
    width = pictures["hidden_size"]
    texts = text_config(half, text or {}, range(max(1, count_blocks(half, LAYERS))), width, name)
    shapes = {
        **vision_shapes(pictures, shape_of(tensors[POSITIONS])[0]), **bert_decoder_shapes(texts, DECODER, width)
    }  # fmt: skip
    return pictures, texts, finish(tensors, pictures, shapes, name)
