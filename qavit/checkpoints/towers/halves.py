"""A vision tower and a text encoder, in one file or in several: QA-ViT, CLIP, SigLIP, ChineseCLIP."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ..._base.small_files import read_json_object
from ..._base.types import ImageSize
from .._adapters import CONFIG, add_adapter, merge_adapters, open_adapter, with_option
from .._given import Asked, Given, adapter_of, folder_content, unread_named
from .._pictures import OPEN_CLIP, folder_preprocessing
from .._places import _folder, _folder_config
from .._source import DECODER, QUESTIONS, ModelSource, Prompts, _known_options, _read_tokenizer, _source
from .._states import find_model, leave_out, without_wrappers
from .._weights import Stored, Weights, shape_of
from ..formats.reading import Content, weights_file
from . import siglip
from .clip import _positions, _vision_options, clip_vision_config, clip_vision_shapes, full_names
from .families import refused_by_names, told_by_names, told_by_type
from .names import CLASS_EMBEDDING, PROBE, VISION
from .openai_clip import is_openai, open_clip_text, open_clip_vision, openai_options, rename, rename_timm
from .question_blocks import integration_point
from .sizes import Shapes, check, count_blocks, need, settle, stated_part, stated_size, take
from .t5 import TRANSLATION, t5_decoder_shapes, t5_picture_shapes
from .text import _text_config, _text_names, checkpoint_answer, checkpoint_text, text_shapes

#: Layouts of the vision tower: each gives the tensors with the towers that it knows under ``vision_model.``, behind the
#: prefix that they had.
_LAYOUTS = (full_names, rename, rename_timm, siglip.rename)
_CHINESE_CLIP_TOKENS = 52
#: What belongs to a text half and stands beside it.
_BESIDE_TEXT = re.compile(r"^(text_projection\.(weight|bias)|logit_scale|logit_bias)$")
#: How pictures of CLIPA are made, where no file says it.
_CLIPA = {
    "resize": "exact", "crop": False, "filter": "bilinear", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
}  # fmt: skip


class _Content(NamedTuple):
    """What a file or a folder of weights holds of both halves."""

    vision: Stored  # with the heads that stand beside it
    rest: Stored
    openai: bool
    told: tuple[dict[str, Any], dict[str, Any]]  # what the layout says of each half


class _Settings(NamedTuple):
    """What a folder's configuration says of both halves; ``text`` None where it has none that is known."""

    vision: dict[str, Any]
    text: dict[str, Any] | None = None


