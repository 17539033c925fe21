"""What the tensors of each architecture are called and how large they are; checks, and what is changed on the way in.

Sizes are read off the weights. A configuration says only what shapes cannot (heads, activations, epsilons), and where
it says a size too, it has to agree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qavit.weights import (
    CORE_DTYPES,
    Stored,
    Weight,
    Weights,
    base_dtype,
    cast,
    dtype_of,
    float_array,
    from_array,
    release_tensor,
    shape_of,
    weight_of,
)

Shapes = dict[str, tuple[int, ...]]

#: Which blocks of L take the question, by the name of the integration point.
INTEGRATION_POINTS = ("all", "early", "late", "late2", "late3", "sparse")
#: The largest image that position embeddings are interpolated for.
MAX_IMAGE_SIZE = 8192
#: Found in files beside the weights, and not needed: positions' numbers, the trained scale of CLIP's logits.
_IGNORED = re.compile(r"(^|\.)(position_ids|logit_scale|instruction_gate|num_batches_tracked)$")


def integrated_blocks(point: str, blocks: int) -> tuple[int, ...]:
    """The blocks that take the question, for an integration point and a number of blocks."""
    first = {"all": 0, "late": blocks // 2, "late2": 3 * blocks // 4, "late3": blocks // 4}
    if point in first:
        return tuple(range(first[point], blocks))
    if point == "early":
        return tuple(range(blocks // 2))
    if point == "sparse":
        return tuple(range(0, blocks, 2))
    raise ValueError(f"integration_point: expected one of {', '.join(INTEGRATION_POINTS)}, got {point!r}")


def integration_point(found: tuple[int, ...], blocks: int, stated: str | None) -> str:
    """The name of a set of integrated blocks, checked against the one that was stated.

    Raises
    ------
    ValueError
        Where the weights' blocks are not those of ``stated``, or of any integration point.
    """
    if stated is not None:
        expected = integrated_blocks(stated, blocks)
        if expected != found:
            raise ValueError(
                f"integration_point {stated!r} means blocks {_ranges(expected)} of {blocks}, "
                f"but the weights have instruct layers in blocks {_ranges(found)}"
            )
        return stated
    for point in ("late", "all", "early", "late2", "late3", "sparse"):
        if integrated_blocks(point, blocks) == found:
            return point
    raise ValueError(
        f"the weights have instruct layers in blocks {_ranges(found)} of {blocks}, which is none of the integration "
        f"points ({', '.join(INTEGRATION_POINTS)})"
    )


def _ranges(blocks: tuple[int, ...]) -> str:
    if not blocks:
        return "(none)"
    parts: list[list[int]] = []
    for block in blocks:
        if parts and parts[-1][1] == block - 1:
            parts[-1][1] = block
        else:
            parts.append([block, block])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


# Sizes, from the weights.


def need(tensors: Stored, name: str, dims: int, what: str) -> tuple[int, ...]:
    """The shape of a tensor that has to be there with this many dimensions."""
    if name not in tensors:
        raise ValueError(f"{what}: {name} is missing")
    shape = shape_of(tensors[name])
    if len(shape) != dims or 0 in shape:
        raise ValueError(f"{what}: {name} has shape {list(shape)}, expected {dims} sizes above 0")
    return shape


def count_blocks(tensors: Stored, prefix: str) -> int:
    """One more than the highest block number under ``prefix``."""
    pattern = re.compile(re.escape(prefix) + r"(\d{1,5})\.")
    numbers = [int(match[1]) for match in map(pattern.match, tensors) if match]
    return max(numbers) + 1 if numbers else 0


def settle(config: Mapping[str, Any], sizes: dict[str, Any], what: str) -> None:
    """Raise where a configuration states a size that the weights do not have."""
    for key, value in sizes.items():
        stated = config.get(key)
        if stated is not None and stated != value:
            raise ValueError(f"{what}: the configuration says {key} {stated!r}, the weights say {value}")


def choose_heads(config: Mapping[str, Any], key: str, width: int, default: int | None, what: str) -> int:
    """The number of heads, which no shape tells."""
    heads = config.get(key, default)
    if heads is None:
        raise ValueError(f"{what}: the number of heads cannot be told from the weights; give config={{'{key}': ...}}")
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1 or width % heads:
        raise ValueError(f"{what}: {key} {heads!r} does not divide the width {width}")
    return heads


def _epsilon(config: Mapping[str, Any], key: str, default: float, what: str) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"{what}: {key} {value!r}, expected a small number")
    return float(value)


def _activation(config: Mapping[str, Any], key: str, default: str, what: str) -> str:
    value = config.get(key, default)
    known = ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu")
    if value not in known:
        raise ValueError(f"{what}: {key} {value!r}, expected one of {', '.join(known)}")
    return str(value)


def _grid(positions: int, what: str) -> int:
    side = math.isqrt(positions)
    if side * side != positions or side == 0:
        raise ValueError(f"{what}: {positions} patch positions are not a square grid")
    return side


def clip_vision_config(tensors: Stored, config: Mapping[str, Any], image_size: int | None, what: str) -> dict[str, Any]:
    """Hugging Face's keys for a CLIP vision tower: sizes from the weights, CLIP's defaults for what they do not tell.

    ``image_size`` asks for another size than the weights' own; see `resize_positions`.
    """
    prefix = "vision_model."
    width, channels, patch, patch2 = need(tensors, prefix + "embeddings.patch_embedding.weight", 4, what)
    if channels != 3 or patch != patch2:
        raise ValueError(f"{what}: patches of {channels}x{patch}x{patch2} values, expected 3 colours and square patches")
    tokens = need(tensors, prefix + "embeddings.position_embedding.weight", 2, what)[0]
    blocks = count_blocks(tensors, prefix + "encoder.layers.")
    if blocks == 0:
        raise ValueError(f"{what}: no blocks (vision_model.encoder.layers.0...) among the weights")
    side = _grid(tokens - 1, what)
    inner = need(tensors, prefix + "encoder.layers.0.mlp.fc1.weight", 2, what)[0]
    sizes = {"hidden_size": width, "patch_size": patch, "num_hidden_layers": blocks, "intermediate_size": inner}
    settle(config, sizes, what)
    own = config.get("image_size", side * patch)
    if not isinstance(own, int) or own // patch != side:
        raise ValueError(f"{what}: the configuration says image_size {own!r}, the weights have {side}x{side} patches")
    if image_size is not None and (not patch <= image_size <= MAX_IMAGE_SIZE or image_size % patch):
        raise ValueError(
            f"image_size: got {image_size}, expected a multiple of the patch size {patch}, to {MAX_IMAGE_SIZE}"
        )
    default = 12 if width % 12 == 0 and config else None
    result = {
        "image_size": image_size or own,
        **sizes,
        "num_attention_heads": choose_heads(config, "num_attention_heads", width, default, what),
        "hidden_act": _activation(config, "hidden_act", "quick_gelu", what),
        "layer_norm_eps": _epsilon(config, "layer_norm_eps", 1e-5, what),
    }
    if "visual_projection.weight" in tensors:
        result["projection_dim"] = need(tensors, "visual_projection.weight", 2, what)[0]
    return result


def t5_config(tensors: Stored, config: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Hugging Face's keys for a T5 encoder."""
    block = "text_model.encoder.block.0."
    vocabulary, width = need(tensors, "text_model.shared.weight", 2, what)
    inner = need(tensors, block + "layer.0.SelfAttention.q.weight", 2, what)[0]
    buckets, heads = need(tensors, block + "layer.0.SelfAttention.relative_attention_bias.weight", 2, what)
    gated = block + "layer.1.DenseReluDense.wi_0.weight" in tensors
    up = block + f"layer.1.DenseReluDense.{'wi_0' if gated else 'wi'}.weight"
    activation = config.get("feed_forward_proj", "gated-gelu" if gated else "relu")
    if activation not in ("gated-gelu", "gated-relu", "gated-silu", "relu", "gelu", "gelu_new"):
        raise ValueError(f"{what}: feed_forward_proj {activation!r}, expected gated-gelu or relu")
    if activation.startswith("gated-") != gated:
        have = "wi_0 and wi_1" if gated else "wi alone"
        raise ValueError(f"{what}: the configuration says feed_forward_proj {activation!r}, the weights have {have}")
    if inner % heads:
        raise ValueError(f"{what}: {heads} heads do not divide the width {inner} of their queries")
    sizes = {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": inner // heads,
        "d_ff": need(tensors, up, 2, what)[0],
        "num_layers": count_blocks(tensors, "text_model.encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
    }
    settle(config, sizes, what)
    return {
        "model_type": "t5",
        **sizes,
        "relative_attention_max_distance": int(config.get("relative_attention_max_distance", 128)),
        "feed_forward_proj": activation,
        "layer_norm_epsilon": _epsilon(config, "layer_norm_epsilon", 1e-6, what),
    }


def bert_config(tensors: Stored, config: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Hugging Face's keys for a BERT or RoBERTa encoder."""
    kind = str(config.get("model_type", "bert"))
    vocabulary, width = need(tensors, "text_model.embeddings.word_embeddings.weight", 2, what)
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"{what}: position_embedding_type {config['position_embedding_type']!r}, expected 'absolute'")
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": count_blocks(tensors, "text_model.encoder.layer."),
        "intermediate_size": need(tensors, "text_model.encoder.layer.0.intermediate.dense.weight", 2, what)[0],
        "max_position_embeddings": need(tensors, "text_model.embeddings.position_embeddings.weight", 2, what)[0],
        "type_vocab_size": need(tensors, "text_model.embeddings.token_type_embeddings.weight", 2, what)[0],
    }
    settle(config, sizes, what)
    return {
        "model_type": kind,
        **sizes,
        "num_attention_heads": choose_heads(config, "num_attention_heads", width, 12, what),
        "hidden_act": _activation(config, "hidden_act", "gelu", what),
        "layer_norm_eps": _epsilon(config, "layer_norm_eps", 1e-12, what),
        "pad_token_id": int(config.get("pad_token_id") or (1 if kind != "bert" else 0)),
    }


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
        "eos_token_id": int(config.get("eos_token_id") or 49407),
    }
    if "text_projection.weight" in tensors:
        result["projection_dim"] = need(tensors, "text_projection.weight", 2, what)[0]
    return result


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


