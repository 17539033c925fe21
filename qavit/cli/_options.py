"""Options and exit codes that commands share."""

from __future__ import annotations

import argparse
import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Optional

from .._base.arguments import nearest
from ..models._devices import PRECISIONS

if TYPE_CHECKING:
    from ..data._pictures import ImageSource

OK, SOME_FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class UsageError(Exception):
    """A command that cannot be meant, whatever the files hold."""


#: What completion offers for an option: the conventions of shtab, which makes the scripts.
FILE = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}
FOLDER = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/", "tcsh": "d"}


#: What others call a choice, where it is no other spelling of the same thing.
OTHERWISE_CALLED = {**dict.fromkeys(("fp16", "f16", "half", "float16"), "bfloat16"), "float": "float32", "q8": "int8"}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with what was meant where that can be told."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end."""
        self.exit(USAGE, f"{self.prog}: {message.removeprefix('argument ')}\n")

    def refuse(self, unknown: list[str]) -> NoReturn:
        """Say what is not known among the arguments, and end."""
        name = unknown[0].partition("=")[0]
        if not name.startswith("-"):
            self.error(f"{unknown[0]!r} is one argument too many; what has spaces in it stands in quotes")
        options = (option for action in self._actions for option in action.option_strings if option.startswith("--"))
        self.error(f"there is no option {name}{meant(name, options, '; did you mean {}?')}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = None if action.choices is None else list(map(str, action.choices))
        if choices is not None and str(value) not in choices:
            others = f"expected {', '.join(choices)}"
            if action.dest == "command":
                self.error(f"there is no command {value}; {meant(str(value), choices, 'did you mean {}? ')}{others}")
            raise argparse.ArgumentError(action, f"{value}: {meant(str(value), choices, 'did you mean {}? ')}{others}")


def meant(given: str, choices: Iterable[str], said: str) -> str:
    """``said`` with the choice that is nearest to what was given; "" where none is near."""
    known = list(choices)
    other = OTHERWISE_CALLED.get(given.lower())
    near = other if other in known else nearest(given, known)
    return said.format(near) if near else ""


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
    completed(
        parser.add_argument(
            "--questions", metavar="FILE",
            help="a file of questions: .txt, one a line, or a table as qavit run reads it; a row that names a picture is "
            "asked of that one, another of all pictures that are named here",
        ), FILE,
    )  # fmt: skip


def read_questions(options: argparse.Namespace) -> Iterator[tuple[Optional[ImageSource], str]]:
    """(picture or None, question) of each row of --questions; every row must be one."""
    from ..data._questions import open_asked

    for item in open_asked(options.questions, **reading_arguments(options)):
        if item.problem is not None:
            raise ValueError(item.problem)
        yield item.image, item.question


def name_of(source: ImageSource) -> str:
    """What a picture is called: its file, or its name inside of one."""
    return source.name if source.data is not None or source.member or source.size else str(source.read())


def expanded(image: str) -> list[str]:
    """The pictures that an argument means: itself, those of a folder, or those that fit a pattern."""
    from .._base.pictures import PICTURE_ENDINGS

    if os.path.isdir(image):
        names = sorted(name for name in os.listdir(image) if Path(name).suffix.lower()[1:] in PICTURE_ENDINGS)
        if not names:
            raise UsageError(f"{image}: no pictures lie in this folder; '{image}/**/*.jpg' takes its folders too")
        return [os.path.join(image, name) for name in names]
    if any(letter in image for letter in "*?[") and not os.path.exists(image):
        found = sorted(path for path in glob.glob(image, recursive=True) if os.path.isfile(path))
        if not found:
            raise UsageError(f"{image}: no picture fits this pattern")
        return found
    return [image]


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
    return {"bf16": "bfloat16", "fp32": "float32", "f32": "float32", "i8": "int8"}.get(text.lower(), text)


def add_map_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which map is read, and of how much of the picture."""
    parser.add_argument("--method", metavar="NAME", help="how a map is read, such as class (default: the model's)")
    parser.add_argument("--block", type=blocks_of, metavar="N,...", help="whose attention (default: the method's)")
    parser.add_argument("--heads", type=heads_of, default="mean", help="mean, max or a number (default: mean)")
    parser.add_argument(
        "--fit", choices=("crop", "stretch", "pad"),
        help="what of the picture is seen: its middle, all of it out of shape, all of it within bars (default: the model's)",
    )  # fmt: skip


def add_scale_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what colours a map has."""
    parser.add_argument("--cmap", default="viridis", metavar="NAME", help="a matplotlib colormap (default: viridis)")
    parser.add_argument("--vmin", type=float, metavar="VALUE", help="the value of the colours' lower end (default: 0)")
    parser.add_argument(
        "--vmax", type=float, metavar="VALUE", help="the value of their upper end (default: the peak, or 3 times the mean)"
    )


def check_scale(options: argparse.Namespace) -> None:
    """Raise ValueError for colours that there are not, before anything is computed."""
    import numpy as np

    from ..plots._pixels import colormap, scale_of

    colormap(options.cmap)
    scale_of(np.ones((1, 1), np.float32), options.vmin, options.vmax)


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
    default_precision: Optional[str] = "float32",
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
            default=default_precision,
            type=precision_name,
            help=f"of the products (default: {default_precision or 'each in turn'}; int8_mixed: last layers in "
            "bfloat16; tf32 is for a GPU)",
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
