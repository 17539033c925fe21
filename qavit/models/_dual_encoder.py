"""Dual encoders: pictures and texts embedded in one space, as by CLIP and SigLIP."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np
import numpy.typing as npt

from .._base.arguments import PNP_VQA_BLOCK, finite_numbers, is_pixel_values, question_list, read_samples, unique_images
from .._base.tensors import to_numpy
from .._base.types import Fit, FloatArray, Heads, ImageLike, PixelValues, Precision
from .._base.warnings import LowScoreWarning, Note, QuestionBlindWarning, note_of, warn_of
from ..checkpoints._weights import check_unchanged
from ..heatmaps._distribution import to_distribution
from ..methods._registry import MethodLike, method_of
from ..methods.base import Method
from ._attention_look import AttentionLook
from ._capabilities import Capabilities, Questions
from ._devices import Placement
from ._model import Request
from ._notes import question_notes
from ._question_vit import QAViT
from ._texts import TextHalf, unit

if TYPE_CHECKING:
    from ..checkpoints._source import ModelSource
    from ..images import Seen

#: Cosines no further apart are of equal texts, but for rounding.
SAME_SCORE = 1e-6


class DualEncoder(QAViT):
    """A vision transformer and a text encoder with one space for both: CLIP, SigLIP, ChineseCLIP; a :class:`Model`.

    `kind` is "clip" or "siglip". It loads without a tokenizer; then texts are given as token ids or embeddings.

    Attributes
    ----------
    embedding_dim : int
        E, of pictures' and texts' embeddings.
    logit_scale, logit_bias : float
        A text's logit is logit_scale * cosine + logit_bias.
    max_tokens : int
        A longer text is cut, its closing token kept.
    """

    def __init__(
        self, source: ModelSource, *, precision: Precision = "float32", device: Any = "cpu", offload_model: bool = False
    ) -> None:
        super().__init__(source, precision=precision, device=device, offload_model=offload_model)
        self.kind = "siglip" if source.architecture == "siglip" else "clip"
        self.takes_questions = True
        self.reads |= {"texts"}
        self.max_tokens = self._half.max_tokens
        self.embedding_dim: int = self._half.embedding_dim
        self.logit_scale, self.logit_bias = self._half.logit_scale, self._half.logit_bias
        usual = "legrad" if "legrad" in self.methods else self.default_method
        self.default_method = str(source.defaults.get("method", usual))
        method = method_of(self.default_method, self)
        self.usable_blocks = method.blocks(self)
        self.default_block = method.default(self)[-1]

    def _load_core(self, placement: Placement) -> None:
        super()._load_core(placement)
        source, siglip = self._source, self._source.architecture == "siglip"
        assert source.text is not None
        tokens = int(source.questions["max_tokens"])
        self._half = TextHalf(source.name, source.text, source.weights, source.tokenizer, tokens, siglip, placement)

    encode_questions, answer = Capabilities.encode_questions, Capabilities.answer

    # ---- embeddings ----

    def encode_text(
        self, texts: Union[str, Sequence[str], npt.ArrayLike], templates: Union[str, Sequence[str], None] = None
    ) -> FloatArray:
        check_unchanged(self._files)
        ids = _token_ids(texts)
        if ids is not None:
            if templates is not None:
                raise ValueError("templates: they are for texts, not for token ids")
            return self._half.of_ids(ids)
        asked = question_list(texts, "texts")
        patterns = ["{}"] if templates is None else _patterns(templates)
        entries = self._half.entries([pattern.replace("{}", text) for text in asked for pattern in patterns])
        warn_of(_text_notes(asked, [entries[at] for at in range(0, len(entries), len(patterns))]))
        each = np.array([entry.embedding for entry in entries], np.float32).reshape(len(asked), len(patterns), -1)
        return each[:, 0] if len(patterns) == 1 else self._half.unit(each.mean(axis=1, dtype=np.float64).astype(np.float32))

    def encode_image(self, image: Union[ImageLike, PixelValues], fit: Optional[Fit] = None) -> FloatArray:
        return self._pictures(self._batch(image, fit=fit))

    def similarity(self, image: Union[ImageLike, PixelValues], texts: Any, fit: Optional[Fit] = None) -> FloatArray:
        embeddings = self._embeddings(texts)
        if embeddings is None:
            embeddings = self.encode_text(texts)
        return np.asarray(self.encode_image(image, fit) @ embeddings.T)

    def _pictures(self, pixels: Seen) -> FloatArray:
        """Unit embeddings [B, E]; equal pictures are run once."""
        output = self._image_output()
        if not isinstance(pixels, np.ndarray):
            return unit(self._run(pixels, None, None, [], outputs=(output,))[output], self.name)
        different, index = unique_images(pixels)
        return unit(self._run(different, None, None, [], outputs=(output,))[output], self.name)[index]

    def _image_output(self) -> str:
        return "projected" if self._vit.projection_dim else "pooled"

    def _embeddings(self, questions: Any) -> Optional[FloatArray]:
        """Texts that are given as embeddings, as unit ones; None where they are texts."""
        if isinstance(questions, str) or not is_pixel_values(questions):
            return None
        array = finite_numbers(np.asarray(to_numpy(questions, "questions")), "questions")
        if array.ndim == 1:
            array = array[None]
        if array.ndim != 2 or array.shape[1] != self.embedding_dim or len(array) == 0:
            raise ValueError(
                f"questions: embeddings of shape {list(array.shape)}, expected [Q, {self.embedding_dim}], as encode_text "
                "gives"
            )
        if not array.any(axis=1).all():
            raise ValueError("questions: an embedding is all zero, which points at nothing")
        return unit(array, "questions")

    # ---- maps ----

    def _asks(self, method: Method) -> bool:
        return method.of_text

    def _named(self, questions: Any) -> tuple[Optional[list[str]], Any]:
        embeddings = None if questions is None else self._embeddings(questions)
        if embeddings is not None:
            return [f"embedding {number}" for number in range(len(embeddings))], embeddings
        asked = None if questions is None else question_list(questions)
        return asked, asked

    def _look(self, pixels: Seen, questions: Any) -> DualLook:
        if questions is None:
            return DualLook(self, pixels, None)
        if isinstance(questions, np.ndarray):
            return DualLook(self, pixels, questions)
        check_unchanged(self._files)
        entries = self._half.entries(questions)
        look = DualLook(self, pixels, np.array([entry.embedding for entry in entries], np.float32))
        look.notes = _text_notes(questions, entries)
        look.blank = [not question.strip() for question in questions]
        return look

    def _prepare_question(self, question: str) -> None:
        self._half.entries([question])

    def _questions_at_once(self, request: Request) -> Optional[int]:
        return super()._questions_at_once(request) if not request.method.of_text else 1 if self._compares(request) else None

    @staticmethod
    def _compares(request: Request) -> bool:
        return request.method.compares(request.options)

    def _blind_notes(self, blocks: Iterable[int], method: Method) -> list[Note]:
        if method.of_text:
            return []
        knowing = [name for name in self.methods if method_of(name, self).of_text]
        hint = f"; {', '.join(map(repr, knowing))} know it" if knowing else ""
        return [note_of(QuestionBlindWarning, f"method {method.name!r} knows no text: its map is the same for each{hint}")]

    def extract_attention(
        self,
        image: Union[ImageLike, PixelValues],
        questions: Questions = None,
        blocks: Optional[Iterable[int]] = None,
        heads: Optional[Heads] = "mean",
        method: Optional[MethodLike] = None,
        fit: Optional[Fit] = None,
    ) -> FloatArray:
        chosen = method_of(("class" if questions is None else self.default_method) if method is None else method, self)
        if questions is None and not chosen.of_text:
            return super().extract_attention(image, None, blocks, heads, chosen, fit)
        if heads is not None:
            self._check_heads(heads, chosen)
        numbers = list(chosen.blocks(self)) if blocks is None else self.check_blocks(blocks)
        chosen.check(self, numbers)
        names, given = self._named(questions)
        if names is None:
            raise ValueError(f"questions: method {chosen.name!r} is of a text; give at least one")
        images = self._batch(image, len(names), fit=fit)
        return to_distribution(self._finite_map(self._of_pairs(images, given, chosen, numbers, heads)))

    def forward_itm(self, samples: Mapping[str, Any], block_num: int = PNP_VQA_BLOCK) -> FloatArray:
        image, questions = read_samples(samples)
        block = self.check_block(block_num, "block_num")
        method = method_of(self.default_method, self)
        method.check(self, [block])
        pixels = self._pixels(image, "samples['image']")
        return to_distribution(self._finite_map(self._of_pairs(pixels, questions, method, [block], "mean")[:, 0]))

    def _of_pairs(
        self, images: Seen, questions: Any, method: Method, blocks: Sequence[int], heads: Optional[Heads]
    ) -> FloatArray:
        """The method's numbers [B, blocks, P] of one picture and all questions, or of one question a picture."""
        if len(images) == 1:
            return method.by_block(self._look(images, questions), blocks, heads)
        assert isinstance(images, np.ndarray)
        different, index = unique_images(images)
        found: list[Any] = [None] * len(index)
        for number in range(len(different)):
            rows = np.flatnonzero(index == number)
            own = questions[rows] if isinstance(questions, np.ndarray) else [questions[row] for row in rows]
            values = method.by_block(self._look(different[number : number + 1], own), blocks, heads)
            for row, value in zip(rows, values):
                found[row] = value
        return np.stack(found)

    def _why_no_questions(self) -> str:
        return "it takes texts"

    def __repr__(self) -> str:
        return (
            f"DualEncoder({self.name!r}: {self.kind}, {self.num_blocks} blocks, width {self.hidden_size}, "
            f"{self.grid[0]}x{self.grid[1]} patches of {self._vit.image_size}x{self._vit.image_width}, embeddings of "
            f"{self.embedding_dim}, {self.precision})"
        )


