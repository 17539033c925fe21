"""Every function that takes an array, given arrays of any layout and any kind.

Two properties: an array of equal values gives equal bits whatever its strides, byte order, alignment and flags, and is
not written to; and whatever else comes is either taken, with a result of finite numbers, or refused with a TypeError or
ValueError.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from small_models import write_qavit

import qavit
from qavit import BlipCaptioner, BlipITM, QAViT, _core, images, methods
from qavit import _result as result_module
from qavit._heatmap_demo import QAViTHeatmapDemo
from qavit.answers import _grids as lavis_grids
from qavit.checkpoints import open_model
from qavit.generation import process_logits
from qavit.heatmaps import _grid as heatmaps_grid
from qavit.heatmaps import to_distribution
from qavit.images import Preprocessing, Region
from qavit.lavis import _pictures as lavis_pictures
from qavit.lavis import _replace as lavis_replace
from qavit.plots import _pixels as plots_pixels

GOLDEN = Path(__file__).parent / "data" / "golden"
QUESTIONS = ["where is the red star?", "what"]
SIDE = 14
#: More of everything in a long run.
EXAMPLES = int(os.environ.get("QAVIT_TEST_EXAMPLES", "1"))


@cache
def small() -> QAViT:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        model = qavit.load(write_qavit(Path(name) / "model", blocks=3, image_size=SIDE, patch=7, width=8))
    assert isinstance(model, QAViT)
    return model


@cache
def plain_tower() -> Any:
    """A vision tower without questions."""
    source = small()._source
    return _core.Vit(dict(source.vision), source.weights)


@cache
def states() -> np.ndarray:
    """What enters the last block of it."""
    return np.asarray(plain_tower().forward(floats(2, 3, SIDE, SIDE), hidden=(1,))["hidden"][1])


@cache
def blip() -> BlipITM:
    folder = GOLDEN / "blip_itm"
    facts = json.loads((folder / "cases.json").read_text())
    source = open_model(
        checkpoint=folder / "checkpoint.pth", tokenizer=folder / "vocab.txt", image_size=32,
        config={"text": facts["med_config"], "vision": facts["vit"]},
    )  # fmt: skip
    return BlipITM(source)


@cache
def captioner() -> BlipCaptioner:
    folder = GOLDEN / "blip_caption"
    facts = json.loads((folder / "cases.json").read_text())
    source = open_model(
        checkpoint=folder / "checkpoint.pth", tokenizer=folder / "vocab.txt", image_size=32,
        config={"text": facts["med_config"], "vision": facts["vit"]},
    )  # fmt: skip
    return BlipCaptioner(source)


def captions(image: Any, **settings: Any) -> list[Any]:
    """Numbers of one that is drawn."""
    (one,) = captioner().generate(image, do_sample=True, max_length=9, return_logits=True, **settings)
    return [one.ids, one.score, one.logits]


@cache
def pnpvqa() -> qavit.PNPVQAWithQAViT:
    return qavit.PNPVQAWithQAViT(small(), block_num=2)


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    """Values that float16 holds exactly."""
    return (np.random.default_rng(seed).integers(-64, 65, shape) / 32).astype(np.float32)


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).integers(0, 65, shape) / 64).astype(np.float32)


def attention() -> np.ndarray:
    """[2, 2 heads, 5, 3 + 5]"""
    return unit(2, 2, 5, 8, seed=3) + np.float32(0.25)


def picture() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (9, 11, 3), np.uint8)


def ids() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 30, (2, 6), np.int32)


PREPROCESSING = Preprocessing(size=SIDE)
WIDTH = 8  # of the small tower
INDEX, LENGTH = np.array([0, 1], np.int32), np.array([4, 2], np.int32)
WHOLE = Region(0.0, 0.0, 11.0, 9.0)

#: name -> (an array that is right, what is done with it)
CALLS: dict[str, tuple[Callable[[], np.ndarray], Callable[[Any], Any]]] = {
    "load_image": (picture, images.load_image),
    "heatmaps of a picture": (picture, lambda a: small().heatmaps(a, QUESTIONS).maps),
    "heatmaps of pixel values": (lambda: floats(3, SIDE, SIDE), lambda a: small().heatmaps(a, QUESTIONS).maps),
    "preprocess_image": (picture, lambda a: _core.preprocess_image(a, (8, 8), Preprocessing(8).core_arguments())),
    "resize_image": (picture, lambda a: _core.resize_image(a, 5, 7)),
    "process_logits, logits": (lambda: floats(2, 30), lambda a: np.exp(process_logits(a, ids(), top_k=9))),
    "process_logits, ids": (ids, lambda a: process_logits(floats(2, 30), a, repetition_penalty=1.2)),
    "as_pixel_values": (lambda: floats(2, 3, 4, 5), images.as_pixel_values),
    "forward_itm": (
        lambda: floats(2, 3, SIDE, SIDE), lambda a: qavit.forward_itm(small(), {"image": a, "text_input": QUESTIONS}, 2)),
    "extract_attention": (
        lambda: floats(2, 3, SIDE, SIDE), lambda a: qavit.extract_attention(small(), a, QUESTIONS, blocks=(1, 2))),
    "vision, pixel_values": (lambda: floats(2, 3, SIDE, SIDE), lambda a: small().vision(a, floats(2, 4, 12))[:2]),
    "vision, instruct_states": (lambda: floats(2, 4, 12), lambda a: small().vision(floats(2, 3, SIDE, SIDE), a)[:2]),
    "vision, instruct_mask": (
        lambda: np.array([[1, 0, 1, 1], [1, 1, 0, 0]]),
        lambda a: small().vision(floats(2, 3, SIDE, SIDE), floats(2, 4, 12), a)[:2]),
    "BLIP forward_itm": (
        lambda: floats(2, 3, 32, 32), lambda a: qavit.forward_itm(blip(), {"image": a, "text_input": QUESTIONS}, 1)),
    "BLIP gradcam_tokens": (lambda: floats(2, 3, 32, 32), lambda a: blip().gradcam_tokens(a, QUESTIONS, 1)),
    "BLIP itm": (lambda: floats(2, 3, 32, 32), lambda a: blip().itm(a, QUESTIONS)),
    "BLIP itc": (lambda: floats(2, 3, 32, 32), lambda a: blip().itc(a, QUESTIONS)),
    "BLIP heatmaps": (lambda: floats(3, 32, 32), lambda a: blip().heatmaps(a, QUESTIONS, block=1).maps),
    "captioner, image_states": (lambda: floats(2, 3, 32, 32), lambda a: captioner().image_states(a)),
    "captioner, pixels": (lambda: floats(3, 32, 32), captions),
    "captioner, states": (lambda: floats(5, 32), captions),
    "captioner, weights": (lambda: unit(4), lambda a: captions(floats(3, 32, 32), weights=a, num_patches=2)),
    "captioner, tokens": (lambda: np.array([[1, 4, 3]]), lambda a: captions(floats(3, 32, 32), tokens=a)),
    "captioner, logits": (ids, lambda a: captioner().logits(floats(2, 5, 32), a)),
    "captioner, score": (lambda: floats(3, 32, 32), lambda a: captioner().score(a, "two cats")),
    "PNPVQA forward_itm": (
        lambda: floats(2, 3, SIDE, SIDE), lambda a: pnpvqa().forward_itm({"image": a, "text_input": QUESTIONS})),
    "PNPVQA vision model": (
        lambda: floats(2, 3, SIDE, SIDE),
        lambda a: pnpvqa().qavit_vision_model(a, floats(2, 4, 12), output_attentions=True).attentions[2]),
    "analyze_attention_statistics": (
        lambda: unit(3, 4), lambda a: numbers_of(QAViTHeatmapDemo(small()).analyze_attention_statistics(a))),
    "normalize_maps": (
        lambda: unit(2, 3, 4), lambda a: [heatmaps_grid.normalize_maps(a, how) for how in heatmaps_grid.NORMALIZATIONS]),
    "map_statistics": (lambda: unit(3, 4), lambda a: numbers_of(heatmaps_grid.map_statistics(a))),
    "resample_map": (lambda: unit(3, 4), lambda a: heatmaps_grid.resample_map(a, WHOLE, (9, 11), (18, 22))),
    "HeatmapResult, maps": (lambda: unit(2, 3, 4), lambda a: result_module.HeatmapResult(a, QUESTIONS, picture()).maps),
    "HeatmapResult, picture": (picture, lambda a: result_module.HeatmapResult(unit(2, 3, 4), QUESTIONS, a).picture),
    "colorize": (lambda: unit(3, 4), plots_pixels.colorize),
    "show_cam_on_image, img": (lambda: unit(5, 6, 3), lambda a: lavis_pictures.show_cam_on_image(a, unit(5, 6, seed=1))),
    "show_cam_on_image, mask": (lambda: unit(5, 6), lambda a: lavis_pictures.show_cam_on_image(unit(5, 6, 3), a)),
    "getAttMap, img": (lambda: unit(9, 8, 3), lambda a: lavis_pictures.getAttMap(a, unit(3, 4))),
    "getAttMap, attMap": (lambda: unit(3, 4), lambda a: lavis_pictures.getAttMap(unit(9, 8, 3), a)),
    "to_distribution": (lambda: unit(2, 3, 4), lambda a: to_distribution(a, axes=2)),
    "merge_heads": (lambda: unit(2, 3, 4), lambda a: [methods.merge_heads(a, h) for h in ("mean", "max", 1, None)]),
    "read_class": (attention, methods.read_class),
    "read_question": (attention, lambda a: methods.read_question(a, mask=np.array([[1, 1, 0], [1, 1, 1]]))),
    "read_question, mask": (
        lambda: np.array([[1, 1, 0], [1, 1, 1]]), lambda a: methods.read_question(attention(), mask=a)),
    "read_words": (attention, lambda a: methods.read_words(a, [[-1, 0, 1], [0, 0, -1]])),
    "read_custom": (
        attention, lambda a: methods.read_custom(lambda raw: raw[:, 0, 1:, 0], a, grid=(2, 2))),
    "resample_mass": (lambda: unit(2, 3, 4), lambda a: lavis_grids.resample_mass(a, (5, 2))),
    "drawable": (lambda: unit(2, 12), lavis_grids.drawable),
    "fit_images": (lambda: floats(2, 3, SIDE, SIDE), lambda a: lavis_grids.fit_images(a, small())),
    "Vit.forward": (
        lambda: floats(2, 3, SIDE, SIDE),
        lambda a: small()._vit.forward(a, INDEX, floats(2, 4, 12), LENGTH, outputs=("pooled",))),
    "Vit.forward, instruct": (
        lambda: floats(2, 4, 12),
        lambda a: small()._vit.forward(floats(2, 3, SIDE, SIDE), INDEX, a, LENGTH, outputs=("last",))),
    "Vit.forward, pair_image": (
        lambda: INDEX.copy(),
        lambda a: small()._vit.forward(floats(2, 3, SIDE, SIDE), a, floats(2, 4, 12), LENGTH, outputs=("last",))),
    "Vit.forward, instruct_length": (
        lambda: LENGTH.copy(),
        lambda a: small()._vit.forward(floats(2, 3, SIDE, SIDE), INDEX, floats(2, 4, 12), a, outputs=("last",))),
    "Vit.gradients, states": (
        lambda: states().copy(), lambda a: plain_tower().gradients(a, 1, unit(3, WIDTH), wanted=[("legrad", 1)])),
    "Vit.gradients, texts": (
        lambda: unit(3, WIDTH), lambda a: plain_tower().gradients(states(), 1, a, wanted=[("legrad", 1)])),
    "Vit.dense": (lambda: floats(2, 3, SIDE, SIDE), lambda a: plain_tower().dense(a, "gem")),
    "T5Encoder.encode, ids": (ids, lambda a: small()._text.encode(a)),
    "T5Encoder.encode, mask": (lambda: np.array([[1, 1, 1, 0, 0, 0], [1] * 6]), lambda a: small()._text.encode(ids(), a)),
    "BlipItm.encode_images": (lambda: floats(1, 3, 32, 32), lambda a: blip()._core.encode_images(a)[0].embeddings),
    "BlipItm.image_from_embeddings": (
        lambda: floats(5, 32), lambda a: blip()._core.image_from_embeddings(a).embeddings),
    "BlipItm.match, ids": (ids, lambda a: blip()._core.match(image_state(), a, np.ones((2, 6), np.uint8))),
    "BlipItm.match, mask": (
        lambda: np.array([[1, 1, 1, 0, 0, 0], [1] * 6], np.uint8), lambda a: blip()._core.match(image_state(), ids(), a)),
}  # fmt: skip
#: Calls of the core, which converts numbers to the type it wants as NumPy does, and so takes other types too.
CASTS = {name for name in CALLS if name.startswith(("Vit", "Blip", "T5"))}


@cache
def image_state() -> Any:
    return blip()._core.encode_images(floats(1, 3, 32, 32))[0]


def numbers_of(statistics: Mapping[str, Any]) -> list[Any]:
    return [np.asarray(value) for value in statistics.values()]


def flat(result: Any) -> list[np.ndarray]:
    """All arrays of a result."""
    if isinstance(result, Mapping):
        result = list(result.values())
    if isinstance(result, (list, tuple)):
        return [array for part in result if part is not None for array in flat(part)]
    return [np.asarray(result)]


def run(call: Callable[[Any], Any], array: Any) -> list[np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("ignore", qavit.QuestionBlindWarning)
        warnings.simplefilter("ignore", UserWarning)
        return flat(call(array))


def outcome(call: Callable[[Any], Any], argument: Any) -> list[np.ndarray] | str:
    """The arrays that it gives, or how it refuses its argument."""
    try:
        return run(call, argument)
    except (TypeError, ValueError, FileNotFoundError) as error:
        return str(error)


# ---- other layouts of equal values ----


def unaligned(array: np.ndarray) -> np.ndarray:
    raw = np.zeros(array.nbytes + 1, np.uint8)
    view = raw[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def every_other(array: np.ndarray) -> np.ndarray:
    wide = np.full([2 * n for n in array.shape], 7, array.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def backwards(array: np.ndarray) -> np.ndarray:
    reverse = tuple(slice(None, None, -1) for _ in array.shape)
    return np.ascontiguousarray(array[reverse])[reverse]


def axes_swapped(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.T).T


def inside_a_wider_one(array: np.ndarray) -> np.ndarray:
    wide = np.full([n + 3 for n in array.shape], 7, array.dtype)
    view = wide[tuple(slice(1, n + 1) for n in array.shape)]
    view[...] = array
    return view


def in_a_subclass(array: np.ndarray) -> np.ndarray:
    class Kept(np.ndarray):
        pass

    return array.copy().view(Kept)


def writable_memory_map(array: np.ndarray) -> np.ndarray:
    import tempfile

    with tempfile.TemporaryFile() as file:
        mapped = np.memmap(file, array.dtype, "w+", shape=array.shape)
        mapped[...] = array
        return mapped


LAYOUTS = [
    unaligned, every_other, backwards, axes_swapped, inside_a_wider_one, in_a_subclass, writable_memory_map,
    np.asfortranarray,
]  # fmt: skip


@settings(max_examples=3 * EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.parametrize("name", list(CALLS))
@given(data=st.data())
def test_layouts_of_equal_values_give_equal_bits(name: str, data: st.DataObject) -> None:
    make, call = CALLS[name]
    array = make()
    expected = run(call, array.copy())
    variant = data.draw(st.sampled_from(LAYOUTS))(array)
    if data.draw(st.booleans()):
        variant = variant.astype(variant.dtype.newbyteorder(">"), order="K", copy=False)
    if data.draw(st.booleans()):
        variant.flags.writeable = False
    np.testing.assert_array_equal(variant, array)
    before = np.array(variant)
    found = run(call, variant)
    np.testing.assert_array_equal(variant, before)
    assert [part.shape for part in found] == [part.shape for part in expected]
    assert all(one.tobytes() == other.tobytes() for one, other in zip(found, expected))


@settings(max_examples=2 * EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.parametrize("name", list(CALLS))
@given(axis=st.integers(0, 3), step=st.sampled_from([0, 1]))
def test_overlapping_views_are_read_as_the_values_they_show(name: str, axis: int, step: int) -> None:
    make, call = CALLS[name]
    array = make()
    axis %= array.ndim
    if step == 0:
        view = np.broadcast_to(array.take([0], axis), array.shape)
    else:  # each place along the axis is the last one shifted by an item
        row = np.ascontiguousarray(np.moveaxis(array, axis, 0)[0]).ravel()
        long = np.concatenate([row, row])[: row.size + array.shape[axis]]
        rest = np.delete(array.shape, axis)
        strides = np.empty(rest.shape, int)
        strides[...] = [int(np.prod(rest[i + 1 :])) * array.itemsize for i in range(len(rest))]
        view = np.lib.stride_tricks.as_strided(long, (array.shape[axis], *rest), (array.itemsize, *strides), writeable=False)
        view = np.moveaxis(view, 0, axis)
    try:
        expected = run(call, np.array(view))
    except (TypeError, ValueError):  # a length of 0, a mask without tokens
        with pytest.raises((TypeError, ValueError)):
            run(call, view)
        return
    assert all(one.tobytes() == other.tobytes() for one, other in zip(run(call, view), expected))


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4", ">f8", "longdouble", "int8", ">i8", "uint16", "int32"])
@pytest.mark.parametrize("name", list(CALLS))
def test_types_that_hold_the_same_values(name: str, dtype: str) -> None:
    make, call = CALLS[name]
    array = make()
    other = array.astype(dtype)
    if (other.astype(array.dtype) != array).any() or (array.dtype.kind == "f") != (other.dtype.kind == "f"):
        return
    expected = run(call, array)
    found = outcome(call, other)
    if isinstance(found, str):
        # Pictures are uint8, and pixel values floats: other types are refused rather than guessed at.
        assert str(other.dtype) in found or "uint8" in found or name in CASTS, found
        return
    for one, two in zip(found, expected):
        if other.dtype.kind == "f":  # what is computed in NumPy may be computed in a wider type
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
        elif name != "load_image" and "picture" not in name:
            assert (one == two).all()


# ---- anything ----

KINDS = st.one_of(
    hnp.boolean_dtypes(), hnp.integer_dtypes(endianness="?"), hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?"), hnp.complex_number_dtypes(), hnp.datetime64_dtypes(),
    hnp.unicode_string_dtypes(max_len=4), hnp.byte_string_dtypes(max_len=4),
)  # fmt: skip


def near(shape: tuple[int, ...]) -> st.SearchStrategy[tuple[int, ...]]:
    """The right shape, one with a side changed, dropped or added, or any small one."""

    def change(draw: Any) -> tuple[int, ...]:
        sides = list(shape)
        place = draw(st.integers(0, len(sides) - 1))
        how = draw(st.sampled_from(["keep", "side", "drop", "add", "swap"]))
        if how == "side":
            sides[place] = draw(st.integers(0, 5))
        elif how == "drop":
            del sides[place]
        elif how == "add":
            sides.insert(place, draw(st.integers(0, 2)))
        elif how == "swap":
            sides.reverse()
        return tuple(sides)

    return st.one_of(st.composite(change)(), hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))


@settings(max_examples=6 * EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.parametrize("name", list(CALLS))
@given(data=st.data())
def test_anything_else_is_refused_by_name_or_gives_finite_numbers(name: str, data: st.DataObject) -> None:
    make, call = CALLS[name]
    right = make()
    dtype = data.draw(st.one_of(st.just(right.dtype), KINDS))
    array = data.draw(hnp.arrays(dtype, data.draw(near(right.shape)), fill=st.nothing() if right.size < 40 else None))
    before = array.tobytes()
    found = outcome(call, array)
    assert found != ""
    for part in [] if isinstance(found, str) else found:
        assert part.dtype.kind in "fiub", (part.dtype, array.dtype)
        assert np.isfinite(part).all()
    assert array.tobytes() == before


@pytest.mark.parametrize("name", list(CALLS))
@pytest.mark.parametrize(
    "thing", [None, "text", b"bytes", 3, 2.5, [], [[1, 2], [3]], {}, object(), np.empty((2, 2), object), np.void(b"ab")]
)
def test_what_is_no_array_is_refused_by_name(name: str, thing: Any) -> None:
    _, call = CALLS[name]
    found = outcome(call, thing)
    assert found != ""
    if not isinstance(found, str):
        # None stands for a mask or states that are not given; a number is an array of no dimensions.
        assert all(np.isfinite(part).all() for part in found if part.dtype.kind == "f")
        assert thing is None or name in ("colorize", "merge_heads", "to_distribution", "drawable") or "statistics" in name


@pytest.mark.parametrize("name", [
    "normalize_maps", "map_statistics", "resample_map", "colorize", "getAttMap", "show_cam_on_image", "read_class",
    "a method of one's own",
])  # fmt: skip
def test_tensors_leave_their_gradient_behind(name: str) -> None:
    torch = pytest.importorskip("torch")
    maps, attention = unit(3, 4), unit(2, 3, 5, 7) / 7
    picture = unit(3, 4, 3)
    calls: dict[str, Callable[[Any], Any]] = {
        "normalize_maps": lambda kind: heatmaps_grid.normalize_maps(kind(maps), "sum"),
        "map_statistics": lambda kind: list(heatmaps_grid.map_statistics(kind(maps))["top_patches"]),
        "resample_map": lambda kind: heatmaps_grid.resample_map(kind(maps), Region(0, 0, 8, 6), (6, 8), 16),
        "colorize": lambda kind: plots_pixels.colorize(kind(maps)),
        "getAttMap": lambda kind: lavis_pictures.getAttMap(kind(picture), kind(maps)),
        "show_cam_on_image": lambda kind: lavis_pictures.show_cam_on_image(kind(picture), kind(maps)),
        "read_class": lambda kind: methods.read_class(kind(attention)),
        "a method of one's own": lambda kind: methods.read_custom(lambda raw: kind(raw[:, 0, 0, 3:]), attention, 2),
    }
    call = calls[name]
    np.testing.assert_array_equal(call(lambda array: torch.tensor(array, requires_grad=True)), call(np.asarray))


def test_what_is_not_meant_is_named() -> None:
    from qavit.checkpoints import convert, describe

    for call, kind, message in (
        (
            lambda: heatmaps_grid.resample_map(np.ones((2, 2)), (0, 0, 4, 4), (4, 4), 4),
            TypeError,
            "region: expected a Region",
        ),
        (lambda: heatmaps_grid.resample_map(np.ones((2, 2)), Region(0, 0, 4, 4), (4, 4), (0, 4)), ValueError, "size: got"),
        (
            lambda: lavis_pictures.getAttMap(np.full((4, 4, 3), 200.0), np.ones((2, 2))),
            ValueError,
            "img: floats from 200 to 200",
        ),
        (lambda: images.preprocess("a.jpg", images.Preprocessing(14)), TypeError, "picture: .* load_image .* got str"),
        (lambda: images.preprocess(np.zeros((4, 4, 3)), images.Preprocessing(14)), TypeError, "picture: .* got float64"),
        (lambda: images.preprocess(picture(), 14), TypeError, "preprocessing: expected a Preprocessing, got int"),
        (lambda: convert("demo", "somewhere"), TypeError, "source: expected what qavit.checkpoints.open_model"),
        (lambda: describe("demo"), TypeError, "source: .* got str"),
        (lambda: qavit.forward_itm("demo", {}), TypeError, "model: expected a model of qavit.load, got str"),
        (lambda: qavit.extract_attention(blip(), picture(), "what"), TypeError, "of kind 'blip_itm' has none"),
        (lambda: lavis_replace.replace_forward_itm(blip(), blip(), grid=5), ValueError, "grid: expected"),
        (lambda: methods.read_words(unit(1, 3, 5, 7), [[0, 0.5]]), TypeError, "word_of: .* got float"),
    ):
        with pytest.raises(kind, match=message):
            call()
