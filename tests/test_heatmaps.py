"""Methods and the result object."""

from __future__ import annotations

import builtins
import copy
import dataclasses
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qavit import HeatmapResult
from qavit.heatmaps import map_statistics, normalize_maps, resample_map, to_distribution
from qavit.images import Region
from qavit.methods import merge_heads, read_class, read_custom, read_question, read_words


def attention(batch: int = 2, heads: int = 3, patches: int = 6, tokens: int = 4, seed: int = 0) -> Any:
    """Random attention [B, h, T, M + T] whose rows sum to 1."""
    values = np.random.default_rng(seed).random((batch, heads, patches + 1, tokens + patches + 1)).astype(np.float32)
    return values / values.sum(-1, keepdims=True)


def result(**changes: Any) -> HeatmapResult:
    """Three questions on a 3 x 4 grid over the middle of a 90 x 60 picture."""
    maps = np.random.default_rng(1).random((3, 3, 4)).astype(np.float32)
    parts: dict[str, Any] = {
        "maps": maps / maps.sum(axis=(1, 2), keepdims=True),
        "questions": ["one?", "two?", "three?"],
        "picture": np.random.default_rng(2).integers(0, 256, (60, 90, 3), dtype=np.uint8),
        "seen": Region(10.0, 0.0, 70.0, 60.0),
        "block": 7,
        "words": [["a", "b"], ["c"], []],
        "word_maps": [np.ones((2, 3, 4)), np.ones((1, 3, 4)), np.zeros((0, 3, 4))],
        "answers": [[("yes", 0.75), ("no", 0.25)]] * 3,
    }
    return HeatmapResult(**{**parts, **changes})


# ---- methods ----


def test_read_class_is_the_class_row_over_patches() -> None:
    raw = attention()
    before = raw.copy()
    expected = raw[:, :, 0, 5:].mean(1)
    expected /= expected.sum(-1, keepdims=True)
    assert np.allclose(read_class(raw, 4), expected, atol=1e-7)
    assert np.allclose(read_class(raw[:, :, :1], 4), expected, atol=1e-7)
    assert np.array_equal(read_class(raw), read_class(raw, 4))
    assert np.array_equal(raw, before)
    each = read_class(raw, 4, heads=None)
    assert each.shape == (2, 3, 6)
    assert np.allclose(each.sum(-1), 1, atol=1e-6)
    assert np.array_equal(read_class(raw, 4, heads=-1), each[:, 2])
    biggest = raw[:, :, 0, 5:].max(1)
    assert np.allclose(read_class(raw, 4, heads="max"), biggest / biggest.sum(-1, keepdims=True), atol=1e-7)


def test_read_question_sums_the_tokens_that_count() -> None:
    raw = attention()
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], np.uint8)
    expected = (raw[:, :, 1:, :4] * mask[:, None, None]).sum(-1).mean(1)
    assert np.allclose(read_question(raw, 4, mask=mask), expected / expected.sum(-1, keepdims=True), atol=1e-7)
    words = read_words(raw, [[0, 0, 1, -1], [0, 1]], 4)
    assert [part.shape for part in words] == [(2, 6), (2, 6)]
    first = raw[0, :, 1:, :2].sum(-1).mean(0)
    assert np.allclose(words[0][0], first / first.sum(), atol=1e-7)


