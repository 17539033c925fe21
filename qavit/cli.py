"""The command line: ``qavit heatmap | demo | run | convert | info | bench``."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import __version__, build_info, set_num_threads
from .arguments import one_line
from .completion import SHELLS
from .devices import PRECISIONS
from .files import make_folder, remove_leftovers, write_whole
from .progress import Progress

if TYPE_CHECKING:
    from .heatmaps import HeatmapResult

OK, SOME_FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

EPILOG = """\
example: qavit heatmap street.jpg -q "where is the car?" -o out/
Each command's --help shows another.

Exit codes: 0 all went well, 1 something failed, 2 wrong usage, 130 interrupted.
"""

logger = logging.getLogger("qavit")


class UsageError(Exception):
    """A command that cannot be meant, whatever the files hold."""


class Job(NamedTuple):
    """One picture, its questions, and the stem of the files that are written for it."""

    image: str
    questions: list[str]
    stem: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 well, 1 something failed, 2 wrong usage, 130 interrupted."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.completion:
        from .completion import script

        print(script(parser, options.completion))
        return OK
    if options.command is None:
        parser.print_help()
        return USAGE
    shown = warnings.showwarning
    warnings.showwarning = once_in_a_line()
    try:
        if options.threads is not None:
            set_num_threads(options.threads)
        code: int = options.run(options)
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return OK
    except UsageError as error:
        print(f"qavit {options.command}: {error}", file=sys.stderr)
        return USAGE
    except (OSError, ValueError, TypeError, RuntimeError, MemoryError, ImportError) as error:
        if options.verbose:
            raise
        print(f"qavit: {as_option(one_line(error), options)}", file=sys.stderr)
        return SOME_FAILED
    finally:
        warnings.showwarning = shown


def once_in_a_line() -> Callable[..., None]:
    """What shows a warning in one line, and each text once, whatever is warned about picture by picture."""
    said: set[str] = set()

    def show(message: Any, *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        if text not in said:
            said.add(text)
            print(f"qavit: warning: {text}", file=sys.stderr, flush=True)

    return show


def as_option(problem: str, options: argparse.Namespace) -> str:
    """What is wrong with an argument of the library, under the name of the option that it came from."""
    name, colon, rest = problem.partition(": ")
    option = {"path": "model"}.get(name, name)
    given = colon and option.isidentifier() and getattr(options, option, None) not in (None, [])
    given = given and option not in ("images", "folder") and not (option == "questions" and options.command == "run")
    return f"--{option.replace('_', '-')}: {rest}" if given else problem


# ---- the parser ----


def make_parser() -> argparse.ArgumentParser:
    """All commands and their options."""

    def common(**default: Any) -> argparse.ArgumentParser:
        made = argparse.ArgumentParser(add_help=False, **default)
        made.add_argument("--threads", type=int, metavar="N", help="width of the thread pool (default: the CPUs there are)")
        made.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
        return made

    from .data import command as data_command
    from .plots import KINDS

    parser = argparse.ArgumentParser(
        prog="qavit", description="Where a vision model looks for a question.", parents=[common()], allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EPILOG,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"qavit {__version__}")
    parser.add_argument("--completion", choices=SHELLS, help="print a completion script: source <(qavit --completion bash)")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    def add(name: str, run: Any, summary: str, example: str) -> argparse.ArgumentParser:
        # Without a default of its own, a command leaves what stood before its name as it is.
        made = commands.add_parser(
            name, help=summary, description=summary, parents=[common(argument_default=argparse.SUPPRESS)],
            epilog=f"example: {example}", allow_abbrev=False,
        )  # fmt: skip
        made.set_defaults(run=run)
        return made

    heatmap = add(
        "heatmap", run_heatmap, "draw where the model looks for each question",
        'qavit heatmap street.jpg -q "where is the car?" -q "is there a person?" -o out/',
    )  # fmt: skip
    heatmap.add_argument("images", nargs="*", metavar="IMAGE")
    heatmap.add_argument("-q", "--question", action="append", default=[], dest="question", help="may be given many times")
    heatmap.add_argument("--questions", metavar="FILE", help="JSON lines, CSV or Parquet with image and question")
    heatmap.add_argument("-o", "--out", default="out", metavar="DIR", help="where to write (default: out)")
    heatmap.add_argument("--block", type=int, metavar="N", help="whose attention (default: one that knows the question)")
    heatmap.add_argument("--readout", choices=("class", "question"), help="what is read from the attention")
    heatmap.add_argument("--heads", default="mean", help="mean, max or a number (default: mean)")
    heatmap.add_argument(
        "--kind", choices=KINDS, metavar="KIND",
        help=f"the kind of figure: {', '.join(KINDS)} (default: panels for one question, else questions)",
    )  # fmt: skip
    heatmap.add_argument("--cmap", default="jet", metavar="NAME", help="a matplotlib colormap (default: jet)")
    heatmap.add_argument(
        "--image-weight", type=float, help="0: colours alone, 1: the picture alone (default: colours fade in with the map)"
    )
    heatmap.add_argument("--maps", choices=("npz", "npy"), help="write the maps too")
    heatmap.add_argument("--html", action="store_true", help="write a page that can be shared")
    heatmap.add_argument("--no-figures", action="store_true", help="no PNG")
    heatmap.add_argument("--json", action="store_true", help="one JSON object a picture on standard output")
    heatmap.add_argument("--again", action="store_true", help="do pictures again whose files are there")
    add_model_options(heatmap)

    demo = add("demo", run_demo_command, "the bundled model on its own picture, or on yours", "qavit demo -o out/")
    demo.add_argument("-o", "--out", default="out", metavar="DIR", help="where to write (default: out)")
    demo.add_argument("--image", metavar="IMAGE", help="your own picture (default: a scene that comes with the model)")
    demo.add_argument("--questions", metavar="TEXT", help="separated by semicolons")
    demo.add_argument("-q", "--question", action="append", default=[], help="may be given many times")
    demo.add_argument("--block", type=int, metavar="N", help="whose attention (default: the one that points best)")
    demo.add_argument("--json", action="store_true", help="one JSON object on standard output")

    run = add("run", run_data_set, data_command.SUMMARY, data_command.EXAMPLE)
    data_command.add_options(run)
    add_model_options(run)

    convert = add(
        "convert", run_convert, "write a model as one folder that is mapped in place",
        "qavit convert --checkpoint qavit-base2.pth --vision clip-vit-large-patch14-336 --text flan-t5-base -o qavit-base2",
    )  # fmt: skip
    convert.add_argument("-o", "--out", required=True, metavar="DIR", help="the folder to write")
    convert.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="of the stored weights (default: as they are)"
    )
    convert.add_argument(
        "--panels", type=int, choices=(0, 16, 64), metavar="N",
        help="store matrices as products read them: 64 for AVX-512, 16 for AVX2, 0 row-major (default: this CPU's)",
    )
    convert.add_argument("--json", action="store_true", help="one JSON object on standard output")
    add_model_options(convert, precision=False, model="demo, a model's folder, or a hub name")

    info = add("info", run_info, "what a model is, or what this build is", "qavit info qavit-base2/")
    info.add_argument("folder", nargs="?", metavar="NAME", help="as --model; without either, this build")
    info.add_argument("--json", action="store_true", help="one JSON object on standard output")
    add_model_options(info, precision=False, model="demo, a model's folder, or a hub name")

    bench = add("bench", run_bench, "time a model on this machine", "qavit bench --model demo --number 3")
    bench.add_argument("--number", type=int, default=3, metavar="Q", help="questions on one picture (default: 3)")
    bench.add_argument("--repeat", type=int, default=10, metavar="N", help="runs, of which the median is told (default: 10)")
    bench.add_argument("--block", type=int, metavar="N", help="whose attention; later ones take longer")
    bench.add_argument("--json", action="store_true", help="one JSON object on standard output")
    add_model_options(bench)
    return parser


def add_model_options(
    parser: argparse.ArgumentParser,
    precision: bool = True,
    model: str = "demo (the default), a model's folder, or a hub name",
) -> None:
    """The options that choose a model."""
    group = parser.add_argument_group("the model")
    group.add_argument("--model", metavar="NAME", help=model)
    group.add_argument("--checkpoint", metavar="FILE", help="a QA-ViT or BLIP-ITM checkpoint")
    group.add_argument("--vision", metavar="DIR", help="a CLIP folder")
    group.add_argument("--text", metavar="DIR", help="a text encoder's folder")
    group.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json or vocab.txt")
    group.add_argument("--config", metavar="JSON", help="what the files do not tell, as a JSON object or a file of one")
    group.add_argument("--image-size", type=int, metavar="N", help="another input side than the model was trained at")
    if precision:
        group.add_argument(
            "--precision", choices=PRECISIONS, default="float32",
            help="of the products (default: float32; tf32 is for a GPU)",
        )
        group.add_argument("--device", default="cpu", help="cpu (the default), cuda or cuda:N")


def model_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """What `qavit.load` and `open_model` take."""
    from .safetensors_files import parse_json

    config = None
    if options.config is not None:
        text = options.config
        if not text.lstrip().startswith("{"):
            text = Path(text).read_text(encoding="utf-8")
        try:
            config = parse_json(text.encode(), "--config")
        except ValueError as error:
            raise UsageError(f"--config: expected a JSON object or a file of one: {error}") from None
    chosen = {name: getattr(options, name) for name in ("checkpoint", "vision", "text", "tokenizer", "image_size")}
    return {**chosen, "config": config}


def load_model(options: argparse.Namespace) -> Any:
    """The model that the options choose."""
    from .models import load

    return load(options.model, **model_arguments(options), precision=options.precision, device=options.device)


# ---- heatmap ----


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
            if targets and finished and not options.again and not options.json and all(map(Path.exists, targets)):
                ready += 1
                logger.info("%s: done already", job.image)
                continue
            result = ask(model, job, options)
            for target in targets:
                result.save(target, **look_of(target, options))
            if targets:
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
    if len(jobs) > 1:
        counts = ((drawn, "done"), (ready, "done before"), (failed, "failed"))
        parts = ", ".join(f"{count} {what}" for count, what in counts if count)
        print(f"{len(jobs)} pictures: {parts}", file=sys.stderr, flush=True)
    return SOME_FAILED if failed else OK


def check_request(model: Any, jobs: Sequence[Job], options: argparse.Namespace) -> None:
    """What is wrong for every picture is said once, before the first."""
    takes_questions = not hasattr(model, "integrated") or bool(model.integrated)
    silent = [job.image for job in jobs if not job.questions]
    if takes_questions and silent:
        raise UsageError(f'{silent[0]}: no question; give some with -q "..." or --questions FILE')
    if not takes_questions and len(silent) < len(jobs):
        raise UsageError(f"{model.name} is plain CLIP, which takes no questions; leave -q and --questions out")
    if options.block is not None:
        model.check_block(options.block, "--block")
    number = re.fullmatch(r"-?\d+", options.heads)
    if not number and options.heads not in ("mean", "max"):
        raise UsageError(f"--heads {options.heads!r}: expected mean, max or a number")
    if number and not -model.heads <= int(options.heads) < model.heads:
        raise ValueError(f"--heads: head {options.heads} does not exist; this model has heads 0 to {model.heads - 1}")
    if not hasattr(model, "integrated") and (options.readout is not None or options.heads != "mean"):
        raise UsageError(f"{model.name} is a BLIP model, whose maps are GradCAM's: --readout and --heads are not for it")
    if not options.no_figures or options.html:
        from .pixels import check_weight, colormap

        colormap(options.cmap)
        check_weight(options.image_weight)


def look_of(target: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What `HeatmapResult.save` is told about a file's looks."""
    if target.suffix == ".html":
        return {"cmap": options.cmap}
    if target.suffix == ".png":
        return {"kind": options.kind, "cmap": options.cmap, "image_weight": options.image_weight}
    return {}


