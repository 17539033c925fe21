from ._distribution import to_distribution as to_distribution
from ._grid import NORMALIZATIONS as NORMALIZATIONS
from ._grid import RESAMPLINGS as RESAMPLINGS
from ._grid import Box as Box
from ._grid import MapStatistics as MapStatistics
from ._grid import Patch as Patch
from ._grid import map_statistics as map_statistics
from ._grid import normalize_maps as normalize_maps
from ._grid import output_size as output_size
from ._grid import resample_map as resample_map

__all__ = [
    "NORMALIZATIONS",
    "RESAMPLINGS",
    "Box",
    "MapStatistics",
    "Patch",
    "map_statistics",
    "normalize_maps",
    "output_size",
    "resample_map",
    "to_distribution",
]
