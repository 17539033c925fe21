"""A vocabulary for BLIP with random weights: bert-base-uncased's places for those of its tokens that a model looks for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

PLACES = {
    "[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, "the": 1996, "is": 2003, "it": 2009, "what": 2054,
}  # fmt: skip


def write_vocabulary(folder: Path, words: Iterable[str], size: int) -> dict[str, int]:
    """vocab.txt of so many tokens, these words among them; the places of them all."""
    rows = {place: name for name, place in PLACES.items()}
    free = (place for place in range(size) if place not in rows)
    rows.update({next(free): word for word in sorted(set(words) - set(PLACES))})
    names = [rows.get(place, f"filler{place}") for place in range(size)]
    (folder / "vocab.txt").write_text("\n".join(names) + "\n")
    return {name: place for place, name in enumerate(names)}
