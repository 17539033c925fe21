"""Results in files: what is saved comes back, what is no such file is refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qavit
from qavit import HeatmapResult, Note

SCENE = Path(qavit.__file__).parent / "demo_model" / "scene.png"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[HeatmapResult, Path]:
    result = qavit.load("demo").heatmaps(SCENE, ["where is the red star?", "what color is the 星?"], block=8)
    return result, result.save(tmp_path_factory.mktemp("results") / "result.npz")


@pytest.mark.filterwarnings("ignore::qavit.UnknownWordsWarning")
def test_a_saved_result_comes_back_whole(saved: tuple[HeatmapResult, Path], tmp_path: Path) -> None:
    result, path = saved
    again = HeatmapResult.load(path)
    for name in ("maps", "raw", "picture"):
        np.testing.assert_array_equal(getattr(again, name), getattr(result, name))
        assert not getattr(again, name).flags.writeable
    for name in ("questions", "seen", "block", "method", "words", "answers", "notes", "scores", "heads"):
        assert getattr(again, name) == getattr(result, name), name
    assert again.notes[0].kind == "unknown_words"
    assert again.word_maps is not None
    assert result.word_maps is not None
    for one, other in zip(again.word_maps, result.word_maps, strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.block_maps is None
    assert again.head_maps is None
    assert result.block_maps is not None
    assert result.head_maps is not None
    whole = HeatmapResult.load(result.save(tmp_path / "blocks.npz"))
    np.testing.assert_array_equal(whole.block_maps, result.block_maps)
    np.testing.assert_array_equal(whole.head_maps, result.head_maps)
    np.testing.assert_array_equal(whole.at(3).raw, result.at(3).raw)
    assert whole.blocks == result.blocks
    assert whole.to_dict() == result.to_dict()
    scored = HeatmapResult(result.maps, result.questions, result.picture, block=(3, 4), scores=[0.5, 0.25], heads=2)
    back = HeatmapResult.load(scored.save(tmp_path / "scored.npz"))
    assert (back.block, back.scores.tolist() if back.scores is not None else None) == ((3, 4), [0.5, 0.25])
    assert back.heads == 2
    (tmp_path / "old.npz").write_bytes(changed(saved[1], heads=None))  # of a qavit that did not say
    assert HeatmapResult.load(tmp_path / "old.npz").heads == "mean"


def changed(path: Path, **changes: Any) -> bytes:
    """The file with other arrays; None leaves one out, bytes are put in as they are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in {*old.namelist(), *(f"{name}.npy" for name in changes)}:
            value = changes.get(name.removesuffix(".npy"), ...)
            if value is ...:
                new.writestr(name, old.read(name))
            elif isinstance(value, bytes):
                new.writestr(name, value)
            elif value is not None:
                member = io.BytesIO()
                np.save(member, np.asarray(value), allow_pickle=True)
                new.writestr(name, member.getvalue())
    return buffer.getvalue()


def header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    """An array file that promises more than it holds."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + b"\0" * 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"maps": None}, "maps is missing"),
        ({"qavit_heatmaps": None}, "qavit_heatmaps is missing"),
        ({"qavit_heatmaps": 2}, "format is 2"),
        ({"maps": np.zeros((2, 3))}, "maps: expected numbers with 3 axes"),
        ({"maps": np.full((2, 12, 12), np.nan)}, "NaN"),
        ({"raw": np.zeros((2, 5, 5))}, "raw: shape"),
        ({"maps": np.array([{}, []], object)}, "maps is no array"),
        ({"maps": header((1 << 40, 12, 12))}, "maps is float32 of shape"),
        ({"maps": header((-1, 12, 12))}, "maps"),
        ({"maps": b"no array"}, "HeatmapResult.save wrote"),
        ({"maps": b"\x93NUMPY\x01\x00\x20\x00{'descr': __import__('os')}    "}, "HeatmapResult.save wrote"),
        ({"picture": np.zeros(100, np.uint8)}, "image"),
        ({"picture_size": [3, 3]}, "its picture has"),
        ({"questions": [1, 2]}, "questions are int64"),
        ({"questions": ["one"]}, "questions: 1 entries for 2 maps"),
        ({"words": "not json"}, "HeatmapResult.save wrote"),
        ({"words": "[" * 100_000}, "HeatmapResult.save wrote"),
        ({"words": '[["a"], ["b"], ["c"]]'}, "words"),
        ({"answers": "[[[1, 2]], []]"}, "a text is int"),
        ({"notes": '[["kind"]]'}, "HeatmapResult.save wrote"),
        ({"region": [0, 0, 0, 0]}, "seen: .* is empty"),
        ({"region": [0, 0]}, "HeatmapResult.save wrote"),
        ({"block_maps": np.zeros((4, 1, 1, 1)), "blocks": [0]}, "block_maps: shape"),
        ({"scores": np.zeros(7)}, "scores: 7 entries"),
        ({"head_maps": np.zeros((2, 4, 5, 5))}, "head_maps: shape"),
        ({"heads": "[1]"}, r"heads are \[1\]"),
        ({"heads": "true"}, "heads are True"),
    ],
)
def test_files_that_are_not_results(
    saved: tuple[HeatmapResult, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "hostile.npz"
    path.write_bytes(changed(saved[1], **changes))
    with pytest.raises(ValueError, match=message) as raised:
        HeatmapResult.load(path)
    assert "hostile.npz" in str(raised.value)


def test_cut_and_foreign_files(saved: tuple[HeatmapResult, Path], tmp_path: Path) -> None:
    whole = saved[1].read_bytes()
    for content in (b"", b"PK", whole[: len(whole) // 2], b"\x89PNG\r\n", whole[:200] + b"\xff" * 400 + whole[600:]):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.npz: not a file of heatmaps"):
            HeatmapResult.load(tmp_path / "bad.npz")
    with pytest.raises(FileNotFoundError):
        HeatmapResult.load(tmp_path / "none.npz")


def test_a_bomb_is_not_unpacked(saved: tuple[HeatmapResult, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qavit.heatmaps._archive.MAX_BYTES", 1 << 20)
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, zipfile.ZipFile(saved[1]) as old:
        for name in old.namelist():
            archive.writestr(name, header((1 << 22,)) + b"\0" * (1 << 24) if name == "maps.npy" else old.read(name))
    with pytest.raises(ValueError, match="take more than 1048576 bytes"):
        HeatmapResult.load(path)


def test_notes_survive_and_follow_their_questions(saved: tuple[HeatmapResult, Path]) -> None:
    result = HeatmapResult.load(saved[1])
    assert [note.question for note in result.notes] == [1]
    assert result[0].notes == ()
    assert result[1].notes == (Note(result.notes[0].kind, result.notes[0].text, 0),)
