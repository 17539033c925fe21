"""Vision transformers that take no question: ViT, DeiT, DINOv2, DINOv3, and timm's."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..._base.arguments import height_and_width, image_size
from ..._base.types import ImageSize
from .._given import Given, unread_named
from .._pictures import folder_preprocessing, folder_size
from .._positions import resize_positions
from .._source import ModelSource, _known_options, _source
from .._states import find_model, leave_out, without_wrappers
from .._weights import Stored, Weights, float_array, from_array, shape_of
from .clip import _vision_options, full_names
from .families import told_by_names
from .names import CLASS_EMBEDDING, VISION
from .sizes import (
    Shapes,
    _activation,
    _affine,
    _epsilon,
    _grid,
    checked_size,
    choose_heads,
    count_blocks,
    need,
    position_resize,
    settle,
    stated_size,
    take,
)
from .vit_names import ROOT, core_names

log = logging.getLogger(__name__)
_PREFIX = "vision_model."
PATCHES = _PREFIX + "embeddings.patch_embedding"
_POSITIONS = _PREFIX + "embeddings.position_embedding.weight"
#: Heads of the published widths that are not 64 wide.
_HEADS = {1152: 16, 1280: 16, 1408: 16, 1536: 24, 1664: 16, 4096: 32}


class Kind(NamedTuple):
    """What the tensors of one of these families do not tell.

    Attributes
    ----------
    epsilon : float
        Of the norms.
    resize : str
        How public code takes positions to another grid; see `resize_positions`.
    pictures : str
        Whose settings pictures have where no file says any.
    size : int or None
        Of pictures, in pixels, where that is not the positions' own.
    """

    epsilon: float
    resize: str
    pictures: str
    size: int | None = None


_KINDS = {
    "vit": Kind(1e-12, "bicubic", "vit"),
    "deit": Kind(1e-12, "bicubic", "deit"),
    "dinov2": Kind(1e-6, "bicubic", "dinov2", 224),
    "dinov2_with_registers": Kind(1e-6, "bicubic_antialias", "dinov2", 224),
    "dinov2_native": Kind(1e-6, "bicubic_offset", "dinov2", 224),
    "dinov3_vit": Kind(1e-5, "bicubic", "dinov3", 224),
    "timm": Kind(1e-6, "bicubic_antialias", "timm"),
    "siglip": Kind(1e-6, "bicubic", "siglip"),
}


def open_files(given: Given) -> ModelSource:
    """One of these towers, from a folder or a file of weights."""
    asked, options, name, config = given.asked, given.asked.options, given.name, given.config
    _known_options(options)
    if given.text is not None:
        raise ValueError(f"{name}: text= was given, but such a vision transformer knows no text")
    stored = without_wrappers(given.content.tensors, name)
    inner = find_model(full_names(stored), VISION, asked.state, name)[0]
    if PATCHES + ".bias" in inner and CLASS_EMBEDDING not in inner:
        return _inside(given, inner)
    found, rest = find_model(stored, ROOT, asked.state, name)
    if not any("patch_embed" in key for key in found):
        told = told_by_names([*found, *rest])
        holds = f": it holds {told}" if told else ""
        raise ValueError(f"{name}: no patch embedding of ViT, DeiT, DINOv2, DINOv3 or timm among its tensors{holds}")
    kind = _kind_of(config, found)
    heads = {key: found.pop(key) for key in list(found) if key.startswith(("classifier.", "cls_classifier.", "head."))}
    pairs = {key: found.pop(key) for key in list(found) if key.startswith(("distillation_classifier.", "head_dist."))}
    tensors = core_names(found)
    tensors.update(leave_out({**rest, **pairs}, asked.strict, name))
    # Of DeiT's two heads each reads a token of its own.
    classes = None if pairs else _answer_head(tensors, heads, config)
    return _opened(given, kind, config, tensors, classes)


def _inside(given: Given, tensors: Stored) -> ModelSource:
    """A SigLIP tower whose tokens a language model reads, so that it has no head: PaliGemma's, Idefics's."""
    config = given.config.get("vision_config")
    others = len(given.content.tensors) - len(tensors)
    if others:
        log.info("%s: left out %d tensors of the model around the vision tower", given.name, others)
    return _opened(given, "siglip", config if isinstance(config, Mapping) else given.config, tensors, None)


def _opened(given: Given, kind: str, config: Mapping[str, Any], tensors: Stored, classes: list[str] | None) -> ModelSource:
    """A tower of the core's names."""
    asked, options, name = given.asked, given.asked.options, given.name
    gated = any(key.endswith(".mlp.gate.weight") for key in tensors)
    vision = {**_settings(config, kind, gated), **_vision_options(options)}
    patch = need(tensors, _PREFIX + "embeddings.patch_embedding.weight", 4, name)[-1]
    grid = _positions_grid(tensors, vision, patch, name)
    own = _KINDS[kind].size or (224 if grid is None else image_size((grid[0] * patch, grid[1] * patch), "image_size"))
    usual = own if given.folder is None else folder_size(given.folder, own)
    with unread_named(given.content.unread, name):
        vision, _, weights = complete(tensors, vision, None, asked.size or usual, name)
    said = options.get("preprocessing") or {}
    preprocessing = folder_preprocessing(given.folder, _KINDS[kind].pictures, usual, asked.size, said)
    return _source("vit", vision, None, weights, None, preprocessing, {"answers": classes}, options, name)


