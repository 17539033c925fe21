"""CLIP under the names of OpenAI's code, which open_clip shares."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .._weights import Stored, float_array, from_array, row_views, shape_of, weight_of
from .vit_names import core_names

_HEAD_WIDTH = 64
#: How open_clip cleans a text before a tokenizer of Hugging Face's reads it.
CLEANINGS = ("whitespace", "lower", "canonicalize")
#: The end of text is the largest id, as the core understands this number.
_LARGEST_ID = 2
_SIGLIP_TEXT = {"model_type": "clip_text_model", "causal": False, "pooling": "last", "layer_norm_eps": 1e-6}
#: What stands behind ``visual.`` here, and behind ``vision_model.`` in the core's names.
_NAMES = (
    (re.compile(r"^class_embedding$"), "embeddings.class_embedding"),
    (re.compile(r"^positional_embedding$"), "embeddings.position_embedding.weight"),
    (re.compile(r"^conv1\.(.+)$"), r"embeddings.patch_embedding.\1"),
    (re.compile(r"^token_embedding\.(.+)$"), r"embeddings.token_embedding.\1"),
    (re.compile(r"^ln_pre\.(.+)$"), r"pre_layrnorm.\1"),
    (re.compile(r"^ln_post\.(.+)$"), r"post_layernorm.\1"),
    (re.compile(r"^ln_final\.(.+)$"), r"final_layer_norm.\1"),
    (re.compile(r"^transformer\.resblocks\.(\d+)\.ln_([12])\.(.+)$"), r"encoder.layers.\1.layer_norm\2.\3"),
    (re.compile(r"^transformer\.resblocks\.(\d+)\.attn\.out_proj\.(.+)$"), r"encoder.layers.\1.self_attn.out_proj.\2"),
    (re.compile(r"^transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(.+)$"), r"encoder.layers.\1.mlp.fc1.\2"),
    (re.compile(r"^transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(.+)$"), r"encoder.layers.\1.mlp.fc2.\2"),
)
_FUSED = re.compile(r"^transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$")
#: What the text half's names begin with, behind the same prefix as ``visual.`` or behind ``text.`` there.
_TEXT = re.compile(r"^(text\.)?(token_embedding\.|positional_embedding$|transformer\.|ln_final\.|text_projection(\.|$))")


def is_openai(names: Stored) -> bool:
    """Whether a tower of this layout is among the tensors, or timm's SigLIP as open_clip has it."""
    return bool(_prefixes(names) or _timm_prefixes(names))


def _timm_prefixes(tensors: Stored) -> list[str]:
    """What stands in front of ``visual.trunk.``, of a tower of timm's with SigLIP's attention head."""
    mark = "visual.trunk.attn_pool.latent"
    return [name[: -len(mark)] for name in tensors if name.endswith(mark)]


def rename_timm(tensors: Stored) -> Stored:
    """The tensors with each of open_clip's SigLIPs under the core's names: timm's tower, and open_clip's own text half."""
    result = dict(tensors)
    for outer in _timm_prefixes(tensors):
        trunk = outer + "visual.trunk."
        tower = {name[len(trunk) :]: result.pop(name) for name in list(result) if name.startswith(trunk)}
        result.update({outer + name: tensor for name, tensor in core_names(tower).items()})
        for original in list(result):
            if original.startswith(outer) and _TEXT.match(original[len(outer) :]):
                tensor = result.pop(original)
                result.update(_renamed(outer, "text_model", original[len(outer) :].removeprefix("text."), tensor))
    return result


def _prefixes(tensors: Stored) -> list[str]:
    return [
        name[: -len("class_embedding")] for name in tensors
        if (name == "class_embedding" or name.endswith(".class_embedding"))
        and name[: -len("class_embedding")] + "conv1.weight" in tensors
    ]  # fmt: skip


def rename(tensors: Stored) -> Stored:
    """The tensors with each such tower, and the text half beside it, under the core's names, behind the prefix that it had.

    A fused matrix [3D, D] becomes three views of its rows; a projection [D, E] is transposed.
    """
    towers = _prefixes(tensors)
    result: Stored = {}
    for original, tensor in tensors.items():
        half = next((half for prefix in towers if (half := _half_of(original, prefix))), None)
        if half is None:
            result[original] = tensor
            continue
        outer, half_name, rest = half
        result.update(_renamed(outer, half_name, rest, tensor))
    return result


