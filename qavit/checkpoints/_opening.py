"""From files to what a model is built from: every layout that qavit reads becomes one `ModelSource`.

Layouts: a folder that ``qavit convert`` wrote; a QA-ViT checkpoint (.pth) with its vision and text folders; Hugging
Face folders of CLIP, of text encoders, and of BLIP image-text matching; a LAVIS checkpoint of BLIP image-text matching.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from .._base.small_files import read_json_object
from ._adapters import (
    CONFIG,
    AdapterSettings,
    adapter_settings,
    add_adapter,
    merge_adapters,
    open_adapter,
    with_option,
)
from ._hub import NO_HUB, Hub
from ._pictures import OPEN_CLIP, default_preprocessing, folder_preprocessing
from ._places import BUNDLED, PathLike, _file, _folder, _folder_config, _path
from ._source import _OPTIONS, ModelSource, _known_options, _read_tokenizer, _source
from ._states import find_model, leave_out, without_wrappers
from ._weights import Stored, Weights, named_panels, shape_of
from .formats.reading import Content, open_folder, open_weights, weights_file
from .towers import VISION_LAYOUTS
from .towers.blip import _BLIP_LEFT_OUT, _blip
from .towers.clip import BARE, _positions, _vision_options, clip_vision_config, clip_vision_shapes
from .towers.names import BLIP, CLASS_EMBEDDING, VISION
from .towers.openai_clip import is_openai, open_clip_vision, openai_options
from .towers.question_blocks import integration_point
from .towers.sizes import Shapes, count_blocks, need, settle, take
from .towers.telling_names import told_by_names, told_by_type
from .towers.text import _text_config, _text_names, checkpoint_text, text_shapes


def open_model(
    path: PathLike | None = None,
    *,
    checkpoint: PathLike | None = None,
    vision: PathLike | None = None,
    text: PathLike | None = None,
    tokenizer: PathLike | None = None,
    config: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    hub: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
) -> ModelSource:
    """Read a model from any of the layouts; weights are mapped, and copied only where they are changed.

    Parameters
    ----------
    path : folder, optional
        A converted folder, or a Hugging Face folder of CLIP or of BLIP image-text matching; ``"demo"``: the bundled model.
    checkpoint : file, optional
        A QA-ViT checkpoint (with ``text=`` and ``vision=``), or LAVIS's BLIP image-text matching (with ``tokenizer=``).
    vision : folder or hub name, optional
        A CLIP folder: its configuration, and its weights where the checkpoint does not hold the vision tower.
    text : folder or hub name, optional
        A text encoder: T5, BERT, RoBERTa or CLIP text.
    tokenizer : file or folder, optional
        tokenizer.json, vocab.txt, or a folder with one; in place of the text folder's own.
    config : dict, optional
        What files cannot tell: integration_point, lora_alpha, heads, hidden_act, layer_norm_eps; 'vision' and 'text'
        with Hugging Face's keys (for BLIP also LAVIS's); 'preprocessing', 'questions', 'answers', 'defaults' as in a
        converted folder. 'state': which of several copies in a file ("ema", "teacher"); 'strict': False leaves out tensors
        that are not known, with a warning in the log; 'base': the folder of an adapter's base model.
    image_size : int, optional
        Another image size than the weights' own, a multiple of the patch size; position embeddings are interpolated.
    hub : bool
        Look up names that are no folders on the Hugging Face hub; "hf://owner/name" always is.
    revision : str, optional
        Branch, tag or commit on the hub.
    local_files_only : bool
        Of the hub's models only what is in the cache already.

    Raises
    ------
    FileNotFoundError, ValueError, TypeError
        Naming the argument, or listing the tensors that are missing, mis-shaped or not expected.
    """
    if config is not None and not isinstance(config, Mapping):
        raise TypeError(f"config: expected a dict, got {type(config).__name__}")
    if image_size is not None and (not isinstance(image_size, (int, np.integer)) or isinstance(image_size, bool)):
        raise TypeError(f"image_size: expected a whole number, got {type(image_size).__name__}")
    size = None if image_size is None else int(image_size)
    options = dict(config or {})
    asked = _Asked(tokenizer, options, size, Hub(hub, revision, local_files_only))
    if path is not None:
        if checkpoint is not None or vision is not None:
            raise ValueError("give either a folder, or checkpoint=, vision= and text=, not both")
        demo = isinstance(path, str) and path == "demo"
        source = _open_folder(BUNDLED if demo else path, text, asked)
        if demo:
            source.name = "demo"
        return source
    if checkpoint is not None:
        return _open_checkpoint(checkpoint, vision, text, asked)
    if vision is not None:
        return _open_halves(Content({}), vision, text, asked, str(vision), "vision")
    raise ValueError("nothing to load: give 'demo' or a folder, or checkpoint=, or vision=")


@dataclass
class _Asked:
    """What was asked for beside the files."""

    tokenizer: PathLike | None
    options: dict[str, Any]
    size: int | None
    hub: Hub

    @property
    def state(self) -> str | None:
        state = self.options.get("state")
        if state is not None and not isinstance(state, str):
            raise TypeError(f"config['state']: expected a str, got {type(state).__name__}")
        return state

    @property
    def strict(self) -> bool:
        strict = self.options.get("strict", True)
        if not isinstance(strict, bool):
            raise TypeError(f"config['strict']: expected a bool, got {type(strict).__name__}")
        return strict


def _open_folder(path: PathLike, text: PathLike | None, asked: _Asked) -> ModelSource:
    folder = _folder(path, "path", asked.hub)
    if not (folder / "config.json").is_file() and ((folder / CONFIG).is_file() or (folder / OPEN_CLIP).is_file()):
        return _open_halves(Content({}), folder, text, asked, str(path), "path")
    config = _folder_config(folder, "path")
    if config.get("format") == "qavit":
        if text is not None:
            raise ValueError(f"text: the converted folder {folder} has its own text encoder")
        return _open_converted(folder, config, asked)
    kind = str(config.get("model_type", "clip"))
    if kind.startswith("blip") and kind != "blip-2":
        content = _folder_content(folder, "path", asked.hub)
        return _open_blip(content, config, folder, asked, str(path))
    _check_type(config, folder, "path", "CLIP, BLIP or a converted folder")
    return _open_halves(Content({}), folder, text, asked, str(path), "path")


def _check_type(config: Mapping[str, Any], folder: Path, argument: str, expected: str) -> None:
    """A configuration's model_type has to be CLIP's, or one that has a CLIP tower in it."""
    kind = str(config.get("model_type", "clip"))
    other = told_by_type(kind)
    vision = config.get("vision_config")
    inner = str(vision.get("model_type", "clip")) if isinstance(vision, Mapping) else kind
    if kind.startswith("blip") or told_by_type(inner) or (vision is None and kind not in ("clip", "clip_vision_model")):
        called = f" ({other or told_by_type(inner)})" if other or told_by_type(inner) else ""
        raise ValueError(f"{argument}: {folder} holds a model of type {kind!r}{called}, expected {expected}")


def _folder_content(folder: Path, argument: str, hub: Hub, base: PathLike | None = None) -> Content:
    """A folder's weights; where an adapter lies in it, added to its base's.

    The base's are those beside it, or of the folder that it, or config['base'], names.
    The adapter's own settings are found again by `_adapter_of`.
    """
    if not (folder / CONFIG).is_file():
        return open_folder(folder, argument)
    adapter, _, named = open_adapter(folder)
    if weights_file(folder) is not None:
        content = open_folder(folder, argument)
    else:
        content = open_folder(_base_folder(folder, named, argument, hub, base), argument)
    tensors = without_wrappers(content.tensors, str(folder))
    return Content(add_adapter(_plain_names(tensors), _plain_names(adapter.tensors)), content.unread, content.others)


def _plain_names(tensors: Stored) -> Stored:
    """Without peft's own prefix, and a CLIP tower's names whole."""
    found = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
    if any(name.startswith("embeddings.token_embedding") for name in found):  # CLIP's text half
        return found
    return {f"vision_model.{name}" if BARE.match(name) else name: tensor for name, tensor in found.items()}


def _base_folder(folder: Path, named: str | None, argument: str, hub: Hub, base: PathLike | None) -> Path:
    """The folder of an adapter's base model."""
    if base is not None:
        return _folder(base, "config['base']", hub)
    for place in () if named is None else (folder / named, Path(named)):
        if place.is_dir():
            return place
    if named is not None and hub.asked:
        return _folder(f"hf://{named}", argument, hub)
    raise FileNotFoundError(
        f"{argument}: {folder} holds an adapter without its base model {named!r}; give config={{'base': its folder}}"
    )


