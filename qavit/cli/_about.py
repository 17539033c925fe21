"""`qavit demo`, `convert`, `info` and `bench`."""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path

from .._base.about import build_info
from .._base.arguments import height_and_width
from .._base.progress import Progress
from .._base.warnings import QavitWarning
from ._options import FILE, OK, UsageError, add_model_options, add_out, add_questions, completed, load_model, model_arguments


def add_demo_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``qavit demo``."""
    add_out(parser)
    completed(
        parser.add_argument("--image", metavar="IMAGE", help="your own picture (default: the model's own scene)"), FILE
    )
    add_questions(parser)
    parser.add_argument("--block", type=int, metavar="N", help="whose attention (default: the one that points best)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run_demo_command(options: argparse.Namespace) -> int:
    """The bundled model."""
    from .._demo import PICTURE, demo_scene, run_demo
    from ..metrics._pointing import attention_inside

    asked = [*options.question, *(questions_alone(options.questions) if options.questions is not None else ())]
    truth = None if options.image or asked else demo_scene().boxes
    result, files = run_demo(options.out, options.image, asked or None, options.block)
    if options.json:
        image = options.image or str(PICTURE)
        print(json.dumps({"image": image, "files": list(map(str, files)), **result.to_dict()}, ensure_ascii=False))
        return OK
    for index, question in enumerate(result.questions):
        answers = result.answers[index] if result.answers else []
        said = ", ".join(f"{answer} {probability:.0%}" for answer, probability in answers[:2])
        print(f"{question}  {said}".rstrip())
        boxes = truth[index] if truth else []
        if boxes:
            height, width = result.picture_size
            area = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes) / (height * width)
            inside = attention_inside(result, index, boxes)
            print(f"  {inside:.0%} of its attention is on the object, which takes {area:.0%} of the picture")
    for path in files:
        print(f"wrote {path}")
    return OK


def questions_alone(path: str) -> list[str]:
    """The questions of a file, whatever pictures it names."""
    from ..data._questions import open_questions

    items = list(open_questions(path, image_name="any")[0])
    for item in items:
        if item.problem is not None:
            raise ValueError(item.problem)
    return list(dict.fromkeys(item.question for item in items))


def add_convert_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``qavit convert``."""
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="of the stored weights (default: as they are)"
    )
    parser.add_argument(
        "--panels",
        type=int,
        choices=(0, 16, 64),
        metavar="N",
        help="store matrices as products read them: 64 for AVX-512, 16 for AVX2, 0 row-major (default: this CPU's)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    add_model_options(parser, precision=False, model="demo, a model's folder, or hf://owner/name on the hub")


def run_convert(options: argparse.Namespace) -> int:
    """One folder from files in other layouts."""
    from ..checkpoints._convert import convert
    from ..checkpoints._describe import describe, description_text
    from ..checkpoints._opening import open_model

    source = open_model(options.model, **model_arguments(options))
    folder = convert(source, options.out, options.dtype, options.panels)
    described = describe(open_model(folder))
    if options.json:
        print(json.dumps({"folder": str(folder), **described}, ensure_ascii=False))
    else:
        print(description_text(described))
        print(f"wrote {folder}")
    return OK


def add_info_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``qavit info``."""
    parser.add_argument(
        "folder", nargs="?", metavar="NAME", help="as --model, or a file as --checkpoint; without either, this build"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    add_model_options(parser, precision=False, model="demo, a model's folder, or hf://owner/name on the hub")


def run_info(options: argparse.Namespace) -> int:
    """What a model is, or what this build is."""
    arguments = model_arguments(options)
    if options.folder is not None and options.model is not None:
        raise UsageError("give a model once: by --model, or without")
    name = options.folder if options.model is None else options.model
    if name is None and arguments["checkpoint"] is None and arguments["vision"] is None:
        about = build_info()
        if options.json:
            print(json.dumps(about))
        else:
            width = max(map(len, about))
            for key, value in about.items():
                shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
                print(f"{key:<{width}}  {shown}")
        return OK
    if name is not None and Path(name).is_file():
        if arguments["checkpoint"] is not None:
            raise UsageError("give a file once: by --checkpoint, or without")
        name, arguments["checkpoint"] = None, name
    from ..checkpoints._describe import describe, description_text
    from ..checkpoints._opening import open_model
    from ..models._catalogue import family_of

    described = describe(open_model(name, **arguments))
    family = family_of(described["architecture"], described["text"] is not None, bool(described["answers"]))
    if options.json:
        print(json.dumps({**described, "methods": family["methods"], "calls": family["calls"]}, ensure_ascii=False))
        return OK
    print(description_text(described))
    for key in ("methods", "calls"):
        print(f"{key:<11} {', '.join(family[key])}")
    return OK


def add_models_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``qavit models``."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--json", action="store_true", help="one JSON object on standard output")
    group.add_argument("--markdown", action="store_true", help="as the table of docs/MODELS.md")


def run_models(options: argparse.Namespace) -> int:
    """Every family of models that loads, and what it can do."""
    from ..models._catalogue import catalogue, catalogue_markdown, catalogue_text, refused

    if options.json:
        print(json.dumps({"families": catalogue(), "refused": refused()}, ensure_ascii=False))
    else:
        print(catalogue_markdown() if options.markdown else catalogue_text())
    return OK


def add_bench_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``qavit bench``."""
    parser.add_argument("--number", type=int, default=3, metavar="Q", help="questions on one picture (default: 3)")
    parser.add_argument("--repeat", type=int, default=10, metavar="N", help="runs, whose median is told (default: 10)")
    parser.add_argument("--block", type=int, metavar="N", help="whose attention; later ones take longer")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    add_model_options(parser)


def run_bench(options: argparse.Namespace) -> int:
    """Median milliseconds of maps of one picture."""
    import numpy as np

    if options.number < 1 or options.repeat < 1:
        raise UsageError("--number and --repeat must be at least 1")
    start = time.perf_counter()
    model = load_model(options)
    loading = time.perf_counter() - start
    picture = np.random.default_rng(0).integers(0, 256, (*height_and_width(model.image_size), 3), np.uint8)
    questions = [f"where is object number {i}?" for i in range(options.number)] if model.takes_questions else None
    times = []
    block = model.default_block if options.block is None else model.check_block(options.block, "--block")
    for _ in Progress(range(options.repeat + 1), "runs"):
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", QavitWarning)  # of a picture of noise
            model.heatmaps(picture, questions, block=block)
        times.append(time.perf_counter() - start)
    about = {
        "model": model.name,
        "precision": model.precision,
        "threads": build_info()["threads"],
        "questions": options.number if questions else 0,
        "block": block,
        "load_ms": round(1000 * loading, 2),
        "first_ms": round(1000 * times[0], 2),
        "median_ms": round(1000 * statistics.median(times[1:]), 3),
    }
    if options.json:
        print(json.dumps(about))
    else:
        print(f"{about['model']}, {about['precision']}, {about['threads']} threads")
        print(f"loaded in {about['load_ms']:.0f} ms, first map after {about['first_ms']:.1f} ms more")
        asked = f"{len(questions)} question{'s' if len(questions) > 1 else ''}" if questions else "no question"
        print(f"then {about['median_ms']:.2f} ms for a picture with {asked}, maps of block {block}")
    return OK
