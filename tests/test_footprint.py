"""What importing costs, and how large an installation is."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qavit


def own_milliseconds() -> float:
    """Of importing qavit: its own modules', NumPy and the standard library not counted."""
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", "import qavit"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(qavit\S*)", done.stderr)
    assert {"qavit", "qavit._core"} <= {name for _, name in lines}
    return sum(int(own) for own, _ in lines) / 1000


def test_importing_is_quick() -> None:
    # 3 ms on an idle machine; the least of several, for one that is not
    assert min(own_milliseconds() for _ in range(5)) < 30


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, qavit; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "numpy" in loaded
    heavy = {"matplotlib", "PIL", "tokenizers", "safetensors", "tqdm", "torch", "transformers", "huggingface_hub"}
    assert not loaded & heavy


def test_the_package_is_small() -> None:
    folder = Path(qavit.__file__).parent
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) < 45e6  # 30 MB, of which OpenBLAS is 25


def test_everything_it_needs_is_small() -> None:
    waiting, seen, total = ["numpy", "tokenizers", "safetensors", "matplotlib", "tqdm"], set(), 0
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
