"""ALBEF (Li et al., arXiv 2107.07651): BLIP's names, with cross-attention from a block of its own on, and token types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..._base.types import ImageSize
from .._given import Given
from .._source import ModelSource
from .._weights import Stored, Weights, shape_of
from .bert import bert_shapes
from .blip import LAYERS, POSITIONS, Kind, core_names, finish, head_shapes, open_kind, text_config, vision_config
from .blip import vision_shapes as _vision_shapes
from .sizes import count_blocks, need, stated_number

_TYPES = "text_encoder.embeddings.token_type_embeddings.weight"


def _fused(tensors: Stored) -> range:
    """The blocks that attend to the image: from the first with cross-attention on."""
    blocks = count_blocks(tensors, LAYERS)
    first = (n for n in range(blocks) if f"{LAYERS}{n}.crossattention.self.query.weight" in tensors)
    return range(next(first, 0), max(1, blocks))


def complete(
    tensors: Stored, vision: Mapping[str, Any], text: Mapping[str, Any] | None, size: ImageSize | None, name: str
) -> tuple[dict[str, Any], dict[str, Any], Weights]:
    """Both configurations completed from the weights, and exactly the tensors that they call for."""
    if text is None:
        raise ValueError(f"{name}: config.json has no 'text'")
    tensors = core_names(tensors)
    vision = vision_config(tensors, vision, size, name)
    fused, width = _fused(tensors), vision["hidden_size"]
    sizes = {"type_vocab_size": need(tensors, _TYPES, 2, name)[0], "fusion_layer": fused[0]}
    told = text_config(tensors, text, fused, width, name, sizes)
    told["closing_tokens"] = stated_number(text, "closing_tokens", 1, f"{name}: text")
    expected = {**_vision_shapes(vision, shape_of(tensors[POSITIONS])[0]), **head_shapes(told, width)}
    expected.update(bert_shapes(told, "text_encoder.", width, fused))
    return vision, told, finish(tensors, vision, expected, name)


def _plain(tensors: Stored) -> Stored:
    """BERT right below text_encoder, without its language-model head."""
    return {
        name.replace("text_encoder.bert.", "text_encoder.", 1): tensor
        for name, tensor in tensors.items() if not name.startswith("text_encoder.cls.")
    }  # fmt: skip


def _lacks(tensors: Stored) -> str | None:
    if not any(name.startswith("itm_head.") for name in tensors):
        return "it lacks itm_head"
    return None if any(".crossattention." in name for name in tensors) else "it lacks cross-attention"


KIND = Kind(
    "albef", "ALBEF", _lacks, complete, options=("embed_dim", "max_txt_len", "sep"), max_tokens=30
)  # fmt: skip


def open_files(given: Given) -> ModelSource:
    """ALBEF's pretraining, retrieval and grounding files, bare or not."""
    if given.vision is not None or given.text is not None:
        raise ValueError("vision= and text= do not go with an ALBEF checkpoint, which holds both halves; give tokenizer=")
    options = given.asked.options
    if not isinstance(options.get("sep", True), bool):
        raise TypeError(f"config['sep']: expected a bool, got {type(options['sep']).__name__}")
    source = open_kind(given, KIND, _plain)
    if source.text is not None and not options.get("sep", True):
        source.text["closing_tokens"] = 0
    return source
