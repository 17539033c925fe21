"""The demonstration: the bundled model, the held-out scene beside it, and three questions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._base.files import make_folder
from .models._load import load
from .models._question_vit import QAViT

if TYPE_CHECKING:
    from ._result import HeatmapResult

FOLDER = Path(__file__).with_name("demo_model")


def demo_entries() -> list[dict[str, Any]]:
    """The questions that belong to the bundled scene, and what they mean.

    Returns
    -------
    list of dict
        question (str), answer (str or None) and boxes: left, top, right, bottom in pixels of the picture.
    """
    return list(json.loads((FOLDER / "scene.json").read_text(encoding="utf-8"))["questions"])


def demo_questions() -> list[str]:
    """The questions that belong to the bundled scene."""
    return [entry["question"] for entry in demo_entries()]


def demo_model(**options: Any) -> QAViT:
    """The bundled model; options as for :func:`qavit.load`."""
    model = load("demo", **options)
    assert isinstance(model, QAViT)
    return model


def run_demo(
    out: str | Path, image: Any = None, questions: Sequence[str] | None = None, block: int | None = None
) -> tuple[HeatmapResult, list[Path]]:
    """Draw heatmaps of the bundled model.

    Parameters
    ----------
    out : str or Path
        A folder, made when it is missing. heatmaps.png, blocks.png and heatmaps.html are written there.
    image : path or picture, optional
        By default the bundled scene, which the model was not trained on.
    questions : sequence of str, optional
        By default the scene's own.
    block : int, optional
        By default the block that points best.

    Returns
    -------
    tuple of HeatmapResult and list of Path
        The result, and the files written.
    """
    folder = make_folder(out, "out")
    result = demo_model().heatmaps(
        FOLDER / "scene.png" if image is None else image, list(questions or demo_questions()), block=block
    )
    return result, [
        result.save(folder / "heatmaps.png", kind="questions"),
        result[0].save(folder / "blocks.png", kind="blocks"),
        result.to_html(folder / "heatmaps.html"),
    ]
