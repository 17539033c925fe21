"""Times qavit beside torch, OpenVINO and ONNX Runtime: python -m benchmarks.run [--only NAME ...]."""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qavit import _core, extract_attention
from qavit._demo import demo_model, demo_scene
from qavit.images import preprocess
from qavit.models._devices import computing_precision

from .contenders import SIDES, Contender, ours, prepare
from .models import QuestionLoop, add_question_layers, clip_model, core_weights, state_of
from .peak import start_module
from .quiet import be_quiet, hushed, quiet_environment
from .sizes import SIZES
from .table import Row, beside, write_rows
from .timing import Times, interleave, peak, timed

QUESTION_WIDTH, QUESTION_TOKENS = 768, 16


def show(times: Times, base: dict[str, str], flops: dict[str, float] | None = None) -> dict[str, Any]:
    """Print a line for each contender: milliseconds, and what `base` (name -> the peer held against) says of it."""
    table = {}
    for name in times.runs:
        median = times.median(name)
        line = f"  {name:<28} {1e3 * median:9.1f} ms  (best {1e3 * times.best(name):9.1f})"
        if flops is not None:
            line += f"  {flops[name] / median / 1e9:7.1f} GFLOP/s"
        for peer in base.get(name, "").split(";"):
            if peer in times.runs:
                line += f"  {times.median(peer) / median:5.2f}x {peer}"
        print(line, flush=True)
        table[name] = {"median": median, "best": times.best(name)}
    return table


def rows_of(work: str, times: Times, base: dict[str, str]) -> list[Row]:
    """For the table of all benchmarks: those that `base` names, beside the peers that it says."""
    found = {name: {"ms": 1e3 * times.median(name)} for name in times.runs}
    return beside(work, found, tuple(base), {name: tuple(peers.split(";")) for name, peers in base.items()})


def check_same(results: dict[str, Any], reference: str) -> None:
    """Every contender that gives maps gives the same ones, to its precision; int8's are compared by int8_fidelity."""
    for name, maps in results.items():
        if np.shape(maps) == np.shape(results[reference]):
            worst = float(np.abs(maps - results[reference]).max() / results[reference].max())
            limit = 0.5 if "int8" in name else 0.2 if "bfloat16" in name else 1e-3
            assert worst < limit, f"{name}: maps differ from {reference}'s by {worst:.2g} of the largest value"


def clip(arguments: argparse.Namespace, size_name: str) -> dict[str, Any]:
    """Class-token maps of every block, one image."""
    size, threads = SIZES[size_name], arguments.threads
    pixels = np.random.default_rng(0).standard_normal((1, 3, size.image, size.image), dtype=np.float32)
    wanted = [name for name in SIDES if not arguments.contenders or any(word in name for word in arguments.contenders)]
    if not arguments.contenders and computing_precision("bfloat16", "cpu") != "bfloat16":
        wanted = [name for name in wanted if "bfloat16" not in name]
        arguments.notes.append(f"CLIP {size.name}, bfloat16: this CPU has no products in it, and torch takes minutes")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        lacking = prepare(wanted, clip_model(size), size, folder)
        arguments.notes += lacking.values()
        print(*lacking.values(), sep="\n")
        contenders: dict[str, Contender] = {}
        for name in wanted:
            if name not in lacking:
                with hushed():
                    contenders[name] = SIDES[name].open(folder, size, threads)
        check_same({name: run(pixels) for name, run in contenders.items()}, next(iter(contenders)))
        calls = {name: partial(run, pixels) for name, run in contenders.items()}
        times = interleave(calls, arguments.rounds, arguments.clock)
        held = {}
        for name in contenders if arguments.rows else ():
            held[name] = start_module("contenders", [name, str(folder), size_name, "--threads", str(threads)])["peak"]
    print(
        f"CLIP {size.name}, maps of all {size.blocks} blocks; {size.flops / 1e9:.1f} GFLOP, of which the maps need "
        f"{size.flops_of_maps / 1e9:.1f} and qavit does no more:"
    )
    done = {name: size.flops_of_maps if name.startswith("qavit") else size.flops for name in calls}
    peers = {
        "qavit float32": ("openvino float32", "onnxruntime", "torch eager", "torch sdpa (no maps)"),
        "qavit bfloat16": ("openvino bfloat16", "torch bfloat16 (no maps)"),
        "qavit int8": ("openvino int8", "onnxruntime int8"),
        "qavit int8_mixed": ("openvino int8", "onnxruntime int8"),
    }
    table = show(times, {name: ";".join(others) for name, others in peers.items()}, done)
    found = {name: {"ms": 1e3 * times.median(name), **({"peak": held[name]} if held else {})} for name in contenders}
    arguments.found += beside(f"CLIP {size.name}, maps of all blocks", found, tuple(peers), peers)
    for precision in ("float32", "bfloat16"):
        name = f"qavit {precision}"
        if name not in contenders:
            continue
        share = done[name] / times.median(name) / arguments.peaks[precision]
        now = share_of_peak(calls[name], done[name], precision, arguments)
        print(
            f"  {name}: {100 * share:.1f}% of the measured peak over the whole pass; "
            f"{100 * now:.1f}% of the peak measured beside each of {2 * arguments.rounds} more runs"
        )
        table[name] |= {"share": share, "share_beside": now}
    return table


