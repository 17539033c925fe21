"""A figure of an answer: the map, the patches drawn by it, and the captions that were read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Optional

from matplotlib.figure import Figure

from ..heatmaps._maps import Maps
from . import _labels as labels
from ._figures import HeatmapFigure, plot
from ._look import Look, notes_of
from ._panels import FAINT, INK, answers_in_words
from ._sheet import NOTE_SIZE, SMALL_LINE, SMALL_SIZE, TITLE_SIZE, small_print

PANEL, TEXT, HEIGHT = 3.4, 4.2, 3.9  # inches
LETTERS, BOLD_LETTERS = 52, 43  # of a line of the text
BAR = "#b9c7e4"


def answer_figure(
    result: Maps,
    draws: Optional[Maps],
    question: str,
    answer: str,
    texts: Sequence[tuple[str, Optional[float]]],
    heading: str,
    look: Optional[Look] = None,
) -> Figure:
    """Where the model looked, which patches were drawn how often (where any were), and what was answered, out of what.

    Parameters
    ----------
    result, draws : Maps
        Of one question each.
    texts : sequence of (str, float or None)
        With their shares, where they are known; `heading` says what they are.
    look : Look, optional
        The colours of the maps; the ends of the scale are of `result`'s.
    """
    look = replace(look or Look(), colorbar=False)
    panels = [(result, "Where the model looks")]
    if draws is not None:
        panels.append((draws, "How often each patch was drawn"))
    width = PANEL * len(panels) + TEXT
    # Notes on the question have room below the panels, whose size stays.
    below = [answers_in_words(result, 0), *notes_of(result, 0), *notes_of(result, None)]
    more = SMALL_LINE * max(0, len(small_print(below, PANEL * 0.9)) - 2)
    height = HEIGHT + more
    figure = HeatmapFigure(figsize=(width, height))
    grid = figure.add_gridspec(
        1, len(panels) + 1, width_ratios=[PANEL] * len(panels) + [TEXT], left=0.015, right=0.985,
        top=1 - 0.12 * HEIGHT / height, bottom=(0.12 * HEIGHT + more) / height, wspace=0.06,
    )  # fmt: skip
    for place, (maps, title) in enumerate(panels):
        own = look if maps is result else replace(look, vmin=None, vmax=None)
        plot(maps, figure.add_subplot(grid[place]), None, "overlay", own, title)
    _write(figure.add_subplot(grid[len(panels)]), question, answer, texts, heading)
    return figure


def _write(axes: Any, question: str, answer: str, texts: Sequence[tuple[str, Optional[float]]], heading: str) -> None:
    """The question, the answer, and below them texts over bars of their shares."""
    axes.set_axis_off()
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(0.0, 1.0)
    height = 1.0

    def line(text: str, size: float, colour: str, weight: str = "normal") -> None:
        nonlocal height
        columns = int((LETTERS if weight == "normal" else BOLD_LETTERS) * NOTE_SIZE / size)
        for part in labels.wrap(text, columns, 4, measured=True):
            axes.text(
                0.02, height, labels.plain(part), fontsize=size, color=colour, fontweight=weight, va="top",
                fontfamily=labels.families(part),
            )  # fmt: skip
            height -= size / 72 * 1.35 / (HEIGHT * 0.76)

    line(question, TITLE_SIZE, FAINT)
    line(answer or "(no answer)", TITLE_SIZE + 4, INK, "bold")
    if not texts:
        return
    height -= 0.03
    line(heading, SMALL_SIZE, FAINT)
    most = max((share for _, share in texts if share is not None), default=0.0)
    for text, share in texts:
        if height < 0.03:
            break
        top = height
        shown = text if share is None else f"{share:.0%}  {text}"
        line(labels.wrap(shown, int(LETTERS * NOTE_SIZE / SMALL_SIZE), 1, measured=True)[0], SMALL_SIZE, INK)
        if share is not None and most > 0:
            axes.barh((top + height) / 2 + 0.008, share / most, top - height, color=BAR, zorder=0, align="center")
