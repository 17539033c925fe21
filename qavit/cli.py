"""The command line: ``qavit heatmap | demo | convert | info | bench``."""

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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import __version__, build_info, set_num_threads
from .files import write_whole

if TYPE_CHECKING:
    from .heatmaps import HeatmapResult

OK, SOME_FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

logger = logging.getLogger("qavit")


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
        print(completion_script(parser, options.completion))
        return OK
    if options.command is None:
        parser.print_help()
        return USAGE
    shown = warnings.showwarning
    warnings.showwarning = show_warning
    try:
        if options.threads is not None:
            set_num_threads(options.threads)
        code: int = options.run(options)
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (OSError, ValueError, TypeError, RuntimeError, MemoryError, ImportError) as error:
        if options.verbose:
            raise
        print(f"qavit: {error}", file=sys.stderr)
        return SOME_FAILED
    finally:
        warnings.showwarning = shown


def show_warning(message: Any, *_: Any, **__: Any) -> None:
    """A warning in one line."""
    print(f"qavit: warning: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


# ---- the parser ----


def make_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--threads", type=int, metavar="N", help="width of the thread pool (default: the CPUs there are)")
    common.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
    parser = argparse.ArgumentParser(
        prog="qavit", description="Where a vision model looks for a question.", parents=[common], allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"qavit {__version__}")
    parser.add_argument("--completion", choices=("bash", "zsh", "fish"), help="print a completion script for a shell")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    def add(name: str, run: Any, summary: str, example: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=summary, description=summary, parents=[common], epilog=f"example: {example}", allow_abbrev=False
        )
        made.set_defaults(run=run)
        return made

    heatmap = add(
        "heatmap", run_heatmap, "draw where the model looks for each question",
        'qavit heatmap street.jpg -q "where is the car?" -q "is there a person?" -o out/',
    )  # fmt: skip
    heatmap.add_argument("images", nargs="*", metavar="IMAGE")
    heatmap.add_argument("-q", "--question", action="append", default=[], dest="question", help="may be given many times")
    heatmap.add_argument("--questions", metavar="FILE", help='JSON lines: {"image": ..., "question": ...}')
    heatmap.add_argument("-o", "--out", default="out", metavar="DIR", help="where to write (default: out)")
    heatmap.add_argument("--block", type=int, help="whose attention (default: one that knows the question)")
    heatmap.add_argument("--readout", choices=("class", "question"), help="what is read from the attention")
    heatmap.add_argument("--heads", default="mean", help="mean, max or a number")
    heatmap.add_argument("--kind", help="the kind of figure (default: panels for one question, else questions)")
    heatmap.add_argument("--cmap", default="jet", help="a matplotlib colormap")
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
    demo.add_argument("-o", "--out", default="out", metavar="DIR")
    demo.add_argument("--image", metavar="IMAGE")
    demo.add_argument("--questions", metavar="TEXT", help="separated by semicolons")
    demo.add_argument("-q", "--question", action="append", default=[])
    demo.add_argument("--block", type=int)

    convert = add(
        "convert", run_convert, "write a model as one folder that is mapped in place",
        "qavit convert --checkpoint qavit-base2.pth --vision clip-vit-large-patch14-336 --text flan-t5-base -o qavit-base2",
    )  # fmt: skip
    convert.add_argument("-o", "--out", required=True, metavar="DIR")
    convert.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="of the stored weights")
    add_model_options(convert, precision=False)

    info = add("info", run_info, "what a model is, or what this build is", "qavit info qavit-base2/")
    info.add_argument("folder", nargs="?", help="a model; without one, the build")
    info.add_argument("--json", action="store_true")
    add_model_options(info, precision=False, positional=True)

    bench = add("bench", run_bench, "time a model on this machine", "qavit bench --model demo --number 3")
    bench.add_argument("--number", type=int, default=3, metavar="Q", help="questions on one picture (default: 3)")
    bench.add_argument("--repeat", type=int, default=10, metavar="N")
    bench.add_argument("--json", action="store_true")
    add_model_options(bench)
    return parser


