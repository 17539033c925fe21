"""Pictures in: against Pillow and Hugging Face's CLIPImageProcessor, and against files that mean harm."""

from __future__ import annotations

import base64
import gc
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
import urllib.parse
import zlib

import numpy as np
import PIL
import pytest
from cpu_levels import LEVELS
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from qavit import _core
from qavit.images import (
    CLIP_MEAN,
    CLIP_STD,
    FILTERS,
    Preprocessing,
    Region,
    as_pixel_values,
    load_image,
    picture_of,
    preprocess,
)

BICUBIC = Image.BICUBIC if not hasattr(Image, "Resampling") else Image.Resampling.BICUBIC
NEEDS_DECODER = pytest.mark.skipif(not _core.build_info()["stb_image"], reason="built without stb_image")
SIZES = st.integers(1, 300)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """What photographs are like: no detail at the pixel's scale."""
    return pillow_resize(noise(5, 7, seed), height, width)


def pillow_resize(picture: np.ndarray, height: int, width: int, number: int = BICUBIC) -> np.ndarray:
    """Pillow 13's bytes from any Pillow: a resize along one axis alone has always been the same."""
    H, W = picture.shape[:2]
    image = Image.fromarray(picture)
    if int(PIL.__version__.split(".")[0]) < 13 and number != 0:
        down_first = height < H and H - height > 2 * (W - width)
        image = image.resize((W, height) if down_first else (width, H), number)
    return np.asarray(image.resize((width, height), number))


def encode(picture: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, kind, **options)
    return file.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(rows, 9)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def peak_bytes() -> int:
    """This process's memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---- resize and preprocessing ----


@settings(max_examples=400, deadline=None)
@given(SIZES, SIZES, SIZES, SIZES, st.sampled_from(FILTERS), st.booleans(), st.integers(0, 99))
def test_resize_gives_pillows_bytes(height, width, new_height, new_width, name, hard, seed):
    picture = noise(height, width, seed)
    if hard:
        picture = np.where(picture > 127, 255, 0).astype(np.uint8)
    before = picture.copy()
    number = FILTERS.index(name)
    resized = _core.resize_image(picture, new_height, new_width, number)
    assert np.array_equal(resized, pillow_resize(picture, new_height, new_width, number))
    assert np.array_equal(picture, before)


@pytest.mark.parametrize("number", range(len(FILTERS)), ids=FILTERS)
@pytest.mark.parametrize("shape", [(1, 5000, 1, 7), (5000, 1, 7, 1), (2, 4000, 300, 3), (900, 700, 901, 699)])
def test_resize_of_long_pictures(shape, number):
    picture = noise(*shape[:2])
    assert np.array_equal(_core.resize_image(picture, *shape[2:], number), pillow_resize(picture, *shape[2:], number))


def test_every_cpu_level_gives_the_same_bytes():
    code = (
        "import hashlib, numpy as np; from qavit import _core\n"
        "p = np.random.default_rng(1).integers(0, 256, (211, 307, 3), dtype=np.uint8); h = hashlib.sha256()\n"
        "for s in [(96, 96), (96, 400), (500, 11), (211, 16), (3, 307), (1, 1)]: h.update(_core.resize_image(p, *s))\n"
        "print(h.hexdigest())"
    )
    levels = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "QAVIT_CPU": level}, capture_output=True, text=True, check=True
        ).stdout
        for level in LEVELS
    ]
    assert levels[0] != ""
    assert set(levels) == {levels[0]}


@pytest.fixture(scope="module")
def clip_processor():
    transformers = pytest.importorskip("transformers")
    # The one over Pillow; the default of newer versions computes in torch, with other rounding.
    return getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)


@settings(max_examples=60, deadline=None)
@given(height=SIZES, width=SIZES, size=st.integers(1, 120))
def test_preprocess_is_the_clip_image_processor(clip_processor, height, width, size):
    picture = noise(height, width, height * 301 + width)
    processor = clip_processor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    pixels, _ = preprocess(picture, Preprocessing(size))
    if int(PIL.__version__.split(".")[0]) >= 13:
        expected = np.asarray(processor(Image.fromarray(picture), return_tensors="np")["pixel_values"][0])
        # Observed: 0, bit for bit.
        np.testing.assert_allclose(pixels, expected, rtol=0, atol=1e-6)
    assert pixels.shape == (3, size, size)
    assert pixels.dtype == np.float32


SEEN = {"mean": (0, 0, 0), "std": (1, 1, 1), "rescale": 1}


@settings(max_examples=80, deadline=None)
@given(SIZES, SIZES, st.integers(1, 60), st.integers(1, 60), st.integers(1, 80), st.integers(1, 80), st.data())
def test_what_is_resized_and_cut_out_is_what_pillow_makes(height, width, rows, columns, one, two, data):
    """Of torchvision's transforms, open_clip's, and transformers', from their formulas; uint8 to the byte."""
    picture = noise(height, width, height * 301 + width)
    resize = data.draw(st.sampled_from(["none", "exact", "shortest_edge", "longest_edge", "bounded", "cover", "inside"]))
    margin = data.draw(st.sampled_from(["down", "even"]))
    name = data.draw(st.sampled_from(FILTERS))
    short, long = sorted((height, width))
    edges = {"none": (None, (height, width)), "exact": ((one, two), (one, two))}
    grown = int(one * long / short)
    edges["shortest_edge"] = (one, (one, grown) if height <= width else (grown, one))
    ratio = long / one
    edges["longest_edge"] = (one, (max(1, round(height / ratio)), max(1, round(width / ratio))))
    exact = one if long / short * one <= two else two * short / long
    edge = max(1, round(exact))
    if edge == short:
        bounded = (height, width)
    elif width < height:
        bounded = (max(1, int(exact * height / width)), edge)
    else:
        bounded = (edge, max(1, int(exact * width / height)))
    edges["bounded"] = ((one, two), bounded)
    covers = (one, int(one * width / height)) if one * width >= two * height else (int(two * height / width), two)
    edges["cover"] = ((one, two), (max(1, covers[0]), max(1, covers[1])))
    ratio = max(height / one, width / two)
    edges["inside"] = ((one, two), (max(1, round(height / ratio)), max(1, round(width / ratio))))
    resize_to, (new_height, new_width) = edges[resize]
    resize = "shortest_edge" if resize == "bounded" else resize
    how = Preprocessing((rows, columns), resize, True, resize_to=resize_to, filter=name, margin=margin, **SEEN)
    pixels, region = preprocess(picture, how)
    resized = picture
    if (new_height, new_width) != (height, width):
        resized = pillow_resize(picture, new_height, new_width, FILTERS.index(name))
    seen = np.zeros((rows, columns, 3), np.uint8)
    starts = []
    for edge, size in ((new_height, rows), (new_width, columns)):
        over = edge - size
        start = over // 2 if margin == "down" else (round(over / 2) if over >= 0 else -(-over // 2))
        starts.append(start)
    top, left = starts
    inside = resized[max(top, 0) : top + rows, max(left, 0) : left + columns]
    seen[max(-top, 0) :, max(-left, 0) :][: inside.shape[0], : inside.shape[1]] = inside
    assert np.array_equal(pixels, seen.transpose(2, 0, 1))
    assert region.left == pytest.approx(left * width / new_width)
    assert region.right == pytest.approx((left + columns) * width / new_width)
    assert region.bottom == pytest.approx((top + rows) * height / new_height)


