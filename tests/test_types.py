"""What type checkers say of users' code: the documents' is right, and what is wrong is found."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GIVEN = "from typing import Any\n\nimport numpy as np\n\nimages: Any\nquestions: list[str]\npnp_vqa_model: Any\n"
RIGHT = '''
import numpy as np
from collections.abc import Iterator
from PIL import Image

import qavit

model = qavit.load("demo", precision="bfloat16")
for picture in ("a.png", b"...", Image.new("RGB", (2, 2)), np.zeros((2, 2, 3), np.uint8), open("a.png", "rb")):
    result: qavit.HeatmapResult = model.heatmaps(picture, "where?", method="question", heads=2, block=range(2), fit="pad")
results: Iterator[qavit.HeatmapResult] = model.stream(["a.png"], "where?")
maps = model.heatmaps("a.png", method=lambda raw: raw[:, 0, 0, 1:]).maps
largest: float = result.top_patches(1)[0][0].value
index: int = result.top_patches(1)[0][0].index
edge: float = result.seen.left
logits, probability = model.itm("a.png", ["a", "b"])
attention = model.extract_attention("a.png", "where?", heads=None)
names: list[str] | None = model.answer_names
for note in result.at(3).notes:
    kind: str = note.kind
'''
#: A wrong use, and what of it is said.
WRONG = {
    'qavit.laod("demo")': 'no attribute "laod"',
    'qavit.load("demo", precision="bf16")': "precision",
    'model.heatmaps("a.png", "where?", method="rollup")': "method",
    'model.heatmaps("a.png", "where?", heads="median")': "heads",
    'model.heatmaps("a.png", "where?", fit="zoom")': "fit",
    'model.heatmaps("a.png", "where?", readout="class")': "readout",
    "model.heatmaps(3)": "Argument 1 .* incompatible type",
    "result.maps = result.raw": "read-only|property|frozen",
    'result.upsample(resampling="cubic")': "resampling",
    'result.normalized("l2")': "Argument 1",
    "result.picture_size.height": "height",
    "model.heads": "heads",
}


def mypy(folder: Path, code: str) -> str:
    """What mypy --strict says of a user's file."""
    (folder / "user.py").write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--config-file="]
    command.append(f"--cache-dir={folder}/cache")
    env = {**os.environ, "MYPYPATH": str(ROOT)}
    return subprocess.run([*command, "user.py"], cwd=folder, capture_output=True, text=True, check=False, env=env).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all, as mypy's cache is in it."""
    pytest.importorskip("mypy")
    return tmp_path_factory.mktemp("types")


def test_right_code_is_right(folder: Path) -> None:
    assert mypy(folder, RIGHT) == ""


@pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="the documents are not beside the tests")
def test_the_code_of_the_documents_is_right(folder: Path) -> None:
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/USAGE.md")]
    blocks = [block for text in texts for block in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)]
    assert len(blocks) >= 10
    assert mypy(folder, "\n".join([GIVEN, *blocks])) == ""


def test_wrong_code_is_found(folder: Path) -> None:
    begin = 'import qavit\n\nmodel = qavit.load("demo")\nresult = model.heatmaps("a.png")\n'
    first = begin.count("\n") + 1
    said = mypy(folder, begin + "\n".join(WRONG) + "\n")
    for number, (code, named) in enumerate(WRONG.items(), first):
        (found, *_) = re.findall(rf"user\.py:{number}: error: (.*)", said) or [""]
        assert re.search(named, found), f"{code}: {found!r}"


def test_pyright_finds_a_mistyped_name(folder: Path) -> None:
    checker = shutil.which("pyright")
    if checker is None:
        pytest.skip("pyright is not installed")
    (folder / "mistyped.py").write_text('import qavit\n\nqavit.laod("demo")\n')
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([checker, "mistyped.py"], cwd=folder, capture_output=True, text=True, check=False, env=env)
    assert '"laod"' in done.stdout
