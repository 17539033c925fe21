"""A vision tower and a text encoder, in one file or in several: QA-ViT, and CLIP."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from ..._base.small_files import read_json_object
from .._adapters import CONFIG, add_adapter, merge_adapters, open_adapter, with_option
from .._given import Asked, Given, adapter_of, folder_content, unread_named
from .._pictures import OPEN_CLIP, folder_preprocessing
from .._places import _folder, _folder_config
from .._source import DECODER, ModelSource, _known_options, _read_tokenizer, _source
from .._states import find_model, leave_out, without_wrappers
from .._weights import Stored, Weights, shape_of
from ..formats.reading import Content, open_folder, weights_file
from .clip import _positions, _vision_options, clip_vision_config, clip_vision_shapes, full_names
from .families import told_by_names, told_by_type
from .names import CLASS_EMBEDDING, VISION
from .openai_clip import is_openai, open_clip_vision, openai_options, rename
from .question_blocks import integration_point
from .sizes import Shapes, check, count_blocks, need, settle, take
from .t5 import TRANSLATION, t5_decoder_shapes, t5_picture_shapes
from .text import _text_config, _text_names, checkpoint_answer, checkpoint_text, text_shapes

#: Layouts of the vision tower: each gives the tensors with the towers that it knows under ``vision_model.``, behind the
#: prefix that they had.
_LAYOUTS = (full_names, rename)


def open_files(given: Given) -> ModelSource:
    """QA-ViT or CLIP, from a checkpoint's tensors, and from folders where it does not hold them."""
    asked, options, name, text = given.asked, given.asked.options, given.name, given.text
    _known_options(options)
    content = given.checkpoint or Content({})
    own = content.others.get("config")
    if not isinstance(own, Mapping):
        own = {}
    argument = "path" if given.folder is not None else "vision"
    vision_folder = given.folder if given.vision is None else _folder(given.vision, argument, asked.hub)
    text_folder = None if text is None else _folder(text, "text", asked.hub)
    adapter = given.adapter
    stored = without_wrappers(content.tensors, name)
    unread = dict(content.unread)
    vision_config: dict[str, Any] = {}
    if is_openai(stored):
        vision_config.update(openai_options(stored, name))
    tensors, rest = _vision_half(stored, asked.state, name)
    answering, rest = checkpoint_answer(rest, asked.state, name)
    found_text, rest = checkpoint_text(rest, asked.state, name)
    tensors.update({**answering, **found_text})
    if vision_folder is not None:
        vision_config.update(_vision_settings(vision_folder, argument))
        adapter = adapter or adapter_of(vision_folder)
        if CLASS_EMBEDDING not in tensors:
            base, others, told = _folder_tower(vision_folder, argument, asked, unread)
            vision_config = {**told, **vision_config}
            rest = rest if tensors else {**rest, **others}
            tensors = add_adapter(base, tensors)
    if CLASS_EMBEDDING not in tensors:
        _no_tower(tensors, rest, unread, name)
    text_config: dict[str, Any] | None = None
    clip_text = any(key.startswith("text_model.embeddings.token_embedding") for key in tensors)
    if text_folder is not None:
        text_config = _text_folder(tensors, text_folder, asked)
    elif vision_folder is not None and not any(key.startswith("text_model.") for key in tensors):
        text_config, text_folder = _clip_text_half(tensors, vision_folder)
    if text_config is None and any(key.startswith("text_model.") for key in tensors):
        if options.get("text"):
            text_config = {"model_type": "t5"}
        elif clip_text:
            tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith("text_model.")}
        else:
            raise ValueError(f"{name}: it holds a text encoder; give text= the folder with its config.json and tokenizer")
    alpha = options.get("lora_alpha", own.get("lora_alpha"))
    tensors = merge_adapters(tensors, with_option(adapter, alpha), name)
    decoder = {key: tensors.pop(key) for key in list(tensors) if key.startswith(DECODER)}
    tensors.update(leave_out(rest, asked.strict, name))
    vision_config.pop("integration_point", None)
    stated = {"integration_point": own["integration_point"]} if own.get("integration_point") is not None else {}
    vision_config = {**vision_config, **stated, **_vision_options(options)}
    if is_openai(stored) and "hidden_act" not in vision_config:
        raise ValueError(
            f"{name}: nothing tells the activation of an open_clip file; give config={{'hidden_act': 'quick_gelu'}} for "
            "weights of OpenAI, DFN or MetaCLIP, 'gelu' for the others"
        )
    if text_config is not None:
        text_config = {**text_config, **(options.get("text") or {})}
    own_size = _own_size(vision_config, tensors)
    with unread_named(unread, name):
        vision_config, text_config, weights = complete(tensors, vision_config, text_config, asked.size, name)
    blind = "instruction_dim" not in vision_config
    if blind and text is not None and text_config is not None and text_config["model_type"] != "clip_text_model":
        raise ValueError(
            f"{name}: text= was given, but no block of the vision model has instruct weights; give checkpoint= a "
            "QA-ViT checkpoint, or leave text= out for plain CLIP"
        )
    architecture = "clip" if blind else "qavit"
    json_text = _read_tokenizer(asked.tokenizer, text_folder, text_config, None if text is None else "text")
    said = options.get("preprocessing") or {}
    if vision_folder is None and is_openai(stored):
        said = {"margin": "even", **said}
    preprocessing = folder_preprocessing(vision_folder, architecture, own_size, vision_config["image_size"], said)
    source = _source(architecture, vision_config, text_config, weights, json_text, preprocessing, {}, options, name)
    if decoder and source.text is not None:
        check(decoder, t5_decoder_shapes(decoder, source.text, text_config or {}, f"{name}: text"), name)
        source.decoder = decoder
    return source


