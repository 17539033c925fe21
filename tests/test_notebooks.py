"""The notebooks run, and what is committed of them is whole, small and offline."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    kinds = [output.output_type for cell in code for output in cell.outputs]
    assert "error" not in kinds
    shown = [output.data for cell in code for output in cell.outputs if "data" in output]
    assert any("image/jpeg" in data for data in shown)
    # scripts/notebooks.py makes pictures small; and no figure is there by its name alone.
    assert not any("image/png" in data for data in shown)
    assert not any("<Figure" in data.get("text/plain", "") and "image/jpeg" not in data for data in shown)
    assert path.stat().st_size < 500_000
    text = path.read_text(encoding="utf-8")
    assert "/home/" not in text
    assert str(FOLDER.parent) not in text


#: Runs a notebook's code cell by cell, in a Python that has no Jupyter; what is not needed by the wheel is refused.
ALONE = """
import importlib.util, json, sys
import matplotlib
matplotlib.use("Agg")

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "safetensors", "scipy", "pandas", "pyarrow", "IPython"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refused())
names = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), sys.argv[1], "exec"), names)
"""


def run_alone(python: str, path: Path, place: Path, **environment: str) -> None:
    """Run a notebook's code outside of the checkout."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    command = [python, "-W", "ignore", "-c", ALONE, str(path)]
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_quick_start_needs_what_the_wheel_needs(tmp_path: Path) -> None:
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "qavit").symlink_to(FOLDER.parent / "qavit", target_is_directory=True)
    run_alone(sys.executable, FOLDER / "quickstart.ipynb", tmp_path, PYTHONPATH=str(tmp_path / "installed"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_notebook_names_what_a_wheel_lacks(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    imported = set(re.findall(r"^(?:from|import) (\w+)", code, re.M))  # those that stand in an `if` have their reason there
    assert imported <= {*sys.stdlib_module_names, "qavit", "numpy", "matplotlib"}
    assert "../" not in code
    assert "demo_model" not in code


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare environment with a wheel of this checkout."""
    folder = tmp_path_factory.mktemp("bare")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(FOLDER.parent)]
    subprocess.run(wheel, check=True)
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "-q", "--disable-pip-version-check", "install"]
    if subprocess.run([*install, *map(str, folder.glob("*.whl"))], check=False).returncode:
        pytest.skip("what the wheel needs is not to be had")
    return python


@pytest.mark.nightly
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_a_wheel_alone(path: Path, bare: Path, tmp_path: Path) -> None:
    run_alone(str(bare), path, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipykernel")
    root = str(FOLDER.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")])))
    # Nothing may be fetched while it runs.
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    notebook: Any = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    assert len(nbformat.writes(notebook)) < 500_000
