from ._agreement import PointingGame as PointingGame
from ._agreement import Segmentation as Segmentation
from ._agreement import energy_inside as energy_inside
from ._agreement import inside_top_k as inside_top_k
from ._agreement import kl_divergence as kl_divergence
from ._agreement import overlap as overlap
from ._agreement import pearson as pearson
from ._agreement import pointing_hit as pointing_hit
from ._agreement import spearman as spearman
from ._comparison import Differences as Differences
from ._comparison import MapDifference as MapDifference
from ._comparison import map_difference as map_difference
from ._faithfulness import Curve as Curve
from ._faithfulness import Road as Road
from ._faithfulness import deletion as deletion
from ._faithfulness import drop_and_increase as drop_and_increase
from ._faithfulness import impute as impute
from ._faithfulness import insertion as insertion
from ._faithfulness import perturbation as perturbation
from ._faithfulness import road as road
from ._gqa import GqaAccuracy as GqaAccuracy
from ._gqa import gqa_accuracy as gqa_accuracy
from ._localization import Estimate as Estimate
from ._localization import Localization as Localization
from ._pointing import attention_inside as attention_inside
from ._sanity import Sanity as Sanity
from ._sanity import sanity_checks as sanity_checks
from ._vqa import VqaAccuracy as VqaAccuracy
from ._vqa import accuracy_interval as accuracy_interval
from ._vqa import normalize_answer as normalize_answer
from ._vqa import vqa_accuracy as vqa_accuracy

__all__ = [
    "Curve",
    "Differences",
    "Estimate",
    "GqaAccuracy",
    "Localization",
    "MapDifference",
    "PointingGame",
    "Road",
    "Sanity",
    "Segmentation",
    "VqaAccuracy",
    "accuracy_interval",
    "attention_inside",
    "deletion",
    "drop_and_increase",
    "energy_inside",
    "gqa_accuracy",
    "impute",
    "insertion",
    "inside_top_k",
    "kl_divergence",
    "map_difference",
    "normalize_answer",
    "overlap",
    "pearson",
    "perturbation",
    "pointing_hit",
    "road",
    "sanity_checks",
    "spearman",
    "vqa_accuracy",
]
