"""The parts of a configuration file of PnP-VQA, loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from .._base.config import Config, to_mapping
from ..models._load import load

_log = logging.getLogger(__name__)
T = TypeVar("T")

BLOCKS = ("image_question_matching_model", "image_captioning_model", "question_answering_model")
ARCHITECTURES = {
    "image_question_matching_model": ("blip_image_text_matching",),
    "image_captioning_model": ("blip_caption",),
    "question_answering_model": ("pnp_unifiedqav2_fid",),
}
"""LAVIS's names of what a block may hold."""
LOADED = ("path", "checkpoint", "vision", "text", "tokenizer", "reader", "config", "precision", "device", "image_size")
"""What goes to `qavit.load` as it is."""
WIDTHS = {"base": 768, "large": 1024}
TRAINING = ("load_finetuned", "load_pretrained", "vit_grad_ckpt", "vit_ckpt_layer", "apply_lemmatizer", "max_txt_len")
"""What LAVIS's files say of training, or of what the weights say themselves."""
_LAVIS_FOLDER = "configs/"  # within LAVIS's package, where a relative path of its files points


def parts_of_config(config: Any, **defaults: Any) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Matcher, captioner and reader of a configuration, and what else it says.

    Parameters
    ----------
    config : mapping, Config, namespace or OmegaConf node
    **defaults
        What `qavit.load` is given for blocks that do not say it themselves.

    Raises
    ------
    ValueError, TypeError
        The message begins with the name of the block, or of the setting.
    """
    settings = _settings(config)
    matcher, captioner, reader = (load_block(name, settings[name], **defaults) for name in BLOCKS)
    return matcher, captioner, reader, {"offload_model": bool(settings.get("offload_model", False))}


def block_arguments(config: Any) -> dict[str, dict[str, Any]]:
    """What `qavit.load` is called with for each block of a configuration."""
    settings = _settings(config)
    return {name: _named(name, load_arguments, name, settings[name]) for name in BLOCKS}


def load_block(name: str, block: Any, **defaults: Any) -> Any:
    """The model that a block of a configuration describes."""
    if hasattr(block, "kind"):
        return block
    return _named(name, lambda: load(**{**defaults, **load_arguments(name, block)}))


def _named(name: str, call: Callable[..., T], *arguments: Any) -> T:
    """What a call gives; the name of its block is put before its errors."""
    try:
        return call(*arguments)
    except (ValueError, TypeError, FileNotFoundError) as error:
        kind = next(kind for kind in (FileNotFoundError, TypeError, ValueError) if isinstance(error, kind))
        raise kind(f"{name}: {error}") from None


def _settings(config: Any) -> dict[str, Any]:
    """The settings of a configuration, checked; those of a whole file as those of its model."""
    settings = to_mapping(config)
    if "model" in settings and not set(BLOCKS) & set(settings):
        _check_preprocess(settings)
        settings = to_mapping(settings["model"], "model")
    settings = {name: value for name, value in settings.items() if value is not None}
    missing = [name for name in BLOCKS if name not in settings]
    if missing:
        raise ValueError(f"config: {missing[0]} is missing; expected {', '.join(BLOCKS)}")
    arch = settings.get("arch", "pnp_vqa")
    if arch != "pnp_vqa":
        raise ValueError(f"arch: got {arch!r}, expected 'pnp_vqa'")
    unknown = sorted(set(settings) - {*BLOCKS, "arch", "model_type", "offload_model"})
    if unknown:
        raise ValueError(f"config: unknown settings {', '.join(unknown)}; expected {', '.join(BLOCKS)}, offload_model")
    return settings


def load_arguments(name: str, block: Any) -> dict[str, Any]:
    """What `qavit.load` is called with for a block."""
    own = "reader" if name == "question_answering_model" else "path"
    if isinstance(block, (str, Path)):
        return {own: _place(block)}
    values = {key: value for key, value in to_mapping(block, name).items() if value is not None}
    arch = values.pop("arch", ARCHITECTURES[name][0])
    if arch not in ARCHITECTURES[name]:
        raise ValueError(f"arch: got {arch!r}, expected {' or '.join(map(repr, ARCHITECTURES[name]))}")
    found = {key: values.pop(key) for key in LOADED if key in values}
    for key in TRAINING:
        values.pop(key, None)
    files = [key for key in ("finetuned", "pretrained") if key in values]
    file = values.pop("finetuned", None) or values.pop("pretrained", None)
    values.pop("pretrained", None)
    if file is not None:
        place = _place(file)
        found["reader" if own == "reader" else "checkpoint" if Path(place).is_file() else "path"] = place
    if not {"path", "checkpoint", "vision", "reader"} & set(found):
        raise ValueError(f"no file is named; expected {', '.join(files) or 'finetuned (LAVIS), path or checkpoint'}")
    config = _config_of(values)
    if config:
        found["config"] = {**Config(found.get("config")).to_dict(), **config}
    elif "config" in found:
        found["config"] = Config(found["config"]).to_dict()
    if values:
        raise ValueError(f"unknown settings {', '.join(sorted(values))}; expected LAVIS's, or {', '.join(LOADED)}")
    if "checkpoint" in found and "tokenizer" not in found:
        beside = (Path(found["checkpoint"]).with_name(one) for one in ("vocab.txt", "tokenizer.json"))
        tokenizer = next((path for path in beside if path.is_file()), None)
        found.update({} if tokenizer is None else {"tokenizer": str(tokenizer)})
    return found


def _config_of(values: dict[str, Any]) -> dict[str, Any]:
    """What a LAVIS block says beside its files, as `config` of `qavit.load`; taken out of `values`."""
    config: dict[str, Any] = {}
    if "prompt" in values:
        config["prompt"] = str(values.pop("prompt"))
    vit = values.pop("vit_type", None)
    if vit is not None:
        if not isinstance(vit, str) or vit not in WIDTHS:
            raise ValueError(f"vit_type: got {vit!r}, expected {' or '.join(map(repr, WIDTHS))}")
        config["vision"] = {"hidden_size": WIDTHS[vit]}
    values.pop("embed_dim", None)  # the heads' shapes say it
    for key in ("med_config_path", "t5_config_path"):
        path = values.pop(key, None)
        if path is None:
            continue
        if Path(path).is_file():
            from .._base.small_files import read_json_object

            if key == "med_config_path":
                config["text"] = read_json_object(path)
        elif not str(path).startswith(_LAVIS_FOLDER):
            raise FileNotFoundError(f"{key}: there is no file {str(path)!r}")
        else:
            _log.info("%s: %s is LAVIS's own and not here; sizes come from the weights", key, path)
    return config


def _place(file: Any) -> str:
    """A path; ValueError for an address, from which nothing is fetched."""
    place = str(file)
    if place.startswith(("http://", "https://")):
        raise ValueError(f"{place} is an address; fetch the file yourself and name its path")
    return place


def _check_preprocess(settings: Mapping[str, Any]) -> None:
    """ValueError where a file asks for pictures to be made otherwise than BLIP's."""
    vision = Config(settings.get("preprocess") or {}).to_dict().get("vis_processor") or {}
    name = (vision.get("eval") or {}).get("name", "blip_image_eval")
    if name != "blip_image_eval":
        raise ValueError(f"preprocess: got {name!r} for pictures, expected 'blip_image_eval'")
