"""Figures drawn as pixels, beside those of matplotlib."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, features
from test_plots import result as grey_result

from qavit import HeatmapResult
from qavit._base.resampling import grid_weights, spread
from qavit._base.warnings import Note
from qavit.images import Region
from qavit.plots import KINDS, colorize
from qavit.plots import _labels as labels
from qavit.plots import _raster as raster
from qavit.plots import _writing as writing
from qavit.plots._figures import make_figure, render
from qavit.plots._look import Look
from qavit.plots._png import png_of
from qavit.plots._sheet import TITLE_SIZE, Sheet, sheet_of, ticks_between

ROOT = Path(__file__).parent.parent
DPI = 100


def result(count: int = 2, size: tuple[int, int] = (60, 90), **changes: Any) -> HeatmapResult:
    """Maps with one hot patch each, over a picture whose colours change from left to right and from top to bottom."""
    height, width = size
    across, down = np.linspace(40, 200, width), np.linspace(60, 220, height)
    picture = np.stack(np.broadcast_arrays(across[None, :], down[:, None], 128.0), axis=-1).astype(np.uint8)
    return grey_result(count, size, **{"picture": picture, **changes})


def drawn(shown: HeatmapResult, kind: Any = None, dpi: float = DPI, **look: Any) -> npt.NDArray[np.int64]:
    image = raster.draw_pixels(shown, kind, Look(**look), dpi)
    assert image is not None
    return np.asarray(image).astype(np.int64)


def by_matplotlib(shown: HeatmapResult, kind: Any = None, dpi: float = DPI, **look: Any) -> npt.NDArray[np.int64]:
    file = io.BytesIO(render(make_figure(shown, kind, Look(**look)), "png", dpi))
    return np.asarray(Image.open(file).convert("RGB")).astype(np.int64)


def panels(pixels: npt.NDArray[np.int64], sheet: Sheet) -> list[npt.NDArray[np.int64]]:
    """The panels of a drawn figure, without their outermost pixels."""
    cut = []
    for place, _ in sheet.panels:
        left, right = round(place.left * DPI) + 2, round((place.left + place.width) * DPI) - 2
        low, high = sheet.height - place.bottom, sheet.height - place.bottom - place.height
        cut.append(pixels[round(high * DPI) + 2 : round(low * DPI) - 2, left:right])
    return cut


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("size", "look"),
    [((60, 90), {}), ((90, 60), {"contours": True, "boxes": 0.5, "shared": False}), ((400, 400), {"image_weight": 0.3})],
)
def test_pixels_are_those_of_matplotlib_to_the_eye(kind: Any, size: tuple[int, int], look: dict[str, Any]) -> None:
    notes = (Note("question_cut", "The end of the question was left out.", 1),)
    shown = result(size=size, notes=notes)
    fast, slow = drawn(shown, kind, **look), by_matplotlib(shown, kind, **look)
    assert np.abs(np.subtract(fast.shape, slow.shape)).max() <= 1
    sheet = sheet_of(shown, kind, Look(**look))
    for one, other in zip(panels(fast, sheet), panels(slow, sheet)):
        apart = np.abs(one - other)
        assert np.median(apart) <= 2
        assert apart.mean() < 7
    # Outside of the panels: as much ink, in the same rows and columns of a coarse grid.
    images = [Image.fromarray(pixels.astype(np.uint8)).resize((16, 12), Image.Resampling.BOX) for pixels in (fast, slow)]
    one, other = (np.asarray(image).astype(int) for image in images)
    assert np.abs(one - other).max() < 40


@pytest.mark.parametrize(("letter", "columns"), [("W", 1), ("W", 4), ("m", 4), ("a", 2), ("é", 4)])
def test_a_word_of_any_length_stays_in_its_panel(letter: str, columns: int) -> None:
    shown = result(columns, size=(90, 90), questions=[letter * 300] * columns)
    shown = dataclasses.replace(shown, notes=(Note("unknown", f"No word of {'W' * 300} is known.", 0),))
    sheet = sheet_of(shown, "overlay", Look())
    for line in sheet.lines:
        canvas = Image.new("RGB", (10, 10))
        wide = writing.write(canvas, line.text, (0, 0), line.size, "black") / 72
        assert line.x + wide <= sheet.width
        if line.size == TITLE_SIZE:
            panel = min((place for place, _ in sheet.panels), key=lambda place: abs(place.left - line.x))
            assert wide <= panel.width + 0.05
    assert len({line.y for line in sheet.lines if line.size == TITLE_SIZE}) == 8  # the most lines of a text


def test_colours_over_the_picture_are_those_of_the_overlay() -> None:
    shown = result(1, size=(290, 290))
    (panel,) = panels(drawn(shown, "overlay"), sheet_of(shown, "overlay", Look()))
    exact = shown.overlay(size=(panel.shape[0] + 4, panel.shape[1] + 4))[2:-2, 2:-2].astype(int)
    assert np.abs(panel - exact).max() <= 3
    (own,) = panels(drawn(shown, "heatmap", cmap="jet"), sheet_of(shown, "heatmap", Look()))
    rows, columns = own.shape[:2]
    hot, cold = own[rows // 2, columns * 3 // 8], own[rows // 6, columns // 8]
    assert hot.tolist() == colorize(1.0, "jet").tolist()
    assert cold.tolist() == colorize(0.01, "jet").tolist()


def test_what_was_not_seen_is_faded_and_the_rest_framed() -> None:
    shown = result(1, size=(290, 400))
    sheet = sheet_of(shown, "original", Look())
    (panel,) = panels(drawn(shown, "original"), sheet)
    height, width = panel.shape[:2]
    picture = np.asarray(Image.fromarray(shown.picture).resize((width + 4, height + 4), Image.Resampling.BICUBIC))
    picture = picture[2:-2, 2:-2].astype(int)
    assert np.abs(panel[:, width // 2] - picture[:, width // 2]).max() <= 2
    assert np.abs(panel[:, 4] - (0.4 * picture[:, 4] + 0.6 * 236)).max() <= 2
    edge = (width + 4) * 55 / 400 - 2
    dark = (panel[:, round(edge) - 2 : round(edge) + 3].min(axis=(1, 2)) < 60).mean()
    assert 0.4 < dark < 0.75  # four parts of seven


def test_lines_stand_out_on_dark_and_on_bright_pictures() -> None:
    for grey in (0, 255):
        shown = result(1, size=(290, 290), picture=np.full((290, 290, 3), grey, np.uint8))
        (lines,) = panels(drawn(shown, "overlay", contours=True), sheet_of(shown, "overlay", Look()))
        apart = np.abs(lines - grey).max(axis=2) > 100
        assert 0.005 < apart.mean() < 0.1
        rows, columns = np.nonzero(apart)
        assert abs(rows.mean() / lines.shape[0] - 0.5) < 0.02  # round the hot patch
        assert abs(columns.mean() / lines.shape[1] - 0.375) < 0.02
        (framed,) = panels(drawn(shown, "overlay", boxes=0.5, image_weight=1.0), sheet_of(shown, "overlay", Look()))
        rows, columns = np.nonzero(np.abs(framed - grey).max(axis=2) > 200)
        box = shown.boxes(0.5)[0][0]
        assert abs(columns.min() - box.left * framed.shape[1] / 290) <= 4
        assert abs(rows.max() - box.bottom * framed.shape[0] / 290) <= 4


def test_a_flat_map_has_no_contours() -> None:
    pale = np.full((1, 3, 4), 1 / 12, np.float32)
    flat = result(1, maps=pale, word_maps=None, words=None, block_maps=None)
    lines, none = drawn(flat, "overlay", contours=True, caption=""), drawn(flat, "overlay", image_weight=1.0, caption="")
    assert np.array_equal(lines, none)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (7, 5)])
def test_pictures_of_any_size(size: tuple[int, int]) -> None:
    for kind in ("questions", "panels", "patches"):
        assert drawn(result(size=size), kind, dpi=60).std() > 5


def test_padded_pictures() -> None:
    shown = result(1, size=(60, 90), seen=Region(0.0, -15.0, 90.0, 75.0))
    fast, slow = drawn(shown, "panels"), by_matplotlib(shown, "panels")
    for one, other in zip(*(panels(pixels, sheet_of(shown, "panels", Look())) for pixels in (fast, slow))):
        assert np.median(np.abs(one - other)) <= 2


def test_a_figure_too_large_to_draw_is_refused(tmp_path: Path) -> None:
    many = result(30)
    with pytest.raises(ValueError, match=r"dpi: at 2400 the figure would have \d+ x \d+ pixels, expected at most"):
        many.save(tmp_path / "a.png", dpi=2400)
    for ending in (".png", ".webp", ".jpeg"):
        with pytest.raises(ValueError, match="dpi: got 5, expected 10 to 2400"):
            many.save(tmp_path / f"a{ending}", dpi=5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ["png", "PNG", "jpg", "webp"])
def test_files_of_pixels(tmp_path: Path, ending: str) -> None:
    shown = result(1)
    with Image.open(shown.save(tmp_path / f"a.{ending}", dpi=72)) as image:
        assert image.format == {"jpg": "JPEG"}.get(ending.lower(), ending.upper())
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - drawn(shown, dpi=72)).mean() < 3
        if ending != "webp":
            assert [round(side) for side in image.info["dpi"]] == [72, 72]


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (17, 5), (300, 257)])
def test_png_is_read_back_as_it_was(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    with Image.open(io.BytesIO(png_of(pixels, 150.0))) as image:
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), pixels)
        image.load()


def test_matplotlib_draws_nothing_of_a_file_of_pixels(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\nfrom qavit import HeatmapResult\n"
        "r = HeatmapResult(np.ones((2, 2, 2)), ['ä ×?', 'b'], np.zeros((9, 9, 3), np.uint8))\n"
        "r.save(sys.argv[1]); r._repr_jpeg_()\n"
        "there = {'matplotlib.figure', 'matplotlib.font_manager', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "assert not there, there\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


# ---- texts ----


def test_texts_that_only_matplotlib_sets_right_are_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    arabic = result(1, questions=["أين المربع؟"])
    plain = result(1)
    monkeypatch.setattr(features, "check", lambda name: False)
    assert raster.draw_pixels(arabic, None, Look(), DPI) is None
    assert raster.draw_pixels(plain, None, Look(), DPI) is not None
    with Image.open(io.BytesIO(arabic._repr_jpeg_())) as image:
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - by_matplotlib(arabic)).mean() < 2
    monkeypatch.setattr(features, "check", lambda name: True)
    monkeypatch.setattr(labels, "runs", lambda text: [(text, ("a", 0)), (text, ("b", 0))])
    assert not writing.can_write("أين المربع؟")  # two fonts, whose order is not the letters' own
    assert writing.can_write("red")


def test_each_part_of_a_text_has_a_font_that_has_it() -> None:
    assert labels.runs("where is ñ × ·?") == [("where is ñ × ·?", labels.base_font())]
    assert labels.runs("") == []
    if len(labels.families("红")) == 1:
        pytest.skip("no installed font has Chinese glyphs (Debian: fonts-noto-cjk)")
    parts = labels.runs("the 红 圆, too")
    assert [text for text, _ in parts] == ["the ", "红 圆", ", too"]
    assert parts[0][1] == parts[2][1] == labels.base_font()
    assert parts[1][1] != labels.base_font()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chinese, boxes = (Image.new("RGB", (90, 40), "white") for _ in range(2))
        assert writing.write(chinese, "红圆", (5, 30), 20, "black") == pytest.approx(40, abs=2)
    writing.write(boxes, "\ue000\ue000", (5, 30), 20, "black")
    assert np.abs(np.asarray(chinese).astype(int) - np.asarray(boxes)).max() > 200


def test_control_characters_and_halves_of_pairs_do_nothing() -> None:
    shown = result(1, questions=["a\tb\x07\ud800 $x_1$ {b} \\frac <b>"])
    assert drawn(shown, dpi=60).std() > 5


@pytest.mark.parametrize(
    ("scale", "most", "percent", "written"),
    [
        ((0.0, 0.343), 5, True, ["0%", "10%", "20%", "30%"]),
        ((0.0, 0.124), 5, True, ["0.0%", "2.5%", "5.0%", "7.5%", "10.0%"]),
        ((0.0, 0.0021), 3, True, ["0.0%", "0.1%", "0.2%"]),
        ((-1.0, 1.0), 5, False, ["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
        ((0.0, 4e-7), 5, False, ["0", "1e-07", "2e-07", "3e-07", "4e-07"]),
        ((0.0, 5e9), 5, False, ["0", "1e+09", "2e+09", "3e+09", "4e+09", "5e+09"]),
    ],
)
def test_ticks(scale: tuple[float, float], most: int, percent: bool, written: list[str]) -> None:
    ticks = ticks_between(scale, most, percent)
    assert [text for _, text in ticks] == written
    assert all(scale[0] - 1e-12 <= value <= scale[1] * (1 + 1e-9) for value, _ in ticks)


@pytest.mark.parametrize(("height", "width"), [(3, 2), (500, 700), (2, 40_000)])
def test_maps_spread_in_strips_are_those_of_one_product(height: int, width: int) -> None:
    values = np.random.default_rng(0).random((2, 9, 24)).astype(np.float32)
    rows, columns = grid_weights(9, height, "cubic").astype(np.float32), grid_weights(24, width, "cubic").astype(np.float32)
    assert np.allclose(spread(rows, values, columns), rows @ values @ columns.T, atol=1e-6)
