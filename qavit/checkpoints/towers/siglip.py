"""SigLIP and SigLIP 2 of a fixed size (Zhai et al., arXiv 2303.15343; Tschannen et al., arXiv 2502.14786).

CLIP's two halves, but for an attention head over the patches in place of the class token, and a text half that sees both
ways and is pooled at its last position.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._weights import Stored, row_views, shape_of, without_leading_ones
from .sizes import Shapes, _affine

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
        else:
            outer, text, name = original.rpartition("text_model.head.")
            result[f"{outer}text_projection.{name}" if text else original] = tensor
    return result


def head_shapes(width: int, inner: int) -> Shapes:
    """The tensors of the attention head over the patches."""
    shapes: Shapes = {"vision_model.head.probe": (width,)}
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        _affine(shapes, f"vision_model.head.attention.{name}", width, width)
    _affine(shapes, "vision_model.head.layernorm", width)
    _affine(shapes, "vision_model.head.mlp.fc1", inner, width)
    _affine(shapes, "vision_model.head.mlp.fc2", width, inner)
    return shapes
