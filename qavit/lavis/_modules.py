"""Models made of live torch modules: the weights that are in memory, without a file in between."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._base.types import Precision

if TYPE_CHECKING:
    from ..checkpoints._weights import Weight
    from ..models._model import Model


class Live(NamedTuple):
    """What tells a module, by the names of its parts, and what opens it.

    Attributes
    ----------
    lavis, hugging_face : tuple of str
        What LAVIS's module has, and what Hugging Face's has.
    lacks : tuple of str
        What neither has.
    opened_by : str
        The file of `checkpoints.towers`.
    """

    lavis: tuple[str, ...]
    hugging_face: tuple[str, ...]
    lacks: tuple[str, ...]
    opened_by: str


MODULES = (
    Live(("visual_encoder", "Qformer", "itm_head"), ("vision_model", "qformer", "itm_head"), (), "blip2"),
    Live(("visual_encoder", "text_encoder", "itm_head"), ("vision_model", "text_encoder", "itm_head"), (), "blip"),
    Live(("visual_encoder", "text_decoder"), ("vision_model", "text_decoder"), ("text_encoder",), "blip_caption"),
    Live((), ("shared", "encoder", "decoder", "lm_head"), (), "reader"),
)
#: Where a tokenizer says what marks a picture's text, the marks are added.
WITH_MARKS = ("blip", "blip_caption")


def from_lavis(module: Any, *, tokenizer: Any = None, precision: Precision = "float32") -> Model:
    """A model with the weights of a live torch module, without a file in between.

    Parameters
    ----------
    module : torch module
        One of a PnP-VQA model's, or its equal of Hugging Face's: of matchers, LAVIS's blip_image_text_matching
        (``pnp_vqa.image_question_matching_model``) or blip2_image_text_matching, BlipForImageTextRetrieval or
        Blip2ForImageTextRetrieval; of captioners, LAVIS's blip_caption (``image_captioning_model``) or
        BlipForConditionalGeneration; of readers, LAVIS's pnp_unifiedqav2_fid (``question_answering_model``) or
        T5ForConditionalGeneration. It is not changed.
    tokenizer : path, optional
        vocab.txt, spiece.model or tokenizer.json; None: the module's own tokenizer (LAVIS's has one).
    precision : {"float32", "bfloat16"}
        As for `qavit.load`.

    Returns
    -------
    BlipITM, BLIP2ITM, BlipCaptioner or Reader
        It shares the memory of weights that lie on the CPU in float32, float16 or bfloat16: do not train them on; make a
        new one afterwards.

    Raises
    ------
    TypeError
        This is no such module.
    ValueError
        Weights are missing or mis-shaped, or no tokenizer is there.
    """
    from ..checkpoints._given import Asked, Given
    from ..checkpoints.formats.reading import Content
    from ..models._load import MODELS
    from ..text import Tokenizer, with_blip_tokens

    live = _told(module)
    lavis = hasattr(module, "visual_encoder")
    tensors = {name: _weight(tensor) for name, tensor in _unwrapped(module.state_dict()).items()}
    options = _lavis_options(module) if lavis else {"prompt": ""} if live.opened_by == "blip_caption" else {}
    config = {} if lavis else module.config.to_dict()
    given = Given(type(module).__name__, Asked(options=options), config=config, checkpoint=Content(dict(tensors)))
    source = importlib.import_module(f"..checkpoints.towers.{live.opened_by}", __package__).open_files(given)
    if tokenizer is not None:
        vocabulary = Tokenizer.from_folder(tokenizer).to_json()
    else:
        vocabulary = _tokenizer_json(getattr(module, "tokenizer", None))
    vocabulary = with_blip_tokens(vocabulary) if live.opened_by in WITH_MARKS else vocabulary
    place, name = MODELS[source.architecture]
    kind: type[Model] = getattr(importlib.import_module(place, "qavit.models"), name)
    return kind(replace(source, tokenizer=vocabulary), precision=precision)  # type: ignore[call-arg]


def _told(module: Any) -> Live:
    """What a module is, by the names of its parts; TypeError where it is none of those that are known."""
    for live in MODULES if callable(getattr(module, "state_dict", None)) else ():
        parts = live.lavis if hasattr(module, "visual_encoder") else (*live.hugging_face, "config")
        if parts and all(hasattr(module, name) for name in parts) and not any(hasattr(module, name) for name in live.lacks):
            return live
    raise TypeError(
        "module: expected a torch module of a matcher (visual_encoder, text_encoder or Qformer, itm_head, as LAVIS's "
        "blip_image_text_matching), a captioner (visual_encoder, text_decoder) or a T5 (encoder, decoder, lm_head), got "
        f"{type(module).__name__}"
    )


def _unwrapped(state: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors by their usual names: LAVIS wraps its reader's encoder, and lists the encoder's blocks a second time."""
    inner = "encoder.encoder."
    if not any(name.startswith(inner) for name in state):
        return dict(state)
    own = {name: tensor for name, tensor in state.items() if not name.startswith("encoder.")}
    return own | {name[len("encoder.") :]: tensor for name, tensor in state.items() if name.startswith(inner)}


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
    last = getattr(module, "ln_vision", None)
    norm: Any = getattr(module.visual_encoder, "norm", None) if last is None or not blocks else blocks[0].norm1
    norms = {"layer_norm_eps": norm, "post_norm_eps": last}
    vision.update((key, float(one.eps)) for key, one in norms.items() if one is not None)
    known = ("num_attention_heads", "hidden_act", "layer_norm_eps", "fusion_layer")
    queries = getattr(module, "Qformer", None)
    text_half = getattr(module, "text_encoder", None) or getattr(module, "text_decoder", None)
    config = getattr(text_half if queries is None else queries.bert, "config", None)
    text = {name: getattr(config, name) for name in known if isinstance(getattr(config, name, None), (int, float, str))}
    options: dict[str, Any] = {"vision": vision, "text": text}
    if getattr(module, "max_txt_len", None):
        options["max_txt_len"] = int(module.max_txt_len)
    if isinstance(getattr(module, "prompt", None), str):
        options["prompt"] = module.prompt
    return options


def _tokenizer_json(tokenizer: Any) -> str:
    """A Hugging Face tokenizer, a BERT's slow or fast or a T5's, as the content of a tokenizer.json."""
    from ..text import Tokenizer

    if tokenizer is None:
        raise ValueError("tokenizer: the module has none; give tokenizer= a vocab.txt, spiece.model or tokenizer.json")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return str(backend.to_str())
    if str(getattr(tokenizer, "vocab_file", "")).endswith(".model") and Path(tokenizer.vocab_file).is_file():
        return Tokenizer.from_folder(tokenizer.vocab_file).to_json()
    by_number = sorted((number, token) for token, number in tokenizer.vocab.items())
    if [number for number, _ in by_number] != list(range(len(by_number))):
        raise ValueError("tokenizer: its vocabulary has gaps; give tokenizer= a vocab.txt, spiece.model or tokenizer.json")
    basic = getattr(tokenizer, "basic_tokenizer", None)
    lower = bool(getattr(basic, "do_lower_case", getattr(tokenizer, "do_lower_case", True)))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.txt").write_text("".join(f"{token}\n" for _, token in by_number), encoding="utf-8")
        Path(folder, "tokenizer_config.json").write_text(f'{{"do_lower_case": {str(lower).lower()}}}', encoding="utf-8")
        return Tokenizer.from_folder(folder).to_json()
