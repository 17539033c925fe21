"""BLIP GradCAM at the size of PnP-VQA (ViT-L/16 at 384, BERT-base): PyTorch's autograd and qavit, time and peak memory.

    python -m benchmarks.blip_bench                    # float32 and bfloat16, all scenarios
    python -m benchmarks.blip_bench --scenarios one --repeats 5

Both sides read the same random weights from one folder. Each (side, scenario) is a process of its own, so that its peak
memory is its own; the sides take turns. "lavis" is what LAVIS does: Hugging Face's BlipForImageTextRetrieval, every
parameter with a gradient. "torch" is the best that autograd can do: weights frozen, gradients in the text half alone.
LAVIS runs a question at a time (or a batch of pairs); ten questions on one image are ten calls.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .peak import peak_memory, start_module
from .table import Row, beside, write_rows
from .vocabulary import write_vocabulary

SCENARIOS = ("one", "four", "ten")
SIDES = ("lavis", "torch", "float32", "bfloat16")
VISION = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 384, "patch_size": 16, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
}  # fmt: skip
TEXT = {
    "hidden_size": 768, "encoder_hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "vocab_size": 30524, "max_position_embeddings": 512, "hidden_act": "gelu",
}  # fmt: skip
WORDS = [
    "where", "is", "the", "red", "car", "on", "left", "side", "of", "street", "near", "man", "with", "a", "blue", "hat",
]  # fmt: skip
BLOCK = 7
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": BLOCK + 2}


def questions() -> list[str]:
    """Ten questions of 6 to 10 words, [ENC] and [SEP] not counted."""
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, 6 + i % 5)) for i in range(10)]


def make_folder(folder: Path, vision: dict[str, Any] = VISION, text: dict[str, Any] = TEXT) -> None:
    """The model with random weights, and a tokenizer that has the questions' words."""
    import torch
    from transformers import BlipConfig, BlipForImageTextRetrieval

    torch.manual_seed(0)
    config = BlipConfig(vision_config=vision, text_config=text, image_text_hidden_size=256)
    BlipForImageTextRetrieval(config).save_pretrained(folder)
    write_vocabulary(folder, WORDS, text["vocab_size"] - 2)


def scenario_pairs(scenario: str) -> list[tuple[np.ndarray, list[str]]]:
    """The calls of one run: images [B, 3, 384, 384] and B questions."""
    rng = np.random.default_rng(1)
    images = rng.standard_normal((4, 3, 384, 384), np.float32)
    asked = questions()
    if scenario == "one":
        return [(images[:1], asked[:1])]
    if scenario == "four":
        return [(images, asked[:4])]
    return [(images[:1], [question]) for question in asked]


