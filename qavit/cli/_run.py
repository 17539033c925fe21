"""``qavit run``: the options, and what is said."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ._options import (
    FILE,
    FOLDER,
    OK,
    SOME_FAILED,
    UsageError,
    add_input_options,
    add_map_options,
    add_model_options,
    completed,
    model_arguments,
    pairs,
    reading_arguments,
)

EXAMPLE = "qavit run v2_OpenEnded_mscoco_val2014_questions.json --images val2014/ --model qavit-base2/ -o maps/ --workers 2"
SUMMARY = "maps for every question of a data set, as Parquet files"


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``qavit run``."""
    from ..data._plan import ENGINES, PART_ROWS, WINDOW

    completed(
        parser.add_argument(
            "questions", nargs="+", metavar="QUESTIONS",
            help=".jsonl, .csv, .tsv, .parquet, .json (VQAv2, TextVQA, GQA, LLaVA, COCO captions), or webdataset .tar",
        ), FILE,
    )  # fmt: skip
    completed(parser.add_argument("-o", "--out", required=True, metavar="DIR", help="the folder to write"), FOLDER)
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
    limits = {} if options.max_pixels is None else {"max_pixels": options.max_pixels}
    summary = run(
        options.questions,
        options.out,
        keep=options.keep,
        **reading_arguments(options),
        model=options.model,
        method=options.method,
        block=options.block,
        heads=options.heads,
        fit=options.fit,
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
        print(f"{options.out}: {written}{before}{failed}", file=sys.stderr)
    return SOME_FAILED if errors else OK
