"""Reading pictures: files, data: URLs, PIL images and arrays become uint8 [H, W, 3]."""

from __future__ import annotations

import base64
import binascii
import contextlib
import importlib
import io
import os
import re
import urllib.parse
from pathlib import Path
from typing import Any, Optional

import numpy as np
import numpy.typing as npt

from .. import _core

Picture = npt.NDArray[np.uint8]

#: What names of pictures end with.
PICTURE_ENDINGS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "avif", "heic", "heif"})
MAX_PIXELS = 89_478_485
"""The largest picture read from a file, in pixels: a third of 2^28, as in Pillow."""
MAX_FILE_BYTES = 1 << 30
"""The largest image file read."""
MAX_PATH = 4096
MIN_BASE64 = 64
"""Letters of the shortest text that is taken for a picture in base64."""


def load_image(image: Any, *, exif: bool = True, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a picture.

    Parameters
    ----------
    image : path, bytes, binary file, data: URL, PIL image, or array
        An image file's path, its bytes, or a file object open for reading them, which is read from its beginning: JPEG,
        PNG, BMP, and all that Pillow reads. A ``data:`` URL, or the base64 text of an image file. A PIL image of any mode
        with a defined range. An array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of uint8, uint16 (upper 8 bits are taken)
        or bool. Alpha is dropped.
    exif : bool
        Turn the pictures of files as their EXIF orientation says. PIL images and arrays are taken as they are.
    max_pixels : int
        A larger picture in a file is refused before its pixels are allocated.

    Returns
    -------
    ndarray
        uint8 [H, W, 3], a new array.

    Raises
    ------
    FileNotFoundError
        Where no such file exists.
    ValueError
        For what is no picture or a broken one, with the file's name and the reason.
    TypeError
        For an object of another type, torch tensors among them: normalised ones are pixel values, not pictures.
    """
    if isinstance(image, str) and (data := picture_in_text(image)) is not None:
        return _decode(data, "image", exif, max_pixels)
    if isinstance(image, (str, Path)) or (isinstance(image, os.PathLike) and not hasattr(image, "read")):
        path = os.fspath(image)
        return _decode(_read_file(path), str(path), exif, max_pixels)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _decode(bytes(image), "image", exif, max_pixels)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if hasattr(image, "convert") and hasattr(image, "getbands"):
        try:
            return _from_pillow(image)
        except ValueError as error:
            raise ValueError(f"image: {error}") from error
        except (OSError, SyntaxError) as error:
            raise ValueError(f"image: the PIL image cannot be read: {error}") from error
    if hasattr(image, "read"):
        if hasattr(image, "seek"):
            with contextlib.suppress(OSError):  # a pipe: what is left of it is all there is
                image.seek(0)
        data = image.read(MAX_FILE_BYTES + 1)
        if not isinstance(data, (bytes, bytearray)):
            raise TypeError(f"image: a file that gives {type(data).__name__}, expected one open for reading bytes ('rb')")
        return _decode(bytes(data), str(getattr(image, "name", "image")), exif, max_pixels)
    hint = ""
    if isinstance(image, (list, tuple)):
        hint = "; give one picture (model.stream takes several), or a batch of normalised ones as floats [B, 3, S, S]"
    elif hasattr(image, "detach") or hasattr(image, "__dlpack__"):
        hint = "; give a picture as a uint8 NumPy array [H, W, 3], pixel values as floats [3, S, S]"
    raise TypeError(f"image: expected a path, bytes, a file, a PIL image or a uint8 array, got {type(image).__name__}{hint}")


def picture_in_text(text: str) -> Optional[bytes]:
    """The image file that a data: URL or a base64 text holds; None for what is neither.

    Base64 is known by the first bytes of a picture's file in it, so that no path is taken for it. ValueError for a data: URL
    that cannot be read.
    """
    if text[:5].lower() == "data:":
        head, comma, body = text[5:].partition(",")
        if not comma:
            raise ValueError(f"image: the data: URL {text[:40]!r} has no comma, which its content begins after")
        if not head.lower().endswith(";base64"):
            return urllib.parse.unquote_to_bytes(body)
        found = _from_base64(urllib.parse.unquote(body))
        if found is None:
            raise ValueError(f"image: the data: URL {text[:40]!r} is not base64 as it says")
        return found
    if len(text) < MIN_BASE64 or "." in text[:1024]:
        return None
    start = _from_base64(text[:16])
    if start is None or not start.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")):
        return None
    return _from_base64(text)


def _from_base64(text: str) -> Optional[bytes]:
    """The bytes of a base64 text, of either alphabet and with or without its padding; None where it is none."""
    packed = "".join(text.split()).rstrip("=").translate({ord("-"): "+", ord("_"): "/"})
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def _read_file(path: str | bytes) -> bytes:
    if len(path) > MAX_PATH:  # the system's message would repeat all of it
        said = f"a text of {len(path)} letters, {path[:40]!r}..., is neither a path nor a picture in base64"
        raise ValueError(f"image: {said}")
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        hint = " (download it first: only local files are read)" if re.match(r"\w+://", str(path)) else ""
        raise FileNotFoundError(error.errno, f"image: no such file{hint}", str(path)) from None
    except IsADirectoryError as error:
        raise IsADirectoryError(error.errno, "image: expected a picture's file, this is a folder", str(path)) from None
    return data


def _decode(data: bytes, name: str, exif: bool, max_pixels: int) -> Picture:
    """The picture of a file's bytes: by the core, or by Pillow where the core cannot."""
    if not data:
        raise ValueError(f"{name}: the file is empty")
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"{name}: larger than {MAX_FILE_BYTES} bytes")
    try:
        return _core.decode_image(data, exif, max_pixels)
    except ValueError as error:
        raise ValueError(f"{name}: {error}{_TOO_LARGE if 'max_pixels' in str(error) else ''}") from None
    except RuntimeError as error:
        return _decode_with_pillow(data, name, exif, max_pixels, str(error))