# Every tensor, with its shape.


def _affine(shapes: Shapes, name: str, rows: int, columns: int | None = None, bias: bool = True) -> None:
    shapes[name + ".weight"] = (rows,) if columns is None else (rows, columns)
    if bias:
        shapes[name + ".bias"] = (rows,)


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
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": (tokens, width),
    }
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


def t5_shapes(config: Mapping[str, Any]) -> Shapes:
    """A T5 encoder's tensors."""
    width, inner, hidden = config["d_model"], config["d_kv"] * config["num_heads"], config["d_ff"]
    shapes: Shapes = {"text_model.shared.weight": (config["vocab_size"], width)}
    for number in range(config["num_layers"]):
        block = f"text_model.encoder.block.{number}."
        for name in "qkv":
            shapes[f"{block}layer.0.SelfAttention.{name}.weight"] = (inner, width)
        shapes[block + "layer.0.SelfAttention.o.weight"] = (width, inner)
        shapes[block + "layer.0.layer_norm.weight"] = shapes[block + "layer.1.layer_norm.weight"] = (width,)
        for name in ("wi_0", "wi_1") if config["feed_forward_proj"].startswith("gated-") else ("wi",):
            shapes[f"{block}layer.1.DenseReluDense.{name}.weight"] = (hidden, width)
        shapes[block + "layer.1.DenseReluDense.wo.weight"] = (width, hidden)
    bias = "text_model.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    shapes[bias] = (config["relative_attention_num_buckets"], config["num_heads"])
    shapes["text_model.encoder.final_layer_norm.weight"] = (width,)
    return shapes


