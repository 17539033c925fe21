"""`qavit heatmap`."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .._base.arguments import one_line
from .._base.files import make_folder, remove_leftovers, write_whole
from .._base.progress import Progress
from ..data._pictures import ImageSource
from ._options import (
    FILE,
    OK,
    SOME_FAILED,
    UsageError,
    add_input_options,
    add_map_options,
    add_model_options,
    add_out,
    add_questions,
    add_scale_options,
    check_scale,
    completed,
    expanded,
    load_model,
    name_of,
    read_questions,
)

if TYPE_CHECKING:
    from .._result import HeatmapResult
    from ..models._model import Model


class Job(NamedTuple):
    """One picture, what it is called, its questions, and the stem of the files that are written for it."""

    source: ImageSource
    image: str
    questions: list[str]
    stem: str


def add_heatmap_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``qavit heatmap``."""
    from ..plots._look import KINDS

    completed(
        parser.add_argument("pictures", nargs="*", metavar="IMAGE", help="pictures, folders, or patterns: 'a/*.jpg'"),
        FILE,
    )
    add_questions(parser)
    add_out(parser)
    add_map_options(parser)
    parser.add_argument(
        "--kind", choices=KINDS, metavar="KIND",
        help=f"the kind of figure: {', '.join(KINDS)} (default: panels for one question, else questions)",
    )  # fmt: skip
    parser.add_argument(
        "--image-weight", type=float, help="0: colours alone, 1: the picture alone (default: colours fade in with the map)"
    )
    add_scale_options(parser)
    parser.add_argument("--own-scales", action="store_true", help="each map on a colour scale of its own")
    parser.add_argument("--contours", action="store_true", help="lines of equal value, not colours that hide the picture")
    parser.add_argument("--boxes", type=float, metavar="SHARE", help="frame what stands out: above this part of the peak")
    parser.add_argument("--maps", choices=("npz", "npy"), help="write the maps too")
    parser.add_argument("--html", action="store_true", help="write a page that can be shared")
    parser.add_argument("--no-figures", action="store_true", help="no PNG")
    parser.add_argument("--json", action="store_true", help="one JSON object a picture on standard output")
    parser.add_argument("--again", action="store_true", help="do pictures again whose files are there")
    add_input_options(parser)
    add_model_options(parser)


def run_heatmap(options: argparse.Namespace) -> int:
    """Draw; a picture that fails is reported and the others go on."""
    jobs = list(make_jobs(options))
    if not jobs:
        raise UsageError("no pictures; name some, or give --questions FILE")
    endings = wanted_endings(options)
    if not endings and not options.json:
        raise UsageError("--no-figures without --maps, --html or --json leaves nothing to do")
    out = Path(options.out)
    if endings:
        make_folder(out, "out")
        remove_leftovers(out)
    model = load_model(options)
    check_request(model, jobs, options)
    going = Progress(jobs, "pictures")
    drawn = ready = failed = 0
    for job in going:
        targets = [out / f"{job.stem}{ending}" for ending in endings]
        record = out / f".{job.stem}.qavit"
        try:
            request = fingerprint(model, job, options)
            finished = record.is_file() and record.read_text(encoding="utf-8") == request
            finished = finished and not options.again and all(map(Path.exists, targets))
            if targets and finished and not options.json:
                ready += 1
                for target in targets:
                    going.say(str(target))
                continue
            result = ask(model, job, options)
            for target in () if finished else targets:
                result.save(target, **look_of(target, options))
            if targets and not finished:
                write_whole(record, request.encode())
        except (OSError, ValueError, TypeError) as error:
            if options.verbose:
                raise
            failed += 1
            problem = one_line(error)
            going.say(f"qavit: {problem if job.image in problem else f'{job.image}: {problem}'}", sys.stderr)
            if options.json:
                going.say(json.dumps({"image": job.image, "error": problem}, ensure_ascii=False))
            continue
        drawn += 1
        if options.json:
            described = {"image": job.image, "files": [str(target) for target in targets], **result.to_dict()}
            going.say(json.dumps(described, ensure_ascii=False))
        else:
            for target in targets:
                going.say(str(target))
    if len(jobs) > 1 or ready:
        counts = ((drawn, "done"), (ready, "there already (--again does them anew)"), (failed, "failed"))
        parts = ", ".join(f"{count} {what}" for count, what in counts if count)
        print(f"{len(jobs)} picture{'s' if len(jobs) > 1 else ''}: {parts}", file=sys.stderr, flush=True)
    return SOME_FAILED if failed else OK