def _adapter_of(folder: Path | None) -> AdapterSettings | None:
    if folder is None or not (folder / CONFIG).is_file():
        return None
    return adapter_settings(read_json_object(folder / CONFIG), str(folder / CONFIG))


def _open_converted(folder: Path, config: dict[str, Any], asked: _Asked) -> ModelSource:
    name = str(folder)
    options, size = asked.options, asked.size
    if config.get("version") not in (1, 2):
        raise ValueError(f"{folder}: version {config.get('version')!r} of the format, this qavit reads versions 1 and 2")
    architecture = config.get("architecture")
    if architecture not in ("qavit", "clip", "blip_itm"):
        raise ValueError(f"{folder}: architecture {architecture!r}, expected qavit, clip or blip_itm")
    for key, kinds in (("vision", (dict,)), ("text", (dict, type(None))), ("preprocessing", (dict, type(None)))):
        if not isinstance(config.get(key), kinds):
            raise ValueError(f"{folder}: config.json: {key!r} is {type(config.get(key)).__name__}, expected an object")
    _known_options(options)
    tensors = named_panels(open_folder(folder, "path").tensors, name)
    vision: dict[str, Any] = {**config["vision"], **_vision_options(options)}
    text: dict[str, Any] | None = config.get("text")
    if architecture == "blip_itm":
        if text is None:
            raise ValueError(f"{folder}: config.json has no 'text'")
        vision, text, weights = _blip(tensors, vision, {**text, **(options.get("text") or {})}, size, name)
    else:
        text = None if text is None else {**text, **(options.get("text") or {})}
        vision, text, weights = _assemble(tensors, vision, text, size, name)
        if ("instruction_dim" in vision) != (architecture == "qavit"):
            found = "there are instruct layers" if "instruction_dim" in vision else "there are no instruct layers"
            raise ValueError(f"{folder}: config.json says architecture {architecture!r}, but {found} in the weights")
    own = config.get("preprocessing") or default_preprocessing(architecture, vision["image_size"])
    preprocessing = {**own, **({"size": size} if size is not None else {}), **(options.get("preprocessing") or {})}
    json_text = _read_tokenizer(asked.tokenizer, folder, text)
    return _source(
        architecture, vision, text, weights, json_text, preprocessing,
        {"questions": config.get("questions"), "answers": config.get("answers"), "defaults": config.get("defaults")},
        options, name,
    )  # fmt: skip


