"""Matchers made of live LAVIS modules."""

from __future__ import annotations

import importlib
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._base.tensors import as_kind, to_numpy, torch_of
from .._base.types import Precision

if TYPE_CHECKING:
    from ..checkpoints._weights import Weight
    from ..models._blip_itm import BlipITM

# Torch modules that compute_gradcam was called with: what their weights were then, and the matcher made of them.
_converted: weakref.WeakKeyDictionary[Any, tuple[Any, BlipITM]] = weakref.WeakKeyDictionary()


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
    model : BlipITM, or LAVIS's own torch module
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
        The [ENC] token's map, the mean over the words, then one map for each token behind [ENC]; zero where a text is
        padded to the batch's longest. Tensors on the CPU where `visual_input` is a tensor.
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


def from_lavis(blip_itm_module: Any, *, tokenizer: Any = None, precision: Precision = "float32") -> BlipITM:
    """A matcher with the weights of a live torch module, without a file in between.

    Parameters
    ----------
    blip_itm_module : torch module
        LAVIS's blip_image_text_matching (``pnp_vqa.image_question_matching_model``), or Hugging Face's
        BlipForImageTextRetrieval. It is not changed.
    tokenizer : path, optional
        vocab.txt or tokenizer.json; None: the module's own tokenizer (LAVIS's has one).
    precision : {"float32", "bfloat16"}
        As for `qavit.load`.

    Returns
    -------
    BlipITM
        It shares the memory of weights that lie on the CPU in float32, float16 or bfloat16: do not train them on; make a
        new matcher afterwards.

    Raises
    ------
    TypeError
        This is no such module.
    ValueError
        Weights are missing or mis-shaped, or no tokenizer is there.
    """
    from ..checkpoints.towers.blip import open_blip_tensors
    from ..models._blip_itm import BlipITM
    from ..text import Tokenizer, with_blip_tokens

    lavis = all(hasattr(blip_itm_module, name) for name in ("visual_encoder", "text_encoder", "itm_head"))
    hugging_face = all(hasattr(blip_itm_module, name) for name in ("vision_model", "text_encoder", "config"))
    if not (lavis or hugging_face) or not callable(getattr(blip_itm_module, "state_dict", None)):
        raise TypeError(
            "blip_itm_module: expected a torch module with visual_encoder, text_encoder and itm_head "
            f"(LAVIS's blip_image_text_matching), got {type(blip_itm_module).__name__}"
        )
    weights = {name: _weight(tensor) for name, tensor in blip_itm_module.state_dict().items()}
    config = {} if lavis else blip_itm_module.config.to_dict()
    options = _lavis_options(blip_itm_module) if lavis else {}
    name = type(blip_itm_module).__name__
    source = open_blip_tensors(dict(weights), config, options, name)
    if tokenizer is not None:
        vocabulary = Tokenizer.from_folder(tokenizer).to_json()
    else:
        vocabulary = _tokenizer_json(getattr(blip_itm_module, "tokenizer", None))
    return BlipITM(replace(source, tokenizer=with_blip_tokens(vocabulary)), precision=precision)


def _matcher_of(model: Any) -> BlipITM:
    """The matcher itself, or the one made of a torch module's present weights."""
    from ..models._blip_itm import BlipITM

    if isinstance(model, BlipITM):
        return model
    if not callable(getattr(model, "parameters", None)):
        raise TypeError(f"model: expected a BlipITM or LAVIS's torch module, got {type(model).__name__}")
    state = tuple((tensor.data_ptr(), tensor._version) for tensor in model.parameters())
    known = _converted.get(model)
    if known is None or known[0] != state:
        known = (state, from_lavis(model))
        _converted[model] = known
    return known[1]


def _weight(tensor: Any) -> Weight:
    """A torch tensor as the core takes it: its own memory where that is possible."""
    tensor = tensor.detach().cpu().contiguous()
    dtype = str(tensor.dtype).rpartition(".")[2]
    shape = tuple(tensor.shape)
    if dtype == "bfloat16":
        torch: Any = importlib.import_module("torch")
        return (tensor.view(torch.int16).numpy(), dtype, shape, 0)
    array = tensor.numpy()
    if dtype == "float64":
        array, dtype = array.astype(np.float32), "float32"
    return (array, dtype, shape, 0)


def _lavis_options(module: Any) -> dict[str, Any]:
    """What the weights' shapes do not tell, from the module's attributes."""
    vision: dict[str, Any] = {}
    blocks = getattr(module.visual_encoder, "blocks", None)
    if blocks is not None and len(blocks):
        vision["num_attention_heads"] = int(blocks[0].attn.num_heads)
    eps = getattr(getattr(module.visual_encoder, "norm", None), "eps", None)
    if eps is not None:
        vision["layer_norm_eps"] = float(eps)
    known = ("num_attention_heads", "hidden_act", "layer_norm_eps", "fusion_layer")
    config = getattr(module.text_encoder, "config", None)
    text = {name: getattr(config, name) for name in known if isinstance(getattr(config, name, None), (int, float, str))}
    options: dict[str, Any] = {"vision": vision, "text": text}
    if getattr(module, "max_txt_len", None):
        options["max_txt_len"] = int(module.max_txt_len)
    return options


def _tokenizer_json(tokenizer: Any) -> str:
    """A Hugging Face BERT tokenizer, slow or fast, as the content of a tokenizer.json."""
    from ..text import Tokenizer

    if tokenizer is None:
        raise ValueError("tokenizer: the module has none; give tokenizer= a vocab.txt or tokenizer.json")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return str(backend.to_str())
    by_number = sorted((number, token) for token, number in tokenizer.vocab.items())
    if [number for number, _ in by_number] != list(range(len(by_number))):
        raise ValueError("tokenizer: its vocabulary has gaps; give tokenizer= a vocab.txt or tokenizer.json")
    basic = getattr(tokenizer, "basic_tokenizer", None)
    lower = bool(getattr(basic, "do_lower_case", getattr(tokenizer, "do_lower_case", True)))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.txt").write_text("".join(f"{token}\n" for _, token in by_number), encoding="utf-8")
        Path(folder, "tokenizer_config.json").write_text(f'{{"do_lower_case": {str(lower).lower()}}}', encoding="utf-8")
        return Tokenizer.from_folder(folder).to_json()
