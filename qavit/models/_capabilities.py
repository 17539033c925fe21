"""What not every kind of model has: each refuses here, and names the kinds that have it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Optional, Union

import numpy as np
import numpy.typing as npt

from .._base.arguments import PNP_VQA_BLOCK
from .._base.types import Fit, FloatArray, Heads, ImageLike, Kind, PixelValues
from ..methods._registry import MethodLike

if TYPE_CHECKING:
    from ..generation._generated import Generated
    from ._outputs import EncodedQuestions, VisionOutput

#: One question, several, embeddings of several [Q, E], or None for a model that takes none.
Questions = Union[str, Sequence[str], FloatArray, None]


class Capabilities:
    """Calls that some kinds of model answer; the others raise TypeError."""

    kind: Kind

    #: For what not every kind has, by the method's name: the kinds that have it.
    HAVE: ClassVar[dict[str, str]] = {
        "forward_itm": "a QA-ViT, a dual encoder and a matcher (BLIP, BLIP-2, ALBEF) have it",
        "extract_attention": "a QA-ViT, CLIP, SigLIP and a vision transformer have it",
        "vision": "a QA-ViT, CLIP, SigLIP and a vision transformer have it",
        "encode_questions": "a QA-ViT has it",
        "answer": "a QA-ViT with a list of answers, as the bundled model, or with its decoder, and BLIP-VQA have it",
        "itm": "a matcher (BLIP, BLIP-2, ALBEF) has it",
        "itc": "a matcher (BLIP, BLIP-2, ALBEF) has it",
        "gradcam_tokens": "a matcher (BLIP, BLIP-2, ALBEF) has it",
        "encode_text": "a dual encoder has it: CLIP or SigLIP with both halves",
        "encode_image": "a dual encoder has it: CLIP or SigLIP with both halves",
        "similarity": "a dual encoder has it: CLIP or SigLIP with both halves",
        "image_states": "a captioner (BLIP) has it",
        "generate": "a captioner (BLIP) has it",
        "score": "a captioner (BLIP) has it",
    }

    def _lacks(self, what: str) -> NoReturn:
        raise TypeError(f"{what}: a model of kind {self.kind!r} has none; {self.HAVE[what]}")

    def forward_itm(self, samples: Mapping[str, Any], block_num: int = PNP_VQA_BLOCK) -> FloatArray:
        """The map of each picture and question of a batch, as PnP-VQA's image-question matching call gives it.

        Parameters
        ----------
        samples : mapping
            ``image``, float [B, 3, S, S] (NumPy or torch, normalised), and ``text_input``, B questions.
        block_num : int
            Whose attention; negative numbers count from the end.

        Returns
        -------
        ndarray of float32, [B, P]
            Of a QA-ViT, the class token's attention, mean over heads; each row sums to 1. Of a BLIP-ITM, PnP-VQA's GradCAM
            with LAVIS's numbers, on a gradient's scale.

        Raises
        ------
        ValueError
            A shape does not fit, or the block has no map.
        TypeError
            The model takes no questions.
        """
        self._lacks("forward_itm")

    def extract_attention(
        self,
        image: Union[ImageLike, PixelValues],
        questions: Questions = None,
        blocks: Optional[Iterable[int]] = None,
        heads: Optional[Heads] = "mean",
        method: Optional[MethodLike] = None,
        fit: Optional[Fit] = None,
    ) -> FloatArray:
        """Maps of several blocks.

        Parameters
        ----------
        image : picture, or array-like [B, 3, S, S]
            One picture for all questions, or one a question.
        questions : str or list of str, optional
            None for a model, or a method, that takes none.
        blocks : iterable of int, optional
            Which blocks, in the order wanted. None: four, evenly spread over those that have a map that knows the question.
        heads : {"mean", "max"}, int or None
            None keeps the head axis.
        method, fit
            As in :meth:`heatmaps`.

        Returns
        -------
        ndarray of float32, [B, len(blocks), P] or [B, len(blocks), h, P]
            Each map sums to 1.
        """
        self._lacks("extract_attention")

    def vision(
        self,
        pixel_values: PixelValues,
        instruct_states: Any = None,
        instruct_mask: Any = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        blocks: Optional[Iterable[int]] = None,
    ) -> VisionOutput:
        """Run the vision model.

        Parameters
        ----------
        pixel_values : array-like, [B, 3, S, S] or [3, S, S]
            Normalised pictures, NumPy or torch.
        instruct_states : EncodedQuestions or array-like, [B, M, Dt], optional
            One question a picture, from :meth:`encode_questions`. Needed as soon as a block that attends to it is.
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
        self._lacks("vision")

    def encode_questions(self, questions: Union[str, Sequence[str]]) -> EncodedQuestions:
        """Encode questions for the vision model; see :meth:`QAViT.encode_questions`."""
        self._lacks("encode_questions")

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
        """An answer to each question about a picture.

        Parameters
        ----------
        image : path, PIL image, uint8 [H, W, 3], or float [3, S, S] normalised
        questions : str or list of str
        max_new_tokens, min_new_tokens : int
            How many tokens an answer may have, and at least has before it may end; the end's counts.
        num_beams : int
            1: the likeliest token, one after the other; more, up to 1024: the best of so many beams, as in transformers.
        return_logits : bool
            Keep the logits, float32 [tokens, vocabulary].
        answers : list of str, optional
            Choose from these by their probability instead of writing one.

        Returns
        -------
        list of Generated
            One a question, which does not depend on what is asked beside it. Where answers are chosen, from `answers` or
            from the bundled model's own, `ranked` holds all of them, the likeliest first, and `ids` is None. `result` is the
            map, of a QA-ViT, read in the same pass; None of BLIP-VQA, whose :meth:`heatmaps` writes the answer beside it.

        Raises
        ------
        ValueError, TypeError
            The model does not answer, a question or an answer has no words, or an argument means nothing here.
        """
        self._lacks("answer")

    def itm(self, image: Union[ImageLike, PixelValues], texts: Union[str, Sequence[str]]) -> tuple[FloatArray, FloatArray]:
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
        self._lacks("itm")

    def itc(self, image: Union[ImageLike, PixelValues], texts: Union[str, Sequence[str]]) -> FloatArray:
        """How alike pictures and texts are, by the contrastive heads.

        Parameters
        ----------
        image : picture, or float [I, 3, S, S] normalised
        texts : str or list of str
            Taken as they are.

        Returns
        -------
        ndarray of float32, [number of texts], or of several pictures [I, number of texts]
            Cosines. Of BLIP-2, that of the query that is most alike.

        Raises
        ------
        ValueError
            The weights have no contrastive heads.
        """
        self._lacks("itc")

    def encode_text(
        self, texts: Union[str, Sequence[str], npt.ArrayLike], templates: Union[str, Sequence[str], None] = None
    ) -> FloatArray:
        """Unit embeddings of texts.

        Parameters
        ----------
        texts : str, list of str, or int [Q, M]
            Or token ids, as the model was trained with: SigLIP's padded to all its positions.
        templates : str or list of str, optional
            Each with ``{}`` where the text goes, as "a photo of a {}."; of several, the mean of what they give, normalised.

        Returns
        -------
        ndarray of float32, [Q, E]

        Raises
        ------
        ValueError
            There is no tokenizer, and texts are no ids; or an id does not exist.
        """
        self._lacks("encode_text")

    def encode_image(self, image: Union[ImageLike, PixelValues], fit: Optional[Fit] = None) -> FloatArray:
        """Unit embeddings of pictures.

        Parameters
        ----------
        image : picture, or float [B, 3, S, S] normalised
        fit
            As in :meth:`heatmaps`.

        Returns
        -------
        ndarray of float32, [B, E]
        """
        self._lacks("encode_image")

    def similarity(self, image: Union[ImageLike, PixelValues], texts: Any, fit: Optional[Fit] = None) -> FloatArray:
        """Cosines of pictures and texts.

        Parameters
        ----------
        image : picture, or float [B, 3, S, S] normalised
        texts : str, list of str, int [Q, M] or float32 [Q, E]
            As for :meth:`encode_text`, or what it gives.
        fit
            As in :meth:`heatmaps`.

        Returns
        -------
        ndarray of float32, [B, Q]
        """
        self._lacks("similarity")

    def gradcam_tokens(
        self, pixel_values: PixelValues, texts: Union[str, Sequence[str]], block_num: int = 6
    ) -> tuple[list[FloatArray], FloatArray]:
        """The map of every token, as LAVIS's ``compute_gradcam`` lists them; see :meth:`BlipITM.gradcam_tokens`."""
        self._lacks("gradcam_tokens")

    def image_states(self, pixel_values: Union[ImageLike, PixelValues]) -> FloatArray:
        """What the text half reads of pictures; see :meth:`BlipCaptioner.image_states`."""
        self._lacks("image_states")

    def generate(self, *arguments: Any, **settings: Any) -> list[Generated]:
        """Captions of a picture; see :meth:`BlipCaptioner.generate`."""
        self._lacks("generate")

    def score(self, *arguments: Any, **settings: Any) -> npt.NDArray[np.float64]:
        """How likely the model is to write captions about a picture; see :meth:`BlipCaptioner.score`."""
        self._lacks("score")
