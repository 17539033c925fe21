"""Functions over models, as existing scripts call them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Optional, Union

from .._base.arguments import PNP_VQA_BLOCK
from .._base.types import FloatArray, Heads, ImageLike, PixelValues
from ..methods._registry import MethodLike
from ._capabilities import Questions
from ._model import Model


def forward_itm(model: Model, samples: Mapping[str, Any], block_num: int = PNP_VQA_BLOCK) -> FloatArray:
    """Maps of a batch: see :meth:`Model.forward_itm`."""
    return _checked(model).forward_itm(samples, block_num=block_num)


def extract_attention(
    model: Model,
    image: Union[ImageLike, PixelValues],
    questions: Questions = None,
    blocks: Optional[Iterable[int]] = None,
    heads: Optional[Heads] = "mean",
    method: Optional[MethodLike] = None,
) -> FloatArray:
    """Maps of several blocks: see :meth:`Model.extract_attention`."""
    return _checked(model).extract_attention(image, questions, blocks, heads, method)


def _checked(model: Any) -> Model:
    if not isinstance(model, Model):
        raise TypeError(f"model: expected a model of qavit.load, got {type(model).__name__}")
    return model
