"""Whatever has a place in a result has it in the picture that was given, however that was resized and cropped.

The check goes round: a white box is painted where the result says that a patch lies, and the model's own preprocessing has
to bring the white to that very patch of its input.
"""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import qavit
from qavit import HeatmapResult
from qavit.heatmaps import Patch
from qavit.images import Preprocessing, preprocess
from qavit.plots import _figures as plots_figures

GRID = (6, 6)
MODELS = {
    "crop": Preprocessing(96, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    "exact": Preprocessing(96, resize="exact", crop=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
}
SIZES = [(96, 96), (200, 300), (300, 200), (123, 77), (48, 480), (1000, 900)]

every_model_and_size = pytest.mark.parametrize(
    ("model", "size"), [(model, size) for model in MODELS for size in SIZES], ids=str
)


def hot(model: str, size: tuple[int, int], row: int, column: int) -> HeatmapResult:
    """A map with one hot patch, of a grey picture that was preprocessed as the model does."""
    picture = np.full((*size, 3), 128, np.uint8)
    maps = np.full((1, *GRID), 0.001, np.float32)
    maps[0, row, column] = 1.0
    return HeatmapResult(maps, ["where?"], picture, preprocess(picture, MODELS[model])[1])


def patch_of_box(model: str, size: tuple[int, int], box: Any) -> tuple[int, int]:
    """The patch of the model's input in which a white box of the picture arrives."""
    picture = np.zeros((*size, 3), np.uint8)
    picture[round(box.top) : round(box.bottom), round(box.left) : round(box.right)] = 255
    pixels = preprocess(picture, MODELS[model])[0]
    side = pixels.shape[1] // GRID[0]
    light = pixels[0].reshape(GRID[0], side, GRID[1], side).mean(axis=(1, 3))
    row, column = np.unravel_index(light.argmax(), GRID)
    # Rounding to whole pixels takes at most half a pixel from each edge; in the smallest pictures a patch has eight.
    assert light.max() > 0.75
    assert np.sort(light.ravel())[-2] < 0.3
    return int(row), int(column)


@every_model_and_size
@pytest.mark.parametrize("place", [(0, 0), (2, 4), (5, 1), (5, 5)], ids=str)
def test_patches_boxes_and_rows_lie_in_the_picture(model: str, size: tuple[int, int], place: tuple[int, int]) -> None:
    result = hot(model, size, *place)
    best = result.top_patches(1)[0][0]
    assert (best.row, best.column) == place
    assert patch_of_box(model, size, best) == place
    (box,) = result.boxes(0.5)[0]
    assert (box.left, box.top, box.right, box.bottom) == pytest.approx((best.left, best.top, best.right, best.bottom))
    assert box.peak == 1.0
    assert result.statistics()[0]["top_patches"][0] == best.index == place[0] * GRID[1] + place[1]
    assert Patch(**result.to_dict()["questions"][0]["top_patches"][0]) == best
    pandas = pytest.importorskip("pandas")
    table = result.to_dataframe()
    assert isinstance(table, pandas.DataFrame)
    row = table.loc[table["value"].idxmax()]
    assert Patch(*(row[field.name] for field in dataclasses.fields(Patch))) == best
    seen = result.seen
    assert seen.patch_at((best.left + best.right) / 2, (best.top + best.bottom) / 2, GRID) == place


@every_model_and_size
@pytest.mark.parametrize("resampling", ["bicubic", "bilinear", "nearest"])
def test_spread_maps_are_highest_in_their_patch(model: str, size: tuple[int, int], resampling: str) -> None:
    result = hot(model, size, 2, 4)
    best = result.top_patches(1)[0][0]
    for wanted, scale in [(None, 1.0), (60, 60 / max(size)), ((2 * size[0], 2 * size[1]), 2.0)]:
        spread = result.upsample(wanted, resampling=resampling, normalize="minmax")[0]
        assert spread.shape == tuple(max(1, round(side * scale)) for side in size)
        y, x = np.nonzero(spread > 0.999 * spread.max())
        down, across = size[0] / spread.shape[0], size[1] / spread.shape[1]
        slack = 1.0 if resampling == "nearest" else 0.0
        assert best.left - slack * across <= (x.min() + 0.5) * across
        assert (x.max() + 0.5) * across <= best.right + slack * across
        assert best.top - slack * down <= (y.min() + 0.5) * down
        assert (y.max() + 0.5) * down <= best.bottom + slack * down
    # What the model did not see has no attention.
    full = result.upsample(resampling=resampling)[0]
    centres_x, centres_y = np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5
    seen = result.seen
    outside = (centres_x[None] < seen.left) | (centres_x[None] > seen.right)
    outside = outside | (centres_y[:, None] < seen.top) | (centres_y[:, None] > seen.bottom)
    assert not full[np.broadcast_to(outside, full.shape)].any()
    assert (full[~outside] > 0).all()


@every_model_and_size
def test_what_is_drawn_is_hot_where_the_patch_lies(model: str, size: tuple[int, int]) -> None:
    result = hot(model, size, 2, 4)
    best = result.top_patches(1)[0][0]
    middle = (best.left + best.right) / 2, (best.top + best.bottom) / 2
    pixels = result.overlay(image_weight=0.0, resampling="nearest").astype(int)
    assert pixels.shape == (*size, 3)
    red = pixels[..., 0] - pixels[..., 2] > 100
    assert red[int(middle[1]), int(middle[0])]
    assert red.sum() == pytest.approx((best.right - best.left) * (best.bottom - best.top), rel=0.3)
    # The axes of a plot are in the picture's pixels: what a caller adds to them lands where it should.
    axes = result.plot(kind="overlay", image_weight=0.0)
    seen = result.seen
    whole = max(size) <= 3 * min(size) or (seen.right - seen.left >= size[1] and seen.bottom - seen.top >= size[0])
    left, right = (0, size[1]) if whole else (max(0, seen.left - 12), min(size[1], seen.right + 12))
    assert axes.get_xlim() == pytest.approx((left, right))
    assert axes.get_ylim() == pytest.approx((size[0], 0))
    figure: Any = axes.get_figure()
    figure.set_dpi(120)
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba()).astype(int)
    x, y = axes.transData.transform(middle)
    colour = drawn[drawn.shape[0] - 1 - int(y), int(x)]
    assert colour[0] - colour[2] > 100


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_turned_photograph_is_upright_and_so_are_its_places(orientation: int, tmp_path: Path) -> None:
    upright = np.zeros((60, 120, 3), np.uint8)
    upright[10:30, 20:50] = (250, 250, 250)
    turned = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned picture.jpg"
    Image.fromarray(np.rot90(upright, turned)).save(path, exif=exif, quality=95)

    def brightest(attention: Any) -> Any:
        return np.eye(1, 144, 2 * 12 + 4, dtype=np.float32)

    model: Any = qavit.load("demo")
    result = model.heatmaps(path, "where is the square?", method=brightest)
    assert result.picture_size == (60, 120)
    assert np.abs(result.picture.astype(int) - upright).mean() < 4
    best = result.top_patches(1)[0][0]
    # The middle 60 pixels of the width are seen, 5 pixels a patch.
    assert (best.left, best.top, best.right, best.bottom) == pytest.approx((30 + 20, 10, 30 + 25, 15), abs=1e-6)
    assert result.method == "brightest"


def test_names_of_normalizations() -> None:
    maps = np.random.default_rng(0).random((2, *GRID)).astype(np.float32)
    result = HeatmapResult(maps, ["a", "b"], np.zeros((50, 80, 3), np.uint8))
    raw = np.asarray(result)
    assert raw.dtype == np.float32
    assert np.array_equal(raw, maps)
    assert np.array_equal(result.normalized(None), maps)
    assert (result.normalized("minmax").min(), result.normalized("minmax").max()) == (0, 1)
    assert np.allclose(result.normalized("sum").sum(axis=(1, 2)), 1, atol=1e-6)
    assert np.allclose(result.normalized("max"), maps / maps.max(), atol=1e-6)
    for name in (None, "minmax", "sum", "max"):
        nearest = result.upsample((6 * 5, 6 * 7), resampling="nearest", normalize=name)
        assert np.array_equal(nearest[:, 2::5, 3::7], result.normalized(name))
    # One scale for what is compared, a scale each on request.
    assert result.normalized("max")[0].max() != result.normalized("max")[1].max()
    assert [values.max() for values in result.normalized("max", shared=False)] == [1, 1]
    with pytest.raises(ValueError, match=r"normalize.*softmax.*'minmax'"):
        result.normalized("softmax")


def test_numpy_takes_a_result_as_an_array() -> None:
    result = hot("crop", (40, 60), 1, 1)
    assert np.asarray(result) is result.maps
    assert np.array(result) is not result.maps
    assert np.asarray(result, dtype=np.float64).dtype == np.float64
    assert np.allclose(np.sqrt(result), np.sqrt(result.maps))
    assert np.add(result, 1).shape == (1, *GRID)
    with pytest.raises(ValueError, match="copy"):
        np.asarray(result, dtype=np.float64, copy=False) if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else (
            result.__array__(np.float64, copy=False)
        )


def test_a_notebook_shows_results_and_figures() -> None:
    result = hot("crop", (40, 60), 1, 1)
    figure: Any = result.figure()
    for shown in (result, figure):
        assert Image.open(io.BytesIO(shown._repr_jpeg_())).size[0] > 100
    assert plots_figures.render(figure, "pdf").startswith(b"%PDF")
