"""The dense methods: exact to the public code's maps, one pass for any number of texts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from reference import close
from test_vit_dense import golden_tower

from qavit.methods import _registry
from qavit.methods._look import Options

GOLDEN = np.load(Path(__file__).parent / "data" / "golden" / "methods_clip" / "golden.npz")
MODEL = SimpleNamespace(
    reads=frozenset({"texts", "class_token"}), num_blocks=8, question_blocks=(), default_block=7, usable_blocks=(7,)
)


class Look:
    """What a dual encoder gives for one picture, and how often its tower was asked."""

    def __init__(self, pictures: slice, texts: np.ndarray) -> None:
        self.texts, self.options, self.image, self.passes = texts, Options(), None, 0
        self.grid, self._tower = (6, 6), golden_tower()
        self.inputs = {"pixel_values": GOLDEN["pixel_values"][pictures], "preprocessing": None, "pair_image": None}
        self.tower = SimpleNamespace(dense=self._dense)

    def _dense(self, **given: Any) -> Any:
        self.passes += 1
        return self._tower.dense(**given)

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
