"""One picture's maps as numbers: what a result is but for its figures.

Everything that is located (boxes, patches, `upsample`) is in the pixels of the picture that was given, whatever was resized
and cropped on the way to the model.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Optional, TypeVar, Union, cast

import numpy as np
import numpy.typing as npt

from .._base.arguments import finite_numbers, whole_number
from .._base.pictures import Picture
from .._base.types import FloatArray, Heads, Normalization, PackageNormalization, Resampling
from .._base.warnings import Note
from ..images import Region
from ._grid import (
    NORMALIZATIONS,
    Box,
    MapStatistics,
    Patch,
    boxes_of,
    largest_patches,
    map_statistics,
    normalize_maps,
    output_size,
    patch_of,
    resample_map,
)
from ._packages import PACKAGES, package_picture

T = TypeVar("T")
SomeMaps = TypeVar("SomeMaps", bound="Maps")
#: A part, or a function that computes it when it is first read.
MaybeLater = Union[T, Callable[[], T], None]


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Maps:
    """Maps of one picture, one for each question, on one scale: the numbers of a `HeatmapResult`."""

    maps: FloatArray
    questions: list[str]
    picture: Picture
    seen: Region
    block: Union[int, tuple[int, ...]]
    method: str
    raw: FloatArray
    words: Optional[list[list[str]]]
    word_maps: Optional[list[FloatArray]]
    answers: Optional[list[list[tuple[str, float]]]]
    scores: Optional[FloatArray]
    block_maps: Optional[FloatArray]
    block_raw: Optional[FloatArray]
    blocks: tuple[int, ...]
    notes: tuple[Note, ...]
    model: str
    heads: Heads
    head_maps: Optional[FloatArray]

    def __init__(
        self,
        maps: npt.ArrayLike,
        questions: Sequence[str],
        picture: Picture,
        seen: Optional[Region] = None,
        block: Union[int, tuple[int, ...]] = 0,
        method: str = "class",
        raw: Optional[npt.ArrayLike] = None,
        words: Optional[list[list[str]]] = None,
        word_maps: MaybeLater[list[FloatArray]] = None,
        answers: Optional[list[list[tuple[str, float]]]] = None,
        scores: Optional[npt.ArrayLike] = None,
        block_maps: MaybeLater[FloatArray] = None,
        block_raw: MaybeLater[FloatArray] = None,
        blocks: Sequence[int] = (),
        notes: Sequence[Note] = (),
        model: str = "",
        heads: Heads = "mean",
        head_maps: MaybeLater[FloatArray] = None,
    ) -> None:
        """Check that all parts fit each other; the class says what they are."""
        keep = self.__dict__
        keep["maps"] = _as_maps(maps, "maps", 3)
        keep["raw"] = keep["maps"] if raw is None else _as_maps(raw, "raw", 3)
        if self.raw.shape != self.maps.shape:
            raise ValueError(f"raw: shape {self.raw.shape}, expected that of maps, {self.maps.shape}")
        keep["questions"] = [str(question) for question in questions]
        picture = np.asarray(picture)
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
            raise ValueError(f"picture: expected uint8 [H, W, 3], got {picture.dtype} of shape {picture.shape}")
        keep["picture"] = _read_only(picture)
        keep["seen"] = Region(0.0, 0.0, float(picture.shape[1]), float(picture.shape[0])) if seen is None else seen
        if not (self.seen.left < self.seen.right and self.seen.top < self.seen.bottom):
            raise ValueError(f"seen: {self.seen} is empty; expected left < right and top < bottom")
        keep["scores"] = None if scores is None else _read_only(finite_numbers(scores, "scores"))
        keep.update(block=block, method=method, words=words, answers=answers, blocks=tuple(blocks))
        keep.update(model=str(model), heads=heads if isinstance(heads, str) else whole_number(heads, "heads"))
        keep["notes"] = tuple(Note(*note) for note in notes)
        keep.update(_word_maps=word_maps, _block_maps=block_maps, _block_raw=block_raw, _head_maps=head_maps)
        for name in ("questions", "words", "_word_maps", "answers", "scores"):
            part = keep[name]
            if part is not None and not callable(part) and len(part) != len(self):
                raise ValueError(f"{name.lstrip('_')}: {len(part)} entries for {len(self)} maps, expected one for each")
        if words is None and word_maps is not None:
            raise ValueError("word_maps: given without words, which say what they are of")
        for place in ("_word_maps", "_block_maps", "_block_raw", "_head_maps"):
            if keep[place] is not None and not callable(keep[place]):
                keep[place] = self._checked(place, keep[place])

    def _computed(self, place: str) -> Any:
        """A part that may have been given as a function: called once, its result checked and kept."""
        value = self.__dict__[place]
        if callable(value):
            value = self.__dict__[place] = self._checked(place, value())
            if place == "_block_maps":
                self._computed("_block_raw")  # they come of it, and travel together
        return value

    def _checked(self, place: str, value: Any) -> Any:
        """Maps of words, of heads or of blocks that are of the right shape, read-only."""
        if value is None:
            return None
        if place == "_head_maps":
            values = _as_maps(value, "head_maps", 4)
            if (len(values), *values.shape[2:]) != self.maps.shape:
                rows, columns = self.grid
                raise ValueError(f"head_maps: shape {values.shape}, expected ({len(self)}, heads, {rows}, {columns})")
            return values
        if place != "_word_maps":
            values = _as_maps(value, place[1:], 4)
            if values.shape[1:] != self.maps.shape:
                wanted = ", ".join(map(str, self.maps.shape))
                raise ValueError(f"{place[1:]}: shape {values.shape}, expected (blocks, {wanted})")
            if not self.blocks:
                self.__dict__["blocks"] = tuple(range(len(values)))
            return values
        checked = []
        for words, values in zip(self.words or [], value):
            values = _as_maps(values, "word_maps", 3) if len(words) else np.zeros((0, *self.grid), np.float32)
            if values.shape != (len(words), *self.grid):
                raise ValueError(f"word_maps: shape {values.shape}, expected {(len(words), *self.grid)}")
            checked.append(_read_only(values))
        return checked

    # ---- what there is ----

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the patch grid."""
        return int(self.maps.shape[1]), int(self.maps.shape[2])

    @property
    def block_numbers(self) -> tuple[int, ...]:
        """`block`, as several."""
        return (self.block,) if isinstance(self.block, int) else self.block

    @property
    def picture_size(self) -> tuple[int, int]:
        """(height, width) of the picture in pixels."""
        return int(self.picture.shape[0]), int(self.picture.shape[1])

    def __len__(self) -> int:
        return len(self.maps)

    def __contains__(self, question: object) -> bool:
        """Whether the question was asked."""
        return question in self.questions

    def __iter__(self: SomeMaps) -> Iterator[SomeMaps]:
        return (self[index] for index in range(len(self)))

    def __array__(self, dtype: Any = None, copy: Optional[bool] = None) -> npt.NDArray[Any]:
        kind = self.maps.dtype if dtype is None else np.dtype(dtype)
        if copy is False and kind != self.maps.dtype:
            raise ValueError(f"copy=False: the maps are {self.maps.dtype}, {kind} needs a copy")
        return np.array(self.maps, dtype=kind) if copy else np.asarray(self.maps, dtype=kind)

    def __repr__(self) -> str:
        height, width = self.picture_size
        asked = f"{len(self)} question{'s' if len(self) != 1 else ''}"
        return (
            f"{type(self).__name__}({asked}, grid {self.grid[0]}x{self.grid[1]}, block {self.block}, "
            f"method {self.method!r}, picture {width}x{height})"
        )

    # ---- copies and parts ----

    def __copy__(self: SomeMaps) -> SomeMaps:
        return self._copied(lambda part: part)

    def __deepcopy__(self: SomeMaps, memo: dict[int, Any]) -> SomeMaps:
        return self._copied(lambda part: copy.deepcopy(part, memo))

    def _copied(self: SomeMaps, copied: Callable[[Any], Any]) -> SomeMaps:
        """The same with a copy of each part; what is computed when it is asked for is still to be had."""
        new = object.__new__(type(self))
        new.__setstate__({name: part if callable(part) else copied(part) for name, part in self.__dict__.items()})
        return new

    def __getstate__(self) -> dict[str, Any]:
        """For pickle: maps of words, of heads and of blocks that are not there yet would need the model, and stay behind."""
        state = {name: None if callable(part) else part for name, part in self.__dict__.items()}
        return state if state["_block_maps"] is not None else {**state, "blocks": ()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for part in state.values():
            for array in part if isinstance(part, list) else [part]:
                if isinstance(array, np.ndarray):
                    array.setflags(write=False)
        self.__dict__.update(state)

    def __getitem__(self: SomeMaps, key: Union[int, slice, str]) -> SomeMaps:
        """A result of some of the questions: by number, slice, or the question itself."""
        chosen = list(range(len(self)))[key] if isinstance(key, slice) else [self.number_of(key)]
        if not chosen:
            raise IndexError("the slice holds no question")

        def part(values: Sequence[T]) -> list[T]:
            return [values[index] for index in chosen]

        # What is not computed yet stays so.
        word_maps: Any = self.__dict__["_word_maps"]
        return self._with(
            maps=self.maps[chosen],
            raw=self.raw[chosen],
            questions=part(self.questions),
            words=None if self.words is None else part(self.words),
            answers=None if self.answers is None else part(self.answers),
            scores=None if self.scores is None else self.scores[chosen],
            word_maps=(lambda: part(self.word_maps or ())) if callable(word_maps) else word_maps and part(word_maps),
            block_maps=self._taken("block_maps", chosen),
            block_raw=self._taken("block_raw", chosen),
            head_maps=self._taken("head_maps", chosen),
            notes=tuple(
                note._replace(question=None if note.question is None else chosen.index(note.question))
                for note in self.notes
                if note.question is None or note.question in chosen
            ),
        )

    def _with(self: SomeMaps, **changes: Any) -> SomeMaps:
        """The same with other parts; what is not computed yet stays so."""
        return type(self)(**{**{name.lstrip("_"): part for name, part in self.__dict__.items()}, **changes})

    def _taken(self, name: str, chosen: list[int]) -> Any:
        """Some questions' maps of every block or head: now if they are there, else when they are asked for."""
        values = self.__dict__[f"_{name}"]
        where: Any = chosen if name == "head_maps" else (slice(None), chosen)
        if callable(values):
            return lambda: getattr(self, name)[where]
        return None if values is None else values[where]

    def at(self: SomeMaps, block: int) -> SomeMaps:
        """The same result read at another block: its maps are that block's, words and answers stay, maps of heads do not.

        Parameters
        ----------
        block : int
            One of `blocks`; negative numbers count from the end.

        Raises
        ------
        ValueError
            There is no such block, it has no map by this method, or the result has no way to compute it.
        """
        every = self.block_maps
        if every is None:
            raise ValueError("block: this result has no maps of other blocks, nor a way to compute them")
        number = whole_number(block, "block")
        number += len(every) if number < 0 else 0
        if number not in self.blocks:
            raise ValueError(f"block: there is no map of block {block} by {self.method!r}; there are {list(self.blocks)}")
        raw = self.block_raw
        return self._with(
            maps=every[number],
            raw=every[number] if raw is None else raw[number],
            block=number,
            block_maps=every,
            block_raw=raw,
            head_maps=self.__dict__["_head_maps"] if number == self.block else None,
            notes=tuple(note for note in self.notes if note.kind != "question_blind"),
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

    # ---- numbers ----

    def normalized(self, normalize: Optional[Normalization] = None, shared: bool = True) -> FloatArray:
        """The maps scaled by name: None, "minmax", "sum" or "max"; see `normalize_maps`.

        Returns
        -------
        float32 array [Q, gh, gw]
        """
        return normalize_maps(self.maps, normalize, shared)

    def patch(self, question: Union[int, str], index: int) -> Patch:
        """One patch by its index in the flattened map: its value, and where it lies in the picture.

        A patch of a padded picture may lie outside of it.

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
            One box for each group of patches that touch (by edge or corner), the largest share of the map first; within the
            picture. share is the group's part of the map's sum, peak its largest value. A flat map has none.
        """
        height, width = self.picture_size
        found = []
        for values in self.maps:
            boxes = []
            for box in boxes_of(values, self.seen, threshold):
                left, top, right, bottom = max(box.left, 0), max(box.top, 0), min(box.right, width), min(box.bottom, height)
                if left < right and top < bottom:  # else it is all beside the picture, where that is padded
                    boxes.append(box._replace(left=left, top=top, right=right, bottom=bottom))
            found.append(boxes)
        return found

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
        resampling: Optional[Resampling] = None,
        normalize: Union[Normalization, PackageNormalization, None] = None,
    ) -> FloatArray:
        """The maps spread over the whole picture, as they are or as a method's own package shows them.

        Parameters
        ----------
        size : int, (height, width) or None
            How many pixels for the whole picture: its own size by default; an int is the longer side.
        resampling : "bicubic", "bilinear" or "nearest", optional
            Smooth, or in steps. None: bicubic, or for a package's picture bilinear, as theirs are.
        normalize : None, "minmax", "sum", "max", or a package
            The first scale the patch values, all maps together; see `normalize_maps`. A package's picture is made of `raw`,
            each map by itself: "legrad", "gem" and "chefer" (of gae) spread it and then take the smallest to 0 and the
            largest to 1; "surgery" and "legrad_siglip" do so on the patches, and then spread them; "gradcam"
            (pytorch-grad-cam) does both, and of several blocks takes the mean between.

        Returns
        -------
        float32 array [Q, height, width]
            Patch values at each pixel; zero where the model did not look.

        Notes
        -----
        Sources: WalBouss/LeGrad and GEM, hila-chefer/Transformer-MM-Explainability, xmed-lab/CLIP_Surgery,
        jacobgil/pytorch-grad-cam.
        """
        if normalize in PACKAGES:
            return self._as_package(str(normalize), output_size(size, self.picture_size), resampling or "bilinear")
        if normalize not in NORMALIZATIONS:
            known = ", ".join(map(repr, (*NORMALIZATIONS, *PACKAGES)))
            raise ValueError(f"normalize: {normalize!r} is unknown; expected one of {known}")
        values = normalize_maps(self.maps, cast("Optional[Normalization]", normalize))
        resampling = "bicubic" if resampling is None else resampling
        return resample_map(values, self.seen, self.picture_size, output_size(size, self.picture_size), resampling)

    def _as_package(self, package: str, size: tuple[int, int], resampling: Resampling) -> FloatArray:
        def spread(values: FloatArray) -> FloatArray:
            return resample_map(values, self.seen, self.picture_size, size, resampling)

        values = self.raw[None]
        if package == "gradcam" and isinstance(self.block, tuple) and self.block_raw is not None:
            values = self.block_raw[list(self.block)]
        return package_picture(values, package, spread, spread(np.ones(self.grid, np.float32)) > 0)

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
            {"question": question, "block": self.block, "method": self.method} | asdict(self.patch(q, index))
            for q, question in enumerate(self.questions)
            for index in patches
        ]
        return pandas.DataFrame(rows)

    def to_dict(self, top: int = 5) -> dict[str, Any]:
        """What can be said of the result in JSON, without the maps: scores, notes, boxes, ``top`` patches and answers."""
        entries = []
        for q, (question, numbers) in enumerate(zip(self.questions, self.statistics())):
            entry: dict[str, Any] = {"question": question, **numbers}
            if self.scores is not None:
                entry["score"] = float(self.scores[q])
            if self.answers is not None:
                entry["answers"] = [{"answer": answer, "probability": chance} for answer, chance in self.answers[q][:top]]
            entry["top_patches"] = [asdict(patch) for patch in self[q].top_patches(top)[0]]
            entry["boxes"] = [box._asdict() for box in self[q].boxes()[0]]
            entries.append(entry)
        height, width = self.picture_size
        return {
            "picture": {"width": width, "height": height},
            "region": [self.seen.left, self.seen.top, self.seen.right, self.seen.bottom],
            "grid": list(self.grid),
            "block": self.block if isinstance(self.block, int) else list(self.block),
            "method": self.method,
            "heads": self.heads,
            "model": self.model,
            "notes": [{"kind": note.kind, "question": note.question, "text": note.text} for note in self.notes],
            "questions": entries,
        }


class _Computed:
    """A field that may have been given as a function: its value, once it is read."""

    def __init__(self, name: str) -> None:
        self.place = f"_{name}"

    def __get__(self, instance: Optional[Maps], owner: type) -> Any:
        return self if instance is None else instance._computed(self.place)


for _name in ("word_maps", "block_maps", "block_raw", "head_maps"):
    setattr(Maps, _name, _Computed(_name))  # behind the dataclass's back, for whom they are fields like others


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array if nobody can write to it, else a copy that nobody can."""
    if array.flags.writeable:
        array = array.copy()
        array.setflags(write=False)
    return array


def _as_maps(values: npt.ArrayLike, name: str, dimensions: int) -> FloatArray:
    """Finite float32 of the wanted number of axes, read-only, or an error that names the argument."""
    array = np.asarray(values)
    if array.ndim != dimensions or array.size == 0 or array.dtype.kind not in "fiu":
        raise ValueError(f"{name}: expected numbers with {dimensions} axes, got {array.dtype} of shape {array.shape}")
    return _read_only(finite_numbers(array, name))