def add_model_options(parser: argparse.ArgumentParser, precision: bool = True, positional: bool = False) -> None:
    """The options that choose a model."""
    group = parser.add_argument_group("the model")
    if not positional:
        group.add_argument("--model", metavar="NAME", help="demo (the default), a converted folder, or a hub name")
    group.add_argument("--checkpoint", metavar="FILE", help="a QA-ViT or BLIP-ITM checkpoint")
    group.add_argument("--vision", metavar="DIR", help="a CLIP folder")
    group.add_argument("--text", metavar="DIR", help="a text encoder's folder")
    group.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json or vocab.txt")
    group.add_argument("--config", metavar="JSON", help="what the files do not tell, as a JSON object or a file of one")
    group.add_argument("--image-size", type=int, metavar="N")
    if precision:
        group.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
        group.add_argument("--device", default="cpu")


def model_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """What `qavit.load` and `open_model` take."""
    config = None
    if options.config is not None:
        text = options.config
        if not text.lstrip().startswith("{"):
            text = Path(text).read_text(encoding="utf-8")
        config = json.loads(text)
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
        print("qavit heatmap: no pictures; name some, or give --questions FILE", file=sys.stderr)
        return USAGE
    out = Path(options.out)
    endings = wanted_endings(options)
    if not endings and not options.json:
        print("qavit heatmap: --no-figures without --maps, --html or --json leaves nothing to do", file=sys.stderr)
        return USAGE
    model = load_model(options)
    out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for job in progress(jobs, "pictures"):
        targets = [out / f"{job.stem}{ending}" for ending in endings]
        record = out / f".{job.stem}.qavit"
        try:
            request = fingerprint(model, job, options)
            finished = record.is_file() and record.read_text(encoding="utf-8") == request
            if targets and finished and not options.again and not options.json and all(map(Path.exists, targets)):
                logger.info("%s: done already", job.image)
                continue
            result = ask(model, job, options)
            for target in targets:
                figure = target.suffix == ".png"
                look = {"kind": options.kind, "cmap": options.cmap, "image_weight": options.image_weight} if figure else {}
                result.save(target, **look)
            write_whole(record, request.encode())
        except (OSError, ValueError, TypeError) as error:
            if options.verbose:
                raise
            failed += 1
            print(f"qavit: {job.image}: {error}", file=sys.stderr)
            if options.json:
                print(json.dumps({"image": job.image, "error": str(error)}, ensure_ascii=False), flush=True)
            continue
        if options.json:
            described = {"image": job.image, "files": [str(target) for target in targets], **result.to_dict()}
            print(json.dumps(described, ensure_ascii=False), flush=True)
        else:
            for target in targets:
                print(target, flush=True)
    return SOME_FAILED if failed else OK


def fingerprint(model: Any, job: Job, options: argparse.Namespace) -> str:
    """A name for what is asked of a picture; with another question, model or look, a finished file is not finished."""
    state = os.stat(job.image)
    look = [getattr(options, name) for name in ("block", "readout", "heads", "kind", "cmap", "image_weight")]
    asked = [repr(model), os.path.abspath(job.image), state.st_size, state.st_mtime_ns, job.questions, look]
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
    wanted: dict[str, list[str]] = {image: list(options.question) for image in options.images}
    if options.questions is not None:
        for image, question in read_questions(options.questions):
            wanted.setdefault(image, list(options.question)).append(question)
    used: set[str] = set()
    for image, questions in wanted.items():
        stem = base = Path(image).stem or "picture"
        number = 2
        while stem in used:
            stem, number = f"{base}-{number}", number + 1
        used.add(stem)
        yield Job(image, list(dict.fromkeys(questions)), stem)


def read_questions(path: str) -> Iterator[tuple[str, str]]:
    """(image, question) of each line of a JSON lines file; relative pictures lie beside the file or where one stands."""
    beside = Path(path).parent
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                image, question = entry["image"], entry["question"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f'{path}, line {number}: expected {{"image": ..., "question": ...}}') from error
            if not isinstance(image, str) or not isinstance(question, str):
                raise ValueError(f"{path}, line {number}: image and question must be text")
            here = Path(image)
            yield (image if here.is_absolute() or here.exists() else str(beside / image)), question


