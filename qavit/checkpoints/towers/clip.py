"""CLIP's vision and text halves (Radford et al., arXiv 2103.00020), and what differs little from them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..._base.arguments import height_and_width
from ..._base.types import ImageSize
from .._positions import resize_positions
from .._weights import Stored, Weight, float_array, from_array
from .names import BARE, PROBE
from .siglip import head_shapes
from .sizes import (
    Shapes,
    _activation,
    _affine,
    _epsilon,
    checked_size,
    choose_heads,
    count_blocks,
    need,
    position_grid,
    position_resize,
    settle,
    stated_number,
    stated_size,
)

_OTHER_NORM = re.compile(r"(vision_model\.)pre_layernorm\.")
_OTHER_BLOCKS = re.compile(r"(vision_model\.)encoder\.layer\.")
#: Of a picture of any aspect.
MAX_PATCHES = 65536


def clip_vision_config(
    tensors: Stored, config: Mapping[str, Any], image_size: ImageSize | None, what: str
) -> dict[str, Any]:
    """Hugging Face's keys for a CLIP vision tower: sizes from the weights, CLIP's defaults for what they do not tell.

    ``image_size`` asks for another size than the weights' own; see `resize_positions`.
    """
    prefix = "vision_model."
    width, channels, patch, patch2 = need(tensors, prefix + "embeddings.patch_embedding.weight", 4, what)
    if channels != 3 or patch != patch2:
        raise ValueError(f"{what}: patches of {channels}x{patch}x{patch2} values, expected 3 colours and square patches")
    tokens = need(tensors, prefix + "embeddings.position_embedding.weight", 2, what)[0]
    pooling = str(config.get("pooling") or ("map" if PROBE in tensors else "class"))
    if pooling == "map":
        need(tensors, PROBE, 1, what)
    blocks = count_blocks(tensors, prefix + "encoder.layers.")
    if blocks == 0:
        raise ValueError(f"{what}: no blocks (vision_model.encoder.layers.0...) among the weights")
    inner = need(tensors, prefix + "encoder.layers.0.mlp.fc1.weight", 2, what)[0]
    sizes = {"hidden_size": width, "patch_size": patch, "num_hidden_layers": blocks, "intermediate_size": inner}
    settle(config, sizes, what)
    own = stated_size(config, what)
    grid = position_grid(tokens - first_tokens(pooling), own, patch, what)
    default = 12 if width % 12 == 0 and config else None
    if config.get("num_channels", 3) != 3:
        raise ValueError(f"{what}: num_channels {config['num_channels']!r}, expected 3")
    result = {
        "image_size": own or grid[0] * patch if image_size is None else checked_size(image_size, patch),
        **sizes,
        "num_attention_heads": choose_heads(config, "num_attention_heads", width, default, what),
        "hidden_act": _activation(config, "hidden_act", "gelu_pytorch_tanh" if pooling == "map" else "quick_gelu", what),
        "layer_norm_eps": _epsilon(config, "layer_norm_eps", 1e-6 if pooling == "map" else 1e-5, what),
    }
    if pooling != "class":
        result["pooling"] = pooling
    if config.get("position_resize") is not None:
        result["position_resize"] = position_resize(config, what)
    most = config.get("max_patches")
    if most is not None:
        if not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= MAX_PATCHES:
            raise ValueError(f"{what}: max_patches {most!r}, expected a whole number from 1 to {MAX_PATCHES}")
        result["max_patches"] = most
    if "visual_projection.weight" in tensors:
        result["projection_dim"] = need(tensors, "visual_projection.weight", 2, what)[0]
    return result


def first_tokens(pooling: str) -> int:
    """How many tokens stand in front of the patches: a class token, but with SigLIP's attention head."""
    return 0 if pooling == "map" else 1


def clip_text_config(tensors: Stored, config: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Hugging Face's keys for a CLIP text encoder."""
    vocabulary, width = need(tensors, "text_model.embeddings.token_embedding.weight", 2, what)
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": count_blocks(tensors, "text_model.encoder.layers."),
        "intermediate_size": need(tensors, "text_model.encoder.layers.0.mlp.fc1.weight", 2, what)[0],
        "max_position_embeddings": need(tensors, "text_model.embeddings.position_embedding.weight", 2, what)[0],
    }
    settle(config, sizes, what)
    result = {
        "model_type": "clip_text_model",
        **sizes,
        "num_attention_heads": choose_heads(config, "num_attention_heads", width, 8, what),
        "hidden_act": _activation(config, "hidden_act", "quick_gelu", what),
        "layer_norm_eps": _epsilon(config, "layer_norm_eps", 1e-5, what),
        "eos_token_id": stated_number(config, "eos_token_id", 0, what) or 49407,
    }
    if config.get("causal") is False:
        result["causal"] = False
    if config.get("strip_sep_token"):  # CLIPA: the closing token of a BERT's vocabulary counts as padding
        result["strip_sep_token"] = True
    if config.get("clean") is not None:
        result["clean"] = config["clean"]
    if config.get("pooling") not in (None, "end"):
        result["pooling"] = config["pooling"]
    if "text_projection.weight" in tensors:
        result["projection_dim"] = need(tensors, "text_projection.weight", 2, what)[0]
    return result


