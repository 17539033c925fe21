"""Where a vision model looks for a question: attention heatmaps from a C core, without torch.

    import qavit

    model = qavit.load("demo")
    result = model.heatmaps("picture.jpg", ["where is the red star?", "what color is the circle?"])
    result.save("heatmaps.png")

Importing this package loads NumPy and the core; everything else is imported when it is used.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from ._core import get_num_threads, set_num_threads
from .lazy import lazy_names

if TYPE_CHECKING:
    from .config import Config
    from .heatmaps import HeatmapResult
    from .models import (
        BlockAttentions,
        EncodedQuestions,
        QAViT,
        QuestionBlindWarning,
        UnknownWordsWarning,
        VisionOutput,
        extract_attention,
        forward_itm,
        load,
    )
    from .pnpvqa import PNPVQAWithQAViT

__version__ = "0.1.0"

_HOME = {
    "BlipITM": "blip",
    "BlockAttentions": "models",
    "Config": "config",
    "EncodedQuestions": "models",
    "HeatmapResult": "heatmaps",
    "PNPVQAWithQAViT": "pnpvqa",
    "QAViT": "models",
    "QuestionBlindWarning": "models",
    "UnknownWordsWarning": "models",
    "VisionOutput": "models",
    "extract_attention": "models",
    "forward_itm": "models",
    "load": "models",
}

__all__ = [
    "BlockAttentions",
    "Config",
    "EncodedQuestions",
    "HeatmapResult",
    "PNPVQAWithQAViT",
    "QAViT",
    "QuestionBlindWarning",
    "UnknownWordsWarning",
    "VisionOutput",
    "build_info",
    "extract_attention",
    "forward_itm",
    "get_num_threads",
    "load",
    "set_num_threads",
]

logging.getLogger("qavit").addHandler(logging.NullHandler())
if os.environ.get("QAVIT_VERBOSITY"):
    _level = os.environ["QAVIT_VERBOSITY"]
    if _level.lower() not in {"debug", "info", "warning", "error", "critical"}:
        raise ValueError(f"QAVIT_VERBOSITY is {_level!r}, expected debug, info, warning, error or critical")
    logging.getLogger("qavit").setLevel(_level.upper())
    logging.getLogger("qavit").addHandler(logging.StreamHandler())


def build_info() -> dict[str, Any]:
    """What is in this build, and what it found on this machine.

    Returns
    -------
    dict
        version; blas and blas_kernels (OpenBLAS's own words); kernels (which of ours run, by precision); panel_columns
        (of the panels that weights are packed in, 0: none); threads and cpus;
        cpu_features; stb_image and cuda, whether they were compiled in.
    """
    from . import _core

    return {"version": __version__, **_core.build_info()}


__getattr__, __dir__ = lazy_names(__name__, _HOME)
