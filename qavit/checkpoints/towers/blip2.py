"""BLIP-2's image-text matching (Li et al., arXiv 2301.12597): EVA's vision transformer and a Q-Former."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..._base.types import ImageSize
from .._given import Asked, Given
from .._places import _path
from .._source import ModelSource
from .._states import without_wrappers
from .._weights import Stored, Weights, shape_of, without_leading_ones
from ..formats.reading import Content, open_weights
from .bert import bert_shapes
from .blip import LAYERS, POSITIONS, Kind, core_names, finish, head_shapes, open_kind, text_config, vision_config
from .blip import vision_shapes as _vision_shapes
from .sizes import _affine, _epsilon, count_blocks, need

#: LAVIS's names, then Hugging Face's, as the core's.
_NAMES = (
    (r"^ln_vision\.", "vision_model.post_layernorm."),
    (r"^Qformer\.bert\.", "text_encoder."),
    (r"^qformer\.layernorm\.", "text_encoder.embeddings.LayerNorm."),
    (r"^embeddings\.", "text_encoder.embeddings."),
    (r"^qformer\.encoder\.", "text_encoder.encoder."),
    (r"^(text_encoder\..*attention)\.attention\.", r"\1.self."),
    (r"^(vision|text)_projection\.", r"\1_proj."),
)
#: LAVIS trains with the last block of EVA's 40 left out.
_EVA_BLOCKS = {40: 39}


def _attends(tensors: Stored) -> range:
    """The blocks whose queries attend to the image: every so many from the first on."""
    blocks = count_blocks(tensors, LAYERS)
    found = [n for n in range(blocks) if f"{LAYERS}{n}.crossattention.self.query.weight" in tensors]
    step = found[1] - found[0] if len(found) > 1 else max(1, blocks)
    return range(found[0] if found else 0, max(1, blocks), step)


def complete(
    tensors: Stored, vision: Mapping[str, Any], text: Mapping[str, Any] | None, size: ImageSize | None, name: str
) -> tuple[dict[str, Any], dict[str, Any], Weights]:
    """Both configurations completed from the weights, and exactly the tensors that they call for."""
    if text is None:
        raise ValueError(f"{name}: config.json has no 'text'")
    tensors = core_names(tensors)
    told_vision = vision_config(tensors, vision, size, name)
    told_vision["post_norm_eps"] = _epsilon(vision, "post_norm_eps", told_vision["layer_norm_eps"], name)
    attends, width = _attends(tensors), told_vision["hidden_size"]
    queries, own = need(tensors, "query_tokens", 2, name)
    told = text_config(tensors, text, attends, width, name, {"query_tokens": queries, "cross_attention_freq": attends.step})
    expected = _vision_shapes(told_vision, shape_of(tensors[POSITIONS])[0])
    without = [key for key in expected if key.endswith(".k_proj.bias")]
    optional = {key: expected.pop(key) for key in without}  # Hugging Face's files hold zeros
    expected.update({**head_shapes(told, own), **bert_shapes(told, "text_encoder.", width, attends)})
    expected["query_tokens"] = (queries, told["hidden_size"])
    for number in range(told["num_hidden_layers"]):
        block = f"{LAYERS}{number}."
        _affine(expected, block + "intermediate_query.dense", told["intermediate_size"], own)
        _affine(expected, block + "output_query.dense", own, told["intermediate_size"])
        _affine(expected, block + "output_query.LayerNorm", own)
    return told_vision, told, finish(tensors, told_vision, expected, name, optional)


def _plain(tensors: Stored) -> Stored:
    """BLIP's names for the text half; the language-model head is left out."""
    result: Stored = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        if name == "query_tokens":
            tensor = without_leading_ones(tensor, 2)
        if not name.startswith("Qformer.cls."):
            result[name] = tensor
    return result


def _lacks(tensors: Stored) -> str | None:
    if not any(name.startswith("itm_head.") for name in tensors):
        return "it lacks itm_head, BLIP-2's or InstructBLIP's Q-Former in front of a language model"
    if not any(name.startswith(("visual_encoder.", "vision_model.encoder.")) for name in tensors):
        return "it lacks its vision half (give vision= EVA's eva_vit_g.pth)"
    if any(name.startswith("visual_encoder.transformer.") for name in tensors):
        return "its vision half is CLIP's ViT-L"
    return None


KIND = Kind(
    "blip2_itm", "BLIP-2 image-text matching", _lacks, complete, max_tokens=32,
    roots=re.compile(
        r"^(.*?\.)??((?:visual_encoder|vision_model|ln_vision|Qformer|qformer|embeddings|itm_head"
        r"|(?:vision|text)_proj(?:ection)?)\..+|query_tokens)$"
    ),
)  # fmt: skip


def _with_vision(given: Given) -> Content:
    """The checkpoint's tensors with those of EVA's file, of whose blocks the first so many are used."""
    content = given.content
    if given.vision is None:
        return content
    tensors = without_wrappers(content.tensors, given.name)
    if any("visual_encoder." in name for name in tensors):
        raise ValueError(f"vision: {given.name} holds its own vision half")
    place = _path(given.vision, "vision")
    file = open_weights(place)
    eva = without_wrappers(file.tensors, place.name)
    if "blocks.0.attn.qkv.weight" not in eva:
        raise ValueError(f"vision: {place.name} holds no blocks.0.attn.qkv.weight; expected EVA's eva_vit_g.pth")
    stored = count_blocks(eva, "blocks.")
    options = given.asked.options.get("vision")
    used = (options if isinstance(options, Mapping) else {}).get("depth", _EVA_BLOCKS.get(stored, stored))
    if not isinstance(used, int) or not 1 <= used <= stored:
        raise ValueError(f"config['vision']: depth {used!r}, {place.name} has {stored} blocks")
    found = re.compile(r"^(cls_token|pos_embed|patch_embed\.proj\..+|blocks\.(\d+)\..+)$")
    own = {name: match for name in eva if (match := found.match(name)) and int(match[2] or 0) < used}
    joined = {**tensors, **{f"visual_encoder.{name}": eva[name] for name in own}}
    return Content(joined, {**content.unread, **file.unread}, content.others)


def open_files(given: Given) -> ModelSource:
    """BLIP-2's image-text matching of LAVIS, with or without its vision half, or of a Hugging Face folder."""
    if given.text is not None:
        raise ValueError("text= does not go with BLIP-2, whose file holds its Q-Former; give tokenizer=")
    if given.folder is not None:
        if given.vision is not None:
            raise ValueError("vision= does not go with a folder of BLIP-2, which holds its vision half")
        return open_kind(given, KIND, _plain)
    # LAVIS's norm behind the vision half is its own, with PyTorch's epsilon.
    config = given.config or {"vision_config": {"post_norm_eps": 1e-5}}
    return open_kind(replace(given, checkpoint=_with_vision(given), config=config), KIND, _plain)


def open_tensors(tensors: Stored, config: Mapping[str, Any], options: dict[str, Any], name: str) -> ModelSource:
    """BLIP-2's image-text matching of tensors in memory, by LAVIS's names or Hugging Face's; without a tokenizer."""
    return open_files(Given(name, Asked(options=options), config=config, checkpoint=Content(tensors)))