def test_a_callable_method_is_checked() -> None:
    raw = attention()
    taken = read_custom(lambda a: a[:, 0, 0, 5:], raw, 4, grid=(2, 3))
    assert np.array_equal(taken, raw[:, 0, 0, 5:])
    assert np.array_equal(read_custom(lambda a: a[:, 0, 0, 5:].reshape(2, 2, 3), raw, 4, grid=(2, 3)), taken)
    for bad, message in [
        (lambda a: a[:, 0], "shape"),
        (lambda a: np.full((2, 6), np.nan), "NaN"),
        (lambda a: np.full((2, 6), "x"), "real numbers"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_custom(bad, raw, 4, grid=(2, 3))


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda a: read_class(a, 4, heads=3), ValueError, "head 3 does not exist"),
        (lambda a: read_class(a, 4, heads="median"), ValueError, "median"),
        (lambda a: read_class(a, 4, heads=1.5), TypeError, "float"),
        (lambda a: read_class(a, 3), ValueError, "does not fit"),
        (lambda a: read_class(a[:, :, :1]), ValueError, "question_tokens"),
        (lambda a: read_class(np.zeros((2, 3), np.float32)), ValueError, "attention"),
        (lambda a: read_question(a[..., 4:], 0), ValueError, "no question tokens"),
        (lambda a: read_question(a[:, :, :1], 4), ValueError, "all T rows"),
        (lambda a: read_question(a, 4, mask=np.ones((2, 3))), ValueError, "mask"),
        (lambda a: read_words(a, [[0] * 5, [0]], 4), ValueError, "word_of"),
        (lambda a: read_custom(len, a[0], 4), ValueError, r"needs \[B, h, T, M \+ T\], got shape \(3, 7, 11\)"),
        (lambda a: read_words(a, [[0], [0]], 4, heads=None), ValueError, "None is not possible for maps of words"),
        (lambda a: read_words(a, [[0]], 4), ValueError, "1 questions, expected one for each pair"),
        (lambda a: merge_heads(np.ones(3), "mean"), ValueError, r"expected \[\.\.\., heads, N\]"),
    ],
)
def test_wrong_arguments_of_methods(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call(attention())


def test_nothing_to_look_at_is_uniform_not_nan() -> None:
    assert np.allclose(to_distribution(np.zeros((2, 5))), 0.2)
    assert np.array_equal(merge_heads(np.ones((2, 3)), "max"), np.ones(3))


# ---- scaling and numbers ----


def test_normalize_by_name() -> None:
    maps = np.array([[[0.0, 1.0]], [[1.0, 3.0]]])
    assert np.array_equal(normalize_maps(maps), maps)
    assert np.allclose(normalize_maps(maps, "minmax"), maps / 3)
    assert np.allclose(normalize_maps(maps, "minmax", shared=False), [[[0, 1]], [[0, 1]]])
    assert np.allclose(normalize_maps(maps, "max", shared=False)[1], [[1 / 3, 1]])
    assert np.allclose(normalize_maps(maps, "sum").sum(axis=(1, 2)), 1)
    with pytest.raises(ValueError, match="softmax"):
        normalize_maps(maps, "softmax")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.sampled_from([0.0, 1e-38, 1.0, 1e30]), st.booleans(),
    st.sampled_from([None, "minmax", "sum", "max"]),
)  # fmt: skip
def test_never_nan(count: int, rows: int, columns: int, size: float, flat: bool, normalize: Any) -> None:
    maps = np.full((count, rows, columns), size, np.float32)
    if not flat:
        maps *= np.random.default_rng(0).random(maps.shape).astype(np.float32)
    one = HeatmapResult(maps, ["q"] * count, np.zeros((7, 9, 3), np.uint8))
    assert np.isfinite(one.normalized(normalize)).all()
    assert np.isfinite(one.upsample((11, 13), normalize=normalize)).all()
    for numbers in one.statistics():
        assert all(math.isfinite(numbers[name]) for name in ("attention_mean", "attention_std", "entropy"))


def test_statistics_are_those_of_the_map() -> None:
    flat = map_statistics(np.full((3, 4), 1 / 12))
    assert flat["entropy"] == pytest.approx(math.log(12))
    assert flat["attention_std"] == pytest.approx(0, abs=1e-12)
    one = np.zeros((3, 4))
    one[1, 2] = 1
    assert map_statistics(one)["entropy"] == 0
    assert map_statistics(one)["top_patches"] == [6, 0, 1, 2, 3]
    maps = result().maps[0].astype(np.float64)
    numbers = result().statistics()[0]
    assert numbers["attention_max"] == maps.max()
    assert numbers["entropy"] == pytest.approx(-(maps * np.log(maps)).sum(), rel=1e-6)


