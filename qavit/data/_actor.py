"""Maps of batches of rows: pictures decoded ahead by other threads, a picture's questions in one call of the model."""

from __future__ import annotations

import os
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np

from .._base.arguments import is_pixel_values, one_line
from .._base.files import PathLike
from .._base.types import FloatArray
from .._base.warnings import QuestionBlindWarning
from ..models._load import load
from ..models._question_vit import Heads
from ._plan import Group, Row
from ._questions import ImageSource
from ._rows import MapRow

if TYPE_CHECKING:
    from ..images import Seen

DTYPES = ("float32", "float16")
MAX_RAW_BYTES = 1 << 28  # of the whole attention that a method other than the class token's looks at, at a time
FAILURES = (OSError, ValueError, TypeError)  # of a picture or a question; anything else ends the run


class HeatmapActor:
    """A model that turns batches of rows into rows with maps.

    The same object serves Ray Data's ``map_batches`` (as an actor class, one model an actor), ``datasets.Dataset.map(...,
    batched=True)`` and plain `multiprocessing`: pickled, it takes its arguments along and loads the model where it arrives.

    Parameters
    ----------
    model : str or path, optional
        As for `qavit.load`: "demo" (also when no other part is given), a folder, or "hf://owner/name".
    method : {"class", "question", "gradcam"}, optional
        How a map is read, one of the model's `methods`; None: its default. BLIP's "gradcam" is on its own scale, the others'
        maps sum to 1.
    block : int, optional
        Whose attention; None: the model's default.
    heads : {"mean", "max"} or int
        How heads become one map; not for "gradcam".
    dtype : {"float32", "float16"}
        Of the maps that :meth:`__call__` returns.
    images : path, optional
        The folder that relative pictures lie in; by default the working directory.
    threads : int, optional
        Width of the core's thread pool; by default it is left as it is.
    decoders : int
        Threads that decode pictures while the model computes.
    **parts
        `checkpoint`, `vision`, `text`, `tokenizer`, `config`, `precision`, `device`, `image_size`, as for `qavit.load`.

    Attributes
    ----------
    model : QAViT or BlipITM
    method : str
    block : int
    grid : tuple of int
        (gh, gw).

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        What `qavit.load` raises; or the model has no maps by this method or block.

    Examples
    --------
    >>> actor = HeatmapActor("demo")
    >>> rows = actor({"image": ["a.jpg", "a.jpg"], "question": ["where is the star?", "where is the ring?"]})
    >>> rows["map"].shape
    (2, 144)
    """

    def __init__(
        self,
        model: Optional[PathLike] = None,
        *,
        method: Optional[str] = None,
        block: Optional[int] = None,
        heads: Heads = "mean",
        dtype: str = "float32",
        images: Optional[PathLike] = None,
        threads: Optional[int] = None,
        decoders: int = 2,
        **parts: Any,
    ) -> None:
        self._arguments = {
            "model": model, "method": method, "block": block, "heads": heads, "dtype": dtype,
            "images": images, "threads": threads, "decoders": decoders, **parts,
        }  # fmt: skip
        if dtype not in DTYPES:
            raise ValueError(f"dtype: got {dtype!r}, expected 'float32' or 'float16'")
        if decoders < 1:
            raise ValueError(f"decoders: got {decoders}, expected at least 1")
        if threads is not None:
            from .._core import set_num_threads

            set_num_threads(threads)
        if model is not None and not isinstance(model, (str, os.PathLike)):
            hint = "; it is loaded anew in every process" if hasattr(model, "heatmaps") else ""
            raise TypeError(f"model: expected what qavit.load takes, got {type(model).__name__}{hint}")
        self.model: Any = load(None if model is None else os.fspath(model), **parts)
        self.dtype = np.dtype(dtype)
        self.grid: tuple[int, int] = self.model.grid
        self._images = images
        self._decoders = decoders
        self._blip = self.model.kind == "blip_itm"
        self._choose(method, block, heads)

    def _choose(self, method: Optional[str], block: Optional[int], heads: Heads) -> None:
        """What is asked of the model, checked."""
        model = self.model
        if method is not None and method not in model.methods:
            raise ValueError(f"method: got {method!r}, expected {' or '.join(map(repr, model.methods))}")
        self.takes_questions: bool = model.takes_questions
        self.method: str = method or model.default_method
        if self._blip and heads != "mean":
            raise ValueError("heads: not for method 'gradcam', which is PnP-VQA's map as it is")
        self.block: int = model.default_block if block is None else model.check_block(block)
        self.heads = heads
        self.at_once: Optional[int] = None  # questions a call; the core itself splits what the class token's map needs
        if self.method == "question":
            tokens = self.grid[0] * self.grid[1] + 1
            row = 4 * model.num_heads * tokens * (tokens + model.max_tokens)
            self.at_once = max(1, MAX_RAW_BYTES // row)
        if self._blip or self.takes_questions:
            # What is wrong with block, method or heads is wrong for every row: it shows here, once.
            side = model.image_size
            self._ask(np.zeros((1, 3, side, side), np.float32), ["a"])
        if not self._blip and self.takes_questions:
            model._warn_if_blind(self.block, self.method, ["a"], stacklevel=4)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._arguments,)

    # ---- groups: what the engines call ----

    def compute(self, groups: Iterable[Group]) -> Iterator[list[MapRow]]:
        """The rows of each group, in order.

        Parameters
        ----------
        groups : iterable of Group
            Taken a few ahead of what is computed, so that pictures are decoded meanwhile.

        Yields
        ------
        list of MapRow
            One for each row of the group. A picture or question that fails gives rows with `error`, nothing else.
        """
        waiting: deque[tuple[Group, Future[Any]]] = deque()
        pool = ThreadPoolExecutor(self._decoders, thread_name_prefix="qavit-decode")
        try:
            for group in groups:
                waiting.append((group, pool.submit(self._decode, group.image)))
                if len(waiting) > 2 * self._decoders:
                    yield self._finish(*waiting.popleft())
            while waiting:
                yield self._finish(*waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _decode(self, image: Any) -> Union[Seen, str]:
        """What the model takes of a picture, or why it cannot be seen."""
        from ..images import prepare

        if image is None:
            return "image: none is named"
        try:
            if is_pixel_values(image):
                pixels: FloatArray = self.model._pixels(image)
                return pixels if len(pixels) == 1 else f"image: {len(pixels)} pictures, expected one"
            source = image.read() if isinstance(image, ImageSource) else image
            return prepare(source, self.model.preprocessing, self.model.device)[1]
        except FAILURES as error:
            return one_line(error)

    def _finish(self, group: Group, decoded: Future[Any]) -> list[MapRow]:
        pixels = decoded.result()
        name = group.image.name if isinstance(group.image, ImageSource) else ""
        start = time.perf_counter()
        problems = [row.problem or self._problem(row.question) for row in group.rows]
        if isinstance(pixels, str):
            problems = [problem or pixels for problem in problems]
        asked = list(dict.fromkeys(row.question for row, problem in zip(group.rows, problems) if problem is None))
        answers: dict[str, tuple[FloatArray, Optional[float]]] = {}
        failure: Optional[str] = None
        if asked:
            try:
                maps, scores = self._ask(pixels, asked)
                answers = dict(zip(asked, zip(maps, [None] * len(asked) if scores is None else scores)))
            except FAILURES as error:
                failure = one_line(error)
        count = max(1, sum(problem is None for problem in problems))
        seconds = (time.perf_counter() - start) / count
        return [self._row(row, name, problem or failure, answers, seconds) for row, problem in zip(group.rows, problems)]

    def _row(
        self, row: Row, name: str, problem: Optional[str], answers: Mapping[str, tuple[FloatArray, Optional[float]]],
        seconds: float,
    ) -> MapRow:  # fmt: skip
        values, score = (None, None) if problem is not None else answers[row.question]
        values = None if values is None else values.reshape(self.grid)
        spent = 0.0 if problem is not None else seconds
        return MapRow(row.id, name, row.question, self.block, self.grid, values, score, problem, spent)

    def _problem(self, question: str) -> Optional[str]:
        """Why a question cannot be asked; a good one is now in the model's cache of encoded questions."""
        if not self.takes_questions:
            return None if not question else "question: this model takes none (plain CLIP)"
        if not question.strip():
            return "question: it is empty"
        if self._blip:
            return None
        try:
            # Alone, not with its neighbours: then its numbers are the same to the last bit wherever it is asked.
            self.model.encode_questions(question)
        except FAILURES as error:
            return one_line(error)
        return None

    def _ask(self, pixels: Seen, questions: list[str]) -> tuple[FloatArray, Optional[list[float]]]:
        """Maps [Q, P], and scores where there are some, of different questions about one picture."""
        if self._blip:
            maps, scores = self.model.maps_and_scores(pixels, questions, self.block)
            return maps, [float(score) for score in scores]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", QuestionBlindWarning)
            if not self.takes_questions:
                return self._extract(pixels, None), None
            step = self.at_once or len(questions)
            chunks = [self._extract(pixels, questions[at : at + step]) for at in range(0, len(questions), step)]
            return np.concatenate(chunks), None

    def _extract(self, pixels: Seen, questions: Optional[list[str]]) -> FloatArray:
        maps: FloatArray = self.model.extract_attention(
            pixels, questions, blocks=(self.block,), heads=self.heads, method=self.method
        )[:, 0]
        return maps

    # ---- batches: what others call ----

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Maps of a batch of rows.

        Parameters
        ----------
        batch : mapping of columns
            `image`: paths, file bytes, PIL images, uint8 arrays [H, W, 3], or ``{"bytes": ..., "path": ...}``; `question`:
            str. Rows with the same path, bytes or object share the picture's work. Other columns are passed on.

        Returns
        -------
        dict of columns
            Those of `batch`, then `block` int32 [B], `grid` int32 [B, 2], `map` [B, P] of `dtype`, `scale` float32 [B] (the
            maps are ``map * scale``; see `qavit.data.scale_maps`), `score` float32 [B], `error` (str, "" when well) and
            `seconds` float64 [B]. A row that failed has NaN in `map` and `score`.

        Raises
        ------
        ValueError
            There is no column `image`, or no `question` for a model that takes questions.
        """
        from ._rows import scale_maps

        if "image" not in batch or (self.takes_questions and "question" not in batch):
            raise ValueError(f"batch: columns {', '.join(batch)}; expected image and question")
        images = list(batch["image"])
        lengths = {name: len(column) for name, column in batch.items()}
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{name} has {length} rows" for name, length in lengths.items())
            raise ValueError(f"batch: {said}; expected as many in each column")
        questions = [_text(question) for question in batch.get("question", [""] * len(images))]
        groups: dict[Any, tuple[Group, list[int]]] = {}
        for number, (image, question) in enumerate(zip(images, questions)):
            source = self._source(image)
            key = source if isinstance(source, ImageSource) else id(image)
            group, places = groups.setdefault(key, (Group(source, []), []))
            group.rows.append(Row(str(number), question, None))
            places.append(number)
        rows: list[Any] = [None] * len(images)
        for (_, places), found in zip(groups.values(), self.compute(group for group, _ in groups.values())):
            for place, row in zip(places, found):
                rows[place] = row
        flat = np.full((len(rows), self.grid[0] * self.grid[1]), np.nan, np.float32)
        for place, row in enumerate(rows):
            if row.map is not None:
                flat[place] = row.map.reshape(-1)
        maps, scale = scale_maps(flat, self.dtype)
        errors = np.empty(len(rows), object)
        # Text throughout: from a first batch of nulls, the datasets library concludes that all are.
        errors[:] = [row.error or "" for row in rows]
        return {
            **batch,
            "block": np.full(len(rows), self.block, np.int32),
            "grid": np.tile(np.array(self.grid, np.int32), (len(rows), 1)),
            "map": maps,
            "scale": scale,
            "score": np.array([np.nan if row.score is None else row.score for row in rows], np.float32),
            "error": errors,
            "seconds": np.array([row.seconds for row in rows], np.float64),
        }

    def _source(self, image: Any) -> Any:
        """A cell of the column `image` as something to decode."""
        if isinstance(image, Mapping):
            image = image.get("bytes") if image.get("bytes") is not None else image.get("path")
        if isinstance(image, (bytes, bytearray)):
            return ImageSource("", data=bytes(image))
        if isinstance(image, (str, os.PathLike)):
            name = os.fspath(image)
            return ImageSource(name, name if self._images is None else os.path.join(self._images, name))
        return image

    def __repr__(self) -> str:
        return f"HeatmapActor({self.model!r}, method={self.method!r}, block={self.block})"


def _text(question: Any) -> str:
    return "" if question is None else str(question)


def _rebuild(arguments: Mapping[str, Any]) -> HeatmapActor:
    """An unpickled actor."""
    return HeatmapActor(**arguments)
