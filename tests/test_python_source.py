"""What every file of qavit/ keeps to, checked on its text: layers, no circles, sizes, and which names are public."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from public_names import documented

import qavit

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "qavit"
MAX_LINES, MAX_FUNCTION = 600, 80

#: Lowest first; an import, in whatever part of a file, goes to its own room or down.
FLOORS = (
    {"_core", "_core_testing"}, {"_base"}, {"images", "text"}, {"heatmaps"}, {"plots"}, {"_result"}, {"checkpoints"},
    {"methods"}, {"generation"}, {"models"}, {"metrics"}, {"answers"},
    {"_demo", "_stand_ins"}, {"data"}, {"lavis"}, {"_heatmap_demo"}, {"serve"}, {"cli"}, {"", "__main__"},
)  # fmt: skip
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
#: Rooms whose modules without an underscore are documented places to add to, one file each.
EXTENSION_POINTS = ("qavit.checkpoints.formats", "qavit.checkpoints.towers", "qavit.methods")

pytestmark = pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="the sources are not beside the tests")


class Import(NamedTuple):
    """One module needs another, at a line of the first."""

    module: str
    line: int
    needs: str


class Sources:
    """The modules below a folder, by dotted name, and what their imports lead to."""

    def __init__(self, files: dict[str, str]) -> None:
        """Take files by their path from the folder that holds the package, as `qavit/text.py`."""
        self.files = {name: text for name, text in files.items() if name.endswith(".py")}
        self.modules = {self.dotted(name): name for name in files if name.endswith(".py")}
        self.compiled = {self.dotted(name) for name in files if name.endswith(".pyi")} - set(self.modules)
        self.stubs = {self.dotted(name): ast.parse(text) for name, text in files.items() if name.endswith("__init__.pyi")}

    @staticmethod
    def dotted(name: str) -> str:
        return re.sub(r"(/__init__)?\.pyi?$", "", name).replace("/", ".")

    def base(self, name: str, node: ast.ImportFrom) -> str:
        """The absolute name behind `from`."""
        if node.level == 0:
            return node.module or ""
        parts = self.dotted(name).split(".")
        up = node.level - (1 if re.search(r"/__init__\.pyi?$", name) else 0)
        return ".".join([*parts[: len(parts) - up], *([node.module] if node.module else [])])

    def home(self, package: str, name: str) -> str:
        """The module that a name of a package comes from."""
        if f"{package}.{name}" in self.modules or f"{package}.{name}" in self.compiled:
            return f"{package}.{name}"
        for node in ast.walk(self.stubs.get(package, ast.Module([], []))):
            if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
                return self.home(self.base(package.replace(".", "/") + "/__init__.pyi", node), name)
        return package

    def imports(self) -> Iterator[Import]:
        """Every import of one module of the package by another: within functions and for type checkers, too."""
        for name, text in self.files.items():
            module = self.dotted(name)
            for node in ast.walk(ast.parse(text)):
                found: list[str] = []
                if isinstance(node, ast.Import):
                    found = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    found = [self.home(self.base(name, node), alias.name) for alias in node.names]
                for needs in found:
                    if needs.split(".")[0] == "qavit" and needs != module:
                        yield Import(module, getattr(node, "lineno", 0), needs)

    def climbing(self) -> list[str]:
        """Imports that go up."""
        return [
            f"{module}:{line} imports {needs}"
            for module, line, needs in self.imports()
            if room(needs) != room(module) and FLOOR[room(needs)] >= FLOOR[room(module)]
        ]

    def circle(self) -> list[str]:
        """Modules that need each other, one after the other; empty if there are none."""
        below: dict[str, set[str]] = {}
        for module, _, needs in self.imports():
            below.setdefault(module, set()).add(needs)
        done: set[str] = set()

        def walk(module: str, path: list[str]) -> list[str]:
            if module in path:
                return path[path.index(module) :]
            if module not in done:
                for needs in sorted(below.get(module, ())):
                    found = walk(needs, [*path, module])
                    if found:
                        return found
                done.add(module)
            return []

        return next((found for module in sorted(below) if (found := walk(module, []))), [])

    def sizes(self) -> list[str]:
        """Files and functions that are too long; docstrings do not count for functions."""
        found = []
        for name, text in self.files.items():
            lines = text.count("\n")
            found += [f"{name}: {lines} lines"] if lines > MAX_LINES else []
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    first = node.body[0]
                    described = ast.get_docstring(node) is not None
                    said = (first.end_lineno or 0) - first.lineno + 1 if described else 0
                    long = (node.end_lineno or 0) - node.lineno + 1 - said
                    found += [f"{name}:{node.lineno}: {node.name} has {long} lines"] if long > MAX_FUNCTION else []
        return found


def room(module: str) -> str:
    """The folder or file below qavit that a module is in."""
    return f"{module}.".split(".")[1]


def sources() -> Sources:
    paths = [path for pattern in ("*.py", "*.pyi") for path in PACKAGE.rglob(pattern)]
    return Sources({path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths})


def test_imports_go_down() -> None:
    assert sources().climbing() == []


def test_no_modules_need_each_other() -> None:
    assert sources().circle() == []


def test_files_and_functions_can_be_read_at_once() -> None:
    assert sources().sizes() == []


@pytest.mark.parametrize(
    ("files", "climbing", "circle"),
    [
        ({"qavit/text.py": "from . import cli\n", "qavit/cli/__init__.py": ""}, ["qavit.text:1 imports qavit.cli"], []),
        ({"qavit/text.py": "def f():\n    from .data import run\n"}, ["qavit.text:2 imports qavit.data"], []),
        ({"qavit/images.py": "import qavit\n"}, ["qavit.images:1 imports qavit"], []),
        ({"qavit/images.py": "from .text import a\n"}, ["qavit.images:1 imports qavit.text"], []),
        ({"qavit/data/_a.py": "from .. import _core\n", "qavit/_core.pyi": ""}, [], []),
        (
            {
                "qavit/text.py": "if TYPE_CHECKING:\n    from .data import run\n", "qavit/data/__init__.py": "",
                "qavit/data/__init__.pyi": "from ._run import run as run\n", "qavit/data/_run.py": "from ..text import a\n",
            },
            ["qavit.text:2 imports qavit.data._run"], ["qavit.data._run", "qavit.text"],
        ),
        (
            {"qavit/data/_a.py": "from ._b import b\n", "qavit/data/_b.py": "def f():\n    from . import _a\n"},
            [], ["qavit.data._a", "qavit.data._b"],
        ),
    ],
)  # fmt: skip
def test_the_layers_see_what_breaks_them(files: dict[str, str], climbing: list[str], circle: list[str]) -> None:
    assert (Sources(files).climbing(), Sources(files).circle()) == (climbing, circle)


def test_the_sizes_see_what_breaks_them() -> None:
    long = 'def f():\n    """Two\n    lines."""\n' + "    g()\n" * 79
    assert Sources({"qavit/text.py": long}).sizes() == []
    assert Sources({"qavit/text.py": long + "    g()\n"}).sizes() == ["qavit/text.py:1: f has 81 lines"]
    assert Sources({"qavit/text.py": "a = 1\n" * 601}).sizes() == ["qavit/text.py: 601 lines"]


# ---- what is public ----


def packages() -> list[str]:
    return sorted(name for name in sources().stubs if not any(part.startswith("_") for part in name.split(".")))


@pytest.mark.parametrize("name", packages())
def test_a_package_has_the_names_of_its_stub(name: str) -> None:
    stub = sources().stubs[name]
    imported = [alias.asname or alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    (listed,) = (ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign))
    package = importlib.import_module(name)
    assert sorted(listed) == sorted(imported)
    assert sorted(package.__all__) == sorted(listed)
    for each in listed:
        assert getattr(package, each) is not None


def test_the_reference_and_the_packages_have_the_same_names() -> None:
    listed = {f"{name}.{each}" for name in packages() for each in importlib.import_module(name).__all__}
    modules = sources().modules
    outside = {name for name in documented() if name.rpartition(".")[0] not in packages()}
    for name in outside:  # of modules that are files
        module, _, each = name.rpartition(".")
        assert hasattr(importlib.import_module(module), each), name
        assert module in modules or (ROOT / f"{module}.py").exists(), name
    assert documented() - outside <= listed, "documented, and in no package's list"
    assert {name for name in listed if name.count(".") == 1} - documented() == {"qavit.__version__"}


def test_what_is_not_public_begins_with_an_underscore() -> None:
    public = {name.rpartition(".")[0] for name in documented()} | {"qavit.cli", "qavit.__main__", *packages()}
    seen = {about.name for about in pkgutil.walk_packages(qavit.__path__, "qavit.")}
    plain = {name for name in seen if not any(part.startswith("_") for part in name.split("."))}
    unknown = {name for name in plain - public if not name.startswith(EXTENSION_POINTS)}
    assert not unknown
