"""The one face of every loaded model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, TypeVar, Union, cast

import numpy as np
import numpy.typing as npt

from .._base.arguments import height_and_width, is_pixel_values, question_list, whole_number, whole_numbers
from .._base.files import absolute_paths
from .._base.once import Once, Turn
from .._base.types import Fit, FloatArray, Heads, ImageLike, ImageSize, Kind, Precision, Score
from .._base.warnings import Note, PrecisionWarning, QuestionBlindWarning, note_of, warn, warn_of
from ..checkpoints._weights import NOT_FINITE, check_unchanged, origins
from ..heatmaps._distribution import to_distribution
from ..methods._look import Options
from ..methods._registry import MethodLike, method_of, methods_of
from ..methods.base import Method
from ._capabilities import Capabilities, Questions
from ._devices import Placement, computing_precision, place, same_device
from ._keeping import Keeping
from ._look import ModelLook, maps_of_heads
from ._notes import bundled_notes, crop_notes, pixel_notes
from ._picture_cache import DEFAULT_LIMIT, PictureCache
from ._stream import stream

if TYPE_CHECKING:
    from .._result import HeatmapResult
    from ..checkpoints._source import ModelSource
    from ..generation._generated import Generated
    from ..images import Preprocessing, Region, Seen

SomeModel = TypeVar("SomeModel", bound="Model")


class Shown(NamedTuple):
    """A picture as given, what the core takes of it (a batch of one), which part of it that is, and what is to be said."""

    picture: npt.NDArray[np.uint8]
    pixels: Seen
    region: Region
    notes: list[Note]


class Request(NamedTuple):
    """What is asked of a model, checked."""

    method: Method
    blocks: list[int]
    heads: Heads
    options: Options


class Model(Capabilities, Keeping, ABC):
    """A model that :func:`qavit.load` made: pictures and questions go in, and maps come out.

    One object may be used from many threads at once, and after a fork. What it made of a picture it keeps, by the picture's
    content and up to the bytes of ``load(cache=...)``, so that the next question about it costs no pass through what comes
    before the question; results are the same to the last bit (:meth:`cache_info`, :meth:`cache_clear`). It can be pickled
    and deep-copied: what travels is where its files lie, and it is loaded anew where it arrives; one made of weights in
    memory cannot.

    Attributes
    ----------
    kind : str
        "qavit", "clip" or "blip_itm". What differs between kinds is asked of these attributes.
    name : str
        Of its files.
    takes_questions : bool
    default_method : str
    default_block : int
        What ``block=None`` reads by the default method.
    usable_blocks : tuple of int
        The blocks whose maps by the default method can know the question.
    num_blocks, num_heads : int
        Of the half whose blocks are read.
    grid : tuple of int
        Rows and columns of patches, (gh, gw).
    image_size : int or (int, int)
        In pixels: the side of a square input, or (height, width).
    patch_size : int
        In pixels.
    preprocessing : Preprocessing
        How a picture becomes pixel values.
    precision, requested_precision : str
        What computes, and what was asked for. Where the CPU has no bfloat16 products, float32 computes, and on a GPU
        bfloat16 where int8 was asked for, with a `PrecisionWarning`.
    device : str
        "cpu", "cuda" or "cuda:N".
    offload_model : bool
    answer_names : list of str or None
        What :meth:`answer` chooses from.
    """

    kind: Kind
    name: str
    takes_questions: bool
    default_method: str
    default_block: int
    usable_blocks: tuple[int, ...]
    num_blocks: int
    num_heads: int
    grid: tuple[int, int]
    image_size: ImageSize
    patch_size: int
    preprocessing: Preprocessing
    precision: Precision
    requested_precision: Precision
    device: str
    offload_model: bool
    answer_names: Optional[list[str]] = None
    reads: frozenset[str]
    question_blocks: tuple[int, ...] = ()
    _own_grids = False  # whether each picture has a grid of its own
    _bundled = False
    _loaded_with: Optional[dict[str, Any]] = None  # arguments of qavit.load
    _load_again: Callable[[dict[str, Any]], Any]

    def __init__(self, source: ModelSource, precision: Precision, device: Any, offload_model: bool) -> None:
        self._source = source
        self._files = origins(source.weights)
        self.name = source.name
        self._picture_cache = PictureCache(DEFAULT_LIMIT)
        placement = place(device, precision, offload_model)
        self.requested_precision = precision
        self.precision = computing_precision(precision, placement.name)
        if self.precision != precision:
            where = "this CPU" if placement.name == "cpu" else "a GPU"
            warn(PrecisionWarning, f"{self.name}: {where} has no {precision} products, so {self.precision} computes")
        self.device = placement.name
        self.offload_model = bool(offload_model)
        self._load_core(placement)

    @abstractmethod
    def _load_core(self, placement: Placement) -> None:
        """Make what computes on a device, and put it in the place of what does now."""

    @abstractmethod
    def _look(self, pixels: Seen, questions: Any) -> ModelLook:
        """One picture, a batch of one, and its questions."""

    def _asks(self, method: Method) -> bool:
        """Whether a map by the method needs a question."""
        return self.takes_questions

    def _named(self, questions: Any) -> tuple[Optional[list[str]], Any]:
        """Questions by name, and as `_look` takes them; None for none."""
        asked = None if questions is None else question_list(questions)
        return asked, asked

    def _answered(
        self, shown: Shown, questions: list[str], request: Request, **options: Any
    ) -> tuple[HeatmapResult, list[Generated]]:
        """The maps of one picture, and an answer to each question, by the options of :meth:`answer`; silent."""
        self._lacks("answer")

    def _check_answers(self) -> None:
        """Raise TypeError or ValueError unless the model answers questions."""
        self._lacks("answer")

    def _prepare_question(self, question: str) -> None:
        """Raise for a question that cannot be asked; keep it encoded, where the model remembers questions."""

    def _questions_at_once(self, request: Request) -> Optional[int]:
        """How many questions of a picture to ask together; None: any number, the core itself bounds its memory.

        One, where a map depends on what else is asked: a data set's row is of its own question alone.
        """
        return 1 if request.method.compares(request.options) else None

    def _remember(self, arguments: Mapping[str, Any], load_again: Callable[[dict[str, Any]], Any]) -> None:
        """Keep what :func:`qavit.load` was called with, files by their absolute paths, and what loads by that again."""
        self._load_again = load_again
        self._loaded_with = {**arguments, **absolute_paths(arguments)}
        self._bundled = arguments.get("path") == "demo"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._loaded_with is None:
            raise TypeError(
                f"{self.name}: this model was not made by qavit.load but of weights in memory, so it cannot be pickled or "
                "copied; make it again where it is needed"
            )
        return self._load_again, ({**self._loaded_with, "device": self.device, "offload_model": self.offload_model},)

    # ---- devices ----

    def to(self: SomeModel, device: Any, *, offload_model: Optional[bool] = None) -> SomeModel:
        """Move the model to another device, in place.

        The weights are read again from where they were loaded from. Calls that run meanwhile end where they began.

        Parameters
        ----------
        device : {"cpu", "cuda", "cuda:N"} or torch.device
        offload_model : bool, optional
            As for :func:`load`; None: as it is.

        Returns
        -------
        Model
            The model itself.

        Raises
        ------
        ValueError, RuntimeError
            There is no such device; the message says what is missing.
        """
        offload = self.offload_model if offload_model is None else bool(offload_model)
        name = str(device)
        if not same_device(name, self.device) or (offload != self.offload_model and name != "cpu"):
            placement = place(device, self.requested_precision, offload)
            self._load_core(placement)
            self.device, self.precision = placement.name, computing_precision(self.requested_precision, placement.name)
            self._use_folder()
        self.offload_model = offload
        return self

    def cpu(self: SomeModel) -> SomeModel:
        """As ``to("cpu")``."""
        return self.to("cpu")

    def cuda(self: SomeModel) -> SomeModel:
        """As ``to("cuda")``."""
        return self.to("cuda")

    # ---- maps ----

    @property
    def methods(self) -> tuple[str, ...]:
        """What ``method=`` takes by name."""
        return methods_of(self)

    def heatmaps(
        self,
        image: ImageLike,
        questions: Questions = None,
        *,
        method: Optional[MethodLike] = None,
        block: Union[int, Sequence[int], None] = None,
        heads: Heads = "mean",
        fit: Optional[Fit] = None,
        score: Score = "cosine",
        corrected: bool = True,
        empty: Union[str, FloatArray, None] = None,
        answer: Union[str, Sequence[str], None] = None,
    ) -> HeatmapResult:
        """Where the model looks for each question.

        Parameters
        ----------
        image : path, PIL image, uint8 [H, W, 3], or float [3, S, S] normalised
            One picture.
        questions : str, list of str or float32 [Q, E], optional
            None for a model, or a method, that takes none. BLIP passes over ``?`` at both ends. Of a dual encoder also
            embeddings, as :meth:`encode_text` gives; of a classifier names or numbers of classes.
        method : str, Method or callable, optional
            One of `methods`; None: `default_method`. "class": what the class token attends to; "question": how much each
            patch attends to the question; "gradcam": PnP-VQA's, of BLIP. A function takes the raw attention
            [Q, h, T, M + T] of a block and returns [Q, P] or [Q, gh, gw].
        block : int or sequence of int, optional
            Whose attention, negative numbers counting from the end; of several, what the method makes of them together, the
            mean for most. None: the method's own choice.
        heads : {"mean", "max"} or int
            How heads become one map; "gradcam" and functions take none.
        fit : {"crop", "stretch", "pad"}, optional
            What of the picture is seen: the middle square; all of it, its ratio lost; all of it with black around it. None:
            as the model was trained.
        score : {"cosine", "softmax"}
            What the gradient of "gradcam" is of: a text's cosine, or its share among the call's texts.
        corrected : bool
            SigLIP's "legrad": whether patches that stand out for the empty text, too, are taken out.
        empty : str or float32 [1, E], optional
            What counts as the empty text, for methods that compare with it.
        answer : str or list of str, optional
            Of BLIP-VQA, and of a list that a model chooses from: the answer whose map it is, or one a question; None: the
            model's own.

        Returns
        -------
        HeatmapResult
            ``maps`` float32 [Q, gh, gw], each summing to 1; ``raw``, the method's own numbers.

        Warns
        -----
        QavitWarning
            By a class of its own for each thing that a reader ought to know; they are the result's `notes`, too.
        """
        request = self._request(method, block, heads, Options(score, corrected, empty, answer))
        result = self._result(self._see(image, fit), questions, request)
        warn_of(result.notes)
        return result

    def explore(self, image: ImageLike, questions: Union[str, Sequence[str]] = ()) -> Any:
        """A widget for a notebook, where map and answer follow what is typed.

        Method, block, heads and what is seen are chosen beside it, and a second question is drawn beside the first. Needs
        the extra ``widget``; ``qavit serve`` shows the same in a page.

        Parameters
        ----------
        image : path, PIL image or uint8 [H, W, 3]
            The picture that is asked about.
        questions : str or list of str
            Up to two that it opens with.

        Returns
        -------
        anywidget.AnyWidget
            Shown where it is a cell's last value.

        Raises
        ------
        ImportError
            The extra is not installed; the message says how.
        ValueError, TypeError
            The picture cannot be read, or the model gives no maps.
        """
        from ._asking import explore

        return explore(self, image, question_list(questions) if len(questions) else [])

    def stream(
        self,
        pictures: Iterable[Any],
        questions: Questions = None,
        *,
        method: Optional[MethodLike] = None,
        block: Union[int, Sequence[int], None] = None,
        heads: Heads = "mean",
        fit: Optional[Fit] = None,
        score: Score = "cosine",
        corrected: bool = True,
        empty: Union[str, FloatArray, None] = None,
        answer: Union[str, Sequence[str], None] = None,
    ) -> Iterator[HeatmapResult]:
        """:meth:`heatmaps` of many pictures, one result after another.

        Parameters
        ----------
        pictures : iterable
            Pictures, or pairs (picture, questions); a list, a generator, whatever can be gone through. Two pictures are read
            ahead of the one that is computed, and no result is kept.
        questions : str or list of str, optional
            Those of every picture; None where pairs bring their own, or where the model takes none.
        method, block, heads, fit, score, corrected, empty, answer
            As for :meth:`heatmaps`.

        Yields
        ------
        HeatmapResult

        Raises
        ------
        ValueError, TypeError, OSError
            A picture cannot be read, or its questions cannot be asked: the message begins with its number, as
            ``pictures[3]``.
        """
        request = self._request(method, block, heads, Options(score, corrected, empty, answer))
        return stream(
            pictures, questions, lambda image: self._see(image, fit), lambda seen, own: self._result(seen, own, request)
        )

    def _request(self, method: Optional[MethodLike], block: Any, heads: Any, options: Optional[Options] = None) -> Request:
        """What is asked, checked, before any picture is looked at."""
        chosen = method_of(self.default_method if method is None else method, self)
        if heads is None:
            raise ValueError("heads: None is for extract_attention, which keeps all; expected 'mean', 'max' or a number")
        self._check_heads(heads, chosen)
        if block is None:
            blocks = list(chosen.default(self))
        else:
            blocks = self.check_blocks(block, "block") if isinstance(block, Iterable) else [self.check_block(block)]
        chosen.check(self, blocks)
        options = Options() if options is None else options
        if options.score not in ("cosine", "softmax"):
            raise ValueError(f"score: {options.score!r} is unknown; expected 'cosine' or 'softmax'")
        chosen.check_options(self, options)
        own = heads if isinstance(heads, str) else int(heads) % self.num_heads
        return Request(chosen, blocks, cast("Heads", own), options)

    def _check_heads(self, heads: Any, method: Method) -> None:
        """TypeError or ValueError for heads that do not exist, or that the method does not take."""
        if not isinstance(heads, str):
            try:
                number = whole_number(heads, "heads")
            except TypeError:
                kind = type(heads).__name__
                raise TypeError(f"heads: expected 'mean', 'max' or the number of a head, got {kind}") from None
            if not -self.num_heads <= number < self.num_heads:
                raise ValueError(f"heads: head {number} does not exist; this model has heads 0 to {self.num_heads - 1}")
        elif heads not in ("mean", "max", *method.own_heads):
            if heads == "single":
                raise ValueError(f"heads: method {method.name!r} does not take 'single'")
            raise ValueError(f"heads: {heads!r} is unknown; expected 'mean', 'max' or the number of a head")
        if heads not in ("mean", *method.own_heads) and not method.takes_heads:
            raise ValueError(f"heads: method {method.name!r} does not take it")

    def _see(self, image: Any, fit: Optional[str] = None) -> Shown:
        """One picture; safe to call from another thread, and silent: what is to be said comes along."""
        from .. import images

        fitted = self.preprocessing if fit is None else self.preprocessing.fitted(fit)
        if is_pixel_values(image):
            if fit is not None:
                raise ValueError("fit: pixel values are taken as they are; give the picture itself")
            pixels = self._pixel_values(image, "image")
            if len(pixels) != 1:
                raise ValueError(f"image: {len(pixels)} pictures, expected one")
            pixels = pixels.copy()  # what becomes of the caller's does not show in what is computed later
            picture = images.picture_of(pixels[0], self.preprocessing)
            region = images.Region(0.0, 0.0, float(picture.shape[1]), float(picture.shape[0]))
            shown = Shown(picture, pixels, region, pixel_notes(pixels, self.preprocessing))
        else:
            picture, seen, region = images.prepare(image, fitted, self.device)
            shown = Shown(picture, seen, region, crop_notes(picture, region))
        if self._bundled:
            known = shown.pixels if isinstance(shown.pixels, np.ndarray) else images.preprocess(picture, fitted)
            shown.notes.extend(bundled_notes(known[0], fitted))
        return shown

    def _result(self, shown: Shown, questions: Questions, request: Request) -> HeatmapResult:
        """The maps of one picture, with all that belongs to them."""
        asked, given = self._named(questions)
        if asked is None and self._asks(request.method):
            raise ValueError("questions: this model takes questions; give at least one")
        if asked is not None and not self.takes_questions:
            raise ValueError(f"questions: this model takes no questions: {self._why_no_questions()}")
        return self._result_of(shown, self._look(shown.pixels, given), asked, request)

    def _result_of(self, shown: Shown, look: ModelLook, asked: Optional[list[str]], request: Request) -> HeatmapResult:
        """The maps of what was looked at."""
        from .._result import HeatmapResult

        method, blocks, heads, options = request
        shape = (-1, *self.grid)
        look.options = options
        raw = self._finite_map(method.read(look, blocks, heads)).reshape(shape)
        usable = tuple(block for block in range(self.num_blocks) if self._has_map(method, block))
        turn = Turn()  # what is computed later is of one look, and lets go of what this holds
        every = Once(lambda: self._every_block(look, method, usable, heads, len(raw)), turn)
        word_maps: Any = None
        if look.words is not None:
            word_maps = Once(lambda: look.word_maps(blocks, heads), turn)
        head_maps = Once(lambda: maps_of_heads(look, method, blocks, len(raw)), turn) if method.takes_heads else None
        blind = self._blind_notes(blocks, method) if asked is not None else ()
        shown.picture.setflags(write=False)
        result = HeatmapResult(
            maps=to_distribution(raw, axes=2),
            raw=raw,
            questions=asked if asked is not None else [""],
            picture=shown.picture,
            seen=shown.region,
            block=blocks[0] if len(blocks) == 1 else tuple(blocks),
            method=method.name,
            words=look.words,
            word_maps=word_maps,
            answers=look.answers(),
            scores=look.scores(),
            block_maps=lambda: _shares(every(), usable),
            block_raw=every,
            blocks=usable,
            notes=(*shown.notes, *look.notes, *look.score_notes(), *blind),
            model=self.name,
            heads=heads,
            head_maps=head_maps,
        )
        look.release()
        return result

    def _has_map(self, method: Method, block: int) -> bool:
        try:
            method.check(self, [self.check_block(block)])
        except ValueError:
            return False
        return True

    def _every_block(self, look: ModelLook, method: Method, usable: tuple[int, ...], heads: Heads, count: int) -> FloatArray:
        """The method's numbers of every block, [L, Q, gh, gw]; zero where there are none."""
        every = np.zeros((self.num_blocks, count, *self.grid), np.float32)
        values = method.by_block(look, usable, heads)
        every[list(usable)] = values.transpose(1, 0, 2).reshape(len(usable), count, *self.grid)
        look.release()
        return every

    def _finite_map(self, values: FloatArray) -> FloatArray:
        if not np.isfinite(values).all():
            raise ValueError(f"{self.name}: the map is not finite: {NOT_FINITE}")
        return values

    def _blind_notes(self, blocks: Iterable[int], method: Method) -> list[Note]:
        """That maps of these blocks cannot know the question."""
        blind = [block for block in blocks if method.blind(self, block)]
        if not blind:
            return []
        knowing = method.blocks(self)
        hint = f"blocks {knowing[0]} to {knowing[-1]} do" if knowing else "no block does; use method='question'"
        return [
            note_of(
                QuestionBlindWarning,
                f"the class token of block {blind[0]} has not seen the question (it enters in block "
                f"{self.question_blocks[0]}): what each of its heads looks at is the same for every question; {hint}",
            )
        ]

    # ---- arguments ----

    def check_block(self, block: int, argument: str = "block") -> int:
        """`block` as a number from 0, counting negative ones from the end; ValueError when there is no such block."""
        block = whole_number(block, argument)
        number = block + self.num_blocks if block < 0 else block
        if not 0 <= number < self.num_blocks:
            raise ValueError(f"{argument}: block {block} does not exist; this model has blocks 0 to {self.num_blocks - 1}")
        return number

    def check_blocks(self, blocks: Iterable[int], argument: str = "blocks") -> list[int]:
        """Several blocks as numbers from 0: see :meth:`check_block`."""
        numbers = [self.check_block(block, argument) for block in whole_numbers(blocks, argument)]
        if not numbers:
            raise ValueError(f"{argument}: expected at least one block, got none")
        return numbers

    def _pixel_values(self, pixel_values: Any, argument: str = "pixel_values") -> FloatArray:
        """Normalised pixel values as float32 [B, 3, S, S]."""
        from ..images import as_pixel_values

        images = as_pixel_values(pixel_values, argument)
        if images.ndim == 3:
            images = images[None]
        height, width = height_and_width(self.image_size)
        if images.shape[1:] != (3, height, width):
            raise ValueError(f"{argument}: shape {list(images.shape)}, expected [B, 3, {height}, {width}]")
        return images

    def _pixels(self, pixel_values: Any, argument: str = "pixel_values") -> FloatArray:
        """The same, with a warning where they look as if nobody had normalised them."""
        images = self._pixel_values(pixel_values, argument)
        warn_of(pixel_notes(images, self.preprocessing))
        return images

    def _batch(self, image: Any, count: Optional[int] = None, what: str = "questions", fit: Optional[str] = None) -> Seen:
        """One picture, or a batch of normalised ones, as the core takes it; of `count` texts, one each or one for all."""
        if is_pixel_values(image) and fit is None:
            images: Seen = self._pixels(image, "image")
        else:
            shown = self._see(image, fit)
            warn_of(shown.notes)
            images = shown.pixels
        if count is not None and len(images) not in (1, count):
            raise ValueError(f"image: {len(images)} pictures for {count} {what}; expected 1 or {count}")
        return images

    def _finite(self, array: FloatArray) -> FloatArray:
        check_unchanged(self._files)
        if not np.isfinite(array).all():
            raise ValueError(f"{self.name}: the result is not finite: {NOT_FINITE}")
        return array

    def _why_no_questions(self) -> str:
        return "it knows no text"


def _shares(every: FloatArray, usable: Sequence[int]) -> FloatArray:
    """Each map over its sum; zero for blocks that have none."""
    shares = np.zeros_like(every)
    shares[list(usable)] = to_distribution(every[list(usable)], axes=2)
    return shares
