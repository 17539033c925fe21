"""What one more image and one more question cost: python -m benchmarks.scaling --picture docs/images/scaling.png.

CLIP B/16@224 and L/14@336 on batches of images (maps of all blocks); QA-ViT L/14@336 late on questions about one image (map
of block 18). Numbers go to --output as JSON; --read draws what such a file holds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from qavit import _core

from .contenders import ours
from .models import add_question_layers, clip_model, core_weights, state_of
from .sizes import SIZES
from .timing import interleave

COUNTS = {"images": (1, 2, 4, 8), "questions": (1, 2, 3, 5, 10)}
PRECISIONS = ("float32", "bfloat16")
Costs = dict[str, list[float]]  # "number" of images or questions, and seconds by precision


def images(size_name: str, rounds: int) -> Costs:
    """Seconds of a batch of each number of images, by precision."""
    size = SIZES[size_name]
    pixels = np.random.default_rng(0).standard_normal((max(COUNTS["images"]), 3, size.image, size.image), dtype=np.float32)
    model = clip_model(size)
    found: Costs = {"number": [*COUNTS["images"]]}
    for precision in PRECISIONS:
        run = ours(model, size, precision)
        calls = {str(n): (lambda n=n, run=run: run(pixels[:n])) for n in COUNTS["images"]}
        times = interleave(calls, rounds, "wall")
        found[precision] = [times.median(str(n)) for n in COUNTS["images"]]
    return found


def questions(rounds: int) -> Costs:
    """Seconds of each number of questions on one image, by precision."""
    size, block, width, tokens = SIZES["L/14@336"], 18, 768, 16
    first = size.blocks // 2
    weights = core_weights(add_question_layers(state_of(clip_model(size)), size, width, first))
    config = {**size.config, "instruction_dim": width, "integrated": list(range(first, size.blocks))}
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((1, 3, size.image, size.image), dtype=np.float32)
    asked = rng.standard_normal((max(COUNTS["questions"]), tokens, width), dtype=np.float32)
    found: Costs = {"number": [*COUNTS["questions"]]}
    for precision in PRECISIONS:
        vit = _core.Vit(config, weights, precision)

        def run(n: int, vit: Any = vit) -> None:
            lengths = np.full(n, tokens, np.int32)
            vit.forward(pixels, np.zeros(n, np.int32), asked[:n], lengths, attention=[(block, "class")])

        times = interleave({str(n): (lambda n=n, run=run: run(n)) for n in COUNTS["questions"]}, rounds, "wall")
        found[precision] = [times.median(str(n)) for n in COUNTS["questions"]]
    return found


def more(counts: list[float], seconds: list[float]) -> float:
    """Seconds of one more, by a straight line through all."""
    return float(statistics.linear_regression(counts, seconds).slope)


def draw(seconds: dict[str, Costs], path: Path) -> None:
    """Seconds against the number of images and of questions, with the line of the first one times their number."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(seconds), figsize=(4 * len(seconds), 3.4), constrained_layout=True)
    for axis, (name, costs) in zip(np.atleast_1d(axes), seconds.items()):
        counts, kind = costs["number"], "questions" if "questions" in name else "images"
        for precision in PRECISIONS:
            values = costs[precision]
            line = axis.plot(counts, values, marker="o", label=f"{precision}: {1e3 * more(counts, values):.0f} ms one more")
            axis.plot(counts, [values[0] * n for n in counts], linestyle=":", linewidth=1, color=line[0].get_color())
        axis.set_title(name, fontsize=9)
        axis.set(xlabel=kind, ylabel="seconds", xlim=(0, None), ylim=(0, None))
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--read", type=Path, help="draw this file's numbers instead of measuring")
    parser.add_argument("--output", type=Path, help="write the numbers there as JSON")
    parser.add_argument("--picture", type=Path, help="draw them there")
    options = parser.parse_args()
    seconds: dict[str, Costs]
    if options.read is not None:
        seconds = json.loads(options.read.read_text())
    else:
        seconds = {f"CLIP {name}, images": images(name, options.rounds) for name in ("B/16@224", "L/14@336")}
        seconds["QA-ViT L/14@336, questions on one image"] = questions(options.rounds)
    for name, costs in seconds.items():
        for precision in PRECISIONS:
            values = costs[precision]
            step = more(costs["number"], values)
            print(f"{name}, {precision}: {1e3 * values[0]:.0f} ms for one, {1e3 * step:.0f} for one more "
                  f"({step / values[0]:.2f} of one)")  # fmt: skip
    if options.output is not None:
        options.output.write_text(json.dumps(seconds, indent=1))
    if options.picture is not None:
        draw(seconds, options.picture)


if __name__ == "__main__":
    main()
