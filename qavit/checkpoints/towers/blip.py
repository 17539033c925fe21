"""BLIP image-text matching (Li et al., arXiv 2201.12086)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Optional

from ..._base.types import ImageSize
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
    stated_part,
    take,
)

Complete = Callable[
    [Stored, Mapping[str, Any], Optional[Mapping[str, Any]], Optional[ImageSize], str],
    tuple[dict[str, Any], dict[str, Any], Weights],
]


class Kind(NamedTuple):
    """What the models of BLIP's halves differ in.

    Attributes
    ----------
    architecture, called : str
        In converted folders, and in messages.
    lacks : function of names -> str or None
        What tensors that are not such a model's lack.
    complete : function
        As `complete` below.
    options : tuple of str
        What ``config=`` takes beside the options of every model.
    max_tokens : int
        Of a text, where nothing is said.
    roots : pattern
        Names of the model's tensors behind any prefix.
    keeps : tuple of str
        How names begin that are kept although they are other models' to leave out.
    """

    architecture: str
    called: str
    lacks: Callable[[Stored], str | None]
    complete: Complete
    options: tuple[str, ...] = ("embed_dim", "max_txt_len")
    max_tokens: int = 35
    roots: re.Pattern[str] = BLIP
    keeps: tuple[str, ...] = ()


def vision_config(
    tensors: Stored, vision: Mapping[str, Any], image_size: ImageSize | None, what: str, eps: float = 1e-6
) -> dict[str, Any]:
    """Hugging Face's keys for the vision half."""
    width, channels, patch, patch2 = need(tensors, "vision_model.embeddings.patch_embedding.weight", 4, what)
    if channels != 3 or patch != patch2:
        raise ValueError(f"{what}: patches of {channels}x{patch}x{patch2} values, expected 3 colours and square patches")
    side = _grid(need(tensors, POSITIONS, 2, what)[0] - 1, what)
    sizes = {
        "hidden_size": width,
        "patch_size": patch,
        "num_hidden_layers": count_blocks(tensors, "vision_model.encoder.layers."),
        "intermediate_size": need(tensors, "vision_model.encoder.layers.0.mlp.fc1.weight", 2, what)[0],
    }
    settle(vision, sizes, what + ": vision")
    own = vision.get("image_size", side * patch)
    size = image_size if image_size is not None else own
    if not isinstance(size, int) or not patch <= size <= MAX_IMAGE_SIZE or size % patch:
        raise ValueError(f"image_size {size!r}: expected a multiple of the patch size {patch}, to {MAX_IMAGE_SIZE}")
    # Of the published models' widths; of others no shape tells.
    heads = {768: 12, 1024: 16, 1408: 16}.get(width)
    return {
        "image_size": size,
        **sizes,
        "num_attention_heads": choose_heads(vision, "num_attention_heads", width, heads, what + ": vision", "vision"),
        "hidden_act": _activation(vision, "hidden_act", "gelu", what + ": vision"),
        "layer_norm_eps": _epsilon(vision, "layer_norm_eps", eps, what + ": vision"),
    }


