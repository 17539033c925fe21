"""``qavit eval``: methods side by side, by where texts' objects are."""

from __future__ import annotations

import argparse
import json
import sys

from ._options import (
    FILE,
    FOLDER,
    OK,
    SOME_FAILED,
    add_input_options,
    add_map_options,
    add_model_options,
    completed,
    model_arguments,
    reading_arguments,
)

SHOWN = 3  # problems, the others are counted

def add_eval_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``qavit eval``."""
    completed(
        parser.add_argument(
            "boxes", nargs="?", metavar="BOXES",
            help="a row a text: image, text, and box, bbox (as COCO's), segmentation or mask; or COCO's instances file "
            "(default: the bundled scene)",
        ), FILE,
    )  # fmt: skip
    completed(
        parser.add_argument("-o", "--out", metavar="DIR", help="a folder for the rows and tables; the same command goes on"),
        FOLDER,
    )
    add_map_options(parser)
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
    from ..data._evaluation import evaluate

    limits = {} if options.max_pixels is None else {"max_pixels": options.max_pixels}
    found = evaluate(
        options.boxes,
        options.out,
        model=options.model,
        methods=None if options.method is None else [name for name in options.method.split(",") if name],
        block=options.block,
        heads=options.heads,
        fit=options.fit,
        **reading_arguments(options),
        tolerance=options.tolerance,
        seed=options.seed,
        again=options.again,
        **limits,
        precision=options.precision,
        device=options.device,
        **model_arguments(options),
    )
    if options.json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        print(found.to_csv() if options.csv else found, end="" if options.csv else "\n")
    for row, method, said in found.errors[:SHOWN]:
        print(f"qavit eval: {'' if row in said else f'row {row}: '}{f'{method}: ' if method else ''}{said}", file=sys.stderr)
    if len(found.errors) > SHOWN:
        print(f"qavit eval: and {len(found.errors) - SHOWN:,} more; --json lists all", file=sys.stderr)
    return SOME_FAILED if found.errors else OK
