"""What opening a model gives: weights, sizes, and the settings beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._base.types import ImageSize
from .._base.vocabularies import read_tokenizer, tokenizer_file
from ..images import Preprocessing
from ._places import PathLike
from ._weights import Stored, Weights, core_weight

#: What QA-ViT answers with, beside its T5's encoder.
#: What stands in front of the names of `ModelSource.prompts` in a converted folder.
PROMPTS = "prompts."
PROMPT_TOKENIZER = "prompt_tokenizer.json"
DECODER = ("text_model.decoder.", "text_model.lm_head.")
QUESTIONS = {"max_words": 50, "max_tokens": 30}
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
    "position_resize",
    "vision",
    "text",
    "preprocessing",
    "questions",
    "answers",
    "defaults",
    "state",
    "strict",
    "base",
)


@dataclass
class Prompts:
    """A CLIP's text half beside a model that reads questions by another: its texts lie in the pictures' space.

    Attributes
    ----------
    text : dict
        As `ModelSource.text`.
    weights : dict
        As `ModelSource.weights`: ``text_model.*``, ``text_projection.*``, ``logit_scale``.
    tokenizer : str or None
        JSON text of the tokenizers library.
    """

    text: dict[str, Any]
    weights: Weights = field(repr=False)
    tokenizer: str | None = field(repr=False)


@dataclass
class ModelSource:
    """All that a model is built from.

    Attributes
    ----------
    architecture : str
        "qavit", "clip" (vision alone), "blip_itm" or "blip_vqa".
    vision, text : dict
        Hugging Face's configuration keys; ``vision`` is empty where no picture is looked at, ``text`` None where there is
        no text half.
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
    decoder : dict
        name -> tensor: more weights, which only an answer needs, so that they are made when the first is asked for.
    prompts : Prompts or None
        Of a QA-ViT.
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
    decoder: Stored = field(default_factory=dict, repr=False)
    prompts: Prompts | None = None

    def every_weight(self) -> Weights:
        """The weights with those of the decoder, and of the prompts behind `PROMPTS`."""
        prompts = {} if self.prompts is None else {PROMPTS + name: one for name, one in self.prompts.weights.items()}
        return {**self.weights, **{name: core_weight(tensor) for name, tensor in self.decoder.items()}, **prompts}


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
    if vision:
        _check_preprocessing(preprocessing, vision["image_size"], name)
    decoder: Stored = {key: weights[key] for key in weights if key.startswith(DECODER)}
    return ModelSource(
        architecture, vision, text, {key: weights[key] for key in weights if key not in decoder}, tokenizer, preprocessing,
        questions, answers, dict(found["defaults"]), name, decoder,
    )  # fmt: skip


def _check_preprocessing(preprocessing: Mapping[str, Any], image_size: ImageSize, name: str) -> None:
    size = preprocessing.get("size")
    if (tuple(size) if isinstance(size, list) else size) != image_size:
        raise ValueError(f"{name}: preprocessing.size is {size!r}, the model takes images of {image_size}")
    try:
        Preprocessing.from_dict(preprocessing)
    except ValueError as err:
        raise ValueError(f"{name}: {err}") from None


def _read_tokenizer(
    given: PathLike | None, folder: Path | None, text: Mapping[str, Any] | None, needed: str | None = None
) -> str | None:
    """The tokenizer of a text half, as JSON text; None where there is none, and none is ``needed`` (by that argument)."""
    if text is None:
        return None
    path = Path(given) if given is not None else folder
    if path is None or (given is None and needed is None and tokenizer_file(path) is None):
        return None
    try:
        return read_tokenizer(path)
    except FileNotFoundError as err:
        if needed is None or given is not None:
            raise
        raise FileNotFoundError(f"{needed}: {str(err).removeprefix('tokenizer: ')}; or give tokenizer=") from None


def _known_options(options: Mapping[str, Any]) -> None:
    unknown = [str(key) for key in options if key not in _OPTIONS]
    if unknown:
        raise ValueError(f"config: {', '.join(map(repr, unknown))} not known; expected some of {', '.join(_OPTIONS)}")
    for key in ("vision", "text", "preprocessing", "questions", "defaults"):
        if options.get(key) is not None and not isinstance(options[key], Mapping):
            raise TypeError(f"config[{key!r}]: expected a dict, got {type(options[key]).__name__}")
