"""From files to what a model is built from: every layout that qavit reads becomes one `ModelSource`.

Layouts: a folder that ``qavit convert`` wrote; a QA-ViT checkpoint (.pth) with its vision and text folders; Hugging
Face folders of CLIP, of text encoders, and of BLIP image-text matching; a LAVIS checkpoint of BLIP image-text matching.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

import numpy as np

from qavit import layouts
from qavit.images import CLIP_MEAN, CLIP_STD
from qavit.safetensors_files import open_safetensors, open_safetensors_index, read_bytes, read_json
from qavit.torch_files import open_torch_index, open_torch_weights, read_torch_file, state_dict
from qavit.weights import Stored, Weight, Weights, float_array, from_array, named_panels, shape_of, weight_of

__all__ = ["ModelSource", "Weight", "Weights", "open_model"]

PathLike = Union[str, "os.PathLike[str]"]

#: The model that comes with the package.
BUNDLED = Path(__file__).with_name("demo_model")
QUESTIONS = {"max_words": 50, "max_tokens": 30}
#: Wrappers around a model, which put their name before every tensor's.
_WRAPPERS = ("module.", "base_model.model.", "base_model.", "_orig_mod.")
#: Options of ``config=`` for QA-ViT and CLIP.
_OPTIONS = (
    "integration_point",
    "instruction_dim",
    "lora_alpha",
    "lora_r",
    "heads",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "vision",
    "text",
    "preprocessing",
    "questions",
    "answers",
    "defaults",
)


@dataclass
class ModelSource:
    """All that a model is built from.

    Attributes
    ----------
    architecture : str
        "qavit", "clip" (vision alone) or "blip_itm".
    vision, text : dict
        Hugging Face's configuration keys; ``text`` is None where there is no text half.
    weights : dict
        name -> (buffer, dtype, shape, byte offset): the names of a converted folder, whatever they were in the source.
    tokenizer : str or None
        JSON text of the tokenizers library.
    preprocessing, questions, defaults : dict
        As in a converted folder's config.json.
    answers : list of str or None
        Names of the rows of ``answer_head.weight``.
    name : str
        For messages: where it came from.
    """

    architecture: str
    vision: dict[str, Any]
    text: dict[str, Any] | None
    weights: Weights = field(repr=False)
    tokenizer: str | None = field(repr=False)
    preprocessing: dict[str, Any]
    questions: dict[str, Any]
    answers: list[str] | None
    defaults: dict[str, Any]
    name: str


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


# Folders.


def _path(path: PathLike, argument: str) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{argument}: expected a str or a path, got {type(path).__name__}")
    if str(path) == "":
        raise ValueError(f"{argument}: got '', expected a path")
    return Path(path)


def _folder(path: PathLike, argument: str) -> Path:
    folder = _path(path, argument)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"{argument}: {str(path)!r} is a file, expected a folder")
    from qavit import hub

    if isinstance(path, str) and hub.looks_like_name(path):
        return hub.model_folder(path, argument)
    hint = "" if argument != "path" else "; 'demo' is the bundled model, 'owner/name' one of the Hugging Face hub"
    raise FileNotFoundError(f"{argument}: there is no folder {str(path)!r}{hint}")


def _file(path: PathLike, argument: str) -> Path:
    file = _path(path, argument)
    if file.is_dir():
        raise ValueError(f"{argument}: {str(path)!r} is a folder, expected a file")
    if not file.is_file():
        raise FileNotFoundError(f"{argument}: there is no file {str(path)!r}")
    return file


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _folder_config(folder: Path, argument: str) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{argument}: {folder} holds no config.json")
    return _object(folder / "config.json")


def _folder_weights(folder: Path, argument: str) -> Stored:
    """The weights of a folder in any of Hugging Face's forms, mapped."""
    if (folder / "model.safetensors").is_file():
        return dict(open_safetensors(folder / "model.safetensors"))
    if (folder / "model.safetensors.index.json").is_file():
        return open_safetensors_index(folder / "model.safetensors.index.json")
    if (folder / "pytorch_model.bin").is_file():
        return open_torch_weights(folder / "pytorch_model.bin")
    if (folder / "pytorch_model.bin.index.json").is_file():
        return open_torch_index(folder / "pytorch_model.bin.index.json")
    raise FileNotFoundError(
        f"{argument}: {folder} holds no weights (model.safetensors, pytorch_model.bin, or an index of shards)"
    )


def _has_weights(folder: Path) -> bool:
    names = ("model.safetensors", "pytorch_model.bin")
    return any((folder / (name + end)).is_file() for name in names for end in ("", ".index.json"))


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


# Converted folders.


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


