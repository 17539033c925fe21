"""Memory and cold start at real size: CLIP L/14@336 with question-aware blocks and flan-T5-base's encoder.

    python -m benchmarks.memory_bench                       # makes the weights in a temporary folder (6 GB)
    python -m benchmarks.memory_bench --folder /data/pair   # keeps them there, and uses what is there

Each line is a process of its own that goes from its start to its first map: the most that was resident at any time while
it loaded, what is resident and what is private (anonymous) memory after that and after the first map, and the time from
the process's start to that map: by the wall, and the processor's own (all threads together), which is what to compare on a
machine that is not idle. The weights are random; files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path
from statistics import median
from typing import Any

from .peak import ROOT
from .quiet import quiet_environment
from .table import Row, write_rows

TOKENIZER = ROOT / "tests" / "data" / "golden" / "qavit_official_late" / "t5" / "tokenizer.json"
VISION = {
    "model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, "hidden_size": 1024, "num_hidden_layers": 24,
    "num_attention_heads": 16, "intermediate_size": 4096, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
TEXT = {
    "model_type": "t5", "vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12,
    "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 32, "layer_norm_epsilon": 1e-6,
}  # fmt: skip
RUN = """
import json, re, sys, time
from benchmarks.peak import peak_memory
started = float(sys.argv[1])
def now():
    text = open("/proc/self/smaps_rollup").read()
    resident, private = (int(re.search(field + r":\\s+(\\d+)", text)[1]) / 1024 for field in ("Rss", "Anonymous"))
    return {"peak": peak_memory(), "resident": resident, "private": private}
given, what, precision = json.loads(sys.argv[2]), sys.argv[3], sys.argv[4]
if what == "import":
    import numpy, qavit, qavit.images, qavit.checkpoints
    print(json.dumps({"loaded": now()}))
    sys.exit()
if what == "convert":
    from qavit.checkpoints import open_model
    from qavit.checkpoints import convert
    convert(open_model(**given), sys.argv[5], precision, json.loads(sys.argv[6]))
    print(json.dumps({"loaded": now()}))
    sys.exit()
if what == "open":
    from qavit.checkpoints import open_model
    kept = open_model(**given)
    print(json.dumps({"loaded": now()}))
    sys.exit()
import numpy as np
import qavit
model = qavit.load(**given, precision=precision)
loaded = now()
side = model.image_size
picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
maps = model.heatmaps(picture, "where is the red car?").maps
mapped = time.time()
seconds, processor = mapped - started, time.process_time()
print(json.dumps({"loaded": loaded, "mapped": now(), "seconds": seconds, "processor": processor, "sum": float(maps.sum())}))
"""


def shapes_of(vision: dict[str, Any], text: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the pair, integrated "late"."""
    from qavit.checkpoints.towers.clip import clip_vision_shapes
    from qavit.checkpoints.towers.t5 import t5_shapes

    side, blocks = vision["image_size"] // vision["patch_size"], vision["num_hidden_layers"]
    late = tuple(range(blocks // 2, blocks))
    return {**clip_vision_shapes(vision, 1 + side * side, late, text["d_model"]), **t5_shapes(text)}


def make_pair(folder: Path, vision: dict[str, Any], text: dict[str, Any]) -> dict[str, str]:
    """A checkpoint as the public ones are (LoRA on T5, all in one .pth), its two folders; what `qavit.load` takes."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.empty(shape).uniform_(-1.0, 1.0, generator=generator).mul_(shape[-1] ** -0.5)

    tensors: OrderedDict[str, torch.Tensor] = OrderedDict()
    rank, width, inner = 16, text["d_model"], text["num_heads"] * text["d_kv"]
    for name, shape in shapes_of(vision, text).items():
        prefix = "base_model.model." + ("vision.vision_tower." if name.startswith("vision_model.") else "")
        plain = prefix + name.replace("text_model.", "")
        tensors[plain] = random(*shape)
        if plain.endswith(("SelfAttention.q.weight", "SelfAttention.v.weight")):
            stem = plain[: -len(".weight")]
            tensors[stem + ".lora_A.default.weight"] = random(rank, width)
            tensors[stem + ".lora_B.default.weight"] = random(inner, rank)
    tensors["base_model.model.shared.lora_embedding_A.default"] = random(rank, text["vocab_size"])
    tensors["base_model.model.shared.lora_embedding_B.default"] = random(width, rank)
    torch.save({"model": tensors}, folder / "checkpoint.pth")
    for name, config in (("clip", vision), ("t5", text)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "t5" / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    return pair_arguments(folder)


def pair_arguments(folder: Path) -> dict[str, str]:
    """What `qavit.load` takes for `make_pair`'s files."""
    return {
        "checkpoint": str(folder / "checkpoint.pth"), "vision": str(folder / "clip"), "text": str(folder / "t5"),
    }  # fmt: skip


def run(given: dict[str, Any], what: str, precision: str = "float32", *more: str) -> dict[str, Any]:
    """One process: what it says of itself, in MB and seconds."""
    environment = {**quiet_environment(), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RUN, repr(time.time()), json.dumps(given), what, precision, *more]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the weights are, or are to be kept")
    parser.add_argument("--repeats", type=int, default=3, help="processes a line; medians are shown (default: 3)")
    parser.add_argument("--small", action="store_true", help="two blocks a half: to try it")
    parser.add_argument("--rows", type=Path, help="write rows for the table of all benchmarks there")
    options = parser.parse_args()
    less = {"num_hidden_layers": 2, "num_layers": 2} if options.small else {}
    vision, text = {**VISION, **less}, {**TEXT, **less}
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "checkpoint.pth").exists():
            make_pair(folder, vision, text)
        given = pair_arguments(folder)
        size = sum(4 * math.prod(shape) for shape in shapes_of(vision, text).values()) / 2**20
        print(f"the weights in float32: {size:.0f} MB; and 15%: {1.15 * size:.0f} MB")
        print(f"a process that has only imported: {run({}, 'import')['loaded']}")
        for precision in ("float32", "bfloat16"):
            models = {"checkpoint and folders": given}
            for name, panels in (("converted, row-major", 0), ("converted", None)):
                target = folder / f"{precision}-{'rows' if panels == 0 else 'panels'}"
                if not target.exists():
                    written = run(given, "convert", precision, str(target), json.dumps(panels))["loaded"]
                    print(f"{precision:9} convert, panels={panels}: peak {written['peak']:.0f} MB")
                models[name] = {"path": str(target)}
            for name, arguments in models.items():
                runs = [run(arguments, "load", precision) for _ in range(options.repeats)]
                loaded, mapped = runs[0]["loaded"], runs[0]["mapped"]
                seconds, processor = (median(each[key] for each in runs) for key in ("seconds", "processor"))
                print(
                    f"{precision:9} {name:24} loading: peak {loaded['peak']:5.0f}, resident {loaded['resident']:5.0f}, "
                    f"private {loaded['private']:5.0f}; first map: resident {mapped['resident']:5.0f}, "
                    f"private {mapped['private']:5.0f} MB, after {seconds:.2f} s ({processor:.2f} s of processor time)"
                )
                rows.append(Row(f"new process to first map, QA-ViT, {name}", precision, 1e3 * seconds, peak=loaded["peak"]))
    write_rows(options.rows, rows)


if __name__ == "__main__":
    main()
