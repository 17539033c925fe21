"""Loaded models: what a picture and questions go into, and maps come out of."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import numpy.typing as npt

from .. import _core
from .._base.arguments import PNP_VQA_BLOCK, question_list, read_samples, unique_images, whole_number, whole_numbers
from .._base.tensors import to_numpy
from .._base.types import FloatArray
from .._base.warnings import QuestionBlindWarning, UnknownWordsWarning
from ..checkpoints._weights import NOT_FINITE, check_unchanged, origins, release_pages
from ._answer_head import AnswerHead
from ._devices import Placement, place, same_device
from ._model import LoadedModel
from ._outputs import BlockAttentions, EncodedQuestions, VisionOutput

if TYPE_CHECKING:
    from .._result import HeatmapResult
    from ..checkpoints._source import ModelSource
    from ..images import Preprocessing, Seen

Method = Union[str, Callable[[FloatArray], Any]]
Heads = Union[str, int, None]
TEXT_ENCODERS = {"t5": "T5Encoder", "bert": "BertEncoder", "roberta": "BertEncoder", "clip_text_model": "ClipTextEncoder"}
CACHED_QUESTIONS = 4096


class QAViT(LoadedModel):
    """A vision transformer and, where it takes questions, its text encoder and tokenizer.

    Made by :func:`load`. Immutable: one object may be used from many threads at once, and after a fork.

    Attributes
    ----------
    image_size, patch_size, num_blocks, num_heads, hidden_size, instruction_dim : int
        Sizes; `instruction_dim` is 0 for plain CLIP.
    grid : tuple of int
        Rows and columns of patches, (gh, gw).
    kind : str
        "qavit", or "clip" where no block attends to a question.
    takes_questions : bool
    methods : tuple of str
        What ``heatmaps(method=)`` takes by name.
    default_method : str
    integrated : tuple of int
        The blocks that attend to the question.
    integration_point : str or None
        "all", "early", "late", ... as the model's configuration names it.
    first_question_aware_block : int or None
        The first block whose class token has seen the question.
    default_block : int
        What ``heatmaps(block=None)`` uses.
    answer_names : list of str or None
        What :meth:`answer` chooses from.
    """

    def __init__(
        self, source: ModelSource, *, precision: str = "float32", device: Any = "cpu", offload_model: bool = False
    ) -> None:
        from ..checkpoints.towers.question_blocks import integrated_blocks
        from ..images import Preprocessing

        vision = dict(source.vision)
        point = vision.get("integration_point")
        if point is not None:
            vision["integrated"] = integrated_blocks(point, int(vision["num_hidden_layers"]))
        self._files = origins(source.weights)
        placement = place(device, precision, offload_model)
        self._source, self._vision = source, vision
        self._vit = _core.Vit(vision, source.weights, placement.precision, device=placement.device)
        release_pages(source.weights)
        self._text: Any = None
        self._tokenizer: Any = None
        self._cache: Any = None
        self.name = source.name
        self.precision = precision
        self.device = placement.name
        self.offload_model = bool(offload_model)
        self.image_size: int = self._vit.image_size
        self.patch_size: int = self._vit.patch_size
        self.num_blocks: int = self._vit.blocks
        self.num_heads: int = self._vit.heads
        self.hidden_size: int = self._vit.hidden_size
        self.instruction_dim: int = self._vit.instruction_dim
        self.integrated: tuple[int, ...] = self._vit.integrated
        self.integration_point: str | None = point
        side = self.image_size // self.patch_size
        self.grid: tuple[int, int] = (side, side)
        self.preprocessing: Preprocessing = Preprocessing.from_dict(source.preprocessing)
        self.max_words = int(source.questions.get("max_words", 50))
        self.max_tokens = int(source.questions.get("max_tokens", 30))
        self.first_question_aware_block: int | None = None
        if self.integrated:
            self._load_text(source, placement)
            aware = self.integrated[0] + 1
            self.first_question_aware_block = aware if aware < self.num_blocks else None
        self.kind = "qavit" if self.integrated else "clip"
        self.takes_questions = bool(self.integrated)
        self.methods = ("class", "question") if self.integrated else ("class",)
        self.default_block = self._choose_block(source.defaults.get("block"))
        self.default_method = str(source.defaults.get("method", "class"))
        self.answer_names: list[str] | None = None
        if source.answers:
            self._answer_head = AnswerHead(source, self.hidden_size)
            self.answer_names = self._answer_head.answer_names

    # ---- construction ----

    def _load_text(self, source: ModelSource, placement: Placement) -> None:
        from ..text import QuestionCache, Tokenizer

        if source.text is None or source.tokenizer is None:
            raise ValueError(
                f"{source.name}: blocks {list(self.integrated)} take a question, so the model needs a text encoder and a "
                "tokenizer; give text= a folder"
            )
        kind = str(source.text.get("model_type", ""))
        if kind not in TEXT_ENCODERS:
            raise ValueError(f"text encoder of type {kind!r}; expected one of {sorted(TEXT_ENCODERS)}")
        self._text = self._text_encoder(placement)
        release_pages(source.weights)
        if self._text.width != self.instruction_dim:
            raise ValueError(
                f"the text encoder is {self._text.width} wide, but the vision model takes questions of width "
                f"{self.instruction_dim}"
            )
        if self._text.max_tokens:
            self.max_tokens = min(self.max_tokens, self._text.max_tokens)
        self._tokenizer = Tokenizer(source.tokenizer, self._text.vocab_size)
        self._cache = QuestionCache(CACHED_QUESTIONS)

    def _text_encoder(self, placement: Placement) -> Any:
        text = self._source.text or {}
        encoder = getattr(_core, TEXT_ENCODERS[str(text.get("model_type", ""))])
        return encoder(text, self._source.weights, placement.precision, device=placement.device)

    # ---- devices ----

    def to(self, device: Any, *, offload_model: bool | None = None) -> QAViT:
        """Move the model to another device, in place.

        The weights are read again from where they were loaded from. Calls that run meanwhile end where they began.

        Parameters
        ----------
        device : {"cpu", "cuda", "cuda:N"} or torch.device
        offload_model : bool, optional
            As for :func:`load`; None: as it is.

        Returns
        -------
        QAViT
            The model itself.

        Raises
        ------
        ValueError, RuntimeError
            There is no such device; the message says what is missing.
        """
        offload = self.offload_model if offload_model is None else bool(offload_model)
        name = str(device)
        if same_device(name, self.device) and (offload == self.offload_model or name == "cpu"):
            self.offload_model = offload
            return self
        placement = place(device, self.precision, offload)
        vit = _core.Vit(self._vision, self._source.weights, placement.precision, device=placement.device)
        text = self._text_encoder(placement) if self._text is not None else None
        release_pages(self._source.weights)
        self._vit, self._text, self.device, self.offload_model = vit, text, placement.name, offload
        return self

    def cpu(self) -> QAViT:
        """As ``to("cpu")``."""
        return self.to("cpu")

    def cuda(self) -> QAViT:
        """As ``to("cuda")``."""
        return self.to("cuda")

    def _choose_block(self, configured: Any) -> int:
        """A block whose class token has seen the question for a while: three quarters up; for plain CLIP the last."""
        if configured is not None:
            return self.check_block(int(configured), "defaults.block")
        if self.first_question_aware_block is None:
            return self.num_blocks - 1
        return max(self.first_question_aware_block, min(self.num_blocks - 1, (3 * self.num_blocks) // 4))

    def check_block(self, block: int, argument: str = "block") -> int:
        """`block` as a number from 0, counting negative ones from the end; ValueError when there is no such block."""
        block = whole_number(block, argument)
        number = block + self.num_blocks if block < 0 else block
        if not 0 <= number < self.num_blocks:
            raise ValueError(f"{argument}: block {block} does not exist; this model has blocks 0 to {self.num_blocks - 1}")
        return number

    def check_blocks(self, blocks: Iterable[int]) -> list[int]:
        """Several blocks as numbers from 0: see :meth:`check_block`."""
        numbers = [self.check_block(block, "blocks") for block in whole_numbers(blocks, "blocks")]
        if not numbers:
            raise ValueError("blocks: expected at least one block, got none")
        return numbers

    # ---- questions ----

    def encode_questions(self, questions: str | Sequence[str]) -> EncodedQuestions:
        """Encode questions for the vision model.

        A question is lower-cased, freed of ``. ! " ( ) * # : ; ~``, cut to 50 words and tokenized to at most 30 tokens,
        as amazon-science/QA-ViT does. Encoded questions are remembered (the last 4096).

        Parameters
        ----------
        questions : str or list of str
            At least one; none may be empty.

        Returns
        -------
        EncodedQuestions
            states float32 [B, M, Dt] and mask uint8 [B, M]; M is the longest question's length.
        """
        states, mask, _ = self._encode(question_list(questions))
        return EncodedQuestions(states, mask)

    def _encode(self, questions: list[str]) -> tuple[FloatArray, npt.NDArray[np.uint8], list[Any]]:
        """States, mask, and each question's words with the tokens that make them."""
        if self._text is None:
            raise ValueError("this model takes no questions: none of its blocks has instruct weights (plain CLIP)")
        from ..text import clean_question, words_with_tokens

        cleaned = [clean_question(question, self.max_words) for question in questions]
        for question, clean in zip(questions, cleaned):
            if not clean.strip():
                raise ValueError(f"questions: {question!r} has no words")
        # One look-up each: another thread's questions may push an entry out between two.
        entries = {clean: self._cache.get(clean) for clean in cleaned}
        missing = [clean for clean, entry in entries.items() if entry is None]
        if missing:
            check_unchanged(self._files)
            batch = self._tokenizer.encode(missing, self.max_tokens)
            if int(batch.ids.max(initial=0)) >= self._text.vocab_size:
                raise ValueError(
                    f"the tokenizer gives id {int(batch.ids.max())}, but the text encoder knows {self._text.vocab_size}: "
                    "this is another model's tokenizer"
                )
            lengths = batch.mask.sum(axis=1)
            for length in np.unique(lengths):
                # Without padding: to the last bit, a question's states do not depend on what it is asked along with.
                rows = np.flatnonzero(lengths == length)
                states = self._text.encode(batch.ids[rows, :length])
                check_unchanged(self._files)
                if not np.isfinite(states).all():
                    raise ValueError(f"{self.name}: a question's states are not finite: {NOT_FINITE}")
                for row, own in zip(rows, states):
                    words = words_with_tokens(batch.words[row], batch.word_of[row])
                    entry = (own.copy(), *words, batch.known[row])
                    entry[0].setflags(write=False)
                    self._cache.put(missing[row], entry)
                    entries[missing[row]] = entry
        found = [entries[clean] for clean in cleaned]
        for question, entry in zip(questions, found):
            if not entry[3]:
                warnings.warn(
                    f"the model knows no word of {question!r}: its map says nothing about the question",
                    UnknownWordsWarning, stacklevel=3,
                )  # fmt: skip
        longest = max(len(entry[0]) for entry in found)
        all_states = np.zeros((len(found), longest, self.instruction_dim), np.float32)
        mask = np.zeros((len(found), longest), np.uint8)
        for i, entry in enumerate(found):
            all_states[i, : len(entry[0])] = entry[0]
            mask[i, : len(entry[0])] = 1
        return all_states, mask, [(entry[1], entry[2]) for entry in found]

    # ---- the vision model ----

    def vision(
        self,
        pixel_values: Any,
        instruct_states: Any = None,
        instruct_mask: Any = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        blocks: Iterable[int] | None = None,
    ) -> VisionOutput:
        """Run the vision model.

        Parameters
        ----------
        pixel_values : array-like, [B, 3, S, S] or [3, S, S]
            Normalised pictures, NumPy or torch.
        instruct_states : EncodedQuestions or array-like, [B, M, Dt], optional
            One question a picture, from :meth:`encode_questions`. Needed as soon as an integrated block is.
        instruct_mask : array-like, [B, M], optional
            1 for tokens that count; padding never does. EncodedQuestions brings its own.
        output_attentions, output_hidden_states : bool
            Whether to return them.
        blocks : iterable of int, optional
            Return the attention of these blocks only, and compute no further than the last of them needs.

        Returns
        -------
        VisionOutput
            With `blocks`, only attentions; else also last_hidden_state and pooler_output.
        """
        images = self._pixels(pixel_values)
        states, mask = self._instruct(instruct_states, instruct_mask, len(images))
        wanted = None if blocks is None else self.check_blocks(blocks)
        attention = [(block, "raw") for block in (wanted if wanted is not None else range(self.num_blocks))]
        if wanted is None and not output_attentions:
            attention = []
        attention = sorted(set(attention))
        hidden = list(range(self.num_blocks + 1)) if output_hidden_states else []
        result = self._run(images, states, mask, attention, hidden, () if wanted is not None else ("last", "pooled"))
        return VisionOutput(
            result.get("last"),
            result.get("pooled"),
            BlockAttentions(result["attentions"], self.num_blocks) if output_attentions or wanted is not None else None,
            tuple(result["hidden"][i] for i in hidden) if output_hidden_states else None,
        )

    def _instruct(
        self, states: Any, mask: Any, count: int
    ) -> tuple[FloatArray | None, npt.NDArray[np.uint8] | None]:
        if states is None:
            return None, None
        if isinstance(states, tuple) and len(states) == 2:
            states, own_mask = states
            mask = own_mask if mask is None else mask
        with np.errstate(over="ignore"):
            states = to_numpy(states, "instruct_states").astype(np.float32, copy=False)
        if states.ndim != 3 or states.shape[2] != self.instruction_dim or states.shape[1] == 0:
            raise ValueError(
                f"instruct_states: shape {list(states.shape)}, expected [B, M, {self.instruction_dim}] with M at least 1"
            )
        if states.shape[0] != count:
            raise ValueError(f"instruct_states: {states.shape[0]} questions for {count} pictures; give one a picture")
        if mask is None:
            full = np.ones(states.shape[:2], np.uint8)
            return states, full
        mask = (to_numpy(mask, "instruct_mask") != 0).astype(np.uint8)
        if mask.shape != states.shape[:2]:
            raise ValueError(f"instruct_mask: shape {list(mask.shape)}, expected {list(states.shape[:2])}")
        if not mask.any(axis=1).all():
            raise ValueError("instruct_mask: a question has no token that counts")
        return states, mask

    def _run(
        self,
        images: Seen,
        states: FloatArray | None,
        mask: npt.NDArray[np.uint8] | None,
        attention: Sequence[tuple[int, str]],
        hidden: Sequence[int] = (),
        outputs: Sequence[str] = (),
        pair_image: npt.NDArray[np.int32] | None = None,
    ) -> dict[str, Any]:
        """One row a pair, in the order given; pairs of equal pictures share the work before the question."""
        check_unchanged(self._files)
        wanted: dict[str, Any] = {"attention": attention, "hidden": hidden, "outputs": outputs}
        given: Any = images
        if not isinstance(images, np.ndarray):
            given, wanted["preprocessing"] = [images.picture], images.preprocessing
        if states is None or mask is None:
            result: dict[str, Any] = self._vit.forward(given, **wanted)
            self._check_result(result)
            return result
        if pair_image is None:
            given, pair_image = unique_images(given)
        if states.size and not np.isfinite(states).all():
            raise ValueError("instruct_states: NaN or infinity")
        # The core wants tokens that count in front, and pairs in the order of their images.
        tokens = np.argsort(mask == 0, axis=1, kind="stable")
        scattered = not (mask[:, :-1] >= mask[:, 1:]).all()
        if scattered:
            states = np.take_along_axis(states, tokens[:, :, None], axis=1)
        order = np.argsort(pair_image, kind="stable")
        back = np.argsort(order, kind="stable")
        lengths = mask.sum(axis=1, dtype=np.int32)
        in_order = bool((order == back).all() and (np.diff(order) == 1).all())
        result = self._vit.forward(
            given,
            pair_image[order] if not in_order else pair_image,
            states[order] if not in_order else states,
            lengths[order] if not in_order else lengths,
            **wanted,
        )
        self._check_result(result)
        first = self.integrated[0] if self.integrated else self.num_blocks

        def rows(array: FloatArray, question_entered: bool) -> FloatArray:
            if not question_entered:
                return array[pair_image] if len(array) != len(back) or not in_order else array
            return array if in_order else array[back]

        for block, array in result["attentions"].items():
            array = rows(array, block >= first)
            if scattered and block in self.integrated:
                array[..., : mask.shape[1]] = np.take_along_axis(
                    array[..., : mask.shape[1]], np.argsort(tokens, axis=1)[:, None, None, :], axis=-1
                )
            result["attentions"][block] = array
        for level, array in result["hidden"].items():
            result["hidden"][level] = rows(array, level > first)
        for name in outputs:
            result[name] = rows(result[name], self.num_blocks > first)
        return result

    def _check_result(self, result: dict[str, Any]) -> None:
        """Raise where a forward pass met NaN or infinity: they spread to all that is computed from them.

        And where the weights changed under it.
        """
        check_unchanged(self._files)
        parts = [array for name, array in result.items() if name not in ("attentions", "hidden")]
        parts += result["hidden"].values()
        # A row of probabilities is NaN in every column or in none.
        parts += [attention[..., 0] for attention in result["attentions"].values()]
        if not all(np.isfinite(part).all() for part in parts):
            raise ValueError(f"{self.name}: the result is not finite: {NOT_FINITE}")

    # ---- maps ----

    def heatmaps(
        self,
        image: Any,
        questions: str | Sequence[str] | None = None,
        block: int | None = None,
        method: Method | None = None,
        heads: Heads = "mean",
    ) -> HeatmapResult:
        """Where the model looks for each question.

        Parameters
        ----------
        image : path, PIL image, uint8 [H, W, 3], or float [3, S, S] normalised
            One picture.
        questions : str or list of str, optional
            None for plain CLIP only.
        block : int, optional
            Whose attention; None chooses a block that knows the question well (see `default_block`).
        method : {"class", "question"} or callable, optional
            "class": what the class token attends to; "question": how much each patch attends to the question; a callable
            takes the raw attention [Q, h, T, M + T] and returns [Q, P] or [Q, gh, gw]. None: the model's default.
        heads : {"mean", "max"} or int
            How heads become one map.

        Returns
        -------
        HeatmapResult
            ``maps`` float32 [Q, gh, gw], each summing to 1.

        Warns
        -----
        QuestionBlindWarning
            The map cannot know the question.
        """
        from .._result import HeatmapResult

        picture, pixels, region = self._picture(image)
        asked = None if questions is None else question_list(questions)
        states = mask = None
        words: list[Any] = []
        if asked is not None:
            states, mask, words = self._encode(asked)
        elif self.integrated:
            raise ValueError("questions: this model takes questions; give at least one")
        if heads is None:
            raise ValueError("heads: None is for extract_attention, which keeps all; expected 'mean', 'max' or a number")
        number = self.default_block if block is None else self.check_block(block)
        chosen: Method = self.default_method if method is None else method
        self._warn_if_blind(number, chosen, asked, stacklevel=3)
        pairs = None if states is None else np.zeros(len(states), np.int32)
        answering = self.answer_names is not None and asked is not None
        taps = self._taps([number], chosen)
        run = self._run(pixels, states, mask, taps, outputs=("pooled",) if answering else (), pair_image=pairs)
        maps = self._read_maps(run["attentions"], mask, [number], chosen, heads)
        gh, gw = self.grid
        word_lists = [list(entry[0]) for entry in words] if words else None

        def word_maps() -> list[FloatArray]:
            return self._word_maps(pixels, states, mask, words, number, heads, pairs)

        def block_maps() -> FloatArray:
            blocks = list(range(self.num_blocks))
            if chosen == "question":
                blocks = [i for i in blocks if i in self.integrated]
            every = self._maps(pixels, states, mask, blocks, chosen, heads, pairs)
            full = np.zeros((self.num_blocks, every.shape[0], gh, gw), np.float32)
            full[blocks] = every.transpose(1, 0, 2).reshape(len(blocks), -1, gh, gw)
            return full

        return HeatmapResult(
            maps=maps[:, 0].reshape(-1, gh, gw),
            questions=asked if asked is not None else [""],
            picture=picture,
            region=region,
            block=number,
            method=chosen if isinstance(chosen, str) else getattr(chosen, "__name__", "custom"),
            words=word_lists,
            word_maps=word_maps if words else None,
            answers=self._answer_head.rank(run["pooled"]) if answering else None,
            block_maps=block_maps,
        )

    def forward_itm(self, samples: Any, block_num: int = PNP_VQA_BLOCK) -> FloatArray:
        """The map of each picture and question of a batch, as PnP-VQA's image-question matching call gives it.

        Parameters
        ----------
        samples : mapping
            ``image`` [B, 3, S, S] (NumPy or torch, normalised) and ``text_input``, B questions.
        block_num : int
            Whose attention.

        Returns
        -------
        ndarray of float32, [B, P]
            The class token's attention over the patches, mean over heads; each row sums to 1.
        """
        image, questions = read_samples(samples)
        block_num = self.check_block(block_num, "block_num")
        return self.extract_attention(image, questions, blocks=(block_num,), _stacklevel=4)[:, 0]

    def extract_attention(
        self,
        image: Any,
        questions: str | Sequence[str] | None = None,
        blocks: Iterable[int] = (3, 7, 11),
        heads: Heads = "mean",
        method: Method = "class",
        *,
        _stacklevel: int = 3,
    ) -> FloatArray:
        """Maps of several blocks.

        Parameters
        ----------
        image : picture, or array-like [B, 3, S, S]
            One picture for all questions, or one a question.
        questions : str or list of str, optional
            None for plain CLIP only.
        blocks : iterable of int
            Which blocks, in the order wanted.
        heads : {"mean", "max"}, int or None
            None keeps the head axis.
        method : {"class", "question"} or callable
            As in :meth:`heatmaps`.

        Returns
        -------
        ndarray of float32, [B, len(blocks), P] or [B, len(blocks), h, P]
            Each map sums to 1.
        """
        numbers = self.check_blocks(blocks)
        asked = None if questions is None else question_list(questions)
        images = self._batch(image, None if asked is None else len(asked))
        states = mask = pair_image = None
        if asked is not None:
            states, mask, _ = self._encode(asked)
            if len(images) == 1:
                pair_image = np.zeros(len(asked), np.int32)
        elif self.integrated and max(numbers) >= self.integrated[0]:
            raise ValueError("questions: the asked blocks take questions; give one a picture")
        for number in numbers:
            self._warn_if_blind(number, method, asked, stacklevel=_stacklevel)
        return self._maps(images, states, mask, numbers, method, heads, pair_image)

    def answer(self, image: Any, question: str) -> list[tuple[str, float]]:
        """The answers the model knows, likeliest first, with their probabilities.

        Raises
        ------
        ValueError
            The model has no answer head.
        """
        if self.answer_names is None:
            raise ValueError(f"{self.name}: this model does not answer: its config.json lists no answers")
        _, pixels, _ = self._picture(image)
        if not isinstance(question, str):
            raise TypeError(f"question: expected a str, got {type(question).__name__}")
        states, mask, _ = self._encode(question_list(question, "question"))
        run = self._run(pixels, states, mask, (), outputs=("pooled",), pair_image=np.zeros(1, np.int32))
        return self._answer_head.rank(run["pooled"])[0]

    def _maps(
        self,
        images: Seen,
        states: FloatArray | None,
        mask: npt.NDArray[np.uint8] | None,
        blocks: list[int],
        method: Method,
        heads: Heads,
        pair_image: npt.NDArray[np.int32] | None,
    ) -> FloatArray:
        """[B, len(blocks), P] (or [B, len(blocks), h, P]), each map normalised to sum 1."""
        result = self._run(images, states, mask, self._taps(blocks, method), pair_image=pair_image)
        return self._read_maps(result["attentions"], mask, blocks, method, heads)

    def _taps(self, blocks: list[int], method: Method) -> list[tuple[int, str]]:
        """What of the blocks' attention a method needs; ValueError for a block that it cannot read."""
        if method == "question":
            blind = [block for block in blocks if block not in self.integrated]
            if blind:
                raise ValueError(
                    f"method 'question': block {blind[0]} does not attend to the question; blocks "
                    f"{list(self.integrated)} do"
                )
        kind = "class" if method == "class" else "raw"
        return [(block, kind) for block in sorted(set(blocks))]

    def _read_maps(
        self,
        attentions: dict[int, FloatArray],
        mask: npt.NDArray[np.uint8] | None,
        blocks: list[int],
        method: Method,
        heads: Heads,
    ) -> FloatArray:
        """[B, len(blocks), P] (or [B, len(blocks), h, P]) from the attention that :meth:`_taps` asked for."""
        from ..methods.attention import apply_method

        maps = []
        for block in blocks:
            takes_question = mask is not None and block in self.integrated
            tokens = mask.shape[1] if mask is not None and takes_question else 0
            attention = attentions[block]
            maps.append(apply_method(method, attention, tokens, heads, mask if takes_question else None, self.grid))
        stacked = np.ascontiguousarray(np.stack(maps, axis=1), np.float32)
        if not np.isfinite(stacked).all():
            raise ValueError(f"{self.name}: the map is not finite: {NOT_FINITE}")
        return stacked

    def _word_maps(
        self,
        pixels: Seen,
        states: FloatArray | None,
        mask: npt.NDArray[np.uint8] | None,
        words: list[Any],
        block: int,
        heads: Heads,
        pair_image: npt.NDArray[np.int32] | None,
    ) -> list[FloatArray]:
        """A question each [words, gh, gw]: how much each patch attends to the word, at the next integrated block."""
        assert states is not None
        assert mask is not None
        from ..methods.attention import read_words

        block = min((i for i in self.integrated if i >= block), default=self.integrated[-1])
        gh, gw = self.grid
        maps = []
        for row, (names, word_of) in enumerate(words):
            # One question at a time: all rows of the attention are needed, and they are large.
            one = slice(row, row + 1)
            pair = None if pair_image is None else pair_image[one]
            attention = self._run(pixels, states[one], mask[one], [(block, "raw")], pair_image=pair)["attentions"][block]
            tokens = attention.shape[3] - attention.shape[2]
            maps.append(read_words(attention, [word_of[:tokens]], tokens, heads)[0].reshape(-1, gh, gw)[: len(names)])
        return maps

    def _warn_if_blind(self, block: int, method: Method, questions: list[str] | None, stacklevel: int) -> None:
        if questions is None or method != "class" or not self.integrated or block > self.integrated[0]:
            return
        hint = (
            f"blocks {self.first_question_aware_block} to {self.num_blocks - 1} do"
            if self.first_question_aware_block is not None
            else "no block does; use method='question'"
        )
        warnings.warn(
            f"the class token of block {block} has not seen the question (it enters in block {self.integrated[0]}): "
            f"what each of its heads looks at is the same for every question; {hint}",
            QuestionBlindWarning,
            stacklevel=stacklevel,
        )

    def __repr__(self) -> str:
        kind = f"questions in blocks {list(self.integrated)}" if self.integrated else "plain CLIP"
        return (
            f"QAViT({self.name!r}: {self.num_blocks} blocks, width {self.hidden_size}, {self.grid[0]}x{self.grid[1]} "
            f"patches of {self.image_size}x{self.image_size}, {kind}, {self.precision})"
        )
