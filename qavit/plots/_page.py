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
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import numpy as np

from .._base.pictures import Picture
from .._base.types import FloatArray
from ..heatmaps._grid import output_size
from ..heatmaps._maps import Maps
from ._look import (
    Cmap,
    Look,
    View,
    are_distributions,
    how_read,
    is_cropped,
    is_zoomed,
    likely_answers,
    notes_of,
    spread_blocks,
    view_of,
)
from ._pixels import REACH, colorize, colormap, scale_of

COLORMAPS = ("viridis", "turbo", "jet", "inferno", "magma", "gray")
PICTURE_SIDE = 1100  # the longer side of what is drawn of the picture, in pixels
MOST_SIDE = 4096  # of the whole picture, where a part of it is drawn
QUESTIONS = '<h2 id="ask">Questions</h2>\n<div id="questions" role="group" aria-labelledby="ask"></div>'
KEYS = "Keys: 1&ndash;9 choose a question, [ and ] change the block; on the picture, arrows move from patch to patch."
ASKING_KEYS = "Keys: on the picture, arrows move from patch to patch; outside of a text, [ and ] change the block."
SHOW_STORED = """
qavitViewer(document).show(JSON.parse(document.getElementById("data").textContent))
  .then(() => { document.documentElement.dataset.ready = "true"; });
"""
FINE, COARSE = 120_000, 150_000  # the most bytes of maps stored with 16 bits a value, and with 8
HEADS = 300_000  # the most bytes of maps of heads, with 8 bits a value


def render(
    result: Maps, title: Optional[str] = None, look: Optional[Look] = None, blocks: bool = True, heads: bool = False
) -> str:
    """The page of a result, see `HeatmapResult.to_html`; of a look, colours, ends and whether they are shared count.

    Returns
    -------
    str
        HTML. Beside the picture under 300 KB: values are stored with 16 or 8 bits, and where many questions and blocks
        would take more, fewer blocks are put in. Maps of heads come beside that, at most `HEADS` values of them.

    Raises
    ------
    ValueError
        The result has no maps of heads, or they are too many for a page.
    """
    style, script = file_text("page.css"), f"{file_text('page.js')}{SHOW_STORED}"
    heading = html.escape(title or "Where the model looks")
    content = content_of(result, look or Look(), blocks)
    if heads:
        content["heads"] = _heads_of(result)
    parts = {
        "@STYLE_HASH@": _hash(style),
        "@SCRIPT_HASH@": _hash(script),
        "@TITLE@": heading,
        "@STYLE@": style,
        "@SCRIPT@": script,
        "@VIEWER@": viewer_markup(heading),
        "@DATA@": _json(content),
    }
    return filled(file_text("page.html"), parts)