def _kind_of(config: Mapping[str, Any], found: Stored) -> str:
    """Which of `_KINDS`, by the configuration, or by what the layouts call their tensors."""
    stated = str(config.get("model_type", ""))
    if stated in _KINDS:
        return stated
    if "pretrained_cfg" in config:
        return "timm"
    if any(name == "storage_tokens" or name.startswith("rope_embed.") for name in found):
        return "dinov3_vit"
    if any(name.endswith("ls1.gamma") for name in found):
        return "dinov2_with_registers" if "register_tokens" in found else "dinov2_native"
    if any(name.endswith("lambda1") for name in found):
        if not any("position_embeddings" in name for name in found):
            return "dinov3_vit"
        return "dinov2_with_registers" if "embeddings.register_tokens" in found else "dinov2"
    if "embeddings.distillation_token" in found:
        return "deit"
    return "timm" if "patch_embed.proj.weight" in found else "vit"


def _settings(config: Mapping[str, Any], kind: str, gated: bool) -> dict[str, Any]:
    """The core's keys of a configuration of transformers; of timm's only what is pooled."""
    result: dict[str, Any] = {"layer_norm_eps": _KINDS[kind].epsilon, "position_resize": _KINDS[kind].resize}
    if kind == "timm":
        if config.get("global_pool") == "avg":
            result["pooling"] = "mean"
    else:
        known = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "layer_norm_eps")
        result.update({key: config[key] for key in (*known, "hidden_act") if config.get(key) is not None})
    if kind == "siglip":
        result.setdefault("hidden_act", "gelu_pytorch_tanh")
    if gated and (kind != "dinov3_vit" or "hidden_act" not in result):
        result["hidden_act"] = "silu"  # SwiGLU; of DINOv2 whatever the configuration says
    if kind == "dinov3_vit":
        rope = config.get("rope_parameters")
        theta = rope.get("rope_theta") if isinstance(rope, Mapping) else config.get("rope_theta")
        result["rope_theta"] = 100.0 if theta is None else theta
    return result


def _answer_head(tensors: Stored, heads: Stored, config: Mapping[str, Any]) -> list[str] | None:
    """A classifier's layer joins ``tensors`` where it reads the class token alone; the names of its classes."""
    weight = next((key for key in heads if key.endswith(".weight")), None)
    norm = tensors.get(_PREFIX + "post_layernorm.weight")
    if weight is None or norm is None or shape_of(heads[weight])[1:] != shape_of(norm):
        return None
    count = shape_of(heads[weight])[0]
    bias = weight[: -len("weight")] + "bias"
    tensors["answer_head.weight"] = heads[weight]
    tensors["answer_head.bias"] = heads.get(bias, from_array(np.zeros(count, np.float32)))
    labels = config.get("id2label")
    named = {str(key): str(value) for key, value in labels.items()} if isinstance(labels, Mapping) else {}
    listed = config.get("label_names")
    if not named and isinstance(listed, list):
        named = {str(number): str(value) for number, value in enumerate(listed)}
    return [named.get(str(number), f"class {number}") for number in range(count)]


