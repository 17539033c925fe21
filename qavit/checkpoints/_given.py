"""What was given to open a model of, as the files of `towers` take it, and what they do alike with files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .._base.small_files import read_json_object
from .._base.types import ImageSize
from ._adapters import CONFIG, AdapterSettings, adapter_settings, add_adapter, open_adapter
from ._hub import NO_HUB, Hub
from ._places import PathLike, _folder
from ._states import without_wrappers
from ._weights import Stored
from .formats.reading import Content, open_folder, weights_file
from .towers.names import BARE


@dataclass
class Asked:
    """What was asked for beside the files."""

    tokenizer: PathLike | None = None
    options: dict[str, Any] = field(default_factory=dict)
    size: ImageSize | None = None
    hub: Hub = NO_HUB

    @property
    def state(self) -> str | None:
        """Which of several copies in a file is meant."""
        state = self.options.get("state")
        if state is not None and not isinstance(state, str):
            raise TypeError(f"config['state']: expected a str, got {type(state).__name__}")
        return state

    @property
    def strict(self) -> bool:
        """Whether tensors that are not known are refused."""
        strict = self.options.get("strict", True)
        if not isinstance(strict, bool):
            raise TypeError(f"config['strict']: expected a bool, got {type(strict).__name__}")
        return strict


@dataclass
class Given:
    """A model's files: a folder, or a file of weights; the halves that were named beside it; what was asked for.

    Attributes
    ----------
    name : str
        For messages.
    asked : Asked
    folder : Path or None
        The model's folder.
    config : dict
        Its config.json; empty where there is none.
    checkpoint : Content or None
        Of a file of weights.
    vision, text : path or None
        As they were given.
    adapter : AdapterSettings or None
        Of an adapter that `checkpoint` is.
    """

    name: str
    asked: Asked
    folder: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Content | None = None
    vision: PathLike | None = None
    text: PathLike | None = None
    adapter: AdapterSettings | None = None

    @cached_property
    def content(self) -> Content:
        """The tensors of the file, or of the folder; none where neither was given."""
        if self.checkpoint is not None:
            return self.checkpoint
        return Content({}) if self.folder is None else folder_content(self.folder, "path", self.asked)


def folder_content(folder: Path, argument: str, asked: Asked, base: PathLike | None = None) -> Content:
    """A folder's weights; where an adapter lies in it, added to its base's.

    The base's are those beside it, or of the folder that it, or ``base``, names.
    The adapter's own settings are found again by `adapter_of`.
    """
    if not (folder / CONFIG).is_file():
        return open_folder(folder, argument)
    adapter, _, named = open_adapter(folder)
    if weights_file(folder) is not None:
        content = open_folder(folder, argument)
    else:
        content = open_folder(_base_folder(folder, named, argument, asked.hub, base), argument)
    tensors = without_wrappers(content.tensors, str(folder))
    return Content(add_adapter(plain_names(tensors), plain_names(adapter.tensors)), content.unread, content.others)


def plain_names(tensors: Stored) -> Stored:
    """Without peft's own prefix, and a CLIP tower's names whole."""
    found = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
    if any(name.startswith("embeddings.token_embedding") for name in found):  # CLIP's text half
        return found
    return {f"vision_model.{name}" if BARE.match(name) else name: tensor for name, tensor in found.items()}


def _base_folder(folder: Path, named: str | None, argument: str, hub: Hub, base: PathLike | None) -> Path:
    """The folder of an adapter's base model."""
    if base is not None:
        return _folder(base, "config['base']", hub)
    for place in () if named is None else (folder / named, Path(named)):
        if place.is_dir():
            return place
    if named is not None and hub.asked:
        return _folder(f"hf://{named}", argument, hub)
    raise FileNotFoundError(
        f"{argument}: {folder} holds an adapter without its base model {named!r}; give config={{'base': its folder}}"
    )


def adapter_of(folder: Path | None) -> AdapterSettings | None:
    """The settings of the adapter that lies in a folder."""
    if folder is None or not (folder / CONFIG).is_file():
        return None
    return adapter_settings(read_json_object(folder / CONFIG), str(folder / CONFIG))


@contextlib.contextmanager
def unread_named(unread: Mapping[str, str], name: str) -> Iterator[None]:
    """A tensor that is missing because its kind is not read is called so."""
    try:
        yield
    except ValueError as err:
        found = [f"{key[:120]} is {what}" for key, what in unread.items() if key.rpartition(".")[0][-60:] in str(err)]
        if "is missing" not in str(err) or not found:
            raise
        raise ValueError(f"{err}\n  which is not read: {'; '.join(found[:4])}") from None