# ---- places in the picture ----


def test_patches_and_boxes_are_in_the_pictures_pixels() -> None:
    maps = np.full((1, 3, 4), 0.01, np.float32)
    maps[0, 1, 2] = 0.5
    maps[0, 2, 3] = 0.4
    maps[0, 0, 0] = 0.3
    found = result(maps=maps, questions=["q"], words=None, word_maps=None, answers=None)
    best = found.top_patches(2)[0]
    assert (best[0].index, best[0].row, best[0].column) == (6, 1, 2)
    assert (best[0].left, best[0].top, best[0].right, best[0].bottom) == (40, 20, 55, 40)
    boxes = found.boxes(0.5)[0]
    assert [tuple(box[:4]) for box in boxes] == [(40, 20, 70, 60), (10, 0, 25, 20)]
    assert boxes[0].share == pytest.approx(0.9 / maps.sum(), rel=1e-5)
    assert boxes[0].peak == 0.5
    assert result(maps=np.full((3, 3, 4), 0.1, np.float32)).boxes() == [[], [], []]
    assert len(found.top_patches(100)[0]) == 12


@pytest.mark.parametrize("resampling", ["bicubic", "bilinear", "nearest"])
def test_upsample_covers_the_region_alone(resampling: str) -> None:
    one = result()
    spread = one.upsample(resampling=resampling)
    assert spread.shape == (3, 60, 90)
    assert (spread[:, :, 10:70] > 0).all()
    assert not spread[:, :, :10].any()
    assert not spread[:, :, 70:].any()
    assert spread.max() <= one.maps.max()
    half = one.upsample(45, resampling=resampling)
    assert half.shape == (3, 30, 45)
    # At one pixel for each third of a patch (5 x 20/3 pixels), every third pixel sits on a patch's centre.
    thirds = one.upsample((9, 18), resampling=resampling)
    assert np.allclose(thirds[:, 1::3, 3:14:3], one.maps, atol=1e-7)


def test_upsample_agrees_with_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    maps = np.random.default_rng(3).random((5, 7)).astype(np.float32)
    ours = resample_map(maps, Region(0, 0, 70, 50), (50, 70), (50, 70), "bilinear")
    theirs = ndimage.zoom(maps, 10, order=1, mode="nearest", grid_mode=True)
    assert np.allclose(ours, theirs, atol=1e-6)  # seen: 1.2e-7


# ---- the object ----


def test_it_is_a_sequence_of_questions_and_an_array() -> None:
    whole = result(block_maps=lambda: np.stack([result().maps] * 5))
    assert len(whole) == 3
    assert np.asarray(whole) is whole.maps
    assert np.asarray(whole, dtype=np.float64).dtype == np.float64
    assert [one.questions for one in whole] == [["one?"], ["two?"], ["three?"]]
    assert np.array_equal(whole["two?"].maps, whole.maps[1:2])
    assert whole[-1].words == [[]]
    assert whole[:2].questions == ["one?", "two?"]
    assert whole[1].block_maps.shape == (5, 1, 3, 4)
    for key, kind in [(3, IndexError), ("four?", KeyError), (slice(2, 2), IndexError)]:
        with pytest.raises(kind):
            whole[key]


def test_block_maps_are_computed_once_and_only_when_asked() -> None:
    calls = []

    def compute() -> Any:
        calls.append(1)
        return np.stack([result().maps] * 2)

    one = result(block_maps=compute)
    assert not calls
    assert one.block_maps is one.block_maps
    assert len(calls) == 1
    assert result().block_maps is None
    with pytest.raises(ValueError, match="no maps of other blocks"):
        result().at(0)
    with pytest.raises(ValueError, match=r"block_maps: shape \(2, 1, 3, 4\), expected \(blocks, 3, 3, 4\)"):
        _ = result(block_maps=lambda: np.ones((2, 1, 3, 4))).block_maps