_TOO_LARGE = "; a larger max_pixels (--max-pixels) reads it"


def _decode_with_pillow(data: bytes, name: str, exif: bool, max_pixels: int, problem: str) -> Picture:
    from PIL import Image, ImageOps, UnidentifiedImageError

    known = _named_kind(data)
    try:
        image: Any = Image.open(io.BytesIO(data))
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        hint = "; PIL.Image.MAX_IMAGE_PIXELS bounds this kind of file too" if max_pixels > MAX_PIXELS else _TOO_LARGE
        raise ValueError(f"{name}: {error} (max_pixels = {max_pixels}){hint}") from error
    except Exception as error:
        kind = f" ({problem})" if data[:2] in (b"\xff\xd8", b"\x89P", b"BM") else ""
        reason = "no image format that is known" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(f"{name}: {known or reason + kind}") from error
    with image:
        if image.format == "EPS":  # Pillow would have another program run it
            raise ValueError(f"{name}: an EPS drawing, which has no pixels; render it to PNG first")
        if image.width * image.height > max_pixels:
            size = f"{image.width} x {image.height} pixels"
            raise ValueError(f"{name}: {size}, more than max_pixels = {max_pixels}{_TOO_LARGE}")
        try:
            image.load()
        except MemoryError:
            raise
        except Exception as error:  # Pillow's readers raise whatever their parsing stumbles over
            raise ValueError(f"{name}: the file is broken: {error}") from error
        try:
            turned = ImageOps.exif_transpose(image) if exif else image
        except Exception:  # EXIF that cannot be read turns nothing
            turned = image
        try:
            return _from_pillow(turned)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


