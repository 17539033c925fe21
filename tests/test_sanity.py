"""Maps of the bundled model by gradients, beside its attention: whether they point, and whether they are of its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import qavit
from qavit.metrics import sanity_checks

GOLDEN = Path(__file__).parent / "data" / "golden"
SCENE = Path(qavit.__file__).parent / "demo_model" / "scene.png"


@pytest.fixture(scope="module")
def demo() -> qavit.Model:
    return qavit.load("demo")


@pytest.mark.parametrize("method", ["class", "gae", "legrad", "gradcam_attention"])
def test_shuffled_weights_change_the_map(demo: qavit.Model, method: str) -> None:
    found = sanity_checks(demo, SCENE, ["where is the red star?", "what color is the circle?"], method=method, steps=3)
    assert found.blocks == (11, 6, 0)
    assert found.shuffled.shape == (3, 2)
    assert (np.abs(found.shuffled[-1]) < 0.6).all()
    assert (found.swapped < 0.95).all()


def test_maps_before_the_shuffled_blocks_stay(demo: qavit.Model) -> None:
    found = sanity_checks(demo, SCENE, "where is the red star?", method="class", block=8, steps=2)
    assert found.blocks == (11, 0)
    assert found.shuffled[0, 0] == pytest.approx(1.0)
    assert abs(found.shuffled[1, 0]) < 0.6
    assert np.isnan(found.swapped[0])


def test_other_kinds() -> None:
    golden = np.load(GOLDEN / "methods_clip" / "golden.npz")
    model = qavit.load(GOLDEN / "methods_clip")
    found = sanity_checks(model, golden["pixel_values"][0], ["a dog", "the cat's ear"], steps=1)
    assert (found.blocks, found.shuffled.shape) == ((7,), (1, 2))
    assert (found.shuffled < 1).all()
    with pytest.raises(ValueError, match="steps: got 0, expected a number above 0"):
        sanity_checks(model, golden["pixel_values"][0], "a dog", steps=0)
