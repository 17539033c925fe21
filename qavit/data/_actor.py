"""Maps of batches of rows: pictures decoded ahead by other threads, a picture's questions in one call of the model."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Union, cast

import numpy as np

from .._base.arguments import height_and_width, is_pixel_values, one_line
from .._base.files import PathLike
from .._base.pictures import MAX_PIXELS, load_image
from .._base.types import Fit, FloatArray, Heads
from .._base.warnings import QavitWarning, warn_of
from ..answers._open import open_answering
from ..answers._pnpvqa import PNPVQA
from ..images import Region
from ..models._model import Model
from ._pictures import ImageSource
from ._plan import Group, Row
from ._rows import MapRow

if TYPE_CHECKING:
    from .._result import HeatmapResult
    from ..models._model import Shown

DTYPES = ("float32", "float16")
ANSWERED_AT_ONCE = 64
FAILURES = (OSError, ValueError, TypeError)  # of a picture or a question; anything else ends the run


class Found(NamedTuple):
    """What the model says of a question: fields of `MapRow`."""

    map: FloatArray
    score: Optional[float] = None
    region: Optional[tuple[float, float, float, float]] = None
    notes: tuple[str, ...] = ()
    answer: Optional[str] = None
    answer_score: Optional[float] = None
    captions: Optional[tuple[str, ...]] = None


class HeatmapActor:
    """A model that turns batches of rows into rows with maps.

    The same object serves Ray Data's ``map_batches`` (as an actor class, one model an actor), ``datasets.Dataset.map(...,
    batched=True)`` and plain `multiprocessing`: pickled, it takes its arguments along and loads the model where it arrives.

    Parameters
    ----------
    model : str or path, optional
        As for `qavit.load`: "demo" (also when no other part is given), a folder, or "hf://owner/name"; or a configuration
        file of PnP-VQA (.yaml, .json), whose matcher's maps they are.
    method : {"class", "question", "gradcam"}, optional
        How a map is read, one of the model's `methods`; None: its default. BLIP's "gradcam" is on its own scale, the others'
        maps sum to 1.
    block : int or sequence of int, optional
        Whose attention; None: the method's default.
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
    max_pixels : int
        A larger picture is refused before it is decoded.
    fit : {"crop", "stretch", "pad"}, optional
        What of a picture is seen; None: as the model was trained.
    answers : bool
        Whether questions are answered, too.
    answering : dict, optional
        How: options of the model's `answer`, such as ``{"num_captions": 50}`` of `PNPVQA`.
    **parts
        `checkpoint`, `vision`, `text`, `tokenizer`, `config`, `precision`, `device`, `image_size`, as for `qavit.load`.

    Attributes
    ----------
    model : Model
    method : str
    block : int or tuple of int
    grid : tuple of int
        (gh, gw).

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        What `qavit.load` raises; or the model has no maps by this method or block, or does not answer.

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
        block: Union[int, Sequence[int], None] = None,
        heads: Heads = "mean",
        dtype: str = "float32",
        images: Optional[PathLike] = None,
        threads: Optional[int] = None,
        decoders: int = 2,
        max_pixels: int = MAX_PIXELS,
        fit: Optional[Fit] = None,
        answers: bool = False,
        answering: Optional[Mapping[str, Any]] = None,
        **parts: Any,
    ) -> None:
        self._arguments = {
            "model": model, "method": method, "block": block, "heads": heads, "dtype": dtype,
            "images": images, "threads": threads, "decoders": decoders, "max_pixels": max_pixels, "fit": fit,
            "answers": answers, "answering": answering, **parts,
        }  # fmt: skip
        if dtype not in DTYPES:
            raise ValueError(f"dtype: got {dtype!r}, expected 'float32' or 'float16'")
        if decoders < 1:
            raise ValueError(f"decoders: got {decoders}, expected at least 1")
        if threads is not None:
            from .._core import set_num_threads

            set_num_threads(threads)
        if model is not None and not isinstance(model, (str, os.PathLike)):
            hint = "; it is loaded anew in every process" if isinstance(model, Model) else ""
            raise TypeError(f"model: expected what qavit.load takes, got {type(model).__name__}{hint}")
        opened = open_answering(model, **parts)
        self.model: Model = opened.matcher if isinstance(opened, PNPVQA) else opened
        self._pnp_vqa = opened if isinstance(opened, PNPVQA) and answers else None
        self.dtype = np.dtype(dtype)
        self.grid: tuple[int, int] = self.model.grid
        self._images = images
        self._decoders, self._max_pixels = decoders, max_pixels
        self._fit: Optional[Fit] = "stretch" if fit is None and isinstance(opened, PNPVQA) else fit
        self._answers, self._answering = answers, dict(answering or {})
        self._choose(method, block, heads)
        self._try()

    def _choose(self, method: Optional[str], block: Union[int, Sequence[int], None], heads: Heads) -> None:
        """What is asked of the model, checked."""
        model = self.model
        self._request = model._request(cast("Any", method), block, heads)
        if self._fit is not None:
            model.preprocessing.fitted(self._fit)
        elif model._own_grids:
            raise ValueError(
                f"fit: {model.name} sees each picture on a grid of its own, and a data set has one; give 'stretch', "
                "'crop' or 'pad'"
            )
        self.takes_questions = model.takes_questions
        self.method = self._request.method.name
        blocks = tuple(self._request.blocks)
        self.block: Union[int, tuple[int, ...]] = blocks if len(blocks) > 1 else blocks[0]
        self.at_once = model._questions_at_once(self._request)

    def _try(self) -> None:
        """What is wrong with block, method, heads or the way of answering is wrong for every row: it shows here, once."""
        if self.takes_questions:
            blank = np.zeros((*height_and_width(self.model.image_size), 3), np.uint8)
            look = self.model._result(self.model._see(blank, self._fit), "a", self._request)
            warn_of(note for note in look.notes if note.kind == "question_blind")
        if self._answers:
            self._try_answering()

    def _try_answering(self) -> None:
        if self._pnp_vqa is not None:
            usual = (self.model.default_method, "stretch", "mean")
            if (self.method, self._fit, self._request.heads) != usual or not isinstance(self.block, int):
                raise ValueError("method, block, heads, fit: PnP-VQA draws patches by its matcher's map of one block")
            self._pnp_vqa.check_options(**self._answering)
            return
        if self.model.answer_names is not None and not self._answering:
            return  # answers come with the maps
        model: Any = self.model
        blank = np.zeros((32, 32, 3), np.uint8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", QavitWarning)  # of a black picture
            model.answer(blank, ["a"], **self._answering)

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

    def _decode(self, image: Any) -> Union[Shown, str]:
        """The picture of a row as the model sees it, or why it cannot."""
        if image is None:
            return "image: none is named"
        try:
            if not is_pixel_values(image):
                image = load_image(image.read() if isinstance(image, ImageSource) else image, max_pixels=self._max_pixels)
            return self.model._see(image, self._fit)
        except FAILURES as error:
            return one_line(error)

    def _finish(self, group: Group, decoded: Future[Any]) -> list[MapRow]:
        shown = decoded.result()
        name = group.image.name if isinstance(group.image, ImageSource) else ""
        start = time.perf_counter()
        problems = [row.problem or self._problem(row.question) for row in group.rows]
        size = None
        if isinstance(shown, str):
            problems = [problem or shown for problem in problems]
        else:
            size = int(shown.picture.shape[0]), int(shown.picture.shape[1])
        asked = list(dict.fromkeys(row.question for row, problem in zip(group.rows, problems) if problem is None))
        found: dict[str, Found] = {}
        failure: Optional[str] = None
        if asked:
            try:
                found = dict(zip(asked, self._ask(shown, asked)))
            except FAILURES as error:
                failure = one_line(error)
        seconds = (time.perf_counter() - start) / max(1, len(found))
        rows = []
        for row, problem in zip(group.rows, problems):
            asked_of = row.id, name, row.question, self.block, self.grid
            own = MapRow(*asked_of, None, None, problem or failure, 0.0, self.method, size)
            rows.append(own if own.error is not None else own._replace(seconds=seconds, **found[row.question]._asdict()))
        return rows

    def _problem(self, question: str) -> Optional[str]:
        """Why a question cannot be asked; a good one is now in the model's cache of encoded questions."""
        if not self.takes_questions:
            return None if not question else f"question: this model takes none: {self.model._why_no_questions()}"
        if not question.strip():
            return "question: it is empty"
        try:
            # Alone, not with its neighbours: then its numbers are the same to the last bit wherever it is asked.
            self.model._prepare_question(question)
        except FAILURES as error:
            return one_line(error)
        return None

    def _ask(self, shown: Shown, questions: list[str]) -> list[Found]:
        """What the model says of different questions about one picture."""
        if self._pnp_vqa is not None:
            return self._explained(shown, questions)
        if not self._answers:
            return self._looked(shown, questions)
        found = []
        for chunk in self._chunks(questions):
            result, answers = self.model._answered(shown, chunk, self._request, **self._answering)
            for one, said in zip(self._found(result), answers):
                known = one.answer == said.text
                found.append(one if known else one._replace(answer=said.text, answer_score=math.exp(said.score)))
        return found

    def _explained(self, shown: Shown, questions: list[str]) -> list[Found]:
        """Answers by PnP-VQA, with its captions and its matcher's maps."""
        assert self._pnp_vqa is not None
        found = []
        for one in self._pnp_vqa.explanations(shown.picture, questions, block=self._request.blocks[0], **self._answering):
            (looked,) = self._found(one.result)
            score = math.exp(one.answer.score)
            found.append(looked._replace(answer=one.answer.text, answer_score=score, captions=tuple(one.captions)))
        return found

    def _looked(self, shown: Shown, questions: list[str]) -> list[Found]:
        """The maps of different questions about one picture."""
        if not self.takes_questions:
            return self._found(self.model._result(shown, None, self._request))
        chunks = self._chunks(questions)
        return [one for chunk in chunks for one in self._found(self.model._result(shown, chunk, self._request))]

    def _chunks(self, questions: list[str]) -> list[list[str]]:
        step = self.at_once or (ANSWERED_AT_ONCE if self._answers else len(questions))
        return [questions[at : at + step] for at in range(0, len(questions), step)]

    def _found(self, result: HeatmapResult) -> list[Found]:
        """A result question by question; matchers' maps stay on their own scale."""
        found = []
        for number, one in enumerate(result.maps if result.scores is None else result.raw):
            notes = tuple(note.text for note in result.notes if note.question in (None, number))
            answer, sure = result.answers[number][0] if result.answers else (None, None)
            score = None if result.scores is None else float(result.scores[number])
            found.append(Found(one, score, _corners(result.seen), notes, answer, sure))
        return found

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
            `seconds` float64 [B]. A row that failed has NaN in `map` and `score`. With `answers`, also `answer` (str, ""
            where there is none) and `answer_score` float32 [B].

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
        answered: dict[str, Any] = {}
        if self._answers:
            texts = np.empty(len(rows), object)
            texts[:] = [row.answer or "" for row in rows]
            sure = [np.nan if row.answer_score is None else row.answer_score for row in rows]
            answered = {"answer": texts, "answer_score": np.array(sure, np.float32)}
        return {
            **batch,
            **answered,
            "block": np.tile(np.array(self.block, np.int32), (len(rows),) + (1,) * isinstance(self.block, tuple)),
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


def _corners(region: Region) -> tuple[float, float, float, float]:
    return region.left, region.top, region.right, region.bottom


def _text(question: Any) -> str:
    return "" if question is None else str(question)


def _rebuild(arguments: Mapping[str, Any]) -> HeatmapActor:
    """An unpickled actor."""
    return HeatmapActor(**arguments)
