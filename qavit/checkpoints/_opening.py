"""From files to what a model is built from: every layout that qavit reads becomes one `ModelSource`.

Layouts: a folder that ``qavit convert`` wrote; a QA-ViT checkpoint (.pth) with its vision and text folders; Hugging
Face folders of CLIP, of text encoders, and of BLIP image-text matching; a LAVIS checkpoint of BLIP image-text matching.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ._lora import merge_lora
from ._places import BUNDLED, PathLike, _file, _folder, _folder_config, _folder_weights, _has_weights
from ._source import (
    _OPTIONS,
    ModelSource,
    _default_preprocessing,
    _folder_preprocessing,
    _known_options,
    _read_tokenizer,
    _source,
)
from ._weights import Stored, Weights, named_panels
from .formats.safetensors_files import open_safetensors
from .formats.torch_files import read_torch_file, state_dict
from .towers.blip import _BLIP_LEFT_OUT, _blip
from .towers.clip import _positions, _vision_names, _vision_options, clip_vision_config, clip_vision_shapes
from .towers.names import _unwrap
from .towers.question_blocks import _sort_names, integration_point
from .towers.sizes import Shapes, count_blocks, need, settle, take
from .towers.text import _drop_tied, _text_config, _text_names, text_shapes


def open_model(
    path: PathLike | None = None,
    *,
    checkpoint: PathLike | None = None,
    vision: PathLike | None = None,
    text: PathLike | None = None,
    tokenizer: PathLike | None = None,
    config: Mapping[str, Any] | None = None,
    image_size: int | None = None,
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
        converted folder.
    image_size : int, optional
        Another image size than the weights' own, a multiple of the patch size; position embeddings are interpolated.

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
    if path is not None:
        if checkpoint is not None or vision is not None:
            raise ValueError("give either a folder, or checkpoint=, vision= and text=, not both")
        demo = isinstance(path, str) and path == "demo"
        source = _open_folder(BUNDLED if demo else path, text, tokenizer, options, size)
        if demo:
            source.name = "demo"
        return source
    if checkpoint is not None:
        return _open_checkpoint(checkpoint, vision, text, tokenizer, options, size)
    if vision is not None:
        return _open_halves({}, {}, vision, text, tokenizer, options, size, str(vision))
    raise ValueError("nothing to load: give 'demo' or a folder, or checkpoint=, or vision=")


def _open_folder(
    path: PathLike, text: PathLike | None, tokenizer: PathLike | None, options: dict[str, Any], size: int | None
) -> ModelSource:
    folder = _folder(path, "path")
    config = _folder_config(folder, "path")
    if config.get("format") == "qavit":
        if text is not None:
            raise ValueError(f"text: the converted folder {folder} has its own text encoder")
        return _open_converted(folder, config, tokenizer, options, size)
    if str(config.get("model_type", "")).startswith("blip"):
        stored = {_unwrap(name): tensor for name, tensor in _folder_weights(folder, "path").items()}
        return _open_blip(stored, config, folder, tokenizer, options, size, str(path))
    kind = str(config.get("model_type", "clip"))
    if "vision_config" not in config and kind not in ("clip", "clip_vision_model"):
        raise ValueError(f"path: {folder} holds a model of type {kind!r}, expected CLIP, BLIP or a converted folder")
    return _open_halves({}, {}, folder, text, tokenizer, options, size, str(path))


def _open_converted(
    folder: Path, config: dict[str, Any], tokenizer: PathLike | None, options: dict[str, Any], size: int | None
) -> ModelSource:
    name = str(folder)
    if config.get("version") not in (1, 2):
        raise ValueError(f"{folder}: version {config.get('version')!r} of the format, this qavit reads versions 1 and 2")
    architecture = config.get("architecture")
    if architecture not in ("qavit", "clip", "blip_itm"):
        raise ValueError(f"{folder}: architecture {architecture!r}, expected qavit, clip or blip_itm")
    for key, kinds in (("vision", (dict,)), ("text", (dict, type(None))), ("preprocessing", (dict, type(None)))):
        if not isinstance(config.get(key), kinds):
            raise ValueError(f"{folder}: config.json: {key!r} is {type(config.get(key)).__name__}, expected an object")
    _known_options(options)
    tensors = named_panels(_folder_weights(folder, "path"), name)
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
    preprocessing = dict(config.get("preprocessing") or _default_preprocessing(architecture, vision))
    if size is not None:
        preprocessing["size"] = size
    json_text = _read_tokenizer(tokenizer, folder, text)
    return _source(
        architecture, vision, text, weights, json_text, preprocessing,
        {"questions": config.get("questions"), "answers": config.get("answers"), "defaults": config.get("defaults")},
        options, name,
    )  # fmt: skip


def _open_checkpoint(
    checkpoint: PathLike,
    vision: PathLike | None,
    text: PathLike | None,
    tokenizer: PathLike | None,
    options: dict[str, Any],
    size: int | None,
) -> ModelSource:
    file = _file(checkpoint, "checkpoint")
    others: dict[str, Any] = {}
    if file.suffix == ".safetensors":
        tensors: Stored = dict(open_safetensors(file))
    else:
        tensors, others = state_dict(read_torch_file(file), file)
    name = file.name
    if any("visual_encoder." in key for key in tensors):
        if vision is not None or text is not None:
            raise ValueError("vision= and text= do not go with a BLIP checkpoint, which holds both halves; give tokenizer=")
        stored = {_unwrap(key): tensor for key, tensor in tensors.items()}
        return _open_blip(stored, {}, None, tokenizer, options, size, name)
    return _open_halves(_sort_names(tensors, name), others, vision, text, tokenizer, options, size, name)


def _open_halves(
    tensors: Stored,
    others: Mapping[str, Any],
    vision: PathLike | None,
    text: PathLike | None,
    tokenizer: PathLike | None,
    options: dict[str, Any],
    size: int | None,
    name: str,
) -> ModelSource:
    """A vision tower and a text encoder from a checkpoint's tensors, and from folders where it does not hold them."""
    _known_options(options)
    own = others.get("config")
    if not isinstance(own, Mapping):
        own = {}
    vision_folder = None if vision is None else _folder(vision, "vision")
    text_folder = None if text is None else _folder(text, "text")
    vision_config: dict[str, Any] = {}
    if vision_folder is not None:
        whole = _folder_config(vision_folder, "vision")
        vision_config = dict(whole.get("vision_config") or {}) if "vision_config" in whole else whole
        kind = str(whole.get("model_type", "clip"))
        if ("vision_config" not in whole and kind not in ("clip", "clip_vision_model")) or kind.startswith("blip"):
            raise ValueError(f"vision: {vision} holds a model of type {kind!r}, expected CLIP")
        if "vision_model.embeddings.class_embedding" not in tensors:
            _fill(tensors, _vision_names(_folder_weights(vision_folder, "vision")))
    if "vision_model.embeddings.class_embedding" not in tensors:
        raise ValueError(f"{name}: no vision tower (vision_model.embeddings.class_embedding); give vision= a CLIP folder")
    text_config: dict[str, Any] | None = None
    if text_folder is not None:
        text_config = _text_folder(tensors, text_folder)
    elif vision_folder is not None and not any(key.startswith("text_model.") for key in tensors):
        text_config, text_folder = _clip_text_half(tensors, vision_folder)
    if text_config is None and any(key.startswith("text_model.") for key in tensors):
        if not options.get("text"):
            raise ValueError(f"{name}: it holds a text encoder; give text= the folder with its config.json and tokenizer")
        text_config = {"model_type": "t5"}
    alpha = options.get("lora_alpha", own.get("lora_alpha"))
    if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) < 1e6):
        raise ValueError(f"config['lora_alpha']: expected a number, got {alpha!r:.40}")
    tensors = merge_lora(tensors, alpha, name)
    _drop_tied(tensors)
    vision_config.pop("integration_point", None)
    stated = {"integration_point": own["integration_point"]} if own.get("integration_point") is not None else {}
    vision_config = {**vision_config, **stated, **_vision_options(options)}
    if text_config is not None:
        text_config = {**text_config, **(options.get("text") or {})}
    vision_config, text_config, weights = _assemble(tensors, vision_config, text_config, size, name)
    blind = "instruction_dim" not in vision_config
    if blind and text is not None and text_config is not None and text_config["model_type"] != "clip_text_model":
        raise ValueError(
            f"{name}: text= was given, but no block of the vision model has instruct weights; give checkpoint= a "
            "QA-ViT checkpoint, or leave text= out for plain CLIP"
        )
    architecture = "clip" if blind else "qavit"
    json_text = _read_tokenizer(tokenizer, text_folder, text_config)
    preprocessing = _folder_preprocessing(vision_folder, architecture, vision_config)
    return _source(architecture, vision_config, text_config, weights, json_text, preprocessing, {}, options, name)


