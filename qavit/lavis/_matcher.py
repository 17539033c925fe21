"""GradCAM as LAVIS's scripts call it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._base.tensors import as_kind, to_numpy, torch_of
from ._modules import from_lavis

if TYPE_CHECKING:
    from ..models._matcher import Matcher

# Torch modules that compute_gradcam was called with: what their weights were then, and the matcher made of them.
_converted: weakref.WeakKeyDictionary[Any, tuple[Any, Matcher]] = weakref.WeakKeyDictionary()


def compute_gradcam(
    model: Any,
    visual_input: Any,
    text_input: str | Sequence[str],
    tokenized_text: Any = None,
    block_num: int = 6,
) -> tuple[list[Any], Any]:
    """GradCAM of the text half's cross-attention, with LAVIS's signature and numbers.

    Parameters
    ----------
    model : BlipITM, ALBEF, BLIP2ITM, or LAVIS's own torch module
        A torch module is taken over by `from_lavis`, once, and again when its weights have changed.
    visual_input : float [B, 3, S, S], NumPy or torch
        Normalised images.
    text_input : B texts
        Taken as they are; cut to the model's number of tokens (35), with their mask.
    tokenized_text : optional
        Not looked at: the model tokenizes the texts itself, so that mask and ids always fit.
    block_num : int
        Any block but the last, whose map would be zero.

    Returns
    -------
    list of B float32 [1 + tokens, gh, gw]
        The first token's map, the mean over the words, then one map for each token behind the first; zero where a text is
        padded to the batch's longest. Of BLIP-2, the mean over the queries, then one map for each query. Tensors on the CPU
        where `visual_input` is a tensor.
    float32 [B, 2]
        The head's logits: no match, match.

    Raises
    ------
    ValueError
        A shape or count does not fit, or the block has no map; the message names the usable blocks.
    """
    maps, logits = _matcher_of(model).gradcam_tokens(to_numpy(visual_input, "visual_input"), text_input, block_num)
    torch = torch_of(visual_input)
    return [as_kind(stack, torch) for stack in maps], as_kind(logits, torch)


def _matcher_of(model: Any) -> Matcher:
    """The matcher itself, or the one made of a torch module's present weights."""
    from ..models._matcher import Matcher

    if isinstance(model, Matcher):
        return model
    if not callable(getattr(model, "parameters", None)):
        raise TypeError(f"model: expected BLIP, BLIP-2, ALBEF or LAVIS's torch module, got {type(model).__name__}")
    state = tuple((tensor.data_ptr(), tensor._version) for tensor in model.parameters())
    known = _converted.get(model)
    if known is None or known[0] != state:
        made = from_lavis(model)
        if not isinstance(made, Matcher):
            raise TypeError(f"model: expected a matcher, got {type(model).__name__}, which is of kind {made.kind!r}")
        known = (state, made)
        _converted[model] = known
    return known[1]