def fingerprint(model: Any, job: Job, options: argparse.Namespace) -> str:
    """A name for what is asked of a picture; with another question, model or look, a finished file is not finished."""
    try:
        state = os.stat(job.image)
        file = [state.st_size, state.st_mtime_ns]
    except OSError:
        file = []  # reading it will say what is wrong
    look = [getattr(options, name) for name in ("block", "readout", "heads", "kind", "cmap", "image_weight")]
    asked = [repr(model), os.path.abspath(job.image), *file, job.questions, look]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def ask(model: Any, job: Job, options: argparse.Namespace) -> HeatmapResult:
    """The result of one picture."""
    heads: Any = int(options.heads) if re.fullmatch(r"-?\d+", options.heads) else options.heads
    arguments: dict[str, Any] = {"block": options.block} if options.block is not None else {}
    if options.readout is not None:
        arguments["readout"] = options.readout
    if heads != "mean":
        arguments["heads"] = heads
    result: HeatmapResult = model.heatmaps(job.image, job.questions or None, **arguments)
    return result


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
    wanted: dict[str, tuple[str, list[str]]] = {}

    def of(image: str) -> list[str]:
        # A file of questions may name a picture otherwise than the command line does.
        return wanted.setdefault(os.path.abspath(image), (image, list(options.question)))[1]

    for image in options.images:
        of(image)
    if options.questions is not None:
        for image, question in read_questions(options.questions):
            of(image).append(question)
    used: set[str] = set()
    for image, questions in wanted.values():
        stem = base = Path(image).stem or "picture"
        number = 2
        while stem in used:
            stem, number = f"{base}-{number}", number + 1
        used.add(stem)
        yield Job(image, list(dict.fromkeys(questions)), stem)