def test_fits():
    picture = noise(40, 80, 1)
    how = Preprocessing(20, resize_to=30, filter="bilinear", **SEEN)
    cut, stretched, padded = (how.fitted(fit) for fit in ("crop", "stretch", "pad"))
    assert preprocess(picture, cut)[1] == Region(20, 0, 60, 40)
    assert preprocess(picture, stretched)[1] == Region(0, 0, 80, 40)
    pixels, region = preprocess(picture, padded)
    assert region == Region(0, -20, 80, 60)
    assert np.array_equal(pixels[:, 5:15], pillow_resize(picture, 10, 20, 2).transpose(2, 0, 1))
    assert not pixels[:, :5].any()
    assert not pixels[:, 15:].any()
    with pytest.raises(ValueError, match="fit: expected 'crop', 'stretch' or 'pad', got 'fill'"):
        how.fitted("fill")


def test_fits_of_an_input_that_is_not_square():
    picture = noise(40, 80, 1)
    how = Preprocessing((20, 30), resize_to=33, **SEEN)
    cut, stretched, padded = (how.fitted(fit) for fit in ("crop", "stretch", "pad"))
    assert (cut.resize, stretched.resize, padded.resize) == ("cover", "exact", "inside")
    assert preprocess(picture, cut)[0].shape == (3, 20, 30)
    assert preprocess(picture, cut)[1] == Region(10, 0, 70, 40)
    assert preprocess(picture, stretched)[1] == Region(0, 0, 80, 40)
    region = preprocess(picture, padded)[1]
    assert (region.left, region.right) == (0, 80)
    assert region.top < 0
    assert region.bottom > 40
    assert Preprocessing([20, 20]) == Preprocessing(20)
    assert how.edges == (20, 30)
    with pytest.raises(ValueError, match=r"resize 'shortest_edge' to \(20, 30\) leaves the length open.*'cover'"):
        Preprocessing((20, 30))
    with pytest.raises(ValueError, match=r"size is \(1, 2, 3\), expected a side or \(height, width\)"):
        Preprocessing((1, 2, 3))


def test_another_size_keeps_the_ratio_of_lengths():
    how = Preprocessing(20, resize_to=25)
    assert how.resized(40) == Preprocessing(40, resize_to=50)
    assert how.resized((40, 60)) == Preprocessing((40, 60), "cover", resize_to=(50, 75))
    assert how.resized((40, 60)).resized(20) == Preprocessing(20, "cover", resize_to=(25, 25))
    assert Preprocessing(20).resized((40, 60)) == Preprocessing((40, 60), "cover")
    assert Preprocessing(20, "longest_edge").resized((40, 60)) == Preprocessing((40, 60), "inside")
    exact = Preprocessing(20, "exact", crop=False)
    assert exact.resized((40, 60)) == Preprocessing((40, 60), "exact", crop=False)
    assert Preprocessing(20, "exact", resize_to=(30, 40)).resized((40, 60)).resize_to == (60, 120)
    bounded = Preprocessing(20, resize_to=(25, 100))
    assert bounded.resized(40).resize_to == (50, 200)
    assert bounded.resized((40, 60)).resize_to == (50, 75)


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, st.integers(1, 120))
def test_exact_preprocessing_resizes_both_edges(height, width, size):
    picture = noise(height, width, 3)
    how = Preprocessing(size, resize="exact", crop=False, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    pixels, region = preprocess(picture, how)
    scaled = pillow_resize(picture, size, size).astype(np.float64) / 255
    expected = ((scaled - how.mean) / how.std).transpose(2, 0, 1)
    # float32 against float64; observed 1.9e-7
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=1e-6)
    assert region == Region(0, 0, width, height)
    assert np.array_equal(picture_of(pixels, how), pillow_resize(picture, size, size))


@pytest.mark.parametrize(("height", "width"), [(120, 480), (480, 120), (301, 302), (77, 77), (40, 53)])
def test_region_is_where_the_pixels_come_from(height, width):
    down, across = np.mgrid[0:height, 0:width]
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = across * 255 // max(height, width)
    picture[..., 1] = down * 255 // max(height, width)
    size = 60
    pixels, region = preprocess(picture, Preprocessing(size, mean=(0, 0, 0), std=(1, 1, 1)))
    for row, column in [(5, 5), (5, 54), (30, 30), (54, 5)]:
        x, y = region.to_picture((column + 0.5) / size, (row + 0.5) / size)
        # In pixels of the picture: steps of max(height, width) / 255, half a pixel, and the crop's rounding.
        slack = 1.5 + max(height, width) / 255
        assert pixels[0, row, column] * max(height, width) == pytest.approx(x - 0.5, abs=slack)
        assert pixels[1, row, column] * max(height, width) == pytest.approx(y - 0.5, abs=slack)
    assert region.width == pytest.approx(min(height, width), rel=0.02)
    assert region.width == pytest.approx(region.height, rel=0.02)
    assert -1e-9 <= region.left < region.right <= width + 1e-9
    assert -1e-9 <= region.top < region.bottom <= height + 1e-9


