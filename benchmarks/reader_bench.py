"""A reader out of many contexts: qavit beside transformers on PyTorch and CTranslate2, time and peak memory.

    python -m benchmarks.reader_bench                              # base, 100 contexts of 30 tokens, 3 new tokens
    python -m benchmarks.reader_bench --size large --sides float32 torch
    python -m benchmarks.reader_bench --ctranslate2 /path/to/python

All sides read the same random weights of UnifiedQA v2's sizes. Each is a process of its own, so that its peak memory is
its own, and they take turns. PyTorch fuses contexts as LAVIS does: encoded as a batch, one answer decoded over their
states end to end. CTranslate2 cannot: it answers each context by itself, with as many new tokens; --ctranslate2 names a
Python that has it, with transformers and PyTorch, by which it makes its own files.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .peak import peak_memory, start_module
from .table import Row, beside, skipped, write_rows

SIDES = ("float32", "bfloat16", "int8", "torch", "torch_bfloat16", "ctranslate2", "ctranslate2_int8")
#: Makes the model: in a process of its own too, or its memory would count as that of those started behind it.
MAKE = "make"
SIZES = {
    "small": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
    "base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "large": {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
}
VOCABULARY = 32128


def make_folder(folder: Path, size: str) -> None:
    """The model with random weights, and a tokenizer of as many words."""
    import tokenizers
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    settings = {"feed_forward_proj": "relu", "decoder_start_token_id": 0, "vocab_size": VOCABULARY, **SIZES[size]}
    model = T5ForConditionalGeneration(T5Config(**settings, num_decoder_layers=SIZES[size]["num_layers"]))
    model.save_pretrained(folder)
    words = ["<pad>", "</s>", "<unk>", *(f"word{number}" for number in range(VOCABULARY - 3))]
    table = {word: number for number, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(table, "<unk>"))
    tokenizer.add_special_tokens(words[:3])
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}))


def contexts_of(count: int, tokens: int) -> list[list[int]]:
    """Ids without the end that a tokenizer puts behind them."""
    rows: list[list[int]] = np.random.default_rng(0).integers(3, VOCABULARY, (count, tokens - 1)).tolist()
    return rows


def qavit_side(folder: Path, arguments: argparse.Namespace, precision: str) -> Callable[[], None]:
    import qavit

    qavit.set_num_threads(arguments.threads)
    reader: Any = qavit.load(reader=folder, precision=precision)
    texts = [" ".join(f"word{number - 3}" for number in row) for row in contexts_of(arguments.contexts, arguments.tokens)]
    steps = arguments.steps + 1

    def answer() -> None:
        reader._last.clear()
        reader.answer(None, texts, max_len=steps, min_len=steps)

    return answer


def torch_side(folder: Path, arguments: argparse.Namespace, precision: str) -> Callable[[], None]:
    import torch
    from transformers import T5ForConditionalGeneration
    from transformers.modeling_outputs import BaseModelOutput

    torch.set_num_threads(arguments.threads)
    model = T5ForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, precision)).eval()
    ids = torch.tensor([[*row, 1] for row in contexts_of(arguments.contexts, arguments.tokens)])

    @torch.inference_mode()
    def answer() -> None:
        states = model.encoder(ids).last_hidden_state.reshape(1, -1, model.config.d_model)
        steps = {"max_new_tokens": arguments.steps, "min_new_tokens": arguments.steps}
        model.generate(encoder_outputs=BaseModelOutput(last_hidden_state=states), do_sample=False, **steps)

    return answer


def ctranslate2_side(folder: Path, arguments: argparse.Namespace, precision: str) -> Callable[[], None]:
    import ctranslate2

    made = folder / f"ctranslate2_{precision}"
    if not made.is_dir():
        ctranslate2.converters.TransformersConverter(str(folder)).convert(str(made), quantization=precision)
    model = ctranslate2.Translator(str(made), compute_type=precision, inter_threads=1, intra_threads=arguments.threads)
    rows = [
        [*(f"word{number - 3}" for number in row), "</s>"] for row in contexts_of(arguments.contexts, arguments.tokens)
    ]  # fmt: skip
    how = {"beam_size": 1, "max_decoding_length": arguments.steps, "min_decoding_length": arguments.steps}

    def answer() -> None:
        model.translate_batch(rows, **how)

    return answer


def run_side(side: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """In this process: times in seconds, on the wall and of the CPUs, and peak memory in megabytes."""
    family, _, precision = side.partition("_")
    make = {"torch": torch_side, "ctranslate2": ctranslate2_side}.get(family, qavit_side)
    answer = make(arguments.folder, arguments, precision or ("float32" if make is not qavit_side else side))
    times, cpu = [], []
    for _ in range(arguments.repeats + 1):
        start, started = time.perf_counter(), time.process_time()
        answer()
        times.append(time.perf_counter() - start)
        cpu.append(time.process_time() - started)
    return {"times": times[1:], "cpu": cpu[1:], "peak": peak_memory()}


def start_side(side: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    options = ["--side", side, "--folder", str(folder)]
    for name in ("contexts", "tokens", "steps", "threads", "repeats"):
        options += [f"--{name}", str(getattr(arguments, name))]
    return start_module("reader_bench", options, arguments.ctranslate2 if side.startswith("ctranslate2") else None)


def report(results: dict[str, dict[str, Any]]) -> str:
    base = results.get("torch", next(iter(results.values())))
    lines = ["| side | seconds | CPU seconds | peak MB | x torch |", "|---|---|---|---|---|"]
    for side, found in results.items():
        seconds = median(found["times"])
        ratio = median(base["times"]) / seconds
        lines.append(f"| {side} | {seconds:.3f} | {median(found['cpu']):.3f} | {found['peak']:.0f} | {ratio:.2f} |")
    return "\n".join(lines)


def rows_of(results: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> list[Row]:
    """For the table of all benchmarks."""
    names = {"torch_bfloat16": "torch bfloat16", "ctranslate2": "CTranslate2", "ctranslate2_int8": "CTranslate2 int8"}
    found = {names.get(side, side): {"ms": 1e3 * median(one["times"]), "peak": one["peak"]} for side, one in results.items()}
    peers = {
        "float32": ("torch", "CTranslate2"),
        "bfloat16": ("torch bfloat16", "CTranslate2 int8"),
        "int8": ("CTranslate2 int8",),
    }
    work = f"reader, {arguments.size}, {arguments.contexts} contexts of {arguments.tokens} tokens"
    return beside(work, found, tuple(peers), peers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--contexts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=30, help="of a context, its end counted")
    parser.add_argument("--steps", type=int, default=3, help="new tokens of the answer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="all that can run here by default")
    parser.add_argument("--repeats", type=int, default=2, help="timed runs of each side, after one that is not counted")
    parser.add_argument("--rounds", type=int, default=1, help="how often the sides take turns")
    parser.add_argument("--ctranslate2", type=Path, help="the Python that has CTranslate2")
    parser.add_argument("--folder", type=Path, help="keep the model here, and use it if it is there")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--rows", type=Path, help="write rows for the table of all benchmarks there")
    parser.add_argument("--side", choices=(*SIDES, MAKE), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side == MAKE:
        make_folder(arguments.folder, arguments.size)
        print(json.dumps({}))
        return
    if arguments.side is not None:
        print(json.dumps(run_side(arguments.side, arguments)))
        return
    if arguments.ctranslate2 is None and importlib.util.find_spec("ctranslate2") is not None:
        arguments.ctranslate2 = Path(sys.executable)
    sides = arguments.sides or [side for side in SIDES if arguments.ctranslate2 or not side.startswith("ctranslate2")]
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        if not (folder / "tokenizer.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            start_module("reader_bench", ["--side", MAKE, "--size", arguments.size, "--folder", str(folder)])
        results: dict[str, dict[str, Any]] = {}
        for _ in range(arguments.rounds):
            for side in sides:
                found = start_side(side, arguments, folder)
                known = results.setdefault(side, {"times": [], "cpu": [], "peak": 0.0})
                known["times"] += found["times"]
                known["cpu"] += found["cpu"]
                known["peak"] = max(known["peak"], found["peak"])
                print(f"{side}: {min(found['times']):.3f} s, {found['peak']:.0f} MB", file=sys.stderr)
        print(report(results))
        without = [] if arguments.ctranslate2 else [skipped("CTranslate2", ["ctranslate2"])]
        write_rows(arguments.rows, rows_of(results, arguments), without)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