def _bert_attention(shapes: Shapes, name: str, width: int, keys: int) -> None:
    _affine(shapes, name + ".self.query", width, width)
    _affine(shapes, name + ".self.key", width, keys)
    _affine(shapes, name + ".self.value", width, keys)
    _affine(shapes, name + ".output.dense", width, width)
    _affine(shapes, name + ".output.LayerNorm", width)


def bert_shapes(config: Mapping[str, Any], prefix: str = "text_model.", image_width: int | None = None) -> Shapes:
    """A BERT encoder's tensors; with cross-attention (and no token types) where ``image_width`` is given."""
    width, hidden = config["hidden_size"], config["intermediate_size"]
    shapes: Shapes = {
        prefix + "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        prefix + "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
    }
    if image_width is None:
        shapes[prefix + "embeddings.token_type_embeddings.weight"] = (config["type_vocab_size"], width)
    _affine(shapes, prefix + "embeddings.LayerNorm", width)
    for number in range(config["num_hidden_layers"]):
        block = f"{prefix}encoder.layer.{number}."
        _bert_attention(shapes, block + "attention", width, width)
        if image_width is not None:
            _bert_attention(shapes, block + "crossattention", width, image_width)
        _affine(shapes, block + "intermediate.dense", hidden, width)
        _affine(shapes, block + "output.dense", width, hidden)
        _affine(shapes, block + "output.LayerNorm", width)
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


