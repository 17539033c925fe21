from ._actor import HeatmapActor as HeatmapActor
from ._comparison import Comparison as Comparison
from ._comparison import compare as compare
from ._evaluation import Evaluation as Evaluation
from ._evaluation import evaluate as evaluate
from ._pipeline import RunSummary as RunSummary
from ._pipeline import run as run
from ._plan import Shard as Shard
from ._questions import open_questions as open_questions
from ._reading import MapReader as MapReader
from ._reading import read_maps as read_maps
from ._rows import MapRow as MapRow
from ._rows import scale_maps as scale_maps

__all__ = [
    "Comparison",
    "Evaluation",
    "HeatmapActor",
    "MapReader",
    "MapRow",
    "RunSummary",
    "Shard",
    "compare",
    "evaluate",
    "open_questions",
    "read_maps",
    "run",
    "scale_maps",
]
