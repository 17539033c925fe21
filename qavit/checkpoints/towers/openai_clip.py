"""CLIP's image half under the names of OpenAI's code, which open_clip shares."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .._weights import Stored, float_array, from_array, row_views, shape_of, weight_of

_HEAD_WIDTH = 64
#: What stands behind ``visual.`` here, and behind ``vision_model.`` in the core's names.
_NAMES = (
    (re.compile(r"^class_embedding$"), "embeddings.class_embedding"),
    (re.compile(r"^positional_embedding$"), "embeddings.position_embedding.weight"),
    (re.compile(r"^conv1\.(.+)$"), r"embeddings.patch_embedding.\1"),
    (re.compile(r"^ln_pre\.(.+)$"), r"pre_layrnorm.\1"),
    (re.compile(r"^ln_post\.(.+)$"), r"post_layernorm.\1"),
    (re.compile(r"^transformer\.resblocks\.(\d+)\.ln_([12])\.(.+)$"), r"encoder.layers.\1.layer_norm\2.\3"),
    (re.compile(r"^transformer\.resblocks\.(\d+)\.attn\.out_proj\.(.+)$"), r"encoder.layers.\1.self_attn.out_proj.\2"),
    (re.compile(r"^transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(.+)$"), r"encoder.layers.\1.mlp.fc1.\2"),
    (re.compile(r"^transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(.+)$"), r"encoder.layers.\1.mlp.fc2.\2"),
)
_FUSED = re.compile(r"^transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$")


def is_openai(names: Stored) -> bool:
    """Whether a tower of this layout is among the tensors."""
    return bool(_prefixes(names))


def _prefixes(tensors: Stored) -> list[str]:
    return [
        name[: -len("class_embedding")] for name in tensors
        if (name == "class_embedding" or name.endswith(".class_embedding"))
        and name[: -len("class_embedding")] + "conv1.weight" in tensors
    ]  # fmt: skip


def rename(tensors: Stored) -> Stored:
    """The tensors with each such tower under the core's names, behind the prefix that it had.

    A fused matrix [3D, D] becomes three views of its rows; the projection [D, E] is transposed.
    """
    towers = _prefixes(tensors)
    result: Stored = {}
    for original, tensor in tensors.items():
        prefix = next((prefix for prefix in towers if original.startswith(prefix)), None)
        if prefix is None:
            result[original] = tensor
            continue
        rest = original[len(prefix) :]
        outer = prefix.removesuffix("visual.")
        fused = _FUSED.match(rest)
        if fused:
            block = f"{outer}vision_model.encoder.layers.{fused[1]}.self_attn."
            shape = shape_of(tensor)
            if not shape or shape[0] % 3:
                raise ValueError(f"{original} has shape {list(shape)}, expected queries, keys and values of one size")
            for name, view in zip("qkv", row_views(tensor, 3)):
                result[f"{block}{name}_proj.{fused[2]}"] = view
        elif rest == "proj":
            result[outer + "visual_projection.weight"] = from_array(float_array(weight_of(tensor)).T)
        else:
            for pattern, replacement in _NAMES:
                rest, count = pattern.subn(replacement, rest)
                if count:
                    break
            result[outer + "vision_model." + rest] = tensor
    return result


def openai_options(tensors: Stored, what: str) -> dict[str, Any]:
    """What the layout does not say and OpenAI's code fixes: heads 64 wide, and its own files' activation.

    Raises
    ------
    ValueError
        For towers of this family that are built otherwise.
    """
    first = _prefixes(tensors)[0]
    if first + "ln_pre.weight" not in tensors:
        raise ValueError(f"{what}: an open_clip tower without ln_pre (CLIPA) is not known")
    result: dict[str, Any] = {}
    width = shape_of(tensors[first + "class_embedding"])[0]
    if width % _HEAD_WIDTH == 0:
        result["num_attention_heads"] = width // _HEAD_WIDTH
    if any(name == "input_resolution" or name.endswith(".input_resolution") for name in tensors):
        result["hidden_act"] = "quick_gelu"
    return result


def open_clip_vision(config: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Hugging Face's keys of an open_clip_config.json's image half.

    Raises
    ------
    ValueError
        Naming the setting that makes it another kind of tower.
    """
    model = config.get("model_cfg")
    vision = model.get("vision_cfg") if isinstance(model, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(vision, Mapping):
        raise ValueError(f"{what}: expected an object with model_cfg and its vision_cfg")
    if isinstance(vision.get("layers"), list) or vision.get("timm_model_name") is not None:
        timm = vision.get("timm_model_name")
        kind = "a ResNet CLIP" if timm is None else f"a timm tower ({timm!r:.60})"
        raise ValueError(f"{what}: {kind} is not known; only open_clip's own vision transformers are")
    plain = {"image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio", "patch_dropout", "output_tokens"}
    usual = {"pool_type": "tok", "pos_embed_type": "learnable"}
    for key, value in vision.items():
        if key not in plain and value not in (None, False, usual.get(key)):
            raise ValueError(f"{what}: vision_cfg {key} {value!r:.60} makes another kind of tower, which is not known")
    width, head_width = vision.get("width", 768), vision.get("head_width", _HEAD_WIDTH)
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in (width, head_width)) or width % head_width:
        raise ValueError(f"{what}: width {width!r:.40} and head_width {head_width!r:.40} do not give whole heads")
    size = vision.get("image_size", 224)
    return {
        "image_size": size[0] if isinstance(size, list) and len(set(size)) == 1 else size,
        "num_attention_heads": width // head_width,
        "hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu",
        "hidden_size": width, "num_hidden_layers": vision.get("layers", 12), "patch_size": vision.get("patch_size", 16),
    }  # fmt: skip
