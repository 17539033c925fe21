"""What importing costs, and how large an installation is."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qavit


def loaded() -> set[str]:
    """The modules that importing qavit brings into a process."""
    code = "import sys; before = set(sys.modules); import qavit; print(*set(sys.modules) - before)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_takes_two_modules_of_its_own() -> None:
    assert {name for name in loaded() if name.split(".")[0] == "qavit"} == {"qavit", "qavit._core"}


def test_importing_loads_nothing_heavy() -> None:
    names = {name.split(".")[0] for name in loaded()}
    assert "numpy" in names
    heavy = {"matplotlib", "PIL", "tokenizers", "safetensors", "tqdm", "torch", "transformers", "huggingface_hub"}
    assert not names & heavy


def test_the_package_is_small() -> None:
    folder = Path(qavit.__file__).parent
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) < 45e6  # 30 MB, of which OpenBLAS is 25


def test_everything_it_needs_is_small() -> None:
    waiting, seen, total = ["numpy", "tokenizers", "matplotlib", "tqdm", "lazy_loader", "pillow"], set(), 0
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another Python or system
        if not found.files:
            pytest.skip(f"{name} does not say which files it installed")
        paths = [Path(str(found.locate_file(file))) for file in found.files]
        total += sum(path.stat().st_size for path in paths if path.is_file() and path.suffix != ".pyc")
        waiting += [m.group() for r in found.requires or () if "extra ==" not in r and (m := re.match(r"[\w.-]+", r))]
    assert total < 205e6  # 171 MB; with the package's own 45, below 250
