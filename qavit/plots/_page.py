"""One self-contained page to look at a result: picture, questions, blocks, words, values under the pointer.

The page holds everything it needs and may load nothing: its content security policy names the hashes of its one script
and its one style sheet, and allows no network. Texts of questions, words and answers are data, never markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from pathlib import Path
from typing import Any, Optional

import numpy as np

from .._base.pictures import Picture
from .._base.types import FloatArray
from ..heatmaps._grid import output_size
from ..heatmaps._maps import Maps
from ._look import Cmap, Look, are_distributions, how_read, is_cropped, likely_answers, notes_of, spread_blocks
from ._pixels import REACH, colorize, colormap, scale_of

COLORMAPS = ("viridis", "turbo", "jet", "inferno", "magma", "gray")
PICTURE_SIDE = 1100  # the longer side of the picture in the page, in pixels
FINE, COARSE = 120_000, 150_000  # the most bytes of maps stored with 16 bits a value, and with 8


def render(result: Maps, title: Optional[str] = None, look: Optional[Look] = None, blocks: bool = True) -> str:
    """The page of a result, see `HeatmapResult.to_html`; of a look, colours, ends and whether they are shared count.

    Returns
    -------
    str
        HTML. Beside the picture under 300 KB: values are stored with 16 or 8 bits, and where many questions and blocks
        would take more, fewer blocks are put in.
    """
    folder = Path(__file__).parent
    style = (folder / "page.css").read_text(encoding="utf-8")
    script = (folder / "page.js").read_text(encoding="utf-8")
    page = (folder / "page.html").read_text(encoding="utf-8")
    heading = title or "Where the model looks"
    look = look or Look()
    scale_of(result.maps, look.vmin, look.vmax)  # refuses ends that are none
    content = _content(result, look.cmap, blocks)
    content.update(vmin=look.vmin, vmax=look.vmax, shared=look.shared, reach=REACH)
    parts = {
        "@STYLE_HASH@": _hash(style),
        "@SCRIPT_HASH@": _hash(script),
        "@TITLE@": html.escape(heading),
        "@STYLE@": style,
        "@SCRIPT@": script,
        "@DATA@": _json(content),
    }
    return re.sub("@[A-Z_]+@", lambda mark: parts[mark.group()], page)


def _content(result: Maps, cmap: Cmap, blocks: bool) -> dict[str, Any]:
    """What the page's script reads."""
    own = result.block_numbers[-1]
    if blocks and result.block_maps is not None:
        every = np.array(result.block_maps)
        numbers = spread_blocks(len(every), own, max(2, COARSE // max(1, every[0].size)))
        if 0 <= own < len(every):
            every[own] = result.maps
        maps = every[numbers]
    else:
        maps, numbers = result.maps[None], [own]
    flat = maps.reshape(-1, *result.grid)
    words = result.words
    word_maps = result.word_maps
    questions: list[dict[str, Any]] = []
    first = 0
    for index, text in enumerate(result.questions):
        entry: dict[str, Any] = {"text": text, "notes": notes_of(result, index)}
        entry["answers"] = [[answer, round(chance, 4)] for answer, chance in likely_answers(result, index, 4)]
        if words is not None:
            entry.update(words=words[index], first_word=first)
            first += len(words[index])
        questions.append(entry)
    height, width = result.picture_size
    seen = result.seen
    how = how_read(result.method)
    chosen = colormap(cmap)
    content: dict[str, Any] = {
        "grid": result.grid,
        "size": [height, width],
        "region": [seen.left, seen.top, seen.right, seen.bottom],
        "questions": questions,
        "block": own,
        "blocks": numbers,
        "distribution": are_distributions(result.maps),
        "notes": notes_of(result, None),
        "cropped": is_cropped(result),
        "about": f"{how[0].upper()}{how[1:]} · {result.grid[0]} x {result.grid[1]} patches · picture {width} x {height}",
        "maps": _packed(flat, 16 if flat.size * 2 <= FINE else 8),
        "colormaps": {chosen.name: _ramp(chosen), **{name: _ramp(name) for name in COLORMAPS if name != chosen.name}},
        "cmap": chosen.name,
        "picture": _data_uri(result.picture),
    }
    if word_maps is not None and first:
        content["words"] = _packed(np.concatenate([values for values in word_maps if len(values)]), 8)
    return content


def _packed(maps: FloatArray, bits: int) -> dict[str, Any]:
    """Maps [N, gh, gw] as integers between each one's smallest and largest value."""
    low = maps.min(axis=(1, 2), keepdims=True).astype(np.float64)
    high = maps.max(axis=(1, 2), keepdims=True).astype(np.float64)
    top = 2**bits - 1
    unit = (maps - low) / np.where(high > low, high - low, 1.0)
    integers = np.rint(unit * top).astype("<u2" if bits == 16 else "u1")
    bounds = [[float(f"{a:.7g}"), float(f"{b:.7g}")] for a, b in zip(low.ravel(), high.ravel())]
    return {"bits": bits, "bounds": bounds, "data": _base64(integers.tobytes())}


def _ramp(cmap: Cmap) -> str:
    """256 colours, three bytes each."""
    return _base64(colorize(np.linspace(0.0, 1.0, 256), cmap).tobytes())


def _data_uri(picture: Picture) -> str:
    """The picture as the page holds it: PNG where it is small, else JPEG, no larger than the page draws it."""
    from PIL import Image

    height, width = output_size(min(PICTURE_SIDE, max(picture.shape[:2])), (picture.shape[0], picture.shape[1]))
    image = Image.fromarray(picture)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if width * height <= 65_536:
        image.save(buffer, "PNG")
        return f"data:image/png;base64,{_base64(buffer.getvalue())}"
    image.save(buffer, "JPEG", quality=90, optimize=True)
    return f"data:image/jpeg;base64,{_base64(buffer.getvalue())}"


def _json(content: Any) -> str:
    """JSON that is safe inside a script element: nothing in it can close the element or open markup."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # A lone surrogate, which a question may hold, has no UTF-8.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _hash(text: str) -> str:
    """A content security policy's name for an inline script or style sheet."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