def test_region_maps_both_ways():
    region = Region(10.0, 20.0, 110.0, 60.0)
    assert region.to_picture(0.25, 0.5) == (35.0, 40.0)
    assert region.from_picture(35.0, 40.0) == (0.25, 0.5)
    assert region.patch(1, 3, (2, 4)) == Region(85.0, 40.0, 110.0, 60.0)
    for row in range(2):
        for column in range(4):
            patch = region.patch(row, column, (2, 4))
            assert region.patch_at(patch.left, patch.top, (2, 4)) == (row, column)
    assert region.patch_at(9.0, 30.0, (2, 4)) is None
    assert region.patch_at(110.0, 30.0, (2, 4)) is None
    with pytest.raises(IndexError):
        region.patch(2, 0, (2, 4))


def test_preprocessing_is_checked_and_written():
    how = Preprocessing(224)
    assert (how.mean, how.std) == (CLIP_MEAN, CLIP_STD)
    assert Preprocessing(8, mean=0.5, std=0.25) == Preprocessing(8, mean=[0.5] * 3, std=(0.25,) * 3)
    full = Preprocessing(8, "exact", True, 0.5, 0.5, [9, 10], "box", 1.0, "even")
    assert Preprocessing.from_dict(json.loads(json.dumps(full.to_dict()))) == full
    assert Preprocessing.from_dict(how.to_dict()) == how
    for wrong in (
        {"size": 0},
        {"size": 2.5},
        {"size": True},
        {"size": 8, "resize": "both"},
        {"size": 8, "crop": False},
        {"size": 8, "mean": [0, 0]},
        {"size": 8, "std": [1, 0, 1]},
        {"size": 8, "std": [1, float("nan"), 1]},
        {"size": 8, "colour": 1},
        {"resize": "exact"},
        {"size": 8, "resize": "none", "crop": False},
        {"size": 8, "resize": "longest_edge", "crop": False},
        {"size": 8, "resize": "exact", "crop": False, "resize_to": (8, 9)},
        {"size": 8, "resize": "exact", "resize_to": 9},
        {"size": 8, "resize": "longest_edge", "resize_to": (8, 9)},
        {"size": 8, "resize": "none", "resize_to": 8},
        {"size": 8, "resize_to": 0},
        {"size": 8, "resize_to": True},
        {"size": 8, "crop": 1},
        {"size": 8, "filter": 3},
        {"size": 8, "margin": "up"},
        {"size": 8, "rescale": 0},
        {"size": 8, "rescale": "1"},
        {"size": 8, "mean": "abc"},
        {"size": 8, "std": [0.5]},
    ):
        with pytest.raises(ValueError, match="preprocessing"):
            Preprocessing.from_dict(wrong)


@pytest.mark.parametrize(
    "picture", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_the_core_refuses_other_shapes(picture):
    with pytest.raises(ValueError, match="picture"):
        _core.preprocess_image(picture, (8, 8), Preprocessing(8).core_arguments())
    with pytest.raises(ValueError, match="picture"):
        _core.resize_image(picture, 8, 8)


def test_the_core_refuses_other_types_and_sizes():
    picture = noise(4, 4)
    for wrong in (picture.astype(np.float32), picture.tolist(), None):
        with pytest.raises(TypeError, match="picture"):
            _core.resize_image(wrong, 8, 8)
    for height, width in ((0, 1), (1, -1), (1 << 30, 1)):
        with pytest.raises(ValueError, match="height and width"):
            _core.resize_image(picture, height, width)
    with pytest.raises(ValueError, match="size"):
        _core.preprocess_image(picture, (0, 8), Preprocessing(8).core_arguments())


def test_views_read_only_and_strided_pictures_are_read_in_place():
    picture = noise(40, 60)
    expected = _core.resize_image(picture, 16, 16)
    wide = np.repeat(np.repeat(picture, 2, axis=0), 3, axis=1)
    assert np.array_equal(_core.resize_image(wide[::2, ::3], 16, 16), expected)
    picture.flags.writeable = False
    assert np.array_equal(_core.resize_image(picture, 16, 16), expected)


# ---- files ----


def picture_files():
    picture = smooth(37, 53, 2)
    image = Image.fromarray(picture)
    alpha = image.copy()
    alpha.putalpha(Image.fromarray(noise(37, 53, 5)[..., 0]))
    palette = image.convert("P")
    sixteen = (np.arange(37 * 53, dtype=np.uint16) * 33).reshape(37, 53)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in np.repeat(sixteen[:, :, None], 3, axis=2))
    return {
        "png": encode(image, "png"),
        "png_alpha": encode(alpha, "png"),
        "png_grey": encode(image.convert("L"), "png"),
        "png_grey_alpha": encode(alpha.convert("LA"), "png"),
        "png_1bit": encode(image.convert("1"), "png"),
        "png_palette": encode(palette, "png"),
        "png_palette_16": encode(image.quantize(16), "png", bits=4),
        "png_transparent_index": encode(palette, "png", transparency=3),
        "png_transparent_palette": encode(palette, "png", transparency=bytes(range(256))),
        "png_16bit_colour": png(53, 37, 16, 2, rows),
        "bmp": encode(image, "bmp"),
        "bmp_alpha": encode(alpha, "bmp"),
        "bmp_palette": encode(palette, "bmp"),
        "bmp_grey": encode(image.convert("L"), "bmp"),
        "bmp_1bit": encode(image.convert("1"), "bmp"),
        "gif": encode(palette, "gif"),
        "tiff": encode(image, "tiff"),
        "jpeg_cmyk": encode(image.convert("CMYK"), "jpeg"),
        "ppm": encode(image, "ppm"),
    }


@pytest.mark.parametrize("kind", sorted(picture_files()))
def test_files_give_what_pillow_gives(kind):
    data = picture_files()[kind]
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA").convert("RGB"))
    picture = load_image(data)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, expected)


@NEEDS_DECODER
@pytest.mark.parametrize("kind", ["png", "png_alpha", "png_grey", "png_palette", "png_16bit_colour", "bmp", "bmp_alpha"])
def test_the_core_reads_the_usual_files_itself(kind):
    data = picture_files()[kind]
    assert np.array_equal(_core.decode_image(data), load_image(data))