def _fill(tensors: Stored, base: Stored) -> None:
    """Add a folder's weights to a checkpoint's that holds only what was trained on top of them."""
    for key, tensor in base.items():
        later = key[: -len(".weight")] + ".base_layer.weight" if key.endswith(".weight") else key
        if later not in tensors:
            tensors.setdefault(key, tensor)


def _text_folder(tensors: Stored, folder: Path) -> dict[str, Any]:
    """A text folder's configuration; its weights join ``tensors`` where those have none of a text encoder."""
    config = _folder_config(folder, "text")
    kind = str(config.get("model_type", ""))
    kind = {"clip": "clip_text_model", "mt5": "t5", "xlm-roberta": "roberta", "camembert": "roberta"}.get(kind, kind)
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
        base = _text_names(_folder_weights(folder, "text"), kind)
        _drop_tied(base)
        _fill(tensors, base)
    return {**config, "model_type": kind}


def _clip_text_half(tensors: Stored, folder: Path) -> tuple[dict[str, Any] | None, Path | None]:
    """The text half of a full CLIP folder, where there is one."""
    config = _folder_config(folder, "vision")
    if not isinstance(config.get("text_config"), dict) or not _has_weights(folder):
        return None, None
    found = _text_names(_folder_weights(folder, "vision"), "clip_text_model")
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


