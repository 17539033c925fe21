"""BLIP image-text matching (Li et al., arXiv 2201.12086)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .._weights import Stored, Weights, shape_of
from .bert import bert_shapes
from .clip import _positions
from .sizes import (
    MAX_IMAGE_SIZE,
    Shapes,
    _activation,
    _affine,
    _epsilon,
    _grid,
    choose_heads,
    count_blocks,
    need,
    settle,
    take,
)


def blip_configs(
    tensors: Stored, vision: Mapping[str, Any], text: Mapping[str, Any], image_size: int | None, what: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Hugging Face's keys for both halves of BLIP image-text matching; ``text`` may be LAVIS's med_config."""
    width, channels, patch, patch2 = need(tensors, "visual_encoder.patch_embed.proj.weight", 4, what)
    if channels != 3 or patch != patch2:
        raise ValueError(f"{what}: patches of {channels}x{patch}x{patch2} values, expected 3 colours and square patches")
    side = _grid(need(tensors, "visual_encoder.pos_embed", 3, what)[1] - 1, what)
    vision_sizes = {
        "hidden_size": width,
        "patch_size": patch,
        "num_hidden_layers": count_blocks(tensors, "visual_encoder.blocks."),
        "intermediate_size": need(tensors, "visual_encoder.blocks.0.mlp.fc1.weight", 2, what)[0],
    }
    settle(vision, vision_sizes, what + ": vision")
    own = vision.get("image_size", side * patch)
    size = image_size if image_size is not None else own
    if not isinstance(size, int) or not patch <= size <= MAX_IMAGE_SIZE or size % patch:
        raise ValueError(f"image_size {size!r}: expected a multiple of the patch size {patch}, to {MAX_IMAGE_SIZE}")
    vocabulary, text_width = need(tensors, "text_encoder.embeddings.word_embeddings.weight", 2, what)
    text_sizes = {
        "vocab_size": vocabulary,
        "hidden_size": text_width,
        "num_hidden_layers": count_blocks(tensors, "text_encoder.encoder.layer."),
        "intermediate_size": need(tensors, "text_encoder.encoder.layer.0.intermediate.dense.weight", 2, what)[0],
        "max_position_embeddings": need(tensors, "text_encoder.embeddings.position_embeddings.weight", 2, what)[0],
        "encoder_width": need(tensors, "text_encoder.encoder.layer.0.crossattention.self.key.weight", 2, what)[1],
    }
    settle(text, text_sizes, what + ": text")
    if text_sizes["encoder_width"] != width:
        raise ValueError(f"{what}: the text half expects images {text_sizes['encoder_width']} wide, they are {width} wide")
    # The published models (vision 768 or 1024 wide, text 768) have heads 64 wide; of others no shape tells.
    vision_heads, text_heads = {768: 12, 1024: 16}.get(width), {768: 12}.get(text_width)
    vision_config = {
        "image_size": size,
        **vision_sizes,
        "num_attention_heads": choose_heads(vision, "num_attention_heads", width, vision_heads, what + ": vision"),
        "hidden_act": _activation(vision, "hidden_act", "gelu", what + ": vision"),
        "layer_norm_eps": _epsilon(vision, "layer_norm_eps", 1e-6, what + ": vision"),
    }
    text_config = {
        "model_type": "bert",
        **text_sizes,
        "num_attention_heads": choose_heads(text, "num_attention_heads", text_width, text_heads, what + ": text"),
        "hidden_act": _activation(text, "hidden_act", "gelu", what + ": text"),
        "layer_norm_eps": _epsilon(text, "layer_norm_eps", 1e-12, what + ": text"),
    }
    if text.get("fusion_layer") is not None:
        # LAVIS: the blocks that a text goes through on its own, for the contrastive head; all where nothing is said.
        text_config["fusion_layer"] = text["fusion_layer"]
    if "text_proj.weight" in tensors:
        text_config["projection_dim"] = need(tensors, "text_proj.weight", 2, what)[0]
    return vision_config, text_config


def blip_shapes(vision: Mapping[str, Any], text: Mapping[str, Any], tokens: int) -> Shapes:
    """The tensors of BLIP image-text matching, by LAVIS's names."""
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    shapes: Shapes = {
        "visual_encoder.cls_token": (1, 1, width),
        "visual_encoder.pos_embed": (1, tokens, width),
        "visual_encoder.patch_embed.proj.weight": (width, 3, patch, patch),
        "visual_encoder.patch_embed.proj.bias": (width,),
    }
    _affine(shapes, "visual_encoder.norm", width)
    for number in range(vision["num_hidden_layers"]):
        block = f"visual_encoder.blocks.{number}."
        _affine(shapes, block + "norm1", width)
        _affine(shapes, block + "norm2", width)
        _affine(shapes, block + "attn.qkv", 3 * width, width)
        _affine(shapes, block + "attn.proj", width, width)
        _affine(shapes, block + "mlp.fc1", inner, width)
        _affine(shapes, block + "mlp.fc2", width, inner)
    shapes.update(bert_shapes(text, "text_encoder.", width))
    _affine(shapes, "itm_head", 2, text["hidden_size"])
    if "projection_dim" in text:
        _affine(shapes, "vision_proj", text["projection_dim"], width)
        _affine(shapes, "text_proj", text["projection_dim"], text["hidden_size"])
    return shapes
_BLIP_LEFT_OUT = re.compile(
    r"^(visual_encoder_m|text_encoder_m|vision_proj_m|text_proj_m|text_decoder|combined_.*)\."
    r"|^(image_queue|text_queue|queue_ptr|ptr_queue|idx_queue|temp|logit_scale)$"
)
_BLIP_NAMES = (
    (r"^vision_model\.embeddings\.class_embedding$", "visual_encoder.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "visual_encoder.pos_embed"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."),
    (r"^vision_model\.post_layernorm\.", "visual_encoder.norm."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.qkv\.", r"visual_encoder.blocks.\1.attn.qkv."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection\.", r"visual_encoder.blocks.\1.attn.proj."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.layer_norm([12])\.", r"visual_encoder.blocks.\1.norm\2."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.mlp\.", r"visual_encoder.blocks.\1.mlp."),
)


def _blip_name(name: str) -> str:
    for pattern, replacement in _BLIP_NAMES:
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    return name


def _blip(
    tensors: Stored, vision: Mapping[str, Any], text: Mapping[str, Any], size: int | None, name: str
) -> tuple[dict[str, Any], dict[str, Any], Weights]:
    complete, text_config = blip_configs(tensors, vision, text, size, name)
    tokens = shape_of(tensors["visual_encoder.pos_embed"])[1]
    weights = take(tensors, blip_shapes(complete, text_config, tokens), name)
    weights["visual_encoder.pos_embed"] = _positions(weights["visual_encoder.pos_embed"], complete)
    return complete, text_config, weights
