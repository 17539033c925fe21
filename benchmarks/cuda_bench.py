"""A GPU: qavit beside torch on the same card. `python -m benchmarks.cuda_bench`; needs qavit and torch with CUDA.

Attention alone (`benchmarks.cuda_attention`, which needs no torch), CLIP L/14@336 with the class token's map of one block,
QA-ViT of the same size with ten questions an image, and BLIP-ITM's GradCAM, at batch 1, 8 and 32: medians of interleaved
runs, host to host, and the part of the card's own peak, which a large product in torch measures. Without a GPU it says what
is missing; `--small` tries the script itself, on the host.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import qavit
from benchmarks import blip_bench, cuda_attention, models
from benchmarks.sizes import SIZES, Size
from benchmarks.timing import interleave
from qavit import _core
from qavit.images import Preprocessing

BATCHES = (1, 8, 32)
QUESTIONS, TOKENS, QUESTION_WIDTH = 10, 16, 768
Runs = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Work:
    """What is measured, and where."""

    device: str
    size: Size
    vision: dict[str, Any]  # BLIP's
    text: dict[str, Any]

    @property
    def torch(self) -> str:
        """torch's device."""
        return "cuda" if self.device == "cuda" else "cpu"

    @property
    def first(self) -> int:
        """The first block that takes the question."""
        return self.size.blocks // 2

    @property
    def block(self) -> int:
        """The block whose map is read."""
        return 3 * self.size.blocks // 4

    def linear_operations(self, sequences: float) -> float:
        """Of so many sequences through one block of the vision model: its products and attention."""
        tokens, width, hidden = self.size.tokens, self.size.hidden, self.size.feed_forward
        return sequences * (2.0 * tokens * (4 * width * width + 2 * width * hidden) + 4.0 * tokens * tokens * width)


FULL = Work("cuda", SIZES["L/14@336"], blip_bench.VISION, blip_bench.TEXT)
# For trying the script where there is no GPU: "cuda-host" runs the kernels on the CPU, slowly.
SMALL = Work(
    "cuda-host",
    Size("small", 32, 64, 4, 2, 14, 28),
    {**blip_bench.VISION, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
     "image_size": 32},
    {**blip_bench.TEXT, "hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
     "vocab_size": 1200},
)  # fmt: skip


def clip_runs(work: Work, batch: int, precision: str) -> tuple[Runs, float]:
    """One map an image: qavit stops at its block; torch runs the model as it is, eager (with attentions) and compiled."""
    size, blocks = work.size, work.size.blocks
    model = models.clip_model(size)
    vit = _core.Vit(size.config, models.core_weights(models.state_of(model)), precision, device=_core.Device(work.device))
    random = np.random.default_rng(0)
    images = random.standard_normal((batch, 3, size.image, size.image)).astype(np.float32)
    pictures = [random.integers(0, 256, (480, 640, 3), dtype=np.uint8) for _ in range(batch)]
    how = Preprocessing(vit.image_size).core_arguments()
    wanted = [(i, "class") for i in range(blocks)]
    model.set_attn_implementation("eager")
    maps = models.ClassMaps(model).to(work.torch, torch.bfloat16 if precision == "bfloat16" else torch.float32)

    def in_torch(module: Any) -> Callable[[], object]:
        def run() -> object:
            with torch.no_grad():
                pixels = torch.from_numpy(images).to(work.torch, next(maps.parameters()).dtype)
                return module(pixels).float().cpu()

        return run

    runs: Runs = {
        "qavit": lambda: vit.forward(images, attention=wanted),
        "qavit, pictures of 640 x 480": lambda: vit.forward(pictures, attention=wanted, preprocessing=how),
        "torch eager": in_torch(maps),
    }
    if work.device == "cuda":
        runs["torch.compile"] = in_torch(torch.compile(maps))
    return runs, work.linear_operations(blocks * batch)


