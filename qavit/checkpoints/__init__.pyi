from ._convert import convert as convert
from ._describe import describe as describe
from ._describe import description_text as description_text
from ._opening import open_model as open_model
from ._source import ModelSource as ModelSource

__all__ = [
    "ModelSource",
    "convert",
    "describe",
    "description_text",
    "open_model",
]