def _folder_tower(
    folder: Path, argument: str, asked: Asked, unread: dict[str, str]
) -> tuple[Stored, Stored, dict[str, Any]]:
    """A folder's vision tower, its other tensors, and what its layout tells; ``unread`` gains what is not read."""
    found = folder_content(folder, argument, asked, asked.options.get("base"))
    unread.update(found.unread)
    stored = without_wrappers(found.tensors, str(folder))
    told = openai_options(stored, str(folder)) if is_openai(stored) else {}
    return *_vision_half(stored, asked.state, str(folder)), told


def _own_size(config: Mapping[str, Any], tensors: Stored) -> int:
    """The image size that the weights were made for."""
    size = config.get("image_size")
    if isinstance(size, int) and not isinstance(size, bool):
        return size
    patches = shape_of(tensors["vision_model.embeddings.position_embedding.weight"])[0] - 1
    return math.isqrt(max(patches, 0)) * shape_of(tensors["vision_model.embeddings.patch_embedding.weight"])[-1]


def _vision_half(stored: Stored, state: str | None, name: str) -> tuple[Stored, Stored]:
    """A vision tower in any layout under the core's names, and the other tensors."""
    for layout in _LAYOUTS:
        stored = layout(stored)
    return find_model(stored, VISION, state, name)


def _no_tower(tensors: Stored, rest: Stored, unread: Mapping[str, str], name: str) -> NoReturn:
    if what := told_by_names([*tensors, *rest, *unread]):
        raise ValueError(f"{name}: no vision tower ({CLASS_EMBEDDING}): it holds {what}; give vision= a CLIP folder")
    if CLASS_EMBEDDING in unread:
        raise ValueError(f"{name}: no vision tower: {CLASS_EMBEDDING} is {unread[CLASS_EMBEDDING]}, which is not read")
    raise ValueError(f"{name}: no vision tower ({CLASS_EMBEDDING}); give vision= a CLIP folder")


def _vision_settings(folder: Path, argument: str) -> dict[str, Any]:
    """What a folder's configuration says about the vision tower."""
    if not (folder / "config.json").is_file():
        if (folder / OPEN_CLIP).is_file():
            return open_clip_vision(read_json_object(folder / OPEN_CLIP), str(folder / OPEN_CLIP))
        if (folder / CONFIG).is_file():
            _, _, named = open_adapter(folder)
            for place in () if named is None else (folder / named, Path(named)):
                if (place / "config.json").is_file():
                    return _vision_settings(place, argument)
            return {}
    whole = _folder_config(folder, argument)
    _check_type(whole, folder, argument)
    return dict(whole.get("vision_config") or {}) if "vision_config" in whole else whole


def _check_type(config: Mapping[str, Any], folder: Path, argument: str) -> None:
    """A configuration's model_type has to be CLIP's, or one that has a CLIP tower in it."""
    kind = str(config.get("model_type", "clip"))
    other = told_by_type(kind)
    vision = config.get("vision_config")
    inner = str(vision.get("model_type", "clip")) if isinstance(vision, Mapping) else kind
    if kind.startswith("blip") or told_by_type(inner) or (vision is None and kind not in ("clip", "clip_vision_model")):
        called = f" ({other or told_by_type(inner)})" if other or told_by_type(inner) else ""
        expected = "CLIP, BLIP or a converted folder" if argument == "path" else "CLIP"
        raise ValueError(f"{argument}: {folder} holds a model of type {kind!r}{called}, expected {expected}")


