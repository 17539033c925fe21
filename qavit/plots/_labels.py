"""Text on figures: fonts that have the glyphs, lines that fit, dollars that stay dollars."""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from .._base.once import Turn
from .._base.warnings import MissingGlyphWarning, warn

FontFile = tuple[str, int]  # a path, and which of the fonts in that file
BASE = "DejaVu Sans"  # comes with matplotlib
# Families that have what DejaVu Sans lacks, the likeliest first: Chinese, Japanese and Korean, then symbols, then others.
FAMILIES = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK TC", "Noto Sans CJK KR", "Noto Sans SC", "Noto Sans JP",
    "Noto Sans KR", "Source Han Sans SC", "PingFang SC", "Hiragino Sans GB", "Heiti SC", "Microsoft YaHei", "SimHei",
    "Malgun Gothic", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "AR PL UMing CN",
    "Noto Emoji", "Noto Sans Symbols2", "Symbola", "Segoe UI Emoji", "Segoe UI Symbol", "Apple Symbols",
    "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai", "Nirmala UI", "Leelawadee UI",
    "Lohit Devanagari", "FreeSans", "FreeSerif", "Arial Unicode MS", "Unifont",
)  # fmt: skip
COLUMN = 0.558  # of the font's size: a usual letter of DejaVu Sans, with its share of spaces
_SPACES = re.compile(r"[^\S\u00a0]+")
#: Of what asks an open font or draws with one: it keeps the last glyph, and reads its file from where it last stood.
FONTS = Turn()


def families(text: str) -> list[str]:
    """Font families that together have the glyphs of a text: DejaVu Sans, and those of `FAMILIES` that it takes."""
    return [BASE, *_covering(frozenset(text))[0]]


def named(text: str) -> str:
    """The text with symbols that no font has by their names, as ``:red_circle:``.

    Other characters without a glyph stay, to be drawn as boxes; a warning says so once.
    """
    missing = _covering(frozenset(text))[1]
    names = {c: f":{unicodedata.name(c, 'symbol').lower().replace(' ', '_')}:" for c in missing if _is_symbol(c)}
    return "".join(names.get(character, character) for character in text)


def runs(text: str) -> list[tuple[str, FontFile]]:
    """A text in parts, each with the file of a font that has its glyphs; what none has goes to DejaVu Sans."""
    extra = [(name, *_file_of(name)) for name in _covering(frozenset(text))[0]]
    parts: list[tuple[str, FontFile]] = []
    for character in text:
        file = base_font()
        if extra and _is_drawn(character) and not _has(*file, character):
            file = next(((path, index) for _, path, index in extra if _has(path, index, character)), file)
        elif parts and unicodedata.category(character)[0] in "CZ":
            file = parts[-1][1]  # spaces and joiners stay with what they follow
        if parts and parts[-1][1] == file:
            parts[-1] = parts[-1][0] + character, file
        else:
            parts.append((character, file))
    return parts


@functools.cache
def base_font(bold: bool = False) -> FontFile:
    """The file of DejaVu Sans that comes with matplotlib."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", name)
    if not os.path.isfile(path):  # a distribution's matplotlib takes the system's
        from matplotlib import font_manager

        path = font_manager.findfont(font_manager.FontProperties(family=[BASE], weight="bold" if bold else "normal"))
    return path, 0


@functools.lru_cache(maxsize=256)
def _covering(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """The families for what DejaVu Sans lacks, and the characters that none of them has."""
    missing = {c for c in characters if _is_drawn(c) and not _has(*base_font(), c)}
    if not missing:
        return (), frozenset()
    chosen, missing = _chosen(lacking := missing)
    if missing and _new_fonts():
        chosen, missing = _chosen(lacking)
    boxes = "".join(sorted(character for character in missing if not _is_symbol(character)))
    if boxes:
        package = "fonts-noto-cjk" if any(_is_wide(character) for character in boxes) else "fonts-noto-core"
        warn(MissingGlyphWarning, f"no font has {boxes[:20]}, drawn as boxes; Noto Sans has (Debian: apt install {package})")
    return tuple(chosen), frozenset(missing)


def _chosen(missing: set[str]) -> tuple[list[str], set[str]]:
    """Families that have some of what is missing, and what they lack."""
    chosen = []
    there = _families_there()
    for family in FAMILIES:
        if missing and family in there:
            lacking = {character for character in missing if not _has(*there[family], character)}
            if lacking != missing:
                chosen.append(family)
            missing = lacking
    return chosen, missing


def _families_there() -> dict[str, FontFile]:
    """The regular file of every family that matplotlib knows of."""
    from matplotlib import font_manager

    regular = ("normal", "regular", "book", 400)
    fonts = sorted(font_manager.fontManager.ttflist, key=lambda font: (font.style == "normal", font.weight in regular))
    return {font.name: (font.fname, getattr(font, "index", 0)) for font in fonts}


def _file_of(family: str) -> FontFile:
    return _families_there()[family]


@functools.lru_cache(maxsize=4096)
def _has(path: str, index: int, character: str) -> bool:
    """Whether a font has a character's glyph. The fonts of a collection have the same characters: the first is asked."""
    with FONTS.take():
        return bool(_glyphs(path).get_char_index(ord(character)))


