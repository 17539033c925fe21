from ._base.about import __version__ as __version__
from ._base.about import build_info as build_info
from ._base.config import Config as Config
from ._base.warnings import BundledModelWarning as BundledModelWarning
from ._base.warnings import LowScoreWarning as LowScoreWarning
from ._base.warnings import MissingGlyphWarning as MissingGlyphWarning
from ._base.warnings import Note as Note
from ._base.warnings import PictureCacheWarning as PictureCacheWarning
from ._base.warnings import PictureCroppedWarning as PictureCroppedWarning
from ._base.warnings import PixelsNotNormalizedWarning as PixelsNotNormalizedWarning
from ._base.warnings import PrecisionWarning as PrecisionWarning
from ._base.warnings import QavitWarning as QavitWarning
from ._base.warnings import QuestionBlindWarning as QuestionBlindWarning
from ._base.warnings import QuestionCutWarning as QuestionCutWarning
from ._base.warnings import UnknownWordsWarning as UnknownWordsWarning
from ._core import get_num_threads as get_num_threads
from ._core import set_num_threads as set_num_threads
from ._demo import DemoScene as DemoScene
from ._demo import demo_scene as demo_scene
from ._result import HeatmapResult as HeatmapResult
from ._stand_ins import stand_in_weights as stand_in_weights
from .answers._explanation import Explanation as Explanation
from .answers._pnpvqa import PNPVQA as PNPVQA
from .lavis._pnpvqa import PNPVQAWithQAViT as PNPVQAWithQAViT
from .models._albef import ALBEF as ALBEF
from .models._blip2_itm import BLIP2ITM as BLIP2ITM
from .models._blip_itm import BlipITM as BlipITM
from .models._blip_vqa import BlipVQA as BlipVQA
from .models._calls import extract_attention as extract_attention
from .models._calls import forward_itm as forward_itm
from .models._captioner import BlipCaptioner as BlipCaptioner
from .models._dual_encoder import DualEncoder as DualEncoder
from .models._load import load as load
from .models._model import Model as Model
from .models._outputs import BlockAttentions as BlockAttentions
from .models._outputs import EncodedQuestions as EncodedQuestions
from .models._outputs import VisionOutput as VisionOutput
from .models._picture_cache import CacheInfo as CacheInfo
from .models._question_vit import QAViT as QAViT
from .models._reader import Reader as Reader

__all__ = [
    "ALBEF",
    "BLIP2ITM",
    "PNPVQA",
    "BlipCaptioner",
    "BlipITM",
    "BlipVQA",
    "BlockAttentions",
    "BundledModelWarning",
    "CacheInfo",
    "Config",
    "DemoScene",
    "DualEncoder",
    "EncodedQuestions",
    "Explanation",
    "HeatmapResult",
    "LowScoreWarning",
    "MissingGlyphWarning",
    "Model",
    "Note",
    "PNPVQAWithQAViT",
    "PictureCacheWarning",
    "PictureCroppedWarning",
    "PixelsNotNormalizedWarning",
    "PrecisionWarning",
    "QAViT",
    "QavitWarning",
    "QuestionBlindWarning",
    "QuestionCutWarning",
    "Reader",
    "UnknownWordsWarning",
    "VisionOutput",
    "__version__",
    "build_info",
    "demo_scene",
    "extract_attention",
    "forward_itm",
    "get_num_threads",
    "load",
    "set_num_threads",
    "stand_in_weights",
]