def _open_checkpoint(
    checkpoint: PathLike, vision: PathLike | None, text: PathLike | None, asked: _Asked
) -> ModelSource:
    place = _path(checkpoint, "checkpoint")
    if place.is_dir() and (place / CONFIG).is_file():  # an adapter, on the vision folder's weights
        adapter, settings, _ = open_adapter(place)
        content = Content(_plain_names(adapter.tensors), adapter.unread, adapter.others)
        if vision is None:
            content, settings = _folder_content(place, "checkpoint", asked.hub, asked.options.get("base")), settings
        return _open_halves(content, vision, text, asked, place.name, "vision", settings)
    file = _file(checkpoint, "checkpoint")
    content = open_weights(file)
    name = file.name
    tensors = content.tensors
    if any("visual_encoder." in key for key in tensors) or any("itm_head." in key for key in tensors):
        if vision is not None or text is not None:
            raise ValueError("vision= and text= do not go with a BLIP checkpoint, which holds both halves; give tokenizer=")
        return _open_blip(content, {}, None, asked, name)
    return _open_halves(content, vision, text, asked, name, "vision")


def _open_halves(
    content: Content,
    vision: PathLike | None,
    text: PathLike | None,
    asked: _Asked,
    name: str,
    argument: str,
    adapter: AdapterSettings | None = None,
) -> ModelSource:
    """A vision tower and a text encoder from a checkpoint's tensors, and from folders where it does not hold them."""
    options = asked.options
    _known_options(options)
    own = content.others.get("config")
    if not isinstance(own, Mapping):
        own = {}
    vision_folder = None if vision is None else _folder(vision, argument, asked.hub)
    text_folder = None if text is None else _folder(text, "text", asked.hub)
    stored = without_wrappers(content.tensors, name)
    unread = dict(content.unread)
    vision_config: dict[str, Any] = {}
    if is_openai(stored):
        vision_config.update(openai_options(stored, name))
    tensors, rest = _vision_half(stored, asked.state, name)
    found_text, rest = checkpoint_text(rest, asked.state, name)
    tensors.update(found_text)
    if vision_folder is not None:
        vision_config.update(_vision_settings(vision_folder, argument))
        adapter = adapter or _adapter_of(vision_folder)
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
    with _unread_named(unread, name):
        vision_config, text_config, weights = _assemble(tensors, vision_config, text_config, asked.size, name)
    blind = "instruction_dim" not in vision_config
    if blind and text is not None and text_config is not None and text_config["model_type"] != "clip_text_model":
        raise ValueError(
            f"{name}: text= was given, but no block of the vision model has instruct weights; give checkpoint= a "
            "QA-ViT checkpoint, or leave text= out for plain CLIP"
        )
    architecture = "clip" if blind else "qavit"
    json_text = _read_tokenizer(asked.tokenizer, text_folder, text_config, None if text is None else "text")
    given = options.get("preprocessing") or {}
    if vision_folder is None and is_openai(stored):
        given = {"margin": "even", **given}
    preprocessing = folder_preprocessing(vision_folder, architecture, own_size, vision_config["image_size"], given)
    return _source(architecture, vision_config, text_config, weights, json_text, preprocessing, {}, options, name)


