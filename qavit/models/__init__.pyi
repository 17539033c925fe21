from ._albef import ALBEF as ALBEF
from ._blip2_itm import BLIP2ITM as BLIP2ITM
from ._blip_itm import BlipITM as BlipITM
from ._blip_vqa import BlipVQA as BlipVQA
from ._calls import extract_attention as extract_attention
from ._calls import forward_itm as forward_itm
from ._captioner import BlipCaptioner as BlipCaptioner
from ._dual_encoder import DualEncoder as DualEncoder
from ._load import load as load
from ._model import Model as Model
from ._outputs import BlockAttentions as BlockAttentions
from ._outputs import EncodedQuestions as EncodedQuestions
from ._outputs import VisionOutput as VisionOutput
from ._question_vit import QAViT as QAViT
from ._reader import Reader as Reader

__all__ = [
    "ALBEF",
    "BLIP2ITM",
    "BlipCaptioner",
    "BlipITM",
    "BlipVQA",
    "BlockAttentions",
    "DualEncoder",
    "EncodedQuestions",
    "Model",
    "QAViT",
    "Reader",
    "VisionOutput",
    "extract_attention",
    "forward_itm",
    "load",
]