def check_request(model: Model, jobs: Sequence[Job], options: argparse.Namespace) -> None:
    """What is wrong for every picture is said once, before the first."""
    silent = [job.image for job in jobs if not job.questions]
    request = model._request(options.method, options.block, options.heads)
    if model._asks(request.method) and silent:
        raise UsageError(f'{silent[0]}: no question; give some with -q "..." or --questions FILE')
    if not model.takes_questions and len(silent) < len(jobs):
        raise UsageError(f"{model.name} takes no questions: {model._why_no_questions()}; leave -q and --questions out")
    if options.kind == "heads" and not options.no_figures and not request.method.takes_heads:
        raise UsageError(f"--kind heads: method {request.method.name!r} does not read heads one by one")
    if not options.no_figures or options.html:
        from ..plots._pixels import check_weight

        check_weight(options.image_weight)
        check_scale(options)


def look_of(target: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What `HeatmapResult.save` is told about a file's looks."""
    scale = {"cmap": options.cmap, "vmin": options.vmin, "vmax": options.vmax, "shared": not options.own_scales}
    if target.suffix == ".html":
        return scale
    if target.suffix == ".png":
        kind = {"kind": options.kind, "image_weight": options.image_weight}
        return {**scale, **kind, "contours": options.contours, "boxes": options.boxes}
    return {}


def fingerprint(model: Any, job: Job, options: argparse.Namespace) -> str:
    """A name for what is asked of a picture; with another question, model or look, a finished file is not finished."""
    try:
        state = os.stat(job.source.path)
        file = [state.st_size, state.st_mtime_ns]
    except OSError:
        file = []  # reading it will say what is wrong
    request = [getattr(options, name) for name in ("block", "method", "heads", "fit")]
    looks = [look_of(Path(ending), options) for ending in ("a.png", "a.html")]
    asked = [repr(model), place_of(job.source), *file, job.questions, request, looks]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def ask(model: Model, job: Job, options: argparse.Namespace) -> HeatmapResult:
    """The result of one picture."""
    from ..images import MAX_PIXELS, load_image

    picture = load_image(job.source.read(), max_pixels=MAX_PIXELS if options.max_pixels is None else options.max_pixels)
    return model.heatmaps(
        picture, job.questions or None, block=options.block, method=options.method, heads=options.heads, fit=options.fit
    )


def wanted_endings(options: argparse.Namespace) -> list[str]:
    """What is written for each picture."""
    endings = [] if options.no_figures else [".png"]
    if options.maps:
        endings.append(f".{options.maps}")
    if options.html:
        endings.append(".html")
    return endings


def make_jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Pictures with their questions, those of a file grouped by picture; stems are different for different pictures."""
    wanted: dict[tuple[Any, ...], tuple[ImageSource, list[str]]] = {}

    def of(source: ImageSource) -> list[str]:
        # A file of questions may name a picture otherwise than the command line does.
        return wanted.setdefault(place_of(source), (source, list(options.question)))[1]

    named = [of(ImageSource(path, path)) for image in options.pictures for path in expanded(image)]
    if options.questions is not None:
        for source, question in read_questions(options):
            if source is None and not named:
                raise UsageError(f"{options.questions} names no picture for {question!r}; name pictures, too")
            for questions in named if source is None else [of(source)]:
                questions.append(question)
    used: set[str] = set()
    for number, (source, questions) in enumerate(wanted.values()):
        name = name_of(source)
        stem = base = Path(name).stem or f"picture-{number}"
        again = 2
        while stem in used:
            stem, again = f"{base}-{again}", again + 1
        used.add(stem)
        yield Job(source, name or stem, list(dict.fromkeys(questions)), stem)


def place_of(source: ImageSource) -> tuple[Any, ...]:
    """Where a picture is, by whatever name."""
    if source.data is not None:
        return (hashlib.sha256(source.data).hexdigest(),)
    if source.member or source.size:
        return source.path, source.offset, source.member
    return (os.path.abspath(str(source.read())),)
