"""A map's picture and figure: qavit, and the way that scripts draw them, by matplotlib.

    python -m benchmarks.drawing_bench

One process, in turns; the bundled scene's picture, and a larger one. The peer takes the same map: bicubic to the picture's
size, a colormap over it, written as PNG; as a figure with a colour bar, `savefig`.
"""

from __future__ import annotations

import argparse
import io
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import qavit

from .quiet import be_quiet
from .table import beside, write_rows
from .timing import interleave

DPI = 150


def scripts_overlay(result: Any) -> bytes:
    """Pixels as scripts blend them: Pillow's bicubic, matplotlib's colormap, half of each."""
    from matplotlib import colormaps
    from PIL import Image

    picture, values = result.picture, result.maps[0]
    small = Image.fromarray((255 * values / values.max()).astype(np.uint8))
    large = np.asarray(small.resize(picture.shape[1::-1], Image.Resampling.BICUBIC)) / 255
    mixed = (0.5 * 255 * colormaps["jet"](large)[..., :3] + 0.5 * picture).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(mixed).save(file, "png")
    return file.getvalue()


def scripts_figure(result: Any) -> bytes:
    """A figure as scripts make it: imshow twice, a title, a colour bar."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = result.picture.shape[:2]
    figure = Figure(figsize=(10, 5))
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    axes[0].imshow(result.picture)
    axes[1].imshow(result.picture)
    drawn = axes[1].imshow(result.maps[0], cmap="jet", alpha=0.5, extent=(0, width, height, 0), interpolation="bicubic")
    axes[1].set_title(result.questions[0])
    figure.colorbar(drawn, ax=axes[1])
    file = io.BytesIO()
    figure.savefig(file, dpi=DPI, bbox_inches="tight")
    return file.getvalue()


def own_overlay(result: Any) -> bytes:
    """The picture with the map over it, as PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(result.overlay()).save(file, "png")
    return file.getvalue()


def own_figure(result: Any) -> bytes:
    """The figure of picture and map, as PNG."""
    file = io.BytesIO()
    result.figure().savefig(file, dpi=DPI)
    return file.getvalue()


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time")
    parser.add_argument("--rows", type=Path, help="write rows for the table of all benchmarks there")
    options = parser.parse_args(given)
    be_quiet()
    warnings.simplefilter("ignore")
    model, scene, rows = qavit.load(cache=0), qavit.demo_scene(), []
    peers = {"overlay as PNG": ("Pillow and a colormap",), "figure as PNG": ("matplotlib's figure",), "the map": ()}
    large = np.kron(scene.picture, np.ones((7, 7, 1), np.uint8))
    for name, picture in (("96 x 96", scene.picture), (f"{large.shape[0]} x {large.shape[1]}", large)):
        result = model.heatmaps(picture, scene.questions[0])
        calls: dict[str, Callable[[], object]] = {
            "overlay as PNG": partial(own_overlay, result),
            "figure as PNG": partial(own_figure, result),
            "Pillow and a colormap": partial(scripts_overlay, result),
            "matplotlib's figure": partial(scripts_figure, result),
            "the map": partial(model.heatmaps, picture, scene.questions[0]),
        }
        times = interleave(calls, options.rounds, options.clock)
        sides = {name: {"ms": 1e3 * times.median(name)} for name in calls}
        rows += beside(f"drawing, {name}", sides, tuple(peers), peers)
    for row in rows:
        beside_it = "" if row.peer_ms is None else f"; {row.peer} {row.peer_ms:.1f} ms ({row.ratio:.2f}x)"
        print(f"{row.work}: {row.side} {row.ms:.1f} ms{beside_it}")
    write_rows(options.rows, rows)


if __name__ == "__main__":
    main()
