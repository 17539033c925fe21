"""Figures as pixels beside matplotlib's of the same plan, and `qavit heatmap` beside another checkout's.

python -m benchmarks.figures_bench --clock cpu
python -m benchmarks.figures_bench --pictures 47 --beside ../before      # the command, of this checkout and of another
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

import qavit
from benchmarks.timing import interleave
from qavit import HeatmapResult
from qavit.plots._figures import make_figure, render
from qavit.plots._look import Look
from qavit.plots._png import png_of
from qavit.plots._raster import draw_pixels

DPI = 150.0
QUESTIONS = ("Is there a purple square?", "What color is the star?", "What shape is the red object?")


def result_of(model: qavit.QAViT, questions: int) -> HeatmapResult:
    """The bundled picture with so many questions."""
    scene = qavit.demo_scene()
    return model.heatmaps(scene.picture, [QUESTIONS[number % 3] for number in range(questions)])


def contenders(
    model: qavit.QAViT, shown: HeatmapResult, count: int, look: Look, pixels: npt.NDArray[np.uint8]
) -> dict[str, Callable[[], object]]:
    """The maps alone, a figure by either way, and what of the faster one is writing the file."""
    return {
        "maps": lambda: result_of(model, count),
        "pixels": lambda: png_of(np.asarray(draw_pixels(shown, None, look, DPI)), DPI),
        "png": lambda: png_of(pixels, DPI),
        "matplotlib": lambda: render(make_figure(shown, None, look), "png", DPI),
    }


def figures(rounds: int, kind: str) -> None:
    """Milliseconds of one figure as a PNG file, by either way, and of its parts."""
    model = qavit.load("demo")
    assert isinstance(model, qavit.QAViT)
    print(f"| {kind} ms | maps | pixels | of that PNG | matplotlib | ratio |\n|---|---|---|---|---|---|")
    cases = [(f"{count} question{'s' if count > 1 else ''}", count, Look()) for count in (1, 3, 8, 30)]
    cases.append(("3 questions, contours and boxes", 3, Look(contours=True, boxes=0.5)))
    for name, count, look in cases:
        shown = result_of(model, count)
        image = draw_pixels(shown, None, look, DPI)
        assert image is not None
        times = interleave(contenders(model, shown, count, look, np.asarray(image)), rounds, kind)
        numbers = [times.median(each) * 1e3 for each in ("maps", "pixels", "png", "matplotlib")]
        print(
            f"| {name} | {' | '.join(f'{number:.1f}' for number in numbers)} | {numbers[3] / numbers[1]:.1f} |", flush=True
        )


def command(pictures: int, beside: Path, rounds: int) -> None:
    """CPU seconds of `qavit heatmap` on so many small pictures, start included, of this checkout and of another."""
    here = Path(__file__).parent.parent
    spent: dict[str, list[float]] = {"beside": [], "here": []}
    with tempfile.TemporaryDirectory() as folder:
        draws = np.random.default_rng(0)
        for number in range(pictures):
            height, width = draws.integers(120, 300, 2)
            coarse = Image.fromarray(draws.integers(0, 256, (6, 8, 3), np.uint8))
            coarse.resize((int(width), int(height)), Image.Resampling.BICUBIC).save(f"{folder}/{number}.png")
        for _ in range(rounds):
            for name, tree in (("beside", beside), ("here", here)):
                before = _children()
                asked = ["heatmap", folder, "-q", QUESTIONS[0], "-q", QUESTIONS[1], "-o", f"{folder}/{name}", "--again"]
                run = [sys.executable, "-m", "qavit", *asked]
                paths = {**os.environ, "PYTHONPATH": str(tree.resolve())}
                subprocess.run(run, check=True, capture_output=True, cwd=folder, env=paths)
                spent[name].append(_children() - before)
    before_, after = (float(np.median(spent[name])) for name in ("beside", "here"))
    print(f"qavit heatmap, {pictures} pictures, CPU s: beside {before_:.2f}, here {after:.2f}: {before_ / after:.2f} to 1")


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clock", choices=("wall", "cpu"), default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=47)
    parser.add_argument("--beside", type=Path, help="another checkout, built")
    options = parser.parse_args()
    if options.beside is not None:
        command(options.pictures, options.beside, options.rounds)
    else:
        figures(options.rounds, options.clock)


if __name__ == "__main__":
    main()
