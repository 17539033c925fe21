"""A file or a folder of weights in any of the formats, as named tensors and what stands beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .._weights import Stored, StoredTensor, UnreadTensor, from_array
from .kinds import file_kind
from .safetensors_files import index_files, join_shards, open_safetensors

#: How many entries of nested dicts a checkpoint may have.
MAX_ENTRIES = 1_000_000
#: Where a folder's weights lie, in the order in which they are looked for.
_STEMS = ("model", "pytorch_model", "open_clip_model", "open_clip_pytorch_model")
_ENDS = (".safetensors", ".bin", ".pt", ".pth")


@dataclass
class Content:
    """What a file holds.

    Attributes
    ----------
    tensors : dict
        name -> tensor; of nested dicts the keys are joined by dots.
    unread : dict
        name -> what kind of tensor it is, of those that are not read.
    others : dict
        The entries without tensors (config, epoch ...), of the outermost dict and of those that only wrap it.
    """

    tensors: Stored
    unread: dict[str, str] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)


def open_weights(path: Path) -> Content:
    """A file of weights; its kind is told by its bytes.

    Raises
    ------
    FileNotFoundError, ValueError
        Where there is none, or it is no file of weights; the message says what it is.
    """
    kind = file_kind(path)
    if kind.name == "safetensors":
        return Content(dict(open_safetensors(path)))
    if kind.refusal and kind.name != "unknown":
        raise ValueError(f"{path}: {kind.refusal}")
    from .torch_files import read_torch_file  # with the reader of pickles, which safetensors do without

    return state_dict(read_torch_file(path), path)


def state_dict(content: Any, path: Path) -> Content:
    """The tensors of what `read_torch_file` gave, a dict of them or of dicts of them.

    A number whose name has a dot in it counts as a tensor, as a checkpoint may hold gates as numbers.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a dict of tensors, got {type(content).__name__}")
    result = Content({})
    waiting: list[tuple[str, Mapping[Any, Any]]] = [("", content)]
    left = MAX_ENTRIES
    known: dict[int, bool] = {}
    while waiting:
        prefix, table = waiting.pop()
        left -= len(table) + 1
        if left < 0:
            raise ValueError(f"{path}: more than {MAX_ENTRIES} entries in nested dicts")
        has_tensors = any(isinstance(value, (StoredTensor, UnreadTensor)) for value in table.values())
        for key, value in table.items():
            name = f"{prefix}{key}"
            if isinstance(value, StoredTensor):
                result.tensors[name] = value
            elif isinstance(value, UnreadTensor):
                result.unread[name] = value.what
            elif isinstance(value, Mapping) and _holds_tensors(value, known):
                waiting.append((name + ".", value))
            elif has_tensors and isinstance(value, (int, float)) and not isinstance(value, bool) and "." in str(key):
                result.tensors[name] = from_array(np.asarray(value, np.float32))
            elif prefix.count(".") <= 1:
                result.others.setdefault(str(key), value)
    if not result.tensors:
        entries = ", ".join(str(key)[:80] for key in list(content)[:8])
        kinds = f", but {next(iter(result.unread.values()))}" if result.unread else ""
        raise ValueError(f"{path}: it holds no tensors{kinds} (its entries: {entries})")
    return result


def _holds_tensors(table: Mapping[Any, Any], known: dict[int, bool]) -> bool:
    """Whether a dict, or one in it, has tensors; each is looked through once. The nesting was bounded when it was read."""
    found = known.get(id(table))
    if found is None:
        found = known[id(table)] = any(
            isinstance(value, (StoredTensor, UnreadTensor)) or (isinstance(value, Mapping) and _holds_tensors(value, known))
            for value in table.values()
        )
    return found


def weights_file(folder: Path) -> Path | None:
    """Where a folder's weights are: one of the usual names or an index of shards, or else the only file that can be it."""
    for stem in _STEMS:
        for end in _ENDS:
            for name in (stem + end, f"{stem}{end}.index.json"):
                if (folder / name).is_file():
                    return folder / name
    files = [
        entry for entry in sorted(folder.iterdir())
        if entry.suffix in _ENDS and entry.is_file() and not entry.name.startswith(("adapter_model", "training_args", "."))
    ]  # fmt: skip
    return files[0] if len(files) == 1 else None


def open_folder(folder: Path, argument: str) -> Content:
    """The weights of a folder in any of the usual forms, mapped.

    Raises
    ------
    FileNotFoundError, ValueError
        Where it holds none, or several files that could be it.
    """
    file = weights_file(folder)
    if file is None:
        raise FileNotFoundError(
            f"{argument}: {folder} holds no weights (model.safetensors, pytorch_model.bin, or an index of shards)"
        )
    if not file.name.endswith(".index.json"):
        return open_weights(file)
    unread: dict[str, str] = {}

    def shards() -> Any:
        for name, names in index_files(file).items():
            content = open_weights(folder / name)
            unread.update(content.unread)
            yield name, [one for one in names if one not in content.unread], content.tensors

    return Content(join_shards(file, shards()), unread)
