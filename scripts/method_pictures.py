"""Draw every method of a model on one picture: `python scripts/method_pictures.py [-o FILE] [--model NAME IMAGE TEXT]`."""

from __future__ import annotations

import argparse
import math
import warnings
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import qavit

OUT = Path(__file__).resolve().parent.parent / "docs" / "images" / "methods.jpg"
COLUMNS = 4
#: Methods whose package scales the patches, not the pixels; see `HeatmapResult.upsample`.
PACKAGES = {"surgery": "surgery", "gradcam": "gradcam"}


def draw(model: Any, picture: Any, text: str) -> Figure:
    """A panel a method, each map as its own package shows it."""
    rows = math.ceil(len(model.methods) / COLUMNS)
    figure = Figure(figsize=(2.6 * COLUMNS, 2.8 * rows), layout="constrained")
    figure.suptitle(text)
    for number, method in enumerate(model.methods):
        result = model.heatmaps(picture, text, method=method)
        axes = figure.add_subplot(rows, COLUMNS, number + 1)
        axes.imshow(result.picture)
        axes.imshow(result.upsample(normalize=PACKAGES.get(method, "legrad"))[0], cmap="turbo", alpha=0.55)
        axes.set_title(method, fontsize=10)
        axes.axis("off")
    return figure


def main() -> None:
    """The bundled model on its own scene, or another model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=OUT)
    parser.add_argument("--model", nargs=3, metavar=("NAME", "IMAGE", "TEXT"))
    options = parser.parse_args()
    scene = qavit.demo_scene()
    name, picture, text = options.model or ("demo", scene.picture, scene.questions[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", qavit.QavitWarning)
        figure = draw(qavit.load(name), picture, text)
    figure.savefig(options.out, dpi=90, pil_kwargs={"quality": 88} if options.out.suffix == ".jpg" else None)
    print(f"{options.out}: {options.out.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
