"""BLIP image-text matching: does a text fit a picture, and which patches speak for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Union

import numpy as np
import numpy.typing as npt

from .. import _core
from .._base.arguments import PNP_VQA_BLOCK, question_list, read_samples, unique_images, whole_number
from .._base.types import FloatArray, Heads, ImageLike, PixelValues, Precision
from .._base.warnings import LowScoreWarning, Note, note_of
from ..checkpoints._weights import check_unchanged, release_pages
from ..text import words_with_tokens
from ._devices import Placement
from ._look import ModelLook
from ._model import Model
from ._notes import question_notes

if TYPE_CHECKING:
    from ..checkpoints._source import ModelSource
    from ..images import Seen
    from ..text import TokenBatch


class _Tokens(NamedTuple):
    """Texts as the core takes them."""

    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.uint8]
    batch: TokenBatch


class BlipITM(Model):
    """BLIP image-text matching, with PnP-VQA's GradCAM: a :class:`Model`.

    Within a call, each different picture goes through the vision half once, whatever the number of questions on it.
    `usable_blocks` are all but the last, from which only the first token reaches the head; `default_block` is 7, as in
    PnP-VQA, or the last usable one of a smaller model.

    Attributes
    ----------
    max_tokens : int
        A longer text is cut, its closing token kept.
    """

    kind = "blip_itm"
    takes_questions = True
    default_method = "gradcam"
    reads = frozenset({"gradcam"})

    def __init__(
        self, source: ModelSource, *, precision: Precision = "float32", device: Any = "cpu", offload_model: bool = False
    ) -> None:
        from ..images import Preprocessing
        from ..text import Tokenizer

        if source.text is None or source.tokenizer is None:
            raise ValueError(f"{source.name}: BLIP needs a tokenizer; give tokenizer= a tokenizer.json or BERT's vocab.txt")
        super().__init__(source, precision, device, offload_model)
        self.image_size, self.patch_size = self._core.image_size, self._core.patch_size
        side = self.image_size // self.patch_size
        self.grid = (side, side)
        self.num_blocks, self.num_heads = self._core.blocks, self._core.heads
        self.usable_blocks = tuple(range(self.num_blocks - 1))
        self.default_block = min(PNP_VQA_BLOCK, max(0, self.num_blocks - 2))
        self.preprocessing = Preprocessing.from_dict(source.preprocessing)
        self.max_tokens = min(int(source.questions.get("max_tokens", 35)), self._core.max_tokens)
        self._tokenizer = Tokenizer(source.tokenizer, self._core.vocab_size)
        first = self._tokenizer.id_of("[ENC]")
        if first is None:
            raise ValueError(f"{source.name}: the tokenizer has no [ENC] token, which starts a text to be matched")
        self._first_token = first

    def _load_core(self, placement: Placement) -> None:
        source = self._source
        config = {"vision": dict(source.vision), "text": dict(source.text or {})}
        self._core = _core.BlipItm(config, source.weights, placement.precision, device=placement.device)
        release_pages(source.weights)

    # ---- arguments ----

    def check_block(self, block: int, argument: str = "block") -> int:
        """`block` as a number from 0, counting negative ones from the end.

        Raises
        ------
        ValueError
            There is no such block, or its map would be zero everywhere: the last block's. The message names the usable
            ones.
        """
        block = whole_number(block, argument)
        usable = f"blocks 0 to {self.num_blocks - 2} can be used" if self.num_blocks > 1 else "this model has none to use"
        number = block + self.num_blocks if block < 0 else block
        if not 0 <= number < self.num_blocks:
            raise ValueError(f"{argument}: block {block} does not exist; {usable}")
        if number == self.num_blocks - 1:
            raise ValueError(
                f"{argument}: block {number} is the last, from which only the first token reaches the head, so the map of "
                f"the words would be zero; {usable}"
            )
        return number

    def _tokenize(self, texts: Sequence[str], matching: bool = True) -> _Tokens:
        """Ids from [ENC] (matching) or [CLS] on, cut together with their mask."""
        check_unchanged(self._files)
        batch = self._tokenizer.encode(list(texts), self.max_tokens)
        ids = batch.ids.copy()
        if matching:
            ids[:, 0] = self._first_token
        return _Tokens(ids, batch.mask, batch)

    def _encode(self, seen: Seen) -> _core.BlipImage:
        """A batch of one, encoded."""
        if isinstance(seen, np.ndarray):
            return self._core.encode_image(seen[0])
        return self._core.encode_image(seen.picture, seen.preprocessing)

    # ---- maps ----

    def forward_itm(self, samples: Mapping[str, Any], block_num: int = PNP_VQA_BLOCK) -> FloatArray:
        """PnP-VQA's GradCAM map of each picture and question of a batch, with LAVIS's numbers.

        With A the cross-attention of block `block_num` and G the gradient of the matching logit with respect to it, a
        token's map is the mean over heads of A max(G, 0) over the patches, and a question's the mean over its words' tokens.
        A question's ``?`` are dropped at both ends. A question without words ("", "?") has its [ENC] token's map.
        Equal pictures, and equal questions on them, are computed once; a pair's map does not depend on its batch.
        Parameters, shapes and errors are those of :meth:`Model.forward_itm`.

        Notes
        -----
        The map of Tiong et al. 2022 (PnP-VQA, arXiv 2210.08773) as ``pnp_vqa`` of salesforce/LAVIS computes it.
        """
        block = self.check_block(block_num, "block_num")
        image, questions = read_samples(samples)
        pixels = self._pixels(image, "samples['image']")
        if len(pixels) != len(questions):
            raise ValueError(f"samples: {len(pixels)} pictures and {len(questions)} questions; expected one a picture")
        maps = np.empty((len(questions), self.grid[0] * self.grid[1]), np.float32)
        for state, rows, texts, back in self._by_image(pixels, [question.strip("?") for question in questions]):
            tokens = self._tokenize(texts)
            maps[rows] = self._core.gradcam(state, tokens.ids, tokens.mask, block)[0][back]
        return self._finite(maps)

    def gradcam_tokens(
        self, pixel_values: PixelValues, texts: Union[str, Sequence[str]], block_num: int = 6
    ) -> tuple[list[FloatArray], FloatArray]:
        """The map of every token, as LAVIS's ``compute_gradcam`` lists them.

        Parameters
        ----------
        pixel_values : float [B, 3, S, S]
            NumPy or torch, normalised.
        texts : str or list of str
            One a picture, taken as they are (nothing is stripped).
        block_num : int
            One of `usable_blocks`.

        Returns
        -------
        list of B ndarrays of float32, [2 + tokens, gh, gw]
            [ENC]'s map, the mean over the words, then one map a token behind [ENC]: the words', [SEP]'s, and zeros where a
            shorter text is padded to the batch's longest.
        ndarray of float32, [B, 2]
            Logits: no match, match.
        """
        block = self.check_block(block_num, "block_num")
        asked = question_list(texts, "texts")
        pixels = self._pixels(pixel_values)
        if len(pixels) != len(asked):
            raise ValueError(f"texts: {len(asked)} for {len(pixels)} pictures; expected one a picture")
        width = self._tokenize(asked).ids.shape[1]
        gh, gw = self.grid
        maps: list[FloatArray] = [np.zeros((width + 1, gh, gw), np.float32) for _ in asked]
        logits = np.empty((len(asked), 2), np.float32)
        for state, rows, unique, back in self._by_image(pixels, asked):
            tokens = self._tokenize(unique)
            means, scores, every = self._core.gradcam(state, tokens.ids, tokens.mask, block, True)
            logits[rows] = scores[back]
            per_text = np.split(every, np.cumsum(tokens.mask.sum(axis=1))[:-1])
            for row, text in zip(rows, back):
                flat = maps[row].reshape(width + 1, -1)
                flat[0] = per_text[text][0]
                flat[1] = means[text]
                flat[2 : 1 + len(per_text[text])] = per_text[text][1:]
        return [self._finite(stack) for stack in maps], self._finite(logits)

    def _look(self, pixels: Seen, questions: Optional[list[str]]) -> GradCAMLook:
        return GradCAMLook(self, pixels, questions or [])

    # ---- scores ----

    def itm(self, image: Union[ImageLike, PixelValues], texts: Union[str, Sequence[str]]) -> tuple[FloatArray, FloatArray]:
        asked = question_list(texts, "texts")
        pixels = self._batch(image, len(asked), "texts")
        logits = np.empty((len(asked), 2), np.float32)
        for state, rows, unique, back in self._by_image(pixels, asked):
            tokens = self._tokenize(unique)
            logits[rows] = self._core.match(state, tokens.ids, tokens.mask)[back]
        self._finite(logits)
        return logits, _match_probability(logits)

    def itc(self, image: Union[ImageLike, PixelValues], texts: Union[str, Sequence[str]]) -> FloatArray:
        if self._core.projection == 0:
            raise ValueError(f"{self.name}: these weights have no contrastive heads (text_proj, vision_proj)")
        tokens = self._tokenize(question_list(texts, "texts"), matching=False)
        text_features = self._core.text_features(tokens.ids, tokens.mask)
        different, index = _different(self._batch(image))
        features = [self._core.image_features(self._encode(one)) for one in different]
        return self._finite((np.stack(features) @ text_features.T)[index])

    # ---- helpers ----

    def _by_image(
        self, pixels: Seen, texts: Sequence[str]
    ) -> Iterator[tuple[_core.BlipImage, npt.NDArray[np.intp], list[str], list[int]]]:
        """For each different picture: it encoded, its rows, its different texts, and which of them each row asks.

        One picture is that of all texts.
        """
        different, index = _different(pixels)
        if len(pixels) == 1:
            index = np.zeros(len(texts), np.int32)
        for number, image in enumerate(different):
            rows = np.flatnonzero(index == number)
            place: dict[str, int] = {}
            back = [place.setdefault(texts[int(row)], len(place)) for row in rows]
            yield self._encode(image), rows, list(place), back

    def __repr__(self) -> str:
        return (
            f"BlipITM({self.name!r}: {self.num_blocks} text blocks, {self.grid[0]}x{self.grid[1]} patches of "
            f"{self.image_size}x{self.image_size}, {self.precision})"
        )


class GradCAMLook(ModelLook):
    """GradCAM of a :class:`BlipITM` for one picture and its questions."""

    question_mask = None

    def __init__(self, model: BlipITM, pixels: Seen, questions: list[str]) -> None:
        self._model, self._pixels = model, pixels
        self._tokens = model._tokenize([question.strip("?") for question in questions])
        batch = self._tokens.batch
        # A text without words is asked on purpose: it has its [ENC] token's map.
        known = [known or not words for known, words in zip(batch.known, batch.words)]
        self.notes = question_notes(questions, batch.unknown, batch.cut, known)
        self._words = [words_with_tokens(*parts) for parts in zip(batch.words, batch.word_of)]
        self.words = [names for names, _ in self._words]
        self._image: Any = None
        self._found: dict[int, tuple[FloatArray, FloatArray, FloatArray]] = {}

    @property
    def grid(self) -> tuple[int, int]:
        return self._model.grid

    def attention(self, blocks: Sequence[int], class_row: bool = False) -> dict[int, FloatArray]:
        raise TypeError("attention: this model has maps by 'gradcam' alone")

    def question_tokens(self, block: int) -> int:
        return 0

    def gradcam(self, blocks: Sequence[int]) -> dict[int, FloatArray]:
        return {block: self._of(block)[0] for block in blocks}

    def _of(self, block: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """A block's maps [Q, P], logits [Q, 2], and every token's map, texts one behind the other."""
        if block not in self._found:
            model, tokens = self._model, self._tokens
            if self._image is None:
                self._image = model._encode(self._pixels)
            maps, logits, every = model._core.gradcam(self._image, tokens.ids, tokens.mask, block, True)
            self._found[block] = model._finite(maps), model._finite(logits), model._finite(every)
        return self._found[block]

    def scores(self) -> Optional[FloatArray]:
        _, logits, _ = next(iter(self._found.values()))
        return _match_probability(logits)

    def score_notes(self) -> list[Note]:
        scores = self.scores()
        if scores is None or self._image is None:
            return []
        empty = self._model._tokenize([""])
        logits = self._model._finite(self._model._core.match(self._image, empty.ids, empty.mask))
        bar = float(_match_probability(logits)[0])
        return [
            note_of(
                LowScoreWarning,
                f"the picture matches this text with probability {score:.2g}, no text at all with {bar:.2g}: the map shows "
                "where the model looks, not that it finds what is asked",
                number,
            )
            for number, (score, words) in enumerate(zip(scores, self.words or []))
            if words and score < bar
        ]

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


def _different(batch: Seen) -> tuple[list[Seen], npt.NDArray[np.int32]]:
    """The different pictures of a batch, each a batch of one, and which of them each row is."""
    if not isinstance(batch, np.ndarray):
        return [batch], np.zeros(1, np.int32)
    images, index = unique_images(batch)
    return [images[i : i + 1] for i in range(len(images))], index


def _match_probability(logits: FloatArray) -> FloatArray:
    """Softmax over no match, match [Q, 2]: the second."""
    difference = np.clip(logits[:, 0].astype(np.float64) - logits[:, 1], -700.0, 700.0)
    return (1.0 / (1.0 + np.exp(difference))).astype(np.float32)