def _text_folder(tensors: Stored, folder: Path, asked: Asked) -> dict[str, Any]:
    """A text folder's configuration; its weights join ``tensors`` where those have none of a text encoder."""
    config = _folder_config(folder, "text")
    kind = str(config.get("model_type", ""))
    kind = {"clip": "clip_text_model", "mt5": "t5", "umt5": "umt5", "xlm-roberta": "roberta", "camembert": "roberta"}.get(
        kind, kind
    )
    if kind not in ("t5", "bert", "roberta", "clip_text_model"):
        raise ValueError(
            f"text: {folder} holds a model of type {kind!r}, expected t5, mt5, bert, roberta, xlm-roberta, camembert or clip"
        )
    if isinstance(config.get("text_config"), dict):
        config = dict(config["text_config"])
    held = (
        "text_model.shared.weight",
        "text_model.shared.base_layer.weight",
        "text_model.encoder.final_layer_norm.weight",
    )
    if not any(key in tensors for key in held):
        found = without_wrappers(folder_content(folder, "text", asked).tensors, str(folder))
        base = _text_names(found, kind, config, str(folder))
        for key, tensor in base.items():
            later = key[: -len(".weight")] + ".base_layer.weight" if key.endswith(".weight") else key
            if later not in tensors:
                tensors.setdefault(key, tensor)
    return {**config, "model_type": kind}


def _clip_text_half(tensors: Stored, folder: Path) -> tuple[dict[str, Any] | None, Path | None]:
    """The text half of a full CLIP folder, where there is one."""
    if not (folder / "config.json").is_file() or weights_file(folder) is None:
        return None, None
    config = _folder_config(folder, "vision")
    if not isinstance(config.get("text_config"), dict):
        return None, None
    stored = without_wrappers(open_folder(folder, "vision").tensors, str(folder))
    found = _text_names(stored, "clip_text_model", config, str(folder))
    if "text_model.embeddings.token_embedding.weight" not in found:
        return None, None
    tensors.update(found)
    return {**config["text_config"], "model_type": "clip_text_model"}, folder


def complete(
    tensors: Stored, vision: Mapping[str, Any], text: Mapping[str, Any] | None, size: int | None, name: str
) -> tuple[dict[str, Any], dict[str, Any] | None, Weights]:
    """Configurations completed from the weights, and exactly the tensors that they call for."""
    blocks = count_blocks(tensors, "vision_model.encoder.layers.")
    reduce = "vision_model.encoder.layers.{}.instruct_dim_reduce.1.weight"
    integrated = tuple(block for block in range(blocks) if reduce.format(block) in tensors)
    what = f"{name}: vision"
    complete = clip_vision_config(tensors, vision, size, what)
    expected: Shapes = {}
    instruct = 0
    if integrated:
        instruct = need(tensors, reduce.format(integrated[0]), 2, what)[1]
        settle(vision, {"instruction_dim": instruct}, what)
        complete["integration_point"] = integration_point(integrated, blocks, vision.get("integration_point"))
        complete["instruction_dim"] = instruct
    elif vision.get("integration_point") is not None:
        raise ValueError(f"{what}: integration_point {vision['integration_point']!r}, but no block has instruct weights")
    tokens = need(tensors, "vision_model.embeddings.position_embedding.weight", 2, what)[0]
    expected.update(clip_vision_shapes(complete, tokens, integrated, instruct))
    width = complete["hidden_size"]
    optional: Shapes = {}
    if "projection_dim" in complete:
        optional["visual_projection.weight"] = (complete["projection_dim"], width)
    if "answer_head.weight" in tensors:
        answers = need(tensors, "answer_head.weight", 2, what)[0]
        expected.update({"answer_head.weight": (answers, width), "answer_head.bias": (answers,)})
    text_config: dict[str, Any] | None = None
    if text is not None:
        text_config = _text_config(tensors, text, f"{name}: text")
        text_width = int(text_config["d_model"] if text_config["model_type"] == "t5" else text_config["hidden_size"])
        if integrated and text_width != instruct:
            raise ValueError(
                f"{name}: the text encoder is {text_width} wide, but the vision model takes questions {instruct} wide "
                "(instruction_dim)"
            )
        expected.update(text_shapes(text_config))
        if TRANSLATION in tensors:
            expected.update(t5_picture_shapes(text_config, width, f"{name}: text"))
            if any(key.startswith(DECODER) for key in tensors):
                expected.update(t5_decoder_shapes(tensors, text_config, text, f"{name}: text"))
        if "projection_dim" in text_config:
            optional["text_projection.weight"] = (text_config["projection_dim"], text_width)
    weights = take(tensors, expected, name, optional)
    position = "vision_model.embeddings.position_embedding.weight"
    weights[position] = _positions(weights[position], complete)
    return complete, text_config, weights