def text_config(
    tensors: Stored, text: Mapping[str, Any], attends: range, width: int, what: str, more: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Hugging Face's keys for the text half, of which the blocks in `attends` attend to images ``width`` wide.

    ``text`` may be LAVIS's med_config; ``more``: further sizes that the weights tell.
    """
    vocabulary, text_width = need(tensors, "text_encoder.embeddings.word_embeddings.weight", 2, what)
    first = f"text_encoder.encoder.layer.{attends[0]}.crossattention.self.key.weight"
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": text_width,
        "num_hidden_layers": count_blocks(tensors, LAYERS),
        "intermediate_size": need(tensors, LAYERS + "0.intermediate.dense.weight", 2, what)[0],
        "max_position_embeddings": need(tensors, "text_encoder.embeddings.position_embeddings.weight", 2, what)[0],
        "encoder_width": need(tensors, first, 2, what)[1],
        **(more or {}),
    }
    settle(text, sizes, what + ": text")
    if sizes["encoder_width"] != width:
        raise ValueError(f"{what}: the text half expects images {sizes['encoder_width']} wide, they are {width} wide")
    heads = {768: 12}.get(text_width)
    result = {
        "model_type": "bert",
        **sizes,
        "num_attention_heads": choose_heads(text, "num_attention_heads", text_width, heads, what + ": text", "text"),
        "hidden_act": _activation(text, "hidden_act", "gelu", what + ": text"),
        "layer_norm_eps": _epsilon(text, "layer_norm_eps", 1e-12, what + ": text"),
    }
    if "text_proj.weight" in tensors:
        result["projection_dim"] = need(tensors, "text_proj.weight", 2, what)[0]
    return result


def vision_shapes(vision: Mapping[str, Any], tokens: int) -> Shapes:
    """The vision half's tensors."""
    width, patch = vision["hidden_size"], vision["patch_size"]
    shapes: Shapes = {
        "vision_model.embeddings.class_embedding": (width,),
        POSITIONS: (tokens, width),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.patch_embedding.bias": (width,),
    }
    _affine(shapes, "vision_model.post_layernorm", width)
    for number in range(vision["num_hidden_layers"]):
        _clip_block(shapes, f"vision_model.encoder.layers.{number}.", width, vision["intermediate_size"])
    return shapes


def blip_shapes(vision: Mapping[str, Any], text: Mapping[str, Any], tokens: int) -> Shapes:
    """The tensors of both halves of BLIP: the vision half's by the core's names, the text half's by LAVIS's."""
    return {**vision_shapes(vision, tokens), **bert_shapes(text, "text_encoder.", vision["hidden_size"])}


def head_shapes(text: Mapping[str, Any], image_width: int) -> Shapes:
    """The matching head's tensors, and the contrastive heads', where there are any."""
    shapes: Shapes = {}
    _affine(shapes, "itm_head", 2, text["hidden_size"])
    if "projection_dim" in text:
        _affine(shapes, "vision_proj", text["projection_dim"], image_width)
        _affine(shapes, "text_proj", text["projection_dim"], text["hidden_size"])
    return shapes


#: A family's `complete`.
_BLIP_LEFT_OUT = re.compile(
    r"^(visual_encoder_m|text_encoder_m|vision_proj_m|text_proj_m|text_decoder|combined_.*)\."
    r"|^(image_queue|text_queue|queue_ptr|ptr_queue|idx_queue|temp|logit_scale)$"
)
POSITIONS = "vision_model.embeddings.position_embedding.weight"
LAYERS = "text_encoder.encoder.layer."
#: LAVIS's names (and those of timm), then Hugging Face's, as the core's.
_BLIP_NAMES = (
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"vision_model.encoder.layers.\1.self_attn.qkv."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.([qv])_bias$", r"vision_model.encoder.layers.\1.self_attn.\2_proj.bias"),
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


def core_names(tensors: Stored) -> Stored:
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
        elif name == POSITIONS:
            result[name] = without_leading_ones(tensor, 2)
        else:
            result[name] = tensor
    return result


def finish(
    tensors: Stored, vision: Mapping[str, Any], expected: Shapes, name: str, optional: Shapes | None = None
) -> Weights:
    """Exactly the expected tensors, the positions for the image size that was asked for."""
    weights = take(tensors, expected, name, optional)
    weights[POSITIONS] = _positions(weights[POSITIONS], vision)
    return weights


def _matching_shapes(vision: Mapping[str, Any], text: Mapping[str, Any], tokens: int) -> Shapes:
    return {**blip_shapes(vision, text, tokens), **head_shapes(text, vision["hidden_size"])}


def complete(
    tensors: Stored, vision: Mapping[str, Any], text: Mapping[str, Any] | None, size: ImageSize | None, name: str
) -> tuple[dict[str, Any], dict[str, Any], Weights]:
    """Both configurations completed from the weights, and exactly the tensors that they call for."""
    return complete_blip(tensors, vision, text, size, name, _matching_shapes)


def complete_blip(
    tensors: Stored, vision: Mapping[str, Any], text: Mapping[str, Any] | None, size: ImageSize | None, name: str,
    shapes: Callable[[Mapping[str, Any], Mapping[str, Any], int], Shapes],
) -> tuple[dict[str, Any], dict[str, Any], Weights]:  # fmt: skip
    """The same for any model of BLIP's halves; `shapes` of (vision, text, tokens) are those of its tensors."""
    if text is None:
        raise ValueError(f"{name}: config.json has no 'text'")
    tensors = core_names(tensors)
    vision = vision_config(tensors, vision, size, name)
    told = text_config(tensors, text, range(max(1, count_blocks(tensors, LAYERS))), vision["hidden_size"], name)
    if text.get("fusion_layer") is not None:
        # LAVIS: the blocks that a text goes through on its own, for the contrastive head; all where nothing is said.
        told["fusion_layer"] = text["fusion_layer"]
    return vision, told, finish(tensors, vision, shapes(vision, told, shape_of(tensors[POSITIONS])[0]), name)


def open_tensors(tensors: Stored, config: Mapping[str, Any], options: dict[str, Any], name: str) -> ModelSource:
    """BLIP image-text matching of tensors in memory, by LAVIS's names or Hugging Face's; without a tokenizer."""
    return open_files(Given(name, Asked(options=options), config=config, checkpoint=Content(tensors)))


def open_files(given: Given) -> ModelSource:
    """BLIP image-text matching of a folder, or of a LAVIS checkpoint."""
    return open_blip(given, "blip_itm", "BLIP image-text matching", "itm_head", complete)


def open_blip(given: Given, architecture: str, called: str, head: str, complete: Complete) -> ModelSource:
    """Any model of BLIP's halves, of a folder or of a LAVIS checkpoint; ``head`` tells it, and has to be there."""
    if given.vision is not None or given.text is not None:
        raise ValueError("vision= and text= do not go with a BLIP checkpoint, which holds both halves; give tokenizer=")
    needed = (head + ".", LAYERS + "0.crossattention.")

    def lacks(tensors: Stored) -> str | None:
        there = all(any(key.startswith(part) for key in tensors) for part in needed)
        return None if there else f"it lacks {head} or cross-attention in its first block"

    source = open_kind(given, Kind(architecture, called, lacks, complete, keeps=(head + ".",)))
    if source.tokenizer is not None:
        from ...text import with_blip_tokens

        source.tokenizer = with_blip_tokens(source.tokenizer)
    return source


def open_kind(given: Given, kind: Kind, plain: Callable[[Stored], Stored] = dict) -> ModelSource:
    """A model of a folder or of a checkpoint; ``plain`` gives the found tensors BLIP's names."""
    asked, folder, config, name = given.asked, given.folder, given.config, given.name
    options, content = asked.options, given.content
    unknown = [str(key) for key in options if key not in (*_OPTIONS, *kind.options)]
    if unknown:
        raise ValueError(
            f"config: {', '.join(map(repr, unknown))} not known; expected 'vision' and 'text' with what files cannot tell; "
            f"{name} is opened as {kind.called}"
        )
    for key in ("vision", "text", "preprocessing"):
        if options.get(key) is not None and not isinstance(options[key], Mapping):
            raise TypeError(f"config[{key!r}]: expected a dict, got {type(options[key]).__name__}")
    stored = without_wrappers(content.tensors, name)
    found, others = find_model(stored, kind.roots, asked.state, name)
    kept = {key: one for key, one in found.items() if key.startswith(kind.keeps) or not _BLIP_LEFT_OUT.search(key)}
    found = plain(kept)
    family = family_of_names(stored)
    told = None if family is None or kind.called == family.called else f"it holds {family.called}"
    told = told or kind.lacks(found)
    if told is not None:
        raise ValueError(f"{name}: {told}, not {kind.called}")
    tensors = merge_adapters(found, with_option(adapter_of(folder), options.get("lora_alpha")), name)
    tensors.update(leave_out(others, asked.strict, name))
    half = "qformer_config" if config.get("qformer_config") else "text_config"
    vision = {**stated_part(config, "vision_config", name), **_vision_options({"vision": options.get("vision")})}
    text = {**stated_part(config, half, name), **(options.get("text") or {})}
    if "encoder_hidden_size" in text:
        text.setdefault("encoder_width", text["encoder_hidden_size"])
    for one in (vision, text):
        one.pop("projection_dim", None)
    if folder is not None and "qformer_config" not in config:  # what transformers takes where a configuration says nothing
        vision = {"num_attention_heads": 12, "layer_norm_eps": 1e-5, **vision}
        text = {"num_attention_heads": 8, **text}
    own_size = vision.get("image_size")
    with unread_named(content.unread, name):
        vision, text, weights = kind.complete(tensors, vision, text, asked.size, name)
    json_text = _read_tokenizer(asked.tokenizer, folder, text)
    size = vision["image_size"]
    said = options.get("preprocessing") or {}
    preprocessing = folder_preprocessing(
        folder, kind.architecture, own_size if isinstance(own_size, int) else size, size, said
    )
    questions = {"max_words": 50, "max_tokens": int(options.get("max_txt_len", kind.max_tokens))}
    return _source(
        kind.architecture, vision, text, weights, json_text, preprocessing, {"questions": questions}, options, name
    )