def file_text(name: str) -> str:
    """One of the files that lie beside this one."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def filled(markup: str, parts: Mapping[str, str]) -> str:
    """Markup with each mark, as @TITLE@, in its place; what stands in the parts is left as it is."""
    return re.sub("@[A-Z_]+@", lambda mark: parts[mark.group()], markup)


def viewer_markup(heading: str, asks: bool = False) -> str:
    """What page.js draws into, and ask.js where it `asks`; the heading is markup."""
    parts = {"@TITLE@": heading, "@ASKING@": QUESTIONS, "@CHOICES@": "", "@KEYS@": KEYS}
    if asks:
        parts.update({"@ASKING@": file_text("ask.html"), "@CHOICES@": file_text("choices.html"), "@KEYS@": ASKING_KEYS})
    return filled(file_text("viewer.html"), parts)


def content_of(
    result: Maps, look: Look, blocks: bool = True, words: bool = True, exact: bool = False, picture: bool = True
) -> dict[str, Any]:
    """What page.js shows of a result.

    Parameters
    ----------
    blocks : bool
        Whether the maps of other blocks come along, where they can be computed.
    words : bool
        Whether the maps of words do.
    exact : bool
        Whether values are float32 as they are; else integers of 16 or 8 bits.
    picture : bool
        Whether the picture and the tables of colours come along; the script keeps those that it was given before.
    """
    scale_of(result.maps, look.vmin, look.vmax)  # refuses ends that are none
    numbers, maps = _maps_of(result, blocks)
    flat = maps.reshape(-1, *result.grid)
    questions, word_count = _questions_of(result, words)
    height, width = result.picture_size
    seen, view = result.seen, view_of(result)
    content: dict[str, Any] = {
        "grid": result.grid,
        "size": [height, width],
        "region": [seen.left, seen.top, seen.right, seen.bottom],
        "view": list(view),
        "zoomed": is_zoomed(result),
        "questions": questions,
        "block": result.block_numbers[-1],
        "blocks": numbers,
        "method": result.method,
        "model": result.model,
        "distribution": are_distributions(result.maps),
        "notes": notes_of(result, None),
        "cropped": is_cropped(result),
        "about": _about(result),
        "maps": _packed(flat, 32 if exact else 16 if flat.size * 2 <= FINE else 8),
        "vmin": look.vmin,
        "vmax": look.vmax,
        "shared": look.shared,
        "reach": REACH,
    }
    if picture:
        chosen = colormap(look.cmap)
        others = {name: _ramp(name) for name in COLORMAPS if name != chosen.name}
        content.update(colormaps={chosen.name: _ramp(chosen), **others}, cmap=chosen.name)
        content["picture"] = picture_uri(result.picture, view)
    if word_count and result.word_maps is not None:
        content["words"] = _packed(
            np.concatenate([values for values in result.word_maps if len(values)]), 32 if exact else 8
        )
    return content


def _maps_of(result: Maps, blocks: bool) -> tuple[list[int], FloatArray]:
    """Blocks, and their maps [blocks, Q, gh, gw]; the result's own among them."""
    own = result.block_numbers[-1]
    if not blocks or result.block_maps is None:
        return [own], result.maps[None]
    every = np.array(result.block_maps)
    numbers = spread_blocks(len(every), own, max(2, COARSE // max(1, every[0].size)))
    if 0 <= own < len(every):
        every[own] = result.maps
    return numbers, every[numbers]


def _heads_of(result: Maps) -> dict[str, Any]:
    """Each head's maps of every question, packed [heads * Q, gh, gw]."""
    every = result.head_maps
    if every is None:
        raise ValueError(f"heads: this result has no maps of single heads (method {result.method!r})")
    if every.size > HEADS:
        most = max(1, HEADS // every[0].size)
        raise ValueError(
            f"heads: {every.shape[1]} heads of {len(every)} questions are {every.size:,} values, expected at most "
            f"{HEADS:,}; write a page of fewer questions, as result[:{most}]"
        )
    return _packed(every.swapaxes(0, 1).reshape(-1, *result.grid), 8)


def _questions_of(result: Maps, words: bool) -> tuple[list[dict[str, Any]], int]:
    """What is said of each question, and how many words have a map."""
    questions: list[dict[str, Any]] = []
    first = 0
    for index, text in enumerate(result.questions):
        entry: dict[str, Any] = {"text": text, "notes": notes_of(result, index)}
        entry["answers"] = [[answer, round(chance, 4)] for answer, chance in likely_answers(result, index, 4)]
        if words and result.words is not None:
            entry.update(words=result.words[index], first_word=first)
            first += len(result.words[index])
        questions.append(entry)
    return questions, first


def _about(result: Maps) -> str:
    """One line: whose maps they are, how they were read, of which block, and of what."""
    how = how_read(result.method)
    numbers = result.block_numbers
    block = f"block{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
    height, width = result.picture_size
    parts = [result.model, f"{how[0].upper()}{how[1:]}", block, f"{result.grid[0]} x {result.grid[1]} patches"]
    return " · ".join([*filter(None, parts), f"picture {width} x {height}"])


def _packed(maps: FloatArray, bits: int) -> dict[str, Any]:
    """Maps [N, gh, gw] as float32, or as integers of fewer bits between each one's smallest and largest value."""
    low = maps.min(axis=(1, 2), keepdims=True).astype(np.float64)
    high = maps.max(axis=(1, 2), keepdims=True).astype(np.float64)
    bounds = [[float(f"{a:.7g}"), float(f"{b:.7g}")] for a, b in zip(low.ravel(), high.ravel())]
    if bits == 32:
        return {"bits": bits, "bounds": bounds, "data": _base64(maps.astype("<f4").tobytes())}
    top = 2**bits - 1
    unit = (maps - low) / np.where(high > low, high - low, 1.0)
    integers = np.rint(unit * top).astype("<u2" if bits == 16 else "u1")
    return {"bits": bits, "bounds": bounds, "data": _base64(integers.tobytes())}


def _ramp(cmap: Cmap) -> str:
    """256 colours, three bytes each."""
    return _base64(colorize(np.linspace(0.0, 1.0, 256), cmap).tobytes())


def picture_uri(picture: Picture, view: View) -> str:
    """The picture as the page holds it: PNG where it is small, else JPEG, no larger than the page draws it."""
    from PIL import Image

    longer = max(picture.shape[:2])
    enough = round(PICTURE_SIDE * longer / max(view.right - view.left, view.bottom - view.top))
    height, width = output_size(min(enough, MOST_SIDE, longer), (picture.shape[0], picture.shape[1]))
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
