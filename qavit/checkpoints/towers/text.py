"""Text encoders of any kind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .._states import find_model, same_tensor
from .._weights import Stored
from .bert import bert_config, bert_shapes
from .clip import clip_text_config, clip_text_shapes
from .names import ANSWER, TEXT
from .sizes import Shapes
from .t5 import t5_config, t5_shapes


def text_shapes(config: Mapping[str, Any]) -> Shapes:
    """The tensors of any text half."""
    kind = config["model_type"]
    if kind == "t5":
        return t5_shapes(config)
    return clip_text_shapes(config) if kind == "clip_text_model" else bert_shapes(config)


#: A text encoder's own names, behind any prefix of a folder's model.
_ROOTS = {
    "t5": r"(?:shared|encoder|decoder\.embed_tokens|lm_head)\.",
    "bert": r"(?:embeddings|encoder\.layer)\.",
    "roberta": r"(?:embeddings|encoder\.layer)\.",
    "clip_text_model": r"(?:text_model\.|text_projection\.(?:weight|bias)$|logit_scale$|logit_bias$)",
}
#: Where a table of words may lie under another name, when one that is tied to it was saved in its place.
_TABLES = {
    "t5": ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
    "bert": ("embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    "roberta": ("embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
}


def _text_names(tensors: Stored, kind: str, config: Mapping[str, Any], what: str) -> Stored:
    """A Hugging Face text folder's encoder under ``text_model.``; heads and decoders are left out."""
    if kind == "clip_text_model" and "embeddings.token_embedding.weight" in tensors:  # transformers 5 leaves the prefix out
        beside = ("text_proj", "logit_")
        tensors = {name if name.startswith(beside) else "text_model." + name: one for name, one in tensors.items()}
    roots = re.compile(rf"^(.*?\.)??({_ROOTS[kind]}.*)$")
    found, others = find_model({**tensors}, roots, None, what)
    if kind == "clip_text_model":
        return found
    table, *tied = _TABLES[kind]
    if table not in found:
        loose = {**others, **found}
        if config.get("tie_word_embeddings") is False:
            tied = [name for name in tied if not name.startswith("lm_head")]
        for name in tied:
            if name in loose:
                found[table] = loose[name]
                break
    result: Stored = {}
    for name, tensor in found.items():
        if kind == "t5" and name.startswith(("decoder.", "lm_head.", "encoder.embed_tokens.")):
            continue
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        result["text_model." + re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)] = tensor
    return result


def checkpoint_text(tensors: Stored, state: str | None, what: str) -> tuple[Stored, Stored]:
    """The text encoder in a QA-ViT checkpoint under ``text_model.``, and the other tensors.

    The language model's table goes by two names; questions go through ``shared`` (or QA-ViT's copy of it, the
    ``instruction_embedder``), ``embed_tokens`` is for the language model's own input.
    """
    embedder: Stored = {}
    rest: Stored = {}
    for name, tensor in tensors.items():
        _, marked, tail = name.rpartition("instruction_embedder.")
        (embedder if marked else rest)["text_model.shared." + tail if marked else name] = tensor
    found_names, others = find_model(rest, TEXT, state, what) if _has_text(rest) else ({}, rest)
    result: Stored = {}
    for found_name, tensor in found_names.items():
        name = "text_model." + found_name.removeprefix("text_model.")
        if name in result:
            raise ValueError(f"{what}: {name} is there twice")
        result[name] = tensor
    for name, tensor in embedder.items():
        if name in result and not same_tensor(result[name], tensor):
            raise ValueError(f"{what}: instruction_embedder and shared are not the same table ({name})")
        result.setdefault(name, tensor)
    tied = result.pop("text_model.encoder.embed_tokens.weight", None)
    for name in [name for name in result if name.startswith("text_model.encoder.embed_tokens.")]:
        del result[name]
    if tied is not None and not {"text_model.shared.weight", "text_model.shared.base_layer.weight"} & result.keys():
        result["text_model.shared.weight"] = tied
    return result, others


def checkpoint_answer(tensors: Stored, state: str | None, what: str) -> tuple[Stored, Stored]:
    """What a QA-ViT checkpoint answers with under ``text_model.``, and the other tensors; nothing where it is not whole.

    Both halves of T5 look words up in the plain table, ``embed_tokens``: it is ``shared`` without its adapter.
    """
    if not all(any(part in name for name in tensors) for part in ("translation_mlp.", "decoder.block.", "lm_head.")):
        return {}, tensors
    found, others = find_model(tensors, ANSWER, state, what)
    result = {"text_model." + name: tensor for name, tensor in found.items()}
    tables = ("decoder.embed_tokens.weight", "encoder.embed_tokens.weight", "shared.weight", "shared.base_layer.weight")
    plain = {table: tensor for table in tables for name, tensor in tensors.items() if ("." + name).endswith("." + table)}
    for table in tables[:2]:
        result["text_model." + table] = next(iter(plain.values()))
    return result, others


def _has_text(tensors: Stored) -> bool:
    return any(TEXT.match(name) for name in tensors)


def _text_config(tensors: Stored, text: Mapping[str, Any], what: str) -> dict[str, Any]:
    kind = text.get("model_type")
    if kind == "t5":
        return t5_config(tensors, text, what)
    if kind == "clip_text_model":
        return clip_text_config(tensors, text, what)
    if kind in ("bert", "roberta"):
        return bert_config(tensors, text, what)
    raise ValueError(f"{what}: model_type {kind!r}, expected t5, bert, roberta or clip_text_model")
