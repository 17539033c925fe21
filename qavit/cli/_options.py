"""Options and exit codes that commands share."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from ..models._devices import PRECISIONS

#: What --method takes; which of them a model has, it says itself.
METHODS = ("class", "question", "gradcam")
OK, SOME_FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
logger = logging.getLogger("qavit")


class UsageError(Exception):
    """A command that cannot be meant, whatever the files hold."""


def add_model_options(
    parser: argparse.ArgumentParser,
    precision: bool = True,
    model: str = "demo (the default), a model's folder, or hf://owner/name on the hub",
) -> None:
    """The options that choose a model."""
    group = parser.add_argument_group("the model")
    group.add_argument("--model", metavar="NAME", help=model)
    group.add_argument("--checkpoint", metavar="FILE", help="a QA-ViT or BLIP-ITM checkpoint")
    group.add_argument("--vision", metavar="DIR", help="a CLIP folder")
    group.add_argument("--text", metavar="DIR", help="a text encoder's folder")
    group.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json or vocab.txt")
    group.add_argument("--config", metavar="JSON", help="what the files do not tell, as a JSON object or a file of one")
    group.add_argument("--image-size", type=int, metavar="N", help="another input side than the model was trained at")
    if precision:
        group.add_argument(
            "--precision", choices=PRECISIONS, default="float32",
            help="of the products (default: float32; tf32 is for a GPU)",
        )
        group.add_argument("--device", default="cpu", help="cpu (the default), cuda or cuda:N")


def model_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """What `qavit.load` and `open_model` take."""
    from .._base.small_files import parse_json

    config = None
    if options.config is not None:
        text = options.config
        if not text.lstrip().startswith("{"):
            text = Path(text).read_text(encoding="utf-8")
        try:
            config = parse_json(text.encode(), "--config")
        except ValueError as error:
            raise UsageError(f"--config: expected a JSON object or a file of one: {error}") from None
    chosen = {name: getattr(options, name) for name in ("checkpoint", "vision", "text", "tokenizer", "image_size")}
    return {**chosen, "config": config}


def load_model(options: argparse.Namespace) -> Any:
    """The model that the options choose."""
    from ..models._load import load

    return load(options.model, **model_arguments(options), precision=options.precision, device=options.device)