def _folder_tower(
    folder: Path, argument: str, asked: _Asked, unread: dict[str, str]
) -> tuple[Stored, Stored, dict[str, Any]]:
    """A folder's vision tower, its other tensors, and what its layout tells; ``unread`` gains what is not read."""
    found = _folder_content(folder, argument, asked.hub, asked.options.get("base"))
    unread.update(found.unread)
    stored = without_wrappers(found.tensors, str(folder))
    told = openai_options(stored, str(folder)) if is_openai(stored) else {}
    return *_vision_half(stored, asked.state, str(folder)), told


@contextlib.contextmanager
def _unread_named(unread: Mapping[str, str], name: str) -> Iterator[None]:
    """A tensor that is missing because its kind is not read is called so."""
    try:
        yield
    except ValueError as err:
        found = [f"{key[:120]} is {what}" for key, what in unread.items() if key.rpartition(".")[0][-60:] in str(err)]
        if "is missing" not in str(err) or not found:
            raise
        raise ValueError(f"{err}\n  which is not read: {'; '.join(found[:4])}") from None


def _own_size(config: Mapping[str, Any], tensors: Stored) -> int:
    """The image size that the weights were made for."""
    size = config.get("image_size")
    if isinstance(size, int) and not isinstance(size, bool):
        return size
    patches = shape_of(tensors["vision_model.embeddings.position_embedding.weight"])[0] - 1
    return math.isqrt(max(patches, 0)) * shape_of(tensors["vision_model.embeddings.patch_embedding.weight"])[-1]


def _vision_half(stored: Stored, state: str | None, name: str) -> tuple[Stored, Stored]:
    """A vision tower in any layout under the core's names, and the other tensors."""
    for rename in VISION_LAYOUTS:
        stored = rename(stored)
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
    _check_type(whole, folder, argument, "CLIP")
    return dict(whole.get("vision_config") or {}) if "vision_config" in whole else whole


def _text_folder(tensors: Stored, folder: Path, asked: _Asked) -> dict[str, Any]:
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
        found = without_wrappers(_folder_content(folder, "text", asked.hub).tensors, str(folder))
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


def _assemble(
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
        if "projection_dim" in text_config:
            optional["text_projection.weight"] = (text_config["projection_dim"], text_width)
    weights = take(tensors, expected, name, optional)
    position = "vision_model.embeddings.position_embedding.weight"
    weights[position] = _positions(weights[position], complete)
    return complete, text_config, weights


def open_blip_tensors(
    tensors: Stored, config: Mapping[str, Any], options: dict[str, Any], name: str
) -> ModelSource:
    """BLIP image-text matching of tensors in memory, by LAVIS's names or Hugging Face's; without a tokenizer."""
    return _open_blip(Content(tensors), config, None, _Asked(None, options, None, NO_HUB), name)


def _open_blip(
    content: Content, config: Mapping[str, Any], folder: Path | None, asked: _Asked, name: str
) -> ModelSource:
    options = asked.options
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
    what = told_by_names(stored)
    first = "text_encoder.encoder.layer.0.crossattention."
    if what or not all(any(key.startswith(part) for key in found) for part in ("itm_head.", first)):
        told = f"it holds {what}" if what else "it lacks itm_head or cross-attention in its first block"
        raise ValueError(f"{name}: {told}, not BLIP image-text matching")
    tensors = {key: tensor for key, tensor in found.items() if not _BLIP_LEFT_OUT.search(key)}
    tensors = merge_adapters(tensors, with_option(_adapter_of(folder), options.get("lora_alpha")), name)
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
    with _unread_named(content.unread, name):
        complete, text_config, weights = _blip(tensors, vision, text, asked.size, name)
    json_text = _read_tokenizer(asked.tokenizer, folder, text_config)
    if json_text is not None:
        from ..text import with_blip_tokens

        json_text = with_blip_tokens(json_text)
    size = complete["image_size"]
    given = options.get("preprocessing") or {}
    preprocessing = folder_preprocessing(folder, "blip_itm", own_size if isinstance(own_size, int) else size, size, given)
    questions = {"max_words": 50, "max_tokens": int(options.get("max_txt_len", 35))}
    return _source(
        "blip_itm", complete, text_config, weights, json_text, preprocessing, {"questions": questions}, options, name
    )
