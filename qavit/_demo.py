"""The demonstration: the bundled model, the held-out scene beside it, and three questions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ._base.files import make_folder
from ._base.pictures import Picture
from .models._load import load
from .models._question_vit import QAViT

if TYPE_CHECKING:
    from ._result import HeatmapResult

FOLDER = Path(__file__).with_name("demo_model")
PICTURE = FOLDER / "scene.png"


class DemoScene(NamedTuple):
    """The bundled picture, which the bundled model was not trained on, and questions about it.

    Attributes
    ----------
    picture : uint8 array [384, 384, 3]
    questions : list of str
    boxes : list of lists of (left, top, right, bottom)
        What each question refers to, in pixels of the picture.
    answers : list of (str or None)
        The right answer to each question; None where there is none.
    """

    picture: Picture
    questions: list[str]
    boxes: list[list[tuple[float, float, float, float]]]
    answers: list[str | None]


def demo_scene() -> DemoScene:
    """A picture with questions, what they refer to and the right answers, for trying things offline.

    Returns
    -------
    DemoScene
        Named: picture, questions, boxes, answers.

    Examples
    --------
    >>> import qavit
    >>> scene = qavit.demo_scene()
    >>> result = qavit.load("demo").heatmaps(scene.picture, scene.questions)
    """
    from .images import load_image

    entries = json.loads((FOLDER / "scene.json").read_text(encoding="utf-8"))["questions"]
    return DemoScene(
        load_image(PICTURE),
        [entry["question"] for entry in entries],
        [[(box[0], box[1], box[2], box[3]) for box in entry["boxes"]] for entry in entries],
        [entry["answer"] for entry in entries],
    )


def demo_model(**options: Any) -> QAViT:
    """The bundled model; options as for :func:`qavit.load`."""
    model = load("demo", **options)
    assert isinstance(model, QAViT)
    return model


def run_demo(
    out: str | Path, image: Any = None, questions: Sequence[str] | None = None, block: int | None = None, **look: Any
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
    **look
        cmap, vmin, vmax and shared, as for `HeatmapResult.figure`.

    Returns
    -------
    tuple of HeatmapResult and list of Path
        The result, and the files written.
    """
    folder = make_folder(out, "out")
    result = demo_model().heatmaps(
        PICTURE if image is None else image, list(questions or demo_scene().questions), block=block
    )
    return result, [
        result.save(folder / "heatmaps.png", kind="questions", **look),
        result[0].save(folder / "blocks.png", kind="blocks", **look),
        result.to_html(folder / "heatmaps.html", **look),
    ]
