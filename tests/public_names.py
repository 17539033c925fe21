"""The names that docs/REFERENCE.md promises."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import qavit

ROOT = Path(__file__).parent.parent


def documented() -> set[str]:
    """Dotted names of functions, classes, exceptions and tables."""
    text = (ROOT / "docs" / "REFERENCE.md").read_text(encoding="utf-8")
    names = set(re.findall(r"auto(?:class|function|exception|data):: ([\w.]+)", text))
    for module, members in re.findall(r"automodule:: ([\w.]+)\n   :members: (.*)", text):
        names |= {f"{module}.{member.strip()}" for member in members.split(",")}
    return names


def own_code(value: Any) -> Any:
    """The code of a function or property that is written in qavit/; None for others, as what dataclass makes."""
    if getattr(value, "__isabstractmethod__", False):
        return None  # nothing to run
    value = value.fget if isinstance(value, property) else getattr(value, "func", value)
    value = inspect.unwrap(getattr(value, "__func__", value))
    code = getattr(value, "__code__", None)
    return code if code and Path(qavit.__file__).parent in Path(code.co_filename).parents else None


def public_code() -> dict[str, Any]:
    """Name -> code of every documented function, and of every public method and property of a documented class."""
    found: dict[str, Any] = {}
    for name in documented():
        module, _, last = name.rpartition(".")
        value = getattr(importlib.import_module(module), last)
        if getattr(value, "_is_protocol", False):
            continue
        if inspect.isclass(value):
            members = {each: part for kind in reversed(value.__mro__) for each, part in vars(kind).items()}
            public = (each for each in members if not each.startswith("_") or each in ("__init__", "__call__"))
            found.update({f"{name}.{each}": own_code(members[each]) for each in public})
        else:
            found[name] = own_code(value)
    return {name: code for name, code in found.items() if code is not None}
