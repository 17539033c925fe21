"""Files and folders of models: where weights and configurations lie."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Union

from .._base.small_files import read_json
from ._weights import Stored
from .formats.safetensors_files import open_safetensors, open_safetensors_index
from .formats.torch_files import open_torch_index, open_torch_weights

PathLike = Union[str, "os.PathLike[str]"]
#: The model that comes with the package.
BUNDLED = Path(__file__).parents[1] / "demo_model"


def _path(path: PathLike, argument: str) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{argument}: expected a str or a path, got {type(path).__name__}")
    if str(path) == "":
        raise ValueError(f"{argument}: got '', expected a path")
    return Path(path)


def _folder(path: PathLike, argument: str) -> Path:
    folder = _path(path, argument)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"{argument}: {str(path)!r} is a file, expected a folder")
    from . import _hub as hub

    if isinstance(path, str) and hub.looks_like_name(path):
        return hub.model_folder(path, argument)
    hint = "" if argument != "path" else "; 'demo' is the bundled model, 'owner/name' one of the Hugging Face hub"
    raise FileNotFoundError(f"{argument}: there is no folder {str(path)!r}{hint}")


def _file(path: PathLike, argument: str) -> Path:
    file = _path(path, argument)
    if file.is_dir():
        raise ValueError(f"{argument}: {str(path)!r} is a folder, expected a file")
    if not file.is_file():
        raise FileNotFoundError(f"{argument}: there is no file {str(path)!r}")
    return file


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _folder_config(folder: Path, argument: str) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{argument}: {folder} holds no config.json")
    return _object(folder / "config.json")


def _folder_weights(folder: Path, argument: str) -> Stored:
    """The weights of a folder in any of Hugging Face's forms, mapped."""
    if (folder / "model.safetensors").is_file():
        return dict(open_safetensors(folder / "model.safetensors"))
    if (folder / "model.safetensors.index.json").is_file():
        return open_safetensors_index(folder / "model.safetensors.index.json")
    if (folder / "pytorch_model.bin").is_file():
        return open_torch_weights(folder / "pytorch_model.bin")
    if (folder / "pytorch_model.bin.index.json").is_file():
        return open_torch_index(folder / "pytorch_model.bin.index.json")
    raise FileNotFoundError(
        f"{argument}: {folder} holds no weights (model.safetensors, pytorch_model.bin, or an index of shards)"
    )


def _has_weights(folder: Path) -> bool:
    names = ("model.safetensors", "pytorch_model.bin")
    return any((folder / (name + end)).is_file() for name in names for end in ("", ".index.json"))
