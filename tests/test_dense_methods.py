"""The dense methods: exact to the public code's maps, one pass for any number of texts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reference import close
from test_vit_dense import golden_tower

import qavit
from qavit.data import HeatmapActor
from qavit.methods import _registry
from qavit.methods._look import Options

FOLDER = Path(__file__).parent / "data" / "golden" / "methods_clip"
GOLDEN = np.load(FOLDER / "golden.npz")
TEXTS = ["a dog", "the cat's ear", "a photo of a red car on the left"]
MODEL = SimpleNamespace(
    reads=frozenset({"texts", "class_token"}), num_blocks=8, question_blocks=(), default_block=7, usable_blocks=(7,)
)


class Look:
    """What a dual encoder gives for one picture, and how often its tower was asked."""

    def __init__(self, pictures: slice, texts: np.ndarray) -> None:
        self.texts, self.options, self.image, self.passes = texts, Options(), None, 0
        self.grid, self._tower = (6, 6), golden_tower()
        self._pictures = GOLDEN["pixel_values"][pictures]

    def dense(self, method: str, first: Any) -> np.ndarray:
        self.passes += 1
        patches, self.image = self._tower.dense(self._pictures, method, first)
        return patches

    def empty(self, text: str) -> np.ndarray:
        assert text == ""
        return GOLDEN["empty_text_embedding"]


def read(name: str, pictures: slice, texts: np.ndarray, block: Any = None) -> tuple[np.ndarray, Look]:
    method = _registry.all_methods()[name]
    blocks = list(method.default(MODEL)) if block is None else block
    method.check(MODEL, blocks)
    look = Look(pictures, texts)
    return method.read(look, blocks, "mean"), look


@pytest.mark.parametrize("name", ["maskclip", "sclip", "clearclip", "naclip", "surgery", "gem"])
def test_public_code(name: str) -> None:
    for picture in range(2):
        found, look = read(name, slice(picture, picture + 1), GOLDEN["text_embeddings"])
        close(found.reshape(3, 6, 6), GOLDEN[name][picture], 1e-5)  # 2e-6
        assert look.passes == 1
        close(look.image, GOLDEN["image_embeddings"][picture : picture + 1], 1e-5)
    pairs, look = read(name, slice(None), GOLDEN["text_embeddings"][1:])
    assert look.passes == 1
    expected = GOLDEN["surgery_empty" if name == "surgery" else name]
    close(pairs.reshape(2, 6, 6), np.stack([expected[0, 1], expected[1, 2]]), 1e-5)


def test_surgery_of_one_text_is_compared_with_the_empty_one() -> None:
    for text in range(3):
        found, _ = read("surgery", slice(0, 1), GOLDEN["text_embeddings"][text : text + 1])
        close(found.reshape(6, 6), GOLDEN["surgery_empty"][0, text], 1e-5)


def test_blocks() -> None:
    texts, one = GOLDEN["text_embeddings"], slice(0, 1)
    close(read("gem", one, texts, [6])[0].reshape(3, 6, 6), GOLDEN["gem_depth3"][0], 1e-5)
    np.testing.assert_array_equal(read("gem", one, texts, [6, 7])[0], read("gem", one, texts, [6])[0])
    gem, maskclip = (_registry.all_methods()[name] for name in ("gem", "maskclip"))
    assert gem.default(MODEL) == (2, 3, 4, 5, 6, 7)
    assert gem.default(SimpleNamespace(num_blocks=3)) == (0, 1, 2)
    assert maskclip.default(MODEL) == (7,)
    assert gem.blocks(MODEL) == tuple(range(8))
    every = gem.by_block(Look(one, texts), [2, 6], None)
    np.testing.assert_array_equal(every, np.stack([read("gem", one, texts, [block])[0] for block in (2, 6)], axis=1))
    with pytest.raises(ValueError, match=r"from a block to the last one, 7.*got \[5, 6\]"):
        gem.check(MODEL, [5, 6])
    with pytest.raises(ValueError, match=r"'maskclip' is of the last block, 7, alone; got \[5\]"):
        maskclip.check(MODEL, [5])


def test_which_models_they_suit() -> None:
    gem = _registry.all_methods()["gem"]
    assert gem.suits(MODEL)
    assert not gem.suits(SimpleNamespace(reads=frozenset({"attention"}), question_blocks=()))
    assert not gem.suits(SimpleNamespace(reads=frozenset({"texts", "class_token"}), question_blocks=(3,)))
    assert not gem.suits(SimpleNamespace(reads=frozenset({"texts", "attention_head"}), question_blocks=()))
    with pytest.raises(ValueError, match="score: method 'gem' does not take it"):
        gem.check_options(MODEL, Options(score="softmax"))
    surgery = _registry.all_methods()["surgery"]
    surgery.check_options(MODEL, Options(empty="a photo"))
    assert surgery.compares(Options())
    assert not gem.compares(Options())


# ---- through a loaded model ----


class Counted:
    """A tower that says how often it was run."""

    def __init__(self, tower: Any) -> None:
        self.tower, self.passes = tower, 0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.tower, name)
        if not callable(value):
            return value

        def called(*arguments: Any, **options: Any) -> Any:
            self.passes += 1
            return value(*arguments, **options)

        return called


@pytest.mark.filterwarnings("ignore::qavit.QavitWarning")
@pytest.mark.parametrize("name", ["maskclip", "sclip", "clearclip", "naclip", "surgery", "gem"])
def test_one_pass_gives_maps_and_scores_of_all_texts(name: str) -> None:
    model: Any = qavit.load(FOLDER)
    model._vit = Counted(model._vit)
    pixels = GOLDEN["pixel_values"][:1]
    result = model.heatmaps(pixels, TEXTS, method=name)
    assert model._vit.passes == 1
    close(result.raw, GOLDEN[name][0], 1e-5)
    close(result.scores, GOLDEN["cosine"][0], 1e-5)
    np.testing.assert_allclose(result.maps.sum(axis=(1, 2)), 1, rtol=1e-5)
    shifted = result.raw - np.minimum(result.raw.min(axis=(1, 2), keepdims=True), 0)
    np.testing.assert_allclose(result.maps, shifted / shifted.sum(axis=(1, 2), keepdims=True), atol=1e-6)
    assert result.block == (7 if name not in ("gem", "surgery") else (2, 3, 4, 5, 6, 7))
    if name in ("gem", "surgery"):
        np.testing.assert_allclose(result.at(6).raw, model.heatmaps(pixels, TEXTS, method=name, block=6).raw, atol=1e-6)


@pytest.mark.filterwarnings("ignore::qavit.QavitWarning")
def test_what_a_single_text_is_compared_with() -> None:
    model = qavit.load(FOLDER)
    pixels = GOLDEN["pixel_values"][:1]
    alone = model.heatmaps(pixels, TEXTS[1], method="surgery")
    close(alone.raw[0], GOLDEN["surgery_empty"][0, 1], 1e-5)
    other = model.heatmaps(pixels, TEXTS[1], method="surgery", empty="a photo")
    given = model.heatmaps(pixels, TEXTS[1], method="surgery", empty=model.encode_text("a photo"))
    np.testing.assert_allclose(other.raw, given.raw, atol=1e-6)
    assert np.abs(other.raw - alone.raw).max() > 1e-3
    with pytest.raises(ValueError, match="empty: method 'gem' does not take it"):
        model.heatmaps(pixels, TEXTS, method="gem", empty="a photo")
    with pytest.raises(ValueError, match="heads: method 'gem' does not take it"):
        model.heatmaps(pixels, TEXTS, method="gem", heads=1)
    with pytest.raises(ValueError, match=r"block: method 'gem' has a path from a block to the last one, 7"):
        model.heatmaps(pixels, TEXTS, method="gem", block=[2, 4])


@pytest.mark.filterwarnings("ignore::qavit.QavitWarning")
def test_a_data_sets_row_is_of_its_own_text(tmp_path: Path) -> None:
    """Surgery's label set is a call's texts: of a data set, each row's alone, whatever lies beside it."""
    Image.fromarray(GOLDEN["image_u8"][0]).save(tmp_path / "a.png")
    actor = HeatmapActor(FOLDER, method="surgery")
    rows = actor({"image": [str(tmp_path / "a.png")] * 3, "question": TEXTS})
    model = qavit.load(FOLDER)
    for row, text in enumerate(TEXTS):
        alone = model.heatmaps(tmp_path / "a.png", text, method="surgery")
        close(alone.raw[0], GOLDEN["surgery_empty"][0, row], 1e-5)
        np.testing.assert_allclose(rows["map"][row] * rows["scale"][row], alone.raw.ravel(), atol=1e-5)