def open_files(given: Given) -> ModelSource:
    """QA-ViT, CLIP or SigLIP, from a checkpoint's tensors, and from folders where it does not hold them."""
    asked, options, name, text = given.asked, given.asked.options, given.name, given.text
    _known_options(options)
    content = given.checkpoint or Content({})
    own = content.others.get("config")
    if not isinstance(own, Mapping):
        own = {}
    argument = "path" if given.folder is not None else "vision"
    vision_folder = given.folder if given.vision is None else _folder(given.vision, argument, asked.hub)
    text_folder = None if text is None else _folder(text, "text", asked.hub)
    held, unread = _read(content, asked, name), dict(content.unread)
    answering, rest = checkpoint_answer(held.rest, asked.state, name)
    found_text, rest = checkpoint_text(rest, asked.state, name)
    tensors = {**held.vision, **answering, **found_text}
    vision_config, said, openai = dict(held.told[0]), _Settings({}, held.told[1] or None), held.openai
    adapter = given.adapter
    if vision_folder is not None:
        said = _settings(vision_folder, argument)
        adapter = adapter or adapter_of(vision_folder)
        vision_config.update(said.vision)
        if not _has_tower(tensors) or (said.text is not None and text is None and not _has_text(tensors)):
            found = folder_content(vision_folder, argument, asked, asked.options.get("base"))
            there = _read(found, asked, str(vision_folder))
            unread.update(found.unread)
            openai = openai or there.openai
            own_text, others = ({}, there.rest) if said.text is None else _clip_text(there.rest, asked, str(vision_folder))
            if not _has_tower(tensors):
                vision_config = {**there.told[0], **vision_config}
                rest = rest if tensors else {**rest, **others}
                tensors = add_adapter(there.vision, tensors)
            if text is None and not _has_text(tensors) and own_text:
                beside = {key: tensor for key, tensor in there.vision.items() if _BESIDE_TEXT.match(key)}
                tensors, text_folder = {**tensors, **own_text, **beside}, vision_folder
    if not _has_tower(tensors):
        _no_tower(tensors, rest, unread, name)
    prompts = _prompts(tensors, said, vision_folder, asked)
    text_config = _text_settings(tensors, said.text, text_folder if text is not None else None, asked, name)
    alpha = options.get("lora_alpha", own.get("lora_alpha"))
    tensors = merge_adapters(tensors, with_option(adapter, alpha), name)
    tensors, text_config = _joined(tensors, text_config, text is not None, name)
    decoder = {key: tensors.pop(key) for key in list(tensors) if key.startswith(DECODER)}
    tensors.update(leave_out(rest, asked.strict, name))
    vision_config.pop("integration_point", None)
    stated = {"integration_point": own["integration_point"]} if own.get("integration_point") is not None else {}
    vision_config = {**vision_config, **stated, **_vision_options(options)}
    _check_told(vision_config, openai, asked, name)
    if text_config is not None:
        if openai:
            text_config.setdefault("hidden_act", vision_config["hidden_act"])
        text_config = {**text_config, **_heads_named(options.get("text") or {})}
    with unread_named(unread, name):
        own_size = _own_size(vision_config, tensors, name)
        vision_config, text_config, weights = complete(tensors, vision_config, text_config, asked.size, name)
    architecture = "qavit" if "instruction_dim" in vision_config else "siglip" if PROBE in tensors else "clip"
    needed = "text" if text is not None and architecture == "qavit" else None
    json_text = _read_tokenizer(asked.tokenizer, text_folder, text_config, needed)
    picture = options.get("preprocessing") or {}
    if vision_folder is None and openai:
        picture = {**(_CLIPA if vision_config.get("pooling") else {}), "margin": "even", **picture}
    processor = "naflex" if "max_patches" in vision_config else architecture
    preprocessing = folder_preprocessing(vision_folder, processor, own_size, vision_config["image_size"], picture)
    source = _source(
        architecture, vision_config, text_config, weights, json_text, preprocessing,
        _texts_read(text_config, architecture), options, name,
    )  # fmt: skip
    if decoder and source.text is not None:
        check(decoder, t5_decoder_shapes(decoder, source.text, text_config or {}, f"{name}: text"), name)
        source.decoder = decoder
    source.prompts = prompts
    return source


def _heads_named(options: Mapping[str, Any]) -> dict[str, Any]:
    """A half's own options, with ``heads`` by the name that configurations have for it."""
    result = dict(options)
    if "heads" in result:
        result.setdefault("num_attention_heads", result.pop("heads"))
    return result


def _check_told(vision: Mapping[str, Any], openai: bool, asked: Asked, name: str) -> None:
    """Raise where nothing tells the activation, or a size is asked for where there is none."""
    if openai and "hidden_act" not in vision:
        raise ValueError(
            f"{name}: nothing tells the activation of an open_clip file; give config={{'hidden_act': 'quick_gelu'}} for "
            "weights of OpenAI, DFN or MetaCLIP, 'gelu' for the others"
        )
    if "max_patches" in vision and asked.size is not None:
        raise ValueError(
            f"image_size: {name} takes pictures of any aspect; give config={{'vision': {{'max_patches': ...}}}} for more "
            "patches"
        )


def _prompts(tensors: Stored, said: _Settings, folder: Path | None, asked: Asked) -> Prompts | None:
    """Of a QA-ViT on a CLIP folder with both halves, its text half; ``tensors`` gain the pictures' projection beside it."""
    if folder is None or said.text is None or weights_file(folder) is None or not _takes_questions(tensors):
        return None
    there = _read(folder_content(folder, "vision", asked, asked.options.get("base")), asked, str(folder))
    text, _ = _clip_text(there.rest, asked, str(folder))
    joint = ("visual_projection.weight", "text_projection.weight")
    if not text or any(name not in there.vision for name in joint) or PROBE in tensors:
        return None
    tensors.setdefault(joint[0], there.vision[joint[0]])
    text.update({name: tensor for name, tensor in there.vision.items() if _BESIDE_TEXT.match(name)})
    text = merge_adapters(text, with_option(adapter_of(folder), asked.options.get("lora_alpha")), str(folder))
    return Prompts(*complete_text(text, said.text, str(folder)), _read_tokenizer(None, folder, said.text))


