"""Configuration files: nested mappings that are read by item or by attribute, without LAVIS."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from .small_files import parse_json, read_bytes

MAX_BYTES, MAX_VALUES = 1 << 20, 100_000
_EXAMPLES = Path(__file__).parents[1] / "lavis"


def to_mapping(node: Any, argument: str = "config") -> dict[str, Any]:
    """A mapping, Config, OmegaConf node, namespace, dataclass instance or None as a dictionary, one level deep.

    Raises
    ------
    TypeError
        It is none of these, or a key is not a string; `argument` is the name that the message gives it.
    """
    if node is None:
        return {}
    if isinstance(node, Mapping):
        settings = {key: node[key] for key in node}
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
        self.update(to_mapping(settings, "settings"), **more)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Config:
        """Read a JSON file, or a YAML file where PyYAML is installed (``pip install qavit[yaml]``).

        Parameters
        ----------
        path : str or path
            ``"qavit_config_example.yaml"`` is found in the package when the working directory has no such file.

        Raises
        ------
        FileNotFoundError, ImportError, ValueError
            There is no such file; PyYAML is missing; it holds no YAML or JSON, or no mapping of names at its top.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"path: expected a str or a path, got {type(path).__name__}")
        file, bundled = Path(path), _EXAMPLES / Path(path).name
        if not file.is_file() and file == Path(file.name) and file.suffix in {".yaml", ".yml"} and bundled.is_file():
            file = bundled
        if not file.is_file():
            raise FileNotFoundError(f"path: {file} {'is a folder, not a file' if file.is_dir() else 'does not exist'}")
        data = read_bytes(file, MAX_BYTES)
        try:
            values = parse_json(data, str(file)) if file.suffix.lower() == ".json" else _parse_yaml(data, file)
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
        return {key: _copied(value, Config.to_dict) for key, value in self._values.items()}

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if not isinstance(key, str):
            raise TypeError(f"Config: expected a name as key, got {key!r} ({type(key).__name__})")
        self._values[key] = _copied(value, Config)

    def __delitem__(self, key: str) -> None:
        del self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> Any:
        if name in self._values:
            return self._values[name]
        close = difflib.get_close_matches(name, self._values, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise AttributeError(f"Config has no {name!r} (it has {', '.join(self._values) or 'nothing'}){hint}")

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self._values:
            raise AttributeError(f"Config has no {name!r}")
        del self[name]

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._values})

    def __repr__(self) -> str:
        return f"Config({self.to_dict()!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.to_dict(),)


def _copied(value: Any, of_mapping: Any) -> Any:
    """A value with its lists copied and its mappings turned into what is wanted."""
    if isinstance(value, Mapping):
        return of_mapping(value)
    return [_copied(item, of_mapping) for item in value] if isinstance(value, (list, tuple)) else value


def _check_size(values: Any, file: Path) -> None:
    """Raise where there are too many values, those counted anew that YAML's references repeat."""
    waiting, count = [values], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MAX_VALUES:
            raise ValueError(f"path: {file} holds more than {MAX_VALUES} values")
        if isinstance(value, (Mapping, list, tuple)):
            waiting.extend(value.values() if isinstance(value, Mapping) else value)


def _parse_yaml(data: bytes, file: Path) -> Any:
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError:
        raise ImportError(
            f"path: reading the YAML file {file} needs PyYAML, which is not installed: "
            "pip install 'qavit[yaml]' (a .json file needs nothing)"
        ) from None
    try:
        return yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, AttributeError, IndexError, KeyError, OverflowError) as error:
        # PyYAML's constructors of dates and numbers raise what they stumble over.
        raise ValueError(f"path: {file} is not YAML: {error}") from None
