"""Configuration files: nested mappings that are read by item or by attribute, without LAVIS."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from .._base.small_files import read_bytes

MAX_BYTES, MAX_VALUES = 1 << 20, 100_000
_log = logging.getLogger(__name__)


def to_mapping(node: Any, argument: str = "config") -> dict[str, Any]:
    """A configuration node of any common kind as a plain dictionary, one level deep.

    Parameters
    ----------
    node : mapping, Config, OmegaConf node, namespace, dataclass instance or None
        None stands for no settings.
    argument : str
        The name that errors give the node.

    Returns
    -------
    dict
        Keys to values; nested nodes are left as they came.

    Raises
    ------
    TypeError
        When the node is none of these, or a key is not a string.
    """
    if node is None:
        return {}
    if isinstance(node, Mapping):
        settings = {key: node[key] for key in node}
    elif dataclasses.is_dataclass(node) and not isinstance(node, type):
        settings = {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
    elif hasattr(node, "__dict__") and not isinstance(node, type) and not callable(node):
        settings = {key: value for key, value in vars(node).items() if not key.startswith("_")}
    else:
        raise TypeError(f"{argument}: expected a mapping, a namespace or an OmegaConf node, got {type(node).__name__}")
    for key in settings:
        if not isinstance(key, str):
            raise TypeError(f"{argument}: expected names as keys, got {key!r} ({type(key).__name__})")
    return settings


class Config(MutableMapping[str, Any]):
    """Nested settings: ``config.model.block_num`` and ``config["model"]["block_num"]`` are the same value.

    Stands in where scripts use LAVIS's ``Config.from_file`` or an OmegaConf node. A key that is also the name of a
    method (``items``, ``get``) is reached by item only.

    Parameters
    ----------
    settings : mapping, namespace, OmegaConf node or None
        The values; nested mappings become `Config` too. What is given is copied, not kept.
    **more
        Further values; they win.

    Examples
    --------
    >>> Config({"model": {"path": "demo"}}).model.path
    'demo'
    """

    _values: dict[str, Any]

    def __init__(self, settings: Any = None, **more: Any) -> None:
        object.__setattr__(self, "_values", {})
        for key, value in {**to_mapping(settings, "settings"), **more}.items():
            self[key] = value

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Config:
        """Read a YAML or JSON file.

        JSON needs no further package, YAML needs PyYAML (``pip install qavit[yaml]``).

        Parameters
        ----------
        path : str or path
            The file. ``"qavit_config_example.yaml"`` is found in the package when the working directory has no such
            file.

        Returns
        -------
        Config

        Raises
        ------
        FileNotFoundError
            When there is no such file.
        ImportError
            When the file is YAML and PyYAML is not installed.
        ValueError
            When the file is not UTF-8 text, not YAML or JSON, or holds no mapping at its top.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"path: expected a str or a path, got {type(path).__name__}")
        file = _find(Path(path))
        try:
            text = read_bytes(file, MAX_BYTES).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"path: {file} is not UTF-8 text ({error.reason} at byte {error.start})") from None
        try:
            values = _parse(text, file)
            if not isinstance(values, Mapping):
                raise ValueError(f"path: {file} must hold a mapping of names to values, found {type(values).__name__}")
            _check_size(values, file)
            return cls(values)
        except RecursionError:
            raise ValueError(f"path: {file} is nested too deeply") from None
        except TypeError as error:  # a key that is no name
            raise ValueError(f"path: {file}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain dictionaries and lists, copied."""
        return {key: _plain(value) for key, value in self._values.items()}

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if not isinstance(key, str):
            raise TypeError(f"Config: expected a name as key, got {key!r} ({type(key).__name__})")
        self._values[key] = _wrap(value)

    def __delitem__(self, key: str) -> None:
        del self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_values":
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            close = difflib.get_close_matches(name, self._values, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            known = ", ".join(self._values) or "nothing"
            raise AttributeError(f"Config has no {name!r} (it has {known}){hint}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self._values[name]
        except KeyError:
            raise AttributeError(f"Config has no {name!r}") from None

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._values})

    def __repr__(self) -> str:
        return f"Config({self.to_dict()!r})"

    def __getstate__(self) -> dict[str, Any]:
        return self.to_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        object.__setattr__(self, "_values", {key: _wrap(value) for key, value in state.items()})


def _wrap(value: Any) -> Any:
    """Nested mappings as Config, lists copied."""
    if isinstance(value, Mapping):
        return Config(value)
    if isinstance(value, (list, tuple)):
        return [_wrap(item) for item in value]
    return value


def _check_size(values: Any, file: Path) -> None:
    """Raise where there are too many values, those counted anew that YAML's references repeat."""
    waiting, count = [values], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MAX_VALUES:
            raise ValueError(f"path: {file} holds more than {MAX_VALUES} values")
        if isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple)):
            waiting.extend(value)


def _plain(value: Any) -> Any:
    """Config nodes as dictionaries again."""
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _find(path: Path) -> Path:
    """The file itself, or the one of that bare name that comes with the package."""
    if path.is_file():
        return path
    bundled = Path(__file__).parent / path.name
    if path == Path(path.name) and path.suffix in {".yaml", ".yml"} and bundled.is_file():
        _log.info("%s is not in the working directory: reading the one that comes with qavit", path)
        return bundled
    kind = "is a folder, not a file" if path.is_dir() else "does not exist"
    raise FileNotFoundError(f"path: {path} {kind}")


def _parse(text: str, file: Path) -> Any:
    """YAML or JSON text to values."""
    if file.suffix.lower() == ".json":
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"path: {file} is not JSON: {error}") from None
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError:
        raise ImportError(
            f"path: reading the YAML file {file} needs PyYAML, which is not installed: "
            "pip install 'qavit[yaml]' (a .json file needs nothing)"
        ) from None
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, AttributeError, IndexError, KeyError, OverflowError) as error:
        # PyYAML's constructors of dates and numbers raise what they stumble over.
        raise ValueError(f"path: {file} is not YAML: {error}") from None
