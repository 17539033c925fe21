"""Libraries of optional extras, imported when they are used."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, extra: str) -> Any:
    """A library of an extra, or an ImportError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise ImportError(f'this needs {name}, which cannot be imported ({error}): pip install "qavit[{extra}]"') from error
