"""Texts in pixels, by Pillow."""

from __future__ import annotations

import functools
import unicodedata
from typing import Optional

from PIL import Image, ImageDraw, ImageFont, features

from . import _labels as labels


def can_write(text: str) -> bool:
    """Whether Pillow sets a text right: joined letters and scripts from right to left need its raqm, and one font."""
    if not any(0x0590 <= ord(character) < 0x1E00 for character in text):
        return True
    backwards = any(unicodedata.bidirectional(character) in ("R", "AL") for character in text)
    return bool(features.check("raqm")) and not (backwards and len(labels.runs(_clean(text))) > 1)


def write(
    canvas: Image.Image,
    text: str,
    place: tuple[float, float],
    size: float,
    colour: str,
    anchor: str = "ls",
    bold: bool = False,
    rim: Optional[int] = None,
) -> float:
    """Write one line, and say how wide it is.

    Parameters
    ----------
    canvas : PIL image
    text : str
    place : (x, y)
        In pixels; of what `anchor` says, as Pillow spells it: "l" or "m" across, "s" (the baseline) or "m" down.
    size : float
        Pixels.
    colour : str
    anchor : str
    bold : bool
        Of DejaVu Sans alone.
    rim : int, optional
        Pixels of black around the letters.
    """
    with labels.FONTS.take():
        parts = [(part, _face(*file, size)) for part, file in labels.runs(_clean(text))]
        if bold:
            parts = [(_clean(text), _face(*labels.base_font(bold=True), size))]
        widths = [face.getlength(part) for part, face in parts]
        x, y = place
        if anchor[0] == "m":
            x -= sum(widths) / 2
        draw = ImageDraw.Draw(canvas)
        for (part, face), width in zip(parts, widths):
            if part.strip():
                stroke = {} if rim is None else {"stroke_width": rim, "stroke_fill": "black"}
                draw.text((x, y), part, fill=colour, font=face, anchor=f"l{anchor[1]}", **stroke)  # type: ignore[arg-type]
            x += width
        return sum(widths)


def _clean(text: str) -> str:
    """Without characters that would do something: no line breaks inside a line, no lone surrogates."""
    return "".join(" " if unicodedata.category(character) in ("Cc", "Cs") else character for character in text)


@functools.lru_cache(maxsize=64)
def _face(path: str, index: int, size: float) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(path, size, index)
    except TypeError:  # whole sizes alone, before Pillow 10.1
        return ImageFont.truetype(path, max(1, round(size)), index)
