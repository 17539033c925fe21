"""Where a captioner looked for each word of a caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Optional

import numpy as np
import numpy.typing as npt

from .. import _core
from .._base.types import FloatArray, Heads
from ._look import ModelLook

if TYPE_CHECKING:
    from .._base.warnings import Note

Ids = npt.NDArray[np.int64]


class Written(NamedTuple):
    """A caption as the decoder wrote it, or would have: all ids, words, the word of each id (-1: none), where it begins."""

    ids: Ids
    words: list[str]
    word_of: list[int]
    first: int


def words_of_pieces(pieces: Sequence[str], text: str) -> tuple[list[str], list[int]]:
    """The words of a text, and for each piece the number of the word that it is a part of; -1 for none.

    Pieces are a vocabulary's, "" for special tokens; the text is the end of what they spell, spaces moved.
    """
    letters: list[int] = []
    for number, piece in enumerate(pieces):
        letters += [number] * len(piece.removeprefix("##") if letters else piece)
    words = text.split()
    own = letters[len(letters) - sum(map(len, words)) :]
    word_of = [-1] * len(pieces)
    for word, letter_count in enumerate(map(len, words)):
        for number in own[:letter_count]:
            word_of[number] = word
        own = own[letter_count:]
    return words, word_of


def padded(rows: Sequence[Ids]) -> tuple[Ids, npt.NDArray[np.int32]]:
    """Rows of different lengths as one array, zeros behind them, and those lengths."""
    lengths = np.array([len(row) for row in rows], np.int32)
    result = np.zeros((len(rows), int(lengths.max())), np.int64)
    for place, row in zip(result, rows):
        place[: len(row)] = row
    return result, lengths


class CaptionLook(ModelLook):
    """The decoder's cross-attention for one picture and its captions."""

    question_mask = None

    def __init__(
        self,
        decoder: _core.Decoder,
        grid: tuple[int, int],
        written: Sequence[Written],
        memory: _core.DecoderMemory,
        tokens: Optional[npt.NDArray[np.int32]],
        notes: Sequence[Note] = (),
    ) -> None:
        """Take captions that were written about what lies in `memory`; of its tokens they saw `tokens` [n], or all."""
        self.notes = notes
        self.words = [one.words for one in written]
        self._decoder, self._grid, self._written, self._tokens = decoder, grid, written, tokens
        self._memory: Optional[_core.DecoderMemory] = memory
        self._found: Optional[list[FloatArray]] = None

    @property
    def grid(self) -> tuple[int, int]:
        return self._grid

    def attention(self, blocks: Sequence[int], class_row: bool = False) -> dict[int, FloatArray]:
        raise TypeError("attention: this model has maps by 'cross_attention' alone")

    def gradcam(self, blocks: Sequence[int]) -> dict[int, FloatArray]:
        raise TypeError("gradcam: this model has maps by 'cross_attention' alone")

    def question_tokens(self, block: int) -> int:
        return 0

    def _each(self) -> list[FloatArray]:
        """For each caption [n, P]: how much was attended to each patch when each of its tokens was written."""
        if self._found is None and self._memory is not None:
            ids, lengths = padded([one.ids[:-1] for one in self._written])
            rows = len(ids)
            tokens = None if self._tokens is None else np.ascontiguousarray(np.tile(self._tokens, (rows, 1)))
            cache = self._decoder.begin(self._memory, rows, ids.shape[1], memory_of=np.zeros(rows, np.int32), tokens=tokens)
            weights = self._decoder.attend(cache, ids, lengths=lengths)
            if tokens is not None:
                every = np.zeros((*weights.shape[:2], 1 + self._grid[0] * self._grid[1]), np.float32)
                every[..., self._tokens] = weights
                weights = every
            # A token is written by the one before it; the class token, in front, has no place on the grid.
            self._found = [own[one.first - 1 : len(one.ids) - 1, 1:] for own, one in zip(weights, self._written)]
        return self._found or []

    def cross_attention(self) -> FloatArray:
        maps = []
        for each, one in zip(self._each(), self._written):
            places = [place for place, word in enumerate(one.word_of[one.first :]) if word >= 0]
            maps.append((each[places] if places else each).mean(axis=0, dtype=np.float64))
        return np.array(maps, np.float32)

    def word_maps(self, blocks: Sequence[int], heads: Heads) -> list[FloatArray]:
        """The mean over each word's tokens."""
        maps = []
        for each, one in zip(self._each(), self._written):
            own = np.array(one.word_of[one.first :])
            of_words = [each[own == word].mean(axis=0) for word in range(len(one.words))]
            maps.append(np.array(of_words, np.float32).reshape(len(of_words), *self.grid))
        return maps

    def release(self) -> None:
        self._memory = None
