"""What a method is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional, Protocol, Union

import numpy as np
import numpy.typing as npt

from .. import _core
from .._base.types import FloatArray, Score


class Options(NamedTuple):
    """What a method may be told beside blocks and heads.

    Attributes
    ----------
    score : "cosine" or "softmax"
        What a gradient is of.
    corrected : bool
        Whether patches that the empty text points at are taken out.
    empty : str or float32 [1, E], optional
        The text that counts as empty; None: the method's own.
    answer : str or list of str, optional
        The answer whose map it is, or one a question; None: the model's own.
    """

    score: Score = "cosine"
    corrected: bool = True
    empty: Union[str, FloatArray, None] = None
    answer: Union[str, Sequence[str], None] = None


class Readable(Protocol):
    """What a method may ask of a model.

    Attributes
    ----------
    reads : frozenset of str
        What a `Look` of this model can be asked for: "attention", "question_attention", "gradcam", "cross_attention";
        "texts", with `texts`, `tower` and what belongs to them; "answer_head"; "answer", of which a gradient may be. Of
        the tower, too: "class_token", "registers", "attention_head" (SigLIP's).
    num_blocks : int
    question_blocks : tuple of int
        The blocks that attend to the question.
    default_block : int
    usable_blocks : tuple of int
        Those that have a map worth looking at by the model's default method.
    """

    @property
    def reads(self) -> frozenset[str]: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def question_blocks(self) -> tuple[int, ...]: ...
    @property
    def default_block(self) -> int: ...
    @property
    def usable_blocks(self) -> tuple[int, ...]: ...


class Look(Protocol):
    """A picture and Q questions inside of a model, or Q pairs of both: what methods read maps from.

    Attributes
    ----------
    grid : tuple of int
        (gh, gw), P = gh * gw.
    question_mask : uint8 [Q, M] or None
        Which question tokens count.
    options : Options
        Those that the method takes; the others are at their defaults.
    texts : float32 [Q, E]
        The texts' unit embeddings.
    logit_scale, logit_bias : float
        A text's logit is logit_scale * cosine + logit_bias.
    answer_head : (float32 [A, D], float32 [A]) or None
        Weight and bias of the linear layer on the pooled token, of a model whose answers are what can be asked about.
    tower : _core.Vit
        The vision tower, whose `projection_dim` is E, or 0 where pooled tokens lie in the texts' space as they are.
    registers : int
        How many of the tokens in front of the patches are registers; they come last there.
    inputs : dict
        What the tower's entries take of the picture, and of a QA-ViT's questions, by the names of `_core.Vit.forward`:
        pixel_values, preprocessing, pair_image, instruct, instruct_length.
    image : float32 [N, E] or None
        The pictures' unit embeddings, from whoever ran the tower: what the scores are made of then, without another pass.
    """

    options: Options
    image: Optional[FloatArray]

    @property
    def texts(self) -> FloatArray: ...
    @property
    def logit_scale(self) -> float: ...
    @property
    def logit_bias(self) -> float: ...
    @property
    def answer_head(self) -> Optional[tuple[FloatArray, FloatArray]]: ...
    @property
    def tower(self) -> _core.Vit: ...
    @property
    def registers(self) -> int: ...
    @property
    def inputs(self) -> dict[str, Any]: ...

    @property
    def grid(self) -> tuple[int, int]: ...
    @property
    def question_mask(self) -> Optional[npt.NDArray[np.uint8]]: ...

    def attention(self, blocks: Sequence[int], class_row: bool = False) -> dict[int, FloatArray]:
        """Attention probabilities by block, [Q, h, T, M + T], computed in one pass; of the class token alone if asked."""
        ...

    def pool_attention(self) -> FloatArray:
        """The attention of the query of SigLIP's pooling head, [Q, h, T]."""
        ...

    def question_tokens(self, block: int) -> int:
        """M at a block; 0 where the question does not enter."""
        ...

    def empty(self, text: str) -> FloatArray:
        """The unit embedding [1, E] of ``options.empty``, or where that is None of ``text``."""
        ...

    def gradcam(self, blocks: Sequence[int]) -> dict[int, FloatArray]:
        """By block, [Q, P]: the text half's cross-attention times its gradient, or a tower's norm times its own."""
        ...

    @property
    def has_attention_head(self) -> bool:
        """Whether the tower pools by attention, as SigLIP's does."""
        ...

    def gradients(
        self,
        first: int,
        wanted: Sequence[tuple[str, int]] = (),
        *,
        beside: Optional[FloatArray] = None,
        score: Score = "cosine",
        scale: float = 1.0,
        relevance: Optional[int] = None,
        single_head: Optional[int] = None,
    ) -> dict[str, Any]:
        """Gradients of the texts' scores, or where there are no texts of the best answer's log-probability.

        In one pass up to block `first` and on from there, whatever the number of texts; `wanted` holds (name, block) pairs,
        and what they are, and the other arguments, is told by ``_core.Vit.gradients``. `beside` are more texts [., E]
        behind the look's own.
        """
        ...

    def dense(self, method: str, first: Optional[int]) -> FloatArray:
        """The patches' unit vectors [N, P, E] of ``_core.Vit.dense``, which also gives the look its `image`."""
        ...

    def mean_attention(self, blocks: Sequence[int]) -> dict[int, FloatArray]:
        """Attention probabilities by block, the mean over heads, [Q, T, M + T], computed in one pass."""
        ...

    def pooling_weights(self) -> FloatArray:
        """How much of each token is pooled, [1 or Q, T]: all of the class token, the patches alike, or as a head looks."""
        ...

    def cross_attention(self) -> FloatArray:
        """A decoder's attention to each patch while it wrote a text's words, [Q, P]."""
        ...
