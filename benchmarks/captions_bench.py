"""Captions at the size of PnP-VQA (ViT-L/16 at 384, BERT-base with cross-attention): transformers and qavit.

    python -m benchmarks.captions_bench                                       # 100 captions, float32 and bfloat16
    python -m benchmarks.captions_bench --captions 10 --repeats 1 --small     # the same code in a few seconds

Both sides read the same random weights from one folder and draw 100 captions of 20 patches each (top-k 50, 10 to 20
tokens, the prompt's four among them). "new": of a picture's pixels; "known": of its states, which are given. transformers
is run at its best: only the patches of a caption are its encoder's states, and its caches hold the keys and values of
those. Each (side, scenario) is a process of its own, so that its peak memory is its own; the sides take turns. Random
weights all but never end a caption, so all are of the full length.
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

from .blip_bench import TEXT, VISION
from .peak import peak_memory, start_module
from .table import Row, beside, write_rows
from .vocabulary import PLACES, write_vocabulary

SCENARIOS = ("new", "known")
SIDES = ("transformers", "transformers bfloat16", "float32", "bfloat16", "int8")
SMALL = ({"num_hidden_layers": 2}, {"num_hidden_layers": 2, "vocab_size": 3000})
PROMPT = ["a", "picture", "of"]
PATCHES = 20
SEP = PLACES["[SEP]"]
LENGTHS = {"max_length": 20, "min_length": 10}


def make_folder(folder: Path, small: bool) -> None:
    """The model with random weights, and a tokenizer that has the prompt's words."""
    import torch
    from transformers import BlipConfig, BlipForConditionalGeneration

    vision, text = ({**full, **less} for full, less in zip((VISION, TEXT), SMALL if small else ({}, {})))
    write_vocabulary(folder, PROMPT, text["vocab_size"] - 2)
    start = text["vocab_size"] - 2
    torch.manual_seed(0)
    config = BlipConfig(
        vision_config=vision,
        text_config={**text, "bos_token_id": start, "sep_token_id": SEP, "eos_token_id": SEP, "pad_token_id": 0},
    )
    BlipForConditionalGeneration(config).save_pretrained(folder)