def qavit_runs(work: Work, batch: int, precision: str) -> tuple[Runs, float]:
    """Ten questions an image; there is no peer that gives these maps."""
    size, first, block = work.size, work.first, work.block
    state = models.add_question_layers(models.state_of(models.clip_model(size)), size, QUESTION_WIDTH, first)
    config = {**size.config, "integrated": list(range(first, size.blocks)), "instruction_dim": QUESTION_WIDTH}
    vit = _core.Vit(config, models.core_weights(state), precision, device=_core.Device(work.device))
    random = np.random.default_rng(0)
    images = random.standard_normal((batch, 3, size.image, size.image)).astype(np.float32)
    states = random.standard_normal((batch * QUESTIONS, TOKENS, QUESTION_WIDTH)).astype(np.float32)
    pairs, lengths = np.repeat(np.arange(batch, dtype=np.int32), QUESTIONS), np.full(batch * QUESTIONS, TOKENS, np.int32)
    sequences = batch * (first + QUESTIONS * (block - first))
    runs: Runs = {"qavit": lambda: vit.forward(images, pairs, states, lengths, attention=[(block, "class")])}
    return runs, work.linear_operations(sequences)


def blip_runs(work: Work, folder: Path, batch: int, precision: str) -> tuple[Runs, None]:
    """GradCAM of pairs: autograd through the text half alone, the best that torch can do, against qavit."""
    from transformers import BlipForImageTextRetrieval

    model = qavit.load(folder, precision=precision, device=work.device)
    images = np.random.default_rng(1).standard_normal((batch, 3, model.image_size, model.image_size)).astype(np.float32)
    asked = [blip_bench.questions()[i % QUESTIONS] for i in range(batch)]
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    peer = BlipForImageTextRetrieval.from_pretrained(folder, attn_implementation="eager").eval().to(work.torch, dtype)
    peer.requires_grad_(False)
    tokens = model._tokenize(asked)
    ids, mask = (torch.from_numpy(array).long().to(work.torch) for array in (tokens.ids, tokens.mask))

    def gradcam() -> object:
        seen = torch.from_numpy(images).to(work.torch, dtype)
        states = peer.vision_model(seen).last_hidden_state.detach().requires_grad_()
        out = peer.text_encoder(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=states, output_attentions=True, return_dict=True,
            encoder_attention_mask=torch.ones(states.shape[:2], device=work.torch),
        )  # fmt: skip
        probabilities = out.cross_attentions[blip_bench.BLOCK]
        loss = peer.itm_head(out.last_hidden_state[:, 0])[:, 1].sum()
        (gradient,) = torch.autograd.grad(loss, probabilities)
        return (probabilities * gradient.clamp(min=0)).mean(1)[..., 1:].float().cpu()

    samples = {"image": images, "text_input": asked}
    return {"qavit": lambda: model.forward_itm(samples, block_num=blip_bench.BLOCK), "torch eager": gradcam}, None


def peak(work: Work, precision: str) -> float:
    """Operations a second of a large product."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    side = 8192 if work.device == "cuda" else 256
    a = torch.randn(side, side, device=work.torch, dtype=dtype)

    def run() -> None:
        torch.mm(a, a)
        if work.device == "cuda":
            torch.cuda.synchronize()

    run()
    return 2.0 * side**3 / interleave({"product": run}, 10, "wall").median("product")


def main() -> int:
    """Measure what the options name; a line a contender, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="*", default=BATCHES)
    parser.add_argument("--precisions", nargs="*", default=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--small", action="store_true", help="small models on cuda-host: whether this script runs, no times")
    options = parser.parse_args()
    measured = SMALL if options.small else FULL
    try:
        _core.check_device(measured.device)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    if measured.device == "cuda" and not torch.cuda.is_available():
        print("this torch has no CUDA", file=sys.stderr)
        return 1
    print("cuda-host" if options.small else torch.cuda.get_device_name(), file=sys.stderr)
    cuda_attention.measure(measured.device, options.small, 1 if options.small else 2, options.json)
    with tempfile.TemporaryDirectory() as name:
        blip_bench.make_folder(Path(name), measured.vision, measured.text)
        works: dict[str, Callable[[int, str], tuple[Runs, float | None]]] = {
            f"CLIP {measured.size.name}, maps of all blocks": lambda *how: clip_runs(measured, *how),
            f"QA-ViT {measured.size.name}, ten questions": lambda *how: qavit_runs(measured, *how),
            "BLIP-ITM GradCAM": lambda *how: blip_runs(measured, Path(name), *how),
        }
        for precision in options.precisions:
            limit = peak(measured, precision)
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
