"""A vocabulary for BLIP with random weights: bert-base-uncased's places for those of its tokens that a model looks for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qavit.text import _UNCASED

PLACES = _UNCASED


def write_vocabulary(folder: Path, words: Iterable[str], size: int) -> None:
    """vocab.txt of so many tokens, these words among them."""
    rows = {place: name for name, place in PLACES.items()}
    free = (place for place in range(size) if place not in rows)
    rows.update({next(free): word for word in sorted(set(words) - set(PLACES))})
    (folder / "vocab.txt").write_text("".join(f"{rows.get(place, f'filler{place}')}\n" for place in range(size)))
