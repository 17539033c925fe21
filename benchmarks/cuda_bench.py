"""A GPU: qavit beside torch on the same card. `python -m benchmarks.cuda_bench`; needs qavit and torch with CUDA.

CLIP L/14@336 with the class token's map of one block, QA-ViT of the same size with ten questions an image, and BLIP-ITM's
GradCAM, at batch 1, 8 and 32: medians of interleaved runs, host to host, and the part of the card's own peak, which a large
product in torch measures. Without a GPU it says what is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import qavit
from benchmarks import blip_bench, models
from benchmarks.timing import interleave
from qavit import _core

BATCHES = (1, 8, 32)
QUESTIONS, TOKENS, QUESTION_WIDTH, BLOCK = 10, 16, 768, 18
Runs = dict[str, Callable[[], object]]


def linear_operations(sequences: float) -> float:
    """Of so many sequences through a block of L/14@336: its products and attention."""
    tokens, width, hidden = 577, 1024, 4096
    return sequences * (2.0 * tokens * (4 * width * width + 2 * width * hidden) + 4.0 * tokens * tokens * width)


def clip_runs(batch: int, precision: str) -> tuple[Runs, float]:
    """One map an image: qavit stops at its block; torch runs the model as it is, eager (with attentions) and compiled."""
    model = models.clip_model(models.SIZES["L/14@336"])
    vit = _core.Vit(models.SIZES["L/14@336"].config, models.core_weights(models.state_of(model)), precision,
                    device=_core.Device("cuda"))  # fmt: skip
    images = np.random.default_rng(0).standard_normal((batch, 3, 336, 336)).astype(np.float32)
    maps = models.ClassMaps(model).cuda().to(torch.bfloat16 if precision == "bfloat16" else torch.float32)
    compiled = torch.compile(maps)

    def in_torch(module: Any) -> Callable[[], object]:
        def run() -> object:
            with torch.no_grad():
                pixels = torch.from_numpy(images).to("cuda", next(maps.parameters()).dtype)
                return module(pixels).float().cpu()

        return run

    return {
        "qavit": lambda: vit.forward(images, attention=[(i, "class") for i in range(24)]),
        "torch eager": in_torch(maps),
        "torch.compile": in_torch(compiled),
    }, linear_operations(24 * batch)


def qavit_runs(batch: int, precision: str) -> tuple[Runs, float]:
    """Ten questions an image; there is no peer that gives these maps."""
    size = models.SIZES["L/14@336"]
    state = models.add_question_layers(models.state_of(models.clip_model(size)), size, QUESTION_WIDTH, 12)
    config = {**size.config, "integrated": list(range(12, 24)), "instruction_dim": QUESTION_WIDTH}
    vit = _core.Vit(config, models.core_weights(state), precision, device=_core.Device("cuda"))
    random = np.random.default_rng(0)
    images = random.standard_normal((batch, 3, 336, 336)).astype(np.float32)
    states = random.standard_normal((batch * QUESTIONS, TOKENS, QUESTION_WIDTH)).astype(np.float32)
    pairs, lengths = np.repeat(np.arange(batch, dtype=np.int32), QUESTIONS), np.full(batch * QUESTIONS, TOKENS, np.int32)
    sequences = batch * (12 + QUESTIONS * (BLOCK - 12))
    runs: Runs = {"qavit": lambda: vit.forward(images, pairs, states, lengths, attention=[(BLOCK, "class")])}
    return runs, linear_operations(sequences)


def blip_runs(folder: Path, batch: int, precision: str) -> tuple[Runs, None]:
    """GradCAM of pairs: autograd through the text half alone, the best that torch can do, against qavit."""
    from transformers import BlipForImageTextRetrieval

    model = qavit.load(folder, precision=precision, device="cuda")
    images = np.random.default_rng(1).standard_normal((batch, 3, 384, 384)).astype(np.float32)
    asked = [blip_bench.questions()[i % QUESTIONS] for i in range(batch)]
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    peer = BlipForImageTextRetrieval.from_pretrained(folder, attn_implementation="eager").eval().cuda().to(dtype)
    peer.requires_grad_(False)
    tokens = model._tokenize(asked)
    ids, mask = torch.from_numpy(tokens.ids).long().cuda(), torch.from_numpy(tokens.mask).long().cuda()

    def gradcam() -> object:
        states = peer.vision_model(torch.from_numpy(images).to("cuda", dtype)).last_hidden_state.detach().requires_grad_()
        out = peer.text_encoder(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=states, output_attentions=True, return_dict=True,
            encoder_attention_mask=torch.ones(states.shape[:2], device="cuda"),
        )  # fmt: skip
        probabilities = out.cross_attentions[blip_bench.BLOCK]
        loss = peer.itm_head(out.last_hidden_state[:, 0])[:, 1].sum()
        (gradient,) = torch.autograd.grad(loss, probabilities)
        return (probabilities * gradient.clamp(min=0)).mean(1)[..., 1:].float().cpu()

    samples = {"image": images, "text_input": asked}
    return {"qavit": lambda: model.forward_itm(samples, block_num=blip_bench.BLOCK), "torch eager": gradcam}, None


def peak(precision: str) -> float:
    """Operations a second of a large product."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a = torch.randn(8192, 8192, device="cuda", dtype=dtype)

    def run() -> None:
        torch.mm(a, a)
        torch.cuda.synchronize()

    run()
    return 2.0 * 8192**3 / interleave({"product": run}, 10, "wall").median("product")


def main() -> int:
    """Measure what the options name; a line a contender, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="*", default=BATCHES)
    parser.add_argument("--precisions", nargs="*", default=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        _core.check_device("cuda")
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    if not torch.cuda.is_available():
        print("this torch has no CUDA", file=sys.stderr)
        return 1
    print(torch.cuda.get_device_name(), file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        blip_bench.make_folder(Path(name))
        works: dict[str, Callable[[int, str], tuple[Runs, float | None]]] = {
            "CLIP L/14@336, maps of all blocks": clip_runs,
            "QA-ViT L/14@336, ten questions": qavit_runs,
            "BLIP-ITM GradCAM": lambda batch, precision: blip_runs(Path(name), batch, precision),
        }
        for precision in options.precisions:
            limit = peak(precision)
            for work, make in works.items():
                for batch in options.batches:
                    runs, operations = make(batch, precision)
                    for run in runs.values():  # plans, arenas and compilation come first
                        run()
                        run()
                    times = interleave(runs, options.rounds, "wall")
                    for contender in runs:
                        seconds = times.median(contender)
                        line: dict[str, Any] = {"work": work, "precision": precision, "batch": batch, "who": contender}
                        line["milliseconds"] = round(1000 * seconds, 3)
                        if operations is not None:
                            line["of_peak"] = round(operations / seconds / limit, 3)
                        text = json.dumps(line) if options.json else "  ".join(str(value) for value in line.values())
                        print(text, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
