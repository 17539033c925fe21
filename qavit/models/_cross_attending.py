"""Text encoders that attend to a picture: which patches speak for what comes of a text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

import numpy as np
import numpy.typing as npt

from .._base.arguments import height_and_width, whole_number
from .._base.types import FloatArray, Heads, Precision
from ..checkpoints._weights import check_unchanged
from ..text import words_with_tokens
from ._look import ModelLook
from ._model import Model
from ._notes import question_notes
from ._picture_cache import digest_of

if TYPE_CHECKING:
    from .._core import BlipImage
    from ..checkpoints._source import ModelSource
    from ..images import Seen
    from ..text import TokenBatch


class Tokens(NamedTuple):
    """Texts as the core takes them."""

    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.uint8]
    batch: TokenBatch


class Found(NamedTuple):
    """A block's maps [Q, P], a matcher's logits [Q, 2], and every token's map, texts one behind the other."""

    maps: FloatArray
    logits: Optional[FloatArray]
    every: FloatArray


class CrossAttending(Model):
    """A text encoder that attends to a picture, and maps by GradCAM.

    Attributes
    ----------
    max_tokens : int
        A longer text is cut, its closing token kept.
    """

    takes_questions = True
    default_method = "gradcam"
    reads = frozenset({"gradcam"})
    #: What the kind is called in messages.
    called: str
    #: Whether "?" at both ends of a question are passed over by :meth:`heatmaps`, too.
    strips_question_marks = False

    def __init__(
        self, source: ModelSource, *, precision: Precision = "float32", device: Any = "cpu", offload_model: bool = False
    ) -> None:
        from ..images import Preprocessing
        from ..text import Tokenizer, check_bert

        if source.text is None or source.tokenizer is None:
            raise ValueError(
                f"{source.name}: {self.called} needs a tokenizer; give tokenizer= a tokenizer.json or BERT's vocab.txt"
            )
        super().__init__(source, precision, device, offload_model)
        self.image_size, self.patch_size = self._core.image_size, self._core.patch_size
        height, width = height_and_width(self.image_size)
        self.grid = (height // self.patch_size, width // self.patch_size)
        self.num_blocks, self.num_heads = self._core.blocks, self._core.heads
        self.usable_blocks = self._find_usable()
        self.default_block = self._choose_block() if self.usable_blocks else 0
        self.preprocessing = Preprocessing.from_dict(source.preprocessing)
        self.max_tokens = min(int(source.questions.get("max_tokens", 35)), self._core.max_tokens)
        self._tokenizer = Tokenizer(source.tokenizer, self._core.vocab_size)
        check_bert(self._tokenizer, self._core.vocab_size)

    @property
    def _core(self) -> Any:
        return self._computing[0]

    @_core.setter
    def _core(self, core: Any) -> None:
        # Together, so that no call finds one core with what another made.
        self._computing = core, self._picture_cache

    @abstractmethod
    def _choose_block(self) -> int:
        """The default block, one of `usable_blocks`."""

    @abstractmethod
    def _find_usable(self) -> tuple[int, ...]:
        """The blocks that have a map."""

    # ---- arguments ----

    def check_block(self, block: int, argument: str = "block") -> int:
        """`block` as a number from 0, counting negative ones from the end.

        Raises
        ------
        ValueError
            There is no such block, or it does not attend to the picture, or its map would be zero everywhere: a matcher's
            last block's. The message names the usable ones.
        """
        block = whole_number(block, argument)
        number = block + self.num_blocks if block < 0 else block
        if number in self.usable_blocks:
            return number
        usable = "this model has none to use"
        if self.usable_blocks:
            usable = f"blocks {_range_text(self.usable_blocks)} can be used"
        if not 0 <= number < self.num_blocks:
            raise ValueError(f"{argument}: block {block} does not exist; {usable}")
        raise ValueError(f"{argument}: block {number} {self._why_not(number)}; {usable}")

    def _why_not(self, block: int) -> str:
        """Why a block that there is has no map."""
        return "does not attend to the picture"

    def _tokenize(self, texts: Sequence[str], matching: bool = True) -> Tokens:
        """Ids and mask, cut together, for the matching head, or (not `matching`) for the contrastive one."""
        check_unchanged(self._files)
        batch = self._tokenizer.encode(list(texts), self.max_tokens)
        return Tokens(batch.ids, batch.mask, batch)

    def _encode(self, pixels: Seen) -> list[BlipImage]:
        """Each of a batch of different pictures: with the keys and values that the text's blocks read of it.

        Kept by their content on the CPU; a GPU's memory is left to what computes.
        """
        core, cache = self._computing
        if cache.largest == 0 or self.device != "cpu":
            return _encode_new(core, pixels)
        keys = [digest_of(one) for one in _one_by_one(pixels)]
        size = _bytes_of_image(core)
        found = [cache.find(key, lambda tokens: (core.image_from_embeddings(tokens), size)) for key in keys]
        new = [number for number, image in enumerate(found) if image is None]
        for image in found:
            cache.count(image is not None)
        if new:
            some = pixels if len(new) == len(found) or not isinstance(pixels, np.ndarray) else pixels[new]
            for number, image in zip(new, _encode_new(core, some)):
                found[number] = image
                # Keys and values are made anew of what a folder has: a twentieth of their bytes.
                tokens = None if cache.folder is None else image.embeddings
                cache.put(keys[number], image, size, tokens)
        return found

    def _look(self, pixels: Seen, questions: Optional[list[str]]) -> GradCAMLook:
        return GradCAMLook(self, pixels, questions or [])

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name!r}: {self.num_blocks} text blocks, {self.grid[0]}x{self.grid[1]} patches of "
            f"{self.image_size}x{self.image_size}, {self.precision})"
        )


