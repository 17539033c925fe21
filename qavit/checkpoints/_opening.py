"""From files to what a model is built from: every layout that qavit reads becomes one `ModelSource`.

Which layout it is stands in `towers.families`; a folder that ``qavit convert`` wrote says so itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._base.arguments import image_size as checked_image_size
from .._base.types import ImageSize
from .._base.vocabularies import read_tokenizer
from ._adapters import CONFIG, open_adapter
from ._given import Asked, Given, folder_content, plain_names
from ._hub import Hub
from ._pictures import OPEN_CLIP, at_size, default_preprocessing
from ._places import BUNDLED, PathLike, _file, _folder, _folder_config, _path
from ._source import PROMPT_TOKENIZER, PROMPTS, ModelSource, Prompts, _known_options, _read_tokenizer, _source
from ._states import without_wrappers
from ._weights import Stored, named_panels
from .formats.reading import Content, open_folder, open_weights
from .towers.clip import _vision_options
from .towers.families import (
    FAMILIES,
    HALVES,
    Family,
    families_of_type,
    family_of_architecture,
    family_of_names,
    known_architectures,
)


def open_model(
    path: PathLike | None = None,
    *,
    checkpoint: PathLike | None = None,
    vision: PathLike | None = None,
    text: PathLike | None = None,
    tokenizer: PathLike | None = None,
    reader: PathLike | None = None,
    config: Mapping[str, Any] | None = None,
    image_size: ImageSize | None = None,
    hub: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
) -> ModelSource:
    """Read a model from any of the layouts; weights are mapped, and copied only where they are changed.

    Parameters
    ----------
    path : folder or file, optional
        A converted folder; a Hugging Face folder of CLIP, SigLIP or BLIP; an open_clip folder; or a file of weights, as for
        ``checkpoint``. ``"demo"``: the bundled model.
    checkpoint : file, optional
        A QA-ViT checkpoint (with ``text=`` and ``vision=``), or LAVIS's BLIP image-text matching (with ``tokenizer=``).
    vision : folder or hub name, optional
        A CLIP folder: its configuration, and its weights where the checkpoint does not hold the vision tower.
    text : folder or hub name, optional
        A text encoder: T5, BERT, RoBERTa or CLIP text.
    tokenizer : file or folder, optional
        tokenizer.json, vocab.txt, or a folder with one; in place of the text folder's own.
    reader : folder or hub name, optional
        A T5 that answers, as UnifiedQA v2; alone.
    config : dict, optional
        What files cannot tell: integration_point, lora_alpha, heads, hidden_act, layer_norm_eps; 'vision' and 'text'
        with Hugging Face's keys (for BLIP also LAVIS's); 'preprocessing', 'questions', 'answers', 'defaults' as in a
        converted folder. 'position_resize': how positions are taken to another grid, see :func:`qavit.load`. 'state': which
        of several copies in a file ("ema", "teacher"); 'strict': False leaves out tensors that are not known, with a warning
        in the log; 'base': the folder of an adapter's base model.
    image_size : int or (int, int), optional
        Another image size than the weights' own, a side or (height, width), multiples of the patch size; position embeddings
        are interpolated, as `config` says.
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
    size = None if image_size is None else checked_image_size(image_size, "image_size")
    options = dict(config or {})
    asked = Asked(tokenizer, options, size, Hub(hub, revision, local_files_only))
    if reader is not None:
        if not (path is None and checkpoint is None and vision is None and text is None):
            raise ValueError("reader: expected alone, without path=, checkpoint=, vision= and text=")
        source = _open_folder(reader, None, asked, "reader")
        if source.architecture != "reader":
            raise ValueError(f"reader: {source.name} holds a model of kind {source.architecture!r}, expected a T5")
        return source
    if path is not None:
        if checkpoint is not None or vision is not None:
            raise ValueError("give either a folder, or checkpoint=, vision= and text=, not both")
        demo = isinstance(path, str) and path == "demo"
        if not demo and _path(path, "path").is_file():
            return _open_checkpoint(path, None, text, asked)
        source = _open_folder(BUNDLED if demo else path, text, asked)
        if demo:
            source.name = "demo"
        return source
    if checkpoint is not None:
        return _open_checkpoint(checkpoint, vision, text, asked)
    if vision is not None:
        return _open_family(HALVES, Given(str(vision), asked, vision=vision, text=text))
    raise ValueError("nothing to load: give 'demo' or a folder, or checkpoint=, or vision=")


def _open_family(family: Family, given: Given) -> ModelSource:
    source: ModelSource = _opener(family).open_files(given)
    return source


def _opener(family: Family) -> Any:
    """The file that opens a family."""
    return importlib.import_module(f".towers.{family.opened_by}", __package__)


