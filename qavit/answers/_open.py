"""What answers: a model of its own, or PnP-VQA's three by a configuration file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .._base.config import Config
from .._base.files import PathLike
from ..models._load import load
from ..models._model import Model
from ._parts import BLOCKS, block_arguments
from ._pnpvqa import PNPVQA

CONFIGURATIONS = frozenset({".yaml", ".yml", ".json"})


def is_configuration(path: PathLike | None) -> bool:
    """Whether a path names a file of settings rather than a model's own."""
    return path is not None and Path(path).suffix.lower() in CONFIGURATIONS and not os.path.isdir(path)


def open_answering(path: PathLike | None, **parts: Any) -> Model | PNPVQA:
    """A `PNPVQA` from a configuration file, anything else by `qavit.load`.

    With a configuration, `precision` and `device` are those of the blocks that name none; other parts are refused.
    """
    if path is None or not is_configuration(path):
        return load(None if path is None else os.fspath(path), **parts)
    defaults = {name: parts.pop(name) for name in ("precision", "device") if name in parts}
    given = sorted(name for name, value in parts.items() if value is not None)
    if given:
        raise ValueError(f"{given[0]}: {os.fspath(path)!r} is a configuration, which names its models' parts itself")
    return PNPVQA.from_config(Config.from_file(path), **defaults)


def parts_named(path: PathLike) -> dict[str, dict[str, Any]]:
    """What `qavit.load` is called with for each block of a configuration file."""
    found = block_arguments(Config.from_file(path))
    return {name: found[name] for name in BLOCKS}
