"""Options and exit codes that commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from ..models._devices import PRECISIONS

OK, SOME_FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class UsageError(Exception):
    """A command that cannot be meant, whatever the files hold."""


#: What completion offers for an option: the conventions of shtab, which makes the scripts.
FILE = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}
FOLDER = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/", "tcsh": "d"}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end."""
        self.exit(USAGE, f"{self.prog}: {message.removeprefix('argument ')}\n")


def completed(action: argparse.Action, by: dict[str, str]) -> None:
    """Let completion offer files or folders for an option."""
    action.complete = by  # type: ignore[attr-defined]


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """The options that say how a file of questions is read, and where its pictures are."""
    group = parser.add_argument_group("the questions' file")
    completed(
        group.add_argument(
            "--images", dest="place", metavar="DIR",
            help="where relative pictures lie: a folder, .zip or .tar (default: beside the questions)",
        ), FILE,
    )  # fmt: skip
    group.add_argument("--image-name", metavar="FORMAT", help='a picture\'s name from its row, such as "{image_id}.jpg"')
    group.add_argument(
        "--columns", type=pairs, default={}, metavar="A=B,...",
        help="where a row has its id, image and question, such as question=sentence,image=file_name",
    )  # fmt: skip
    group.add_argument("--encoding", metavar="NAME", help="of text, such as cp1252 (default: UTF-8, or what the file says)")
    group.add_argument("--max-pixels", type=int, metavar="N", help="of the largest picture that is read (default: 89478485)")


def pairs(text: str) -> dict[str, str]:
    """From "a=b,c": {"a": "b", "c": "c"}."""
    found = {}
    for one in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, column = one.partition("=")
        found[name.strip()] = column.strip() or name.strip()
    return found


def add_questions(parser: argparse.ArgumentParser) -> None:
    """-q and --questions, which mean the same in every command."""
    parser.add_argument("-q", "--question", action="append", default=[], help="a question; may be given many times")
    completed(parser.add_argument("--questions", metavar="FILE", help="a file of questions, as qavit run reads it"), FILE)


def add_out(parser: argparse.ArgumentParser) -> None:
    """-o."""
    completed(parser.add_argument("-o", "--out", default="out", metavar="DIR", help="where to write (default: out)"), FOLDER)


def reading_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """What `qavit.data.open_questions` takes, the files apart."""
    return {
        "images": options.place, "image_name": options.image_name, "columns": options.columns, "encoding": options.encoding,
    }  # fmt: skip


def add_answering(parser: Any) -> None:
    """--answering."""
    parser.add_argument(
        "--answering", type=numbers, default={}, metavar="A=N,...",
        help="how to answer: num_captions=50,seed=1 of PnP-VQA, num_beams=3 of models that write",
    )  # fmt: skip


def numbers(text: str) -> dict[str, Any]:
    """From "a=1,b=0.5": {"a": 1, "b": 0.5}."""
    found: dict[str, Any] = {}
    for name, value in pairs(text).items():
        try:
            found[name] = int(value) if value.lstrip("-").isdecimal() else float(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{name}={value}: expected a number, as in num_captions=50") from None
    return found


def precision_name(text: str) -> str:
    """A precision under the short name that others have for it too."""
    return {"bf16": "bfloat16", "fp32": "float32", "f32": "float32"}.get(text.lower(), text)


def add_map_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which map is read, and of how much of the picture."""
    parser.add_argument("--method", metavar="NAME", help="how a map is read, such as class (default: the model's)")
    parser.add_argument("--block", type=blocks_of, metavar="N,...", help="whose attention (default: the method's)")
    parser.add_argument("--heads", type=heads_of, default="mean", help="mean, max or a number (default: mean)")
    parser.add_argument(
        "--fit", choices=("crop", "stretch", "pad"),
        help="what of the picture is seen: its middle, all of it out of shape, all of it within bars (default: the model's)",
    )  # fmt: skip


def blocks_of(text: str) -> Any:
    """The number of a block, or several with commas between them."""
    try:
        numbers = [int(one) for one in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected the number of a block, or several: 6,7,8") from None
    return numbers if len(numbers) > 1 else numbers[0]


def size_of(text: str) -> Any:
    """A side, or height x width."""
    try:
        edges = [int(edge) for edge in text.lower().split("x")]
    except ValueError:
        edges = []
    if len(edges) not in (1, 2):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a side, or height and width: 336x448")
    return edges[0] if len(edges) == 1 else (edges[0], edges[1])


def heads_of(text: str) -> Any:
    """mean, max, or a number."""
    if text in ("mean", "max", "single"):
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected mean, max or a number") from None


def add_model_options(
    parser: argparse.ArgumentParser,
    precision: bool = True,
    model: str = "demo (the default), a model's folder, or hf://owner/name on the hub",
) -> None:
    """The options that choose a model."""
    group = parser.add_argument_group("the model")
    completed(group.add_argument("--model", metavar="NAME", help=model), FOLDER)
    for name, metavar, by, said in (
        ("--checkpoint", "FILE", FILE, "a QA-ViT or BLIP-ITM checkpoint"),
        ("--vision", "DIR", FOLDER, "a CLIP folder"),
        ("--text", "DIR", FOLDER, "a text encoder's folder"),
        ("--tokenizer", "FILE", FILE, "tokenizer.json or vocab.txt"),
        ("--config", "JSON", FILE, "what the files do not tell, as a JSON object or a file of one"),
    ):
        completed(group.add_argument(name, metavar=metavar, help=said), by)
    group.add_argument(
        "--image-size", type=size_of, metavar="N|HxW", help="another input size than the model was trained at"
    )
    if precision:
        group.add_argument(
            "--precision",
            choices=PRECISIONS,
            default="float32",
            type=precision_name,
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
