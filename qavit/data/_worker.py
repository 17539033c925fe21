"""What every engine does with a part: compute its rows, then write its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

from ._actor import HeatmapActor
from ._estimate import Pace, measure
from ._output import write_part
from ._plan import Part
from ._rows import MapRow

Tick = Callable[[int, int, int], None]
"""Told of images, questions and errors as they are done."""


class Settings(NamedTuple):
    """What a worker needs to know; can be pickled.

    Attributes
    ----------
    actor : dict
        Arguments of `HeatmapActor`.
    folder : str
        Where parts are written.
    keep : tuple of str
        What the columns that are kept are called.
    """

    actor: Mapping[str, Any]
    folder: str
    keep: tuple[str, ...] = ()


class PartDone(NamedTuple):
    """What is told of a part that has been written.

    Attributes
    ----------
    name : str
    file : int
        Which file of the input.
    position : float
        How much of that file had been read for it.
    images, rows, errors : int
    seconds : float
        In the model.
    problem : str or None
        The first error: id and reason.
    """

    name: str
    file: int
    position: float
    images: int
    rows: int
    errors: int
    seconds: float
    problem: Optional[str]


class About(NamedTuple):
    """What a run is told of the model that it has in other processes.

    Attributes
    ----------
    method, block, grid
        As of `HeatmapActor`.
    model : str
        Its repr.
    """

    method: str
    block: Union[int, tuple[int, ...]]
    grid: tuple[int, int]
    model: str


class _TriedActor(HeatmapActor):
    """One whose arguments were tried where the run began; each worker would spend a picture's time on it."""

    def _try(self) -> None:
        pass


class PartWorker:
    """Computes and writes parts, one after another.

    Parameters
    ----------
    settings : Settings
    actor : HeatmapActor, optional
        One that is there already; by default it is made from the settings.
    """

    def __init__(self, settings: Settings, actor: Optional[HeatmapActor] = None) -> None:
        self._actor = _TriedActor(**settings.actor) if actor is None else actor
        self._folder, self._keep = Path(settings.folder), settings.keep
        self._known: dict[int, list[MapRow]] = {}
        self._known_part = ""

    def about(self) -> About:
        """What its model is, and what it is asked."""
        actor = self._actor
        return About(actor.method, actor.block, actor.grid, repr(actor.model))

    def measure(self, part: Part, rows: int) -> Pace:
        """How fast it is, by a little of the part that it does next; `rows` are left to do."""
        pace, self._known = measure(self._actor, part, rows)
        self._known_part = part.name
        return pace

    def __call__(self, part: Part, tick: Optional[Tick] = None) -> PartDone:
        """Compute a part and write it; when this returns, the disk holds it.

        Raises
        ------
        OSError
            The file cannot be written. Nothing of it is left.
        """
        rows: list[MapRow] = []
        known = self._known if part.name == self._known_part else {}
        self._known = {}
        computed = self._actor.compute(group for place, group in enumerate(part.groups) if place not in known)
        for place, group in enumerate(part.groups):
            found = known[place] if place in known else next(computed)
            rows += [row._replace(kept=dict(zip(self._keep, asked.kept))) for asked, row in zip(group.rows, found)]
            if tick is not None:
                tick(1, len(found), sum(row.error is not None for row in found))
        write_part(self._folder / f"{part.name}.parquet", rows, self._actor.grid, self._actor.dtype, self._keep)
        failed = [row for row in rows if row.error is not None]
        return PartDone(
            part.name,
            part.file,
            part.position,
            len(part.groups),
            len(rows),
            len(failed),
            sum(row.seconds for row in rows),
            f"{failed[0].id}: {failed[0].error}" if failed else None,
        )
