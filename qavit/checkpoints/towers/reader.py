"""T5 as a reader (Raffel et al., arXiv 1910.10683): texts go in, and an answer comes out. UnifiedQA v2, flan-T5."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .._adapters import merge_adapters, with_option
from .._given import Given, adapter_of, unread_named
from .._source import ModelSource, _known_options, _read_tokenizer, _source
from .._states import find_model, leave_out, without_wrappers
from .._weights import Stored, Weights
from .sizes import settle, take
from .t5 import t5_config, t5_decoder_shapes, t5_shapes

_ROOT = re.compile(r"^(.*?\.)??((?:shared|encoder|decoder|lm_head)\..*)$")
#: Where the one table of words may lie.
_TABLES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
#: Of old files: what no T5 has ever computed with.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
_HEAD = "text_model.lm_head.weight"


def open_files(given: Given) -> ModelSource:
    """A reader of a folder in Hugging Face's layout."""
    asked, folder, name, options = given.asked, given.folder, given.name, given.asked.options
    _known_options(options)
    for argument, value in (("vision", given.vision), ("text", given.text), ("image_size", asked.size)):
        if value is not None:
            raise ValueError(f"{name}: {argument}= was given, but a T5 reader is whole, and sees no pictures")
    found, others = find_model(without_wrappers(given.content.tensors, name), _ROOT, asked.state, name)
    if not any(key.startswith("decoder.block.") for key in found):
        raise ValueError(f"{name}: no decoder among its tensors; a T5's encoder alone answers nothing")
    table = next((table for table in _TABLES if table in found), None)
    tensors = {key: one for key, one in found.items() if key not in (*_TABLES, _UNUSED)}
    if table is not None:
        tensors["shared.weight"] = found[table]
    tensors = merge_adapters(tensors, with_option(adapter_of(folder), options.get("lora_alpha")), name)
    tensors = {f"text_model.{key}": one for key, one in tensors.items()}
    tensors.update(leave_out(others, asked.strict, name))
    stated = {**given.config, **(options.get("text") or {})}
    if _tied(stated, name):
        tensors.pop(_HEAD, None)
    with unread_named(given.content.unread, name):
        _, text, weights = complete(tensors, {}, stated, None, name)
    json_text = _read_tokenizer(asked.tokenizer, folder, text, "reader")
    return _source("reader", {}, text, weights, json_text, {}, {}, options, name)


def _tied(config: Mapping[str, Any], what: str) -> bool:
    """Whether the head is the word table, on scaled states; newer files tell the scale apart."""
    key = "scale_decoder_outputs" if config.get("scale_decoder_outputs") is not None else "tie_word_embeddings"
    tied = config.get(key, True)
    if not isinstance(tied, bool):
        raise ValueError(f"{what}: {key} is {tied!r}, expected true or false")
    return tied


def complete(
    tensors: Stored, vision: Mapping[str, Any], text: Mapping[str, Any] | None, size: int | None, name: str
) -> tuple[dict[str, Any], dict[str, Any], Weights]:
    """The configuration completed from the weights, and exactly the tensors that it calls for."""
    stated = text or {}
    what = f"{name}: text"
    config = t5_config(tensors, stated, what)
    shapes = {**t5_shapes(config), **t5_decoder_shapes(tensors, config, stated, what)}
    del shapes["text_model.decoder.embed_tokens.weight"]  # `shared` is the one table
    if _HEAD not in tensors:
        del shapes[_HEAD]
    config["tie_word_embeddings"] = _tied(stated, what)
    for key, usual in (("decoder_start_token_id", 0), ("eos_token_id", 1)):
        number = stated.get(key)
        config[key] = usual if number is None else number
        if not isinstance(config[key], int) or isinstance(config[key], bool) or not 0 <= config[key] < config["vocab_size"]:
            raise ValueError(f"{what}: {key} is {number!r}, expected 0 to {config['vocab_size'] - 1}, the vocabulary")
    settle(stated, {"model_type": "t5"}, what)
    return {}, config, take(tensors, shapes, name)
