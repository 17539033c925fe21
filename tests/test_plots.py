"""Figures, and the two functions that existing scripts call."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from PIL import Image

from qavit import HeatmapResult
from qavit._base.warnings import Note, QavitWarning
from qavit.images import Region
from qavit.lavis import getAttMap, show_cam_on_image
from qavit.plots import KINDS
from qavit.plots import _figures as plots_figures
from qavit.plots import _labels as labels
from qavit.plots import _pixels as plots_pixels
from qavit.plots._look import Look, notes_of, peaks_in_words
from qavit.plots._sheet import sheet_of

ROOT = Path(__file__).parent.parent


def result(
    count: int = 2, size: tuple[int, int] = (60, 90), questions: list[str] | None = None, **changes: Any
) -> HeatmapResult:
    """Maps with one hot patch each: patch 5 for question 0, patch 6 for question 1, ..."""
    maps = np.full((count, 3, 4), 0.01, np.float32)
    for index in range(count):
        maps[index, 1, 1 + index % 3] = 1.0
    maps /= maps.sum(axis=(1, 2), keepdims=True)
    height, width = size
    parts: dict[str, Any] = {
        "maps": maps,
        "questions": questions or [f"question {index}?" for index in range(count)],
        "picture": np.full((height, width, 3), 128, np.uint8),
        "seen": Region((width - height) / 2, 0, (width + height) / 2, height) if width > height else None,
        "block": 2,
        "words": [["a", "b"]] * count,
        "word_maps": [np.ones((2, 3, 4), np.float32)] * count,
        "answers": [[("yes", 0.9), ("no", 0.1)]] * count,
        "block_maps": lambda: np.stack([maps] * 3),
        "head_maps": lambda: np.stack([maps, maps[..., ::-1]], axis=1),
    }
    return HeatmapResult(**{**parts, **changes})


@pytest.fixture(autouse=True)
def no_figures_are_left() -> Iterator[None]:
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def written(figure: Any) -> list[str]:
    """The texts around the panels, line by line."""
    return [text.get_text().replace("\u00a0", " ") for text in figure.texts]


def pixels(figure: Any) -> Any:
    return np.asarray(Image.open(io.BytesIO(plots_figures.render(figure, "png", 60))).convert("RGB")).astype(int)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(60, 90), (90, 60), (40, 40)])
def test_every_kind_is_drawn_without_a_warning(kind: str, size: tuple[int, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = result(size=size).figure(kind)
        drawn = pixels(figure)
    assert drawn.std() > 5
    width, height = figure.get_size_inches()
    for axes in figure.axes:
        box = axes.get_position()
        assert box.x0 >= 0
        assert box.x1 <= 1
        assert box.y0 >= 0
        assert box.y1 <= 1
    # Pictures keep their shape: every panel has the picture's own aspect.
    panel = figure.axes[0].get_position()
    assert panel.height * height / (panel.width * width) == pytest.approx(size[0] / size[1], rel=1e-3)


def test_each_map_on_a_scale_of_its_own_by_every_door(tmp_path: Path) -> None:
    maps = np.full((2, 3, 4), 0.01, np.float32)
    maps[0, 1, 1], maps[1, 1, 1] = 0.9, 0.1
    one = result(maps=maps, raw=None)
    assert np.array_equal(one.overlay(1, shared=False), one[1].overlay())
    assert not np.array_equal(one.overlay(1), one[1].overlay())
    for shared, ends in ((True, 1), (False, 2)):
        drawn = one.plot(Figure().subplots(1, 2), kind="heatmap", shared=shared)
        hot = [axes.images[0].get_array()[1, 1].tolist() for axes in drawn]
        assert len({tuple(colour) for colour in hot}) == 3 - ends
        bar = drawn[0].get_figure().axes[-1]
        assert ([text.get_text() for text in bar.get_yticklabels()] == ["low", "high"]) is (not shared)
    alone = one.plot(Figure().subplots(), question=1, shared=False)
    assert "low" not in [text.get_text() for text in alone.get_figure().axes[-1].get_yticklabels()]


def test_every_head_has_its_panel() -> None:
    heads = np.random.default_rng(0).random((2, 13, 3, 4), np.float32) ** 8
    heads /= heads.sum(axis=(2, 3), keepdims=True)
    one = result(head_maps=heads)
    figure = one.figure("heads")
    assert len(figure.axes) == 2 * (1 + 13) + 1  # and the bar
    texts = written(figure)
    assert texts.count("mean of 13 heads") == 2
    assert all(texts.count(f"head {number}") == 2 for number in range(13))
    assert (
        "Block 2: where the class token looks; each head sums to 1; "
        f"{peaks_in_words(np.concatenate([one.maps[:, None], heads], axis=1))}; one colour scale for all heads"
    ) in " ".join(texts)
    lefts = [round(axes.get_position().x0, 4) for axes in figure.axes[:-1]]
    assert [position for position, left in enumerate(lefts) if left == lefts[0]] == [0, 5, 10, 14, 19, 24]
    sheet = sheet_of(one, "heads", Look())
    assert len({panel.scale for _, panel in sheet.panels}) == 1
    own = sheet_of(one, "heads", Look(shared=False))
    assert len({panel.scale for _, panel in own.panels}) > 13
    for panel, values in zip(sheet.panels, [one.maps[0], *heads[0], one.maps[1], *heads[1]], strict=True):
        np.testing.assert_array_equal(panel[1].values, values)
    largest = result(head_maps=heads, heads="max")
    assert "largest of 13 heads" in written(largest.figure("heads"))
    third = result(head_maps=heads, heads=3)
    assert len(third.figure("heads").axes) == 2 * 13 + 1  # the third is among them
    assert any(text.startswith("Block 2, head 3: ") for text in written(third.figure("questions")))
    assert any(text.startswith("Block 2, largest of the heads: ") for text in written(largest.figure("overlay")))
    with pytest.raises(ValueError, match="kind: 'heads' needs maps of heads, which this result does not have"):
        result(head_maps=None).figure("heads")


def test_the_colours_move_with_the_question() -> None:
    one = result()
    first, second = (one.overlay(index).astype(int) for index in (0, 1))
    assert np.abs(first - second).max() > 60
    hot = first.astype(int)[30, 15 + 22]
    assert hot[0] > hot[2] + 50  # jet's hot end is red
    assert np.array_equal(first[:, 0], second[:, 0])


def test_overlay_weights_and_region() -> None:
    one = result()
    assert np.array_equal(one.overlay(image_weight=1.0)[:, 20:70], one.picture[:, 20:70])
    bare = one.overlay(image_weight=0.0, resampling="nearest", cmap="gray")
    assert bare[30, 37].tolist() == [255, 255, 255]
    assert bare[5, 20].max() <= 3  # 0.01 of the peak
    assert one.overlay(size=(30, 45)).shape == (30, 45, 3)
    with pytest.raises(ValueError, match="image_weight"):
        one.overlay(image_weight=1.5)
    with pytest.raises(ValueError, match="cmap"):
        one.overlay(cmap="rainbow road")
    assert one.overlay(image_weight=0.0, cmap="gray", vmin=0.0, vmax=1e9)[:, 20:70].max() == 0
    for ends in ({"vmin": 5}, {"vmax": 0}, {"vmin": 2, "vmax": 1}):
        with pytest.raises(ValueError, match=r"vmin, vmax: the scale goes from .* to .*, expected a vmin below vmax"):
            one.overlay(**ends)


def test_one_scale_for_maps_that_are_compared() -> None:
    maps = np.stack([np.full((3, 4), 0.1), np.full((3, 4), 0.1)]).astype(np.float32)
    maps[0, 0, 0], maps[1, 0, 0] = 1.0, 0.4
    one = HeatmapResult(maps, ["a", "b"], np.zeros((30, 40, 3), np.uint8))
    strong, weak = (
        one.overlay(index, cmap="gray", image_weight=0.0, resampling="nearest")[0, 0, 0] for index in (0, 1)
    )
    assert strong == 255
    assert weak == pytest.approx(255 * 0.4, abs=1)


def test_a_flat_map_looks_flat() -> None:
    maps = 0.02 + np.random.default_rng(0).uniform(-0.001, 0.001, (1, 7, 7))
    flat = HeatmapResult(maps / maps.sum(), ["flat?"], np.full((70, 70, 3), 128, np.uint8))
    drawn = flat.overlay(cmap="gray", image_weight=0.0).astype(int)
    assert drawn.max() - drawn.min() < 12
    assert drawn.max() < 255 / 2.5
    assert any("peak 1.0" in text and "× uniform" in text for text in written(flat.figure("overlay")))
    zero = HeatmapResult(np.zeros((1, 7, 7)), ["?"], flat.picture)
    assert zero.overlay(cmap="gray", image_weight=0.0).max() == 0
    assert not any("peak" in text for text in written(zero.figure()))


def test_figures_leave_pyplot_alone(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\nfrom qavit import HeatmapResult\n"
        "r = HeatmapResult(np.ones((1, 2, 2)), ['q'], np.zeros((9, 9, 3), np.uint8))\n"
        "assert 'matplotlib' not in sys.modules\n"
        "r.save(sys.argv[1]); r.figure(); r._repr_jpeg_()\nassert 'matplotlib.pyplot' not in sys.modules\n"
    )
    target = tmp_path / "plain.png"
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert target.stat().st_size > 1000


def test_show_is_pyplots(monkeypatch: pytest.MonkeyPatch) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    pyplot.close("all")  # of other tests
    shown = []
    monkeypatch.setattr(pyplot, "show", lambda: shown.append(pyplot.get_fignums()))
    with pytest.warns(UserWarning, match="no display.*result.save") as caught:
        result().show()
    assert caught[0].filename == __file__
    assert shown == [[1]]
    assert pyplot.get_fignums() == []
    monkeypatch.setattr(pyplot, "get_backend", lambda: "QtAgg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result().show()
    assert shown == [[1], [1]]
    pyplot.close("all")


def test_what_is_written_around_the_panels() -> None:
    def said(kind: Any, count: int = 2, **options: Any) -> str:
        return " ".join(written(result(count).figure(kind, **options)))

    how = "Block 2: where the class token looks; peak 10.8 × uniform"
    assert f"{how}; one colour scale for all questions; dashed: what the model saw" in said("questions")
    own = "each map on a colour scale of its own"
    assert f"{how}; {own}; dashed: what the model saw" in said("questions", shared=False)
    assert f"{how}; dashed" in said("panels", 1)
    for count in (1, 2):
        found = said("blocks", count)
        assert "Each block: where the class token looks; peak 10.8 × uniform; one colour scale for all blocks" in found
        assert all(title in found for title in ("block 0", "block 2", *(f"question {i}?" for i in range(count))))
    assert "2 of 3 blocks: where the class token looks" in said("blocks", 1, blocks=[0, 2])
    assert "which patches look at each word; peak 1 × the mean; one colour scale for all words" in said("words")
    assert said("original") == "Picture dashed: what the model saw"
    assert "answer: yes 90% · no 10%" in said("overlay", 1)
    assert "Block" not in said("overlay", 1, caption="Mine")


def test_notes_stand_under_the_map_that_they_concern() -> None:
    notes = (
        Note("question_cut", "The end of the question was left out.", 1),
        Note("picture_cropped", "Half of the picture was not seen.", None),
    )
    one = result(notes=notes)
    for kind, options in (("overlay", {}), ("questions", {"caption": ""}), ("panels", {}), ("blocks", {}), ("words", {})):
        figure = one.figure(kind, **options)  # type: ignore[arg-type]
        places = {text.get_text(): text.get_position() for text in figure.texts}
        assert min(places, key=lambda line: places[line][1]) in notes[1].text
        cut = next(place for line, place in places.items() if line and notes[0].text.startswith(line))
        title = next(place for line, place in places.items() if line.startswith("question 1?"))
        assert cut[1] < title[1]
        assert abs(cut[0] - title[0]) < 0.3
    drawn = one.plot(colorbar=False)
    assert "left out" in drawn[1].get_xlabel().replace("\n", " ")
    assert "left out" not in drawn[0].get_xlabel().replace("\n", " ")
    assert "Half of the picture" in drawn[0].get_figure().get_supxlabel()
    axes = Figure().add_subplot()
    one.plot(axes, question=0)
    assert "Half of the picture was not seen. dashed: what the model saw" in axes.get_xlabel().replace("\n", " ")


def test_each_note_begins_a_line() -> None:
    notes = (Note("unknown_words", "No word is known", 0), Note("low_score", "The score is low", 0))
    for kind in ("overlay", "questions", "panels", "blocks", "words"):
        lines = [text.get_text() for text in result(notes=notes).figure(kind).texts]  # type: ignore[arg-type]
        assert {"No word is known", "The score is low"} <= set(lines)


def test_very_wide_pictures_stand_below_each_other() -> None:
    figure = result(2, size=(20, 120), seen=None).figure("questions", colorbar=False)
    boxes = [axes.get_position() for axes in figure.axes]
    assert len({round(box.x0, 6) for box in boxes}) == 1
    assert boxes[0].y0 > boxes[1].y1 > boxes[2].y1
    assert boxes[0].width * figure.get_figwidth() > 7
    beside = result(2, size=(20, 120), seen=None).figure("questions", columns=3)
    assert len({round(axes.get_position().y0, 6) for axes in beside.axes[:3]}) == 1


@pytest.mark.parametrize("size", [(20, 120), (120, 20)])
def test_of_a_long_picture_the_part_that_was_seen_is_drawn_large(size: tuple[int, int]) -> None:
    seen = Region(50.0, 0.0, 70.0, 20.0) if size[0] < size[1] else Region(0.0, 50.0, 20.0, 70.0)
    figure = result(1, size=size, seen=seen).figure("overlay")
    axes = figure.axes[0]
    long = axes.get_xlim() if size[0] < size[1] else axes.get_ylim()[::-1]
    assert long == (45.0, 75.0)
    assert any("the rest of the picture is cut off here" in text.get_text() for text in figure.texts)
    whole = result(1, size=(40, 110)).figure("overlay")
    assert whole.axes[0].get_xlim() == (0.0, 110.0)
    assert not any("cut off" in text.get_text() for text in whole.texts)


def test_contours_lie_where_the_map_is_high() -> None:
    shown = result(1)
    figure = shown.figure("overlay", contours=True)
    lines = [kind for kind in figure.axes[0].collections if isinstance(kind, ContourSet)]
    assert len(lines) == 1
    points = np.concatenate([path.vertices for path in lines[0].get_paths()])
    box = shown.top_patches(1)[0][0]
    assert (points[:, 0] > box.left - 10).all()
    assert (points[:, 0] < box.right + 10).all()
    assert (points[:, 1] > box.top - 10).all()
    assert (points[:, 1] < box.bottom + 10).all()
    assert any("a quarter, a half and three quarters" in text.get_text() for text in figure.texts)
    pale = np.full((1, 3, 4), 1 / 12, np.float32)
    flat = result(1, maps=pale, word_maps=None, words=None, block_maps=None).figure("overlay", contours=True)
    drawn = [kind for kind in flat.axes[0].collections if isinstance(kind, ContourSet)]
    assert all(len(path.vertices) == 0 for kind in drawn for path in kind.get_paths())


def test_the_bar_stands_in_the_middle_of_all_rows() -> None:
    *panels, bar = (axes.get_position() for axes in result(2).figure("blocks").axes)
    middle = (max(box.y1 for box in panels) + min(box.y0 for box in panels)) / 2
    assert abs((bar.y0 + bar.y1) / 2 - middle) < 1e-6


def test_plot_draws_on_the_callers_axes() -> None:
    axes = Figure().add_subplot()
    assert result().plot(axes, question=1, cmap="viridis") is axes
    assert len(axes.figure.axes) == 2
    assert axes.get_title() == "question 1?"
    several = Figure().subplots(1, 2)
    assert list(result().plot(several, colorbar=False)) == list(several)
    assert [axes.get_title() for axes in several] == ["question 0?", "question 1?"]
    with pytest.raises(ValueError, match=r"ax: 1 axes for 2 questions, expected one each; question= chooses one"):
        result().plot(axes)
    with pytest.raises(ValueError, match="ax: 2 axes for 1 questions"):
        result(1).plot(several)


def test_plot_makes_a_figure_of_pyplot(monkeypatch: pytest.MonkeyPatch) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    pyplot.close("all")
    axes = result(1).plot()
    assert pyplot.get_fignums() == [1]
    assert axes.get_figure() is pyplot.gcf()
    assert len(axes.get_figure().axes) == 2
    drawn = result(5).plot(colorbar=False)
    assert drawn.shape == (5,)
    assert [one.get_title() for one in drawn] == [f"question {index}?" for index in range(5)]
    assert len(pyplot.gcf().axes) == 5
    assert result(5).plot(question=-1).get_title() == "question 4?"
    pyplot.close("all")

    def broken(**options: Any) -> Any:
        raise ImportError("no display")

    monkeypatch.setattr(pyplot, "figure", broken)
    alone = result(1).plot()
    assert isinstance(alone.get_figure(), plots_figures.HeatmapFigure)
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize("kind", KINDS)
def test_figures_can_be_pickled_and_copied(kind: Any) -> None:
    figure = result().figure(kind)
    before = pixels(figure)
    for again in (pickle.loads(pickle.dumps(figure)), copy.deepcopy(figure)):
        assert np.array_equal(pixels(again), before)


def test_boxes_are_drawn_on_request() -> None:
    one = result(1, size=(60, 60))
    (box,) = one.boxes(0.5)[0]
    for kind in ("heatmap", "overlay", "patches"):
        without, framed = one.figure(kind), one.figure(kind, boxes=0.5)  # type: ignore[arg-type]
        rectangles = [patch.get_bbox().extents for patch in framed.axes[0].patches]
        assert len(rectangles) == len(without.axes[0].patches) + 2
        assert [box.left, box.top, box.right, box.bottom] in [list(extents) for extents in rectangles]
    axes = one.plot(Figure().add_subplot(), boxes=0.5)
    assert len(axes.patches) == 2
    with pytest.raises(ValueError, match="threshold: got 2"):
        one.figure(boxes=2)


def test_options_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    one = result(1)
    for name, options, message in (
        ("a.npz", {"dpi": 100}, "dpi: for figures alone, and 'a.npz' is not one"),
        ("a.npy", {"cmap": "jet", "vmin": 0.0}, "cmap, vmin: for figures alone"),
        ("a.html", {"dpi": 300}, "dpi: for figures alone"),
        ("a.html", {"kind": "overlay", "top": 2}, "kind, top: for figures alone"),
    ):
        with pytest.raises(ValueError, match=message):
            one.save(tmp_path / name, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="colums"):
        one.save(tmp_path / "a.png", colums=2)  # type: ignore[call-arg]
    assert not list(tmp_path.iterdir())
    assert one.save(tmp_path / "a.html", cmap="jet", vmax=1.0, shared=False).is_file()


@pytest.mark.parametrize("ending", ["png", "jpg", "pdf", "svg"])
def test_saved_figures(tmp_path: Path, ending: str) -> None:
    path = result(1).save(tmp_path / f"a.{ending}", dpi=50)
    assert {"png": b"PNG", "jpg": b"JFIF", "pdf": b"%PDF", "svg": b"<svg"}[ending] in path.read_bytes()[:2000]
    assert path.stat().st_size > 3000


def test_figures_that_cannot_be_drawn_are_refused_by_name(tmp_path: Path) -> None:
    one = result(1)
    for draw, message in (
        (lambda: one.figure("contours"), "kind: 'contours' is unknown; expected one of"),
        (lambda: one.figure("pannels"), r"kind: 'pannels' is unknown; .*; did you mean 'panels'\?"),
        (lambda: one.figure(columns=0), "columns: got 0, expected at least 1"),
        (lambda: one.figure("patches", top=0), "top: got 0, expected at least 1"),
        (lambda: one.plot(kind="contours"), "kind: 'contours' is unknown; expected one of"),
        (lambda: one.save(tmp_path / "map.tiff3"), r"path: 'map\.tiff3' ends in '\.tiff3'; expected \.png, \.jpg"),
        (lambda: one.save(tmp_path / "map.png", dpi=5), "dpi: got 5, expected 10 to 2400"),
        (lambda: HeatmapResult(one.maps, ["a?"], one.picture, None, block=2).figure("words"), "needs maps of words"),
        (lambda: getAttMap(np.zeros((8, 8)), np.ones((2, 2))), r"img: expected \[H, W, 3\], got shape \(8, 8\)"),
        (lambda: getAttMap(np.zeros((8, 8, 3)), np.ones(4)), r"attMap: expected finite numbers \[gh, gw\]"),
        (lambda: getAttMap(np.zeros((8, 8, 3), int), np.ones((2, 2))), "img: expected uint8, or finite floats from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            draw()
    assert not list(tmp_path.iterdir())


def test_blocks_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="0 to 2"):
        result().figure("blocks", blocks=[3])


# ---- text ----


def test_the_blocks_of_a_figure() -> None:
    one = result(1)
    for blocks in ([-1, 0], (i for i in (2, 0)), np.array([2, 0])):
        figure = one.figure("blocks", blocks=blocks)
        titles = [text.get_text() for text in figure.texts]
        assert titles.index("block 2") < titles.index("block 0")
    with pytest.raises(TypeError, match="blocks: expected several whole numbers, got int"):
        one.figure("blocks", blocks=1)
    with pytest.raises(ValueError, match=r"blocks: got \[3\], expected numbers from 0 to 2"):
        one.figure("blocks", blocks=[3])


def test_an_answer_is_not_broken_in_two() -> None:
    one = result(1, answers=[[("middle left", 0.5), ("top center", 0.23), ("top left", 0.16)]])
    lines = [text.get_text().replace("\u00a0", " ") for text in one.figure("overlay").texts]
    assert "middle left 50%  ·  top center" not in " ".join(lines)
    assert any(line.startswith(("top left 16%", "top center 23%")) for line in lines)
    assert labels.wrap("one\u00a0two three", 8) == ["one\u00a0two", "three"]


def test_the_bar_begins_with_a_number() -> None:
    one = result(1, maps=result(1).maps * (1 - 12e-6) + 1e-6)
    ticks = [tick.get_text() for tick in one.figure("overlay").axes[-1].get_yticklabels()]
    assert "0%" in ticks


def test_fonts_are_looked_up_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    labels._covering.cache_clear()
    labels._new_fonts.cache_clear()
    assert labels.families("where is \U0001f31f\u05d0?")[0] == labels.BASE
    assert capfd.readouterr().err == ""


def test_symbols_without_a_glyph_are_named_and_the_rest_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "FAMILIES", ())
    monkeypatch.setattr(labels, "_new_fonts", lambda: False)
    labels._covering.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert labels.named("where is \U0001f534\U0001f31f?") == "where is :large_red_circle::glowing_star:?"
        arabic = "\u0645\u0631\u062d\u0628\u0627 caf\u00e9 \u2192"
        assert labels.named(arabic) == arabic
    with pytest.warns(QavitWarning, match="no font has 圆红, drawn as boxes.*fonts-noto-cjk") as caught:
        said = [labels.named(text) for text in ("红圆", "圆红")]
    assert said == ["红圆", "圆红"]
    assert [Path(one.filename).name for one in caught] == ["test_plots.py"]
    assert ":glowing_star:" in " ".join(written(result(1, questions=["\U0001f31f?"]).figure()))
    labels._covering.cache_clear()


def test_fonts_that_came_after_matplotlibs_list_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import font_manager

    manager = font_manager.fontManager
    wanted = next((font for font in manager.ttflist if font.name in labels.FAMILIES), None)
    if wanted is None:
        pytest.skip("none of the families is installed (Debian: fonts-noto-cjk)")
    files = {font.fname for font in manager.ttflist if font.name in labels.FAMILIES}
    monkeypatch.setattr(manager, "ttflist", [font for font in manager.ttflist if font.fname not in files])
    labels._covering.cache_clear()
    labels._new_fonts.cache_clear()
    assert len(labels.families("红")) == 2
    labels._covering.cache_clear()


def test_wrapping() -> None:
    assert labels.wrap("where is the red star", 10) == ["where is", "the red", "star"]
    assert labels.wrap("红色的圆在哪里？这个", 10) == ["红色的圆在", "哪里？这个"]
    assert labels.wrap("红色的圆在？哪里", 10) == ["红色的圆", "在？哪里"]
    assert labels.wrap("a" * 25, 10) == ["a" * 10, "a" * 10, "a" * 5]
    assert labels.wrap("one two three four five", 9, 2) == ["one two", "three…"]
    assert labels.wrap("  ", 10) == [""]
    assert all(labels.display_width(line) <= 12 for line in labels.wrap("mixed 文字 and words 混排 of all kinds", 12))


def test_dollars_and_markup_are_drawn_as_they_stand() -> None:
    pixels(result(1, questions=["is $x_1$ {worth} $5 or \\frac{? \x07 \t ok"]).figure())


def test_chinese_is_drawn_where_a_font_has_it() -> None:
    families = labels.families("红色的圆")
    if len(families) == 1:
        pytest.skip("no installed font has Chinese glyphs (Debian: fonts-noto-cjk)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = result(questions=["红色的圆在哪里？", "x"]).figure()
        figure.savefig(io.BytesIO(), format="png")
    assert labels.families("plain text") == ["DejaVu Sans"]


# ---- the functions of existing scripts ----


def lavis_picture(img: Any, att: Any, blur: bool, overlap: bool) -> Any:
    """What the field's function draws, by scikit-image and SciPy."""
    transform = pytest.importorskip("skimage.transform")
    ndimage = pytest.importorskip("scipy.ndimage")
    import matplotlib

    att = (att - att.min()) / (att.max() - att.min())
    att = transform.resize(att, img.shape[:2], order=3, mode="constant")
    if blur:
        att = ndimage.gaussian_filter(att, 0.02 * max(img.shape[:2]))
        att = (att - att.min()) / (att.max() - att.min())
    colour = matplotlib.colormaps["jet"](att)[..., :3]
    weight = (att**0.7)[..., None]
    return (1 - weight) * img + weight * colour if overlap else colour