def text_shapes(config: Mapping[str, Any]) -> Shapes:
    """The tensors of any text half."""
    kind = config["model_type"]
    if kind == "t5":
        return t5_shapes(config)
    return clip_text_shapes(config) if kind == "clip_text_model" else bert_shapes(config)


def take(tensors: Stored, expected: Shapes, what: str, optional: Shapes | None = None) -> Weights:
    """Exactly the expected tensors, as the core takes them.

    Raises
    ------
    ValueError
        One error that lists the first few tensors that are missing, of another shape, of a type that is not a float, or
        not expected.
    """
    wanted = {**expected, **{name: shape for name, shape in (optional or {}).items() if name in tensors}}
    problems = []
    weights: Weights = {}
    for name, shape in wanted.items():
        tensor = tensors.get(name)
        if tensor is None:
            problems.append(f"{name} {list(shape)} is missing")
            continue
        found = shape_of(tensor)
        if found != shape and not (math.prod(found) == math.prod(shape) == 1):
            problems.append(f"{name} has shape {list(found)}, expected {list(shape)}")
        elif base_dtype(dtype_of(tensor)) not in (*CORE_DTYPES, "float64"):
            problems.append(f"{name} is {dtype_of(tensor)}, expected one of {', '.join(CORE_DTYPES)}")
        elif not problems:
            buffer, dtype, _, offset = weight_of(tensor)
            weight: Weight = (buffer, dtype, shape, offset)
            weights[name] = weight if base_dtype(dtype) in CORE_DTYPES else cast(weight, "float32")
    problems += [
        f"{name} {list(shape_of(tensor))} is not expected"
        for name, tensor in tensors.items()
        if name not in wanted and not _IGNORED.search(name)
    ]
    if problems:
        shown = 8
        more = f"\n  ... and {len(problems) - shown} more" if len(problems) > shown else ""
        lines = "".join(f"\n  {problem}" for problem in problems[:shown])
        raise ValueError(f"{what}: the weights are not those of the model that was expected:{lines}{more}")
    return weights


# LoRA.

_ADAPTER = re.compile(r"^(.+)\.lora_(embedding_)?([AB])(?:\.([^.]+))?(?:\.weight)?$")


