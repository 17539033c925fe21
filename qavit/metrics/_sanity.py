"""Whether maps are of the model and of the text at all (Adebayo et al. 2018, arXiv 1810.03292)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Union

import numpy as np
import numpy.typing as npt

from .._base.types import FloatArray, Heads, ImageLike
from ..checkpoints._weights import Weights, float_array, from_array
from ..methods._registry import MethodLike
from ._agreement import spearman

if TYPE_CHECKING:
    from ..models import Model

Doubles = npt.NDArray[np.float64]
#: A block of the half whose blocks are read: of the vision tower, or of a text half that looks at the picture.
_BLOCK = {
    "vision_model.": re.compile(r"^vision_model\.encoder\.layers\.(\d+)\."),
    "text_model.": re.compile(r"^text_model\..*?\blayers?\.(\d+)\."),
}


class Sanity(NamedTuple):
    """What :func:`sanity_checks` gives.

    Attributes
    ----------
    blocks : tuple of int
        From which block to the last one weights were shuffled, a step an item.
    shuffled : ndarray of float64, [steps, Q]
        Spearman's correlation of each text's map with that of the model as it is. It ought to fall.
    swapped : ndarray of float64, [Q]
        Of each text's map with those of the other texts, their mean; NaN where there is one text. It ought to be below 1.
    """

    blocks: tuple[int, ...]
    shuffled: Doubles
    swapped: Doubles


def sanity_checks(
    model: Model,
    image: ImageLike,
    questions: Union[str, Sequence[str]],
    *,
    method: Optional[MethodLike] = None,
    block: Union[int, Sequence[int], None] = None,
    heads: Heads = "mean",
    steps: int = 4,
    seed: int = 0,
) -> Sanity:
    """Maps again with weights shuffled from the last block down, and with the texts swapped.

    A map that stays as it was shows the picture, not what the model makes of it. Within each tensor of a block the numbers
    change places, so that they keep their sizes.

    Parameters
    ----------
    model : Model
        Of :func:`qavit.load`; it is not changed.
    image, questions, method, block, heads
        As for :meth:`qavit.Model.heatmaps`.
    steps : int
        How many models are made: the last block alone is shuffled in the first of them, all in the last.
    seed : int

    Returns
    -------
    Sanity

    Raises
    ------
    ValueError
        `steps` is not above 0, or the questions cannot be asked.
    """
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected a number above 0")
    first = _maps(model, image, questions, method, block, heads)
    L = model.num_blocks
    blocks = tuple(dict.fromkeys(int(place) for place in np.rint(np.linspace(L - 1, 0, min(steps, L)))))
    shuffled = np.zeros((len(blocks), len(first)))
    for step, lowest in enumerate(blocks):
        other = _maps(_shuffled(model, lowest, seed), image, questions, method, block, heads)
        shuffled[step] = [spearman(one, again) for one, again in zip(first, other)]
    swapped = np.full(len(first), np.nan)
    for q, one in enumerate(first):
        others = [spearman(one, other) for k, other in enumerate(first) if k != q]
        swapped[q] = np.mean(others) if others else np.nan
    return Sanity(blocks, shuffled, swapped)


def _maps(model: Any, image: Any, questions: Any, method: Any, block: Any, heads: Any) -> FloatArray:
    """Without the warnings that a result brings: of a model with shuffled weights they say nothing."""
    request = model._request(method, block, heads)
    return np.asarray(model._result(model._see(image), questions, request).maps)


def _shuffled(model: Any, lowest: int, seed: int) -> Any:
    """The model with the weights of blocks from `lowest` on shuffled."""
    half = "text_model." if "gradcam" in model.reads else "vision_model."
    rng = np.random.default_rng(seed)
    weights: Weights = dict(model._source.weights)
    for name in sorted(weights):
        found = _BLOCK[half].match(name)
        if found is not None and int(found.group(1)) >= lowest:
            values = float_array(weights[name])
            weights[name] = from_array(rng.permutation(values.ravel()).reshape(values.shape))
    source = dataclasses.replace(model._source, weights=weights)
    return type(model)(source, precision=model.requested_precision, device=model.device, offload_model=model.offload_model)
