"""SigLIP and SigLIP 2 (Zhai et al., arXiv 2303.15343; Tschannen et al., arXiv 2502.14786).

CLIP's two halves, but for an attention head over the patches in place of the class token, and a text half that sees both
ways and is pooled at its last position. NaFlex, SigLIP 2 of any aspect, is the same tower for as many patches as a picture
has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..._base.small_files import read_json_object
from .._weights import Stored, float_array, from_array, row_views, shape_of, weight_of, without_leading_ones
from .sizes import Shapes, _affine

PATCHES = "vision_model.embeddings.patch_embedding.weight"
#: What transformers takes where a configuration says nothing.
_DEFAULTS = {"num_attention_heads": 12, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}


def vision_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A vision configuration of Hugging Face's, with what it leaves out.

    Raises
    ------
    ValueError
        For a tower without the attention head.
    """
    if config.get("vision_use_head") is False:
        raise ValueError("vision_use_head is false: a SigLIP without its attention head is not known")
    return {**_DEFAULTS, **config, "pooling": "map"}


def naflex_settings(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The same of NaFlex: how many patches a picture may have, by its processor."""
    most = 256
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            said = read_json_object(folder / name)
            inner = said.get("image_processor")
            most = (inner if isinstance(inner, Mapping) else said).get("max_num_patches", most)
            break
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise ValueError(f"{folder}: max_num_patches is {most!r:.40}, expected a whole number above 0")
    return {**vision_settings(config), "max_patches": most}


def text_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A text configuration of Hugging Face's, as that of a CLIP text half with what it leaves out."""
    return {**_DEFAULTS, **config, "model_type": "clip_text_model", "causal": False, "pooling": "last"}


def rename(tensors: Stored) -> Stored:
    """The tensors with both heads under the core's names: q, k and v of the fused matrix, the text's as a projection."""
    result: Stored = {}
    for original, tensor in tensors.items():
        outer, vision, name = original.rpartition("vision_model.head.")
        stem, fused, part = name.rpartition("attention.in_proj_")
        if vision and fused:
            shape = shape_of(tensor)
            if not shape or shape[0] % 3:
                raise ValueError(f"{original} has shape {list(shape)}, expected queries, keys and values of one size")
            for letter, view in zip("qkv", row_views(tensor, 3)):
                result[f"{outer}{vision}{stem}attention.{letter}_proj.{part}"] = view
        elif vision and name == "probe":
            result[original] = without_leading_ones(tensor, 1)
        elif original.endswith(PATCHES) and len(shape_of(tensor)) == 2 and not _has_class(tensors, original):
            result[original] = _patch_weights(tensor, original)
        else:
            outer, text, name = original.rpartition("text_model.head.")
            result[f"{outer}text_projection.{name}" if text else original] = tensor
    return result


def _has_class(tensors: Stored, patches: str) -> bool:
    return patches.removesuffix("patch_embedding.weight") + "class_embedding" in tensors


def _patch_weights(tensor: Any, name: str) -> Any:
    """NaFlex's [D, p p 3], colours innermost, as a convolution's [D, 3, p, p]."""
    width, depth = shape_of(tensor)
    side = math.isqrt(depth // 3)
    if side * side * 3 != depth:
        raise ValueError(f"{name} has shape [{width}, {depth}], expected square patches of 3 colours")
    rows = float_array(weight_of(tensor)).reshape(width, side, side, 3)
    return from_array(np.ascontiguousarray(rows.transpose(0, 3, 1, 2)))


def head_shapes(width: int, inner: int) -> Shapes:
    """The tensors of the attention head over the patches."""
    shapes: Shapes = {"vision_model.head.probe": (width,)}
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        _affine(shapes, f"vision_model.head.attention.{name}", width, width)
    _affine(shapes, "vision_model.head.layernorm", width)
    _affine(shapes, "vision_model.head.mlp.fc1", inner, width)
    _affine(shapes, "vision_model.head.mlp.fc2", width, inner)
    return shapes