_VIDEO = "a video, not a picture; save a frame of it first, such as with: ffmpeg -i FILE -frames:v 1 frame.png"
_FTYP_KINDS = {
    b"avif": "an AVIF picture, which this Pillow cannot read: pip install -U pillow (11.3 or later)",
    b"avis": "an AVIF picture, which this Pillow cannot read: pip install -U pillow (11.3 or later)",
    **dict.fromkeys(
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
        "a HEIC picture: pip install pillow-heif, which is then used, or convert it to JPEG or PNG",
    ),
}
_STARTS = (
    (b"%PDF", "a PDF document, not a picture; render a page to PNG first"),
    (b"\x1a\x45\xdf\xa3", _VIDEO),
    (b"\0\0\x01\xba", _VIDEO),
    (b"\xff\x0a", "a JPEG XL picture, which Pillow cannot read; convert it to PNG or JPEG"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture, which Pillow cannot read; convert it to PNG or JPEG"),
    (b"\x93NUMPY", "a NumPy file, not a picture; give the array that np.load reads"),
    (b"PK\x03\x04", "a zip archive, not a picture"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself; fetch it with: git lfs pull"),
)


def _named_kind(data: bytes) -> Optional[str]:
    """What a file is that is no picture here, and what helps; Pillow learns HEIC where pillow-heif is installed."""
    if data[4:8] == b"ftyp":
        brands = [data[8:12], *(data[at : at + 4] for at in range(16, min(64, int.from_bytes(data[:4], "big")), 4))]
        said = next((_FTYP_KINDS[brand] for brand in brands if brand in _FTYP_KINDS), _VIDEO)
        if "AVIF" in said and importlib.import_module("PIL.features").check("avif"):
            return None
        if "pillow-heif" in said:
            with contextlib.suppress(ImportError):
                importlib.import_module("pillow_heif").register_heif_opener()
        return said
    for start, said in _STARTS:
        if data.startswith(start):
            return said
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return _VIDEO
    text = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<") and b"<svg" in text:
        return "an SVG drawing, which has no pixels; render it to PNG first, such as with rsvg-convert or cairosvg"
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page, not a picture: what a failed download leaves"
    return None


def _from_pillow(image: Any) -> Picture:
    """uint8 [H, W, 3] of a PIL image."""
    mode = image.mode
    if mode.startswith("I;16"):
        return _from_array(np.asarray(image).astype(np.uint16))
    if mode == "I":
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ValueError(f"a PIL image of mode I has values from {values.min()} to {values.max()}, not 16 bits")
        return _from_array(values.astype(np.uint16))
    if mode == "F":
        raise ValueError("a PIL image of mode F has no defined range; scale it to 0 to 255 and convert it to uint8")
    if mode == "PA" or (mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")
    elif mode in ("RGBa", "La"):  # premultiplied alpha
        image = image.convert(mode[:-1] + "A")
    return _from_array(np.asarray(image if image.mode == "RGB" else image.convert("RGB")))


def _from_array(array: npt.NDArray[Any]) -> Picture:
    """uint8 [H, W, 3], a copy."""
    shape = list(array.shape)
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        hint = "; transpose(1, 2, 0) makes it so" if array.ndim == 3 and shape[0] in (3, 4) else ""
        raise ValueError(f"image: an array of shape {shape}, expected [H, W], [H, W, 3] or [H, W, 4]{hint}")
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        array = array >> 8
    elif array.dtype == np.bool_:
        array = array * np.uint8(255)
    elif array.dtype != np.uint8:
        hint = "; floats are taken as pixel values [3, S, S]" if array.dtype.kind == "f" else ""
        if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255:
            hint = "; astype('uint8') makes it so"
        raise ValueError(f"image: an array of {array.dtype}, expected uint8, uint16 or bool{hint}")
    picture = np.empty((shape[0], shape[1], 3), np.uint8)
    picture[...] = array[:, :, None] if array.ndim == 2 else array[:, :, : 3 if shape[2] == 4 else shape[2]]
    return picture