@pytest.mark.parametrize(
    ("grid", "size"), [((24, 24), (120, 200)), ((12, 12), (97, 64)), ((7, 5), (300, 40)), ((24, 24), (20, 60))]
)
@pytest.mark.parametrize(("blur", "overlap"), [(True, True), (False, True), (True, False)])
def test_getattmap_is_the_fields_picture(grid: tuple[int, int], size: tuple[int, int], blur: bool, overlap: bool) -> None:
    rng = np.random.default_rng(0)
    img, att = rng.random((*size, 3)), rng.random(grid) ** 3
    before = att.copy()
    ours = getAttMap(img, att, blur, overlap)
    assert np.array_equal(att, before)
    assert ours.shape == (*size, 3)
    theirs = lavis_picture(img, att, blur, overlap)
    # A value within rounding of a colour's edge may take the next of jet's 256 colours; elsewhere seen: 3e-8.
    difference = np.abs(ours - theirs).max(-1)
    assert np.quantile(difference, 0.995) < 3e-7
    assert difference.max() < 0.02


@pytest.mark.parametrize("blur", [True, False])
def test_getattmap_of_a_flat_map_is_finite(blur: bool) -> None:
    flat = np.full((4, 4), 0.3)
    assert np.isfinite(getAttMap(np.zeros((40, 40, 3)), flat, blur)).all()
    assert np.isfinite(getAttMap(np.zeros((40, 40, 3), np.uint8), np.zeros((4, 4)), blur)).all()