def jpeg_corpus():
    """Files of every quality, chroma sampling and coding, of odd sizes, of smooth pictures, noise and both."""
    both = smooth(50, 70) // 2 + noise(50, 70, 4) // 2
    pictures = [smooth(37, 53), noise(64, 48, 3), both, smooth(1, 1), noise(17, 200, 6)]
    codings = [{}, {"progressive": True}, {"restart_marker_blocks": 3}, {"optimize": True}, {"restart_marker_rows": 1}]
    for quality in (5, 30, 50, 75, 90, 95, 100):
        for sampling in (0, 1, 2):
            for number, picture in enumerate(pictures):
                options = codings[(quality + sampling + number) % len(codings)]
                yield encode(Image.fromarray(picture), "jpeg", quality=quality, subsampling=sampling, **options)
        yield encode(Image.fromarray(pictures[0]).convert("L"), "jpeg", quality=quality)


@NEEDS_DECODER
def test_jpeg_is_close_to_pillow():
    worst, total, count = 0, 0.0, 0
    for data in jpeg_corpus():
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
        off = np.abs(load_image(data).astype(int) - expected)
        worst, total, count = max(worst, int(off.max())), total + off.sum(), count + off.size
    # Another inverse cosine transform and chroma filter; observed: 3, and 0.04 on the mean.
    assert worst <= 6
    assert total / count < 0.1


def change_jpeg(data, ids=None, jfif=True, adobe=None, late=False):
    """A JPEG with other component ids, without its JFIF marker, with Adobe's."""
    out, at = bytearray(data[:2]), 2
    marker_of_adobe = b"" if adobe is None else b"\xff\xee\x00\x0eAdobe" + struct.pack(">HHHB", 100, 0, 0, adobe)
    while True:
        marker, size = data[at + 1], struct.unpack(">H", data[at + 2 : at + 4])[0]
        body = bytearray(data[at : at + 2 + size])
        if ids is not None and marker in (0xC0, 0xC2):
            body[10:19:3] = ids
        if ids is not None and marker == 0xDA:
            body[5:11:2] = ids
        if marker != 0xE0 or jfif:
            out += body
        at += 2 + size
        if marker == 0xDA:
            return bytes(out) + data[at:]
        if (marker == 0xE0 and not late) or (marker == 0xC0 and late):
            out += marker_of_adobe


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("adobe", [None, 0, 1, 2])
@pytest.mark.parametrize("jfif", [True, False])
@pytest.mark.parametrize("ids", [None, b"RGB", b"\0\1\2", b"rgb", b"YCc"])
def test_jpeg_colours_are_libjpegs(ids, jfif, adobe, late):
    data = change_jpeg(encode(smooth(40, 56), "jpeg", quality=95), ids, jfif, adobe, late)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(load_image(data).astype(int) - expected).max() <= 6