def complete_text(tensors: Stored, config: Mapping[str, Any], name: str) -> tuple[dict[str, Any], Weights]:
    """A text half by itself: its configuration completed from the weights, and exactly its tensors."""
    complete = _text_config(tensors, config, f"{name}: text")
    joint = need(tensors, "text_projection.weight", 2, name)
    optional: Shapes = {
        "text_projection.weight": joint,
        "text_projection.bias": joint[:1],
        "logit_scale": (),
        "logit_bias": (),
    }
    return complete, take(tensors, text_shapes(complete), name, optional)


def _takes_questions(tensors: Stored) -> bool:
    return any(".instruct_dim_reduce." in key for key in tensors)


def _texts_read(text: Mapping[str, Any] | None, architecture: str) -> dict[str, Any]:
    """How long a text may be: what the positions are for; ChineseCLIP's BERT has more than it was shown."""
    if text is None or architecture == "qavit":
        return {}
    tokens = _CHINESE_CLIP_TOKENS if text["model_type"] == "bert" else text["max_position_embeddings"]
    return {"questions": {**QUESTIONS, "max_tokens": min(tokens, text["max_position_embeddings"])}}


def _has_tower(tensors: Stored) -> bool:
    return CLASS_EMBEDDING in tensors or PROBE in tensors


def _has_text(tensors: Stored) -> bool:
    return any(key.startswith("text_model.") for key in tensors)


def _read(content: Content, asked: Asked, name: str) -> _Content:
    """A file's or a folder's tensors by the core's names, a vision tower in any layout, and what the layout tells."""
    stored = without_wrappers(content.tensors, name)
    if what := refused_by_names(stored):
        raise ValueError(f"{name}: it holds {what}, which is not read")
    openai = is_openai(stored)
    told = openai_options(stored) if openai else ({}, {})
    for layout in _LAYOUTS:
        stored = layout(stored)
    vision, rest = find_model(stored, VISION, asked.state, name)
    return _Content(vision, rest, openai, told)


def _clip_text(rest: Stored, asked: Asked, name: str) -> tuple[Stored, Stored]:
    """The text half of a folder that holds both, and the other tensors."""
    found, others = checkpoint_text(rest, asked.state, name)
    return {key: tensor for key, tensor in found.items() if not key.startswith("text_model.pooler.")}, others


def _text_settings(
    tensors: Stored, said: Mapping[str, Any] | None, folder: Path | None, asked: Asked, name: str
) -> dict[str, Any] | None:
    """The text half's configuration: of text=, else what was ``said`` of the half that is among the tensors."""
    if folder is not None:
        return _text_folder(tensors, folder, asked)
    if not _has_text(tensors):
        return None
    clip = any(key.startswith("text_model.embeddings.token_embedding") for key in tensors)
    if clip or (said is not None and said.get("model_type") == "bert"):
        usual = siglip.text_settings({}) if PROBE in tensors else {"model_type": "clip_text_model"}
        return {**usual, **_told_heads(tensors), **(said or {})}
    if asked.options.get("text"):
        return {"model_type": "t5"}
    raise ValueError(f"{name}: it holds a text encoder; give text= the folder with its config.json and tokenizer")


