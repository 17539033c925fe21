"""`qavit ask`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ._options import FILE, OK, UsageError, add_answering, add_model_options, completed, model_arguments

if TYPE_CHECKING:
    from .._result import HeatmapResult
    from ..generation import Generated

ENDINGS = frozenset({".png", ".jpg", ".webp", ".pdf", ".svg"})
MOST_RANKED, LEAST_SHARE = 5, 0.01


def add_ask_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``qavit ask``."""
    completed(parser.add_argument("picture", metavar="PICTURE", help="a picture"), FILE)
    parser.add_argument("asked", nargs="+", metavar="QUESTION", help="what is asked; several are answered one by one")
    completed(
        parser.add_argument(
            "--why", nargs="?", const="", metavar="FILE",
            help="draw where the model looked beside the answer, and what the answer was read out of (default: why.png)",
        ), FILE,
    )  # fmt: skip
    add_answering(parser)
    parser.add_argument(
        "--among", action="append", metavar="ANSWER", help="choose among these; may be given many times (models that write)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a question on standard output")
    add_model_options(
        parser, model="demo (the default), a model's folder, hf://owner/name, or a configuration of PnP-VQA (.yaml)"
    )


def run_ask(options: argparse.Namespace) -> int:
    """Answer; each answer is a line."""
    from ..answers._open import open_answering
    from ..answers._pnpvqa import PNPVQA

    why = None if options.why is None else Path(options.why or "why.png")
    if why is not None and why.suffix.lower() not in ENDINGS:
        raise UsageError(f"--why: {str(why)!r} is none of {', '.join(sorted(ENDINGS))}")
    arguments = {name: value for name, value in model_arguments(options).items() if value is not None}
    model = open_answering(options.model, **arguments, precision=options.precision, device=options.device)
    answering = {**options.answering, **({} if options.among is None else {"answers": options.among})}
    for number, question in enumerate(options.asked):
        file = None if why is None else numbered(why, number, len(options.asked))
        if isinstance(model, PNPVQA):
            explained = model.explain(options.picture, question, **answering)
            answer, about = explained.answer, explained.to_dict()
            if file is not None:
                explained.save(file)
        else:
            (answer,) = model.answer(options.picture, [question], **answering)
            about = {"question": question, "answer": answer.text, "score": answer.score, "ranked": answer.ranked}
            if file is not None:
                draw(answer.result or model.heatmaps(options.picture, question), question, answer, file)
        if options.json:
            named = {} if file is None else {"file": str(file)}
            print(json.dumps({**about, **named}, ensure_ascii=False), flush=True)
            continue
        print(answer.text, flush=True)
        if file is not None:
            print(f"wrote {file}", file=sys.stderr)
    return OK


def draw(result: HeatmapResult, question: str, answer: Generated, file: Path) -> None:
    """The map beside the answer; an answer that was chosen from a list with those that came next."""
    from ..plots._answers import answer_figure
    from ..plots._figures import save_figure

    ranked = [(text, share) for text, share in answer.ranked or [] if share >= LEAST_SHARE]
    save_figure(answer_figure(result, None, question, answer.text, ranked[:MOST_RANKED], "Answers"), file)


def numbered(file: Path, number: int, count: int) -> Path:
    """A file's name, with a number where there are several."""
    return file if count == 1 else file.with_name(f"{file.stem}-{number + 1}{file.suffix}")
