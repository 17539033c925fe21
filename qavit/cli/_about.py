"""`qavit demo`, `convert`, `info` and `models`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .._base.about import build_info
from ._options import (
    FILE,
    FOLDER,
    OK,
    UsageError,
    add_model_options,
    add_out,
    add_scale_options,
    check_scale,
    completed,
    model_arguments,
)


def add_demo_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``qavit demo``."""
    add_out(parser)
    completed(
        parser.add_argument("--image", metavar="IMAGE", help="your own picture (default: the model's own scene)"), FILE
    )
    parser.add_argument("-q", "--question", action="append", default=[], help="a question; may be given many times")
    parser.add_argument("--block", type=int, metavar="N", help="whose attention (default: the one that points best)")
    add_scale_options(parser)
    parser.add_argument("--own-scales", action="store_true", help="each map on a colour scale of its own")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run_demo_command(options: argparse.Namespace) -> int:
    """The bundled model."""
    from .._demo import PICTURE, demo_scene, run_demo
    from ..metrics._pointing import attention_inside

    truth = None if options.image or options.question else demo_scene().boxes
    check_scale(options)
    look = {"cmap": options.cmap, "vmin": options.vmin, "vmax": options.vmax, "shared": not options.own_scales}
    result, files = run_demo(options.out, options.image, options.question or None, options.block, **look)
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


def add_convert_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``qavit convert``."""
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16", "int8", "int8_mixed"),
        help="of the stored weights (default: as they are); int8: of the layers in blocks, with bfloat16 for the rest, and "
        "int8_mixed for the last layer of each block, too",
    )
    parser.add_argument(
        "--panels",
        type=int,
        choices=(0, 16, 64),
        metavar="N",
        help="store matrices as products read them: 64 for AVX-512, 16 for AVX2, 0 row-major, but for int8 (default: "
        "this CPU's)",
    )
    parser.add_argument("--again", action="store_true", help="write a folder anew that is there already")
    parser.add_argument(
        "--fold",
        action="store_true",
        help="even out large channels between norms and products, as --dtype int8 does anyway; float32's maps stay",
    )
    completed(
        parser.add_argument("--calibrate", metavar="DIR", help="fold by what norms give on pictures, at most 64"), FOLDER
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    add_model_options(parser, precision=False, model="demo, a model's folder, or hf://owner/name on the hub")


def run_convert(options: argparse.Namespace) -> int:
    """One folder from files in other layouts."""
    from ..checkpoints._convert import convert
    from ..checkpoints._describe import describe, description_text
    from ..checkpoints._opening import open_model

    out = Path(options.out)
    if not options.again and out.is_dir() and any(out.iterdir()):
        raise UsageError(f"--out: {options.out!r} is there already, and not empty; --again writes it anew")
    source = open_model(options.model, **model_arguments(options))
    folder = convert(
        source, options.out, options.dtype, options.panels, fold=options.fold or None, calibrate=options.calibrate
    )
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
