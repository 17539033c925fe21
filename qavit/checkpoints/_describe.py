"""What a model file or folder holds, without loading it."""

from __future__ import annotations

import itertools
import math
from typing import Any

from .._base.arguments import height_and_width
from .._core import build_info
from ._source import ModelSource
from ._weights import ITEM_SIZES, base_dtype, dtype_of, panel_columns, shape_of
from .towers.question_blocks import integrated_blocks

#: What the first part of a tensor's name belongs to; the others are heads.
_PARTS = {
    "vision_model": "vision", "text_model": "text", "text_encoder": "text", "text_decoder": "text", "query_tokens": "text",
}  # fmt: skip


def _check_source(source: Any) -> None:
    if not isinstance(source, ModelSource):
        raise TypeError(f"source: expected what qavit.checkpoints.open_model gives, got {type(source).__name__}")


def describe(source: ModelSource) -> dict[str, Any]:
    """What a model is: sizes, blocks, parameters, memory.

    Returns
    -------
    dict
        name, architecture; vision (image_size, patch_size, grid, hidden_size, blocks, heads, integration_point,
        integrated, instruction_dim) or None; text (kind, width, blocks, heads, vocabulary) or None; answers (a number);
        parameters and stored_bytes by part ("vision", "text", "heads", "total"); dtypes (bytes of each); panels
        (bytes by "columns" and "dtype" in a list, empty where all matrices are row-major); memory: bytes of the weights
        in each precision, and about what the activations of one image take (0 where none is looked at).
    """
    _check_source(source)
    vision, text = source.vision, source.text
    parameters = {"vision": 0, "text": 0, "heads": 0}
    stored = dict(parameters)
    dtypes: dict[str, int] = {}
    panels: dict[tuple[int, str], int] = {}
    for name, tensor in {**source.weights, **source.decoder}.items():
        dtype, shape = dtype_of(tensor), shape_of(tensor)
        part = name.split(".")[0]
        part = _PARTS.get(part, "heads")
        size = math.prod(shape)
        columns, dtype = panel_columns(dtype), base_dtype(dtype)
        stored_bytes = size * ITEM_SIZES[dtype]
        parameters[part] += size
        stored[part] += stored_bytes
        dtypes[dtype] = dtypes.get(dtype, 0) + stored_bytes
        if columns:
            panels[columns, dtype] = panels.get((columns, dtype), 0) + stored_bytes
    parameters["total"], stored["total"] = sum(parameters.values()), sum(stored.values())
    return {
        "name": source.name,
        "architecture": source.architecture,
        "vision": _describe_vision(vision) if vision else None,
        "text": None if text is None else _describe_text(text),
        "answers": len(source.answers or ()),
        "parameters": parameters,
        "stored_bytes": stored,
        "dtypes": dtypes,
        "panels": [{"columns": columns, "dtype": dtype, "bytes": size} for (columns, dtype), size in panels.items()],
        "memory": {
            "float32": 4 * parameters["total"],
            "bfloat16": 2 * parameters["total"],
            "activations": _activations(source) if vision else 0,
        },
    }


def _grid(vision: dict[str, Any]) -> tuple[int, int]:
    height, width = height_and_width(vision["image_size"])
    return height // vision["patch_size"], width // vision["patch_size"]


def _describe_vision(vision: dict[str, Any]) -> dict[str, Any]:
    point = vision.get("integration_point")
    return {
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "grid": _grid(vision),
        "hidden_size": vision["hidden_size"],
        "blocks": vision["num_hidden_layers"],
        "heads": vision["num_attention_heads"],
        "integration_point": point,
        "integrated": integrated_blocks(point, vision["num_hidden_layers"]) if point else (),
        "instruction_dim": vision.get("instruction_dim"),
    }


def _activations(source: ModelSource) -> int:
    """Bytes that one image takes, about."""
    vision = source.vision
    tokens = 1 + math.prod(_grid(vision)) + (source.questions["max_tokens"] if "instruction_dim" in vision else 0)
    return int(4 * tokens * (6 * vision["hidden_size"] + vision["intermediate_size"]))