class GradCAMLook(ModelLook):
    """GradCAM of a :class:`CrossAttending` for one picture and its questions."""

    question_mask = None

    def __init__(self, model: CrossAttending, pixels: Seen, questions: list[str]) -> None:
        self._model, self._pixels = model, pixels
        strips = model.strips_question_marks
        self._tokens = model._tokenize([question.strip("?") if strips else question for question in questions])
        batch = self._tokens.batch
        # A text without words is asked on purpose: it has its first token's map.
        known = [known or not words for known, words in zip(batch.known, batch.words)]
        self.notes = question_notes(questions, batch.unknown, batch.cut, known)
        self._words = [words_with_tokens(*parts) for parts in zip(batch.words, batch.word_of)]
        self.words = [names for names, _ in self._words]
        self._image: Any = None
        self._found: dict[int, Found] = {}

    @property
    def grid(self) -> tuple[int, int]:
        return self._model.grid

    def attention(self, blocks: Sequence[int], class_row: bool = False) -> dict[int, FloatArray]:
        raise TypeError("attention: this model has maps by 'gradcam' alone")

    def question_tokens(self, block: int) -> int:
        return 0

    def gradcam(self, blocks: Sequence[int]) -> dict[int, FloatArray]:
        return {block: self._of(block)[0] for block in blocks}

    def _of(self, block: int) -> Found:
        if block not in self._found:
            if self._image is None:
                (self._image,) = self._model._encode(self._pixels)
            maps, logits, every = self._compute(block)
            finite = self._model._finite
            self._found[block] = Found(finite(maps), None if logits is None else finite(logits), finite(every))
        return self._found[block]

    def _compute(self, block: int) -> tuple[FloatArray, Optional[FloatArray], FloatArray]:
        """What `Found` holds, of the encoded picture."""
        tokens = self._tokens
        maps, logits, every = self._model._core.gradcam(self._image, tokens.ids, tokens.mask, block, True)
        return maps, logits, every

    def word_maps(self, blocks: Sequence[int], heads: Heads) -> list[FloatArray]:
        """The mean over each word's tokens."""
        every = np.mean([self._of(block)[2] for block in blocks], axis=0, dtype=np.float64).astype(np.float32)
        maps = []
        for rows, (names, word_of) in zip(np.split(every, np.cumsum(self._tokens.mask.sum(axis=1))[:-1]), self._words):
            own = [rows[[i for i, word in enumerate(word_of) if word == one]].mean(axis=0) for one in range(len(names))]
            maps.append(np.array(own, np.float32).reshape(len(names), *self.grid))
        return maps

    def release(self) -> None:
        self._image = None


def _one_by_one(pixels: Seen) -> list[Seen]:
    return [pixels[i : i + 1] for i in range(len(pixels))] if isinstance(pixels, np.ndarray) else [pixels]


def _encode_new(core: Any, pixels: Seen) -> list[BlipImage]:
    if isinstance(pixels, np.ndarray):
        images: list[BlipImage] = core.encode_images(pixels)
    else:
        images = core.encode_images([pixels.picture], pixels.preprocessing)
    return images


def _bytes_of_image(core: Any) -> int:
    """Of a picture's tokens, and their keys and values for each block that attends to them."""
    blocks = len(range(getattr(core, "cross_first", 0), core.blocks, getattr(core, "cross_step", 1)))
    return int(4 * core.image_tokens * (core.image_width + 2 * core.width * blocks))


def _range_text(blocks: Sequence[int]) -> str:
    """Blocks that follow one another as their first and last."""
    if len(blocks) < 2 or blocks[-1] - blocks[0] == len(blocks) - 1:
        return f"{blocks[0]} to {blocks[-1]}"
    return ", ".join(map(str, blocks))
