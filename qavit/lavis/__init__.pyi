from ._grids import drawable as drawable
from ._grids import fit_images as fit_images
from ._grids import resample_mass as resample_mass
from ._matcher import compute_gradcam as compute_gradcam
from ._matcher import from_lavis as from_lavis
from ._pictures import getAttMap as getAttMap
from ._pictures import show_cam_on_image as show_cam_on_image
from ._pnpvqa import Config as Config
from ._pnpvqa import PNPVQAWithQAViT as PNPVQAWithQAViT
from ._replace import ReplacedForwardItm as ReplacedForwardItm
from ._replace import replace_forward_itm as replace_forward_itm
from ._stored import StoredGradcams as StoredGradcams
from ._stored import gradcams_from as gradcams_from

__all__ = [
    "Config",
    "PNPVQAWithQAViT",
    "ReplacedForwardItm",
    "StoredGradcams",
    "compute_gradcam",
    "drawable",
    "fit_images",
    "from_lavis",
    "getAttMap",
    "gradcams_from",
    "replace_forward_itm",
    "resample_mass",
    "show_cam_on_image",
]