def test_head_maps_are_computed_once_and_follow_their_questions() -> None:
    calls = []
    every = np.random.default_rng(1).random((3, 5, 3, 4), np.float32)

    def head_maps() -> Any:
        calls.append(1)
        return every

    one = result(head_maps=head_maps, block=1, block_maps=np.stack([result().maps] * 2))
    part, kept = one[1:], copy.copy(one)
    assert not calls
    np.testing.assert_array_equal(part.head_maps, every[1:])
    np.testing.assert_array_equal(one["one?"].head_maps, every[:1])
    assert one.head_maps is one.head_maps
    assert not one.head_maps.flags.writeable
    assert len(calls) == 1
    np.testing.assert_array_equal(kept.head_maps, every)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(one)).head_maps, every)
    assert pickle.loads(pickle.dumps(result(head_maps=head_maps))).head_maps is None
    assert one.at(1).head_maps is not None
    assert one.at(0).head_maps is None  # they are of the block that was read
    assert result().head_maps is None
    assert [result(heads=heads).heads for heads in ("max", np.int64(2))] == ["max", 2]
    assert json.dumps(result(heads=np.int64(2)).to_dict()["heads"]) == "2"
    with pytest.raises(TypeError, match="heads: expected a whole number, got float"):
        result(heads=1.5)


def test_questions_of_a_result_that_cannot_be_answered() -> None:
    one = result()[0]
    with pytest.raises(ValueError, match="k: got 0, expected at least 1"):
        one.top_patches(0)
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"threshold: got {share}"):
            one.boxes(threshold=share)
    with pytest.raises(ValueError, match="resampling: 'cubic' is unknown"):
        one.upsample(resampling="cubic")
    for size in ((3,), (0, 5), 0):
        with pytest.raises(ValueError, match="size: got"):
            one.upsample(size)
    for values in (3.0, np.zeros((0, 4))):
        with pytest.raises(ValueError, match=r"maps: expected \[Q, gh, gw\] or \[gh, gw\], got shape"):
            normalize_maps(values, "sum")
    assert repr(one).startswith("HeatmapResult(")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"maps": np.zeros((3, 4))}, "maps"),
        ({"maps": np.full((3, 3, 4), np.nan)}, "NaN"),
        ({"questions": ["a"]}, "questions"),
        ({"picture": np.zeros((5, 5), np.uint8)}, "picture"),
        ({"picture": np.zeros((5, 5, 3))}, "picture"),
        ({"seen": Region(5, 0, 5, 9)}, "seen"),
        ({"words": None}, "word_maps: given without words"),
        ({"word_maps": [np.ones((1, 3, 4))] * 3}, "word_maps"),
        ({"answers": []}, "answers"),
        ({"head_maps": np.ones((3, 3, 4))}, "head_maps: expected numbers with 4 axes"),
        ({"head_maps": np.ones((2, 5, 3, 4))}, r"head_maps: shape \(2, 5, 3, 4\), expected \(3, heads, 3, 4\)"),
        ({"head_maps": np.full((3, 5, 3, 4), np.inf)}, "head_maps: .*infinity"),
    ],
)
def test_parts_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        result(**changes)


def test_saved_maps_come_back_without_pickle(tmp_path: Path) -> None:
    one = result()
    one.save(tmp_path / "m.npy")
    assert np.array_equal(np.load(tmp_path / "m.npy", allow_pickle=False), one.maps)
    one.save(tmp_path / "m.npz")
    with np.load(tmp_path / "m.npz", allow_pickle=False) as saved:
        assert np.array_equal(saved["maps"], one.maps)
        assert saved["questions"].tolist() == one.questions
        assert saved["region"].tolist() == [10, 0, 70, 60]
        assert json.loads(str(saved["words"])) == one.words
        assert saved["word_maps_0"].shape == (2, 3, 4)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    with pytest.raises(FileNotFoundError, match="nowhere"):
        one.save(tmp_path / "nowhere" / "m.npy")
    with pytest.raises(ValueError, match=r"m\.xyz"):
        one.save(tmp_path / "m.xyz")
    with pytest.raises(ValueError, match="kind"):
        one.save(tmp_path / "m.npz", kind="overlay")


