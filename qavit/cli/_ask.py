"""`qavit ask`."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .._base.arguments import one_line
from .._base.warnings import QavitWarning, note_of
from ._options import (
    FILE,
    OK,
    SOME_FAILED,
    UsageError,
    add_answering,
    add_input_options,
    add_model_options,
    add_questions,
    add_scale_options,
    check_scale,
    completed,
    expanded,
    model_arguments,
    name_of,
    read_questions,
)

if TYPE_CHECKING:
    from .._result import HeatmapResult
    from ..generation import Generated

ENDINGS = frozenset({".png", ".jpg", ".webp", ".pdf", ".svg"})
MOST_RANKED, LEAST_SHARE = 5, 0.01


class Asked(NamedTuple):
    """A question about a picture: what is loaded, and what it is called."""

    picture: Any
    image: str
    question: str


def add_ask_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``qavit ask``."""
    completed(
        parser.add_argument("picture", nargs="?", metavar="PICTURE", help="a picture, a folder of them, or 'a/*.jpg'"), FILE
    )
    parser.add_argument("asked", nargs="*", metavar="QUESTION", help="what is asked; several are answered one by one")
    add_questions(parser)
    completed(
        parser.add_argument(
            "--why", nargs="?", const="", metavar="FILE",
            help="draw where the model looked beside the answer, and what the answer was read out of (default: why.png)",
        ), FILE,
    )  # fmt: skip
    add_scale_options(parser)
    add_answering(parser)
    parser.add_argument(
        "--among", action="append", metavar="ANSWER", help="choose among these; may be given many times (models that write)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a question on standard output")
    add_input_options(parser)
    add_model_options(
        parser, model="demo (the default), a model's folder, hf://owner/name, or a configuration of PnP-VQA (.yaml)"
    )


def run_ask(options: argparse.Namespace) -> int:
    """Answer; each answer is a line, and behind its picture where there are several."""
    from ..answers._open import open_answering

    why = None if options.why is None else Path(options.why or "why.png")
    if why is not None and why.suffix.lower() not in ENDINGS:
        raise UsageError(f"--why: {str(why)!r} is none of {', '.join(sorted(ENDINGS))}")
    if why is not None:
        check_scale(options)
    elif (options.cmap, options.vmin, options.vmax) != ("viridis", None, None):
        raise UsageError("--cmap, --vmin and --vmax are of a figure, which --why draws")
    asked = questions_of(options)
    arguments = {name: value for name, value in model_arguments(options).items() if value is not None}
    model = open_answering(options.model, **arguments, precision=options.precision, device=options.device)
    several, failed = len({one.image for one in asked}) > 1, False
    for number, one in enumerate(asked):
        file = None if why is None else numbered(why, number, len(asked))
        try:
            answer, about = answered(model, one, options, file)
        except (OSError, ValueError) as error:
            if len(asked) == 1 or options.verbose:
                raise
            failed = True
            problem = one_line(error)
            print(f"qavit ask: {problem if one.image in problem else f'{one.image}: {problem}'}", file=sys.stderr)
            if options.json:
                print(json.dumps({"image": one.image, "question": one.question, "error": problem}, ensure_ascii=False))
            continue
        if options.json:
            print(json.dumps(about, ensure_ascii=False), flush=True)
            continue
        print(f"{one.image}: {answer}" if several else answer, flush=True)
        if file is not None:
            print(f"wrote {file}", file=sys.stderr)
    return SOME_FAILED if failed else OK


def questions_of(options: argparse.Namespace) -> list[Asked]:
    """What is asked, about which picture, in order."""
    if len(options.asked) > 1 and not any(" " in question for question in options.asked):
        raise UsageError(f'quotes keep a question together: "{" ".join(options.asked)}"; several words are given by -q')
    pictures = [] if options.picture is None else expanded(options.picture)
    found = [Asked(image, image, question) for image in pictures for question in [*options.asked, *options.question]]
    if options.questions is not None:
        for source, question in read_questions(options):
            if source is None and not pictures:
                raise UsageError(f"{options.questions} names no picture for {question!r}; name pictures, too")
            images = [(image, image) for image in pictures] if source is None else [(source.read(), name_of(source))]
            found += [Asked(picture, name, question) for picture, name in images]
    if not found:
        raise UsageError('name a picture and a question: qavit ask cat.jpg "what is it?", or --questions FILE')
    return found


def answered(model: Any, one: Asked, options: argparse.Namespace, file: Path | None) -> tuple[str, dict[str, Any]]:
    """The answer to a question, and what is told of it in JSON; its figure is drawn where there is a file for it."""
    from ..answers._pnpvqa import PNPVQA

    answering = {**options.answering, **({} if options.among is None else {"answers": options.among})}
    named = {} if file is None else {"file": str(file)}
    if isinstance(model, PNPVQA):
        explained = model.explain(one.picture, one.question, **answering)
        if file is not None:
            explained.save(file, **look_of(options))
        return explained.answer.text, {"image": one.image, **explained.to_dict(), **named}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (answer,) = model.answer(one.picture, [one.question], **answering)
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if file is not None:
        draw(answer.result or model.heatmaps(one.picture, one.question), one.question, answer, file, look_of(options))
    ranked = None if answer.ranked is None else answer.ranked[:MOST_RANKED]
    about = {"image": one.image, "question": one.question, "answer": answer.text, "score": answer.score, "ranked": ranked}
    return answer.text, {**about, "notes": notes_of(caught), **named}


def notes_of(caught: Sequence[warnings.WarningMessage]) -> list[dict[str, str]]:
    """What was warned of, as the notes of a result in JSON."""
    notes = [note_of(one.category, str(one.message)) for one in caught if issubclass(one.category, QavitWarning)]
    return [{"kind": note.kind, "text": note.text} for note in notes]


def look_of(options: argparse.Namespace) -> dict[str, Any]:
    """The colours of a figure."""
    return {"cmap": options.cmap, "vmin": options.vmin, "vmax": options.vmax}


def draw(result: HeatmapResult, question: str, answer: Generated, file: Path, look: dict[str, Any]) -> None:
    """The map beside the answer; an answer that was chosen from a list with those that came next."""
    from ..plots._answers import answer_figure
    from ..plots._figures import save_figure
    from ..plots._look import Look

    ranked = [(text, share) for text, share in answer.ranked or [] if share >= LEAST_SHARE]
    texts = ranked[:MOST_RANKED]
    save_figure(answer_figure(result, None, question, answer.text, texts, "Answers", Look(**look)), file)


def numbered(file: Path, number: int, count: int) -> Path:
    """A file's name, with a number where there are several."""
    return file if count == 1 else file.with_name(f"{file.stem}-{number + 1}{file.suffix}")
