"""T5 encoders (Raffel et al., arXiv 1910.10683)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._weights import Stored
from .sizes import Shapes, _affine, _epsilon, count_blocks, need, settle, stated_number


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
        "relative_attention_max_distance": stated_number(config, "relative_attention_max_distance", 128, what),
        "feed_forward_proj": activation,
        "layer_norm_epsilon": _epsilon(config, "layer_norm_epsilon", 1e-6, what),
    }


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


#: What tells that a T5 takes pictures and answers, as QA-ViT's.
TRANSLATION = "text_model.translation_mlp.layers.0.weight"


def t5_picture_shapes(config: Mapping[str, Any], picture_width: int, what: str) -> Shapes:
    """The tensors of a T5's encoder, beside its own, by which it takes pictures."""
    if config["model_type"] != "t5":
        raise ValueError(f"{what}: the checkpoint answers by T5, the configuration says {config['model_type']!r}")
    width = config["d_model"]
    shapes: Shapes = {"text_model.encoder.embed_tokens.weight": (config["vocab_size"], width)}
    _affine(shapes, "text_model.translation_mlp.layers.0", width, picture_width)
    _affine(shapes, "text_model.translation_mlp.layers.1", width, width)
    return shapes


def t5_decoder_shapes(tensors: Stored, config: dict[str, Any], stated: Mapping[str, Any], what: str) -> Shapes:
    """The tensors of a T5's decoder and its head; ``config`` gains its number of blocks."""
    blocks = count_blocks(tensors, "text_model.decoder.block.")
    settle(stated, {"num_decoder_layers": blocks}, what)
    config["num_decoder_layers"] = blocks
    width, inner, hidden = config["d_model"], config["d_kv"] * config["num_heads"], config["d_ff"]
    shapes: Shapes = {
        "text_model.decoder.embed_tokens.weight": (config["vocab_size"], width),
        "text_model.decoder.final_layer_norm.weight": (width,),
        "text_model.lm_head.weight": (config["vocab_size"], width),
    }
    for number in range(blocks):
        block = f"text_model.decoder.block.{number}.layer."
        for layer, attention in enumerate(("SelfAttention", "EncDecAttention")):
            for name in "qkv":
                shapes[f"{block}{layer}.{attention}.{name}.weight"] = (inner, width)
            shapes[f"{block}{layer}.{attention}.o.weight"] = (width, inner)
        for layer in range(3):
            shapes[f"{block}{layer}.layer_norm.weight"] = (width,)
        for name in ("wi_0", "wi_1") if config["feed_forward_proj"].startswith("gated-") else ("wi",):
            shapes[f"{block}2.DenseReluDense.{name}.weight"] = (hidden, width)
        shapes[block + "2.DenseReluDense.wo.weight"] = (width, hidden)
    bias = "text_model.decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    shapes[bias] = (config["relative_attention_num_buckets"], config["num_heads"])
    return shapes
