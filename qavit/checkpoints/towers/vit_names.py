"""Names of plain vision transformers: Hugging Face's ViT, DeiT, DINOv2 and DINOv3, Meta's own DINOv2 and DINOv3, timm's."""

from __future__ import annotations

import re
from typing import Union

from .._weights import Stored, StoredTensor, Weight, row_views, shape_of, without_leading_ones

Tensor = Union[Weight, StoredTensor]

#: A tower behind any prefix, and heads beside it.
ROOT = re.compile(
    r"^(.*?\.)??((?:embeddings\.(?:cls_token|distillation_token|mask_token|register_tokens|position_embeddings"
    r"|patch_embeddings\.(?:projection\.)?(?:weight|bias))"
    r"|(?:encoder\.layer|layers|model\.layer|layer|blocks)\.\d+\..+|(?:layernorm|norm|fc_norm|norm_pre)\.(?:weight|bias)"
    r"|(?:cls|dist|reg|mask|storage)_tokens?|pos_embed|register_tokens|patch_embed\.proj\.(?:weight|bias)"
    r"|attn_pool\..+|rope_embed\.periods|pooler\.dense\.(?:weight|bias)"
    r"|(?:classifier|cls_classifier|distillation_classifier|head|head_dist)\.(?:weight|bias)))$"
)
_BLOCK = r"^(?:encoder\.layer|layers|model\.layer|layer|blocks)\.(\d+)\."
_NAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^(?:embeddings\.)?cls_token$", "embeddings.class_embedding"),
        (r"^(?:embeddings\.distillation_token|dist_token)$", "embeddings.distillation_embedding"),
        (r"^(?:embeddings\.register_tokens|register_tokens|reg_token|storage_tokens)$", "embeddings.register_tokens"),
        (r"^(?:embeddings\.position_embeddings|pos_embed)$", "embeddings.position_embedding.weight"),
        (r"^(?:embeddings\.patch_embeddings\.(?:projection\.)?|patch_embed\.proj\.)", "embeddings.patch_embedding."),
        (r"^(?:layernorm|norm|fc_norm)\.", "post_layernorm."),
        (r"^norm_pre\.", "pre_layrnorm."),
        (_BLOCK, r"encoder.layers.\1."),
        (r"\.attention\.attention\.(query|key|value)\.", lambda match: f".self_attn.{match[1][0]}_proj."),
        (r"\.attention\.([qkv])_proj\.", r".self_attn.\1_proj."),
        (r"\.(?:attention\.o_proj|attention\.output\.dense|attn\.proj)\.", ".self_attn.out_proj."),
        (r"\.(?:norm1|layernorm_before)\.", ".layer_norm1."),
        (r"\.(?:norm2|layernorm_after)\.", ".layer_norm2."),
        (r"\.(?:layer_scale|ls)([12])\.(?:lambda1|gamma)$", r".layer_scale\1"),
        (r"\.mlp\.(?:gate_proj|w1)\.", ".mlp.gate."),
        (r"\.mlp\.(?:up_proj|w2)\.", ".mlp.fc1."),
        (r"\.mlp\.(?:down_proj|w3|weights_out)\.", ".mlp.fc2."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"(encoder\.layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
        (r"^attn_pool\.latent$", "head.probe"),
        (r"^attn_pool\.proj\.", "head.attention.out_proj."),
        (r"^attn_pool\.q\.", "head.attention.q_proj."),
        (r"^attn_pool\.norm\.", "head.layernorm."),
        (r"^attn_pool\.mlp\.", "head.mlp."),
    )
)
#: One matrix that is several: which parts, in turn.
_FUSED = (
    (re.compile(_BLOCK + r"attn\.qkv\.(weight|bias)$"), r"encoder.layers.\1.self_attn.{}_proj.\2", "qkv"),
    (re.compile(_BLOCK + r"mlp\.(?:w12|weights_in)\.(weight|bias)$"), r"encoder.layers.\1.mlp.{}.\2", ("gate", "fc1")),
    (re.compile(r"^attn_pool\.kv\.(weight|bias)$"), r"head.attention.{}_proj.\1", "kv"),
)
_DROPPED = re.compile(r"(^|\.)(mask_token|rope_embed\.periods|bias_mask|pooler\.dense\.(weight|bias))$")
_MASK = "attn.qkv.bias_mask"


def core_names(found: Stored) -> Stored:
    """Tensors of `ROOT`'s names, heads apart, by the core's names; matrices of several parts as views of their rows."""
    masked = any(name.endswith(_MASK) for name in found)  # DINOv3's own code adds no bias to keys
    fc_norm = any(name.startswith("fc_norm.") for name in found)
    result: Stored = {}
    for name, tensor in found.items():
        if _DROPPED.search(name) or (fc_norm and name.startswith("norm.")) or 0 in shape_of(tensor):
            continue
        for pattern, target, parts in _FUSED:
            match = pattern.match(name)
            if match is None:
                continue
            if not shape_of(tensor) or shape_of(tensor)[0] % len(parts):
                raise ValueError(f"{name} has shape {list(shape_of(tensor))}, expected {len(parts)} parts of one size")
            for part, view in zip(parts, row_views(tensor, len(parts))):
                if not (masked and part == "k" and name.endswith(".bias")):
                    result["vision_model." + match.expand(target).format(part)] = view
            break
        else:
            for renamed, replacement in _NAMES:
                name = renamed.sub(replacement, name)
            result["vision_model." + name] = _without_batch(name, tensor)
    return result


def _without_batch(name: str, tensor: Tensor) -> Tensor:
    """Tokens and tables without the axes of one that their layouts have in front."""
    if name in ("embeddings.class_embedding", "embeddings.distillation_embedding", "head.probe"):
        return without_leading_ones(tensor, 1)
    if name in ("embeddings.position_embedding.weight", "embeddings.register_tokens"):
        return without_leading_ones(tensor, 2)
    return tensor
