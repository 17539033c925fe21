from ._grids import drawable as drawable
from ._grids import fit_images as fit_images
from ._grids import resample_mass as resample_mass
from ._matcher import compute_gradcam as compute_gradcam
from ._modules import from_lavis as from_lavis
from ._pictures import getAttMap as getAttMap
from ._pictures import show_cam_on_image as show_cam_on_image
from ._pnpvqa import Config as Config
from ._pnpvqa import PNPVQAWithQAViT as PNPVQAWithQAViT
from ._replace import ReplacedForwardItm as ReplacedForwardItm
from ._replace import ReplacedStep as ReplacedStep
from ._replace import replace_forward_cap as replace_forward_cap
from ._replace import replace_forward_itm as replace_forward_itm
from ._replace import replace_forward_qa as replace_forward_qa
from ._replace import replace_predict_answers as replace_predict_answers
from ._stored import StoredGradcams as StoredGradcams
from ._stored import gradcams_from as gradcams_from

__all__ = [
    "Config",
    "PNPVQAWithQAViT",
    "ReplacedForwardItm",
    "ReplacedStep",
    "StoredGradcams",
    "compute_gradcam",
    "drawable",
    "fit_images",
    "from_lavis",
    "getAttMap",
    "gradcams_from",
    "replace_forward_cap",
    "replace_forward_itm",
    "replace_forward_qa",
    "replace_predict_answers",
    "resample_mass",
    "show_cam_on_image",
]
