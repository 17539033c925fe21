"""Where a vision model looks for a question: attention heatmaps from a C core, without torch.

    import qavit

    model = qavit.load("demo")
    result = model.heatmaps("picture.jpg", ["where is the red star?", "what color is the circle?"])
    result.save("heatmaps.png")

Importing this package loads NumPy and the core; everything else is imported when it is used.
"""

import logging as _logging
import os as _os

import lazy_loader as _lazy_loader

if _os.name == "nt":  # elsewhere a run path says where a module's libraries lie
    from qavit._base.system import find_libraries as _find_libraries

    _find_libraries(_os.path.join(_os.path.dirname(__file__), ".libs"))
try:
    import qavit._core as _core  # noqa: F401  # a build that cannot run says so here, not at the first picture
except ModuleNotFoundError as _missing:
    if _missing.name != "qavit._core":
        raise
    raise ImportError(
        f"qavit's core is not built in {_os.path.dirname(__file__)}: run `pip install -e .` in that checkout, "
        "or leave its folder to import an installed qavit"
    ) from None

_logging.getLogger("qavit").addHandler(_logging.NullHandler())
if _os.environ.get("QAVIT_VERBOSITY"):
    _level = _os.environ["QAVIT_VERBOSITY"]
    if _level.lower() not in {"debug", "info", "warning", "error", "critical"}:
        raise ValueError(f"QAVIT_VERBOSITY is {_level!r}, expected debug, info, warning, error or critical")
    _logging.getLogger("qavit").setLevel(_level.upper())
    _logging.getLogger("qavit").addHandler(_logging.StreamHandler())

__getattr__, __dir__, __all__ = _lazy_loader.attach_stub(__name__, __file__)
