"""BLIP image-text matching (Li et al., arXiv 2201.12086)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Optional

from .._adapters import merge_adapters, with_option
from .._given import Asked, Given, adapter_of, unread_named
from .._pictures import folder_preprocessing
from .._source import _OPTIONS, ModelSource, _read_tokenizer, _source
from .._states import find_model, leave_out, without_wrappers
from .._weights import Stored, Weights, row_views, shape_of, without_leading_ones
from ..formats.reading import Content
from .bert import bert_shapes
from .clip import _clip_block, _positions, _vision_options
from .families import family_of_names
from .names import BLIP
from .sizes import (
    MAX_IMAGE_SIZE,
    Shapes,
    _activation,
    _affine,
    _epsilon,
    _grid,
    choose_heads,
    count_blocks,
    need,
    settle,
    take,
)


def blip_configs(
    tensors: Stored, vision: Mapping[str, Any], text: Mapping[str, Any], image_size: int | None, what: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Hugging Face's keys for both halves of BLIP image-text matching; ``text`` may be LAVIS's med_config."""
    width, channels, patch, patch2 = need(tensors, "vision_model.embeddings.patch_embedding.weight", 4, what)
    if channels != 3 or patch != patch2:
        raise ValueError(f"{what}: patches of {channels}x{patch}x{patch2} values, expected 3 colours and square patches")
    side = _grid(need(tensors, "vision_model.embeddings.position_embedding.weight", 2, what)[0] - 1, what)
    vision_sizes = {
        "hidden_size": width,
        "patch_size": patch,
        "num_hidden_layers": count_blocks(tensors, "vision_model.encoder.layers."),
        "intermediate_size": need(tensors, "vision_model.encoder.layers.0.mlp.fc1.weight", 2, what)[0],
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


def blip_shapes(vision: Mapping[str, Any], text: Mapping[str, Any], tokens: int) -> Shapes:
    """The tensors of both halves of BLIP: the vision half's by the core's names, the text half's by LAVIS's."""
    width, patch = vision["hidden_size"], vision["patch_size"]
    shapes: Shapes = {
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.position_embedding.weight": (tokens, width),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.patch_embedding.bias": (width,),
    }
    _affine(shapes, "vision_model.post_layernorm", width)
    for number in range(vision["num_hidden_layers"]):
        _clip_block(shapes, f"vision_model.encoder.layers.{number}.", width, vision["intermediate_size"])
    shapes.update(bert_shapes(text, "text_encoder.", width))
    return shapes


def _matching_shapes(vision: Mapping[str, Any], text: Mapping[str, Any], tokens: int) -> Shapes:
    shapes = blip_shapes(vision, text, tokens)
    width = vision["hidden_size"]
    _affine(shapes, "itm_head", 2, text["hidden_size"])
    if "projection_dim" in text:
        _affine(shapes, "vision_proj", text["projection_dim"], width)
        _affine(shapes, "text_proj", text["projection_dim"], text["hidden_size"])
    return shapes


#: A family's `complete`.
Complete = Callable[
    [Stored, Mapping[str, Any], Optional[Mapping[str, Any]], Optional[int], str],
    tuple[dict[str, Any], dict[str, Any], Weights],
]
_BLIP_LEFT_OUT = re.compile(
    r"^(visual_encoder_m|text_encoder_m|vision_proj_m|text_proj_m|text_decoder|combined_.*)\."
    r"|^(image_queue|text_queue|queue_ptr|ptr_queue|idx_queue|temp|logit_scale)$"
)
#: LAVIS's names (and those of timm), then Hugging Face's, as the core's.
_BLIP_NAMES = (
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"vision_model.encoder.layers.\1.self_attn.qkv."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision_model.encoder.layers.\1.self_attn.out_proj."),
    (r"^visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision_model.encoder.layers.\1.mlp."),
    (r"^vision_model\.embeddings\.position_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^(vision_model\.encoder\.layers\.\d+\.self_attn)\.projection\.", r"\1.out_proj."),
)


def _blip_name(name: str) -> str:
    for pattern, replacement in _BLIP_NAMES:
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    return name


def _core_names(tensors: Stored) -> Stored:
    """The vision half by the core's names: q, k and v are thirds of the fused matrix, tables have no size of 1 in front."""
    result: Stored = {}
    for original, tensor in tensors.items():
        name = _blip_name(original)
        stem, fused, kind = name.rpartition(".self_attn.qkv.")
        if fused and shape_of(tensor) and shape_of(tensor)[0] % 3 == 0:
            for part, view in zip("qkv", row_views(tensor, 3)):
                result[f"{stem}.self_attn.{part}_proj.{kind}"] = view
        elif name == "vision_model.embeddings.class_embedding":
            result[name] = without_leading_ones(tensor, 1)
        elif name == "vision_model.embeddings.position_embedding.weight":
            result[name] = without_leading_ones(tensor, 2)
        else:
            result[name] = tensor
    return result


def complete(
    tensors: Stored, vision: Mapping[str, Any], text: Mapping[str, Any] | None, size: int | None, name: str
) -> tuple[dict[str, Any], dict[str, Any], Weights]:
    """Both configurations completed from the weights, and exactly the tensors that they call for."""
    return complete_blip(tensors, vision, text, size, name, _matching_shapes)


def complete_blip(
    tensors: Stored, vision: Mapping[str, Any], text: Mapping[str, Any] | None, size: int | None, name: str,
    shapes: Callable[[Mapping[str, Any], Mapping[str, Any], int], Shapes],
) -> tuple[dict[str, Any], dict[str, Any], Weights]:  # fmt: skip
    """The same for any model of BLIP's halves; `shapes` of (vision, text, tokens) are those of its tensors."""
    if text is None:
        raise ValueError(f"{name}: config.json has no 'text'")
    positions = "vision_model.embeddings.position_embedding.weight"
    tensors = _core_names(tensors)
    vision_config, text_config = blip_configs(tensors, vision, text, size, name)
    weights = take(tensors, shapes(vision_config, text_config, shape_of(tensors[positions])[0]), name)
    weights[positions] = _positions(weights[positions], vision_config)
    return vision_config, text_config, weights


def open_blip_tensors(tensors: Stored, config: Mapping[str, Any], options: dict[str, Any], name: str) -> ModelSource:
    """BLIP image-text matching of tensors in memory, by LAVIS's names or Hugging Face's; without a tokenizer."""
    return open_files(Given(name, Asked(options=options), config=config, checkpoint=Content(tensors)))


def open_files(given: Given) -> ModelSource:
    """BLIP image-text matching of a folder, or of a LAVIS checkpoint."""
    return open_blip(given, "blip_itm", "BLIP image-text matching", "itm_head", complete)


def open_blip(given: Given, architecture: str, called: str, head: str, complete: Complete) -> ModelSource:
    """Any model of BLIP's halves, of a folder or of a LAVIS checkpoint; ``head`` tells it, and has to be there."""
    asked, folder, config, name = given.asked, given.folder, given.config, given.name
    if given.vision is not None or given.text is not None:
        raise ValueError("vision= and text= do not go with a BLIP checkpoint, which holds both halves; give tokenizer=")
    options, content = asked.options, given.content
    unknown = [str(key) for key in options if key not in (*_OPTIONS, "embed_dim", "max_txt_len")]
    if unknown:
        raise ValueError(
            f"config: {', '.join(map(repr, unknown))} not known; expected 'vision' and 'text' with what files cannot tell"
        )
    for key in ("vision", "text", "preprocessing"):
        if options.get(key) is not None and not isinstance(options[key], Mapping):
            raise TypeError(f"config[{key!r}]: expected a dict, got {type(options[key]).__name__}")
    stored = without_wrappers(content.tensors, name)
    found, others = find_model(stored, BLIP, asked.state, name)
    family = family_of_names(stored)
    first = "text_encoder.encoder.layer.0.crossattention."
    told = None if family is None or architecture in family.architectures else f"it holds {family.called}"
    if told is None and not all(any(key.startswith(part) for key in found) for part in (head + ".", first)):
        told = f"it lacks {head} or cross-attention in its first block"
    if told is not None:
        raise ValueError(f"{name}: {told}, not {called}")
    tensors = {key: tensor for key, tensor in found.items() if key.startswith(head + ".") or not _BLIP_LEFT_OUT.search(key)}
    tensors = merge_adapters(tensors, with_option(adapter_of(folder), options.get("lora_alpha")), name)
    tensors.update(leave_out(others, asked.strict, name))
    vision = {**(config.get("vision_config") or {}), **_vision_options({"vision": options.get("vision")})}
    text = {**(config.get("text_config") or {}), **(options.get("text") or {})}
    if "encoder_hidden_size" in text:
        text.setdefault("encoder_width", text["encoder_hidden_size"])
    for half in (vision, text):
        half.pop("projection_dim", None)
    if folder is not None:  # what transformers takes where a configuration says nothing
        vision = {"num_attention_heads": 12, "layer_norm_eps": 1e-5, **vision}
        text = {"num_attention_heads": 8, **text}
    own_size = vision.get("image_size")
    with unread_named(content.unread, name):
        vision_config, text_config, weights = complete(tensors, vision, text, asked.size, name)
    json_text = _read_tokenizer(asked.tokenizer, folder, text_config)
    if json_text is not None:
        from ...text import with_blip_tokens

        json_text = with_blip_tokens(json_text)
    size = vision_config["image_size"]
    said = options.get("preprocessing") or {}
    preprocessing = folder_preprocessing(folder, architecture, own_size if isinstance(own_size, int) else size, size, said)
    questions = {"max_words": 50, "max_tokens": int(options.get("max_txt_len", 35))}
    return _source(
        architecture, vision_config, text_config, weights, json_text, preprocessing, {"questions": questions}, options, name
    )
