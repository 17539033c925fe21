"""Functions over models, as existing scripts call them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Optional, Union

from .._base.arguments import PNP_VQA_BLOCK
from .._base.types import FloatArray
from ._model import LoadedModel
from ._question_vit import Heads, Method, QAViT


def forward_itm(model: Any, samples: Any, block_num: int = PNP_VQA_BLOCK) -> FloatArray:
    """Maps of a batch from any qavit model: see :meth:`QAViT.forward_itm` and :meth:`BlipITM.forward_itm`."""
    if not callable(getattr(model, "forward_itm", None)):
        raise TypeError(f"model: expected a QAViT or a BlipITM, got {type(model).__name__}; qavit.load makes them")
    result: FloatArray = model.forward_itm(samples, block_num=block_num)
    return result


def extract_attention(
    model: QAViT,
    image: Any,
    questions: Optional[Union[str, Sequence[str]]] = None,
    blocks: Iterable[int] = (3, 7, 11),
    heads: Heads = "mean",
    method: Method = "class",
) -> FloatArray:
    """Maps of several blocks: see :meth:`QAViT.extract_attention`."""
    if not isinstance(model, QAViT):
        hint = "; a BlipITM's maps come from its heatmaps and forward_itm" if isinstance(model, LoadedModel) else ""
        raise TypeError(f"model: expected a QAViT, got {type(model).__name__}{hint}")
    return model.extract_attention(image, questions, blocks, heads, method, _stacklevel=4)
