"""Export a checkpoint: `python -m training.export --checkpoint training/runs/demo/checkpoint.pt --out qavit/demo_model`.

Writes config.json, model.safetensors (float16), tokenizer.json, and a held-out scene with three questions (scene.png,
scene.json).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.batches import END, MEAN, PAD, STD, UNKNOWN
from training.model import Config
from training.questions import ANSWERS, COLOR_WORDS, SHAPE_WORDS
from training.scenes import SHAPES, draw_scene

# how the tokenizer cuts a question: lower case, letters and digits kept, all else is space
_SEPARATORS = "[^a-z0-9<>]+"


def model_config(c: Config, answers: list[str], block: int) -> dict[str, Any]:
    """config.json's content."""
    return {
        "format": "qavit",
        "version": 1,
        "architecture": "qavit",
        "vision": {
            "image_size": c.image_size,
            "patch_size": c.patch_size,
            "hidden_size": c.width,
            "num_hidden_layers": c.blocks,
            "num_attention_heads": c.heads,
            "intermediate_size": c.feed_forward,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "integration_point": "late",
            "instruction_dim": c.text_width,
        },
        "text": {
            "model_type": "t5",
            "vocab_size": c.vocabulary,
            "d_model": c.text_width,
            "d_kv": c.text_width // c.text_heads,
            "d_ff": c.text_feed_forward,
            "num_layers": c.text_blocks,
            "num_heads": c.text_heads,
            "feed_forward_proj": "gated-gelu",
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
            "layer_norm_epsilon": 1e-6,
        },
        "preprocessing": {
            "size": c.image_size,
            "resize": "shortest_edge",
            "crop": True,
            "mean": list(MEAN),
            "std": list(STD),
        },
        "questions": {"max_words": 50, "max_tokens": 30},
        "answers": answers,
        "defaults": {"block": block, "method": "class"},
    }


def tokenizer_json(vocabulary: list[str]) -> str:
    """A word-level tokenizer in the tokenizers library's format."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNKNOWN))
    tokenizer.add_special_tokens([PAD, END, UNKNOWN])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(_SEPARATORS), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, vocabulary.index(END))]
    )
    return str(tokenizer.to_str(pretty=True))


def write_scene(folder: Path, seed: int) -> None:
    """Draw scene.png (384 x 384, never trained on) and scene.json: three questions about three objects, with their boxes."""
    from PIL import Image

    scene = draw_scene(seed, 384, "held_out", 5)
    Image.fromarray(scene.image).save(folder / "scene.png", optimize=True)
    asked, seen = [], set()
    for thing, box in zip(scene.objects, scene.boxes):
        if len(asked) == 3 or thing.shape in seen:
            continue
        seen.add(thing.shape)
        noun = f"{COLOR_WORDS[thing.color][0]} {SHAPE_WORDS[thing.shape][0]}"
        forms = (
            (f"Is there a {noun}?", "yes"),
            (f"What color is the {thing.shape}?", thing.color),
            (f"What shape is the {thing.color} object?", thing.shape),
        )
        text, answer = forms[len(asked)]
        asked.append({"question": text, "answer": answer, "boxes": [[round(v, 1) for v in box]]})
    content = {"seed": seed, "objects": [f"{o.color} {o.shape}" for o in scene.objects], "questions": asked}
    (folder / "scene.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def scene_for_pictures(first: int = 0) -> int:
    """The first held-out seed whose five objects have five different colours and shapes."""
    for seed in range(first, first + 10_000):
        things = draw_scene(seed, 16, "held_out", 5).objects
        shapes = [o.shape for o in things]
        if len(things) == 5 and len({o.color for o in things}) == 5 and len(set(shapes)) == 5 and set(shapes) <= set(SHAPES):
            return seed
    raise ValueError("no such scene among 10,000 seeds")


def export(checkpoint: Path, folder: Path, block: int, dtype: torch.dtype = torch.float16) -> None:
    """Write the model folder.

    Parameters
    ----------
    checkpoint : Path
        A checkpoint of `training.train`; its moving average is exported.
    folder : Path
        Made when missing; files of the same names are replaced.
    block : int
        The block that `heatmaps(block=None)` uses.
    dtype : torch.dtype
        Type of the stored weights.
    """
    from safetensors.torch import save_file

    saved = torch.load(checkpoint, weights_only=True)
    config = Config(**saved["config"])
    if list(saved["answers"]) != list(ANSWERS):
        raise ValueError(f"{checkpoint} was trained with other answers than training.questions.ANSWERS")
    weights = {name: value.to(dtype).contiguous() for name, value in saved["average"].items()}
    for name, value in weights.items():
        if not np.isfinite(value.float().numpy()).all():
            raise ValueError(f"{name} does not fit {dtype}")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(
        json.dumps(model_config(config, list(saved["answers"]), block), indent=1) + "\n", encoding="utf-8"
    )
    (folder / "tokenizer.json").write_text(tokenizer_json(list(saved["vocabulary"])) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--block", type=int, default=9, help="block that heatmaps use unless told otherwise")
    parser.add_argument(
        "--scene-seed", type=int, help="seed of scene.png; by default the first with five colours and five shapes"
    )
    options = parser.parse_args()
    export(options.checkpoint, options.out, options.block)
    write_scene(options.out, scene_for_pictures() if options.scene_seed is None else options.scene_seed)


if __name__ == "__main__":
    main()
