"""Small QA-ViT folders with random weights, in the layout that `qavit.load` maps; NumPy only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from qavit.checkpoints.formats.safetensors_files import write_safetensors

GOLDEN = Path(__file__).parent / "data" / "golden"
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def write_qavit(
    folder: Path, *, blocks: int = 12, first: int | None = None, image_size: int = 42, patch: int = 7, heads: int = 2,
    width: int = 16, feed_forward: int | None = None, defaults: dict[str, Any] | None = None, **preprocessing: Any,
) -> Path:  # fmt: skip
    """A model of `blocks` blocks, of which those from `first` on (by default the second half) attend to the question."""
    random = np.random.default_rng(blocks)
    first = blocks // 2 if first is None else first
    inner = 2 * width if feed_forward is None else feed_forward
    question, words = 12, json.loads((GOLDEN / "qavit_official_late/t5/config.json").read_text())["vocab_size"]
    weights: dict[str, np.ndarray] = {}

    def add(name: str, *shape: int, scale: float = 0.5, centre: float = 0.0) -> None:
        weights[name] = (centre + scale * random.standard_normal(shape)).astype(np.float32)

    def norm(name: str, size: int) -> None:
        add(f"{name}.weight", size, scale=0.1, centre=1.0)
        add(f"{name}.bias", size, scale=0.1)

    def linear(name: str, outputs: int, inputs: int) -> None:
        add(f"{name}.weight", outputs, inputs, scale=1.5 * inputs**-0.5)
        add(f"{name}.bias", outputs, scale=0.1)

    tokens = (image_size // patch) ** 2 + 1
    add("vision_model.embeddings.class_embedding", width)
    add("vision_model.embeddings.patch_embedding.weight", width, 3, patch, patch, scale=0.1)
    add("vision_model.embeddings.position_embedding.weight", tokens, width)
    norm("vision_model.pre_layrnorm", width)
    norm("vision_model.post_layernorm", width)
    for i in range(blocks):
        block = f"vision_model.encoder.layers.{i}."
        norm(block + "layer_norm1", width)
        norm(block + "layer_norm2", width)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{block}self_attn.{part}", width, width)
        linear(block + "mlp.fc1", inner, width)
        linear(block + "mlp.fc2", width, inner)
        if i >= first:
            linear(block + "self_attn.instruction_out_proj", width, width)
            weights[block + "self_attn.instruction_proj_gate"] = np.array([0.7], np.float32)
            norm(block + "instruct_dim_reduce.0", question)
            add(block + "instruct_dim_reduce.1.weight", width, question)
            add(block + "instruct_dim_reduce.3.weight", width, width)
    add("text_model.shared.weight", words, question, scale=1.0)
    layer = "text_model.encoder.block.0.layer."
    for part, outputs, inputs in (("q", 8, question), ("k", 8, question), ("v", 8, question), ("o", question, 8)):
        add(f"{layer}0.SelfAttention.{part}.weight", outputs, inputs)
    add(layer + "0.SelfAttention.relative_attention_bias.weight", 32, 2)
    for part, outputs, inputs in (("wi_0", 16, question), ("wi_1", 16, question), ("wo", question, 16)):
        add(f"{layer}1.DenseReluDense.{part}.weight", outputs, inputs)
    for name in (layer + "0.layer_norm", layer + "1.layer_norm", "text_model.encoder.final_layer_norm"):
        add(name + ".weight", question, scale=0.1, centre=1.0)

    config = {
        "format": "qavit", "version": 1, "architecture": "qavit",
        "vision": {
            "image_size": image_size, "patch_size": patch, "hidden_size": width, "num_hidden_layers": blocks,
            "num_attention_heads": heads, "intermediate_size": inner, "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5, "integration_point": "late", "instruction_dim": question,
        },
        "text": {
            "model_type": "t5", "vocab_size": words, "d_model": question, "d_kv": 4, "d_ff": 16, "num_layers": 1,
            "num_heads": 2, "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6,
        },
        "preprocessing": {
            "size": image_size, "resize": "shortest_edge", "crop": True, "mean": MEAN, "std": STD, **preprocessing,
        },
        "questions": {"max_words": 50, "max_tokens": 30},
        **({"defaults": defaults} if defaults else {}),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    with open(folder / "model.safetensors", "wb") as file:
        write_safetensors(
            file,
            {name: (array, "float32", array.shape, 0) for name, array in weights.items()},
            dict.fromkeys(weights, "float32"),
        )
    shutil.copyfile(GOLDEN / "qavit_official_late/t5/tokenizer.json", folder / "tokenizer.json")
    return folder