def test_to_dict_is_json() -> None:
    told = json.loads(json.dumps(result().to_dict()))
    assert told["questions"][0]["answers"][0] == {"answer": "yes", "probability": 0.75}
    assert len(told["questions"][2]["top_patches"]) == 5


def test_to_dataframe() -> None:
    pytest.importorskip("pandas")
    table = result().to_dataframe()
    assert len(table) == 36
    assert table.groupby("question")["value"].sum().tolist() == pytest.approx([1, 1, 1], rel=1e-5)
    assert table["left"].min() == 10


def test_to_dataframe_names_pandas_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install pandas"):
        result().to_dataframe()


# ---- results as objects ----


def test_a_result_travels_to_another_process() -> None:
    def never() -> Any:
        raise AssertionError("computed where it was not asked for")

    whole = result(block_maps=never)
    whole.questions[0] = "\u2605 \u05d0?"
    again = pickle.loads(pickle.dumps(whole))
    np.testing.assert_array_equal(again.maps, whole.maps)
    assert (again.questions, again.seen, again.answers) == (whole.questions, whole.seen, whole.answers)
    assert [len(maps) for maps in again.word_maps] == [2, 1, 0]
    assert again.block_maps is None
    part = pickle.loads(pickle.dumps(whole[1]))
    assert part.word_maps[0].shape == (1, 3, 4)
    lazy = pickle.loads(pickle.dumps(result(word_maps=never)))
    assert lazy.word_maps is None
    every = np.random.default_rng(3).random((5, 3, 3, 4)).astype(np.float32)
    computed = result(block_maps=lambda: every)
    assert computed.block_maps is not None
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(computed)).block_maps, every)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(computed[2])).block_maps, every[:, 2:])


def test_a_copy_can_still_compute() -> None:
    every = np.ones((5, 3, 3, 4), np.float32)
    whole = result(block_maps=lambda: every, word_maps=lambda: [np.ones((n, 3, 4)) for n in (2, 1, 0)])
    for made in (copy.copy(whole), copy.deepcopy(whole)):
        assert made.block_maps.shape == every.shape
        assert [len(maps) for maps in made.word_maps] == [2, 1, 0]
    deep = copy.deepcopy(whole)
    assert deep.maps is not whole.maps
    for made in (whole, deep, pickle.loads(pickle.dumps(deep)), whole[1], whole.at(2)):
        with pytest.raises(ValueError, match="read-only"):
            np.asarray(made)[:] = 0
        with pytest.raises(dataclasses.FrozenInstanceError):
            made.maps = np.zeros((1, 3, 4))


def test_questions_are_found_by_text_or_number() -> None:
    whole = result()
    assert "two?" in whole
    assert "four?" not in whole
    assert whole.number_of("three?") == whole.number_of(-1) == whole.number_of(np.int64(2)) == 2
    np.testing.assert_array_equal(whole.overlay("two?"), whole.overlay(1))
    assert whole.plot(question="two?").figure is not None
    assert whole.patch("two?", 5) == whole.patch(1, 5)
    for ask, kind, message in (
        (lambda: whole[[0]], TypeError, "question: expected its number or its text, got list"),
        (lambda: whole[True], TypeError, "got bool"),
        (lambda: whole.overlay(3), IndexError, "question 3 does not exist; there are 3"),
        (lambda: whole.overlay("four?"), KeyError, "no question 'four\\?'"),
        (lambda: whole.patch(0, -1), IndexError, "index: patch -1 does not exist; there are 12, 0 to 11"),
        (lambda: whole.patch(0, 12), IndexError, "index: patch 12"),
        (lambda: whole.top_patches(1.5), TypeError, "k: expected a whole number, got float"),
        (lambda: whole.boxes("0.5"), TypeError, "threshold: expected a number, got str"),
        (lambda: whole.upsample(10.5), TypeError, "size: expected a whole number, got float"),
    ):
        with pytest.raises(kind, match=message):
            ask()
    assert whole.upsample(np.array([10, 20])).shape == (3, 10, 20)