def _open_folder(path: PathLike, text: PathLike | None, asked: Asked, argument: str = "path") -> ModelSource:
    folder = _folder(path, argument, asked.hub)
    given = Given(str(path), asked, folder, text=text)
    if not (folder / "config.json").is_file() and ((folder / CONFIG).is_file() or (folder / OPEN_CLIP).is_file()):
        return _open_family(HALVES, given)
    config = _folder_config(folder, argument)
    if config.get("format") == "qavit":
        if text is not None:
            raise ValueError(f"text: the converted folder {folder} has its own text encoder")
        return _open_converted(folder, config, asked)
    given.config = config
    if "model_type" not in config and "pretrained_cfg" in config:  # timm's
        return _open_family(family_of_names(given.content.tensors) or HALVES, given)
    families = families_of_type(str(config.get("model_type", "clip")))
    opened = [family for family in families if family.opened_by is not None]
    if not opened:
        told = family_of_names(given.content.tensors)
        if told is not None and told.opened_by == "vit":
            return _open_family(told, given)
        return _open_family(HALVES, given)  # where it is not a tower inside of another model, that is refused
    family = opened[-1]
    if len(families) > 1:
        told = family_of_names(without_wrappers(given.content.tensors, given.name), families)
        family = told if told in opened else family
    return _open_family(family, given)


def _open_checkpoint(checkpoint: PathLike, vision: PathLike | None, text: PathLike | None, asked: Asked) -> ModelSource:
    place = _path(checkpoint, "checkpoint")
    if place.is_dir() and (place / CONFIG).is_file():  # an adapter, on the vision folder's weights
        adapter, settings, _ = open_adapter(place)
        content = Content(plain_names(adapter.tensors), adapter.unread, adapter.others)
        if vision is None:
            content = folder_content(place, "checkpoint", asked, asked.options.get("base"))
        return _open_family(HALVES, Given(place.name, asked, checkpoint=content, vision=vision, text=text, adapter=settings))
    file = _file(checkpoint, "checkpoint")
    given = Given(file.name, asked, checkpoint=open_weights(file), vision=vision, text=text)
    family = family_of_names(given.content.tensors)
    if family is None or family.opened_by is None:
        family = family_of_names(given.content.tensors, [known for known in FAMILIES if known.opened_by is not None])
    return _open_family(family or HALVES, given)


def _open_converted(folder: Path, config: dict[str, Any], asked: Asked) -> ModelSource:
    name = str(folder)
    options, size = asked.options, asked.size
    if config.get("version") not in (1, 2, 3):
        raise ValueError(f"{folder}: version {config.get('version')!r} of the format, this qavit reads versions 1 to 3")
    architecture = str(config.get("architecture"))
    family = family_of_architecture(architecture)
    if family is None:
        raise ValueError(f"{folder}: architecture {architecture!r}, expected {' or '.join(known_architectures())}")
    for key, kinds in (("vision", (dict,)), ("text", (dict, type(None))), ("preprocessing", (dict, type(None)))):
        if not isinstance(config.get(key), kinds):
            raise ValueError(f"{folder}: config.json: {key!r} is {type(config.get(key)).__name__}, expected an object")
    _known_options(options)
    tensors = named_panels(open_folder(folder, "path").tensors, name)
    vision: dict[str, Any] = {**config["vision"], **_vision_options(options)}
    text: dict[str, Any] | None = config.get("text")
    text = None if text is None else {**text, **(options.get("text") or {})}
    beside = {key.removeprefix(PROMPTS): tensors.pop(key) for key in list(tensors) if key.startswith(PROMPTS)}
    vision, text, weights = _opener(family).complete(tensors, vision, text, size, name)
    if ("instruction_dim" in vision) != (architecture == "qavit"):
        found = "there are instruct layers" if "instruction_dim" in vision else "there are no instruct layers"
        raise ValueError(f"{folder}: config.json says architecture {architecture!r}, but {found} in the weights")
    preprocessing: dict[str, Any] = {}
    if vision:
        own = config.get("preprocessing") or default_preprocessing(architecture, vision["image_size"])
        own = own if size is None else at_size(own, size)
        preprocessing = {**own, **(options.get("preprocessing") or {})}
    json_text = _read_tokenizer(asked.tokenizer, folder, text)
    source = _source(
        architecture, vision, text, weights, json_text, preprocessing,
        {"questions": config.get("questions"), "answers": config.get("answers"), "defaults": config.get("defaults")},
        options, name,
    )  # fmt: skip
    source.prompts = _converted_prompts(folder, config.get("prompts"), beside)
    return source


def _converted_prompts(folder: Path, config: Any, tensors: Stored) -> Prompts | None:
    if not tensors:
        return None
    if not isinstance(config, dict):
        raise ValueError(f"{folder}: config.json: 'prompts' is {type(config).__name__}, expected an object")
    file = folder / PROMPT_TOKENIZER
    text, weights = _opener(HALVES).complete_text(tensors, config, str(folder))
    return Prompts(text, weights, read_tokenizer(file) if file.is_file() else None)
