"""Pictures that a model's core resizes and normalises where it computes: the same bits as on the CPU.

The values a device has made are not handed out, so the first hidden states of the same device tell: from pixel values that
the CPU made, and from the pictures.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_blip as blip
from test_cuda import TOLERANCE, close, present, vision

import qavit
from qavit import _core
from qavit.data import HeatmapActor
from qavit.images import DevicePicture, Preprocessing, prepare

Array = Any
QUESTIONS = ["where is the red cube?", "how many spheres are there?"]


@pytest.fixture(params=["cuda-host", "cuda"])
def name(request: pytest.FixtureRequest) -> str:
    return present(request.param)


@pytest.fixture(params=["cpu", "cuda-host", "cuda"])
def device(request: pytest.FixtureRequest) -> Any:
    if request.param == "cpu":
        return None
    return _core.Device(present(request.param))


def noise(height: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng([height, width, seed]).integers(0, 256, (height, width, 3), dtype=np.uint8)


def embedder(size: int, device: Any) -> Any:
    config, weights = vision(None, num_hidden_layers=1, image_size=size, patch_size=size // 3)
    return _core.Vit(config, weights, device=device)


def embedded(vit: Any, pixels: Any, **how: Any) -> Array:
    return vit.forward(pixels, hidden=[0], **how)["hidden"][0]


def arguments(size: int, **how: Any) -> Any:
    return Preprocessing(size, **how).core_arguments()


@pytest.mark.parametrize("size", [3, 27, 48])
@pytest.mark.parametrize(
    "how",
    [
        {}, {"resize": "exact", "crop": False}, {"resize": "longest_edge", "filter": "lanczos"},
        {"resize": "none", "rescale": 1.0}, {"resize_to": 55, "filter": "nearest", "margin": "even"},
        {"resize_to": (2, 20), "filter": "bilinear"}, {"resize": "exact", "resize_to": (60, 20), "filter": "box"},
        {"resize": "cover", "resize_to": (30, 9)}, {"resize": "inside", "resize_to": (30, 9)},
    ],
    ids=lambda how: " ".join(map(str, how.values())) or "shortest edge",
)  # fmt: skip
def test_the_same_bits_for_every_size(device: Any, size: int, how: Any) -> None:
    """One batch of all: one pass, two in either order, none; one pixel; taller and wider than any picture should be."""
    sizes = [
        (1, 1), (1, 7), (7, 1), (2, 3), (size, size), (size, size + 1), (size + 1, size), (size, 3 * size), (5 * size, size),
        (40, 53), (301, 302), (3, 500), (500, 3), (500, 40), (40, 500), (1, 3000), (3000, 1), (17, 1200), (240, 320),
    ]  # fmt: skip
    how = arguments(size, **how)
    pictures = [noise(*one) for one in sizes]
    vit = embedder(size, device)
    expected = embedded(vit, np.stack([_core.preprocess_image(picture, (size, size), how) for picture in pictures]))
    found = embedded(vit, pictures, preprocessing=how)
    for one, here, there in zip(sizes, expected, found):
        assert np.array_equal(here, there), one
    again = embedded(vit, pictures[::-1], preprocessing=how)
    assert np.array_equal(again, expected[::-1])
    pictures[4][..., 1] ^= 64  # another channel shows in these states
    assert not np.array_equal(embedded(vit, pictures, preprocessing=how)[4], expected[4])


def test_pictures_larger_than_pinned_memory(name: str) -> None:
    """12 MB through two halves of 4, a row of 4.5 MB, and weights of as much."""
    vit = embedder(15, _core.Device(name))
    how = arguments(15, resize="exact", crop=False, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    pictures = [noise(2000, 2000), noise(1, 1_500_000), noise(6, 6)]
    expected = embedded(vit, np.stack([_core.preprocess_image(picture, (15, 15), how) for picture in pictures]))
    assert np.array_equal(embedded(vit, pictures, preprocessing=how), expected)


def test_layouts_do_not_matter_and_pictures_are_left_alone(device: Any) -> None:
    how = arguments(27)
    wide = noise(90, 120)
    picture = wide[::2, ::-3]
    vit = embedder(27, device)
    expected = embedded(vit, _core.preprocess_image(picture, (27, 27), how)[None])
    before = wide.copy()
    picture.flags.writeable = False
    assert np.array_equal(embedded(vit, (picture,), preprocessing=how), expected)
    assert np.array_equal(wide, before)


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 3)),
        [[[0, 0, 0]]], None,
    ],
    ids=["2-d", "alpha", "empty", "floats", "list", "none"],
)  # fmt: skip
def test_errors_are_the_cpus(device: Any, picture: Any) -> None:
    how = arguments(27, resize="exact", crop=False)
    with pytest.raises((TypeError, ValueError)) as expected:
        _core.preprocess_image(picture, (27, 27), how)
    vit = embedder(27, device)
    with pytest.raises(expected.type) as found:
        vit.forward([noise(5, 5), picture], hidden=[0], preprocessing=how)
    assert str(found.value) == str(expected.value)


def test_preprocessing_is_checked(device: Any) -> None:
    vit = embedder(27, device)
    right = arguments(27)
    for how in (list(right), right[:-1], (*right[:-1], "abc"), True):
        with pytest.raises(TypeError):
            vit.forward([noise(5, 5)], hidden=[0], preprocessing=how)
    for place, wrong in ((0, 4), (0, -1), (1, (0, 0)), (1, (27, -1)), (1, (1 << 20, 0)), (2, 6), (2, -1)):
        with pytest.raises(ValueError, match="preprocessing: rule"):
            vit.forward([noise(5, 5)], hidden=[0], preprocessing=(*right[:place], wrong, *right[place + 1 :]))
    with pytest.raises(TypeError, match="pictures: expected a sequence"):
        vit.forward(5, hidden=[0], preprocessing=right)
    assert vit.forward([], hidden=[0], preprocessing=right)["hidden"][0].shape[0] == 0


def test_nothing_is_allocated_for_the_next_picture(name: str) -> None:
    there = _core.Device(name)
    vit = embedder(27, there)
    how = arguments(27)
    embedded(vit, [noise(300, 200)], preprocessing=how)
    first = there.counters()
    for height, width in ((300, 200), (20, 30), (200, 290), (300, 200)):
        embedded(vit, [noise(height, width)], preprocessing=how)
    assert there.counters()["allocations"] == first["allocations"]
    embedded(vit, [noise(900, 900)], preprocessing=how)
    assert there.counters()["allocations"] == first["allocations"] + 1
    assert there.counters()["held"] == first["held"]


@pytest.mark.skipif(not _core.build_info()["debug"], reason="the failing allocator is in QAVIT_DEBUG builds")
@pytest.mark.parametrize("where", [None, "cuda-host"])
def test_allocation_failures_are_errors(where: str | None) -> None:
    vit = embedder(27, where and _core.Device(where))
    how = arguments(27)
    expected = embedded(vit, [noise(60, 50)], preprocessing=how)
    failures = 0
    for n in range(1, 60):
        # A new model a time: a device that has the memory for a picture keeps it.
        vit = embedder(27, where and _core.Device(where))
        _core.fail_allocation(n)
        try:
            found = embedded(vit, [noise(60, 50)], preprocessing=how)
        except MemoryError:
            failures += 1
            continue
        finally:
            _core.fail_allocation(0)
        assert np.array_equal(found, expected)
        break
    assert failures > 5


# ---- the package ----


def test_maps_of_pictures(name: str, tmp_path: Path) -> None:
    """The same as of the CPU's pixel values on the same device, to the last bit."""
    model, here = qavit.load("demo", device=name), qavit.load("demo")
    for size in ((64, 64), (120, 97), (33, 150)):
        picture = noise(*size)
        _, pixels, region = prepare(picture, here.preprocessing, "cpu")
        found = model.heatmaps(picture, QUESTIONS)
        assert np.array_equal(found.maps, model.heatmaps(pixels, QUESTIONS).maps)
        assert found.seen == region
        expected = here.heatmaps(picture, QUESTIONS)
        close(found.maps, expected.maps, 10 * TOLERANCE[name])
        maps = model.extract_attention(picture, QUESTIONS, blocks=(model.default_block,))
        assert np.array_equal(maps, model.extract_attention(pixels, QUESTIONS, blocks=(model.default_block,)))
        assert model.answer(picture, QUESTIONS[0])[0].ranked == model.answer(pixels, QUESTIONS[0])[0].ranked
    path = tmp_path / "picture.png"
    from PIL import Image

    Image.fromarray(picture).save(path)
    assert np.array_equal(model.heatmaps(path, QUESTIONS).maps, found.maps)


