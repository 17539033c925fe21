"""``qavit run``: the options, and what is said."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from ._options import METHODS, model_arguments

EXAMPLE = "qavit run v2_OpenEnded_mscoco_val2014_questions.json --images val2014/ --model qavit-base2/ -o maps/ --workers 2"
SUMMARY = "maps for every question of a data set, as Parquet files"
OK, SOME_FAILED = 0, 1


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``qavit run`` but those that choose the model."""
    from ..data._plan import ENGINES, PART_ROWS, WINDOW

    parser.add_argument(
        "questions", nargs="+", metavar="QUESTIONS", help=".jsonl, .csv, .parquet, VQAv2's .json, or webdataset .tar"
    )
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--images", metavar="DIR", help="where relative pictures lie (default: beside the questions)")
    parser.add_argument(
        "--image-name", metavar="FORMAT", help='a picture\'s name from its row\'s columns, such as "{image_id}.jpg"'
    )
    parser.add_argument("--method", choices=METHODS, help="how a map is read (default: the model's)")
    parser.add_argument("--block", type=int, metavar="N", help="whose attention (default: the model's)")
    parser.add_argument("--heads", default="mean", help="mean, max or a number (default: mean)")
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
    parser.add_argument("--resume", action="store_true", help="go on with a run that was interrupted")
    parser.add_argument("--json", action="store_true", help="events on standard output, one JSON object a line")


def _shard(text: str) -> Any:
    from ..data._plan import Shard

    try:
        return Shard.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def run_command(options: argparse.Namespace, model_arguments: Callable[[argparse.Namespace], dict[str, Any]]) -> int:
    """Run; 0 when every row has its map, 1 when some have an error instead."""
    from ..data._pipeline import run

    heads: Any = int(options.heads) if options.heads.lstrip("-").isdecimal() else options.heads
    summary = run(
        options.questions,
        options.out,
        images=options.images,
        image_name=options.image_name,
        model=options.model,
        method=options.method,
        block=options.block,
        heads=heads,
        dtype=options.dtype,
        engine=options.engine,
        workers=options.workers,
        threads=options.threads,
        gpus=options.gpus,
        shard=options.shard,
        window=options.window,
        part_rows=options.part_rows,
        resume=options.resume,
        events=options.json,
        precision=options.precision,
        device=options.device,
        **model_arguments(options),
    )
    errors = summary.errors + summary.errors_before
    if not options.json:
        before = f", {summary.before:,} {'was' if summary.before == 1 else 'were'} there already" if summary.before else ""
        failed = f"; {errors:,} of all {'has' if errors == 1 else 'have'} an error instead of a map" if errors else ""
        written = f"{_counted(summary.rows, 'row')} of {_counted(summary.images, 'picture')} written"
        print(f"{options.out}: {written}{before}{failed}", file=sys.stderr)
    return SOME_FAILED if errors else OK


def run_data_set(options: argparse.Namespace) -> int:
    """Maps for every question of a data set."""
    return run_command(options, model_arguments)