def read_questions(path: str) -> Iterator[tuple[str, str]]:
    """(image, question) of each row of a file that ``qavit run`` reads too; every row must name a picture's file."""
    from .data.questions import open_questions

    for item in open_questions(path)[0]:
        if item.problem is not None or item.image is None:
            raise ValueError(item.problem)
        image = item.image.read() if not item.image.size else b""
        if not isinstance(image, str):
            raise ValueError(f"{path}: pictures inside of a file are for 'qavit run'; give a file that names pictures")
        yield image, item.question


# ---- the other commands ----


def run_data_set(options: argparse.Namespace) -> int:
    """Maps for every question of a data set."""
    from .data.command import run_command

    return run_command(options, model_arguments)


def run_demo_command(options: argparse.Namespace) -> int:
    """The bundled model."""
    from .demo import FOLDER, attention_inside, demo_entries, run_demo

    asked = [part.strip() for part in (options.questions or "").split(";") if part.strip()] + options.question
    truth = None if options.image or asked else demo_entries()
    result, files = run_demo(options.out, options.image, asked or None, options.block)
    if options.json:
        image = options.image or str(FOLDER / "scene.png")
        print(json.dumps({"image": image, "files": list(map(str, files)), **result.to_dict()}, ensure_ascii=False))
        return OK
    for index, question in enumerate(result.questions):
        answers = result.answers[index] if result.answers else []
        said = ", ".join(f"{answer} {probability:.0%}" for answer, probability in answers[:2])
        print(f"{question}  {said}".rstrip())
        boxes = truth[index]["boxes"] if truth else []
        if boxes:
            height, width = result.size
            area = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes) / (height * width)
            inside = attention_inside(result, index, boxes)
            print(f"  {inside:.0%} of its attention is on the object, which takes {area:.0%} of the picture")
    for path in files:
        print(f"wrote {path}")
    return OK