def test_what_is_computed_later_is_of_the_picture_that_was_given(name: str) -> None:
    picture = noise(70, 80)
    model = qavit.load("demo", device=name)
    expected = qavit.load("demo").heatmaps(picture, QUESTIONS)
    given = picture.copy()
    found = model.heatmaps(given, QUESTIONS)
    given[:] = 0
    close(found.block_maps, expected.block_maps, 20 * TOLERANCE[name])
    # On another device than where it began:
    moved = model.heatmaps(picture, QUESTIONS)
    model.cpu()
    for one, other in zip(moved.word_maps, expected.word_maps):
        close(one, other, 10 * TOLERANCE[name])


def test_pictures_and_texts_of_blip(name: str) -> None:
    golden = blip.GOLDEN
    cases = json.loads((golden / "cases.json").read_text())
    config = {"text": cases["med_config"], "vision": cases["vit"]}
    options = {"checkpoint": golden / "checkpoint.pth", "tokenizer": golden / "vocab.txt", "config": config}
    here, there = qavit.load(**options), qavit.load(**options, device=name)
    picture = noise(300, 200)
    pixels = prepare(picture, here.preprocessing, "cpu")[1]
    texts = [*QUESTIONS, "a cat"]
    for calls in (
        lambda model, image: [model.heatmaps(image, texts).maps],
        lambda model, image: [model.heatmaps(image, texts).scores],
        lambda model, image: model.itm(image, texts),
    ):
        found = calls(there, picture)
        for one, same, other in zip(found, calls(there, pixels), calls(here, picture)):
            assert np.array_equal(one, same)
            close(one, other, max(TOLERANCE[name], 1e-4))