def progress(items: Sequence[Any], unit: str) -> Iterable[Any]:
    """A progress bar on a terminal, and only for more than one item."""
    if len(items) < 2 or not sys.stderr.isatty():
        return items
    from tqdm import tqdm

    bar: Iterable[Any] = tqdm(items, unit=f" {unit}")
    return bar


# ---- the other commands ----


def run_demo_command(options: argparse.Namespace) -> int:
    """The bundled model."""
    from .demo import attention_inside, demo_entries, run_demo

    asked = [part.strip() for part in (options.questions or "").split(";") if part.strip()] + options.question
    truth = None if options.image or asked else demo_entries()
    result, files = run_demo(options.out, options.image, asked or None, options.block)
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

    path = options.model
    if path == "demo":
        path = str(Path(__file__).with_name("demo_model"))
    source = open_model(path, **model_arguments(options))
    folder = convert(source, options.out, options.dtype)
    print(description_text(describe(open_model(folder))))
    print(f"wrote {folder}")
    return OK


def run_info(options: argparse.Namespace) -> int:
    """What a model is, or what this build is."""
    arguments = model_arguments(options)
    if options.folder is None and arguments["checkpoint"] is None and arguments["vision"] is None:
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

    folder = options.folder
    if folder == "demo":
        folder = str(Path(__file__).with_name("demo_model"))
    described = describe(open_model(folder, **arguments))
    print(json.dumps(described) if options.json else description_text(described))
    return OK


def run_bench(options: argparse.Namespace) -> int:
    """Median milliseconds of maps of one picture."""
    import numpy as np

    if options.number < 1 or options.repeat < 1:
        raise ValueError("--number and --repeat must be at least 1")
    start = time.perf_counter()
    model = load_model(options)
    loading = time.perf_counter() - start
    side = model.image_size
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    takes_questions = getattr(model, "integrated", True)
    questions = [f"where is object number {i}?" for i in range(options.number)] if takes_questions else None
    times = []
    for _ in progress(range(options.repeat + 1), "runs"):
        start = time.perf_counter()
        model.heatmaps(picture, questions)
        times.append(time.perf_counter() - start)
    about = {
        "model": getattr(model, "name", "model"),
        "precision": options.precision,
        "threads": build_info()["threads"],
        "questions": options.number if questions else 0,
        "load_ms": round(1000 * loading, 2),
        "first_ms": round(1000 * times[0], 2),
        "median_ms": round(1000 * statistics.median(times[1:]), 3),
    }
    if options.json:
        print(json.dumps(about))
    else:
        print(f"{about['model']}, {about['precision']}, {about['threads']} threads")
        print(f"loaded in {about['load_ms']:.0f} ms, first map after {about['first_ms']:.1f} ms more")
        print(f"then {about['median_ms']:.2f} ms for a picture with {about['questions']} questions")
    return OK


# ---- completion ----


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """A completion script made from the parser: commands, then each command's options and file names."""
    found = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    options = {
        name: sorted(option for action in made._actions for option in action.option_strings if option.startswith("--"))
        for name, made in found.choices.items()
    }
    names = " ".join(options)
    if shell == "fish":
        lines = [f"complete -c qavit -n __fish_use_subcommand -f -a '{names}'"]
        lines += [
            f"complete -c qavit -n '__fish_seen_subcommand_from {name}' -l {option[2:]}"
            for name, listed in options.items()
            for option in listed
        ]
        return "\n".join(lines)
    cases = "\n".join(f'        {name}) words="{" ".join(listed)}" ;;' for name, listed in options.items())
    bash = (
        "_qavit() {\n"
        '    local words word="${COMP_WORDS[COMP_CWORD]}"\n'
        '    case "${COMP_WORDS[1]}" in\n'
        f'{cases}\n        *) words="{names} --help --version" ;;\n'
        "    esac\n"
        '    COMPREPLY=($(compgen -W "$words" -- "$word"))\n'
        "}\n"
        "complete -o default -F _qavit qavit"
    )
    return bash if shell == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{bash}"
