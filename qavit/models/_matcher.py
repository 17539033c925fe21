"""Image-text matching: does a text fit a picture, and which patches speak for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional, Union, cast

import numpy as np
import numpy.typing as npt

from .. import _core
from .._base.arguments import is_pixel_values, question_list, read_samples, unique_images
from .._base.types import FloatArray, ImageLike, PixelValues
from .._base.warnings import LowScoreWarning, Note, note_of
from ..checkpoints._weights import release_pages
from ._cross_attending import CrossAttending, GradCAMLook, Tokens
from ._devices import Placement

if TYPE_CHECKING:
    from ..images import Seen


class Matcher(CrossAttending):
    """A text encoder that attends to a picture, with a head that says whether they match.

    Within a call, each different picture goes through the vision half once, whatever the number of questions on it, and
    with others.

    Attributes
    ----------
    max_tokens : int
        A longer text is cut, its closing token kept.
    """

    def _load_core(self, placement: Placement) -> None:
        source = self._source
        config = {"vision": dict(source.vision), "text": dict(source.text or {})}
        self._picture_cache = self._picture_cache.emptied()
        self._core = _core.BlipItm(config, source.weights, placement.precision, device=placement.device)
        release_pages(source.weights)

    def _find_usable(self) -> tuple[int, ...]:
        attends = range(self._core.cross_first, self.num_blocks, self._core.cross_step)
        return tuple(block for block in attends if self._core.queries or block < self.num_blocks - 1)

    def _why_not(self, block: int) -> str:
        if block == self.num_blocks - 1 and not self._core.queries:
            return "is the last, from which only the first token reaches the head, so the map of the words would be zero"
        return super()._why_not(block)

    # ---- maps ----

    def forward_itm(self, samples: Mapping[str, Any], block_num: Optional[int] = None) -> FloatArray:
        """PnP-VQA's GradCAM map of each picture and question of a batch, with LAVIS's numbers.

        With A the cross-attention of block `block_num` and G the gradient of the matching logit with respect to it, a
        token's map is the mean over heads of A max(G, 0) over the patches, and a question's the mean over its words' tokens.
        A question's ``?`` are dropped at both ends. A question without words ("", "?") has its first token's map.
        Equal pictures, and equal questions on them, are computed once; a pair's map does not depend on its batch.
        `block_num` None is `default_block`: 7 of published BLIP models, as in LAVIS. The other parameters, shapes
        and errors are those of :meth:`Model.forward_itm`.

        Notes
        -----
        The map of Tiong et al. 2022 (PnP-VQA, arXiv 2210.08773) as ``pnp_vqa`` of salesforce/LAVIS computes it.
        """
        block = self.check_block(self.default_block if block_num is None else block_num, "block_num")
        image, questions = read_samples(samples)
        pixels = self._pixels(image, "samples['image']")
        if len(pixels) != len(questions):
            raise ValueError(f"samples: {len(pixels)} pictures and {len(questions)} questions; expected one a picture")
        maps = np.empty((len(questions), self.grid[0] * self.grid[1]), np.float32)
        for images, texts, rows, back in self._pairs(pixels, [question.strip("?") for question in questions]):
            tokens = self._tokenize(texts)
            maps[rows] = self._core.gradcam(images, tokens.ids, tokens.mask, block)[0][back]
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
            The first token's map, the mean over the words, then one map a token behind the first: the words', [SEP]'s, and
            zeros where a shorter text is padded to the batch's longest. Of BLIP-2 the mean over the queries, then one map a
            query.
        ndarray of float32, [B, 2]
            Logits: no match, match.
        """
        block = self.check_block(block_num, "block_num")
        asked = question_list(texts, "texts")
        pixels = self._pixels(pixel_values)
        if len(pixels) != len(asked):
            raise ValueError(f"texts: {len(asked)} for {len(pixels)} pictures; expected one a picture")
        found: dict[int, FloatArray] = {}
        logits = np.empty((len(asked), 2), np.float32)
        for images, unique, rows, back in self._pairs(pixels, asked):
            tokens = self._tokenize(unique)
            means, scores, every = self._core.gradcam(images, tokens.ids, tokens.mask, block, True)
            logits[rows] = scores[back]
            stacks = self._token_maps(tokens, means, every)
            found.update((int(row), self._finite(stacks[text])) for row, text in zip(rows, back))
        longest = max(map(len, found.values()))
        maps = [np.zeros((longest, *self.grid), np.float32) for _ in asked]
        for row, stack in found.items():
            maps[row][: len(stack)] = stack.reshape(-1, *self.grid)
        return maps, self._finite(logits)

    def _token_maps(self, tokens: Tokens, means: FloatArray, every: FloatArray) -> list[FloatArray]:
        """A text's maps [n, P], of all texts' means [Q, P] and tokens, one text behind the other."""
        own = np.split(every, np.cumsum(tokens.mask.sum(axis=1))[:-1])
        return [np.concatenate([rows[:1], mean[None], rows[1:]]) for rows, mean in zip(own, means)]

    def _look(self, pixels: Seen, questions: Optional[list[str]]) -> GradCAMLook:
        return MatcherLook(self, pixels, questions or [])

    # ---- scores ----

    def itm(self, image: Union[ImageLike, PixelValues], texts: Union[str, Sequence[str]]) -> tuple[FloatArray, FloatArray]:
        asked = question_list(texts, "texts")
        pixels = self._batch(image, len(asked), "texts")
        logits = np.empty((len(asked), 2), np.float32)
        for images, unique, rows, back in self._pairs(pixels, asked):
            tokens = self._tokenize(unique)
            logits[rows] = self._core.match(images, tokens.ids, tokens.mask)[back]
        self._finite(logits)
        return logits, _match_probability(logits)

    def itc(self, image: Union[ImageLike, PixelValues], texts: Union[str, Sequence[str]]) -> FloatArray:
        if self._core.projection == 0:
            raise ValueError(f"{self.name}: these weights have no contrastive heads (text_proj, vision_proj)")
        tokens = self._tokenize(question_list(texts, "texts"), matching=False)
        text_features = self._core.text_features(tokens.ids, tokens.mask)
        different, index = _different(self._batch(image))
        features = [self._core.image_features(one) for part in self._parts(different) for one in self._encode(part)]
        cosines = np.stack([self._cosines(one, text_features) for one in features])[index]
        several = is_pixel_values(image) and np.ndim(cast(Any, image)) == 4
        return self._finite(cosines if several else cosines[0])

    def _cosines(self, image_features: FloatArray, text_features: FloatArray) -> FloatArray:
        """A picture's with each text."""
        return text_features @ image_features

    # ---- helpers ----

    def _pairs(
        self, pixels: Seen, texts: Sequence[str]
    ) -> Iterator[tuple[list[_core.BlipImage], list[str], npt.NDArray[np.intp], list[int]]]:
        """Pictures with their texts, as many pictures as are encoded together: the different pairs, by their pictures, as
        images and texts; the rows that they are of, and which pair each row asks.

        One picture is that of all texts.
        """
        different, index = _different(pixels)
        if len(pixels) == 1:
            index = np.zeros(len(texts), np.int32)
        by_picture = np.argsort(index, kind="stable")
        first = 0
        for part in self._parts(different):
            encoded = self._encode(part)
            within = index[by_picture] - first
            rows = by_picture[(within >= 0) & (within < len(encoded))]
            place: dict[tuple[int, str], int] = {}
            back = [place.setdefault((int(index[row]) - first, texts[int(row)]), len(place)) for row in rows]
            yield [encoded[number] for number, _ in place], [text for _, text in place], rows, back
            first += len(encoded)

    def _parts(self, different: Seen) -> Iterator[Seen]:
        """As many pictures at a time as are worth encoding together."""
        if not isinstance(different, np.ndarray):
            yield different
            return
        size = self._core.images_at_once
        for first in range(0, len(different), size):
            yield different[first : first + size]


class MatcherLook(GradCAMLook):
    """GradCAM of a :class:`Matcher`: with the probability of a match."""

    _model: Matcher

    def scores(self) -> Optional[FloatArray]:
        logits = next(iter(self._found.values())).logits
        return None if logits is None else _match_probability(logits)

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


def _different(batch: Seen) -> tuple[Seen, npt.NDArray[np.int32]]:
    """The different pictures of a batch, and which of them each row is."""
    return unique_images(batch) if isinstance(batch, np.ndarray) else (batch, np.zeros(1, np.int32))


def _match_probability(logits: FloatArray) -> FloatArray:
    """Softmax over no match, match [Q, 2]: the second."""
    difference = np.clip(logits[:, 0].astype(np.float64) - logits[:, 1], -700.0, 700.0)
    return (1.0 / (1.0 + np.exp(difference))).astype(np.float32)
