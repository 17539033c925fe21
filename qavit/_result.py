"""Heatmaps as people work with them: the result of `model.heatmaps(image, questions)`.

Maps are raw float32 of the patch grid. Everything that is drawn or located (overlays, boxes, patches) is in the pixels
of the picture that was given, whatever was resized or cropped on the way to the model.
"""

from __future__ import annotations

import copy
import io
import json
import operator
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Optional, Union

import numpy as np
import numpy.typing as npt

from ._base.arguments import finite_numbers, whole_number
from ._base.types import FloatArray
from ._base.warnings import Note
from .heatmaps._grid import (
    Box,
    MapStatistics,
    Normalization,
    Patch,
    Resampling,
    boxes_of,
    largest_patches,
    map_statistics,
    normalize_maps,
    output_size,
    patch_of,
    resample_map,
)
from .images import Region
from .plots._drawing import Drawing


@dataclass(eq=False)
class HeatmapResult(Drawing):
    """Heatmaps of one picture: one for each question, on one scale.

    `result[0]`, `result[1:3]` and `result["where is the star?"]` are results of those questions alone;
    `np.asarray(result)` is `maps`. A notebook shows a result as a picture. It can be pickled: maps of words and of other
    blocks travel along only where they were computed before (`maps_of_words()`, `all_block_maps()`).

    Attributes
    ----------
    maps : float32 array [Q, gh, gw]
        Raw values. Those of QA-ViT and CLIP sum to 1; BLIP's GradCAM has its own scale.
    questions : list of str
        Q of them, as they were asked; [""] for a model that takes none.
    picture : uint8 array [H, W, 3]
        The picture as it was given.
    region : Region
        Left, top, right, bottom of the part that the model saw, in the picture's pixels; all of it by default.
    block : int
        The block that was read, counted from 0.
    method : str
        How it was read: "class", "question", ... or a callable's name.
    words : list of Q lists of str, optional
        The words of each question that have a map of their own.
    word_maps : list of Q float32 arrays [words, gh, gw], or a callable that computes it when it is asked to, optional
        Read it through `maps_of_words`.
    answers : list of Q lists of (str, float), optional
        The model's answers with their probabilities, the likeliest first.
    block_maps : callable, optional
        Computes the maps of every block when it is asked to, float32 [L, Q, gh, gw].
    notes : tuple of Note
        What a reader ought to know of the maps; each was a warning too.
    """

    maps: FloatArray
    questions: list[str]
    picture: npt.NDArray[np.uint8]
    region: Optional[Region] = None
    block: int = 0
    method: str = "class"
    words: Optional[list[list[str]]] = None
    word_maps: Union[list[FloatArray], Callable[[], list[FloatArray]], None] = field(default=None, repr=False)
    answers: Optional[list[list[tuple[str, float]]]] = None
    block_maps: Optional[Callable[[], FloatArray]] = field(default=None, repr=False)
    notes: tuple[Note, ...] = ()

    def __post_init__(self) -> None:
        """Check that all parts fit each other."""
        self.maps = _as_maps(self.maps, "maps", 3)
        count = len(self.maps)
        self.questions = [str(question) for question in self.questions]
        picture = np.asarray(self.picture)
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
            raise ValueError(f"picture: expected uint8 [H, W, 3], got {picture.dtype} of shape {picture.shape}")
        self.picture = picture
        if self.region is None:
            self.region = Region(0.0, 0.0, float(picture.shape[1]), float(picture.shape[0]))
        if not (self.region.left < self.region.right and self.region.top < self.region.bottom):
            raise ValueError(f"region: {self.region} is empty; expected left < right and top < bottom")
        for name in ("questions", "words", "word_maps", "answers"):
            part = getattr(self, name)
            if part is not None and not callable(part) and len(part) != count:
                raise ValueError(f"{name}: {len(part)} entries for {count} maps, expected one for each")
        if (self.words is None) != (self.word_maps is None):
            raise ValueError("words and word_maps: give both or neither")
        if self.word_maps is not None and not callable(self.word_maps):
            self.word_maps = self._checked_words(self.word_maps)

    def _checked_words(self, word_maps: list[FloatArray]) -> list[FloatArray]:
        """Word maps of the shape that the words ask for."""
        checked = []
        for words, values in zip(self.words or [], word_maps):
            values = _as_maps(values, "word_maps", 3) if len(words) else np.zeros((0, *self.grid), np.float32)
            if values.shape != (len(words), *self.grid):
                raise ValueError(f"word_maps: shape {values.shape}, expected {(len(words), *self.grid)}")
            checked.append(values)
        return checked

    def maps_of_words(self) -> Optional[list[FloatArray]]:
        """One map a word, computed the first time they are asked for.

        Returns
        -------
        list of Q float32 arrays [words, gh, gw], or None where the model gives none
        """
        if callable(self.word_maps):
            self.word_maps = self._checked_words(self.word_maps())
        return self.word_maps

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the patch grid."""
        return int(self.maps.shape[1]), int(self.maps.shape[2])

    @property
    def picture_size(self) -> tuple[int, int]:
        """(height, width) of the picture in pixels."""
        return int(self.picture.shape[0]), int(self.picture.shape[1])

    @property
    def seen(self) -> Region:
        """The part of the picture that the model saw (`region`, never None)."""
        assert self.region is not None
        return self.region

    def __copy__(self) -> HeatmapResult:
        return self._copied(lambda part: part)

    def __deepcopy__(self, memo: dict[int, Any]) -> HeatmapResult:
        return self._copied(lambda part: copy.deepcopy(part, memo))

    def _copied(self, copied: Callable[[Any], Any]) -> HeatmapResult:
        """The result with a copy of each part; what is computed when it is asked for is still to be had."""
        new = object.__new__(type(self))
        new.__dict__.update({name: part if callable(part) else copied(part) for name, part in self.__dict__.items()})
        return new

    def __getstate__(self) -> dict[str, Any]:
        """For pickle: maps of words and of blocks that are not there yet would need the model, and stay behind."""
        state = dict(self.__dict__)
        if callable(self.word_maps):
            state["words"] = state["word_maps"] = None
        state["block_maps"] = _Stored(self.block_maps.values) if isinstance(self.block_maps, _Stored) else None
        return state

    def __len__(self) -> int:
        return len(self.maps)

    def __contains__(self, question: object) -> bool:
        """Whether the question was asked."""
        return question in self.questions

    def __iter__(self) -> Iterator[HeatmapResult]:
        return (self[index] for index in range(len(self)))

    def __array__(self, dtype: Any = None, copy: Optional[bool] = None) -> npt.NDArray[Any]:
        kind = self.maps.dtype if dtype is None else np.dtype(dtype)
        if copy is False and kind != self.maps.dtype:
            raise ValueError(f"copy=False: the maps are {self.maps.dtype}, {kind} needs a copy")
        return np.array(self.maps, dtype=kind) if copy else np.asarray(self.maps, dtype=kind)

    def __getitem__(self, key: Union[int, slice, str]) -> HeatmapResult:
        """A result of some of the questions: by number, slice, or the question itself."""
        chosen = list(range(len(self)))[key] if isinstance(key, slice) else [self.number_of(key)]
        if not chosen:
            raise IndexError("the slice holds no question")
        word_maps: Any = self.word_maps
        if callable(word_maps):
            word_maps = lambda: [(self.maps_of_words() or [])[i] for i in chosen]  # noqa: E731
        elif word_maps is not None:
            word_maps = [word_maps[i] for i in chosen]
        block_maps: Any = self.block_maps
        if isinstance(block_maps, _Stored):
            block_maps = _Stored(block_maps.values[:, chosen])
        elif block_maps is not None:
            block_maps = lambda: self.all_block_maps()[:, chosen]  # noqa: E731
        return HeatmapResult(
            maps=self.maps[chosen],
            questions=[self.questions[i] for i in chosen],
            picture=self.picture,
            region=self.region,
            block=self.block,
            method=self.method,
            words=None if self.words is None else [self.words[i] for i in chosen],
            word_maps=word_maps,
            answers=None if self.answers is None else [self.answers[i] for i in chosen],
            block_maps=block_maps,
            notes=tuple(
                note._replace(question=None if note.question is None else chosen.index(note.question))
                for note in self.notes
                if note.question is None or note.question in chosen
            ),
        )

    def number_of(self, question: Union[int, str]) -> int:
        """A question's number from 0: of its text, or of a number, negative ones counting from the end.

        Raises
        ------
        KeyError, IndexError, TypeError
            There is no such question, or this is no name of one.
        """
        if isinstance(question, str):
            if question not in self.questions:
                raise KeyError(f"no question {question!r}; there are {', '.join(map(repr, self.questions))}")
            return self.questions.index(question)
        if isinstance(question, bool) or not hasattr(question, "__index__"):
            raise TypeError(f"question: expected its number or its text, got {type(question).__name__}")
        number = operator.index(question)
        if not -len(self) <= number < len(self):
            raise IndexError(f"question {number} does not exist; there are {len(self)}, 0 to {len(self) - 1}")
        return number % len(self)

    def __repr__(self) -> str:
        height, width = self.picture_size
        asked = f"{len(self)} question{'s' if len(self) != 1 else ''}"
        return (
            f"HeatmapResult({asked}, grid {self.grid[0]}x{self.grid[1]}, block {self.block}, method {self.method!r}, "
            f"picture {width}x{height})"
        )

    def normalized(self, normalize: Optional[Normalization] = None, shared: bool = True) -> FloatArray:
        """The maps scaled by name: None, "minmax", "sum" or "max"; see `normalize_maps`.

        Returns
        -------
        float32 array [Q, gh, gw]
        """
        return normalize_maps(self.maps, normalize, shared)

    def all_block_maps(self) -> FloatArray:
        """The maps of every block, computed when first asked for.

        Returns
        -------
        float32 array [L, Q, gh, gw]
        """
        if self.block_maps is None:
            raise ValueError("block_maps: this result was made without a way to compute other blocks")
        values = _as_maps(self.block_maps(), "block_maps", 4)
        if values.shape[1:] != self.maps.shape:
            wanted = ", ".join(map(str, self.maps.shape))
            raise ValueError(f"block_maps: shape {values.shape}, expected (blocks, {wanted})")
        self.block_maps = _Stored(values)
        return values

    def patch(self, question: Union[int, str], index: int) -> Patch:
        """One patch by its index in the flattened map: its value, and where it lies in the picture.

        Raises
        ------
        IndexError
            There is no such patch: they are numbered from 0, row by row.
        """
        count = self.grid[0] * self.grid[1]
        question, index = self.number_of(question), whole_number(index, "index")
        if not 0 <= index < count:
            raise IndexError(f"index: patch {index} does not exist; there are {count}, 0 to {count - 1}")
        return patch_of(self.maps[question], self.seen, index)

    def top_patches(self, k: int = 5) -> list[list[Patch]]:
        """The patches with the largest values.

        Parameters
        ----------
        k : int
            How many for each question; more than there are gives all.

        Returns
        -------
        list of Q lists of Patch
            The largest first; equal ones in reading order.
        """
        return [largest_patches(values, self.seen, k) for values in self.maps]

    def boxes(self, threshold: float = 0.5) -> list[list[Box]]:
        """Rectangles around what stands out.

        Parameters
        ----------
        threshold : float
            From 0 to 1: how far above the map's smallest value, towards its largest, a patch must be to count.

        Returns
        -------
        list of Q lists of Box
            One box for each group of patches that touch (by edge or corner), the largest share of the map first.
            share is the group's part of the map's sum, peak its largest value. A flat map has none.
        """
        return [boxes_of(values, self.seen, threshold) for values in self.maps]

    def statistics(self) -> list[MapStatistics]:
        """Each map in numbers: attention_mean, attention_std, attention_max, entropy (nats), top_patches (5 indices).

        Returns
        -------
        list of Q MapStatistics
            Dicts; see `map_statistics`.
        """
        return [map_statistics(values) for values in self.maps]

    def upsample(
        self,
        size: Union[int, tuple[int, int], None] = None,
        resampling: Resampling = "bicubic",
        normalize: Optional[Normalization] = None,
    ) -> FloatArray:
        """The maps spread over the whole picture.

        Parameters
        ----------
        size : int, (height, width) or None
            How many pixels for the whole picture: its own size by default; an int is the longer side.
        resampling : "bicubic", "bilinear" or "nearest"
            Smooth, or in steps.
        normalize : None, "minmax", "sum" or "max"
            Scales the patch values first; see `normalize_maps`.

        Returns
        -------
        float32 array [Q, height, width]
            Patch values at each pixel; zero where the model did not look.
        """
        values = normalize_maps(self.maps, normalize)
        return resample_map(values, self.seen, self.picture_size, output_size(size, self.picture_size), resampling)

    def to_dataframe(self) -> Any:
        """One row for each question and patch, as a pandas DataFrame.

        Columns: question, block, method, index, row, column, value, left, top, right, bottom (pixels of the picture).
        """
        try:
            import pandas  # type: ignore[import-untyped, import-not-found, unused-ignore]
        except ImportError:
            raise ImportError("to_dataframe() needs pandas, which is not installed: pip install pandas") from None
        patches = range(self.grid[0] * self.grid[1])
        rows = [
            {"question": question, "block": self.block, "method": self.method}
            | asdict(self.patch(q, index))
            for q, question in enumerate(self.questions)
            for index in patches
        ]
        return pandas.DataFrame(rows)

    def to_dict(self, top: int = 5) -> dict[str, Any]:
        """What can be said of the result in JSON, without the maps: answers, statistics, top patches and boxes."""
        entries = []
        for q, (question, numbers) in enumerate(zip(self.questions, self.statistics())):
            entry: dict[str, Any] = {"question": question, **numbers}
            if self.answers is not None:
                entry["answers"] = [{"answer": answer, "probability": chance} for answer, chance in self.answers[q]]
            entry["top_patches"] = [asdict(patch) for patch in self[q].top_patches(top)[0]]
            entry["boxes"] = [box._asdict() for box in self[q].boxes()[0]]
            entries.append(entry)
        height, width = self.picture_size
        seen = [self.seen.left, self.seen.top, self.seen.right, self.seen.bottom]
        return {
            "picture": {"width": width, "height": height},
            "region": seen,
            "grid": list(self.grid),
            "block": self.block,
            "method": self.method,
            "notes": [{"kind": note.kind, "question": note.question, "text": note.text} for note in self.notes],
            "questions": entries,
        }

    def _as_bytes(self, ending: str) -> bytes:
        """The result as a file: the maps as .npy, all of it as .npz."""
        if ending == ".npz":
            return self._archive()
        buffer = io.BytesIO()
        np.save(buffer, self.maps)
        return buffer.getvalue()

    def _archive(self) -> bytes:
        """The .npz file: plain arrays, and the texts as one JSON string."""
        arrays: dict[str, Any] = {
            "maps": self.maps,
            "region": np.array([self.seen.left, self.seen.top, self.seen.right, self.seen.bottom]),
            "picture_size": np.array(self.picture_size),
            "block": np.array(self.block),
            "method": np.array(self.method),
            "questions": np.array(self.questions),
        }
        word_maps = self.maps_of_words()
        if self.words is not None and word_maps is not None:
            arrays["words"] = np.array(json.dumps(self.words, ensure_ascii=False))
            arrays.update({f"word_maps_{index}": values for index, values in enumerate(word_maps)})
        if self.answers is not None:
            arrays["answers"] = np.array(json.dumps(self.answers, ensure_ascii=False))
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()


class _Stored:
    """Maps of every block that were computed once."""

    def __init__(self, values: FloatArray) -> None:
        self.values = values

    def __call__(self) -> FloatArray:
        return self.values


def _as_maps(values: npt.ArrayLike, name: str, dimensions: int) -> FloatArray:
    """Finite float32 of the wanted number of axes, or an error that names the argument."""
    array = np.asarray(values)
    if array.ndim != dimensions or array.size == 0 or array.dtype.kind not in "fiu":
        raise ValueError(f"{name}: expected numbers with {dimensions} axes, got {array.dtype} of shape {array.shape}")
    return finite_numbers(array, name)
