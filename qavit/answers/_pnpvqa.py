"""`PNPVQA`: a matcher, a captioner and a reader as one model that answers questions about pictures."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._base.arguments import question_list, whole_number
from .._base.pictures import Picture, load_image
from .._base.types import FloatArray, ImageLike
from .._base.warnings import warn_of
from ..images import preprocess
from ..models._model import Model
from ..text import clean_question
from ._captions import Caption, CaptionSettings
from ._explanation import Explanation, drawn_patches
from ._parts import parts_of_config
from ._pipeline import Pipeline, contexts_of

if TYPE_CHECKING:
    from .._result import HeatmapResult
    from ..generation import Generated

#: What a matcher, a captioner and a reader are asked for.
NEEDED = {
    "matcher": ("forward_itm", "heatmaps", "grid"),
    "captioner": ("image_states", "generate", "grid"),
    "reader": ("answer", "logits"),
}


#: The kinds of models that have it.
KINDS = {
    "matcher": ("blip_itm", "qavit", "blip2_itm", "albef"),
    "captioner": ("blip_caption",),
    "reader": ("reader",),
}


class Options(NamedTuple):
    """How questions are answered: by default as for the published figures."""

    num_captions: int = 100
    num_patches: int = 20
    cap_max_length: int = 20
    cap_min_length: int = 10
    top_k: int = 50
    top_p: float = 1
    repetition_penalty: float = 1
    seed: int = 0
    num_captions_fid: int = 1
    num_beams: int = 1
    max_len: int = 20
    min_len: int = 0

    @property
    def captions(self) -> CaptionSettings:
        """Those of the captions."""
        return CaptionSettings(
            self.num_captions, self.num_patches, self.cap_max_length, self.cap_min_length, self.top_p, self.top_k,
            self.repetition_penalty, self.seed,
        )  # fmt: skip


def options_of(given: Mapping[str, Any]) -> Options:
    """Options by their names; ValueError or TypeError where there is no such option, or one of them cannot be."""
    unknown = sorted(set(given) - set(Options._fields))
    if unknown:
        raise TypeError(f"{unknown[0]}: PnP-VQA has no such option; expected {', '.join(Options._fields)}")
    how = Options(**given)
    how.captions.checked()
    for name, least in (("num_captions_fid", 1), ("num_beams", 1), ("max_len", 2), ("min_len", 0)):
        if whole_number(getattr(how, name), name) < least:
            raise ValueError(f"{name}: got {getattr(how, name)}, expected at least {least}")
    return how


class PNPVQA(Pipeline):
    """Plug-and-play VQA (Tiong et al. 2022, arXiv 2210.08773): answers without training, and what they were made of.

    The matcher says which patches speak for the question; the captioner describes random picks of those; the reader, a
    language model, answers the question out of the captions. The steps have LAVIS's names, signatures and defaults.

    What comes in decides what goes out: where the images are torch tensors, maps are float32 tensors on the CPU; otherwise
    they are NumPy arrays.

    Parameters
    ----------
    matcher : Model
        A `BlipITM`, as in the paper, or any other model with question-aware maps: a `QAViT`.
    captioner : Model
        A BLIP captioner.
    reader : Model
        A T5 reader, as UnifiedQA v2.
    offload_model : bool
        Accepted for existing scripts; changes nothing, because weights are mapped from disk.

    Attributes
    ----------
    matcher, captioner, reader : Model

    Raises
    ------
    TypeError
        One of the three is of another kind.
    """

    training = False

    def __init__(self, matcher: Any, captioner: Any, reader: Any, *, offload_model: bool = False) -> None:
        for name, part in (("matcher", matcher), ("captioner", captioner), ("reader", reader)):
            check_part(name, part)
        self.matcher, self.captioner, self.reader = matcher, captioner, reader
        self.offload_model = bool(offload_model)

    @classmethod
    def from_config(cls, config: Any, **defaults: Any) -> PNPVQA:
        """The model that a configuration describes: LAVIS's own pnp_vqa files, with paths in place of addresses.

        Parameters
        ----------
        config : mapping, Config, namespace or OmegaConf node
            The whole file, or what stands in it under ``model``. Its blocks `image_question_matching_model`,
            `image_captioning_model` and `question_answering_model` each hold LAVIS's names (``finetuned`` or ``pretrained``
            is the file; ``image_size``, ``prompt``, ...) or what `qavit.load` takes (``path``, ``checkpoint``, ``vision``,
            ``text``, ``tokenizer``, ``reader``, ``config``, ``precision``, ``device``); or a path alone, or a loaded model.
            A ``vocab.txt`` or ``tokenizer.json`` that lies beside a checkpoint need not be named.
        **defaults
            What `qavit.load` is given for blocks that do not say it themselves: ``precision``, ``device``.

        Raises
        ------
        ValueError, TypeError
            A block is missing, a name is unknown, a file is an address, or a part is of another kind; the message begins
            with the block.
        """
        matcher, captioner, reader, settings = parts_of_config(config, **defaults)
        return cls(matcher, captioner, reader, **settings)

    def forward_itm(self, samples: MutableMapping[str, Any], block_num: int | None = None) -> MutableMapping[str, Any]:
        """Which patches speak for each question, with LAVIS's signature.

        Parameters
        ----------
        samples : dict
            'image': float [B, 3, S, S], as LAVIS normalises it, of whatever size; 'text_input': B questions.
        block_num : int, optional
            None: LAVIS's 7 for BLIP, the matcher's own choice otherwise.

        Returns
        -------
        dict
            `samples` itself; 'gradcams' is float32 [B, P], over the captioner's patches.
        """
        self._put_maps(samples, block_num)
        return samples

    # ---- pictures ----

    def heatmaps(self, image: ImageLike, questions: Any, **options: Any) -> HeatmapResult:
        """The matcher's maps of a whole picture, its ratio lost, as its captioner sees it; options as for its `heatmaps`."""
        return self.matcher.heatmaps(image, questions, **{"fit": "stretch", **options})  # type: ignore[no-any-return]

    def answer(self, image: ImageLike, questions: str | Sequence[str], **options: Any) -> list[Generated]:
        """An answer to each question about a picture; options as for :meth:`explain`.

        Returns
        -------
        list of Generated
            `result` is the matcher's map.
        """
        return [one.answer for one in self.explanations(image, questions, **options)]

    def explain(self, image: ImageLike, question: str, *, block: int | None = None, **options: Any) -> Explanation:
        """The answer to a question, and what it was made of.

        The question is cleaned as LAVIS's evaluation cleans it, and the defaults are those of the published figures.

        Parameters
        ----------
        image : path, PIL image or uint8 [H, W, 3]
            All of it is seen, its ratio lost.
        question : str
        block : int, optional
            As `block_num` of `forward_itm`.
        **options
            Of the captions: num_captions (100), num_patches (20), cap_max_length (20), cap_min_length (10), top_k (50),
            top_p (1), repetition_penalty (1), seed (0). Of the answer: num_captions_fid (1; 5 for GQA's published figure),
            num_beams (1), max_len (20), min_len (0).

        Returns
        -------
        Explanation
        """
        (found,) = self.explanations(image, question_list(question, "question")[:1], block=block, **options)
        return found

    def explanations(
        self, image: ImageLike, questions: str | Sequence[str], *, block: int | None = None, **options: Any
    ) -> list[Explanation]:
        """:meth:`explain` of several questions about one picture, which is looked at once."""
        how = options_of(options)
        asked = question_list(questions)
        cleaned = [clean_question(question) for question in asked]
        for question, text in zip(asked, cleaned):
            if not text.strip("? "):
                raise ValueError(f"question: {question!r} has no words")
        picture = load_image(image)
        pixels, _ = preprocess(picture, self.captioner.preprocessing.fitted("stretch"))
        looked = self._looked(picture, cleaned, block)
        maps = self._on_captioners_grid(np.stack([one.raw.reshape(-1) for one in looked]))
        captions = self._captions(np.repeat(pixels[None], len(asked), axis=0), cleaned, maps, how.captions)
        return [
            self._read(one._with(questions=[question], answers=None), cleaned[row], captions[row], how)
            for row, (question, one) in enumerate(zip(asked, looked))
        ]

    def _looked(self, picture: Picture, questions: Sequence[str], block: int | None) -> list[HeatmapResult]:
        """The matcher's map of each question."""
        matcher = self.matcher
        shown, request = matcher._see(picture, "stretch"), matcher._request(None, block, "mean")
        calls = [[question] for question in questions] if self._asks_alone() else [list(questions)]
        results = [matcher._result(shown, some, request) for some in calls]
        for result in results:
            warn_of(result.notes)
        return [result[row] for result in results for row in range(len(result))]

    def _read(self, result: HeatmapResult, question: str, captions: list[Caption], how: Options) -> Explanation:
        """The answer to one question out of its captions."""
        texts = [caption.text for caption in captions]
        contexts = contexts_of(question, texts, how.num_captions, how.num_captions_fid)
        answer = self.reader.answer(None, contexts, max_len=how.max_len, min_len=how.min_len, num_beams=how.num_beams)
        drawn = drawn_patches(result, np.stack([caption.patches for caption in captions]), self.captioner.grid)
        return Explanation(
            question=result.questions[0], answer=replace(answer, result=result), result=result, draws=drawn, captions=texts,
            contexts=contexts, attended=attended(self.reader, contexts, answer),
        )  # fmt: skip

    def check_options(self, **options: Any) -> None:
        """TypeError or ValueError for options that :meth:`explain` would refuse."""
        options_of(options)

    def to(self, device: Any) -> PNPVQA:
        """Move all three to a device, in place; see :meth:`qavit.Model.to`."""
        for part in (self.matcher, self.captioner, self.reader):
            part.to(device)
        return self

    def eval(self) -> PNPVQA:
        """Give the model back: it is always ready for inference."""
        return self

    @property
    def device(self) -> str:
        """Where the matcher computes."""
        return str(self.matcher.device)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.matcher!r}, {self.captioner!r}, {self.reader!r})"


def check_part(name: str, part: Any) -> None:
    """TypeError where a part lacks what it is needed for: a model of another kind, or an object without those methods."""
    if isinstance(part, Model):
        if part.kind not in KINDS[name]:
            kinds = " or ".join(map(repr, KINDS[name]))
            raise TypeError(f"{name}: expected a model of kind {kinds}, got {part.name} of kind {part.kind!r}")
    elif isinstance(part, (str, PathLike)):
        given = "reader" if name == "reader" else "checkpoint"
        raise TypeError(f"{name}: expected a model, got the path {str(part)!r}; qavit.load({given}={str(part)!r}) gives one")
    elif not all(hasattr(part, need) for need in NEEDED[name]):
        raise TypeError(f"{name}: expected a model with {', '.join(NEEDED[name])}, got {type(part).__name__}")


def attended(reader: Any, contexts: Sequence[str], answer: Generated) -> FloatArray | None:
    """How much of the answer's attention went to each context, [C]; None where the reader does not say."""
    attention = getattr(reader, "attention", None)
    if attention is None or answer.ids is None or not len(answer.ids):
        return None
    shares: FloatArray = np.asarray(attention(None, contexts, answer.ids), np.float32).mean(axis=0)
    return shares