class DualLook(AttentionLook):
    """A picture and texts inside of a :class:`DualEncoder`."""

    _model: DualEncoder

    def __init__(self, model: DualEncoder, pixels: Seen, texts: Optional[FloatArray]) -> None:
        super().__init__(model, pixels, None, None)
        self._texts = texts
        self.blank = [False] * (0 if texts is None else len(texts))

    @property
    def texts(self) -> FloatArray:
        if self._texts is None:
            raise ValueError("questions: this method is of a text; give at least one")
        return self._texts

    @property
    def logit_scale(self) -> float:
        return self._model.logit_scale

    @property
    def logit_bias(self) -> float:
        return self._model.logit_bias

    def empty(self, text: str) -> FloatArray:
        given = self.options.empty
        if given is None and self._model._half.lacks_tokenizer:
            raise ValueError(
                f"empty: this method compares with the text {text!r}, and there is no tokenizer to read it; give empty= its "
                "embedding [1, E], or tokenizer="
            )
        if given is None or isinstance(given, str):
            return self._model._half.embeddings([text if given is None else given])
        embedding = self._model._embeddings(given)
        if embedding is None or len(embedding) != 1:
            raise ValueError(f"empty: expected a text or one embedding [1, {self._model.embedding_dim}]")
        return embedding

    def attention(self, blocks: Sequence[int], class_row: bool = False) -> dict[int, FloatArray]:
        found = super().attention(blocks, class_row)
        return found if self._texts is None else {block: self._for_each(array) for block, array in found.items()}

    def pool_attention(self) -> FloatArray:
        return self._for_each(super().pool_attention())

    def _for_each(self, array: FloatArray) -> FloatArray:
        """The picture's own, once a text; nothing is copied."""
        count = 1 if self._texts is None else len(self._texts)
        return np.broadcast_to(array, (count, *array.shape[1:]))

    def _pass(
        self, taps: Sequence[tuple[int, str]], hidden: Sequence[int] = (), outputs: Sequence[str] = ()
    ) -> dict[str, Any]:
        result = super()._pass(taps, hidden, outputs)
        found = result.get(self._model._image_output())
        if found is not None:
            self.image = unit(found, self._model.name)
        return result

    def _along(self, hidden: Sequence[int]) -> list[str]:
        # States are for gradients, which bring the picture's embedding along.
        return [self._model._image_output()] if self._texts is not None and self.image is None and not hidden else []

    def _cosines(self, texts: FloatArray) -> FloatArray:
        if self.image is None:
            self.image = self._model._pictures(self._pixels)
        return np.asarray(texts @ self.image[0])

    def _as_scores(self, cosines: FloatArray) -> FloatArray:
        if self._model.kind != "siglip":
            return cosines
        logits = self.logit_scale * cosines.astype(np.float64) + self.logit_bias
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), np.float32)

    def scores(self) -> Optional[FloatArray]:
        return None if self._texts is None else self._as_scores(self._cosines(self._texts))

    def score_notes(self) -> list[Note]:
        model = self._model
        if self._texts is None or model._half.lacks_tokenizer:
            return []
        nothing = model._half.embeddings([""])
        bar, cosines = self._cosines(nothing), self._cosines(self._texts)
        said, least = self._as_scores(cosines), float(self._as_scores(bar)[0])
        return [
            note_of(
                LowScoreWarning,
                f"the picture fits this text by {score:.2g}, the empty text by {least:.2g}: the map shows where the model "
                "looks, not that it finds what is asked",
                number,
            )
            for number, (score, cosine, blank) in enumerate(zip(said, cosines, self.blank))
            if cosine < bar[0] - SAME_SCORE and not blank
        ]


def _token_ids(texts: Any) -> Optional[npt.NDArray[np.int64]]:
    """Texts that are given as token ids [Q, M]; None where they are texts."""
    if isinstance(texts, str) or (isinstance(texts, (list, tuple)) and any(isinstance(text, str) for text in texts)):
        return None
    if not hasattr(texts, "shape") and not (isinstance(texts, (list, tuple)) and texts):
        return None
    try:
        array = np.asarray(to_numpy(texts, "texts"))
    except (ValueError, TypeError):
        return None
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(f"texts: an array of {array.dtype} and shape {list(array.shape)}, expected texts, or ids [Q, M]")
    return np.atleast_2d(array).astype(np.int64)


def _patterns(templates: Union[str, Sequence[str]]) -> list[str]:
    patterns = question_list(templates, "templates")
    for pattern in patterns:
        if "{}" not in pattern:
            raise ValueError(f"templates: {pattern!r} has no {{}} where the text goes")
    return patterns


def _text_notes(texts: Sequence[str], entries: Sequence[Any]) -> list[Note]:
    return question_notes(
        texts, [entry.unknown for entry in entries], [entry.cut for entry in entries], [entry.known for entry in entries]
    )
