"""What is told with maps: of pixels, pictures, questions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .._base.pictures import Picture
from .._base.types import FloatArray
from .._base.warnings import (
    BundledModelWarning,
    Note,
    PictureCroppedWarning,
    PixelsNotNormalizedWarning,
    QuestionCutWarning,
    UnknownWordsWarning,
    note_of,
)
from ..images import Preprocessing, Region, levels_of

#: Of the picture; less of it than this unseen is no matter.
MAX_HIDDEN = 0.2


def pixel_notes(pixels: FloatArray, preprocessing: Preprocessing) -> list[Note]:
    """Whether pixel values [B, 3, S, S] look like a picture's bytes or floats from 0 to 1 that were never normalised.

    A picture whose normalised values happen to lie there is told by its bytes: undoing the normalisation gives whole ones.
    """
    low, high = pixels.min(axis=(1, 2, 3)), pixels.max(axis=(1, 2, 3))
    for image, least, most in zip(pixels, low, high):
        if least < 0.0 or most > 255.0 or least == most or (1.0 < most < 16.0):
            continue
        mean, std = (np.asarray(part, np.float64)[:, None, None] for part in (preprocessing.mean, preprocessing.std))
        levels = (image * std + mean) / preprocessing.rescale
        if most <= 1.0 and np.abs(levels - np.rint(levels)).max() < 0.02:
            continue
        scale = "1" if most <= 1.0 else "255"
        text = (
            f"the pixel values lie between 0 and {scale}, as a picture's before it is normalised, so the map means nothing; "
            "give the picture itself, or (values - mean) / std"
        )
        return [note_of(PixelsNotNormalizedWarning, text)]
    return []


def crop_notes(picture: Picture, seen: Region) -> list[Note]:
    """Whether more than a fifth of a picture was not seen."""
    height, width = picture.shape[:2]
    across = min(seen.right, width) - max(seen.left, 0.0)
    down = min(seen.bottom, height) - max(seen.top, 0.0)
    share = max(0.0, across) * max(0.0, down) / (width * height)
    if share >= 1.0 - MAX_HIDDEN:
        return []
    text = f"the model saw the middle {max(share, 0.001):.0%} of the picture; fit='pad' or fit='stretch' shows it all"
    return [note_of(PictureCroppedWarning, text)]


def bundled_notes(pixel_values: FloatArray, preprocessing: Preprocessing) -> list[Note]:
    """Whether pixel values [3, S, S] are of none of the drawn scenes that the bundled model knows."""
    if _looks_drawn(pixel_values, preprocessing):
        return []
    text = "the bundled model knows drawn shapes alone: on photographs its maps and answers mean nothing"
    return [note_of(BundledModelWarning, text)]


def _looks_drawn(pixel_values: FloatArray, preprocessing: Preprocessing) -> bool:
    """Whether a picture has the plain areas of drawn shapes, by the neighbours that have exactly one colour.

    In what the model sees of a scene (96 x 96), some colour stands beside itself at 100 places or more; in a photograph
    equal neighbours are few and of many colours, but for black and white. Of 2,100 scenes one was taken for a photograph,
    of 13 colour photographs 11 were told. A grey picture is no scene.
    """
    red, green, blue = levels_of(pixel_values, preprocessing).astype(np.int32)
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    if np.count_nonzero(spread <= 2) > 0.99 * spread.size:
        return False
    colour = (red << 16) | (green << 8) | blue
    across, down = colour[:, 1:], colour[1:]
    twins = np.concatenate([across[across == colour[:, :-1]], down[down == colour[:-1]]])
    found, counts = np.unique(twins, return_counts=True)
    channels = np.stack([found >> 16, (found >> 8) & 255, found & 255])
    coloured = counts[(channels.max(axis=0) >= 16) & (channels.min(axis=0) <= 239)]
    most = int(counts.max(initial=0))
    scattered = int((coloured == 1).sum()) >= 75
    return most >= 40 and not (scattered and (most < min(180, 0.055 * counts.sum()) or int(coloured.max(initial=0)) < 32))


def _quoted(text: str, letters: int = 60) -> str:
    """A text between quotes, so long at most: notes stand under figures."""
    return repr(text if len(text) <= letters else text[: letters - 3] + "...")


def question_notes(
    questions: Sequence[str], unknown: Sequence[Sequence[str]], cut: Sequence[Sequence[str]], known: Sequence[bool]
) -> list[Note]:
    """Words that a model does not know or did not read, question by question; `known`: whether it knows any."""
    notes = []
    for number, question in enumerate(questions):
        shown = _quoted(question)
        if cut[number]:
            text = f"{shown} is longer than what the model reads; left out: {_quoted(' '.join(cut[number]), 160)}"
            notes.append(note_of(QuestionCutWarning, text, number))
        if not question.strip():
            text = "the text is empty: its map is of no text"
            notes.append(note_of(UnknownWordsWarning, text, number))
        elif not known[number]:
            text = f"the model knows no word of {shown}: its map says nothing about the question"
            notes.append(note_of(UnknownWordsWarning, text, number))
        elif unknown[number]:
            words = list(dict.fromkeys(unknown[number]))
            named = ", ".join(map(_quoted, words[:8])) + (f" and {len(words) - 8} more words" if len(words) > 8 else "")
            text = f"the model does not know {named} of {shown}: its map says nothing about it"
            notes.append(note_of(UnknownWordsWarning, text, number))
    return notes