def inputs(patches: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture [3, 384, 384], and a map of it [patches]."""
    rng = np.random.default_rng(1)
    return rng.standard_normal((3, 384, 384), np.float32), rng.random(patches).astype(np.float32)


def transformers_side(folder: Path, known: bool, count: int, repeats: int, precision: str) -> list[tuple[float, float]]:
    import torch
    from transformers import BlipForConditionalGeneration

    dtype = getattr(torch, precision)
    model = BlipForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    pixels, weights = inputs(576)
    image = torch.from_numpy(pixels[None]).to(dtype)
    names = (folder / "vocab.txt").read_text().splitlines()
    start = model.config.text_config.bos_token_id
    prompt = torch.tensor([[start, *(names.index(word) for word in PROMPT)]]).repeat(count, 1)

    @torch.no_grad()
    def states() -> Any:
        return model.vision_model(image).last_hidden_state[0]

    @torch.no_grad()
    def captions(of: Any) -> None:
        drawn = torch.multinomial(torch.from_numpy(weights).repeat(count, 1), PATCHES) + 1
        out = model.text_decoder.generate(
            input_ids=prompt, encoder_hidden_states=of[drawn], do_sample=True, top_k=50, eos_token_id=SEP, pad_token_id=0,
            **LENGTHS,
        )  # fmt: skip
        assert len(out) == count

    given = states() if known else None
    return timed(lambda: captions(states() if given is None else given), repeats)


def qavit_side(folder: Path, known: bool, count: int, repeats: int, precision: str) -> list[tuple[float, float]]:
    import qavit

    # What is timed again has not been seen: of a known picture there are its states, which transformers is given, too.
    model = qavit.load(folder, config={"prompt": " ".join(PROMPT) + " "}, precision=precision, cache=0)
    pixels, weights = inputs(576)
    given = model.image_states(pixels) if known else pixels
    settings = {"num_captions": count, "weights": weights, "num_patches": PATCHES, "do_sample": True, "top_k": 50, **LENGTHS}
    return timed(lambda: model.generate(given, **settings), repeats)


def timed(run: Any, repeats: int) -> list[tuple[float, float]]:
    """Seconds on the wall and of this process, of all runs but the first."""
    times = []
    for _ in range(repeats + 1):
        wall, own = time.perf_counter(), time.process_time()
        run()
        times.append((time.perf_counter() - wall, time.process_time() - own))
    return times[1:]


def run_side(side: str, folder: Path, scenario: str, count: int, repeats: int) -> dict[str, Any]:
    """In this process: times in seconds, peak memory in megabytes."""
    known = scenario == "known"
    if side.startswith("transformers"):
        times = transformers_side(folder, known, count, repeats, "bfloat16" if side.endswith("16") else "float32")
    else:
        times = qavit_side(folder, known, count, repeats, side)
    return {"times": times, "peak": peak_memory()}


def start_side(side: str, folder: Path, scenario: str, count: int, repeats: int) -> dict[str, Any]:
    options = ["--side", side, "--folder", str(folder), "--scenarios", scenario]
    return start_module("captions_bench", [*options, "--captions", str(count), "--repeats", str(repeats)])


def report(results: dict[str, dict[str, dict[str, Any]]], count: int) -> str:
    lines = [
        f"| {count} captions of a picture | side | seconds | CPU seconds | captions a second | peak MB | x transformers |",
        "|---|---|---|---|---|---|---|",
    ]
    for scenario, sides in results.items():
        base = sides.get("transformers")
        for side, found in sides.items():
            wall, own = (median(column) for column in zip(*found["times"]))
            ratio = f"{median(one for one, _ in base['times']) / wall:.2f}" if base else ""
            rate, peak = count / wall, found["peak"]
            lines.append(f"| {scenario} | {side} | {wall:.2f} | {own:.2f} | {rate:.1f} | {peak:.0f} | {ratio} |")
    return "\n".join(lines)


def rows_of(results: dict[str, dict[str, dict[str, Any]]], count: int) -> list[Row]:
    """For the table of all benchmarks."""
    low = ("transformers", "transformers bfloat16")
    peers = {"float32": ("transformers",), "bfloat16": low, "int8": low}
    rows = []
    for scenario, sides in results.items():
        found = {
            side: {"ms": 1e3 * median(wall for wall, _ in one["times"]), "peak": one["peak"]} for side, one in sides.items()
        }
        rows += beside(f"{count} captions of a {scenario} picture", found, tuple(peers), peers)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--captions", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each side, after one that is not counted")
    parser.add_argument("--small", action="store_true", help="two blocks a half, 3000 words: to try it")
    parser.add_argument("--folder", type=Path, help="keep the model here, and use it if it is there")
    parser.add_argument("--rows", type=Path, help="write rows for the table of all benchmarks there")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    count, repeats = arguments.captions, arguments.repeats
    if arguments.side is not None:
        (scenario,) = arguments.scenarios
        print(json.dumps(run_side(arguments.side, arguments.folder, scenario, count, repeats)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        if not (folder / "vocab.txt").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            make_folder(folder, arguments.small)
        results: dict[str, dict[str, dict[str, Any]]] = {}
        for scenario in arguments.scenarios:
            for side in arguments.sides:
                found = results.setdefault(scenario, {})[side] = start_side(side, folder, scenario, count, repeats)
                print(f"{scenario} {side}: {found['times'][0][0]:.3f} s, {found['peak']:.0f} MB", file=sys.stderr)
        print(report(results, count))
        write_rows(arguments.rows, rows_of(results, count))


if __name__ == "__main__":
    main()
