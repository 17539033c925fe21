"""Small models that write: a captioner, a reader, BLIP-VQA of stand-in weights, and QA-ViT with its decoder."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import qavit

GOLDEN = Path(__file__).parent / "data" / "golden"
CONTEXTS = ["a street with two dogs", "the red car is on the left", "a man and a woman"]
QUESTIONS = ["where is the red star?", "what is the man holding?", "is the dog on the left?", "how many birds are there?"]


@cache
def files(kind: str) -> dict[str, Any]:
    """The arguments of `qavit.load` for "blip_caption", "reader", "blip_vqa" or "qavit"."""
    if kind == "qavit":
        folder = GOLDEN / "qavit_answer"
        sources = {"checkpoint": folder / "checkpoint.pth", "vision": folder / "clip", "text": folder / "t5"}
        return {**sources, "config": {"lora_alpha": 8}}
    return qavit.stand_in_weights(kind, place())


@cache
def place() -> Path:
    """A folder that `clean_up` removes."""
    return Path(tempfile.mkdtemp(prefix="qavit-writers-"))


def clean_up() -> None:
    """Remove what was made; what was loaded of it stays usable."""
    shutil.rmtree(place())
    place.cache_clear()
    files.cache_clear()
    writer.cache_clear()


@cache
def writer(kind: str, precision: str = "float32") -> Any:
    """A model that is shared by all who ask."""
    return qavit.load(**files(kind), precision=precision)


def picture(number: int, side: int = 40) -> np.ndarray:
    """One of many pictures [side, side + 9, 3] of squares of one colour."""
    squares = np.random.default_rng(number).integers(0, 256, (5, 7, 3), np.uint8)
    rows, columns = np.arange(side) * 5 // side, np.arange(side + 9) * 7 // (side + 9)
    return np.ascontiguousarray(squares[rows][:, columns])
