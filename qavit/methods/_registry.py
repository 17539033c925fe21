"""The methods that there are."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, Union

from .._base.arguments import nearest
from .._base.types import FloatArray, MethodName
from ._look import Readable
from .base import Method
from .custom import Custom

#: What ``method=`` takes.
MethodLike = Union[MethodName, Method, Callable[[FloatArray], Any]]


@functools.cache
def all_methods() -> dict[str, Method]:
    """Every method of this folder's files, by name; those that models read by default come first."""
    package = __name__.rpartition(".")[0]
    paths = importlib.import_module(package).__path__
    found: dict[str, Method] = {}
    for about in sorted(pkgutil.iter_modules(paths), key=lambda about: about.name):
        method = getattr(importlib.import_module(f"{package}.{about.name}"), "METHOD", None)
        if isinstance(method, Method):
            found[method.name] = method
    return found


def methods_of(model: Readable) -> tuple[str, ...]:
    """The names of the methods that suit a model."""
    return tuple(name for name, method in all_methods().items() if method.suits(model))


def method_of(method: Any, model: Readable) -> Method:
    """A method by its name, or one of the caller's; ValueError or TypeError for one that the model does not have."""
    if isinstance(method, str):
        known = methods_of(model)
        if method not in known:
            others = " or a function" if "attention" in model.reads else ""
            hint = all_methods()[method].lacks(model) if method in all_methods() else ""
            near = "" if method in all_methods() else nearest(method, known)
            said = f"; {hint}" if hint else f"; did you mean {near!r}?" if near else ""
            raise ValueError(f"method: got {method!r}; this model has {', '.join(map(repr, known))}{others}{said}")
        return all_methods()[method]
    if not isinstance(method, Method) and not callable(method):
        raise TypeError(f"method: expected a name, a Method or a function, got {type(method).__name__}")
    chosen = method if isinstance(method, Method) else Custom(method)
    if not chosen.suits(model):
        given = ", ".join(sorted(model.reads))
        raise ValueError(f"method: {chosen.name} needs what this model does not give; it gives {given}")
    return chosen
