"""Weights that stand in for published ones: each kind loads and answers its calls, the same every time."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qavit
from qavit._stand_ins import KINDS


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """Random models know few words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", qavit.QavitWarning)
        yield


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_kind_loads_as_what_it_is(kind: str, tmp_path: Path) -> None:
    arguments = qavit.stand_in_weights(kind, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {kind}
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 12_000_000
    model = qavit.load(**arguments)
    assert model.kind == kind
    with pytest.raises(FileExistsError, match="not empty"):
        qavit.stand_in_weights(kind, tmp_path)


def test_maps_answers_and_captions() -> None:
    models = {kind: qavit.load(**qavit.stand_in_weights(kind)) for kind in KINDS}
    scene = qavit.demo_scene()
    for kind in ("clip", "qavit", "blip_vqa", "blip_itm"):
        result = models[kind].heatmaps(scene.picture, scene.questions[:2])
        assert result.maps.shape == (2, *models[kind].grid)
        assert not np.array_equal(result.maps[0], result.maps[1])  # the text matters, whatever it means
        assert result.maps.std() > 0
    assert models["blip_vqa"].answer(scene.picture, scene.questions[0], max_new_tokens=3)[0].text
    pipeline = qavit.PNPVQA(models["blip_itm"], models["blip_caption"], models["reader"])
    found = pipeline.explain(scene.picture, scene.questions[0], num_captions=3)
    assert len(found.captions) == 3
    assert found.attended is not None


def test_the_same_every_time(tmp_path: Path) -> None:
    def content(name: str) -> dict[str, str]:
        folder = tmp_path / name
        qavit.stand_in_weights("clip", folder)
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}

    assert content("one") == content("two")


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind: got 'dino', expected 'clip', "):
        qavit.stand_in_weights("dino")
    (tmp_path / "taken").write_text("")
    with pytest.raises(NotADirectoryError, match=r"folder: .* is a file"):
        qavit.stand_in_weights("clip", tmp_path / "taken")


def test_a_text_of_nothing_is_told(tmp_path: Path) -> None:
    model = qavit.load(**qavit.stand_in_weights("clip", tmp_path))
    with pytest.warns(qavit.UnknownWordsWarning, match="the text is empty: its map is of no text"):
        result = model.heatmaps(qavit.demo_scene().picture, ["a dog", " "])
    assert [(note.kind, note.question) for note in result.notes if note.kind == "unknown_words"] == [("unknown_words", 1)]


def test_advice_on_heads_can_be_followed(tmp_path: Path) -> None:
    given = qavit.stand_in_weights("blip_itm", tmp_path)
    with pytest.raises(ValueError, match=r"give config=\{'vision': \{'num_attention_heads': \.\.\.\}\}"):
        qavit.load(**{**given, "config": {}})
    halves = {half: {"num_attention_heads": 4} for half in ("vision", "text")}
    assert qavit.load(**{**given, "config": halves}).kind == "blip_itm"
