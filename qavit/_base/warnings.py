"""What a result's reader ought to know about it: warnings, and the notes that stay with the result."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterable
from typing import NamedTuple, Optional

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class QavitWarning(UserWarning):
    """What qavit warns of; its subclasses say of what."""


class QuestionBlindWarning(QavitWarning):
    """The map cannot know the question: what was read of it is the same for every question."""


class UnknownWordsWarning(QavitWarning):
    """A question has words that the model does not know."""


class QuestionCutWarning(QavitWarning):
    """A question is longer than the model reads: its end was left out."""


class PictureCroppedWarning(QavitWarning):
    """The model did not see more than a fifth of the picture."""


class PixelsNotNormalizedWarning(QavitWarning):
    """Floats that were given as normalised pixel values look like a picture's, from 0 to 1 or to 255."""


class BundledModelWarning(QavitWarning):
    """The bundled model, which knows drawn shapes alone, was shown something else."""


class LowScoreWarning(QavitWarning):
    """The picture fits the question no better than it fits the empty text."""


class PrecisionWarning(QavitWarning):
    """The model computes in another precision than was asked for."""


class PictureCacheWarning(QavitWarning):
    """The folder for what a model makes of pictures cannot be written, so nothing more is kept there."""


class MissingGlyphWarning(QavitWarning):
    """No font of this machine has a character of a text in a figure: a box is drawn."""


class Note(NamedTuple):
    """One remark on a result.

    Attributes
    ----------
    kind : str
        The warning's name in snake case without its end: "question_cut" for `QuestionCutWarning`.
    text : str
        One plain sentence.
    question : int or None
        The number of the question that it is about; None: all.
    """

    kind: str
    text: str
    question: Optional[int] = None


def note_of(category: type[QavitWarning], text: str, question: Optional[int] = None) -> Note:
    """The note that says what a warning of this class says."""
    words = re.findall("[A-Z][a-z]+", category.__name__.removesuffix("Warning"))
    return Note("_".join(words).lower(), text, question)


def category_of(note: Note) -> type[QavitWarning]:
    """The warning class that a note's kind names; QavitWarning for a kind that is none of theirs."""
    kinds = {note_of(category, "").kind: category for category in QavitWarning.__subclasses__()}
    return kinds.get(note.kind, QavitWarning)


def warn(category: type[Warning], text: str) -> None:
    """Warn at the first frame outside of the package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level)


def warn_of(notes: Iterable[Note]) -> None:
    """Warn of each note, by its class."""
    for note in notes:
        warn(category_of(note), note.text)
