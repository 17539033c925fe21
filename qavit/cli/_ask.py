"""`qavit ask`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._base.files import write_whole
from ._options import FILE, OK, UsageError, add_model_options, completed, model_arguments
from ._run import numbers

if TYPE_CHECKING:
    from .._result import HeatmapResult

MOST_RANKED = 3


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
    parser.add_argument(
        "--answering", type=numbers, default={}, metavar="A=N,...",
        help="how, such as num_captions=50,seed=1 of PnP-VQA, or num_beams=3",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object a question on standard output")
    add_model_options(
        parser, model="demo (the default), a model's folder, hf://owner/name, or a configuration of PnP-VQA (.yaml)"
    )


def run_ask(options: argparse.Namespace) -> int:
    """Answer; each answer is a line."""
    from ..answers._open import open_answering
    from ..answers._pnpvqa import PNPVQA

    if options.why is not None and Path(options.why or "why.png").suffix.lower() not in ENDINGS:
        raise UsageError(f"--why: {options.why!r} is none of {', '.join(sorted(ENDINGS))}")
    arguments = {name: value for name, value in model_arguments(options).items() if value is not None}
    model = open_answering(options.model, **arguments, precision=options.precision, device=options.device)
    for number, question in enumerate(options.asked):
        if isinstance(model, PNPVQA):
            explained = model.explain(options.picture, question, **options.answering)
            told = explained.to_dict() if options.json else {}
            answer, result, draw = explained.answer, explained.result, explained.save
        else:
            (answer,) = as_list(model, options.picture, question, options.answering)
            result = answer.result or model.heatmaps(options.picture, question)
            told = {"question": question, "answer": answer.text, "ranked": answer.ranked} if options.json else {}
            draw = drawing(result, question, answer.text)
        files = []
        if options.why is not None:
            files = [str(draw(numbered(Path(options.why or "why.png"), number, len(options.asked))))]
        if options.json:
            print(json.dumps({**told, "probability": probability(answer), "files": files}, ensure_ascii=False), flush=True)
            continue
        print(answer.text, flush=True)
        for file in files:
            print(f"wrote {file}", file=sys.stderr)
    return OK