def _clip_block(shapes: Shapes, block: str, width: int, inner: int) -> None:
    for norm in ("layer_norm1", "layer_norm2"):
        _affine(shapes, block + norm, width)
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        _affine(shapes, block + "self_attn." + projection, width, width)
    _affine(shapes, block + "mlp.fc1", inner, width)
    _affine(shapes, block + "mlp.fc2", width, inner)


def clip_vision_shapes(config: Mapping[str, Any], tokens: int, integrated: tuple[int, ...], instruct: int) -> Shapes:
    """The vision tower's tensors; ``integrated`` blocks take questions of width ``instruct``."""
    width, inner, patch = config["hidden_size"], config["intermediate_size"], config["patch_size"]
    shapes: Shapes = {
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": (tokens, width),
    }
    pooling = config.get("pooling", "class")
    if pooling == "map":
        shapes["vision_model.embeddings.patch_embedding.bias"] = (width,)
        shapes.update(head_shapes(width, inner))
    else:
        shapes["vision_model.embeddings.class_embedding"] = (width,)
    if pooling == "class":
        _affine(shapes, "vision_model.pre_layrnorm", width)
    _affine(shapes, "vision_model.post_layernorm", width)
    for number in range(config["num_hidden_layers"]):
        block = f"vision_model.encoder.layers.{number}."
        _clip_block(shapes, block, width, inner)
        if number in integrated:
            _affine(shapes, block + "self_attn.instruction_out_proj", width, width)
            shapes[block + "self_attn.instruction_proj_gate"] = (1,)
            _affine(shapes, block + "instruct_dim_reduce.0", instruct)
            shapes[block + "instruct_dim_reduce.1.weight"] = (width, instruct)
            shapes[block + "instruct_dim_reduce.3.weight"] = (width, width)
    return shapes


def clip_text_shapes(config: Mapping[str, Any]) -> Shapes:
    """A CLIP text encoder's tensors."""
    width = config["hidden_size"]
    shapes: Shapes = {
        "text_model.embeddings.token_embedding.weight": (config["vocab_size"], width),
        "text_model.embeddings.position_embedding.weight": (config["max_position_embeddings"], width),
    }
    for number in range(config["num_hidden_layers"]):
        _clip_block(shapes, f"text_model.encoder.layers.{number}.", width, config["intermediate_size"])
    _affine(shapes, "text_model.final_layer_norm", width)
    return shapes


def full_names(tensors: Stored) -> Stored:
    """The tensors with towers whose names begin at ``embeddings.`` (transformers 5) under ``vision_model.``.

    And with the spellings of AltCLIP and OWL-ViT as CLIP's.
    """
    marks = ("embeddings.class_embedding", "embeddings.patch_embedding.bias", "head.probe")
    towers = [
        name[: -len(mark)] for name in tensors for mark in marks
        if name.endswith(mark) and not name.endswith("vision_model." + mark)
    ]  # fmt: skip
    result: Stored = {}
    for original, tensor in tensors.items():
        name = original
        for prefix in towers:
            if original.startswith(prefix) and BARE.match(original[len(prefix) :]):
                name = f"{prefix}vision_model.{original[len(prefix) :]}"
        result[_OTHER_BLOCKS.sub(r"\1encoder.layers.", _OTHER_NORM.sub(r"\1pre_layrnorm.", name))] = tensor
    return result


def _vision_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The vision half's keys of ``config=``."""
    result = dict(options.get("vision") or {})
    stated = ("integration_point", "instruction_dim", "hidden_act", "layer_norm_eps", "num_attention_heads")
    for key in (*stated, "position_resize"):
        if options.get(key) is not None:
            result[key] = options[key]
    if options.get("heads") is not None:
        result["num_attention_heads"] = options["heads"]
    for lavis, ours in (
        ("img_size", "image_size"),
        ("embed_dim", "hidden_size"),
        ("depth", "num_hidden_layers"),
        ("num_heads", "num_attention_heads"),
        ("heads", "num_attention_heads"),
        ("eps", "layer_norm_eps"),
    ):
        if lavis in result:
            result.setdefault(ours, result.pop(lavis))
    return result


def _positions(weight: Weight, config: Mapping[str, Any], stated: ImageSize | None = None) -> Weight:
    """Position embeddings for the configured image size: the same view where it is the weights' own.

    ``stated`` is the weights' own size where they are not of a square.
    """
    patch, shape = config["patch_size"], weight[2]
    rows, columns = (edge // patch for edge in height_and_width(config["image_size"]))
    old = position_grid(shape[-2] - first_tokens(config.get("pooling", "class")), stated, patch, "positions")
    if old == (rows, columns):
        return weight
    way = position_resize(config, "positions")
    resized = resize_positions(float_array(weight).reshape(shape[-2], shape[-1]), old, (rows, columns), way)
    return from_array(resized.reshape(*shape[:-2], *resized.shape))