def share_of_peak(call: Callable[[], object], operations: float, precision: str, arguments: argparse.Namespace) -> float:
    """The median share of the peak before and after each run: what else the machine does slows both."""
    shares, before = [], peak(precision, arguments.clock, tries=2)
    for _ in range(2 * arguments.rounds):
        seconds = timed(call, arguments.clock)
        after = peak(precision, arguments.clock, tries=2)
        shares.append(operations / seconds / (0.5 * (before + after)))
        before = after
    return statistics.median(shares)


def questions(arguments: argparse.Namespace) -> dict[str, Any]:
    """QA-ViT L/14@336 late: one and ten questions on one image, the class token's map of block 18."""
    size, block = SIZES["L/14@336"], 18
    first = size.blocks // 2
    state = add_question_layers(state_of(clip_model(size)), size, QUESTION_WIDTH, first)
    config = {**size.config, "instruction_dim": QUESTION_WIDTH, "integrated": list(range(first, size.blocks))}
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((1, 3, size.image, size.image), dtype=np.float32)
    instruct = rng.standard_normal((10, QUESTION_TOKENS, QUESTION_WIDTH), dtype=np.float32)
    loop, image, asked = QuestionLoop(state, size, first), torch.from_numpy(pixels), torch.from_numpy(instruct)

    def mine(vit: Any, count: int) -> Any:
        lengths = np.full(count, QUESTION_TOKENS, np.int32)
        found = vit.forward(pixels, np.zeros(count, np.int32), instruct[:count], lengths, attention=[(block, "class")])
        return found["attentions"][block][:, :, 0, QUESTION_TOKENS + 1 :]

    def theirs(count: int, stop: bool = False) -> Any:
        return np.stack([loop(image, asked[i : i + 1], block, stop).numpy() for i in range(count)])

    vits = {precision: _core.Vit(config, core_weights(state), precision) for precision in ("float32", "bfloat16")}
    check_same({"torch": theirs(1), **{f"qavit {p}": mine(vit, 1) for p, vit in vits.items()}}, "torch")
    calls: dict[str, Callable[[], object]] = {}
    for count in (1, 2, 10):
        for precision, vit in vits.items():
            calls[f"qavit {precision}, {count}"] = partial(mine, vit, count)
    for count in (1, 10):
        calls[f"torch loop, {count}"] = partial(theirs, count)
        calls[f"torch loop stopped, {count}"] = partial(theirs, count, stop=True)
    times = interleave(calls, max(2, arguments.rounds // 3), arguments.clock)
    print(f"QA-ViT {size.name} late, questions on one image, map of block {block}; the public code runs all blocks:")
    peers = {f"qavit {p}, {n}": f"torch loop, {n};torch loop stopped, {n}" for p in vits for n in (1, 10)}
    table = show(times, peers)
    arguments.found += rows_of(f"QA-ViT {size.name} late, questions on one image", times, peers)
    for precision in vits:
        more = (times.median(f"qavit {precision}, 10") - times.median(f"qavit {precision}, 1")) / 9
        share = more / times.median(f"qavit {precision}, 1")
        print(f"  one more question, {precision}: {1e3 * more:.1f} ms, {share:.2f} of one image")
    return table


def scaling(arguments: argparse.Namespace) -> dict[str, Any]:
    """One thread and two; one image and a batch of eight."""
    table = {}
    for size_name in ("B/16@224", "L/14@336"):
        size = SIZES[size_name]
        pixels = np.random.default_rng(0).standard_normal((8, 3, size.image, size.image), dtype=np.float32)
        model = clip_model(size)
        runs = {precision: ours(model, size, precision) for precision in ("float32", "bfloat16")}

        def on_threads(run: Contender, threads: int, batch: Any) -> None:
            _core.set_num_threads(threads)
            run(batch)

        calls: dict[str, Callable[[], object]] = {}
        for precision, run in runs.items():
            calls[f"{precision}, 1 thread"] = partial(on_threads, run, 1, pixels[:1])
            calls[f"{precision}, 2 threads"] = partial(on_threads, run, 2, pixels[:1])
            calls[f"{precision}, 2 threads, 8 images"] = partial(on_threads, run, 2, pixels)
        times = interleave(calls, max(2, arguments.rounds // 3), arguments.clock)
        _core.set_num_threads(arguments.threads)
        print(f"CLIP {size.name}, threads and batches:")
        table[size_name] = show(times, {})
        arguments.found += rows_of(f"CLIP {size.name}, threads and batches", times, dict.fromkeys(times.runs, ""))
        for precision in runs:
            one, two, many = (
                times.median(f"{precision}, {what}") for what in ("1 thread", "2 threads", "2 threads, 8 images")
            )
            print(f"  {precision}: 2 threads {one / two:.2f}x of 1; an image of 8 {many / 8 / two:.3f} of one alone")
    return table


COLD_OURS = """
import sys, numpy as np, qavit
model = qavit.load(sys.argv[1]) if "converted" in sys.argv[1] else qavit.load(vision=sys.argv[1])
pixels = np.zeros((1, 3, model.image_size, model.image_size), np.float32)
np.save(sys.argv[2], qavit.extract_attention(model, pixels, None, blocks=(model.num_blocks - 1,)))
"""
COLD_TORCH = """
import sys, numpy as np, torch
from transformers import CLIPVisionModel
model = CLIPVisionModel.from_pretrained(sys.argv[1], attn_implementation="eager").eval()
size = model.config.image_size
with torch.inference_mode():
    maps = model(torch.zeros(1, 3, size, size), output_attentions=True).attentions[-1][:, :, 0, 1:].mean(1)
np.save(sys.argv[2], maps.numpy())
"""


def cold_start(arguments: argparse.Namespace) -> dict[str, Any]:
    """A new process, from its start to its first saved map, from a Hugging Face folder and from a converted one."""
    from qavit.checkpoints import convert, open_model

    table = {}
    for size_name in ("B/16@224", "L/14@336"):
        with tempfile.TemporaryDirectory() as folder:
            clip_model(SIZES[size_name]).save_pretrained(folder)
            converted = convert(open_model(None, vision=folder), Path(folder, "converted"))

            def start(script: str, place: str) -> None:
                command = [sys.executable, "-c", script, place, str(Path(place, "map.npy"))]
                subprocess.run(command, check=True, capture_output=True, env=quiet_environment())

            calls: dict[str, Callable[[], object]] = {
                "qavit": partial(start, COLD_OURS, folder),
                "qavit, converted": partial(start, COLD_OURS, str(converted)),
                "transformers": partial(start, COLD_TORCH, folder),
            }
            times = interleave(calls, max(2, arguments.rounds // 3), "wall")
        print(f"new process to first map, {size_name} (wall):")
        peers = {"qavit": "transformers", "qavit, converted": "transformers"}
        table[size_name] = show(times, peers)
        arguments.found += rows_of(f"new process to first map, CLIP {size_name} (wall)", times, peers)
    return table


def demo(arguments: argparse.Namespace) -> dict[str, Any]:
    """The bundled model: one question's map, from pixels and from a picture, and the map with answers."""
    picture, asked, burst = demo_scene().picture, demo_scene().questions[:1], 20

    def repeat(call: Callable[[], object]) -> None:
        for _ in range(burst):
            call()

    calls: dict[str, Callable[[], object]] = {}
    for precision in ("float32", "bfloat16"):
        model = demo_model(precision=precision, cache=0)
        pixels = preprocess(picture, model.preprocessing)[0]
        calls[f"{precision}, map"] = partial(extract_attention, model, pixels, asked, blocks=(model.default_block,))
        calls[f"{precision}, map and answers"] = partial(model.heatmaps, pixels, asked)
        calls[f"{precision}, decoded picture"] = partial(model.heatmaps, picture, asked)
    bursts = {name: partial(repeat, call) for name, call in calls.items()}
    times = interleave(bursts, 3 * arguments.rounds, arguments.clock, pause=0.0)
    for seconds in times.runs.values():
        seconds[:] = [each / burst for each in seconds]
    print(f"the demo model, one question, means of {burst} calls in a row:")
    arguments.found += rows_of("bundled model, one question", times, dict.fromkeys(times.runs, ""))
    return show(times, {})


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "clip-l": partial(clip, size_name="L/14@336"),
    "clip-b": partial(clip, size_name="B/16@224"),
    "clip-small": partial(clip, size_name="small"),
    "questions": questions,
    "scaling": scaling,
    "demo": demo,
    "cold": cold_start,
}


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parts = [name for name in PARTS if name != "clip-small"]
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=parts, help="parts to run")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default 9)")
    parser.add_argument("--threads", type=int, default=_core.get_num_threads(), help="threads of every contender")
    parser.add_argument("--contenders", nargs="+", metavar="WORD", help="of the CLIP parts, only those whose name has one")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall",
                        help="cpu, with --threads 1: processor time, for a machine that is not idle")  # fmt: skip
    parser.add_argument("--output", type=Path, help="write all numbers there as JSON")
    parser.add_argument("--rows", type=Path, help="write rows for the table of all benchmarks there, with peak memory")
    arguments = parser.parse_args(given)
    arguments.found, arguments.notes = [], []
    be_quiet()
    _core.set_num_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    peaks = {precision: peak(precision, arguments.clock) for precision in ("float32", "bfloat16")}
    arguments.peaks = peaks
    results: dict[str, Any] = {"peaks": peaks, "machine": platform.processor(), "build": _core.build_info()}
    print(
        f"{arguments.threads} threads, {arguments.clock} time; peak of multiply-add "
        f"{peaks['float32'] / 1e9:.0f} GFLOP/s in float32, {peaks['bfloat16'] / 1e9:.0f} in bfloat16"
    )
    for name in arguments.only:
        results[name] = PARTS[name](arguments)
        gc.collect()
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(results, indent=1, default=str))
    write_rows(arguments.rows, arguments.found, arguments.notes)


if __name__ == "__main__":
    main()