def _source(
    architecture: str,
    vision: dict[str, Any],
    text: dict[str, Any] | None,
    weights: Weights,
    tokenizer: str | None,
    preprocessing: dict[str, Any],
    given: Mapping[str, Any],
    options: Mapping[str, Any],
    name: str,
) -> ModelSource:
    """The last checks, the same for every layout: what is not about weights."""
    found: dict[str, Any] = {"questions": QUESTIONS, "answers": None, "defaults": {}}
    for layer in (given, options):
        for key in found:
            if layer.get(key) is not None:
                found[key] = layer[key]
    preprocessing = {**preprocessing, **(options.get("preprocessing") or {})}
    for key in ("questions", "defaults"):
        if not isinstance(found[key], Mapping):
            raise ValueError(f"{name}: {key!r} is {type(found[key]).__name__}, expected an object")
    questions = {**QUESTIONS, **found["questions"]}
    for key in QUESTIONS:
        if not isinstance(questions[key], int) or isinstance(questions[key], bool) or questions[key] < 1:
            raise ValueError(f"{name}: questions.{key} is {questions[key]!r}, expected a whole number above 0")
    answers = found["answers"]
    if answers is not None:
        if not isinstance(answers, (list, tuple)) or not all(isinstance(answer, str) for answer in answers):
            raise ValueError(f"{name}: 'answers' is not a list of texts")
        rows = weights["answer_head.weight"][2][0] if "answer_head.weight" in weights else 0
        if rows != len(answers):
            raise ValueError(f"{name}: {len(answers)} answers are listed, answer_head.weight has {rows} rows")
        answers = list(answers)
    _check_preprocessing(preprocessing, vision["image_size"], name)
    return ModelSource(
        architecture, vision, text, weights, tokenizer, preprocessing, questions, answers, dict(found["defaults"]), name
    )


# Preprocessing.


def _default_preprocessing(architecture: str, vision: Mapping[str, Any]) -> dict[str, Any]:
    blip = architecture == "blip_itm"
    return {
        "size": vision["image_size"],
        "resize": "exact" if blip else "shortest_edge",
        "crop": not blip,
        "mean": list(CLIP_MEAN),
        "std": list(CLIP_STD),
    }


def _folder_preprocessing(folder: Path | None, architecture: str, vision: Mapping[str, Any]) -> dict[str, Any]:
    """A Hugging Face folder's preprocessor_config.json as ours, for the model's image size."""
    result = _default_preprocessing(architecture, vision)
    if folder is None or not (folder / "preprocessor_config.json").is_file():
        return result
    path = folder / "preprocessor_config.json"
    config = _object(path)
    if config.get("resample", 3) not in (3, "bicubic"):
        raise ValueError(f"{path}: resample {config['resample']!r}; only 3 (bicubic) is known")
    factor = config.get("rescale_factor", 1 / 255)
    if not isinstance(factor, (int, float)) or abs(factor * 255 - 1) > 1e-6:
        raise ValueError(f"{path}: rescale_factor {factor!r}; only 1 / 255 is known")
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if config.get(theirs) is not None:
            result[ours] = config[theirs]
    if config.get("do_normalize") is False:
        result["mean"], result["std"] = [0.0] * 3, [1.0] * 3
    size = config.get("size")
    if isinstance(size, Mapping) and "shortest_edge" not in size:
        result["resize"], result["crop"] = "exact", False
    elif isinstance(config.get("do_center_crop"), bool):
        result["crop"] = config["do_center_crop"]
        if not result["crop"]:
            result["resize"] = "exact"
    return result


def _check_preprocessing(preprocessing: Mapping[str, Any], image_size: int, name: str) -> None:
    label = f"{name}: preprocessing"
    if preprocessing.get("size") != image_size:
        raise ValueError(f"{label}.size is {preprocessing.get('size')!r}, the model takes images of {image_size}")
    if preprocessing.get("resize") not in ("shortest_edge", "exact") or not isinstance(preprocessing.get("crop"), bool):
        raise ValueError(f"{label}: expected resize 'shortest_edge' or 'exact', and crop true or false")
    for key in ("mean", "std"):
        values = preprocessing.get(key)
        if (
            not isinstance(values, (list, tuple))
            or len(values) != 3
            or not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
            or not all(abs(value) < 1e6 and (key == "mean" or value > 0) for value in values)
        ):
            raise ValueError(f"{label}.{key} is {values!r}, expected three numbers")


# Tokenizers.