def test_blip_allocates_nothing_for_the_next_picture(name: str) -> None:
    sizes, words, image, _ = blip.SIZES[0]
    model = blip.huggingface_model({**sizes, **image}, {**words, "max_position_embeddings": 40}, seed=7)
    device = _core.Device(name)
    there = _core.BlipItm(blip.config_of(model), blip.weights_of(model), device=device)
    ids, mask = blip.questions(words["vocab_size"], [5, 3, 7], 1)
    how = arguments(27, resize="exact", crop=False)

    def ask() -> Array:
        return there.gradcam(there.encode_images([noise(90, 70)], how)[0], ids, mask, 0)[0]

    first = ask()
    made = device.counters()
    for _ in range(3):
        assert np.array_equal(ask(), first)
    assert device.counters()["allocations"] == made["allocations"]
    assert device.counters()["held"] == made["held"]
    with pytest.raises(ValueError, match=r"picture has the shape \[2, 2, 4\], expected \[H, W, 3\]"):
        there.encode_images([np.zeros((2, 2, 4), np.uint8)], how)
    with pytest.raises(TypeError, match="preprocessing: expected a tuple"):
        there.encode_images([noise(9, 7)], True)


def test_whole_data_sets_decode_on_the_cpu_and_resize_on_the_device(name: str) -> None:
    here, there = HeatmapActor("demo"), HeatmapActor("demo", device=name)
    pictures = [noise(60, 50), noise(60, 50), noise(31, 200), np.zeros((2, 2, 7), np.uint8)]
    batch = {"image": pictures, "question": [*QUESTIONS, QUESTIONS[0], QUESTIONS[1]]}
    decoded = there._decode(pictures[0])
    assert isinstance(prepare(decoded.picture, there.model.preprocessing, there.model.device)[1], DevicePicture)
    expected, found = here(batch), there(batch)
    assert list(found["error"]) == list(expected["error"])
    assert [bool(error) for error in found["error"]] == [False, False, False, True]
    close(found["map"][:3], expected["map"][:3], 10 * TOLERANCE[name])
