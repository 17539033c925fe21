"""BERT, RoBERTa and XLM-RoBERTa (Devlin et al., arXiv 1810.04805)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._weights import Stored
from .sizes import Shapes, _activation, _affine, _epsilon, choose_heads, count_blocks, need, settle, stated_number


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
        "pad_token_id": stated_number(config, "pad_token_id", 0, what) or int(kind != "bert"),
    }


def _bert_attention(shapes: Shapes, name: str, width: int, keys: int) -> None:
    _affine(shapes, name + ".self.query", width, width)
    _affine(shapes, name + ".self.key", width, keys)
    _affine(shapes, name + ".self.value", width, keys)
    _affine(shapes, name + ".output.dense", width, width)
    _affine(shapes, name + ".output.LayerNorm", width)


def bert_decoder_shapes(config: Mapping[str, Any], prefix: str, cross_width: int) -> Shapes:
    """The tensors of a BERT decoder with cross-attention to states ``cross_width`` wide, and its head."""
    width = config["hidden_size"]
    shapes = bert_shapes(config, prefix + "bert.", cross_width)
    _affine(shapes, prefix + "cls.predictions.transform.dense", width, width)
    _affine(shapes, prefix + "cls.predictions.transform.LayerNorm", width)
    _affine(shapes, prefix + "cls.predictions.decoder", config["vocab_size"], width)
    return shapes


def whole_head(tensors: Stored, prefix: str) -> Stored:
    """A BERT decoder's tensors with its head under its own names: files may hold of what is tied one name or both."""
    result = dict(tensors)
    table, head = prefix + "bert.embeddings.word_embeddings.weight", prefix + "cls.predictions.decoder.weight"
    bias = result.pop(prefix + "cls.predictions.bias", None)
    if bias is not None:
        result.setdefault(prefix + "cls.predictions.decoder.bias", bias)
    # Where both are there and differ, the head's was loaded last.
    one = result.get(head, result.get(table))
    if one is not None:
        result[head] = result[table] = one
    return result


def bert_shapes(
    config: Mapping[str, Any], prefix: str = "text_model.", cross_width: int = 0, attends: range | None = None
) -> Shapes:
    """A BERT encoder's tensors; all blocks, or those in `attends`, have cross-attention to what is ``cross_width`` wide."""
    width, hidden = config["hidden_size"], config["intermediate_size"]
    shapes: Shapes = {
        prefix + "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        prefix + "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
    }
    if "type_vocab_size" in config:
        shapes[prefix + "embeddings.token_type_embeddings.weight"] = (config["type_vocab_size"], width)
    _affine(shapes, prefix + "embeddings.LayerNorm", width)
    for number in range(config["num_hidden_layers"]):
        block = f"{prefix}encoder.layer.{number}."
        _bert_attention(shapes, block + "attention", width, width)
        if cross_width and (attends is None or number in attends):
            _bert_attention(shapes, block + "crossattention", width, cross_width)
        _affine(shapes, block + "intermediate.dense", hidden, width)
        _affine(shapes, block + "output.dense", width, hidden)
        _affine(shapes, block + "output.LayerNorm", width)
    return shapes