def _open_blip(
    stored: Stored,
    config: Mapping[str, Any],
    folder: Path | None,
    tokenizer: PathLike | None,
    options: dict[str, Any],
    size: int | None,
    name: str,
) -> ModelSource:
    unknown = [str(key) for key in options if key not in (*_OPTIONS, "embed_dim", "max_txt_len")]
    if unknown:
        raise ValueError(
            f"config: {', '.join(map(repr, unknown))} not known; expected 'vision' and 'text' with what files cannot tell"
        )
    for key in ("vision", "text"):
        if options.get(key) is not None and not isinstance(options[key], Mapping):
            raise TypeError(f"config[{key!r}]: expected a dict, got {type(options[key]).__name__}")
    tensors = {key: tensor for key, tensor in stored.items() if not _BLIP_LEFT_OUT.search(key)}
    vision = {**(config.get("vision_config") or {}), **_vision_options({"vision": options.get("vision")})}
    text = {**(config.get("text_config") or {}), **(options.get("text") or {})}
    if "encoder_hidden_size" in text:
        text.setdefault("encoder_width", text["encoder_hidden_size"])
    for half in (vision, text):
        half.pop("projection_dim", None)
    if folder is not None:  # what transformers takes where a configuration says nothing
        vision = {"num_attention_heads": 12, "layer_norm_eps": 1e-5, **vision}
        text = {"num_attention_heads": 8, **text}
    complete, text_config, weights = _blip(tensors, vision, text, size, name)
    json_text = _read_tokenizer(tokenizer, folder, text_config)
    if json_text is not None:
        from ..text import with_blip_tokens

        json_text = with_blip_tokens(json_text)
    preprocessing = _folder_preprocessing(folder, "blip_itm", complete)
    questions = {"max_words": 50, "max_tokens": int(options.get("max_txt_len", 35))}
    return _source(
        "blip_itm", complete, text_config, weights, json_text, preprocessing, {"questions": questions}, options, name
    )
