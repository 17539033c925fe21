"""Files and folders of models: where weights and configurations lie."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Union

from .._base.small_files import read_json_object
from ._hub import NO_HUB, Hub, model_folder

PathLike = Union[str, "os.PathLike[str]"]
#: The model that comes with the package.
BUNDLED = Path(__file__).parents[1] / "demo_model"


def _path(path: PathLike, argument: str) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{argument}: expected a str or a path, got {type(path).__name__}")
    if str(path) == "":
        raise ValueError(f"{argument}: got '', expected a path")
    return Path(path)


_HUB_MARK = "hf://"
_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}$")


def _folder(path: PathLike, argument: str, hub: Hub = NO_HUB) -> Path:
    folder = _path(path, argument)
    text = str(path) if isinstance(path, str) else ""
    marked = text.startswith(_HUB_MARK)
    if not marked and folder.is_dir():
        return folder
    if not marked and folder.exists():
        raise ValueError(f"{argument}: {str(path)!r} is a file, expected a folder")
    name = text.removeprefix(_HUB_MARK)
    if marked and not _HUB_NAME.match(name):
        raise ValueError(f"{argument}: {text!r} is not a name on the Hugging Face hub, expected 'hf://owner/name'")
    if _HUB_NAME.match(name):
        if marked or hub.asked:
            return model_folder(name, argument, hub)
        hint = f"; if it is one of the Hugging Face hub, say 'hf://{name}'"
    else:
        hint = "; 'demo' is the bundled model, 'hf://owner/name' one of the Hugging Face hub" if argument == "path" else ""
    what = "file or folder" if argument == "path" else "folder"
    raise FileNotFoundError(f"{argument}: there is no {what} {str(path)!r}{hint}")


def hub_folder(value: Any, argument: str, hub: Hub) -> Path | None:
    """The folder of a model that is meant to be one of the hub's; None for a path."""
    text = value if isinstance(value, str) else ""
    if not text.startswith(_HUB_MARK) and (not hub.asked or Path(text).exists() or not _HUB_NAME.match(text)):
        return None
    return _folder(value, argument, hub)


def _file(path: PathLike, argument: str) -> Path:
    file = _path(path, argument)
    if file.is_dir():
        raise ValueError(f"{argument}: {str(path)!r} is a folder, expected a file")
    if not file.is_file():
        raise FileNotFoundError(f"{argument}: there is no file {str(path)!r}")
    return file


def _folder_config(folder: Path, argument: str) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{argument}: {folder} holds no config.json")
    return read_json_object(folder / "config.json")
