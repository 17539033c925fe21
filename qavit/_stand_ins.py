"""Weights that stand in for those that people have: the public layouts, small sizes, random numbers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ._base.files import PathLike, make_folder
from .checkpoints._weights import Stored, Weights
from .checkpoints.formats.safetensors_files import write_safetensors

Shapes = dict[str, tuple[int, ...]]
WIDTH = 48
BLIP_VISION, BLIP_PATCHES, BLIP_DEPTH = 32, 24 * 24, 2
_TEXT = (
    "a an the of on in with and is are there where what which who how many does this that his her it its to picture man "
    "woman dog cat person people child two three red blue green yellow white black purple orange small large square circle "
    "star ring triangle cross color colour shape object left right middle top bottom sitting standing holding wearing next "
    "street table water tree house car bus sky"
)
WORDS = _TEXT.split()
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def stand_in_weights(kind: str, folder: PathLike | None = None) -> dict[str, Any]:
    """Write a small model with random weights, in the layout that is published, to try calls without a download.

    Its maps and answers mean nothing. The same kind is the same model every time.

    Parameters
    ----------
    kind : {"clip", "qavit", "blip_vqa", "blip_itm", "blip_caption", "reader"}
        A CLIP folder with both halves; a QA-ViT checkpoint with its CLIP and T5 folders; BLIP's checkpoints of question
        answering, image-text matching and captioning, as LAVIS has them; a T5 that answers. The last three are PnP-VQA's.
    folder : path, optional
        Where a folder of that name is made; by default a new temporary one, which stays.

    Returns
    -------
    dict
        The arguments of :func:`qavit.load`.

    Raises
    ------
    ValueError
        Another kind.
    FileExistsError
        The folder is there already, and not empty.

    Examples
    --------
    >>> import qavit
    >>> model = qavit.load(**qavit.stand_in_weights("clip"))
    >>> model.kind
    'clip'
    """
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected {', '.join(map(repr, KINDS))}")
    place = Path(tempfile.mkdtemp(prefix="qavit-")) if folder is None else make_folder(folder, "folder")
    place = make_folder(place / kind, "folder")
    if any(place.iterdir()):
        raise FileExistsError(f"folder: {place} is there already, and not empty")
    return KINDS[kind](place)


def _random(shapes: Shapes) -> Weights:
    """Tensors by their names: norms near one, the others so that what goes through keeps its size."""
    random = np.random.default_rng(0)
    made: Weights = {}
    for name, shape in shapes.items():
        values = random.standard_normal(shape) / max(shape[-1], 1) ** 0.5
        if "norm" in name.lower() and name.endswith("weight"):
            values = 1 + 0.1 * values
        made[name] = (values.astype(np.float32), "float32", shape, 0)
    return made


def _save(shapes: Shapes, path: Path) -> Path:
    weights: Stored = dict(_random(shapes))
    with open(path, "wb") as file:
        write_safetensors(file, weights, dict.fromkeys(weights, "float32"))
    return path


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _clip_block(stem: str, width: int) -> Shapes:
    shapes = _norm(f"{stem}.layer_norm1", width) | _norm(f"{stem}.layer_norm2", width)
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= _linear(f"{stem}.self_attn.{part}", width, width)
    return shapes | _linear(f"{stem}.mlp.fc1", 4 * width, width) | _linear(f"{stem}.mlp.fc2", width, 4 * width)


def _clip_vision(width: int, blocks: int, side: int, patch: int) -> Shapes:
    shapes: Shapes = {
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": (1 + (side // patch) ** 2, width),
        **_norm("vision_model.pre_layrnorm", width),
        **_norm("vision_model.post_layernorm", width),
    }
    for block in range(blocks):
        shapes |= _clip_block(f"vision_model.encoder.layers.{block}", width)
    return shapes


def _clip(place: Path) -> dict[str, Any]:
    width, blocks, side, patch, joint = 64, 6, 112, 8, 32
    letters = [chr(n) for n in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    shapes = {
        **_clip_vision(width, blocks, side, patch),
        "text_model.embeddings.token_embedding.weight": (len(pieces), width),
        "text_model.embeddings.position_embedding.weight": (77, width),
        **_norm("text_model.final_layer_norm", width),
        "visual_projection.weight": (joint, width),
        "text_projection.weight": (joint, width),
    }
    for block in range(blocks):
        shapes |= _clip_block(f"text_model.encoder.layers.{block}", width)
    _save(shapes, place / "model.safetensors")
    sizes = {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": blocks, "num_attention_heads": 4,
        "hidden_act": "quick_gelu", "projection_dim": joint,
    }  # fmt: skip
    vision = {"model_type": "clip_vision_model", "image_size": side, "patch_size": patch, **sizes}
    text = {"model_type": "clip_text_model", "vocab_size": len(pieces), "max_position_embeddings": 77, **sizes}
    text["eos_token_id"] = len(pieces) - 1
    config = {"model_type": "clip", "vision_config": vision, "text_config": text, "projection_dim": joint}
    _write_json(place / "config.json", config)
    _write_json(place / "vocab.json", {piece: number for number, piece in enumerate(pieces)})
    (place / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return {"path": str(place)}


def _t5(blocks: int, vocabulary: int, half: str, cross: bool = False, inner: int = 2 * WIDTH) -> Shapes:
    shapes: Shapes = {f"{half}.final_layer_norm.weight": (WIDTH,)}
    shapes[f"{half}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, 4)
    kinds = ["SelfAttention", *(["EncDecAttention"] if cross else []), "DenseReluDense"]
    for block in range(blocks):
        for layer, kind in enumerate(kinds):
            stem = f"{half}.block.{block}.layer.{layer}."
            shapes[f"{stem}layer_norm.weight"] = (WIDTH,)
            if kind == "DenseReluDense":
                shapes |= {f"{stem}{kind}.wi_{i}.weight": (inner, WIDTH) for i in (0, 1)}
                shapes[f"{stem}{kind}.wo.weight"] = (WIDTH, inner)
            else:
                shapes |= {f"{stem}{kind}.{part}.weight": (WIDTH, WIDTH) for part in "qkvo"}
    return shapes


def _write_t5(place: Path, reads_only: bool) -> None:
    """A T5 folder: its encoder, or all of it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    known = ["▁", *"abcdefghijklmnopqrstuvwxyz0123456789'-,.?:\\", *(f"▁{word}" for word in WORDS if len(word) > 1)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -3.0) for piece in known)]
    tokenizer = Tokenizer(models.Unigram(pieces, 2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    place.mkdir(exist_ok=True)
    tokenizer.save(str(place / "tokenizer.json"))
    shapes = {"shared.weight": (len(pieces), WIDTH), **_t5(2, len(pieces), "encoder")}
    if not reads_only:
        shapes |= {"lm_head.weight": (len(pieces), WIDTH), **_t5(2, len(pieces), "decoder", cross=True)}
    _save(shapes, place / "model.safetensors")
    config = {
        "model_type": "t5", "d_model": WIDTH, "d_kv": WIDTH // 4, "d_ff": 2 * WIDTH, "num_layers": 2, "num_heads": 4,
        "vocab_size": len(pieces), "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
        "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    _write_json(place / "config.json", config if reads_only else {**config, "num_decoder_layers": 2})


def _qavit(place: Path) -> dict[str, Any]:
    width, blocks = 64, 24
    vision = _clip_vision(width, blocks, 336, 14)
    questions: Shapes = {}
    for block in range(blocks // 2, blocks):  # what QA-ViT adds to each block that takes the question
        stem = f"vision_model.encoder.layers.{block}."
        questions |= _norm(f"{stem}instruct_dim_reduce.0", WIDTH)
        questions[f"{stem}instruct_dim_reduce.1.weight"] = (width, WIDTH)
        questions[f"{stem}instruct_dim_reduce.3.weight"] = (width, width)
        questions |= _linear(f"{stem}self_attn.instruction_out_proj", width, width)
        questions[f"{stem}self_attn.instruction_proj_gate"] = (1,)
    clip = make_folder(place / "clip", "folder")
    _save(vision, clip / "model.safetensors")
    config = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, "num_attention_heads": 4}
    _write_json(clip / "config.json", {**config, "hidden_act": "quick_gelu"})
    _write_t5(place / "t5", reads_only=True)
    checkpoint = _save(vision | questions, place / "qavit.safetensors")
    return {"checkpoint": str(checkpoint), "vision": str(clip), "text": str(place / "t5")}


def _blip_vision() -> Shapes:
    width = BLIP_VISION
    shapes: Shapes = {
        "visual_encoder.cls_token": (1, 1, width),
        "visual_encoder.pos_embed": (1, 1 + BLIP_PATCHES, width),
        "visual_encoder.patch_embed.proj.weight": (width, 3, 16, 16),
        "visual_encoder.patch_embed.proj.bias": (width,),
        **_norm("visual_encoder.norm", width),
    }
    for block in range(BLIP_DEPTH):
        stem = f"visual_encoder.blocks.{block}."
        shapes |= _linear(f"{stem}attn.qkv", 3 * width, width) | _linear(f"{stem}attn.proj", width, width)
        shapes |= _linear(f"{stem}mlp.fc1", 4 * width, width) | _linear(f"{stem}mlp.fc2", width, 4 * width)
        shapes |= _norm(f"{stem}norm1", width) | _norm(f"{stem}norm2", width)
    return shapes


def _bert(stem: str, vocabulary: int, layers: int, seen: int = BLIP_VISION) -> Shapes:
    """BERT whose layers attend to states of another model, too, which are `seen` wide."""
    shapes: Shapes = {
        f"{stem}.embeddings.word_embeddings.weight": (vocabulary, WIDTH),
        f"{stem}.embeddings.position_embeddings.weight": (64, WIDTH),
        **_norm(f"{stem}.embeddings.LayerNorm", WIDTH),
    }
    for layer in range(layers):
        name = f"{stem}.encoder.layer.{layer}."
        for attention, source in (("attention", WIDTH), ("crossattention", seen)):
            shapes |= _linear(f"{name}{attention}.self.query", WIDTH, WIDTH)
            shapes |= _linear(f"{name}{attention}.self.key", WIDTH, source)
            shapes |= _linear(f"{name}{attention}.self.value", WIDTH, source)
            shapes |= _linear(f"{name}{attention}.output.dense", WIDTH, WIDTH)
            shapes |= _norm(f"{name}{attention}.output.LayerNorm", WIDTH)
        shapes |= _linear(f"{name}intermediate.dense", 2 * WIDTH, WIDTH) | _linear(f"{name}output.dense", WIDTH, 2 * WIDTH)
        shapes |= _norm(f"{name}output.LayerNorm", WIDTH)
    return shapes


def _blip_files(place: Path, shapes: Callable[[int], Shapes]) -> dict[str, Any]:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words: Iterable[str] = [*MARKS, *WORDS, *(one for one in [*letters, *"?.,'-"] if one not in WORDS)]
    words = [*words, *(f"##{letter}" for letter in letters)]
    (place / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    checkpoint = _save(shapes(len(words) + 2), place / "checkpoint.safetensors")  # [DEC] and [ENC]
    # LAVIS's own sizes are told by the weights; how many heads such small ones have is not.
    config = {"vision": {"num_heads": 4}, "text": {"num_attention_heads": 4}}
    return {"checkpoint": str(checkpoint), "tokenizer": str(place / "vocab.txt"), "config": config}


def _blip_itm(place: Path) -> dict[str, Any]:
    def shapes(vocabulary: int) -> Shapes:
        heads = _linear("itm_head", 2, WIDTH) | _linear("vision_proj", 16, BLIP_VISION) | _linear("text_proj", 16, WIDTH)
        return {**_blip_vision(), **_bert("text_encoder", vocabulary, 12), **heads}

    return _blip_files(place, shapes)


def _blip_decoder(vocabulary: int, layers: int, seen: int) -> Shapes:
    head = "text_decoder.cls.predictions"
    return {
        **_bert("text_decoder.bert", vocabulary, layers, seen),
        **_linear(f"{head}.transform.dense", WIDTH, WIDTH),
        **_norm(f"{head}.transform.LayerNorm", WIDTH),
        **_linear(f"{head}.decoder", vocabulary, WIDTH),
        f"{head}.bias": (vocabulary,),
    }


def _blip_caption(place: Path) -> dict[str, Any]:
    return _blip_files(place, lambda vocabulary: {**_blip_vision(), **_blip_decoder(vocabulary, 3, BLIP_VISION)})


def _blip_vqa(place: Path) -> dict[str, Any]:
    def shapes(vocabulary: int) -> Shapes:
        # The decoder reads what the text encoder made of question and picture.
        return {**_blip_vision(), **_bert("text_encoder", vocabulary, 12), **_blip_decoder(vocabulary, 12, WIDTH)}

    return _blip_files(place, shapes)


def _reader(place: Path) -> dict[str, Any]:
    _write_t5(place, reads_only=False)
    return {"reader": str(place)}


KINDS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "clip": _clip, "qavit": _qavit, "blip_vqa": _blip_vqa, "blip_itm": _blip_itm, "blip_caption": _blip_caption,
    "reader": _reader,
}  # fmt: skip
