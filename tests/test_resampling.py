"""The weights that take a grid to another number of cells, beside other libraries' and the definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qavit._base.resampling import grid_weights

SIDES = [(1, 1), (1, 5), (3, 7), (7, 3), (16, 15), (15, 65), (24, 24), (24, 7)]


@pytest.mark.parametrize(("old", "new"), SIDES)
@pytest.mark.parametrize(
    ("kernel", "mode"), [("linear", "bilinear"), ("cubic_sharp", "bicubic"), ("nearest", "nearest-exact"), ("area", "area")]
)
def test_kernels_are_pytorchs(kernel: Any, mode: str, old: int, new: int) -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).standard_normal((old, old))
    options = {"align_corners": False} if mode in ("bilinear", "bicubic") else {}
    theirs = torch.nn.functional.interpolate(torch.from_numpy(values)[None, None], (new, new), mode=mode, **options)
    weights = grid_weights(old, new, kernel)
    if kernel == "area":
        if new > old or old % new:
            return  # theirs takes whole cells
        weights = weights * (new / old)
    np.testing.assert_allclose(weights @ values @ weights.T, theirs[0, 0].numpy(), atol=1e-12)


@pytest.mark.parametrize(("old", "new"), SIDES)
def test_splines_are_scipys(old: int, new: int) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    values = np.random.default_rng(1).standard_normal(old)
    at = (np.arange(new) + 0.5) * old / new - 0.5
    theirs = ndimage.map_coordinates(np.pad(values, 12), [at + 12], order=3, mode="mirror")
    np.testing.assert_allclose(grid_weights(old, new, "spline", "zero") @ values, theirs, atol=1e-12)


@pytest.mark.parametrize(("old", "new"), SIDES)
def test_keyss_cubic_is_pillows(old: int, new: int) -> None:
    if new < old:
        return  # Pillow widens its kernel to make smaller
    from PIL import Image

    values = np.random.default_rng(2).standard_normal((1, old)).astype(np.float32)
    theirs = np.asarray(Image.fromarray(values).resize((new, 1), Image.Resampling.BICUBIC))[0]
    ours = grid_weights(old, new, "cubic") @ values[0]
    # Pillow leaves out what lies beyond the edge, where the edge is repeated here.
    inner = slice(2 * new // old, new - 2 * new // old)
    np.testing.assert_allclose(ours[inner], theirs[inner], atol=1e-6)


@pytest.mark.parametrize(("old", "new"), SIDES)
def test_areas_are_what_lies_in_each(old: int, new: int) -> None:
    weights = grid_weights(old, new, "area")
    np.testing.assert_allclose(weights.sum(axis=0), 1.0, rtol=1e-14)
    for row in range(new):
        for column in range(old):
            shared = min((row + 1) / new, (column + 1) / old) - max(row / new, column / old)
            assert weights[row, column] == pytest.approx(max(shared, 0.0) * old, abs=1e-12)


@pytest.mark.parametrize("kernel", ["nearest", "linear", "cubic", "cubic_sharp"])
def test_what_lies_outside_the_span_has_no_weight(kernel: Any) -> None:
    weights = grid_weights(4, 20, kernel, span=(5.0, 15.0, 20.0))
    assert not weights[:5].any()
    assert not weights[15:].any()
    np.testing.assert_allclose(weights[5:15], grid_weights(4, 10, kernel), atol=1e-15)
    np.testing.assert_allclose(weights[5:15].sum(axis=1), 1.0, atol=1e-15)
    whole = grid_weights(4, 10, kernel, span=(0.0, 40.0, 40.0))
    np.testing.assert_allclose(whole, grid_weights(4, 10, kernel), atol=1e-15)


def test_beyond_the_edge_are_zeros_where_that_is_asked() -> None:
    repeated, zero = grid_weights(5, 20, "cubic"), grid_weights(5, 20, "cubic", "zero")
    np.testing.assert_allclose(repeated.sum(axis=1), 1.0, atol=1e-15)
    assert zero[0].sum() < 0.95
    np.testing.assert_allclose(zero[9:11], repeated[9:11], atol=1e-15)
