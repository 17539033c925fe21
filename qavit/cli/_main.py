"""The command line: ``qavit heatmap | demo | run | convert | info | bench``."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from .._base.about import __version__
from .._base.arguments import one_line
from .._base.extras import require
from .._core import set_num_threads
from ._about import run_bench, run_convert, run_demo_command, run_info
from ._heatmap import run_heatmap
from ._options import (
    FILE,
    FOLDER,
    INTERRUPTED,
    METHODS,
    OK,
    SOME_FAILED,
    USAGE,
    Parser,
    UsageError,
    add_input_options,
    add_model_options,
    completed,
    heads_of,
)
from ._run import run_data_set

SHELLS = ("bash", "zsh", "tcsh")
EPILOG = """\
example: qavit heatmap street.jpg -q "where is the car?" -o out/
Each command's --help shows another.

Exit codes: 0 all went well, 1 something failed, 2 wrong usage, 130 interrupted.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 well, 1 something failed, 2 wrong usage, 130 interrupted."""
    parser = make_parser()
    options = parser.parse_args(arguments)
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
        goes_on = "; the same command goes on where it stopped" if options.command in ("heatmap", "run") else ""
        print(f"interrupted{goes_on}", file=sys.stderr)
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
    option = {"path": "model", "images": "place"}.get(name, name)
    given = colon and option.isidentifier() and getattr(options, option, None) not in (None, [], {})
    given = given and option != "folder" and not (option == "questions" and options.command == "run")
    option = "images" if option == "place" else option
    return f"--{option.replace('_', '-')}: {rest}" if given else problem


def add_questions(parser: argparse.ArgumentParser) -> None:
    """-q and --questions, which mean the same in every command."""
    parser.add_argument("-q", "--question", action="append", default=[], help="a question; may be given many times")
    completed(
        parser.add_argument("--questions", metavar="FILE", help="a file of questions, as qavit run reads it"), FILE
    )


def add_out(parser: argparse.ArgumentParser) -> None:
    """-o."""
    completed(parser.add_argument("-o", "--out", default="out", metavar="DIR", help="where to write (default: out)"), FOLDER)


def make_parser() -> argparse.ArgumentParser:
    """All commands and their options."""

    def common(**default: Any) -> Parser:
        made = Parser(add_help=False, **default)
        made.add_argument("--threads", type=int, metavar="N", help="width of the thread pool (default: the CPUs there are)")
        made.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
        return made

    from ..plots._protocol import KINDS
    from . import _run as data_command

    parser = Parser(
        prog="qavit", description="Where a vision model looks for a question.", parents=[common()], allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EPILOG,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"qavit {__version__}")
    parser.add_argument("--completion", choices=SHELLS, help="print a completion script (needs shtab)")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    def add(name: str, run: Any, summary: str, example: str) -> Parser:
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
    completed(
        heatmap.add_argument("pictures", nargs="*", metavar="IMAGE", help="pictures, folders, or patterns: 'a/*.jpg'"),
        FILE,
    )
    add_questions(heatmap)
    add_out(heatmap)
    heatmap.add_argument("--block", type=int, metavar="N", help="whose attention (default: one that knows the question)")
    heatmap.add_argument("--method", choices=METHODS, help="how a map is read (default: the model's)")
    heatmap.add_argument("--heads", type=heads_of, default="mean", help="mean, max or a number (default: mean)")
    heatmap.add_argument(
        "--kind", choices=KINDS, metavar="KIND",
        help=f"the kind of figure: {', '.join(KINDS)} (default: panels for one question, else questions)",
    )  # fmt: skip
    heatmap.add_argument("--cmap", default="viridis", metavar="NAME", help="a matplotlib colormap (default: viridis)")
    heatmap.add_argument(
        "--image-weight", type=float, help="0: colours alone, 1: the picture alone (default: colours fade in with the map)"
    )
    heatmap.add_argument("--maps", choices=("npz", "npy"), help="write the maps too")
    heatmap.add_argument("--html", action="store_true", help="write a page that can be shared")
    heatmap.add_argument("--no-figures", action="store_true", help="no PNG")
    heatmap.add_argument("--json", action="store_true", help="one JSON object a picture on standard output")
    heatmap.add_argument("--again", action="store_true", help="do pictures again whose files are there")
    add_input_options(heatmap)
    add_model_options(heatmap)

    demo = add("demo", run_demo_command, "the bundled model on its own picture, or on yours", "qavit demo -o out/")
    add_out(demo)
    completed(
        demo.add_argument("--image", metavar="IMAGE", help="your own picture (default: the model's own scene)"), FILE
    )
    add_questions(demo)
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
    add_model_options(convert, precision=False, model="demo, a model's folder, or hf://owner/name on the hub")

    info = add("info", run_info, "what a model is, or what this build is", "qavit info qavit-base2/")
    info.add_argument("folder", nargs="?", metavar="NAME", help="as --model; without either, this build")
    info.add_argument("--json", action="store_true", help="one JSON object on standard output")
    add_model_options(info, precision=False, model="demo, a model's folder, or hf://owner/name on the hub")

    bench = add("bench", run_bench, "time a model on this machine", "qavit bench --model demo --number 3")
    bench.add_argument("--number", type=int, default=3, metavar="Q", help="questions on one picture (default: 3)")
    bench.add_argument("--repeat", type=int, default=10, metavar="N", help="runs, of which the median is told (default: 10)")
    bench.add_argument("--block", type=int, metavar="N", help="whose attention; later ones take longer")
    bench.add_argument("--json", action="store_true", help="one JSON object on standard output")
    add_model_options(bench)
    return parser