def test_show_cam_on_image() -> None:
    img = np.random.default_rng(0).random((20, 30, 3)).astype(np.float32)
    mask = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    before = img.copy(), mask.copy()
    shown = show_cam_on_image(img, mask, image_weight=0.3)
    assert shown.dtype == np.uint8
    assert shown.max() == 255
    mixed = 0.7 * plots_pixels.colorize(mask, "jet") / 255.0 + 0.3 * img
    assert np.abs(shown - 255 * mixed / mixed.max()).max() <= 1
    assert np.array_equal(img, before[0])
    assert np.array_equal(mask, before[1])
    swapped = show_cam_on_image(img[..., ::-1], mask, use_rgb=False, image_weight=0.3)
    assert np.abs(swapped[..., ::-1].astype(int) - shown).max() <= 1
    assert show_cam_on_image(np.zeros((4, 4, 3)), np.zeros((4, 4)), image_weight=1.0).max() == 0
    for bad_img, bad_mask, weight, message in [
        (img, mask[:5], 0.5, "mask"),
        (img * 255, mask, 0.5, "img"),
        (img, mask, 1.2, "image_weight"),
    ]:
        with pytest.raises(ValueError, match=message):
            show_cam_on_image(bad_img, bad_mask, image_weight=weight)


def test_a_nearly_flat_map_says_so_below_it() -> None:
    even = np.full((2, 6, 6), 1 / 36, np.float32)
    even[0, 2, 3] *= 1.05
    even[1, 2, 3] *= 3
    one = HeatmapResult(even / even.sum(axis=(1, 2), keepdims=True), ["a?", "b?"], np.zeros((60, 60, 3), np.uint8), None)
    assert notes_of(one, 0) == ["Nearly flat: peak 1.05 × uniform, so where it is largest says little"]
    assert notes_of(one, 1) == notes_of(one, None) == []
    blank = HeatmapResult(np.zeros((1, 6, 6), np.float32), [""], np.zeros((60, 60, 3), np.uint8), None)
    assert notes_of(blank, 0) == []
