"""`qavit serve`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys

from ._options import FILE, OK, UsageError, add_model_options, completed, load_model


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``qavit serve``."""
    from ..serve._limits import Limits

    limits = Limits()
    completed(
        parser.add_argument("picture", nargs="?", metavar="PICTURE", help="the picture that the page opens with"), FILE
    )
    parser.add_argument("-q", "--question", action="append", default=[], help="what it opens with; twice: side by side")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="of 127.0.0.1 (default: 0, a free one)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument(
        "--max-mb", type=int, default=limits.upload_bytes >> 20, metavar="N",
        help=f"of the largest picture's file that is taken, in MiB (default: {limits.upload_bytes >> 20})",
    )  # fmt: skip
    parser.add_argument(
        "--max-pixels", type=int, default=limits.pixels, metavar="N",
        help=f"of the largest picture that is taken (default: {limits.pixels})",
    )  # fmt: skip
    add_model_options(parser)


def run_serve(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C, which is how it is meant to end."""
    from .._base.extras import require
    from ..serve._server import serve

    for module in ("uvicorn", "starlette"):
        require(module, "serve")  # said before a large model is loaded
    if not 0 <= options.port <= 65535:
        raise UsageError(f"--port: {options.port}, expected 0 to 65535")
    if len(options.question) > 2:
        raise UsageError(f"--question: {len(options.question)} of them, expected at most 2")
    if options.max_mb < 1 or options.max_pixels < 1:
        raise UsageError("--max-mb, --max-pixels: expected at least 1")
    model = load_model(options)
    picture = options.picture
    if picture is None and model._bundled:
        from .._demo import PICTURE

        picture = PICTURE
    ended = serve(
        model, image=picture, questions=options.question, port=options.port, open=options.open,
        max_bytes=options.max_mb << 20, max_pixels=options.max_pixels, said=lambda line: print(line, flush=True),
    )  # fmt: skip
    if not ended:
        # A question is being computed, which nothing can interrupt; an ordinary end would take memory from under the core.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # the terminal has gone
                stream.flush()
        os._exit(OK)
    return OK