def merge_lora(tensors: Stored, alpha: float | None, what: str) -> Stored:
    """Add low-rank adapters to their weights: W + (alpha / r) B A, for an embedding W + (alpha / r) (B A)^T.

    Parameters
    ----------
    tensors : dict
        Base weights called ``X.weight`` (peft 0.4) or ``X.base_layer.weight`` (later), adapters
        ``X.lora_A.NAME.weight`` [r, in] and ``X.lora_B.NAME.weight`` [out, r], or ``X.lora_embedding_A.NAME`` [r, rows]
        and ``X.lora_embedding_B.NAME`` [width, r].
    alpha : float or None
        The adapters' scale; None: 32 where r is 16, as the public checkpoints were trained, else an error.

    Returns
    -------
    dict
        The tensors without adapters; merged ones are new float32 arrays, the others the same views as before.
    """
    merged: Stored = {}
    adapters: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        match = _ADAPTER.match(name)
        if match is None:
            base = name.replace(".base_layer.", ".")
            if base in merged:
                raise ValueError(f"{what}: {base} is there twice, with and without base_layer")
            merged[base] = tensor
            continue
        target, embedding, side, adapter = match[1], bool(match[2]), match[3], match[4] or "default"
        entry = adapters.setdefault(target, {"adapter": adapter, "embedding": embedding})
        if entry["adapter"] != adapter or entry["embedding"] != embedding or side in entry:
            raise ValueError(f"{what}: {target} has more than one LoRA adapter")
        entry[side] = tensor
    for target, entry in adapters.items():
        merged[target + ".weight"] = _merge(target, merged.get(target + ".weight"), entry, alpha, what)
    return merged


def _merge(target: str, base: Any, entry: dict[str, Any], alpha: float | None, what: str) -> Weight:
    if base is None or "A" not in entry or "B" not in entry:
        missing = "its base weight" if base is None else "lora_A" if "A" not in entry else "lora_B"
        raise ValueError(f"{what}: the LoRA adapter of {target} lacks {missing}")
    a, b, shape = shape_of(entry["A"]), shape_of(entry["B"]), shape_of(base)
    rows, columns = (a[-1], b[0]) if entry["embedding"] else (b[0], a[-1])
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] == 0 or shape != (rows, columns):
        raise ValueError(f"{what}: {target} {list(shape)} has LoRA factors A {list(a)} and B {list(b)}, which do not fit")
    rank = a[0]
    if alpha is None:
        if rank != 16:
            raise ValueError(
                f"{what}: LoRA of rank {rank} and no lora_alpha in the checkpoint; give config={{'lora_alpha': ...}}"
            )
        alpha = 32.0
    first, second = float_array(weight_of(entry["A"])), float_array(weight_of(entry["B"]))
    product: NDArray[np.float32] = first.T @ second.T if entry["embedding"] else second @ first
    product *= np.float32(alpha / rank)
    base = weight_of(base)
    product += float_array(base)
    release_tensor(base)
    return from_array(product)


# Position embeddings for another image size.


def _cubic(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weights of the four neighbours at -1, 0, 1, 2 of a point at t in [0, 1), for cubic convolution, a = -0.75."""
    a = -0.75
    distance = np.abs(t[:, None] - np.arange(-1, 3)[None, :])
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    weights: NDArray[np.float64] = np.where(distance <= 1, near, far)
    return weights


def _resize_matrix(old: int, new: int) -> NDArray[np.float64]:
    """[new, old]: cubic interpolation of a row of ``old`` samples at ``new`` evenly spread cell centres."""
    centre = (np.arange(new) + 0.5) * (old / new) - 0.5
    left = np.floor(centre)
    weights = _cubic(centre - left)
    columns = np.clip(left.astype(np.int64)[:, None] + np.arange(-1, 3)[None, :], 0, old - 1)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.repeat(np.arange(new), 4), columns.reshape(-1)), weights.reshape(-1))
    return matrix


def resize_positions(positions: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Position embeddings for a grid of another size.

    Parameters
    ----------
    positions : float32 [1 + n * n, D]
        The class token's, then the patches', row by row.
    side : int
        Patches along each side of the new grid.

    Returns
    -------
    float32 [1 + side * side, D]
        The class token's as it was; the patches' interpolated bicubically between cell centres, as
        ``interpolate_pos_encoding`` of transformers does.
    """
    old = math.isqrt(positions.shape[0] - 1)
    if old == side:
        return positions
    matrix = _resize_matrix(old, side)
    grid = positions[1:].astype(np.float64).reshape(old, old, -1)
    resized = np.einsum("yi,xj,ijd->yxd", matrix, matrix, grid, optimize=True)
    return np.concatenate([positions[:1], resized.reshape(side * side, -1).astype(np.float32)])
