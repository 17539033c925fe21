"""Whole data sets: a map for every question, on one machine or many, and the maps read back.

    import qavit.data

    qavit.data.run("v2_OpenEnded_mscoco_val2014_questions.json", "maps", images="val2014", model="qavit-base2")
    for row in qavit.data.read_maps("maps"):
        print(row.id, row.map)

Needs ``pip install "qavit[data]"``; the Ray engine ``"qavit[ray]"``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .actor import HeatmapActor, MapRow
    from .output import scale_maps
    from .pipeline import RunSummary, run
    from .plan import Shard
    from .questions import open_questions
    from .reading import MapReader, read_maps

_HOME = {
    "HeatmapActor": "actor",
    "MapReader": "reading",
    "MapRow": "actor",
    "RunSummary": "pipeline",
    "Shard": "plan",
    "open_questions": "questions",
    "read_maps": "reading",
    "run": "pipeline",
    "scale_maps": "output",
}

__all__ = ["HeatmapActor", "MapReader", "MapRow", "RunSummary", "Shard", "open_questions", "read_maps", "run", "scale_maps"]

__getattr__, __dir__ = lazy_names(__name__, _HOME)
