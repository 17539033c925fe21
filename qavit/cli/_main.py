"""The command line: ``qavit heatmap | ask | serve | demo | run | score | eval | convert | info | models | bench``."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from .._base.about import __version__
from .._base.arguments import one_line
from .._base.extras import require
from .._core import set_num_threads
from ._about import (
    add_convert_options,
    add_demo_options,
    add_info_options,
    add_models_options,
    run_convert,
    run_demo_command,
    run_info,
    run_models,
)
from ._ask import add_ask_options, run_ask
from ._bench import add_bench_options, run_bench
from ._eval import add_eval_options, run_eval
from ._heatmap import add_heatmap_options, run_heatmap
from ._options import INTERRUPTED, OK, SOME_FAILED, USAGE, Parser, UsageError
from ._run import EXAMPLE, SUMMARY, add_run_options, run_data_set
from ._score import add_score_options, run_score
from ._serve import add_serve_options, run_serve

SHELLS = ("bash", "zsh", "tcsh")
EPILOG = """\
example: qavit heatmap street.jpg -q "where is the car?" -o out/
Each command's --help shows another.

Exit codes: 0 all went well, 1 something failed, 2 wrong usage, 130 interrupted.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 well, 1 something failed, 2 wrong usage, 130 interrupted."""
    parser = make_parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        made: Parser = getattr(options, "parser", parser)
        made.refuse(unknown)
    if options.command is None and not options.completion:
        parser.print_help()
        return USAGE
    shown = warnings.showwarning
    warnings.showwarning = once_in_a_line()
    try:
        if options.completion:
            print(require("shtab", "completion").complete(parser, options.completion), flush=True)
            return OK
        if options.threads is not None:
            set_num_threads(options.threads)
        code: int = options.run(options)
        return code
    except KeyboardInterrupt:
        kept = options.command in ("heatmap", "run") or (options.command == "eval" and options.out is not None)
        goes_on = "; the same command goes on where it stopped" if kept else ""
        print(f"interrupted{goes_on}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return OK
    except UsageError as error:
        failed(f"qavit {options.command}", str(error), options)
        return USAGE
    except (OSError, ValueError, TypeError, RuntimeError, MemoryError, ImportError) as error:
        if options.verbose:
            raise
        failed("qavit", as_option(one_line(error), options), options)
        return SOME_FAILED
    finally:
        warnings.showwarning = shown


def failed(who: str, problem: str, options: argparse.Namespace) -> None:
    """Say why a command ends: to a person, and where JSON was asked for as an object of it, too."""
    print(f"{who}: {problem}", file=sys.stderr, flush=True)
    if getattr(options, "json", False):
        event = {"event": "error"} if options.command == "run" else {}
        print(json.dumps({**event, "error": problem}, ensure_ascii=False), flush=True)


def once_in_a_line() -> Callable[..., None]:
    """What shows a warning in one line, and each text once, whatever is warned about picture by picture."""
    said: set[str] = set()

    def show(message: Any, *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        if text not in said:
            said.add(text)
            print(f"qavit: warning: {text}", file=sys.stderr, flush=True)

    return show


#: Arguments of the library that are options here, as its messages name them.
ARGUMENTS = re.compile(
    r"\b(answers|block|checkpoint|columns|config|device|encoding|fit|heads|image_name|image_size|keep|max_pixels|method|"
    r"model|precision|text|tokenizer|vision)=(\S?)"
)


#: What --config is advised to be, as Python writes it; of its braces as many are closed as were opened.
CONFIG = re.compile(r"--config (\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})")


def as_json(found: re.Match[str]) -> str:
    """The same as a shell takes it: JSON, with N for what a person fills in."""
    text = found[1].replace("'", '"').replace("...", "N").replace(": False", ": false").replace(": True", ": true")
    return f"--config '{text}'"


def option_named(found: re.Match[str]) -> str:
    """The option that is an argument of the library: "--config {" for "config={"."""
    option = f"--{found[1].replace('_', '-')}"
    return f"{option} {found[2]}" if found[2] not in ("", ",", ";") else f"{option}{found[2]}"


def as_option(problem: str, options: argparse.Namespace) -> str:
    """What is wrong with arguments of the library, in the words of the command line."""
    problem = ARGUMENTS.sub(option_named, problem).replace(" or a function", "")  # which no option takes
    problem = CONFIG.sub(as_json, problem)
    name, colon, rest = problem.partition(": ")
    if name == "path" and getattr(options, "model", None) is None and options.command == "info":
        return rest
    option = {"path": "model", "images": "place"}.get(name, name)
    given = colon and option.isidentifier() and getattr(options, option, None) not in (None, [], {})
    given = given and option != "folder" and not (option == "questions" and options.command == "run")
    option = "images" if option == "place" else option
    return f"--{option.replace('_', '-')}: {rest}" if given else problem


def make_parser() -> Parser:
    """All commands and their options."""

    def common(**default: Any) -> Parser:
        made = Parser(add_help=False, **default)
        made.add_argument("--threads", type=int, metavar="N", help="width of the thread pool (default: the CPUs there are)")
        made.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
        return made

    parser = Parser(
        prog="qavit", description="Where a vision model looks for a question.", parents=[common()], allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EPILOG,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"qavit {__version__}")
    parser.add_argument("--completion", choices=SHELLS, help="print a completion script (needs shtab)")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, run, options, summary, example in (
        ("heatmap", run_heatmap, add_heatmap_options, "draw where the model looks for each question",
         'qavit heatmap street.jpg -q "where is the car?" -q "is there a person?" -o out/'),
        ("ask", run_ask, add_ask_options, "answer questions about a picture, and draw why",
         'qavit ask street.jpg "what color is the car?" --model pnp_vqa.yaml --why why.png'),
        ("serve", run_serve, add_serve_options, "a page on this machine: type, and map and answer follow",
         'qavit serve street.jpg -q "where is the car?" --open'),
        ("demo", run_demo_command, add_demo_options, "the bundled model on its own picture, or on yours",
         "qavit demo -o out/"),
        ("run", run_data_set, add_run_options, SUMMARY, EXAMPLE),
        ("score", run_score, add_score_options, "the accuracy of answers, as VQAv2 and GQA count it",
         "qavit score results.json v2_mscoco_val2014_annotations.json"),
        ("eval", run_eval, add_eval_options, "how well maps find what texts refer to, method by method, with intervals",
         "qavit eval boxes.jsonl --model clip-vit-base-patch16/ --method legrad,gae,gem -o figures/"),
        ("convert", run_convert, add_convert_options, "write a model as one folder that is mapped in place",
         "qavit convert --checkpoint qavit-base2.pth --vision clip-vit-large-patch14-336 --text flan-t5-base -o base2"),
        ("info", run_info, add_info_options, "what a model is and can do, or what this build is", "qavit info qavit-base2/"),
        ("models", run_models, add_models_options, "every family of models that loads, and what it can do", "qavit models"),
        ("bench", run_bench, add_bench_options, "time a model on this machine", "qavit bench --model demo --number 3"),
    ):  # fmt: skip
        # Without a default of its own, a command leaves what stood before its name as it is.
        made = commands.add_parser(
            name, help=summary, description=summary, parents=[common(argument_default=argparse.SUPPRESS)],
            epilog=f"example: {example}", allow_abbrev=False,
        )  # fmt: skip
        made.set_defaults(run=run, parser=made)
        options(made)
    return parser
