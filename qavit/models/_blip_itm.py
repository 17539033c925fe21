"""BLIP image-text matching: does a text fit a picture, and which patches speak for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _core
from .._base.arguments import PNP_VQA_BLOCK, question_list, read_samples, unique_images, whole_number
from .._base.types import FloatArray
from ..checkpoints._weights import NOT_FINITE, check_unchanged, origins, release_pages
from ._devices import Placement, place, same_device
from ._model import LoadedModel

if TYPE_CHECKING:
    from .._result import HeatmapResult
    from ..checkpoints._source import ModelSource
    from ..images import Preprocessing, Seen


class _Tokens(NamedTuple):
    """Texts as the core takes them, and which of their tokens make which word."""

    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.uint8]
    words: list[list[str]]
    word_of: list[list[int]]


class BlipITM(LoadedModel):
    """BLIP image-text matching, with PnP-VQA's GradCAM. Made by :func:`qavit.load`.

    Immutable: one object may be used from many threads at once, and after a fork. It keeps no image between calls; within
    a call, each different picture goes through the vision half once, whatever the number of questions on it.

    Attributes
    ----------
    image_size, patch_size : int
        In pixels.
    grid : tuple of int
        Rows and columns of patches, (gh, gw).
    kind, takes_questions, methods, default_method
        As of :class:`QAViT`: "blip_itm", which takes questions and has maps by "gradcam".
    num_blocks, num_heads : int
        Of the text half, whose cross-attention the maps are read from.
    usable_blocks : tuple of int
        The blocks that have a map: all but the last, from which only the first token reaches the head.
    default_block : int
        7, as in PnP-VQA, or the last usable block of a smaller model.
    preprocessing : Preprocessing
        How a picture becomes pixel values.
    max_tokens : int
        A longer text is cut, its closing token kept.
    """

    def __init__(
        self, source: ModelSource, *, precision: str = "float32", device: Any = "cpu", offload_model: bool = False
    ) -> None:
        from ..images import Preprocessing
        from ..text import Tokenizer

        if source.text is None or source.tokenizer is None:
            raise ValueError(
                f"{source.name}: BLIP needs a tokenizer; give tokenizer= a tokenizer.json or BERT's vocab.txt"
            )
        self._files = origins(source.weights)
        placement = place(device, precision, offload_model)
        self._source = source
        self._core = self._load_core(placement)
        self.name = source.name
        self.precision = precision
        self.device = placement.name
        self.offload_model = bool(offload_model)
        self.image_size: int = self._core.image_size
        self.patch_size: int = self._core.patch_size
        side = self.image_size // self.patch_size
        self.grid: tuple[int, int] = (side, side)
        self.num_blocks: int = self._core.blocks
        self.num_heads: int = self._core.heads
        self.usable_blocks: tuple[int, ...] = tuple(range(self.num_blocks - 1))
        self.kind, self.takes_questions = "blip_itm", True
        self.methods, self.default_method = ("gradcam",), "gradcam"
        self.default_block = min(PNP_VQA_BLOCK, max(0, self.num_blocks - 2))
        self.preprocessing: Preprocessing = Preprocessing.from_dict(source.preprocessing)
        self.max_tokens = min(int(source.questions.get("max_tokens", 35)), self._core.max_tokens)
        self._tokenizer = Tokenizer(source.tokenizer, self._core.vocab_size)
        first = self._tokenizer.id_of("[ENC]")
        if first is None:
            raise ValueError(f"{source.name}: the tokenizer has no [ENC] token, which starts a text to be matched")
        self._first_token = first

    def _load_core(self, placement: Placement) -> _core.BlipItm:
        source = self._source
        config = {"vision": dict(source.vision), "text": dict(source.text or {})}
        core = _core.BlipItm(config, source.weights, placement.precision, device=placement.device)
        release_pages(source.weights)
        return core

    # ---- devices ----

    def to(self, device: Any, *, offload_model: bool | None = None) -> BlipITM:
        """Move the model to another device, in place: see :meth:`QAViT.to`."""
        offload = self.offload_model if offload_model is None else bool(offload_model)
        name = str(device)
        if not same_device(name, self.device) or (offload != self.offload_model and name != "cpu"):
            placement = place(device, self.precision, offload)
            self._core, self.device = self._load_core(placement), placement.name
        self.offload_model = offload
        return self

    def cpu(self) -> BlipITM:
        """As ``to("cpu")``."""
        return self.to("cpu")

    def cuda(self) -> BlipITM:
        """As ``to("cuda")``."""
        return self.to("cuda")

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
        return _Tokens(ids, batch.mask, batch.words, batch.word_of)

    def _encode(self, seen: Seen) -> _core.BlipImage:
        """A batch of one, encoded."""
        if isinstance(seen, np.ndarray):
            return self._core.encode_image(seen[0])
        return self._core.encode_image(seen.picture, seen.preprocessing)

    # ---- maps ----

    def forward_itm(self, samples: Any, block_num: int = PNP_VQA_BLOCK) -> FloatArray:
        """PnP-VQA's GradCAM map of each picture and question of a batch, with LAVIS's numbers.

        With A the cross-attention of block `block_num` and G the gradient of the matching logit with respect to it, a
        token's map is the mean over heads of A max(G, 0) over the patches, and a question's the mean over its words' tokens.
        A question's ``?`` are dropped at both ends. A question without words ("", "?") has its [ENC] token's map.
        Equal pictures, and equal questions on them, are computed once; a pair's map does not depend on its batch.

        Parameters
        ----------
        samples : mapping
            ``image``, float [B, 3, S, S] (NumPy or torch, normalised), and ``text_input``, B questions.
        block_num : int
            One of `usable_blocks`; negative numbers count from the end.

        Returns
        -------
        ndarray of float32, [B, P]
            Not negative, on LAVIS's own scale (a gradient's).

        Raises
        ------
        ValueError
            A shape does not fit, or `block_num` has no map.

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

    def maps_and_scores(
        self, image: Any, questions: str | Sequence[str], block: int | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """:meth:`forward_itm`'s maps for questions about one picture, and how well they match it, in one pass.

        Parameters
        ----------
        image : picture, or float [3, S, S] or [1, 3, S, S] normalised
        questions : str or list of str
            At least one; ``?`` at the ends does not count.
        block : int, optional
            One of `usable_blocks`; None: `default_block`.

        Returns
        -------
        maps : ndarray of float32, [Q, P]
        scores : ndarray of float32, [Q]
            The probability of a match, by the matching head.
        """
        number = self.check_block(self.default_block if block is None else block)
        _, pixels, _ = self._picture(image)
        tokens = self._tokenize([question.strip("?") for question in question_list(questions)])
        maps, logits = self._core.gradcam(self._encode(pixels), tokens.ids, tokens.mask, number)[:2]
        return self._finite(maps), _match_probability(self._finite(logits))

    def gradcam_tokens(
        self, pixel_values: Any, texts: str | Sequence[str], block_num: int = 6
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

    def heatmaps(self, image: Any, questions: str | Sequence[str], block: int | None = None) -> HeatmapResult:
        """Where the picture speaks for each question: GradCAM of the text half's cross-attention.

        Parameters
        ----------
        image : path, PIL image, uint8 [H, W, 3], or float [3, S, S] normalised
            One picture.
        questions : str or list of str
            At least one; ``?`` at the ends does not count. One without words has its [ENC] token's map.
        block : int, optional
            One of `usable_blocks`; None: `default_block`.

        Returns
        -------
        HeatmapResult
            ``maps`` float32 [Q, gh, gw], the values of :meth:`forward_itm`; a map for each word (the mean over its tokens);
            ``block_maps`` for every block, zero for the last.
        """
        from .._result import HeatmapResult
        from ..text import words_with_tokens

        number = self.check_block(self.default_block if block is None else block)
        asked = question_list(questions)
        picture, pixels, region = self._picture(image)
        tokens = self._tokenize([question.strip("?") for question in asked])
        gh, gw = self.grid
        state = self._encode(pixels)
        maps, _, every = self._core.gradcam(state, tokens.ids, tokens.mask, number, True)
        words, word_maps = [], []
        per_question = np.split(self._finite(every), np.cumsum(tokens.mask.sum(axis=1))[:-1])
        for row, names, word_of in zip(per_question, tokens.words, tokens.word_of):
            names, word_of = words_with_tokens(names, word_of)
            stack = [row[[i for i, word in enumerate(word_of) if word == one]].mean(axis=0) for one in range(len(names))]
            words.append(names)
            word_maps.append(np.array(stack, np.float32).reshape(len(names), gh, gw))

        def block_maps() -> FloatArray:
            again = self._encode(pixels)
            every_block = np.zeros((self.num_blocks, len(asked), gh * gw), np.float32)
            for one in self.usable_blocks:
                every_block[one] = self._core.gradcam(again, tokens.ids, tokens.mask, one)[0]
            return every_block.reshape(self.num_blocks, len(asked), gh, gw)

        return HeatmapResult(
            maps=self._finite(maps).reshape(-1, gh, gw),
            questions=asked,
            picture=picture,
            region=region,
            block=number,
            method="gradcam",
            words=words,
            word_maps=word_maps,
            block_maps=block_maps,
        )

    # ---- scores ----

    def itm(self, image: Any, texts: str | Sequence[str]) -> tuple[FloatArray, FloatArray]:
        """Whether texts match a picture, by the matching head.

        Parameters
        ----------
        image : picture, or float [B, 3, S, S] normalised
            One picture for all texts, or one a text.
        texts : str or list of str
            Taken as they are.

        Returns
        -------
        logits : ndarray of float32, [B, 2]
            No match, match.
        probabilities : ndarray of float32, [B]
            Of a match.
        """
        asked = question_list(texts, "texts")
        pixels = self._batch(image, len(asked), "texts")
        logits = np.empty((len(asked), 2), np.float32)
        for state, rows, unique, back in self._by_image(pixels, asked):
            tokens = self._tokenize(unique)
            logits[rows] = self._core.match(state, tokens.ids, tokens.mask)[back]
        self._finite(logits)
        return logits, _match_probability(logits)

    def itc(self, image: Any, texts: str | Sequence[str]) -> FloatArray:
        """How alike pictures and texts are, by the contrastive heads.

        Parameters
        ----------
        image : picture, or float [I, 3, S, S] normalised
        texts : str or list of str
            Taken as they are.

        Returns
        -------
        ndarray of float32, [I, number of texts]
            Cosines.

        Raises
        ------
        ValueError
            The weights have no contrastive heads.
        """
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

    def _finite(self, array: FloatArray) -> FloatArray:
        check_unchanged(self._files)
        if not np.isfinite(array).all():
            raise ValueError(f"{self.name}: the result is not finite: {NOT_FINITE}")
        return array

    def __repr__(self) -> str:
        return (
            f"BlipITM({self.name!r}: {self.num_blocks} text blocks, {self.grid[0]}x{self.grid[1]} patches of "
            f"{self.image_size}x{self.image_size}, {self.precision})"
        )


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
