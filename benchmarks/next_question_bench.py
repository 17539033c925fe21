"""One more question about a picture that was asked about before: qavit, and the public code's way under torch.

    python -m benchmarks.next_question_bench                    # QA-ViT L/14@336 late with flan-T5-base's encoder
    python -m benchmarks.next_question_bench --small --rounds 1 # the same code in a few seconds

Random weights, one process, in turns. Each side is given the picture's pixels and a question that it has not seen, and gives
the class token's map of block 18 (small: of the last block). The public code runs the text encoder and the whole tower.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import qavit
from qavit.checkpoints import open_model
from qavit.text import Tokenizer

from .memory_bench import TEXT, VISION, make_pair
from .quiet import be_quiet, hushed
from .sizes import Size
from .table import beside, write_rows
from .timing import interleave

SMALL = {"image_size": 84, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
SMALL_TEXT = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
WORDS = ("where", "is", "the", "red", "car", "left", "right", "man", "blue", "hat", "street", "near", "what", "colour")


def questions() -> list[str]:
    """Many, all different, of six words."""
    chosen = itertools.permutations(WORDS, 6)
    return [" ".join(next(chosen)) for _ in range(4000)][::37]


class PublicWay:
    """T5's encoder by transformers, then the whole tower by torch: what the public code does for every question."""

    def __init__(self, weights: dict[str, Any], vision: dict[str, Any], text: dict[str, Any]) -> None:
        import torch
        from transformers import T5Config, T5EncoderModel

        from qavit.checkpoints._weights import float_array

        from .models import QuestionLoop

        tensors = {name: torch.from_numpy(np.array(float_array(one))) for name, one in weights.items()}
        self.encoder = T5EncoderModel(T5Config(**text)).eval()
        own = {name.removeprefix("text_model."): one for name, one in tensors.items() if name.startswith("text_model.")}
        self.encoder.load_state_dict({**own, "encoder.embed_tokens.weight": own["shared.weight"]}, strict=False)
        size = Size(
            "", *(vision[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                                          "patch_size", "image_size")),
        )  # fmt: skip
        self.loop = QuestionLoop(tensors, size, size.blocks // 2)

    def __call__(self, pixels: Any, ids: Any, block: int) -> Any:
        import torch

        with torch.inference_mode():
            states = self.encoder(torch.from_numpy(ids)[None].long()).last_hidden_state
            return self.loop(torch.from_numpy(pixels[None]), states, block).mean(0).numpy()


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="questions of each side that count (default: 3)")
    parser.add_argument("--threads", type=int, help="of both sides (default: qavit's own)")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time, with --threads 1")
    parser.add_argument("--small", action="store_true", help="a small model, to try the code")
    parser.add_argument("--rows", type=Path, help="write rows for the table of all benchmarks there")
    options = parser.parse_args(given)
    be_quiet()
    import torch

    if options.threads is not None:
        qavit.set_num_threads(options.threads)
    torch.set_num_threads(qavit.get_num_threads())
    vision, text = ({**VISION, **SMALL}, {**TEXT, **SMALL_TEXT}) if options.small else (VISION, TEXT)
    block = vision["num_hidden_layers"] - 1 if options.small else 18
    pixels = np.random.default_rng(0).standard_normal((3, vision["image_size"], vision["image_size"])).astype(np.float32)
    asked = iter(questions())
    calls: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as temporary, hushed():
        places = make_pair(Path(temporary), vision, text)
        models = {p: qavit.load(**places, precision=p) for p in ("float32", "bfloat16")}
        public = PublicWay(open_model(**places).weights, vision, text)
        tokenizer = Tokenizer.from_folder(places["text"])

    def mine(precision: str, first: bool) -> Any:
        if first or precision not in seen:
            seen[precision] = pixels + np.float32(next(shift))
        return models[precision].heatmaps(seen[precision], next(asked), method="class", block=block).raw[0]

    def theirs() -> Any:
        return public(pixels, tokenizer.encode([next(asked)], 30).ids[0], block)

    shift = itertools.count(1)
    seen: dict[str, Any] = {}  # the picture that each was asked about last
    said = next(asked)
    expected = public(pixels, tokenizer.encode([said], 30).ids[0], block)
    found = models["float32"].heatmaps(pixels, said, method="class", block=block).raw[0].ravel()
    far = float(np.abs(found - expected).max() / expected.max())
    if not far < 1e-3:
        raise SystemExit(f"the sides differ by {far:.1e} of the largest value")
    for precision in models:
        calls[f"{precision}, a new picture"] = partial(mine, precision, True)
        calls[f"{precision}, next question"] = partial(mine, precision, False)
    calls["public code, torch"] = theirs
    times = interleave(calls, options.rounds, options.clock)
    sides = {name: {"ms": 1e3 * times.median(name)} for name in calls}
    own = [name for name in calls if name != "public code, torch"]
    work = f"QA-ViT {'small' if options.small else 'L/14@336'} late with T5, map of block {block}"
    rows = beside(work, sides, own, dict.fromkeys(own, ("public code, torch",)))
    for row in rows:
        print(f"{row.work}: {row.side} {row.ms:.1f} ms; {row.peer} {row.peer_ms:.1f} ms ({row.ratio:.2f}x)")
    write_rows(options.rows, rows)


if __name__ == "__main__":
    main()