@functools.lru_cache(maxsize=16)
def _glyphs(path: str) -> Any:
    from matplotlib.ft2font import FT2Font

    return FT2Font(path)


def _is_drawn(character: str) -> bool:
    """Whether a character has a glyph that its font must have: ASCII is in DejaVu Sans, spaces and controls are nothing."""
    return ord(character) > 0x7F and not unicodedata.category(character).startswith(("C", "Z"))


@functools.cache
def _new_fonts() -> bool:
    """Tell matplotlib of fonts that were installed after it made its list; whether there are any."""
    from matplotlib import font_manager

    new = set(font_manager.findSystemFonts()) - {font.fname for font in font_manager.fontManager.ttflist}
    added = False
    for path in sorted(new):
        try:
            font_manager.fontManager.addfont(path)
            added = True
        except (OSError, RuntimeError, ValueError):  # a kind that matplotlib cannot read
            continue
    return added


def _is_symbol(character: str) -> bool:
    """Whether a character is a picture with a name, emoji among them."""
    return unicodedata.category(character) in ("So", "Sk")


def display_width(text: str) -> int:
    """How many columns a text takes: two for a wide character, none for a combining one."""
    return sum(0 if unicodedata.combining(character) else 1 + _is_wide(character) for character in text)


def _is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"


def measured_width(text: str) -> float:
    """`display_width`, or more where the letters are wide: how many columns of `COLUMN` a text takes as it is drawn."""
    return max(display_width(text), sum(map(_advance, text)) / COLUMN)


@functools.lru_cache(maxsize=4096)
def _advance(character: str) -> float:
    """How far a character goes, in parts of the font's size; as wide as usual where DejaVu Sans does not draw it."""
    if unicodedata.category(character)[0] == "C":
        return 0.0
    if not _has(*base_font(), character):
        return COLUMN * display_width(character)
    with FONTS.take():
        font = _glyphs(base_font()[0])
        font.set_size(64, 72)
        return float(font.load_char(ord(character)).linearHoriAdvance) / (64 * 65536)


def wrap(text: str, columns: int, lines: int = 4, measured: bool = False) -> list[str]:
    """Break a text into lines.

    Parameters
    ----------
    text : str
        White space of any kind counts as one space; at a no-break space no line ends. Symbols without a glyph are named.
    columns : int
        The most columns a line may take. Wide scripts, which have no spaces, break between characters, as do words
        longer than a line.
    lines : int
        The most lines; what does not fit ends in an ellipsis.
    measured : bool
        Whether a column is `COLUMN` of the font's size, and letters are as wide as they are drawn; else each takes one.

    Returns
    -------
    list of str
        At least one line, which may be empty.
    """
    done: list[str] = []
    line = ""
    width_of = measured_width if measured else display_width
    for piece in _pieces(named(text), columns, width_of):
        if line and width_of((line + piece).rstrip()) > columns:
            done.append(line.rstrip())
            line = ""
        line += piece
    done.append(line.rstrip())
    if len(done) > lines:
        last = done[lines - 1]
        while width_of(last) > columns - 1:
            last = last[:-1]
        done = [*done[: lines - 1], last.rstrip() + "…"]
    return done


def _pieces(text: str, columns: int, width_of: Callable[[str], float]) -> list[str]:
    """Words with the space after them, in parts no longer than a line; wide characters each alone.

    Closing punctuation stays with what it closes.
    """
    pieces: list[str] = []
    for word in _SPACES.split(text.strip()):
        part = ""
        for character in word:
            closing = unicodedata.category(character) in ("Po", "Pe", "Pf")
            breaks = not closing and (_is_wide(character) or _is_wide(part[:1] or "a"))
            if part and (breaks or width_of(part + character) > columns):
                pieces.append(part)
                part = ""
            part += character
        pieces.append(part + " ")
    return pieces


def plain(text: str) -> str:
    """A text for matplotlib that is drawn as it stands: a dollar sign starts no formula."""
    return "".join(" " if unicodedata.category(c) == "Cc" and c != "\n" else c for c in text).replace("$", r"\$")
