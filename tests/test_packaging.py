"""What is packed, and what it is said to need."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from test_build import orders

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "qavit"
#: Whose name is not that of their module.
MODULES = {"pillow": "PIL", "pyyaml": "yaml"}
#: What is imported only where the caller has it already: their tensors, their tables, their notebook, their HEIC pictures.
CALLERS_OWN = {"torch", "pandas", "IPython", "huggingface_hub", "pillow_heif"}
#: Not in pyproject's lists, and in every Python.
STANDARD = {*sys.stdlib_module_names, "qavit"}

pytest.importorskip("setuptools")
pytest.importorskip("scipy_openblas32")
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="the sources are not beside the tests")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """A wheel whose core a compiler made that does nothing."""
    folder = tmp_path_factory.mktemp("wheel")
    orders(folder, "bdist_wheel", "--dist-dir", str(folder / "dist"), "--bdist-dir", str(folder / "bdist"))
    with zipfile.ZipFile(next((folder / "dist").glob("*.whl"))) as made:
        yield made


def read(wheel: zipfile.ZipFile, ending: str) -> str:
    (name,) = (name for name in wheel.namelist() if name.endswith(ending))
    return wheel.read(name).decode()


def metadata(wheel: zipfile.ZipFile) -> Message:
    return Parser().parsestr(read(wheel, ".dist-info/METADATA"))


def test_a_wheel_holds_the_licences_of_what_lies_in_it(wheel: zipfile.ZipFile) -> None:
    assert any("openblas" in name for name in wheel.namelist() if name.startswith("qavit/.libs/"))
    about = metadata(wheel)
    assert about["License-Expression"] == "MIT AND BSD-3-Clause AND GPL-3.0-or-later WITH GCC-exception-3.1"
    assert sorted(about.get_all("License-File", [])) == ["LICENSE", "LICENSE-OpenBLAS.txt"]
    assert read(wheel, "/licenses/LICENSE") == (ROOT / "LICENSE").read_text()
    theirs = read(wheel, "/licenses/LICENSE-OpenBLAS.txt")
    for part in (
        "The OpenBLAS Project", "University of Tennessee", "Libgfortran is free software", "GNU GENERAL PUBLIC LICENSE",
        "GCC RUNTIME LIBRARY EXCEPTION",
    ):  # fmt: skip
        assert part in theirs


def test_a_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    built = re.compile(r"\.libs/|\.so$|\.dylib$|__pycache__/")
    here = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    packed = {name for name in wheel.namelist() if name.startswith("qavit/")}
    assert {name for name in packed if not built.search(name)} == {name for name in here if not built.search(name)}
    rest = {name for name in wheel.namelist() if name not in packed and ".dist-info/" not in name}
    names = ("qacap_vqa_fixed", "qavit_heatmap_demo")
    assert rest == {path for name in names for path in (f"{name}.py", f"{name}-stubs/__init__.pyi")}


def test_a_wheel_says_what_it_is_for(wheel: zipfile.ZipFile) -> None:
    about = metadata(wheel)
    assert about["Requires-Python"] == ">=3.10"
    minors = [entry.rpartition(".")[2] for entry in about.get_all("Classifier", []) if ":: 3." in entry]
    assert minors == ["10", "11", "12", "13", "14"]
    assert not {"test", "lint", "docs", "bench"} & set(about.get_all("Provides-Extra", []))


def test_a_source_distribution_can_be_built_from(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path), "sdist", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    core = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    package = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert core <= names
    assert {name for name in package if not name.endswith(".so") and "/.libs/" not in name} <= names
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md"} <= names
    assert not {name for name in names if name.startswith("tests/") or name.endswith((".so", ".o"))}


# ---- what is needed ----


def imported() -> set[str]:
    """Other projects' modules that qavit imports, by statement or by import_module and require."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module or "")
            elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called in ("import_module", "require"):
                    found.add(str(node.args[0].value))
    return {name.partition(".")[0] for name in found} - STANDARD


def module_of(requirement: str) -> str:
    name = re.split(r"[\[><=!~; ]", requirement)[0].lower()
    return MODULES.get(name, name.replace("-", "_"))


def test_requirements_are_what_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {module_of(each) for needs in project["optional-dependencies"].values() for each in needs}
    needed = {module_of(each) for each in project["dependencies"]}
    assert imported() - CALLERS_OWN == needed | extras
    assert not CALLERS_OWN & (needed | extras)


def test_a_source_folder_without_its_core_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "qavit").mkdir()
    for name in ("__init__.py", "__init__.pyi"):
        (tmp_path / "qavit" / name).write_bytes((PACKAGE / name).read_bytes())
    # -S: without the hooks of an installed qavit.
    path = os.pathsep.join([str(tmp_path), *(folder for folder in sys.path if Path(folder) != ROOT)])
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import qavit"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith(f"ImportError: qavit's core is not built in {tmp_path / 'qavit'}: run `pip install -e .`")
