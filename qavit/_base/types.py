"""Types that many rooms name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, Protocol, Union

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

#: How heads become one map: their mean, their largest, or one of them by its number. "single" is Grad-ECLIP's own: the block
#: runs with one head.
Heads = Union[Literal["mean", "max", "single"], int]
#: What a gradient is of: a text's cosine, or its share among the call's texts.
Score = Literal["cosine", "softmax"]
#: Of a model's input in pixels: a square's side, or (height, width).
ImageSize = Union[int, tuple[int, int]]
Precision = Literal["float32", "bfloat16", "tf32", "int8", "int8_mixed"]
Normalization = Literal["minmax", "sum", "max"]
#: What the packages of these methods make of a map.
PackageNormalization = Literal["legrad", "gem", "chefer", "surgery", "legrad_siglip", "gradcam"]
Resampling = Literal["bicubic", "bilinear", "nearest"]
Fit = Literal["crop", "stretch", "pad"]
Kind = Literal[
    "qavit", "clip", "siglip", "blip_itm", "blip2_itm", "albef", "blip_vqa", "blip_caption", "reader", "vit",
]  # fmt: skip
MethodName = Literal[
    "class", "question", "gradcam", "cross_attention", "pool", "registers",
    "rollout", "gradcam_attention", "gae", "grad_eclip", "legrad",
    "maskclip", "sclip", "clearclip", "naclip", "surgery", "gem",
]  # fmt: skip


class SupportsArray(Protocol):
    """Arrays of NumPy, tensors of torch."""

    def __array__(self, *arguments: Any, **options: Any) -> Any: ...


class SupportsArrayInterface(Protocol):
    """Pictures of PIL."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


class SupportsRead(Protocol):
    """A file that is open for reading bytes."""

    def read(self, size: int = ..., /) -> bytes: ...


#: A picture: a file by its path, its bytes or open, a PIL image, an array uint8 [H, W, 3], or normalised floats [3, S, S].
ImageLike = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, SupportsRead, SupportsArray, SupportsArrayInterface]
#: Normalised pixel values, float [B, 3, S, S], or several [3, S, S].
PixelValues = Union[SupportsArray, Sequence[SupportsArray]]
