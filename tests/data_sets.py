"""Small data sets: pictures of noise, questions about them, and a model that is quick."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from small_models import write_qavit

WORDS = ("car", "dog", "red star", "bus on the left", "cup", "clock")


def write_model(folder: Path) -> Path:
    """9 patches, 3 blocks: a map takes well under a millisecond."""
    return write_qavit(folder, blocks=3, first=1, image_size=21, width=8)


def write_pictures(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(count)
    names = []
    for number in range(count):
        names.append(f"{number}.png")
        Image.fromarray(random.integers(0, 256, (24, 30 + number % 3, 3), np.uint8)).save(folder / names[-1])
    return names


def make_rows(names: Sequence[str], each: int, stride: int = 1) -> list[dict[str, Any]]:
    """`each` questions a picture; with a stride, those of one picture stand apart."""
    rows = [
        {"id": f"q{place * each + number}", "image": name, "question": f"where is the {WORDS[(place + number) % 6]}?"}
        for place, name in enumerate(names)
        for number in range(each)
    ]
    return [row for start in range(stride) for row in rows[start::stride]]


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def same_rows(first: Path, second: Path) -> int:
    """Two runs hold the same parts, row for row and bit for bit, but for the time they took; how many rows."""
    import pyarrow.parquet as parquet

    files = [sorted((folder / "parts").glob("*.parquet")) for folder in (first, second)]
    assert [path.name for path in files[0]] == [path.name for path in files[1]]
    rows = 0
    for one, other in zip(*files):
        tables = [parquet.read_table(path, partitioning=None).drop_columns(["seconds"]) for path in (one, other)]
        assert tables[0].equals(tables[1]), one.name
        rows += tables[0].num_rows
    return rows