def _told_heads(tensors: Stored) -> dict[str, Any]:
    """CLIP's heads are 64 wide."""
    shape = shape_of(tensors.get("text_model.embeddings.token_embedding.weight", (b"", "", (), 0)))
    return {"num_attention_heads": shape[-1] // 64} if shape and shape[-1] % 64 == 0 else {}


def _joined(tensors: Stored, text: dict[str, Any] | None, asked: bool, name: str) -> tuple[Stored, dict[str, Any] | None]:
    """Of a tower that takes no question, the text half only where both halves lead into one space.

    Raises
    ------
    ValueError
        Where the text half was ``asked`` for, and they do not.
    """
    if _takes_questions(tensors):
        return {key: tensor for key, tensor in tensors.items() if not _BESIDE_TEXT.match(key)}, text
    projected = PROBE in tensors or "visual_projection.weight" in tensors
    if text is not None and projected and "text_projection.weight" in tensors:
        return tensors, text
    if asked:
        if text is not None and text["model_type"] != "clip_text_model":
            raise ValueError(
                f"{name}: text= was given, but no block of the vision model has instruct weights; give checkpoint= a "
                "QA-ViT checkpoint, or leave text= out for plain CLIP"
            )
        lacking = "text= has no text_projection" if projected else "the vision half has no visual_projection"
        raise ValueError(f"{name}: {lacking}, so pictures and texts have no space in common; give both halves with theirs")
    others = {key: tensor for key, tensor in tensors.items() if not _BESIDE_TEXT.match(key)}
    return {key: tensor for key, tensor in others.items() if not key.startswith("text_model.")}, None


def _own_size(config: Mapping[str, Any], tensors: Stored, name: str) -> ImageSize:
    """The image size that the weights were made for."""
    size = stated_size(config, name)
    if size is not None:
        return size
    patches = need(tensors, "vision_model.embeddings.position_embedding.weight", 2, name)[0] - (CLASS_EMBEDDING in tensors)
    return math.isqrt(patches) * need(tensors, "vision_model.embeddings.patch_embedding.weight", 4, name)[-1]


def _no_tower(tensors: Stored, rest: Stored, unread: Mapping[str, str], name: str) -> NoReturn:
    if what := told_by_names([*tensors, *rest, *unread]):
        raise ValueError(f"{name}: no vision tower ({CLASS_EMBEDDING}): it holds {what}; give vision= a CLIP folder")
    if CLASS_EMBEDDING in unread:
        raise ValueError(f"{name}: no vision tower: {CLASS_EMBEDDING} is {unread[CLASS_EMBEDDING]}, which is not read")
    raise ValueError(f"{name}: no vision tower ({CLASS_EMBEDDING}); give vision= a CLIP folder")


def _settings(folder: Path, argument: str) -> _Settings:
    """What a folder's configuration says about both halves."""
    if not (folder / "config.json").is_file():
        if (folder / OPEN_CLIP).is_file():
            found, what = read_json_object(folder / OPEN_CLIP), str(folder / OPEN_CLIP)
            return _Settings(open_clip_vision(found, what), open_clip_text(found, what))
        if (folder / CONFIG).is_file():
            _, _, named = open_adapter(folder)
            for place in () if named is None else (folder / named, Path(named)):
                if (place / "config.json").is_file():
                    return _settings(place, argument)
            return _Settings({})
    whole = _folder_config(folder, argument)
    _check_type(whole, folder, argument)
    vision = whole
    if "vision_config" in whole:
        vision = dict(stated_part(whole, "vision_config", f"{argument}: {folder}: config.json"))
    kind, text = str(whole.get("model_type", "clip")), whole.get("text_config")
    if kind in ("siglip", "siglip_vision_model"):
        vision = siglip.vision_settings(vision)
    if kind in ("siglip2", "siglip2_vision_model"):
        vision = siglip.naflex_settings(vision, folder)
    return _Settings(vision, _text_half(kind, text) if isinstance(text, Mapping) else None)


def _text_half(kind: str, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The configuration of the text half of a model of a type, as the core knows it."""
    if kind in ("siglip", "siglip_text_model", "siglip2", "siglip2_text_model"):
        return siglip.text_settings(config)
    known = {"clip": "clip_text_model", "clip_text_model": "clip_text_model"}
    known.update(chinese_clip="bert", chinese_clip_text_model="bert")
    return {**config, "model_type": known[kind]} if kind in known else None


def _check_type(config: Mapping[str, Any], folder: Path, argument: str) -> None:
    """A configuration's model_type has to be CLIP's, or one that has a CLIP tower in it."""
    kind = str(config.get("model_type", "clip"))
    other = told_by_type(kind)
    vision = config.get("vision_config")
    inner = str(vision.get("model_type", "clip")) if isinstance(vision, Mapping) else kind
    towers = ("clip", "clip_vision_model", "siglip_vision_model", "siglip2_vision_model")
    if kind.startswith("blip") or told_by_type(inner) or (vision is None and kind not in towers):
        called = f" ({other or told_by_type(inner)})" if other or told_by_type(inner) else ""
        expected = "CLIP, BLIP or a converted folder" if argument == "path" else "CLIP"
        raise ValueError(f"{argument}: {folder} holds a model of type {kind!r}{called}, expected {expected}")


def _text_folder(tensors: Stored, folder: Path, asked: Asked) -> dict[str, Any]:
    """A text folder's configuration; its weights join ``tensors`` where those have none of a text encoder."""
    config = _folder_config(folder, "text")
    kind = str(config.get("model_type", ""))
    inner = config.get("text_config")
    half = _text_half(kind, inner if isinstance(inner, dict) else config)
    if half is None:
        kind = {"mt5": "t5", "umt5": "umt5", "xlm-roberta": "roberta", "camembert": "roberta"}.get(kind, kind)
        if kind not in ("t5", "bert", "roberta"):
            raise ValueError(
                f"text: {folder} holds a model of type {kind!r}, expected t5, mt5, bert, roberta, xlm-roberta, camembert, "
                "clip, siglip or chinese_clip"
            )
        half = {**(inner if isinstance(inner, dict) else config), "model_type": kind}
    held = (
        "text_model.shared.weight",
        "text_model.shared.base_layer.weight",
        "text_model.encoder.final_layer_norm.weight",
    )
    if not any(key in tensors for key in held):
        found = without_wrappers(folder_content(folder, "text", asked).tensors, str(folder))
        if kind.startswith("chinese_clip"):
            found, beside = _clip_text(found, asked, str(folder))
            base = {**found, **{key: tensor for key, tensor in beside.items() if _BESIDE_TEXT.match(key)}}
        else:
            base = siglip.rename(_text_names(found, half["model_type"], config, str(folder)))
        for key, tensor in base.items():
            later = key[: -len(".weight")] + ".base_layer.weight" if key.endswith(".weight") else key
            if later not in tensors:
                tensors.setdefault(key, tensor)
    return half


def complete(
    tensors: Stored, vision: Mapping[str, Any], text: Mapping[str, Any] | None, size: ImageSize | None, name: str
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
        complete["integration_point"] = integration_point(integrated, blocks, vision.get("integration_point"), what)
        complete["instruction_dim"] = instruct
    elif vision.get("integration_point") is not None:
        raise ValueError(f"{what}: integration_point {vision['integration_point']!r}, but no block has instruct weights")
    tokens = need(tensors, "vision_model.embeddings.position_embedding.weight", 2, what)[0]
    expected.update(clip_vision_shapes(complete, tokens, integrated, instruct))
    width = complete["hidden_size"]
    optional: Shapes = {}
    if "projection_dim" in complete:
        optional["visual_projection.weight"] = (complete["projection_dim"], width)
    if complete.get("pooling") in ("mean", "mean_then_norm"):
        optional.update({f"vision_model.pre_layrnorm.{part}": (width,) for part in ("weight", "bias")})
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
        if "text_projection.weight" in tensors:
            joint, wide = need(tensors, "text_projection.weight", 2, what)[0], complete.get("projection_dim", width)
            if not integrated and joint != wide:
                raise ValueError(f"{name}: texts are embedded {joint} wide, pictures {wide} wide: not halves of one model")
            optional["text_projection.weight"] = (joint, text_width)
            optional.update({"text_projection.bias": (joint,), "logit_scale": (), "logit_bias": ()})
            if PROBE in tensors:
                expected.update({"logit_scale": (), "logit_bias": ()})
    weights = take(tensors, expected, name, optional)
    position = "vision_model.embeddings.position_embedding.weight"
    weights[position] = _positions(weights[position], complete, stated_size(vision, what))
    return complete, text_config, weights
