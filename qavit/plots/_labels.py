"""Text on figures: fonts that have the glyphs, lines that fit, dollars that stay dollars."""

from __future__ import annotations

import functools
import logging
import re
import unicodedata
from typing import Any

logger = logging.getLogger("qavit")
# Families that cover scripts which matplotlib's own DejaVu Sans lacks, the likeliest first.
PREFERRED = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "PingFang SC", "Hiragino Sans GB",
    "Microsoft YaHei", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "SimHei", "Heiti SC", "Noto Sans CJK JP",
    "Noto Sans CJK TC", "Noto Sans CJK KR", "Noto Sans JP", "Noto Sans KR", "Droid Sans Fallback", "AR PL UMing CN",
    "Arial Unicode MS", "Noto Serif CJK SC",
)  # fmt: skip
BASE = "DejaVu Sans"
_SPACES = re.compile(r"[^\S\u00a0]+")


def families(text: str) -> list[str]:
    """Font families that together have the glyphs of a text.

    Parameters
    ----------
    text : str

    Returns
    -------
    list of str
        DejaVu Sans, which comes with matplotlib, and where it lacks a glyph the installed families that have it. Glyphs
        that no installed font has are drawn as boxes; the log says so once.
    """
    return [BASE, *_fallbacks(frozenset(character for character in text if ord(character) > 0x7F))]


@functools.lru_cache(maxsize=256)
def _fallbacks(characters: frozenset[str]) -> tuple[str, ...]:
    """Further families for characters that DejaVu Sans lacks."""
    needed = {ord(character) for character in characters if not unicodedata.category(character).startswith(("C", "Z"))}
    needed -= _glyphs(BASE)
    if not needed:
        return ()
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    chosen: list[str] = []
    order = [name for name in PREFERRED if name in installed]
    for name in [*order, *sorted(installed - set(order) - {BASE, "Last Resort"})]:
        if not needed:
            break
        covered = needed & _glyphs(name)
        if covered:
            chosen.append(name)
            needed -= covered
    if needed:
        missing = "".join(map(chr, sorted(needed)))[:20]
        logger.warning("no installed font has %s; drawn as boxes (Debian: apt install fonts-noto-cjk)", missing)
    return tuple(chosen)


@functools.cache
def _glyphs(family: str) -> frozenset[int]:
    """The code points that a family has; empty when it cannot be opened."""
    from matplotlib import font_manager

    # findfont would say on standard error what weight it takes where a family has no regular one.
    faces = [font for font in font_manager.fontManager.ttflist if font.name == family]
    faces.sort(key=lambda font: (font.style != "normal", abs(_weight(font.weight) - 400)))
    try:
        return frozenset(font_manager.get_font(faces[0].fname).get_charmap())
    except (OSError, RuntimeError, ValueError, IndexError):
        return frozenset()


def _weight(weight: Any) -> int:
    """A weight as a number; matplotlib has names for some."""
    from matplotlib import font_manager

    return int(font_manager.weight_dict.get(weight, 400)) if isinstance(weight, str) else int(weight)


def display_width(text: str) -> int:
    """How many columns a text takes: two for a wide character, none for a combining one."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def wrap(text: str, columns: int, lines: int = 4) -> list[str]:
    """Break a text into lines.

    Parameters
    ----------
    text : str
        White space of any kind counts as one space; at a no-break space no line ends.
    columns : int
        The most columns a line may take. Wide scripts, which have no spaces, break between characters, as do words
        longer than a line.
    lines : int
        The most lines; what does not fit ends in an ellipsis.

    Returns
    -------
    list of str
        At least one line, which may be empty.
    """
    done: list[str] = []
    line = ""
    for piece in _pieces(text):
        room = columns - display_width(line)
        if display_width(piece.rstrip()) <= room:
            line += piece
            continue
        if line.strip():
            done.append(line.rstrip())
            line = ""
        while display_width(piece.rstrip()) > columns:
            cut = 1
            while cut < len(piece) and display_width(piece[: cut + 1]) <= columns:
                cut += 1
            done.append(piece[:cut])
            piece = piece[cut:]
        line = piece
    if line.strip() or not done:
        done.append(line.rstrip())
    if len(done) > lines:
        last = done[lines - 1]
        while display_width(last) > columns - 1:
            last = last[:-1]
        done = [*done[: lines - 1], last.rstrip() + "…"]
    return done


def _pieces(text: str) -> list[str]:
    """Words with the space after them; wide characters each alone, closing punctuation kept with what it closes."""
    pieces: list[str] = []
    for word in _SPACES.split(text.strip()):
        if not word:
            continue
        start = len(pieces)
        for character in word:
            wide = unicodedata.east_asian_width(character) in "WF"
            closing = unicodedata.category(character) in ("Po", "Pe", "Pf")
            previous_wide = len(pieces) > start and unicodedata.east_asian_width(pieces[-1][0]) in "WF"
            if len(pieces) == start or (not closing and (wide or previous_wide)):
                pieces.append(character)
            else:
                pieces[-1] += character
        pieces[-1] += " "
    return pieces


def plain(text: str) -> str:
    """A text for matplotlib that is drawn as it stands: a dollar sign starts no formula."""
    return "".join(" " if unicodedata.category(c) == "Cc" and c != "\n" else c for c in text).replace("$", r"\$")