@pytest.mark.parametrize("adobe", [None, 0, 2])
def test_jpegs_of_four_colours_are_pillows(adobe):
    data = encode(Image.fromarray(smooth(40, 56)).convert("CMYK"), "jpeg", quality=95)
    at = data.index(b"Adobe") if b"Adobe" in data else -1
    if adobe is not None and at > 0:
        data = data[: at + 11] + bytes([adobe]) + data[at + 12 :]
    assert np.array_equal(load_image(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_sixteen_bits_keep_the_upper_eight():
    values = (np.arange(30 * 20, dtype=np.uint16) * 109).reshape(30, 20)
    expected = np.repeat((values >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    image = Image.fromarray(values)
    file = encode(image, "png")
    assert np.array_equal(load_image(file), expected)
    assert np.array_equal(load_image(image), expected)
    assert np.array_equal(load_image(values), expected)
    assert np.array_equal(load_image(values.astype(">u2")), expected)
    assert np.array_equal(load_image(encode(image, "tiff")), expected)
    assert np.array_equal(load_image(Image.fromarray(values.astype(np.int32))), expected)
    with pytest.raises(ValueError, match="mode I"):
        load_image(Image.fromarray(np.full((2, 2), 70000, np.int32)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_pil_images_of_every_mode(mode):
    image = Image.fromarray(smooth(9, 11))
    base = {"PA": "P", "RGBa": "RGBA", "La": "LA"}.get(mode)
    image = image.convert(base).convert(mode) if base else image.convert(mode)
    before = image.tobytes()
    picture = load_image(image)
    assert picture.shape == (9, 11, 3)
    assert image.tobytes() == before
    if mode in ("L", "RGB", "CMYK", "YCbCr", "HSV", "RGBX", "1"):
        assert np.array_equal(picture, np.asarray(image.convert("RGB")))


def test_pil_images_without_a_range_are_refused():
    with pytest.raises(ValueError, match="mode F"):
        load_image(Image.new("F", (4, 4)))


def test_sources_of_one_picture(tmp_path):
    picture = smooth(21, 34)
    path = tmp_path / "ein Bild mit Ümlaut.png"
    path.write_bytes(encode(picture, "png"))
    with open(path, "rb") as file:
        from_file = load_image(file)
        assert not file.closed
    data = path.read_bytes()
    for given_image in (path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data)):
        assert np.array_equal(load_image(given_image), picture)
    assert np.array_equal(from_file, picture)
    for array in (picture, np.dstack([picture, picture[..., :1]]), picture[::-1][::-1], np.asfortranarray(picture)):
        assert np.array_equal(load_image(array), picture)
    assert not np.shares_memory(load_image(picture), picture)
    grey = picture[..., 0]
    assert np.array_equal(load_image(grey), np.repeat(grey[..., None], 3, axis=2))
    assert np.array_equal(load_image(grey[..., None]), load_image(grey))
    assert np.array_equal(load_image(grey > 99), np.repeat((grey > 99)[..., None], 3, axis=2) * np.uint8(255))


def test_no_picture_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(FileNotFoundError, match="download it first"):
        load_image("https://example.org/cat.jpg")
    with pytest.raises(OSError, match=str(tmp_path)):
        load_image(tmp_path)
    with pytest.raises(IsADirectoryError, match="image: expected a picture's file, this is a folder"):
        load_image(tmp_path)
    with pytest.raises(ValueError, match=r"int64, expected uint8, uint16 or bool; astype\('uint8'\) makes it so"):
        load_image(np.full((4, 4, 3), 255))
    with pytest.raises(ValueError, match=r"int64, expected uint8, uint16 or bool$"):
        load_image(np.full((4, 4, 3), 256))
    with pytest.raises(ValueError, match=r"a picture \[4, 4, 4\] must be uint8: \(255 \* picture\)"):
        as_pixel_values(np.zeros((4, 4, 4), np.float32))
    for name, data in {
        "empty.jpg": b"",
        "text.png": b"not a picture",
        "a.jpg": b"\xff\xd8\xff",
        "a.png": b"\x89PNG\r\n\x1a\n",
        "a.bmp": b"BM" + bytes(60),
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=name):
            load_image(tmp_path / name)
    with pytest.raises(TypeError, match="rb"):
        load_image(io.StringIO("text"))
    for wrong in (None, 3, object(), {"image": 1}):
        with pytest.raises(TypeError, match="image: expected"):
            load_image(wrong)
    for array in (
        np.zeros((3, 8, 8), np.float32),
        np.zeros((8, 8, 3)),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((8, 8, 5), np.uint8),
        np.zeros(8, np.uint8),
        np.zeros((8, 8, 3), np.int64),
    ):
        with pytest.raises(ValueError, match="image: an array"):
            load_image(array)


def test_torch_tensors_are_no_pictures():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="uint8 NumPy array"):
        load_image(torch.zeros(8, 8, 3, dtype=torch.uint8))


# ---- orientation ----


def exif_block(orientation: int, order: str = "<") -> bytes:
    head = b"II*\0" if order == "<" else b"MM\0*"
    entries = [(0x010E, 2, 4, b"abc\0"), (0x0112, 3, 1, struct.pack(order + "HH", orientation, 0))]
    body = struct.pack(order + "IH", 8, len(entries))
    for tag, kind, count, value in entries:
        body += struct.pack(order + "HHI", tag, kind, count) + value
    return head + body + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(10))
def test_orientation_is_pillows(orientation, order):
    picture = smooth(20, 33)
    exif = b"Exif\0\0" + exif_block(orientation, order)
    for kind in ("jpeg", "png", "tiff", "webp"):
        options = {"exif": exif} if kind != "tiff" else {"tiffinfo": {0x0112: max(1, min(orientation, 8))}}
        if kind == "webp":
            options["lossless"] = True
        data = encode(picture, kind, **options)
        stored = Image.open(io.BytesIO(data))
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB")).astype(int)
        turned = load_image(data).astype(int)
        assert turned.shape == expected.shape
        assert np.abs(turned - expected).max() <= 6 if kind == "jpeg" else np.array_equal(turned, expected)
        if kind in ("jpeg", "png"):
            assert load_image(data, exif=False).shape == (20, 33, 3)


@pytest.mark.parametrize("text", ['tiff:Orientation="6"', "<tiff:Orientation>6</tiff:Orientation>"])
def test_orientation_in_xmp(text):
    packet = f"<x:xmpmeta><rdf:Description {text}/></x:xmpmeta>".encode()
    picture = smooth(20, 33)
    expected = np.rot90(picture, -1)
    jpeg = encode(picture, "jpeg", quality=100, subsampling=0)
    body = b"http://ns.adobe.com/xap/1.0/\0" + packet
    jpeg = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]
    assert np.abs(load_image(jpeg).astype(int) - expected).max() <= 6
    chunk = png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)
    whole = encode(picture, "png")
    assert np.array_equal(load_image(whole[:33] + chunk + whole[33:]), expected)


def turned_by_pillow(data):
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def raw_profile(name, body):
    text = body.hex()
    lines = "\n".join(text[at : at + 72] for at in range(0, len(text), 72))
    return f"\n{name}\n{len(body):8}\n{lines}\n".encode()


PACKET = b'<x:xmpmeta><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
XMP_KEY = b"XML:com.adobe.xmp\0"
PACKED_ORIENTATIONS = {
    "raw profile": (b"tEXt", b"Raw profile type exif\0" + raw_profile("exif", b"Exif\0\0" + exif_block(6))),
    "compressed raw profile": (
        b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw_profile("exif", b"Exif\0\0" + exif_block(3)))),
    "prefixed eXIf": (b"eXIf", b"Exif\0\0" + exif_block(6, ">")),
    "compressed XMP": (b"iTXt", XMP_KEY + b"\1\0\0\0" + zlib.compress(PACKET)),
    "XMP with a language": (b"iTXt", XMP_KEY + b"\0\0en\0\0" + PACKET),
    "XMP in zTXt": (b"zTXt", XMP_KEY + b"\0" + zlib.compress(PACKET)),
    "XMP in tEXt": (b"tEXt", XMP_KEY + PACKET),
}  # fmt: skip


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", PACKED_ORIENTATIONS)
def test_orientations_in_png_text_are_pillows(kind, last):
    whole = encode(smooth(20, 33), "png")
    at = len(whole) - 12 if last else 33
    data = whole[:at] + png_chunk(*PACKED_ORIENTATIONS[kind]) + whole[at:]
    expected = turned_by_pillow(data)
    assert np.array_equal(load_image(data), expected)
    assert expected.shape == (20, 33, 3) if kind == "compressed raw profile" else (33, 20, 3)
    assert load_image(data, exif=False).shape == (20, 33, 3)
    both = whole[:33] + png_chunk(b"eXIf", exif_block(2)) + png_chunk(*PACKED_ORIENTATIONS["compressed XMP"]) + whole[33:]
    assert np.array_equal(load_image(both), turned_by_pillow(both))


def test_a_png_with_a_bad_end_opens_as_in_pillow():
    picture = smooth(20, 33)
    whole = encode(picture, "png")
    for data in (whole[:-1] + b"\0", whole[:-4], whole[:-12], whole + b"more"):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), picture)
        assert np.array_equal(load_image(data), picture)


def test_broken_exif_is_no_orientation():
    picture = smooth(20, 33)
    whole = exif_block(6)
    for length in range(len(whole)):
        data = encode(picture, "jpeg", exif=b"Exif\0\0" + whole[:length], subsampling=length % 3)
        assert load_image(data).shape in ((20, 33, 3), (33, 20, 3))
    for offset in (0, 1, 7, 33, 1 << 31, (1 << 32) - 1):
        wild = whole[:4] + struct.pack("<I", offset) + whole[8:]
        assert load_image(encode(picture, "jpeg", exif=b"Exif\0\0" + wild)).shape == (20, 33, 3)