def torch_side(folder: Path, scenario: str, repeats: int, frozen: bool) -> list[float]:
    import torch
    from transformers import BlipForImageTextRetrieval

    from qavit.text import Tokenizer, with_blip_tokens

    model = BlipForImageTextRetrieval.from_pretrained(folder, attn_implementation="eager").eval()
    model.requires_grad_(not frozen)
    tokenizer = Tokenizer(with_blip_tokens(Tokenizer.from_folder(folder).to_json()))
    prepared = []
    for images, asked in scenario_pairs(scenario):
        tokens = tokenizer.encode(asked, 35)
        ids = torch.from_numpy(tokens.ids).long()
        ids[:, 0] = tokenizer.id_of("[ENC]")
        prepared.append((torch.from_numpy(images), ids, torch.from_numpy(tokens.mask).long()))

    def gradcam(images: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        embeddings = model.vision_model(images).last_hidden_state
        if frozen:
            embeddings = embeddings.detach().requires_grad_()
        out = model.text_encoder(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=embeddings,
            encoder_attention_mask=torch.ones(embeddings.shape[:2]), output_attentions=True, return_dict=True,
        )  # fmt: skip
        probabilities = out.cross_attentions[BLOCK]
        loss = model.itm_head(out.last_hidden_state[:, 0])[:, 1].sum()
        if frozen:
            (gradient,) = torch.autograd.grad(loss, probabilities)
        else:
            probabilities.retain_grad()
            model.zero_grad()
            loss.backward()
            gradient = probabilities.grad
        return (probabilities * gradient.clamp(min=0)).mean(1)[..., 1:].detach()

    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for arguments in prepared:
            gradcam(*arguments)
        times.append(time.perf_counter() - start)
    return times[1:]


def qavit_side(folder: Path, scenario: str, repeats: int, precision: str) -> list[float]:
    import qavit

    model = qavit.load(folder, precision=precision, cache=0)  # or what is timed again would be known
    calls = scenario_pairs(scenario)
    samples = {
        "image": np.concatenate([images for images, _ in calls]),
        "text_input": [question for _, asked in calls for question in asked],
    }
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        model.forward_itm(samples, block_num=BLOCK)
        times.append(time.perf_counter() - start)
    return times[1:]


def run_side(side: str, folder: Path, scenario: str, repeats: int) -> dict[str, Any]:
    """In this process: times in seconds, peak memory in megabytes."""
    if side in ("lavis", "torch"):
        times = torch_side(folder, scenario, repeats, frozen=side == "torch")
    else:
        times = qavit_side(folder, scenario, repeats, side)
    return {"times": times, "peak": peak_memory()}


def start_side(side: str, folder: Path, scenario: str, repeats: int) -> dict[str, Any]:
    return start_module(
        "blip_bench", ["--side", side, "--folder", str(folder), "--scenarios", scenario, "--repeats", str(repeats)]
    )


def report(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    lines = ["| scenario | side | seconds | peak MB | x lavis | memory of lavis |", "|---|---|---|---|---|---|"]
    for scenario, sides in results.items():
        base = sides.get("lavis")
        for side, found in sides.items():
            seconds, peak = median(found["times"]), found["peak"]
            ratio = f"{median(base['times']) / seconds:.2f}" if base else ""
            memory = f"{peak / base['peak']:.2f}" if base else ""
            lines.append(f"| {scenario} | {side} | {seconds:.3f} | {peak:.0f} | {ratio} | {memory} |")
    return "\n".join(lines)


def rows_of(results: dict[str, dict[str, dict[str, Any]]]) -> list[Row]:
    """For the table of all benchmarks."""
    called = {"one": "one question", "four": "four pairs, four images", "ten": "ten questions on one image"}
    names = {"lavis": "autograd as LAVIS has it", "torch": "autograd, weights frozen"}
    rows = []
    for scenario, sides in results.items():
        found = {
            names.get(side, side): {"ms": 1e3 * median(one["times"]), "peak": one["peak"]} for side, one in sides.items()
        }
        peers = {side: tuple(names.values()) for side in ("float32", "bfloat16")}
        rows += beside(f"BLIP GradCAM, {called[scenario]}", found, tuple(peers), peers)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each side, after one that is not counted")
    parser.add_argument("--rounds", type=int, default=1, help="how often the sides take turns")
    parser.add_argument("--folder", type=Path, help="keep the model here, and use it if it is there")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--small", action="store_true", help="nine narrow blocks a half: to try it")
    parser.add_argument("--rows", type=Path, help="write rows for the table of all benchmarks there")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side is not None:
        (scenario,) = arguments.scenarios
        print(json.dumps(run_side(arguments.side, arguments.folder, scenario, arguments.repeats)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        if not (folder / "vocab.txt").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            less: dict[str, Any] = SMALL if arguments.small else {}
            make_folder(folder, {**VISION, **less}, {**TEXT, **less, **({"encoder_hidden_size": 64} if less else {})})
        results: dict[str, dict[str, dict[str, Any]]] = {}
        for _ in range(arguments.rounds):
            for scenario in arguments.scenarios:
                for side in arguments.sides:
                    found = start_side(side, folder, scenario, arguments.repeats)
                    known = results.setdefault(scenario, {}).setdefault(side, {"times": [], "peak": 0.0})
                    known["times"] += found["times"]
                    known["peak"] = max(known["peak"], found["peak"])
                    print(f"{scenario} {side}: {min(found['times']):.3f} s, {found['peak']:.0f} MB", file=sys.stderr)
        print(report(results))
        write_rows(arguments.rows, rows_of(results))
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
