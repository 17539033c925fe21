"""``qavit run``: the options, and what is said."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ._options import (
    FILE,
    FOLDER,
    OK,
    SOME_FAILED,
    UsageError,
    add_answering,
    add_input_options,
    add_map_options,
    add_model_options,
    completed,
    model_arguments,
    pairs,
    reading_arguments,
)
from ._score import score_of, score_text

EXAMPLE = "qavit run v2_OpenEnded_mscoco_val2014_questions.json --images val2014/ --model qavit-base2/ -o maps/ --workers 2"
SUMMARY = "maps, and answers, for every question of a data set"


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``qavit run``."""
    from ..data._plan import ENGINES, PART_ROWS, WINDOW

    completed(
        parser.add_argument(
            "questions", nargs="+", metavar="QUESTIONS",
            help=".jsonl, .csv, .tsv, .parquet, .json (VQAv2, TextVQA, GQA, LLaVA, COCO captions), or webdataset .tar",
        ), FILE,
    )  # fmt: skip
    completed(
        parser.add_argument(
            "-o", "--out", metavar="DIR", help="the folder to write (default with --answers: its name without the ending)"
        ), FOLDER,
    )  # fmt: skip
    add_answer_options(parser)
    parser.add_argument(
        "--keep", type=pairs, default={}, metavar="A,B=C", help="columns that go along with their rows, C under the name B"
    )
    add_map_options(parser)
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the maps (default: float32)")
    parser.add_argument("--engine", choices=ENGINES, default="local", help="this machine, or a Ray cluster (default: local)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes or actors, a model each (default: 1)")
    parser.add_argument("--gpus", type=float, default=0.0, metavar="G", help="Ray: GPUs a worker (default: 0)")
    parser.add_argument("--shard", type=_shard, metavar="i/n", help="do the i-th of n shares, i from 0")
    parser.add_argument(
        "--window", type=int, default=WINDOW, metavar="ROWS",
        help=f"rows among which a picture's questions are put together (default: {WINDOW})",
    )  # fmt: skip
    parser.add_argument(
        "--part-rows", type=int, default=PART_ROWS, metavar="ROWS", help=f"the most rows of a file (default: {PART_ROWS})"
    )
    parser.add_argument("--again", action="store_true", help="do everything anew (default: go on with what is there)")
    parser.add_argument("--resume", action="store_true", help="go on with what is there, which is the default")
    parser.add_argument("--retry-errors", action="store_true", help="do parts anew that have rows with an error")
    parser.add_argument("--keep-going", action="store_true", help="go on where every row of the first part failed")
    parser.add_argument("--json", action="store_true", help="events on standard output, one JSON object a line")
    add_input_options(parser)
    add_model_options(parser)


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    """The options that are for answers."""
    group = parser.add_argument_group("answers")
    completed(
        group.add_argument("--answers", metavar="FILE", help="answer, too, and write the file that scorers take"), FILE
    )
    group.add_argument("--layout", choices=("vqa", "gqa"), help="of that file (default: as the questions have it)")
    add_answering(group)
    group.add_argument("--sample", type=int, metavar="N", help="only N questions, drawn at random; also without --answers")
    completed(group.add_argument("--annotations", metavar="FILE", help="score the answers by these at the end"), FILE)


def _shard(text: str) -> Any:
    from ..data._plan import Shard

    try:
        return Shard.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def run_data_set(options: argparse.Namespace) -> int:
    """Run; 0 when every row has its map, 1 when some have an error instead."""
    from ..data._pipeline import run

    if options.again and (options.resume or options.retry_errors):
        raise UsageError("--again does everything anew: leave --resume and --retry-errors out")
    check_answers(options)
    out = options.out or str(Path(options.answers).with_suffix(""))
    limits = {} if options.max_pixels is None else {"max_pixels": options.max_pixels}
    summary = run(
        options.questions,
        out,
        keep=options.keep,
        **reading_arguments(options),
        model=options.model,
        method=options.method,
        block=options.block,
        heads=options.heads,
        fit=options.fit,
        answers=options.answers,
        layout=options.layout,
        answering=options.answering or None,
        sample=options.sample,
        dtype=options.dtype,
        engine=options.engine,
        workers=options.workers,
        threads=options.threads,
        gpus=options.gpus,
        shard=options.shard,
        window=options.window,
        part_rows=options.part_rows,
        again=options.again,
        retry_errors=options.retry_errors,
        keep_going=options.keep_going,
        events=options.json,
        **limits,
        precision=options.precision,
        device=options.device,
        **model_arguments(options),
    )
    errors = summary.errors + summary.errors_before
    if not options.json:
        before = f", {summary.before:,} {'was' if summary.before == 1 else 'were'} there already" if summary.before else ""
        failed = f"; {errors:,} of all {'has' if errors == 1 else 'have'} an error instead of a map" if errors else ""
        failed += " (--retry-errors does their parts anew)" if errors else ""
        written = f"{_counted(summary.rows, 'row')} of {_counted(summary.images, 'picture')} written"
        print(f"{out}: {written}{before}{failed}", file=sys.stderr)
    if options.answers is not None:
        tell_answers(options)
    return SOME_FAILED if errors else OK


def check_answers(options: argparse.Namespace) -> None:
    """What cannot be meant, before anything is read."""
    if options.out is None and options.answers is None:
        raise UsageError("name a folder to write (-o), or a file of answers (--answers)")
    for name in ("layout", "annotations", "answering"):
        if options.answers is None and getattr(options, name):
            raise UsageError(f"--{name} is for --answers")
    if options.answers is not None and Path(options.answers).suffix.lower() != ".json":
        raise UsageError(f"--answers: {options.answers!r} is no .json file")
    if options.annotations is not None and not Path(options.annotations).is_file():
        raise UsageError(f"--annotations: there is no file {options.annotations!r}")


def tell_answers(options: argparse.Namespace) -> None:
    """Where the answers are, and how good."""
    if not Path(options.answers).is_file():
        print(f"{options.answers}: written when the other shares are done", file=sys.stderr)
        return
    if options.annotations is None:
        print(options.answers, flush=True)
        return
    score = score_of(options.answers, options.annotations, options.sample is not None)
    print(json.dumps({"event": "score", **score}, ensure_ascii=False) if options.json else score_text(score), flush=True)
