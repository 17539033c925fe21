"""`qavit bench`: one's own model on one's own machine, precision by precision."""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from .._base.about import build_info
from .._base.arguments import height_and_width
from .._base.progress import Progress
from .._base.warnings import QavitWarning
from ..models._devices import PRECISIONS
from ..models._load import load
from ._options import OK, UsageError, add_model_options, load_model

#: What a row of the table shows, and under which heading; "off" follows where there is a second row.
COLUMNS = {"precision": "precision", "load_ms": "loading", "first_ms": "first", "one_ms": "{one}", "range": "{all}"}


def add_bench_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``qavit bench``."""
    parser.add_argument(
        "--number", type=int, default=3, metavar="Q", help="questions on a picture, or captions, or contexts (default: 3)"
    )
    parser.add_argument("--repeat", type=int, default=10, metavar="N", help="runs, whose median is told (default: 10)")
    parser.add_argument("--method", metavar="NAME", help="how a map is read (default: the model's)")
    parser.add_argument("--block", type=int, metavar="N", help="whose attention; later ones take longer")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    add_model_options(parser, default_precision=None)


def run_bench(options: argparse.Namespace) -> int:
    """Median milliseconds of the model's work, every precision in turn, run by run."""
    if options.number < 1 or options.repeat < 1:
        raise UsageError("--number and --repeat must be at least 1")
    if options.precision is not None:
        wanted = [options.precision]
    else:
        wanted = [name for name in PRECISIONS if options.device != "cpu" or name != "tf32"]
    load("demo")  # what is imported once is no part of loading a model
    rows: list[dict[str, Any]] = []
    works, first = [], []
    for precision in wanted:
        options.precision = precision
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", QavitWarning)
            model = load_model(options)
        row: dict[str, Any] = {"precision": precision, "computes": model.precision, "load_ms": since(start)}
        if any(other["computes"] == model.precision for other in rows):
            rows.append({**row, "load_ms": None})  # one row is enough
            continue
        work, what = work_of(model, options)
        start = time.perf_counter()
        first.append(work(0, options.number))
        rows.append({**row, "first_ms": since(start)})
        works.append((rows[-1], work))
    timed(works, options)
    for (row, _), values in zip(works, first):
        row["off"] = None if first[0] is None else float(np.abs(values - first[0]).max() / np.abs(first[0]).max())
    about = {"model": model.name, **what, "runs": options.repeat, "threads": build_info()["threads"], "precisions": rows}
    print(json.dumps(about) if options.json else bench_text(about))
    return OK


def timed(works: list[tuple[dict[str, Any], Callable[[int, int], Any]]], options: argparse.Namespace) -> None:
    """Time each precision once a run, so that a machine that is slower for a while is so for all of them."""
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in works]
    for run in Progress(range(options.repeat), "runs"):
        for (_, work), (single, whole) in zip(works, times):
            for number, kept in ((1, single), (options.number, whole)):
                start = time.perf_counter()
                work(1 + run, number)
                kept.append(since(start))
    for (row, _), (single, whole) in zip(works, times):
        row.update(one_ms=statistics.median(single), median_ms=statistics.median(whole))
        row.update(fastest_ms=min(whole), slowest_ms=max(whole))


def since(start: float) -> float:
    """Milliseconds."""
    return round(1000 * (time.perf_counter() - start), 3)


def work_of(model: Any, options: argparse.Namespace) -> tuple[Callable[[int, int], Any], dict[str, Any]]:
    """What is timed, called with the run's number and how many are asked for; and what it is."""
    if model.kind == "reader":
        contexts = [f"a photo of object number {i}" for i in range(options.number)]

        def read(run: int, number: int) -> None:
            model.answer(f"what is number {run}?", contexts[:number], max_len=5)

        return read, {"work": "an answer of 5 tokens at most out of {} contexts", "number": options.number}

    def picture(run: int) -> Any:
        """Of noise, another one every time: a picture that was seen before would cost less."""
        return np.random.default_rng(run).integers(0, 256, (*height_and_width(model.image_size), 3), np.uint8)

    if model.kind == "blip_caption":

        def describe(run: int, number: int) -> None:
            model.generate(picture(run), num_captions=number, max_length=20, min_length=20, do_sample=True, seed=run)

        return describe, {"work": "{} captions of 20 tokens of a new picture", "number": options.number}
    block = None if options.block is None else model.check_block(options.block, "--block")
    several = f"question{'s' if options.number > 1 else ''}"
    asked = f"a new picture, {{}} {several}" if model.takes_questions else "a new picture"
    what: dict[str, Any] = {"work": asked, "number": options.number if model.takes_questions else 0}
    questions = [f"where is object number {i}?" for i in range(options.number)] if model.takes_questions else None

    def look(run: int, number: int) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", QavitWarning)  # of a picture of noise
            result = model.heatmaps(picture(run), questions and questions[:number], method=options.method, block=block)
        what.update(method=result.method, block=result.block)
        return result.maps

    return look, what


def bench_text(about: dict[str, Any]) -> str:
    """The table as a person reads it."""
    number = about["number"]
    headings = {"one": "with 1", "all": f"with {number}" if number else "a picture"}
    shown = [name for name in COLUMNS if number > 1 or name != "one_ms"]
    shown += ["off"] if sum("first_ms" in row for row in about["precisions"]) > 1 else []
    table = [[COLUMNS.get(name, name).format(**headings) for name in shown]]
    for row in about["precisions"]:
        if "first_ms" in row:
            median, fastest, slowest = (cell("", row[name]) for name in ("median_ms", "fastest_ms", "slowest_ms"))
            shown_range = {"range": f"{median} ({fastest} to {slowest})"}
            table.append([cell(name, {**row, **shown_range}.get(name)) for name in shown])
    widths = [max(len(line[column]) for line in table) for column in range(len(shown))]
    read = f", maps by {about['method']} of block {about['block']}" if "method" in about else ""
    lines = [f"{about['model']}, {about['threads']} threads: {about['work'].format(number)}{read}"]
    lines += ["  ".join(f"{text:<{width}}" for text, width in zip(line, widths)).rstrip() for line in table]
    for row in about["precisions"]:
        if row["precision"] != row["computes"]:
            lines.append(f"{row['precision']}: this machine has no such products, so {row['computes']} computes")
    lines.append(f"milliseconds, medians of {about['runs']} runs (fastest to slowest), precisions in turn")
    if len(table) > 2:
        lines.append("off: a map's largest difference from the first row's, as a share of its largest value")
    return "\n".join(lines)


def cell(name: str, value: Any) -> str:
    """One number as it is shown."""
    if value is None:
        return ""
    if name == "off":
        return f"{value:.1e}" if value else "0"
    return value if isinstance(value, str) else f"{value:.1f}" if value < 1000 else f"{value:.0f}"