def _renamed(outer: str, half: str, rest: str, tensor: Any) -> Stored:
    """One tensor of a half by the core's names; several, where it is several in one."""
    fused = _FUSED.match(rest)
    if fused:
        block = f"{outer}{half}.encoder.layers.{fused[1]}.self_attn."
        shape = shape_of(tensor)
        if not shape or shape[0] % 3:
            raise ValueError(f"{outer}{rest} has shape {list(shape)}, expected queries, keys and values of one size")
        return {f"{block}{name}_proj.{fused[2]}": view for name, view in zip("qkv", row_views(tensor, 3))}
    if rest in ("proj", "text_projection"):
        name = "visual_projection" if rest == "proj" else "text_projection"
        return {f"{outer}{name}.weight": from_array(float_array(weight_of(tensor)).T)}
    if rest.startswith("text_projection."):  # open_clip's proj_bias makes it a layer
        return {outer + rest: tensor}
    for pattern, replacement in _NAMES:
        rest, count = pattern.subn(replacement, rest)
        if count:
            break
    return {f"{outer}{half}.{rest}": tensor}


def _half_of(name: str, prefix: str) -> tuple[str, str, str] | None:
    """What stands in front of a half of the model, the half's name in the core, and what stands behind it."""
    outer = prefix.removesuffix("visual.")
    if name.startswith(prefix):
        return outer, "vision_model", name[len(prefix) :]
    if prefix.endswith("visual.") and name.startswith(outer) and _TEXT.match(name[len(outer) :]):
        return outer, "text_model", name[len(outer) :].removeprefix("text.")
    return None


def openai_options(tensors: Stored) -> tuple[dict[str, Any], dict[str, Any]]:
    """What no shape says and OpenAI's code fixes, of both halves: heads 64 wide, and its own files' activation.

    A tower without a norm in front of its blocks is CLIPA's.
    """
    if not _prefixes(tensors):  # SigLIP's; a configuration has to tell its heads and activation
        return {"pooling": "map", "layer_norm_eps": 1e-6}, {**_SIGLIP_TEXT}
    first = _prefixes(tensors)[0]
    outer = first.removesuffix("visual.")
    vision: dict[str, Any] = {}
    text: dict[str, Any] = {"model_type": "clip_text_model", "eos_token_id": _LARGEST_ID}
    width = shape_of(tensors[first + "class_embedding"])[0]
    if width % _HEAD_WIDTH == 0:
        vision["num_attention_heads"] = width // _HEAD_WIDTH
    norm = next((outer + name for name in ("ln_final.weight", "text.ln_final.weight") if outer + name in tensors), None)
    if norm is not None and shape_of(tensors[norm])[0] % _HEAD_WIDTH == 0:
        text["num_attention_heads"] = shape_of(tensors[norm])[0] // _HEAD_WIDTH
    if any(name == "input_resolution" or name.endswith(".input_resolution") for name in tensors):
        vision["hidden_act"] = text["hidden_act"] = "quick_gelu"
    if first + "ln_pre.weight" not in tensors:
        vision["pooling"] = "mean_then_norm"
        text.update(causal=False, pooling="last")
    return vision, text