def _read_tokenizer(given: PathLike | None, folder: Path | None, text: Mapping[str, Any] | None) -> str | None:
    """The tokenizer of a text half, as JSON text; None where there is no text half or no tokenizer."""
    if text is None:
        return None
    path = Path(given) if given is not None else folder
    if path is None:
        return None
    if given is not None and not path.exists():
        raise FileNotFoundError(f"tokenizer: there is no file or folder {str(given)!r}")
    if path.is_dir() and (path / "tokenizer.json").is_file():
        path = path / "tokenizer.json"
    if path.suffix == ".json" and path.name != "vocab.json":
        return read_bytes(path).decode("utf-8")
    if path.is_dir() and given is None and not any((path / file).is_file() for file in ("vocab.txt", "vocab.json")):
        return None
    from qavit.text import Tokenizer

    return Tokenizer.from_folder(path).to_json()


# Names.


def _unwrap(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name[next(len(wrapper) for wrapper in _WRAPPERS if name.startswith(wrapper)) :]
    return name


_VISION = re.compile(r"(?:^|\.)(vision_model\.(?:embeddings|pre_layrnorm|encoder|post_layernorm)[\w.]*)$")


def _sort_names(tensors: Stored, name: str) -> Stored:
    """A QA-ViT state dict's tensors by our names; what belongs to the language model's other half is left out."""
    result: Stored = {}
    duplicate: Stored = {}
    for original, tensor in tensors.items():
        plain = _unwrap(original)
        vision = _VISION.search(plain)
        if vision:
            ours = vision[1]
        elif plain.startswith(("decoder.", "lm_head.")) or "translation_mlp" in plain.split("."):
            continue
        elif plain.startswith("instruction_embedder."):
            duplicate["text_model.shared." + plain[len("instruction_embedder.") :]] = tensor
            continue
        elif plain.startswith(("shared.", "encoder.")):
            ours = "text_model." + plain
        elif plain.endswith("visual_projection.weight"):
            ours = "visual_projection.weight"
        else:
            ours = plain
        if ours in result:
            raise ValueError(f"{name}: {ours} is there twice ({original!r} is one of its names)")
        result[ours] = tensor
    for ours, tensor in duplicate.items():
        if ours in result and not _same(result[ours], tensor):
            raise ValueError(f"{name}: instruction_embedder and shared are not the same table ({ours})")
        result.setdefault(ours, tensor)
    return result


def _same(a: Any, b: Any) -> bool:
    one, two = weight_of(a), weight_of(b)
    if one[0] is two[0] and one[1:] == two[1:]:
        return True
    return one[1:3] == two[1:3] and np.array_equal(float_array(one), float_array(two), equal_nan=True)


def _vision_names(tensors: Stored) -> Stored:
    """A Hugging Face CLIP folder's vision tower; the text half and training's scale are left out."""
    result: Stored = {}
    bare = "embeddings.class_embedding" in tensors  # transformers 5 leaves the prefix out
    for original, tensor in tensors.items():
        name = "vision_model." + original if bare else _unwrap(original)
        match = _VISION.search(name)
        if match:
            result[match[1]] = tensor
        elif not name.startswith(("text_model.", "text_projection.", "logit_scale")) and "position_ids" not in name:
            result[name] = tensor
    return result


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


# QA-ViT and CLIP.


def _known_options(options: Mapping[str, Any]) -> None:
    unknown = [str(key) for key in options if key not in _OPTIONS]
    if unknown:
        raise ValueError(f"config: {', '.join(map(repr, unknown))} not known; expected some of {', '.join(_OPTIONS)}")
    for key in ("vision", "text", "preprocessing", "questions", "defaults"):
        if options.get(key) is not None and not isinstance(options[key], Mapping):
            raise TypeError(f"config[{key!r}]: expected a dict, got {type(options[key]).__name__}")


def _vision_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The vision half's keys of ``config=``."""
    result = dict(options.get("vision") or {})
    for key in ("integration_point", "instruction_dim", "hidden_act", "layer_norm_eps", "num_attention_heads"):
        if options.get(key) is not None:
            result[key] = options[key]
    if options.get("heads") is not None:
        result["num_attention_heads"] = options["heads"]
    for lavis, ours in (
        ("img_size", "image_size"),
        ("embed_dim", "hidden_size"),
        ("depth", "num_hidden_layers"),
        ("num_heads", "num_attention_heads"),
    ):
        if lavis in result:
            result.setdefault(ours, result.pop(lavis))
    return result


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
    tensors = layouts.merge_lora(tensors, alpha, name)
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
    blocks = layouts.count_blocks(tensors, "vision_model.encoder.layers.")
    reduce = "vision_model.encoder.layers.{}.instruct_dim_reduce.1.weight"
    integrated = tuple(block for block in range(blocks) if reduce.format(block) in tensors)
    what = f"{name}: vision"
    complete = layouts.clip_vision_config(tensors, vision, size, what)
    expected: layouts.Shapes = {}
    instruct = 0
    if integrated:
        instruct = layouts.need(tensors, reduce.format(integrated[0]), 2, what)[1]
        layouts.settle(vision, {"instruction_dim": instruct}, what)
        complete["integration_point"] = layouts.integration_point(integrated, blocks, vision.get("integration_point"))
        complete["instruction_dim"] = instruct
    elif vision.get("integration_point") is not None:
        raise ValueError(f"{what}: integration_point {vision['integration_point']!r}, but no block has instruct weights")
    tokens = layouts.need(tensors, "vision_model.embeddings.position_embedding.weight", 2, what)[0]
    expected.update(layouts.clip_vision_shapes(complete, tokens, integrated, instruct))
    width = complete["hidden_size"]
    optional: layouts.Shapes = {}
    if "projection_dim" in complete:
        optional["visual_projection.weight"] = (complete["projection_dim"], width)
    if "answer_head.weight" in tensors:
        answers = layouts.need(tensors, "answer_head.weight", 2, what)[0]
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
        expected.update(layouts.text_shapes(text_config))
        if "projection_dim" in text_config:
            optional["text_projection.weight"] = (text_config["projection_dim"], text_width)
    weights = layouts.take(tensors, expected, name, optional)
    position = "vision_model.embeddings.position_embedding.weight"
    weights[position] = _positions(weights[position], complete)
    return complete, text_config, weights


def _text_config(tensors: Stored, text: Mapping[str, Any], what: str) -> dict[str, Any]:
    kind = text.get("model_type")
    if kind == "t5":
        return layouts.t5_config(tensors, text, what)
    if kind == "clip_text_model":
        return layouts.clip_text_config(tensors, text, what)
    if kind in ("bert", "roberta"):
        return layouts.bert_config(tensors, text, what)
    raise ValueError(f"{what}: model_type {kind!r}, expected t5, bert, roberta or clip_text_model")


def _positions(weight: Weight, config: Mapping[str, Any]) -> Weight:
    """Position embeddings for the configured image size: the same view where it is the weights' own."""
    side = config["image_size"] // config["patch_size"]
    shape = weight[2]
    if shape[-2] == 1 + side * side:
        return weight
    resized = layouts.resize_positions(float_array(weight).reshape(shape[-2], shape[-1]), side)
    return from_array(resized.reshape(*shape[:-2], *resized.shape))


# BLIP image-text matching.

_BLIP_LEFT_OUT = re.compile(
    r"^(visual_encoder_m|text_encoder_m|vision_proj_m|text_proj_m|text_decoder|combined_.*)\."
    r"|^(image_queue|text_queue|queue_ptr|ptr_queue|idx_queue|temp|logit_scale)$"
)
_BLIP_NAMES = (
    (r"^vision_model\.embeddings\.class_embedding$", "visual_encoder.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "visual_encoder.pos_embed"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."),
    (r"^vision_model\.post_layernorm\.", "visual_encoder.norm."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.qkv\.", r"visual_encoder.blocks.\1.attn.qkv."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection\.", r"visual_encoder.blocks.\1.attn.proj."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.layer_norm([12])\.", r"visual_encoder.blocks.\1.norm\2."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.mlp\.", r"visual_encoder.blocks.\1.mlp."),
)


def _blip_name(name: str) -> str:
    for pattern, replacement in _BLIP_NAMES:
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    return name


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
    tensors: Stored = {}
    for original, tensor in stored.items():
        if not _BLIP_LEFT_OUT.search(original):
            tensors[_blip_name(original)] = tensor
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
        from qavit.text import with_blip_tokens

        json_text = with_blip_tokens(json_text)
    preprocessing = _folder_preprocessing(folder, "blip_itm", complete)
    questions = {"max_words": 50, "max_tokens": int(options.get("max_txt_len", 35))}
    return _source(
        "blip_itm", complete, text_config, weights, json_text, preprocessing, {"questions": questions}, options, name
    )


def _blip(
    tensors: Stored, vision: Mapping[str, Any], text: Mapping[str, Any], size: int | None, name: str
) -> tuple[dict[str, Any], dict[str, Any], Weights]:
    complete, text_config = layouts.blip_configs(tensors, vision, text, size, name)
    tokens = shape_of(tensors["visual_encoder.pos_embed"])[1]
    weights = layouts.take(tensors, layouts.blip_shapes(complete, text_config, tokens), name)
    weights["visual_encoder.pos_embed"] = _positions(weights["visual_encoder.pos_embed"], complete)
    return complete, text_config, weights