def _describe_text(text: dict[str, Any]) -> dict[str, Any]:
    t5 = text["model_type"] == "t5"
    return {
        "kind": text["model_type"],
        "width": text["d_model" if t5 else "hidden_size"],
        "blocks": text["num_layers" if t5 else "num_hidden_layers"],
        "heads": text["num_heads" if t5 else "num_attention_heads"],
        "vocabulary": text["vocab_size"],
    }


def _panels_text(entry: dict[str, Any]) -> str:
    """What is stored in panels, and what this CPU does with it."""
    here = build_info()
    fits = entry["columns"] == here["panel_columns"] and (
        entry["dtype"] == "float32" or here["kernels"]["bfloat16"] != here["kernels"]["float32"]
    )
    use = f"used where they are mapped with precision={entry['dtype']!r}" if fits else "made anew in memory on this CPU"
    return f"{_megabytes(entry['bytes'])} {entry['dtype']} in panels of {entry['columns']} columns, {use}"


def _megabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _millions(count: int) -> str:
    millions = count / 1e6
    return f"{millions:.0f} M" if millions >= 100 else f"{millions:.3g} M"


def description_text(description: dict[str, Any]) -> str:
    """What `describe` gives, as lines for people to read."""
    vision, text = description["vision"], description["text"]
    parameters, memory = description["parameters"], description["memory"]
    kinds = {
        "qavit": "QA-ViT (question-aware vision transformer)",
        "clip": "CLIP vision transformer (takes no questions)" if text is None else "CLIP (pictures and texts in one space)",
        "siglip": "SigLIP vision transformer" if text is None else "SigLIP (pictures and texts in one space)",
        "blip_itm": "BLIP image-text matching",
        "albef": "ALBEF image-text matching",
        "blip2_itm": "BLIP-2 image-text matching (Q-Former)",
        "blip_vqa": "BLIP visual question answering",
        "blip_caption": "BLIP captioner",
        "vit": "vision transformer (takes no questions)",
        "reader": "T5 reader (answers out of texts)",
    }
    lines = [("model", f"{description['name']}: {kinds[description['architecture']]}")]
    if vision is not None:
        lines += _vision_lines(vision)
    if text is not None:
        size = f"{text['blocks']} blocks, {text['width']} wide, {text['heads']} heads, {text['vocabulary']} tokens"
        lines.append(("text", f"{text['kind']}, {size}"))
    if description["answers"]:
        lines.append(("answers", str(description["answers"])))
    parts = ", ".join(f"{part} {_millions(parameters[part])}" for part in ("vision", "text", "heads") if parameters[part])
    lines.append(("parameters", f"{_millions(parameters['total'])} ({parts})"))
    stored = ", ".join(f"{_megabytes(size)} {dtype}" for dtype, size in sorted(description["dtypes"].items()))
    lines.append(("stored", stored))
    lines += [("panels", _panels_text(entry)) for entry in description["panels"]]
    weights = f"weights {_megabytes(memory['float32'])} in float32, {_megabytes(memory['bfloat16'])} in bfloat16"
    activations = f"; activations about {_megabytes(memory['activations'])} an image" if vision is not None else ""
    lines.append(("memory", weights + activations))
    return "\n".join(f"{label:<11} {value}" for label, value in lines)


def _vision_lines(vision: dict[str, Any]) -> list[tuple[str, str]]:
    """What is told of a vision half."""
    rows, columns = vision["grid"]
    height, width = height_and_width(vision["image_size"])
    lines = [
        ("image", f"{height} x {width}, patches of {vision['patch_size']}: {rows} x {columns}"),
        ("vision", f"{vision['blocks']} blocks, {vision['hidden_size']} wide, {vision['heads']} heads"),
    ]
    if vision["integrated"]:
        blocks = vision["integrated"]
        steps = {after - before for before, after in itertools.pairwise(blocks)}
        named = f"{blocks[0]} to {blocks[-1]}" if steps <= {1} else ", ".join(map(str, blocks))
        lines.append(("questions", f"blocks {named} ({vision['integration_point']}), {vision['instruction_dim']} wide"))
    return lines
