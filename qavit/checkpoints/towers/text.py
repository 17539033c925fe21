"""Text encoders of any kind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .._weights import Stored
from .bert import bert_config, bert_shapes
from .clip import clip_text_config, clip_text_shapes
from .names import _unwrap
from .sizes import Shapes
from .t5 import t5_config, t5_shapes


def text_shapes(config: Mapping[str, Any]) -> Shapes:
    """The tensors of any text half."""
    kind = config["model_type"]
    if kind == "t5":
        return t5_shapes(config)
    return clip_text_shapes(config) if kind == "clip_text_model" else bert_shapes(config)


def _text_names(tensors: Stored, kind: str) -> Stored:
    """A Hugging Face text folder's encoder under ``text_model.``; heads and decoders are left out."""
    result: Stored = {}
    for original, tensor in tensors.items():
        name = _unwrap(original)
        if kind == "clip_text_model":
            if "embeddings.token_embedding.weight" in tensors:  # transformers 5 leaves the prefix out
                name = "text_model." + name
            if name.startswith("text_model.") or name == "text_projection.weight":
                result[name] = tensor
            continue
        if kind == "t5":
            if name.startswith(("decoder.", "lm_head.")):
                continue
        else:
            name = re.sub(r"^(bert|roberta)\.", "", name)
            if name.startswith(("cls.", "pooler.", "lm_head.", "classifier.", "qa_outputs.", "pre_classifier.")):
                continue
            name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
            name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        result["text_model." + name] = tensor
    return result


def _drop_tied(tensors: Stored) -> None:
    """T5's table goes by two names; questions go through `shared`, the other is for the language model's own input."""
    tied = tensors.pop("text_model.encoder.embed_tokens.weight", None)
    for name in [name for name in tensors if name.startswith("text_model.encoder.embed_tokens.")]:
        del tensors[name]
    if tied is not None and "text_model.shared.weight" not in tensors:
        tensors["text_model.shared.weight"] = tied


def _text_config(tensors: Stored, text: Mapping[str, Any], what: str) -> dict[str, Any]:
    kind = text.get("model_type")
    if kind == "t5":
        return t5_config(tensors, text, what)
    if kind == "clip_text_model":
        return clip_text_config(tensors, text, what)
    if kind in ("bert", "roberta"):
        return bert_config(tensors, text, what)
    raise ValueError(f"{what}: model_type {kind!r}, expected t5, bert, roberta or clip_text_model")
