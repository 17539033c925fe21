"""What made an answer: the map, the patches drawn by it, the captions, and how much of each is in the answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import numpy as np
import numpy.typing as npt

from .._base.files import PathLike, write_whole
from .._base.types import FloatArray
from .._result import HeatmapResult
from ..plots._look import CMAP, Cmap, Look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..generation import Generated


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """How PnP-VQA came to its answer. A notebook shows it as a figure.

    Attributes
    ----------
    question : str
    answer : Generated
        The reader's; its `text` is what `str(explanation)` gives.
    result : HeatmapResult
        The matcher's map of the question.
    draws : HeatmapResult
        The captioner's patches: `raw` [1, gh, gw] says into how many captions each was drawn.
    captions : list of str
    contexts : list of C str
        What the reader read: the question and one or more captions each.
    attended : float32 [C] or None
        How much of the answer's attention went to each context, the mean over its tokens; sums to 1. None where the reader
        does not say.
    """

    question: str
    answer: Generated
    result: HeatmapResult
    draws: HeatmapResult
    captions: list[str]
    contexts: list[str]
    attended: Optional[FloatArray] = None

    def __str__(self) -> str:
        return self.answer.text

    def __repr__(self) -> str:
        return f"Explanation({self.question!r}: {self.answer.text!r}, out of {len(self.captions)} captions)"

    def ranked_captions(self) -> list[tuple[str, Optional[float]]]:
        """The contexts' captions, the most attended first, each with its share; in their order where nothing says so."""
        texts = [context.partition(" \\n ")[2] for context in self.contexts]
        if self.attended is None:
            return [(text, None) for text in texts]
        order = np.argsort(-self.attended, kind="stable")
        return [(texts[place], float(self.attended[place])) for place in order]

    def to_dict(self) -> dict[str, Any]:
        """All of it for JSON: the maps as lists."""
        return {
            "question": self.question,
            "answer": self.answer.text,
            "score": self.answer.score,
            "captions": self.captions,
            "contexts": self.contexts,
            "attended": None if self.attended is None else [round(float(share), 6) for share in self.attended],
            "draws": self.draws.raw[0].astype(int).tolist(),
            "map": self.result.to_dict(),
        }

    def figure(
        self, *, top: int = 8, cmap: Cmap = CMAP, vmin: Optional[float] = None, vmax: Optional[float] = None
    ) -> Figure:
        """The map, the drawn patches, and the captions that the answer attended to most.

        Parameters
        ----------
        top : int
            Captions that are shown.
        cmap : str or Colormap
            Any of matplotlib's.
        vmin, vmax : float, optional
            The values of the two ends of the map's colours, as for `HeatmapResult.overlay`; drawn patches have their own.

        Returns
        -------
        matplotlib.figure.Figure
            One that does not belong to pyplot.
        """
        from ..plots._answers import answer_figure

        heading = "Captions" if self.attended is None else "Captions that the answer attended to most"
        texts = self.ranked_captions()[:top]
        look = Look(cmap, vmin=vmin, vmax=vmax)
        return answer_figure(self.result, self.draws, self.question, self.answer.text, texts, heading, look)

    def save(
        self,
        path: PathLike,
        *,
        top: int = 8,
        dpi: float = 150,
        cmap: Cmap = CMAP,
        vmin: Optional[float] = None,
        vmax: Optional[float] = None,
    ) -> Path:
        """Save as the file name's ending says: .json holds `to_dict`, .png, .jpg, .webp, .pdf or .svg the figure.

        Raises
        ------
        ValueError
            The ending is none of these.
        """
        import json

        target = Path(path)
        if target.suffix.lower() == ".json":
            return write_whole(target, json.dumps(self.to_dict(), ensure_ascii=False).encode())
        from ..plots._figures import save_figure

        return save_figure(self.figure(top=top, cmap=cmap, vmin=vmin, vmax=vmax), target, dpi)

    def _repr_jpeg_(self) -> bytes:
        from ..plots._figures import render
        from ..plots._look import NOTEBOOK_JPEG

        return render(self.figure(), "jpg", 100, NOTEBOOK_JPEG)


def drawn_patches(result: HeatmapResult, patches: npt.NDArray[np.int32], grid: tuple[int, int]) -> HeatmapResult:
    """Into how many captions each patch was drawn, as a map over the same picture.

    Parameters
    ----------
    result : HeatmapResult
        Of one question.
    patches : int32 [N, n]
        From 0.
    grid : (rows, columns)
        The captioner's.
    """
    counts = np.bincount(patches.reshape(-1), minlength=grid[0] * grid[1]).astype(np.float32).reshape(1, *grid)
    return HeatmapResult(
        maps=counts / counts.sum(), questions=result.questions, picture=result.picture, seen=result.seen,
        block=result.block, method="drawn patches", raw=counts,
    )  # fmt: skip
