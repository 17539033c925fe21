"""Pictures of noise, models of the public codes' small weights, and results that must be alike to the last bit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qavit

GOLDEN = Path(__file__).parent / "data" / "golden"
TEXTS = ["a dog", "the cat's ear", "a photo of a red car on the left"]
#: Of words that the answering model knows.
ASKED = ["what is on the left?", "is the dog blue", "where is the red car on the right?"]


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (60, 50, 3), np.uint8)


def alike(one: Any, other: Any) -> None:
    """To the last bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            alike(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for first, second in zip(one, other):
            alike(first, second)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()
    else:
        assert one == other


def told(result: qavit.HeatmapResult) -> list[Any]:
    """All that a result says."""
    words = [] if result.words is None else result.word_maps
    return [result.maps, result.raw, result.scores, result.answers, words, [note.text for note in result.notes]]


def text_model(name: str, **options: Any) -> Any:
    """A model of the public code's small weights, whose text half looks at the picture."""
    place = GOLDEN / name
    facts = json.loads((place / "cases.json").read_text())
    config = {"text": facts["med_config"], "vision": facts["vit"]}
    return qavit.load(
        checkpoint=place / "checkpoint.pth", tokenizer=place / "vocab.txt", image_size=32, config=config, **options
    )


def matcher(name: str, **options: Any) -> Any:
    """ALBEF or BLIP-2 of the public code's small weights."""
    place = GOLDEN / name
    facts = json.loads((place / "cases.json").read_text())
    config = {"vision": facts["vision"], "text": facts["qformer" if name == "blip2_itm" else "bert"]}
    return qavit.load(checkpoint=place / "checkpoint.pth", tokenizer=place / "vocab.txt", config=config, **options)


@pytest.fixture(scope="session")
def answering_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BLIP-VQA in a folder, which was written long ago."""
    pytest.importorskip("transformers")
    from test_blip_vqa import answering

    folder = tmp_path_factory.mktemp("answering")
    answering(7, folder)
    for file in folder.iterdir():
        os.utime(file, (1e9, 1e9))
    return folder
