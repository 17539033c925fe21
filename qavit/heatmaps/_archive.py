"""Results as .npz files: plain arrays, texts as JSON, the picture as PNG; no pickle."""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._base.archives import BROKEN, read_member
from .._base.files import PathLike
from .._base.pictures import load_image
from .._base.warnings import Note
from ..images import Region
from ._maps import Maps

FORMAT = 1
MAX_BYTES = 1 << 30
"""Of all arrays of a file that is read."""
#: The header of an array file as NumPy writes it, read here: NumPy would have Python compile it.
_HEADER = re.compile(
    rb"\{'descr': '([<>|=]?[fiuU]\d{1,9})', 'fortran_order': False, 'shape': \(((?:\d{1,18},? ?){0,8})\), *\} *\n?"
)


def array_of(result: Maps) -> bytes:
    """The .npy file of a result's maps."""
    buffer = io.BytesIO()
    np.save(buffer, result.maps)
    return buffer.getvalue()


def archive_of(result: Maps) -> bytes:
    """The .npz file of a result: maps of blocks and of heads are in it where they were computed before."""
    from PIL import Image

    png = io.BytesIO()
    Image.fromarray(result.picture).save(png, "PNG")
    seen = result.seen
    arrays: dict[str, Any] = {
        "qavit_heatmaps": np.array(FORMAT),
        "maps": result.maps,
        "raw": result.raw,
        "picture": np.frombuffer(png.getvalue(), np.uint8),
        "picture_size": np.array(result.picture_size),
        "region": np.array([seen.left, seen.top, seen.right, seen.bottom]),
        "block": np.array(result.block),
        "method": np.array(result.method),
        "model": np.array(result.model),
        "heads": np.array(_json(result.heads)),
        "questions": np.array(result.questions),
        "notes": np.array(_json(result.notes)),
    }
    for name in ("words", "answers"):
        if getattr(result, name) is not None:
            arrays[name] = np.array(_json(getattr(result, name)))
    if result.scores is not None:
        arrays["scores"] = result.scores
    for index, values in enumerate(result.word_maps or ()):
        arrays[f"word_maps_{index}"] = values
    for name in ("block_maps", "block_raw"):
        values = result.__dict__[f"_{name}"]
        if values is not None and not callable(values):
            arrays[name], arrays["blocks"] = values, np.array(result.blocks)
    heads = result.__dict__["_head_maps"]
    if heads is not None and not callable(heads):
        arrays["head_maps"] = heads
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def parts_of(path: PathLike) -> dict[str, Any]:
    """What a result is made of, from a file that :func:`archive_of` wrote.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is no such file, or a broken one.
    """
    try:
        with zipfile.ZipFile(Path(path)) as archive:
            return _parts(_Members(archive))
    except FileNotFoundError:
        raise
    except zipfile.BadZipFile:
        raise ValueError(f"{path}: not a file of heatmaps: no zip archive") from None
    except (LookupError, TypeError, *BROKEN) as error:
        raise ValueError(f"{path}: not a file of heatmaps that HeatmapResult.save wrote: {error}") from None


class _Members:
    """The arrays of an .npz archive, read one by one, never more than `MAX_BYTES` together."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.names = {name.removesuffix(".npy") for name in archive.namelist()}
        self.left = MAX_BYTES

    def __call__(self, name: str) -> npt.NDArray[Any]:
        if name not in self.names:
            raise ValueError(f"{name} is missing")
        info = self.archive.getinfo(f"{name}.npy")
        self.left -= info.file_size
        if self.left < 0:
            raise ValueError(f"its arrays take more than {MAX_BYTES} bytes")
        data = read_member(self.archive, info)
        # The version of the format, then the header's length in two bytes, or since version 2 in four.
        start = {b"\x93NUMPY\x01\0": 10, b"\x93NUMPY\x02\0": 12}.get(data[:8], 0)
        end = start + int.from_bytes(data[8:start], "little")
        found = _HEADER.fullmatch(data, start, end) if start and end <= len(data) else None
        if found is None:
            raise ValueError(f"{name} is no array as NumPy writes it")
        dtype = np.dtype(found[1].decode())
        shape = tuple(int(side) for side in found[2].replace(b",", b" ").split())
        count = math.prod(shape)
        if count * dtype.itemsize != len(data) - end:
            raise ValueError(f"{name} is {dtype} of shape {shape} in {len(data) - end} bytes")
        return np.frombuffer(data, dtype, count, end).reshape(shape) if count else np.zeros(shape, dtype)

    def json(self, name: str) -> Any:
        return json.loads(str(self(name)[()]))


def _parts(read: _Members) -> dict[str, Any]:
    version = int(read("qavit_heatmaps"))
    if version != FORMAT:
        raise ValueError(f"its format is {version}, this qavit reads {FORMAT}")
    picture = load_image(read("picture").tobytes(), exif=False)
    if picture.shape[:2] != tuple(read("picture_size")):
        raise ValueError(f"its picture has {picture.shape[:2]} pixels, expected {tuple(read('picture_size'))}")
    block = read("block")
    left, top, right, bottom = (float(edge) for edge in read("region"))
    questions = read("questions")
    if questions.ndim != 1 or questions.dtype.kind != "U":
        raise ValueError(f"questions are {questions.dtype} of shape {questions.shape}")
    parts: dict[str, Any] = {
        "maps": read("maps"),
        "raw": read("raw"),
        "questions": [str(question) for question in questions],
        "picture": picture,
        "seen": Region(left, top, right, bottom),
        "block": int(block) if block.ndim == 0 else tuple(int(one) for one in block),
        "method": str(read("method")),
        "model": str(read("model")) if "model" in read.names else "",
        "notes": tuple(_note(*note) for note in read.json("notes")),
    }
    if "words" in read.names:
        parts["words"] = [[_text(word) for word in words] for words in read.json("words")]
        if "word_maps_0" in read.names:
            parts["word_maps"] = [read(f"word_maps_{index}") for index in range(len(questions))]
    if "answers" in read.names:
        parts["answers"] = [[(_text(answer), float(p)) for answer, p in ranked] for ranked in read.json("answers")]
    if "heads" in read.names:
        parts["heads"] = _heads(read.json("heads"))
    for name in ("scores", "head_maps"):
        if name in read.names:
            parts[name] = read(name)
    for name in ("block_maps", "block_raw"):
        if name in read.names:
            parts[name], parts["blocks"] = read(name), tuple(int(one) for one in read("blocks"))
    return parts


def _note(kind: Any, text: Any, question: Any) -> Note:
    return Note(_text(kind), _text(text), None if question is None else int(question))


def _heads(value: Any) -> Any:
    if not isinstance(value, str) and type(value) is not int:
        raise TypeError(f"heads are {value!r:.40}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text is {type(value).__name__}")
    return value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