def run_convert(options: argparse.Namespace) -> int:
    """One folder from files in other layouts."""
    from .checkpoints import open_model
    from .convert import convert, describe, description_text

    source = open_model(options.model, **model_arguments(options))
    folder = convert(source, options.out, options.dtype, options.panels)
    described = describe(open_model(folder))
    if options.json:
        print(json.dumps({"folder": str(folder), **described}, ensure_ascii=False))
    else:
        print(description_text(described))
        print(f"wrote {folder}")
    return OK


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
    from .checkpoints import open_model
    from .convert import describe, description_text

    described = describe(open_model(name, **arguments))
    print(json.dumps(described, ensure_ascii=False) if options.json else description_text(described))
    return OK


def run_bench(options: argparse.Namespace) -> int:
    """Median milliseconds of maps of one picture."""
    import numpy as np

    if options.number < 1 or options.repeat < 1:
        raise UsageError("--number and --repeat must be at least 1")
    start = time.perf_counter()
    model = load_model(options)
    loading = time.perf_counter() - start
    side = model.image_size
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    takes_questions = getattr(model, "integrated", True)
    questions = [f"where is object number {i}?" for i in range(options.number)] if takes_questions else None
    times = []
    block = model.default_block if options.block is None else model.check_block(options.block, "--block")
    for _ in Progress(range(options.repeat + 1), "runs"):
        start = time.perf_counter()
        model.heatmaps(picture, questions, block=block)
        times.append(time.perf_counter() - start)
    about = {
        "model": getattr(model, "name", "model"),
        "precision": options.precision,
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
