"""QA-ViT, and CLIP's vision tower: class token's attention, question tokens' attention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np
import numpy.typing as npt

from .. import _core
from .._base.arguments import PNP_VQA_BLOCK, image_size, question_list, read_samples, unique_images
from .._base.types import Fit, FloatArray, Heads, ImageLike, Kind, PixelValues, Precision
from .._base.warnings import warn_of
from ..checkpoints._weights import NOT_FINITE, check_unchanged, release_pages
from ..generation._generated import Generated
from ..heatmaps._distribution import to_distribution
from ..methods._registry import MethodLike, method_of
from ._answer_head import AnswerHead, classes_asked
from ._answering import Asking, ranked_answers, with_maps
from ._attention_look import AttentionLook
from ._cached_tower import CachedTower
from ._capabilities import Questions
from ._devices import Placement
from ._model import Model, Request, Shown
from ._notes import question_notes
from ._outputs import BlockAttentions, EncodedQuestions, VisionOutput
from ._questions import Encoded, Entry, encode_questions, instruct_states_of
from ._texts import TEXT_ENCODERS, TextHalf
from ._visual_t5 import VisualT5

if TYPE_CHECKING:
    from .._result import HeatmapResult
    from ..checkpoints._source import ModelSource
    from ..images import Seen

CACHED_QUESTIONS = 4096
PARTS = 4
REGISTERS = "vision_model.embeddings.register_tokens"
MAX_RAW_BYTES = 1 << 28  # of the whole attention that a method other than the class token's looks at, at a time


class QAViT(Model):
    """A vision transformer and, where it takes questions, its text encoder and tokenizer: a :class:`Model`.

    Attributes
    ----------
    hidden_size, instruction_dim : int
        Sizes; `instruction_dim` is 0 for plain CLIP.
    integrated : tuple of int
        The blocks that attend to the question.
    integration_point : str or None
        "all", "early", "late", ... as the model's configuration names it.
    first_question_aware_block : int or None
        The first block whose class token has seen the question.
    max_words, max_tokens : int
        A longer question is cut.
    """

    def __init__(
        self, source: ModelSource, *, precision: Precision = "float32", device: Any = "cpu", offload_model: bool = False
    ) -> None:
        from ..checkpoints.towers.question_blocks import integrated_blocks
        from ..images import Preprocessing
        from ..text import QuestionCache

        vision = dict(source.vision)
        point = vision.get("integration_point")
        if point is not None:
            vision["integrated"] = integrated_blocks(point, int(vision["num_hidden_layers"]))
        self._vision = vision
        self._text: Any = None
        self._tokenizer: Any = None
        self._cache: QuestionCache[Entry] = QuestionCache(CACHED_QUESTIONS)
        super().__init__(source, precision, device, offload_model)
        vit = self._vit
        self.image_size = image_size((vit.image_size, vit.image_width), "image_size")
        self.patch_size = vit.patch_size
        self.num_blocks, self.num_heads = vit.blocks, vit.heads
        self.hidden_size: int = vit.hidden_size
        self.instruction_dim: int = vit.instruction_dim
        self.integrated: tuple[int, ...] = vit.integrated
        self.question_blocks = self.integrated
        self.integration_point: Optional[str] = point
        self.grid = (vit.image_size // vit.patch_size, vit.image_width // vit.patch_size)
        self.preprocessing: Preprocessing = Preprocessing.from_dict(source.preprocessing)
        self.max_words = int(source.questions.get("max_words", 50))
        self.max_tokens = int(source.questions.get("max_tokens", 30))
        self.takes_questions = bool(self.integrated)
        kinds: dict[str, Kind] = {"vit": "vit", "siglip": "siglip"}
        self.kind = "qavit" if self.integrated else kinds.get(source.architecture, "clip")
        self.reads = self._readable()
        self.first_question_aware_block: Optional[int] = None
        if self.integrated:
            self._check_text()
            aware = self.integrated[0] + 1
            self.first_question_aware_block = aware if aware < self.num_blocks else None
        self.default_block = self._choose_block(source.defaults.get("block"))
        usual = "class" if "class_token" in self.reads else "pool" if "attention_head" in self.reads else "rollout"
        self.default_method = str(source.defaults.get("method", usual))
        self.usable_blocks = method_of(self.default_method, self).blocks(self)
        if source.answers:
            self._answer_head = AnswerHead(source, self.hidden_size)
            self.answer_names = self._answer_head.answer_names

    # ---- construction ----

    def _load_core(self, placement: Placement) -> None:
        source = self._source
        vit = _core.Vit(self._vision, source.weights, placement.precision, device=placement.device)
        text: Any = None
        if vit.integrated:
            if source.text is None or source.tokenizer is None:
                raise ValueError(
                    f"{source.name}: blocks {list(vit.integrated)} take a question, so the model needs a text encoder and a "
                    "tokenizer; give text= a folder"
                )
            kind = str(source.text.get("model_type", ""))
            if kind not in TEXT_ENCODERS:
                raise ValueError(f"text encoder of type {kind!r}; expected one of {sorted(TEXT_ENCODERS)}")
            encoder = getattr(_core, TEXT_ENCODERS[kind])
            text = encoder(source.text, source.weights, placement.precision, device=placement.device)
        release_pages(source.weights)
        self._picture_cache = self._picture_cache.emptied()
        self._vit, self._text = vit, text
        self._placement = placement
        self._prompts: Optional[TextHalf] = None
        answers = bool(source.decoder) and getattr(text, "picture_width", 0) == vit.hidden_size
        self._language = VisualT5(source, text, placement) if answers else None

    @property
    def _vit(self) -> _core.Vit:
        return self._tower.vit

    @_vit.setter
    def _vit(self, vit: _core.Vit) -> None:
        # Together, so that no call finds one core with what another made.
        self._tower = CachedTower(vit, self._picture_cache, self.device == "cpu")

    def _readable(self) -> frozenset[str]:
        """What methods can read of the tower."""
        head = self._vision.get("pooling") == "map"
        there = {
            "attention": True,
            "question_attention": bool(self.integrated),
            "class_token": self._vit.prefix > self._registers,
            "registers": self._registers > 0,
            "attention_head": head,
            "answer_head": bool(self._source.answers),
            "texts": self._source.prompts is not None,
        }
        return frozenset(name for name, is_there in there.items() if is_there)

    @property
    def _registers(self) -> int:
        weights = self._source.weights
        return weights[REGISTERS][2][0] if REGISTERS in weights else 0

    def _prompt_half(self) -> TextHalf:
        """The CLIP text half beside a QA-ViT, made when it is first asked."""
        half = self._prompts
        if half is None:
            found = self._source.prompts
            if found is None:
                raise TypeError(f"{self.name}: no text half embeds texts; give vision= a CLIP folder that holds both halves")
            tokens = int(found.text["max_position_embeddings"])
            half = TextHalf(self.name, found.text, found.weights, found.tokenizer, tokens, False, self._placement)
            self._prompts = half
        return half

    def _check_text(self) -> None:
        from ..text import Tokenizer

        if self._text.width != self.instruction_dim:
            raise ValueError(
                f"the text encoder is {self._text.width} wide, but the vision model takes questions of width "
                f"{self.instruction_dim}"
            )
        if self._text.max_tokens:
            self.max_tokens = min(self.max_tokens, self._text.max_tokens)
        self._tokenizer = Tokenizer(self._source.tokenizer or "", self._text.vocab_size)

    def _choose_block(self, configured: Any) -> int:
        """A block whose class token has seen the question for a while: three quarters up; for plain CLIP the last."""
        if configured is not None:
            return self.check_block(int(configured), "defaults.block")
        if self.first_question_aware_block is None:
            return self.num_blocks - 1
        return max(self.first_question_aware_block, min(self.num_blocks - 1, (3 * self.num_blocks) // 4))

    # ---- questions ----

    def encode_questions(self, questions: Union[str, Sequence[str]]) -> EncodedQuestions:
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
        encoded = self._encode(question_list(questions))
        warn_of(encoded.notes)
        return EncodedQuestions(encoded.states, encoded.mask)

    def _encode(self, questions: list[str]) -> Encoded:
        """Encoded questions; silent."""
        if self._text is None:
            raise ValueError(f"this model takes no questions: {self._why_no_questions()}")
        from ..text import clean_question

        cleaned = [clean_question(question, self.max_words) for question in questions]
        for question, clean in zip(questions, cleaned):
            if not clean.strip():
                raise ValueError(f"questions: {question!r} has no words")
        # One look-up each: another thread's questions may push an entry out between two.
        entries = {clean: self._cache.get(clean) for clean in cleaned}
        entries.update(self._encode_new([clean for clean, entry in entries.items() if entry is None]))
        found = [entry for clean in cleaned if (entry := entries[clean]) is not None]
        longest = max(len(entry.states) for entry in found)
        states = np.zeros((len(found), longest, self.instruction_dim), np.float32)
        mask = np.zeros((len(found), longest), np.uint8)
        cut = []
        for i, (question, clean, entry) in enumerate(zip(questions, cleaned, found)):
            states[i, : len(entry.states)] = entry.states
            mask[i, : len(entry.states)] = 1
            # What was cut off by words is behind what was cut off by tokens.
            every = clean_question(question, len(question) + 1).split()
            cut.append(every[len(clean.split()) - len(entry.cut) :])
        notes = question_notes(questions, [entry.unknown for entry in found], cut, [entry.known for entry in found])
        words = [(entry.words, entry.word_of) for entry in found]
        return Encoded(states, mask, words, notes, [entry.ids for entry in found])

    def _encode_new(self, questions: list[str]) -> dict[str, Entry]:
        """Cleaned questions, encoded and remembered."""
        check_unchanged(self._files)
        new = encode_questions(questions, self._tokenizer, self._text, self.max_tokens, self.name, self._files)
        for question, entry in new.items():
            self._cache.put(question, entry)
        return new

    # ---- the vision model ----

    def vision(
        self,
        pixel_values: PixelValues,
        instruct_states: Any = None,
        instruct_mask: Any = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        blocks: Optional[Iterable[int]] = None,
    ) -> VisionOutput:
        images = self._pixels(pixel_values)
        states, mask = self._instruct(instruct_states, instruct_mask, len(images))
        wanted = None if blocks is None else self.check_blocks(blocks)
        read = wanted if wanted is not None else range(self.num_blocks) if output_attentions else ()
        hidden = list(range(self.num_blocks + 1)) if output_hidden_states else []
        taps = [(block, "raw") for block in sorted(set(read))]
        last = "last" if self.kind in ("qavit", "clip") else "normed"  # as transformers has it of each
        result = self._run(images, states, mask, taps, hidden, () if wanted is not None else (last, "pooled"))
        attentions: Union[tuple[FloatArray, ...], BlockAttentions, None] = None
        if wanted is not None:
            attentions = BlockAttentions(result["attentions"], self.num_blocks)
        elif output_attentions:
            attentions = tuple(result["attentions"][block] for block in range(self.num_blocks))
        return VisionOutput(
            result.get(last),
            result.get("pooled"),
            attentions,
            tuple(result["hidden"][i] for i in hidden) if output_hidden_states else None,
        )

    def _instruct(self, states: Any, mask: Any, count: int) -> tuple[FloatArray | None, npt.NDArray[np.uint8] | None]:
        return instruct_states_of(states, mask, count, self.instruction_dim)

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
        if states is None or mask is None:
            result = self._tower.forward(images, None, attention, hidden, outputs)
            self._check_result(result)
            return result
        if pair_image is None:
            pair_image = np.zeros(len(states), np.int32)
            if isinstance(images, np.ndarray):
                images, pair_image = unique_images(images)
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
        pairs = pair_image, states, lengths
        if not in_order:
            pairs = pair_image[order], states[order], lengths[order]
        result = self._tower.forward(images, pairs, attention, hidden, outputs)
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

    def _look(self, pixels: Seen, questions: Optional[list[str]]) -> AttentionLook:
        if questions is None:
            return AttentionLook(self, pixels, None, None, answering=self.answer_names is not None)
        encoded = self._encode(questions)
        pairs = np.zeros(len(questions), np.int32)
        look = AttentionLook(self, pixels, encoded, pairs, answering=self.answer_names is not None)
        look.prompts = questions
        look.words = [list(words) for words, _ in encoded.words]
        look.notes = encoded.notes
        return look

    def _result(self, shown: Shown, questions: Any, request: Request) -> HeatmapResult:
        if self.kind != "vit" or self.answer_names is None or questions is None:
            return super()._result(shown, questions, request)
        asked = classes_asked(self, self._answer_head, questions, request)
        return self._result_of(shown, self._look(shown.pixels, None), *asked)

    def _prepare_question(self, question: str) -> None:
        if self.integrated:
            self._encode([question])

    def _questions_at_once(self, request: Request) -> Optional[int]:
        alone = super()._questions_at_once(request)
        if request.method.name == "class" or alone is not None:
            return alone
        tokens = self._vit.tokens
        return max(1, MAX_RAW_BYTES // (4 * self.num_heads * tokens * (tokens + self.max_tokens)))

    def forward_itm(self, samples: Mapping[str, Any], block_num: int = PNP_VQA_BLOCK) -> FloatArray:
        image, questions = read_samples(samples)
        block = self.check_block(block_num, "block_num")
        return self.extract_attention(image, questions, blocks=(block,), method="class")[:, 0]

    def extract_attention(
        self,
        image: Union[ImageLike, PixelValues],
        questions: Questions = None,
        blocks: Optional[Iterable[int]] = None,
        heads: Optional[Heads] = "mean",
        method: Optional[MethodLike] = None,
        fit: Optional[Fit] = None,
    ) -> FloatArray:
        chosen = method_of(self.default_method if method is None else method, self)
        if heads is not None:
            self._check_heads(heads, chosen)
        if blocks is None:
            usable = chosen.blocks(self) or chosen.default(self)
            places = np.linspace(0, len(usable) - 1, min(PARTS, len(usable)))
            numbers = [usable[int(place)] for place in np.rint(places)]
        else:
            numbers = self.check_blocks(blocks)
        chosen.check(self, numbers)
        asked = None if questions is None else question_list(questions)
        images = self._batch(image, None if asked is None else len(asked), fit=fit)
        encoded = pairs = None
        if asked is not None:
            encoded = self._encode(asked)
            warn_of([*encoded.notes, *self._blind_notes(numbers, chosen)])
            pairs = np.zeros(len(asked), np.int32) if len(images) == 1 else None
        elif self.integrated and max(numbers) >= self.integrated[0]:
            raise ValueError("questions: the asked blocks take questions; give one a picture")
        look = AttentionLook(self, images, encoded, pairs)
        look.prompts = asked
        return to_distribution(self._finite_map(chosen.by_block(look, numbers, heads)))

    def answer(
        self,
        image: ImageLike,
        questions: Union[str, Sequence[str]],
        *,
        max_new_tokens: int = 30,
        min_new_tokens: int = 0,
        num_beams: int = 1,
        return_logits: bool = False,
        answers: Optional[Sequence[str]] = None,
    ) -> list[Generated]:
        lengths = {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens, "num_beams": num_beams}
        options: dict[str, Any] = {**lengths, "return_logits": return_logits, "answers": answers}
        self._check_answers()
        Asking.of(**options)
        asked, request = question_list(questions), self._request(None, None, "mean")
        result, found = self._answered(self._see(image), asked, request, **options)
        warn_of(result.notes)
        return with_maps(found, result)

    def _check_answers(self) -> None:
        if self.answer_names is None and self._language is None:
            lacking = "translation_mlp, decoder and lm_head of a QA-ViT checkpoint"
            raise ValueError(f"{self.name}: this model does not answer: it lists no answers, and its weights lack {lacking}")

    def _answered(
        self, shown: Shown, questions: list[str], request: Request, **options: Any
    ) -> tuple[HeatmapResult, list[Generated]]:
        self._check_answers()
        asking = Asking.of(**options)
        if self._language is None or self.answer_names is not None:
            if asking != Asking.of():
                named = "max_new_tokens, min_new_tokens, num_beams, return_logits, answers"
                raise ValueError(f"{named}: this model chooses from a list of answers and writes none; leave them out")
            result = self._result(shown, questions, request)
            return result, ranked_answers(result)
        look = self._look(shown.pixels, questions)
        look.keep_last()
        result = self._result_of(shown, look, questions, request)
        return result, self._language.answer(self._tokenizer, *look.take_last(), asking)

    def _why_no_questions(self) -> str:
        if self.kind == "vit":
            return "it is a vision transformer that knows no text"
        return "none of its blocks has instruct weights, and it has no text half beside its pictures'"

    def __repr__(self) -> str:
        kind = f"questions in blocks {list(self.integrated)}" if self.integrated else "takes no questions"
        return (
            f"QAViT({self.name!r}: {self.num_blocks} blocks, width {self.hidden_size}, {self.grid[0]}x{self.grid[1]} "
            f"patches of {self._vit.image_size}x{self._vit.image_width}, {kind}, {self.precision})"
        )
