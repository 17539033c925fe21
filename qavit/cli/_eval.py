"""``qavit eval``: methods side by side, by where texts' objects are; or a precision beside another, map by map."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ..models._devices import PRECISIONS
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
    precision_name,
    reading_arguments,
)

SHOWN = 3  # problems, the others are counted


def add_eval_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``qavit eval``."""
    completed(
        parser.add_argument(
            "boxes", nargs="?", metavar="BOXES",
            help="a row a text: image, text, and box, bbox (as COCO's), segmentation or mask; or COCO's instances file; "
            "with --against, any questions (default: the bundled scene)",
        ), FILE,
    )  # fmt: skip
    completed(
        parser.add_argument("-o", "--out", metavar="DIR", help="a folder for the rows and tables; the same command goes on"),
        FOLDER,
    )
    add_map_options(parser)
    parser.add_argument(
        "--against", type=precision_name, metavar="PRECISION|DIR",
        help="what --precision changes: each map beside the same one in this precision, such as float32, or beside that of "
        "another folder, such as the one that was converted",
    )  # fmt: skip
    parser.add_argument("--tolerance", type=float, default=15.0, metavar="PX", help="of the pointing game (default: 15)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the intervals' draws (default: 0)")
    parser.add_argument("--again", action="store_true", help="do everything anew (default: go on with what is there)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object on standard output")
    form.add_argument("--csv", action="store_true", help="a line a method and figure on standard output")
    add_input_options(parser)
    add_model_options(parser)


def run_eval(options: argparse.Namespace) -> int:
    """Evaluate; 0 when every row has its maps, 1 when some have an error instead."""
    if options.against is not None:
        return _run_comparison(options)
    from ..data._evaluation import evaluate

    found = evaluate(
        options.boxes,
        options.out,
        methods=None if options.method is None else [name for name in options.method.split(",") if name],
        tolerance=options.tolerance,
        seed=options.seed,
        again=options.again,
        **_shared(options),
    )
    _print_found(options, found)
    return _end(
        [
            f"{'' if row in said else f'row {row}: '}{f'{method}: ' if method else ''}{said}"
            for row, method, said in found.errors
        ]
    )


def _run_comparison(options: argparse.Namespace) -> int:
    """``--against``: the same codes."""
    from ..data._comparison import compare
    from ..models._load import load

    if options.out is not None or options.again:
        raise UsageError(f"{'--out' if options.out is not None else '--again'}: not with --against, which keeps nothing")
    against = options.against
    if against not in PRECISIONS:
        against = load(against, precision="float32", device=options.device, image_size=options.image_size)
    found = compare(options.boxes, against=against, method=options.method, **_shared(options))
    _print_found(options, found)
    return _end([said if row in said else f"row {row}: {said}" for row, said in found.errors])


def _shared(options: argparse.Namespace) -> dict[str, Any]:
    """What both evaluations take."""
    limits = {} if options.max_pixels is None else {"max_pixels": options.max_pixels}
    return {
        "model": options.model, "block": options.block, "heads": options.heads, "fit": options.fit,
        **reading_arguments(options), **limits, "precision": options.precision, "device": options.device,
        **model_arguments(options),
    }  # fmt: skip


def _print_found(options: argparse.Namespace, found: Any) -> None:
    if options.json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        print(found.to_csv() if options.csv else found, end="" if options.csv else "\n")


def _end(errors: list[str]) -> int:
    """The first errors, and the exit code."""
    for said in errors[:SHOWN]:
        print(f"qavit eval: {said}", file=sys.stderr)
    if len(errors) > SHOWN:
        print(f"qavit eval: and {len(errors) - SHOWN:,} more; --json lists all", file=sys.stderr)
    return SOME_FAILED if errors else OK