# ---- files that are broken or mean harm ----


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "png", "bmp", "gif"])
def test_every_prefix_is_refused_or_whole(kind):
    picture = smooth(8, 9) if kind == "bmp" else smooth(17, 19)
    options = {"progressive": True} if kind == "progressive" else {}
    data = encode(picture, "jpeg" if kind == "progressive" else kind, **options)
    whole = load_image(data)
    refused = 0
    for length in range(len(data)):
        try:
            assert np.array_equal(load_image(data[:length]), whole)
        except ValueError:
            refused += 1
    # Without its end mark and last checksums the picture of a PNG is still whole.
    assert refused >= len(data) - 24


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.sampled_from(["jpeg", "png", "bmp"]), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4))
def test_changed_bytes_give_a_picture_or_an_error(kind, changes):
    data = bytearray(encode(smooth(17, 19), kind))
    for at, value in changes:
        data[at % len(data)] = value
    try:
        picture = load_image(bytes(data), max_pixels=1 << 20)
    except ValueError:
        return
    assert picture.ndim == 3
    assert picture.dtype == np.uint8


@NEEDS_DECODER
def test_a_damaged_png_is_refused():
    data = bytearray(encode(noise(30, 30), "png"))
    at = data.index(b"IDAT") + 100
    data[at] ^= 1
    with pytest.raises(ValueError, match="checksum of its IDAT"):
        load_image(bytes(data))