def _refuse_unusual(settings: Mapping[str, Any], plain: set[str], usual: Mapping[str, Any], what: str) -> None:
    for key, value in settings.items():
        if key not in plain and value not in (None, False, usual.get(key)):
            raise ValueError(f"{what} {key} {value!r:.60} makes another kind of tower, which is not known")


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
    if "_siglip_" in str(vision.get("timm_model_name")):
        return _timm_siglip(vision, what)
    if isinstance(vision.get("layers"), list) or vision.get("timm_model_name") is not None:
        timm = vision.get("timm_model_name")
        kind = "a ResNet CLIP" if timm is None else f"a timm tower ({timm!r:.60})"
        raise ValueError(f"{what}: {kind} is not known; only open_clip's own vision transformers are")
    plain = {"image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio", "patch_dropout", "output_tokens"}
    plain |= {"no_ln_pre", "final_ln_after_pool"}
    pooling = vision.get("pool_type") or "tok"
    usual = {"pool_type": pooling if pooling in ("tok", "avg") else "tok", "pos_embed_type": "learnable"}
    _refuse_unusual(vision, plain, usual, f"{what}: vision_cfg")
    width, head_width = vision.get("width", 768), vision.get("head_width", _HEAD_WIDTH)
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in (width, head_width)) or width % head_width:
        raise ValueError(f"{what}: width {width!r:.40} and head_width {head_width!r:.40} do not give whole heads")
    size = vision.get("image_size", 224)
    result = {
        "image_size": size[0] if isinstance(size, list) and size and size == size[:1] * len(size) else size,
        "num_attention_heads": width // head_width,
        "hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu",
        "hidden_size": width, "num_hidden_layers": vision.get("layers", 12), "patch_size": vision.get("patch_size", 16),
    }  # fmt: skip
    if pooling == "avg":
        result["pooling"] = "mean_then_norm" if vision.get("final_ln_after_pool") else "mean"
    return result


def _timm_siglip(vision: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The same of timm's SigLIPs, which have exact gelu but in the two sizes that timm made with tanh's."""
    plain = {"image_size", "timm_model_name", "timm_model_pretrained"}
    usual = {"timm_pool": "map", "timm_proj": "none"}
    _refuse_unusual(vision, plain, usual, f"{what}: vision_cfg")
    name = str(vision["timm_model_name"])
    if "_gap_" in name:
        raise ValueError(f"{what}: a timm tower ({name!r:.60}) is not known: it has no attention head")
    activation = "gelu_pytorch_tanh" if re.search("so400m|giantopt", name) else "gelu"
    result: dict[str, Any] = {"hidden_act": activation, "layer_norm_eps": 1e-6}
    if isinstance(vision.get("image_size"), int):
        result["image_size"] = vision["image_size"]
    sizes = {"base": 12, "large": 16, "so400m": 16, "giantopt": 16}
    result["num_attention_heads"] = next((heads for size, heads in sizes.items() if f"vit_{size}_" in name), None)
    return {**{key: value for key, value in result.items() if value is not None}, "pooling": "map"}


def open_clip_text(config: Mapping[str, Any], what: str) -> dict[str, Any] | None:
    """Hugging Face's keys of an open_clip_config.json's text half; None where there is none, or one of another library.

    ``config`` is one that `open_clip_vision` takes.

    Raises
    ------
    ValueError
        Naming the setting that makes it another kind of encoder.
    """
    model, text = config["model_cfg"], config["model_cfg"].get("text_cfg")
    if not isinstance(text, Mapping) or text.get("hf_model_name") is not None:
        return None
    plain = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "no_causal_mask", "pool_type"}
    plain |= {"proj_bias", "hf_tokenizer_name", "tokenizer_kwargs", "pad_id", "output_tokens"}
    usual = {"proj_type": "linear", "norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}}
    _refuse_unusual(text, plain, usual, f"{what}: text_cfg")
    pooling = text.get("pool_type") or "argmax"
    if pooling not in ("argmax", "last"):
        raise ValueError(f"{what}: text_cfg pool_type {pooling!r:.40}, expected 'argmax' or 'last'")
    result: dict[str, Any] = {
        "model_type": "clip_text_model", "hidden_size": text.get("width", 512), "eos_token_id": _LARGEST_ID,
        "num_hidden_layers": text.get("layers", 12), "num_attention_heads": text.get("heads", 8),
        "hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu",
    }  # fmt: skip
    if text.get("no_causal_mask"):
        result["causal"] = False
    if text.get("norm_kwargs"):
        result["layer_norm_eps"] = 1e-6
    if text.get("act_kwargs"):
        result["hidden_act"] = "gelu_pytorch_tanh"
    told = text.get("tokenizer_kwargs") or {}
    known = isinstance(told, Mapping) and not told.keys() - {"strip_sep_token", "clean"}
    if not known or told.get("clean") not in (None, *CLEANINGS) or told.get("strip_sep_token") not in (None, True, False):
        raise ValueError(f"{what}: text_cfg tokenizer_kwargs {told!r:.60}, expected strip_sep_token and clean")
    result.update({key: value for key, value in told.items() if value})
    return {**result, "pooling": "last"} if pooling == "last" else result
