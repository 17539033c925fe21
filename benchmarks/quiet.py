"""Keeps other libraries' progress bars and warnings out of what benchmarks print."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}


def quiet_environment() -> dict[str, str]:
    """The environment of a process that says nothing but its own lines."""
    return {**os.environ, **SETTINGS}


def be_quiet() -> None:
    """The same for this process, before it imports what it is to keep quiet."""
    import warnings

    os.environ.update(SETTINGS)
    warnings.simplefilter("ignore")


@contextmanager
def hushed() -> Iterator[None]:
    """Nothing that is written inside, by Python or by a library under it, reaches the terminal; errors are raised."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with open(os.devnull, "w") as sink:
        try:
            for number in (1, 2):
                os.dup2(sink.fileno(), number)
            with redirect_stdout(sink), redirect_stderr(sink):
                yield
        finally:
            for number, original in zip((1, 2), kept):
                os.dup2(original, number)
                os.close(original)