def bombs():
    jpeg = bytearray(encode(smooth(16, 16), "jpeg"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    bmp = bytearray(encode(smooth(16, 16), "bmp"))
    bmp[18:26] = struct.pack("<ii", 1 << 27, 1 << 27)
    gif = bytearray(encode(Image.new("P", (16, 16)), "gif"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    return {
        "png": png(30000, 30000, 8, 2, b""),
        "png_31_bits": png(2**31 - 1, 2**31 - 1, 16, 6, b""),
        "jpeg": bytes(jpeg),
        "bmp": bytes(bmp),
        "gif": bytes(gif),
    }


@pytest.mark.parametrize("kind", sorted(bombs()))
def test_huge_headers_are_refused_before_allocating(kind):
    data = bombs()[kind]
    gc.collect()
    before = peak_bytes()
    with pytest.raises(ValueError, match=r"max_pixels|pixels|size|broken|bomb"):
        load_image(data)
    assert peak_bytes() - before < 30 << 20


@NEEDS_DECODER
def test_data_beyond_the_headers_size_is_refused():
    data = png(1, 1, 8, 2, bytes(200 << 20))
    before = peak_bytes()
    with pytest.raises(ValueError, match="more data than its 1 x 1 pixels"):
        load_image(data)
    assert peak_bytes() - before < 30 << 20


def segment(marker: int, body: bytes = b"") -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def frame(marker: int = 0xC0, bits: int = 8, height: int = 8, width: int = 8, colours: int = 3) -> bytes:
    parts = b"".join(bytes((i + 1, 0x11, 0)) for i in range(colours))
    return segment(marker, struct.pack(">BHHB", bits, height, width, colours) + parts)


SOI, SCAN = b"\xff\xd8", segment(0xDA, bytes(10))

# What the core leaves to another decoder, and why.
ODD_JPEGS = {
    "nothing after its mark": (b"\xff\xd8\xff", "it is cut short"),
    "fill bytes to the end": (SOI + b"\xff\xff\xff\xff", "it is cut short"),
    "no length": (SOI + b"\xff\xe0\x00", "it is cut short"),
    "a length of one": (SOI + b"\xff\xe0\x00\x01rest", "it is cut short"),
    "a segment past the end": (SOI + b"\xff\xe0\x00\x09rest", "it is cut short"),
    "bytes between segments": (SOI + segment(0xE0) + b"stray", "stray bytes between its segments"),
    "a restart before the scan": (SOI + b"\xff\xd0" + frame(), "a marker is out of place"),
    "an end before the scan": (SOI + frame() + b"\xff\xd9", "a marker is out of place"),
    "a scan before the frame": (SOI + SCAN + b"\xff\xd9", "it has no frame header"),
    "two frames": (SOI + frame() + frame(), "it has several frames"),
    "a frame cut short": (SOI + segment(0xC0, b"\x08\x00\x08"), "its samples are not of 8 bits"),
    "twelve bits": (SOI + frame(bits=12), "its samples are not of 8 bits"),
    "no height": (SOI + frame(height=0), "its header gives no size"),
    "no width": (SOI + frame(width=0), "its header gives no size"),
    "chroma of half the width": (
        SOI + frame().replace(b"\1\x11\0", b"\1\x21\0"), "its chroma sampling is neither 4:4:4 nor 4:2:0"),
    "four colours": (SOI + frame(colours=4), "it is neither grey nor of three colours"),
    "lossless": (SOI + frame(0xC3), "lossless, hierarchical or arithmetic"),
    "arithmetic": (SOI + frame(0xC9), "lossless, hierarchical or arithmetic"),
    "half a Huffman table": (SOI + segment(0xC4, bytes(16)), "a Huffman table is broken"),
    "a Huffman table of too many codes": (
        SOI + segment(0xC4, b"\0" + b"\xff" * 16 + bytes(4080)), "a Huffman table is broken"),
    "a Huffman table past its segment": (SOI + segment(0xC4, b"\0" + b"\x02" * 16 + bytes(31)), "a Huffman table is broken"),
    "a broken Huffman table after the scan": (
        SOI + frame() + SCAN + b"data" + segment(0xC4, b"\0" + b"\xff" * 16) + b"\xff\xd9", "a Huffman table is broken"),
    "a broken Huffman table inside of a later segment": (
        SOI + frame() + SCAN + b"data" + segment(0xE2, b"\xff\xc4\x00\x01") + b"\xff\xd9", "a Huffman table is broken"),
    "a scan without an end": (SOI + frame() + SCAN + b"data\xff\x00\xff\xd1more\xff", "it is cut short"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_JPEGS)
def test_jpegs_that_the_core_leaves_to_another_decoder(name: str) -> None:
    data, reason = ODD_JPEGS[name]
    with pytest.raises(RuntimeError, match=f"the file cannot be decoded: .*{reason}"):
        _core.decode_image(data)
    with pytest.raises(ValueError, match="image"):  # Pillow has no use for them either
        load_image(data)


def bmp(width: int = 2, height: int = 2, bits: int = 24, compression: int = 0, header: int = 40, offset: int = 54) -> bytes:
    head = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 70, 0, 0, offset) + head + bytes(16)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (bmp()[:53], "a BMP of a rare kind"),
        (bmp(bits=8), "a BMP of a rare kind"),
        (bmp(header=12), "a BMP of a rare kind"),
        (bmp(compression=3), "a BMP of a rare kind"),
        (bmp(width=0), "gives no size"),
        (bmp(height=0), "gives no size"),
        (bmp(offset=20), "cut short"),
        (bmp(offset=1 << 30), "cut short"),
        (bmp(height=3), "cut short"),
        (b"GIF89a", "not a JPEG, PNG or BMP"),
        (b"", "not a JPEG, PNG or BMP"),
        (b"\x89PNG\r\n\x1a\n", "cut short"),
        (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IDAT", b"x" * 13), "chunks that are out of place or unknown"),
        (png(2, 2, 8, 2, bytes(14), png_chunk(b"ABCD", b"")), "chunks that are out of place or unknown"),
        (png(0, 2, 8, 2, b""), "gives no size"),
    ],
    ids=range(15),
)
def test_files_that_the_core_leaves_to_another_decoder(data: bytes, reason: str) -> None:
    with pytest.raises(RuntimeError, match=f"the file cannot be decoded: .*{reason}"):
        _core.decode_image(data)


@NEEDS_DECODER
def test_a_bmp_with_rows_from_the_top() -> None:
    rows = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    padded = b"".join(row[:, ::-1].tobytes() + b"\0\0" for row in rows)
    assert np.array_equal(_core.decode_image(bmp(height=-2)[:54] + padded), rows)
    assert np.array_equal(_core.decode_image(bmp()[:54] + padded), rows[::-1])


@pytest.mark.parametrize(
    "entry",
    [
        struct.pack("<HHII", 0x0112, 2, 1, 6),  # of text
        struct.pack("<HHII", 0x0112, 3, 2, 6),  # two of them
        struct.pack("<HHII", 0x0112, 3, 1, 9),
        struct.pack("<HHII", 0x0112, 4, 1, 0),
    ],
)
def test_odd_orientations_are_none(entry: bytes) -> None:
    picture = smooth(20, 33)
    block = b"II*\0" + struct.pack("<IH", 8, 1) + entry
    assert load_image(encode(picture, "jpeg", exif=b"Exif\0\0" + block)).shape == (20, 33, 3)


@pytest.mark.parametrize(
    "text", ['tiff:Orientation="9"', "tiff:Orientation=6", "tiff:Orientations", 'tiff:Make="tiff: a t"', "t" * 40, ""]
)
def test_odd_orientations_in_xmp_are_none(text: str) -> None:
    body = b"http://ns.adobe.com/xap/1.0/\0" + f"<rdf:Description {text}/>".encode()
    jpeg = encode(smooth(20, 33), "jpeg")
    assert load_image(jpeg[:2] + segment(0xE1, body) + jpeg[2:]).shape == (20, 33, 3)


@NEEDS_DECODER
def test_an_orientation_of_four_bytes() -> None:
    block = b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 0x0112, 4, 1, 6)
    assert load_image(encode(smooth(20, 33), "jpeg", exif=b"Exif\0\0" + block)).shape == (33, 20, 3)


@NEEDS_DECODER
def test_endless_scans_are_refused():
    data = encode(smooth(64, 64), "jpeg", progressive=True)
    last = data.rindex(b"\xff\xda")
    scan = data[last:-2]
    with pytest.raises(ValueError, match="scans"):
        load_image(data[:-2] + scan * 200 + data[-2:])


def test_max_pixels():
    for kind in ("png", "jpeg", "gif", "bmp"):
        data = encode(Image.fromarray(smooth(20, 30)), kind)
        assert load_image(data, max_pixels=600).shape == (20, 30, 3)
        with pytest.raises(ValueError, match="30 x 20 pixels, more than max_pixels = 599"):
            load_image(data, max_pixels=599)


def box(kind, body):
    return struct.pack(">I", 8 + len(body)) + kind + body


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (box(b"ftyp", b"heic\0\0\0\0mif1heic") + bytes(40), "HEIC picture: pip install pillow-heif"),
        (box(b"ftyp", b"isom\0\0\2\0isommp41") + bytes(40), "a video, not a picture; save a frame"),
        (b"\x1a\x45\xdf\xa3" + bytes(40), "a video"),
        (b"RIFF\0\0\0\0AVI LIST", "a video"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"\xef\xbb\xbf<!DOCTYPE html><html></html>", "a web page"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "an EPS drawing"),
        (b"\xff\x0a" + bytes(20), "JPEG XL"),
        (b"\x93NUMPY\1\0", "a NumPy file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"hello", "no image format that is known"),
    ],
)
def test_what_is_no_picture_is_named_for_what_it_is(data, said):
    with pytest.raises(ValueError, match=said):
        load_image(data)


def test_a_picture_too_large_names_the_option():
    with pytest.raises(ValueError, match=r"11500 x 8000 pixels, more than max_pixels = 89478485; .*--max-pixels"):
        load_image(png(11500, 8000, 8, 2, b""))
    gif = bytearray(encode(Image.new("P", (16, 16)), "gif"))
    gif[6:10] = struct.pack("<HH", 20000, 20000)
    with pytest.raises(ValueError, match=r"400000000 pixels.*--max-pixels"):
        load_image(bytes(gif))


def test_pictures_in_text():
    picture = smooth(20, 33)
    data = encode(picture, "png")
    packed = base64.b64encode(data).decode()
    texts = [
        packed, packed.rstrip("="), base64.urlsafe_b64encode(data).decode(), packed[:76] + "\n" + packed[76:],
        f"data:image/png;base64,{packed}", f"DATA:;BASE64,{packed}", f"data:image/png,{urllib.parse.quote(data)}",
        f"data:image/png;base64,{urllib.parse.quote(packed)}",
    ]  # fmt: skip
    for text in texts:
        assert np.array_equal(load_image(text), picture)
    for text, said in [
        ("data:image/png;base64,???", "not base64 as it says"), ("data:image/png", "no comma"),
        ("data:text/plain;base64,aGVsbG8=", "no image format"), (packed[:-9] + "!" * 5000, "a text of .* letters"),
    ]:  # fmt: skip
        with pytest.raises((ValueError, OSError), match=said):
            load_image(text)


def test_files_are_read_from_their_beginning(tmp_path):
    picture = smooth(20, 33)
    written = io.BytesIO()
    Image.fromarray(picture).save(written, "png")
    assert written.tell() > 0
    assert np.array_equal(load_image(written), picture)
    assert np.array_equal(load_image(written), picture)
    with tempfile.SpooledTemporaryFile() as file:
        Image.fromarray(picture).save(file, "png")
        assert np.array_equal(load_image(file), picture)
    read, write = os.pipe()
    with open(write, "wb") as there:
        there.write(written.getvalue())
    with open(read, "rb") as here:
        assert np.array_equal(load_image(here), picture)


# ---- pixel values ----


def test_pixel_values_of_any_array():
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    for given_values in (
        values,
        values.astype(np.float64),
        values.astype(">f4"),
        np.asfortranarray(values),
        torch.from_numpy(values),
        torch.from_numpy(values).requires_grad_(),
        torch.from_numpy(values).double().transpose(2, 3).contiguous().transpose(2, 3),
        list(values),
        [torch.from_numpy(item) for item in values],
    ):
        result = as_pixel_values(given_values)
        assert result.dtype == np.float32
        assert result.flags.c_contiguous
        assert np.array_equal(result, values)
    assert as_pixel_values(values[0]).shape == (3, 8, 8)
    half = torch.from_numpy(values).bfloat16()
    assert np.array_equal(as_pixel_values(half), half.float().numpy())
    assert np.array_equal(as_pixel_values(values.astype(np.float16)), values.astype(np.float16).astype(np.float32))

    class OnlyDlpack:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    assert np.array_equal(as_pixel_values(OnlyDlpack(values)), values)


def test_pixel_values_are_refused_by_name():
    values = np.zeros((3, 8, 8), np.float32)
    for shape in ((8, 8, 3), (8, 8), (1, 4, 8, 8), (2, 2, 3, 8, 8), (3, 0, 8)):
        with pytest.raises(ValueError, match=r"samples: shape \["):
            as_pixel_values(np.zeros(shape, np.float32), "samples")
    for wrong in (np.nan, np.inf, -np.inf):
        values[1, 2, 3] = wrong
        with pytest.raises(ValueError, match="samples: 1 of 192 values are NaN or infinite"):
            as_pixel_values(values, "samples")
    with pytest.raises(ValueError, match="NaN or infinite"):
        as_pixel_values(np.full((3, 2, 2), 1e300))
    with pytest.raises(TypeError, match="samples: expected an array of numbers, got ndarray of complex64"):
        as_pixel_values(np.zeros((3, 8, 8), np.complex64), "samples")
    for dtype in (np.uint8, np.int64, np.bool_):
        with pytest.raises(ValueError, match="expected normalised floats"):
            as_pixel_values(np.zeros((3, 8, 8), dtype))
    for wrong in (None, "a.png", 5, Image.new("RGB", (4, 4))):
        with pytest.raises(TypeError, match="pixel_values"):
            as_pixel_values(wrong)
    with pytest.raises(ValueError, match="of one size"):
        as_pixel_values([np.zeros((3, 8, 8), np.float32), np.zeros((3, 8, 9), np.float32)])
    with pytest.raises(ValueError, match="empty"):
        as_pixel_values([])


def test_torch_and_pillow_stay_unimported():
    code = (
        "import sys, numpy as np; from qavit import images\n"
        "p = images.load_image(np.zeros((9, 9, 3), np.uint8)); images.preprocess(p, images.Preprocessing(8))\n"
        "images.as_pixel_values(np.zeros((3, 8, 8), np.float32))\n"
        "print([name for name in ('torch', 'PIL') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# ---- memory and threads ----


def digest(data: bytes) -> str:
    picture = load_image(data)
    pixels, _ = preprocess(picture, Preprocessing(32))
    return hashlib.sha256(picture.tobytes() + pixels.tobytes()).hexdigest()


def test_threads_agree():
    files = [encode(smooth(90, 120, seed), kind) for seed, kind in enumerate(("jpeg", "png", "bmp", "gif"))]
    expected = [digest(data) for data in files]
    wrong = []

    def work():
        for _ in range(20):
            wrong.extend(kind for kind, data in enumerate(files) if digest(data) != expected[kind])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_memory_stays_flat():
    good = [encode(smooth(120, 90), kind) for kind in ("jpeg", "png", "bmp")]
    broken = [data[: len(data) // 2] for data in good]

    def work(rounds: int) -> None:
        for _ in range(rounds):
            for data in good:
                preprocess(load_image(data), Preprocessing(32))
            for data in broken:
                with pytest.raises(RuntimeError):
                    _core.decode_image(data)

    work(50)
    gc.collect()
    before = peak_bytes()
    work(350)
    gc.collect()
    # A picture left behind in each round would be 11 MiB. Observed: under 1 MiB.
    assert peak_bytes() - before < 4 << 20


@pytest.mark.skipif(not _core.build_info()["debug"], reason="allocations fail on request in a debug build alone")
def test_every_failing_allocation_is_a_memory_error():
    data = encode(smooth(40, 50), "png", exif=b"Exif\0\0" + exif_block(6))
    picture = _core.decode_image(data)
    for call in (
        lambda: _core.decode_image(data),
        lambda: _core.preprocess_image(picture, (16, 16), Preprocessing(16).core_arguments()),
        lambda: _core.resize_image(picture, 90, 80),
    ):
        expected = call()
        failures = 0
        for n in range(1, 100):
            _core.fail_allocation(n)
            try:
                result = call()
            except MemoryError:
                failures += 1
                continue
            finally:
                _core.fail_allocation(0)
            assert np.array_equal(result, expected)
            break
        assert failures >= 3
        assert np.array_equal(call(), expected)


def test_a_large_photograph():
    picture = load_image(encode(smooth(3000, 4000), "jpeg", quality=90))
    assert picture.shape == (3000, 4000, 3)
    pixels, _ = preprocess(picture, Preprocessing(336))
    assert pixels.shape == (3, 336, 336)