def _positions_grid(tensors: Stored, config: Mapping[str, Any], patch: int, what: str) -> tuple[int, int] | None:
    """Rows and columns that the table of positions is for; None where there is none."""
    if _POSITIONS not in tensors:
        return None
    rows = need(tensors, _POSITIONS, 2, what)[0]
    classes = sum(f"{_PREFIX}embeddings.{one}_embedding" in tensors for one in ("class", "distillation"))
    stated = height_and_width(stated_size(config, what) or 0)
    across, down = (edge // patch for edge in stated)
    for count in (rows - classes, rows):
        if count == across * down:
            return across, down
        if count > 0 and math.isqrt(count) ** 2 == count:
            return math.isqrt(count), math.isqrt(count)
    return (_grid(rows - classes, what),) * 2


def complete(
    tensors: Stored, vision: Mapping[str, Any], text: Mapping[str, Any] | None, size: ImageSize | None, name: str
) -> tuple[dict[str, Any], dict[str, Any] | None, Weights]:
    """The configuration completed from the weights, and exactly the tensors that it calls for."""
    what = f"{name}: vision"
    width, channels, patch, patch2 = need(tensors, _PREFIX + "embeddings.patch_embedding.weight", 4, what)
    if channels != 3 or patch != patch2:
        raise ValueError(f"{what}: patches of {channels}x{patch}x{patch2} values, expected 3 colours and square patches")
    blocks = count_blocks(tensors, _PREFIX + "encoder.layers.")
    if blocks == 0:
        raise ValueError(f"{what}: no blocks among the weights")
    inner = need(tensors, _PREFIX + "encoder.layers.0.mlp.fc1.weight", 2, what)[0]
    sizes = {"hidden_size": width, "patch_size": patch, "num_hidden_layers": blocks, "intermediate_size": inner}
    settle(vision, sizes, what)
    grid = _positions_grid(tensors, vision, patch, what)
    asked = checked_size(size or stated_size(vision, what) or (None if grid is None else grid[0] * patch), patch)
    tokens = _PREFIX + "embeddings.class_embedding" in tensors
    pooling = vision.get("pooling") or ("map" if _PREFIX + "head.probe" in tensors else "class" if tokens else "mean")
    result = {
        "image_size": asked,
        **sizes,
        "num_attention_heads": choose_heads(
            vision, "num_attention_heads", width, _HEADS.get(width, width // 64 or None), what
        ),
        "hidden_act": _activation(vision, "hidden_act", "gelu", what),
        "layer_norm_eps": _epsilon(vision, "layer_norm_eps", 1e-6, what),
        "pooling": pooling,
    }
    if vision.get("rope_theta") is not None:
        result["rope_theta"] = float(vision["rope_theta"])
    weights = take(tensors, _shapes(tensors, result, what), name)
    rows, columns = (edge // patch for edge in height_and_width(asked))
    if grid is not None and grid != (rows, columns):
        table, way = float_array(weights[_POSITIONS]), position_resize(vision, what)
        weights[_POSITIONS] = from_array(resize_positions(table, grid, (rows, columns), way))
    return result, None, weights


def _shapes(tensors: Stored, config: Mapping[str, Any], what: str) -> Shapes:
    """The tensors of a tower: a part that may be left out is called for where it is there, or its other half is."""
    width, inner, patch = config["hidden_size"], config["intermediate_size"], config["patch_size"]
    shapes: Shapes = {_PREFIX + "embeddings.patch_embedding.weight": (width, 3, patch, patch)}

    def optional(name: str, *shape: int) -> None:
        if name in tensors:
            shapes[name] = shape

    optional(_PREFIX + "embeddings.patch_embedding.bias", width)
    optional(_PREFIX + "embeddings.class_embedding", width)
    optional(_PREFIX + "embeddings.distillation_embedding", width)
    for table in ("embeddings.register_tokens", "embeddings.position_embedding.weight"):
        if _PREFIX + table in tensors:
            shapes[_PREFIX + table] = (need(tensors, _PREFIX + table, 2, what)[0], width)
    if _PREFIX + "pre_layrnorm.weight" in tensors:
        _affine(shapes, _PREFIX + "pre_layrnorm", width)
    _affine(shapes, _PREFIX + "post_layernorm", width)
    gated = _PREFIX + "encoder.layers.0.mlp.gate.weight" in tensors
    for number in range(config["num_hidden_layers"]):
        block = f"{_PREFIX}encoder.layers.{number}."
        for norm in ("layer_norm1", "layer_norm2"):
            _affine(shapes, block + norm, width)
        for projection in ("q_proj", "k_proj", "v_proj"):
            shapes[f"{block}self_attn.{projection}.weight"] = (width, width)
            optional(f"{block}self_attn.{projection}.bias", width)
        _affine(shapes, block + "self_attn.out_proj", width, width)
        for hidden in ("gate", "fc1") if gated else ("fc1",):
            _affine(shapes, f"{block}mlp.{hidden}", inner, width)
        _affine(shapes, block + "mlp.fc2", width, inner)
        for scale in ("layer_scale1", "layer_scale2"):
            optional(block + scale, width)
    if config["pooling"] == "map":
        head = _PREFIX + "head."
        shapes[head + "probe"] = (width,)
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            _affine(shapes, f"{head}attention.{projection}", width, width)
        _affine(shapes, head + "layernorm", width)
        _affine(shapes, head + "mlp.fc1", inner, width)
        _affine(shapes, head + "mlp.fc2", width, inner)
    if "answer_head.weight" in tensors:
        _affine(shapes, "answer_head", need(tensors, "answer_head.weight", 2, what)[0], width)
    return shapes
