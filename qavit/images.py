"""Pictures in: files, PIL images and arrays; and what a vision model sees of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from . import _core
from ._base.arguments import height_and_width
from ._base.pictures import MAX_FILE_BYTES as MAX_FILE_BYTES
from ._base.pictures import MAX_PIXELS as MAX_PIXELS
from ._base.pictures import Picture as Picture
from ._base.pictures import load_image as load_image
from ._base.resampling import Kernel, smoothed_weights
from ._base.tensors import to_numpy
from ._base.types import ImageSize

CorePreprocessing = tuple[int, tuple[int, int], int, bool, float, tuple[float, float, float], tuple[float, float, float]]
FloatArray = npt.NDArray[np.float32]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


RESIZES = ("none", "exact", "shortest_edge", "longest_edge", "cover", "inside")
"""How a picture is resized, in the core's order."""
ANY_RATIO = {"shortest_edge": "cover", "longest_edge": "inside"}
"""What does the same for a model's input that is not square."""
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""The filters of a resize, in Pillow's order."""
SMOOTH: dict[str, Kernel] = {"bilinear": "linear", "bicubic": "cubic"}
"""Those that a resize in floats has, by the names of its kernels."""
MARGINS = ("down", "even")
"""How half of an odd margin is rounded: by transformers, and by torchvision."""


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes pixel values: resized, its middle cut out, scaled and normalised.

    Parameters
    ----------
    size : int or (int, int)
        S, the edge of the model's square input in pixels, or (height, width).
    resize : {"shortest_edge", "exact", "longest_edge", "cover", "inside", "none"}
        What becomes of the picture's edges: the shorter one gets a length and the ratio is kept (CLIP), both get theirs
        (BLIP, SigLIP), the longer one does, or they stay. "cover" and "inside" are "shortest_edge" and "longest_edge" for an
        input that is not square: the ratio is kept, and the edges are at least, or at most, the input's.
    crop : bool
        Whether the middle of what is resized is taken, as large as the input, with black around it where it is smaller. Only
        with "exact" it can be left out, as the others leave pictures of another ratio.
    mean, std : tuple of three floats
        Of red, green and blue: pixel values are (byte * rescale - mean) / std. One number stands for all three.
    resize_to : int or (int, int), optional
        The length; for "exact", "cover" and "inside" (height, width), for "shortest_edge" also (shorter, at most for the
        longer). None: as large as the input.
    filter : {"bicubic", "bilinear", "nearest", "lanczos", "box", "hamming"}
        Of the resize, as Pillow's.
    rescale : float
        What bytes are multiplied by; 1 leaves them.
    margin : {"down", "even"}
        How half of an odd number of pixels that stick out is rounded: down (transformers), or to even (torchvision).
    rounded : bool
        Whether what is resized is rounded to bytes, as Pillow does; False: it stays in floats (DINOv3), which goes with
        "exact" and the "bilinear" or "bicubic" filter.
    """

    size: ImageSize
    resize: str = "shortest_edge"
    crop: bool = True
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    resize_to: int | tuple[int, int] | None = None
    filter: str = "bicubic"
    rescale: float = 1 / 255
    margin: str = "down"
    rounded: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _checked_size(self.size))
        for name, known in (("resize", RESIZES), ("filter", FILTERS), ("margin", MARGINS)):
            if getattr(self, name) not in known:
                expected = ", ".join(map(repr, known))
                raise ValueError(f"preprocessing: {name} is {getattr(self, name)!r}, expected one of {expected}")
        if not isinstance(self.crop, bool):
            raise ValueError(f"preprocessing: crop is {self.crop!r}, expected true or false")
        if not isinstance(self.rounded, bool):
            raise ValueError(f"preprocessing: rounded is {self.rounded!r}, expected true or false")
        if not self.rounded and (self.resize != "exact" or self.crop or self.filter not in SMOOTH):
            raise ValueError(
                "preprocessing: rounded is false, which goes with resize 'exact', no crop, 'bilinear' or 'bicubic'"
            )
        if self.resize_to is not None:
            object.__setattr__(self, "resize_to", self._checked_length(self.resize_to))
        if not self.crop:
            if self.resize != "exact":
                raise ValueError(f"preprocessing: resize {self.resize!r} without crop leaves pictures of any ratio")
            if self.resize_to not in (None, self.edges):
                height, width = self.edges
                raise ValueError(
                    f"preprocessing: resize_to is {self.resize_to!r} without crop, the model takes {height} x {width}"
                )
        if self.resize in ANY_RATIO and self.resize_to is None and isinstance(self.size, tuple):
            raise ValueError(
                f"preprocessing: resize {self.resize!r} to {self.size} leaves the length open; give resize_to, or "
                f"resize {ANY_RATIO[self.resize]!r}"
            )
        for name in ("mean", "std"):
            object.__setattr__(self, name, _three_numbers(getattr(self, name), name))
        scale = self.rescale
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 1e-6 <= scale <= 1e6:
            raise ValueError(f"preprocessing: rescale is {scale!r}, expected a number above 0")

    def _checked_length(self, value: Any) -> int | tuple[int, int]:
        pair = isinstance(value, (list, tuple))
        lengths = tuple(_edge(one, "resize_to") for one in (value if pair else [value]))
        wanted = {"none": (), "shortest_edge": (1, 2), "longest_edge": (1,)}.get(self.resize, (2,))
        if len(lengths) not in wanted:
            raise ValueError(f"preprocessing: resize_to is {value!r}, which does not go with resize {self.resize!r}")
        return (lengths[0], lengths[1]) if len(lengths) == 2 else lengths[0]

    @property
    def edges(self) -> tuple[int, int]:
        """Height and width of the model's input in pixels."""
        return height_and_width(self.size)

    def resized(self, size: ImageSize) -> Preprocessing:
        """The same for a model whose input is of another size: lengths keep their ratio to it."""
        (height, width), resize, lengths = height_and_width(size), self.resize, self.resize_to
        down, across = height / self.edges[0], width / self.edges[1]
        if height != width and resize in ANY_RATIO:
            resize = ANY_RATIO[resize]
            shorter = lengths[0] if isinstance(lengths, tuple) else lengths
            lengths = None if shorter is None else (shorter, shorter)
        if isinstance(lengths, tuple):
            second = down if resize == "shortest_edge" else across
            lengths = max(1, round(lengths[0] * down)), max(1, round(lengths[1] * second))
        elif lengths is not None:
            lengths = max(1, round(lengths * down))
        return replace(self, size=size, resize=resize, resize_to=lengths)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The preprocessing that :meth:`to_dict` wrote. ValueError for a missing or unknown key."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown or "size" not in values:
            problem = f"unknown key {unknown[0]!r}" if unknown else "'size' is missing"
            raise ValueError(f"preprocessing: {problem}; expected {', '.join(sorted(known))}")
        return cls(**values)

    def fitted(self, fit: str) -> Preprocessing:
        """The same for another part of the picture.

        Parameters
        ----------
        fit : {"crop", "stretch", "pad"}
            Its middle; all of it, its ratio lost; all of it with black around it.
        """
        ways = {"crop": "shortest_edge", "pad": "longest_edge"}
        if isinstance(self.size, tuple):
            ways = {name: ANY_RATIO[way] for name, way in ways.items()}
        if fit == "stretch":
            return replace(self, resize="exact", crop=False, resize_to=None)
        if fit in ways:
            return replace(self, resize=ways[fit], crop=True, resize_to=None, rounded=True)
        raise ValueError(f"fit: expected 'crop', 'stretch' or 'pad', got {fit!r}")

    def core_arguments(self) -> CorePreprocessing:
        """As the core takes it, the size apart: (rule, edges, filter, even margins, rescale, mean, std)."""
        first, second = self.edges
        if self.resize == "shortest_edge":
            second = 0
        if isinstance(self.resize_to, tuple):
            first, second = self.resize_to
        elif self.resize_to is not None:
            first = self.resize_to
        if self.resize in ("none", "longest_edge"):
            second = first
        edges = (int(first), int(second))
        even = self.margin == "even"
        rule, number = RESIZES.index(self.resize), FILTERS.index(self.filter)
        return rule, edges, number, even, float(self.rescale), self.mean, self.std

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers, strings and lists, for config.json."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@dataclass(frozen=True)
class Region:
    """The part of a picture that the model saw, in the picture's pixels; (0, 0) is the upper left corner.

    The model's input, and so each map [gh, gw], covers the region evenly.
    """

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """In pixels of the picture."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """In pixels of the picture."""
        return self.bottom - self.top

    def to_picture(self, x: float, y: float) -> tuple[float, float]:
        """Picture coordinates of a point of the model's input, which is given in fractions of it: (0, 0) to (1, 1)."""
        return self.left + x * self.width, self.top + y * self.height

    def from_picture(self, x: float, y: float) -> tuple[float, float]:
        """The inverse of :meth:`to_picture`; outside of [0, 1] where the model did not see the point."""
        return (x - self.left) / self.width, (y - self.top) / self.height

    def patch(self, row: int, column: int, grid: tuple[int, int]) -> Region:
        """The part of the picture that one patch of a grid (gh, gw) covers. IndexError outside of the grid."""
        gh, gw = grid
        if not (0 <= row < gh and 0 <= column < gw):
            raise IndexError(f"patch ({row}, {column}) of a grid of {gh} rows and {gw} columns")
        left, top = self.to_picture(column / gw, row / gh)
        right, bottom = self.to_picture((column + 1) / gw, (row + 1) / gh)
        return Region(left, top, right, bottom)

    def patch_at(self, x: float, y: float, grid: tuple[int, int]) -> tuple[int, int] | None:
        """(row, column) of the patch that covers a point of the picture; None where the model did not see it."""
        across, down = self.from_picture(x, y)
        if not (0.0 <= across < 1.0 and 0.0 <= down < 1.0):
            return None
        return min(int(down * grid[0]), grid[0] - 1), min(int(across * grid[1]), grid[1] - 1)


def preprocess(picture: Picture, preprocessing: Preprocessing) -> tuple[FloatArray, Region]:
    """Resize, crop and normalise a picture as its model was trained with.

    Resizing gives Pillow's bytes and the normalisation the floats of Hugging Face's image processors over Pillow, without
    either.

    Parameters
    ----------
    picture : ndarray
        uint8 [H, W, 3].
    preprocessing : Preprocessing
        The model's.

    Returns
    -------
    pixel_values : ndarray
        float32 [3, height, width], of the model's input.
    region : Region
        The part of the picture that they show.
    """
    if not isinstance(preprocessing, Preprocessing):
        raise TypeError(f"preprocessing: expected a Preprocessing, got {type(preprocessing).__name__}")
    if not isinstance(picture, np.ndarray):
        raise TypeError(f"picture: expected a uint8 array [H, W, 3], as load_image gives it, got {type(picture).__name__}")
    if picture.dtype != np.uint8:
        raise TypeError(f"picture: expected a uint8 array [H, W, 3], got {picture.dtype} of shape {list(picture.shape)}")
    if preprocessing.rounded:
        pixels = _core.preprocess_image(picture, preprocessing.edges, preprocessing.core_arguments())
    else:
        pixels = _resized_in_floats(picture, preprocessing)
    return pixels, seen_region(picture, preprocessing)


def _resized_in_floats(picture: Picture, preprocessing: Preprocessing) -> FloatArray:
    kernel = SMOOTH[preprocessing.filter]
    down, across = (
        smoothed_weights(old, new, kernel).astype(np.float32) for old, new in zip(picture.shape[:2], preprocessing.edges)
    )
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    colours = np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32) * np.float32(preprocessing.rescale)
    return np.asarray((down @ colours @ across.T - mean) / std, np.float32)


def seen_region(picture: Picture, preprocessing: Preprocessing) -> Region:
    """The part of a picture uint8 [H, W, 3] that its pixel values show; more than all of it where they are padded."""
    height, width = picture.shape[:2]
    rows, columns = preprocessing.edges
    place = _core.place_picture(height, width, preprocessing.edges, preprocessing.core_arguments())
    new_height, new_width, top, left = place
    return Region(
        left * width / new_width, top * height / new_height,
        (left + columns) * width / new_width, (top + rows) * height / new_height,
    )  # fmt: skip


class DevicePicture:
    """A picture that becomes pixel values where its model computes; it stands for a batch of one.

    Parameters
    ----------
    picture : ndarray
        uint8 [H, W, 3]; copied, so that what becomes of the caller's does not show later.
    preprocessing : Preprocessing
        The model's.
    """

    def __init__(self, picture: Picture, preprocessing: Preprocessing) -> None:
        self.picture = picture.copy()
        self.preprocessing = preprocessing.core_arguments()
        self.size = preprocessing.edges

    def __len__(self) -> int:
        return 1


Seen = Union[FloatArray, DevicePicture]
"""What a model's core takes of one picture or a batch: pixel values [B, 3, height, width], or a picture to make them of."""


def prepare(image: Any, preprocessing: Preprocessing, device: str) -> tuple[Picture, Seen, Region]:
    """A picture, what a model on `device` takes of it (a batch of one), and which part of it that is.

    On the CPU that is pixel values float32 [1, 3, height, width], made here once for all passes. A GPU is given the picture
    and makes them itself, with the same bits. `image` is what `load_image` takes, or a `DevicePicture`.
    """
    if isinstance(image, DevicePicture):
        return image.picture, image, seen_region(image.picture, preprocessing)
    picture = load_image(image)
    if device == "cpu" or not preprocessing.rounded:
        pixels, region = preprocess(picture, preprocessing)
        return picture, pixels[None], region
    return picture, DevicePicture(picture, preprocessing), seen_region(picture, preprocessing)


def as_pixel_values(values: Any, name: str = "pixel_values") -> FloatArray:
    """Normalised pixel values as a float32 array, without importing torch.

    Parameters
    ----------
    values : array-like
        [3, H, W] or [B, 3, H, W] floats of any precision: NumPy, torch on any device (its gradient is left alone), or
        anything with ``__array__`` or ``__dlpack__``; or a list of [3, H, W] of one size.
    name : str
        What errors call it.

    Returns
    -------
    ndarray
        float32, C-contiguous, of the shape that came. It may share memory with ``values``: do not write to it.

    Raises
    ------
    TypeError
        For what is not an array.
    ValueError
        For another shape, for integers (pictures are no pixel values), and for NaN or infinite values.
    """
    if isinstance(values, (list, tuple)):
        if not values:
            raise ValueError(f"{name}: the list is empty")
        items = [as_pixel_values(item, f"{name}[{i}]") for i, item in enumerate(values)]
        shapes = sorted({item.shape for item in items})
        if len(shapes) > 1 or items[0].ndim != 3:
            raise ValueError(f"{name}: a list of arrays of shapes {shapes}, expected [3, H, W] of one size")
        return np.stack(items)
    array = to_numpy(values, name)
    if array.ndim not in (3, 4) or array.shape[-3] != 3 or 0 in array.shape[-2:]:
        hint = ""
        if array.ndim == 3 and array.shape[-1] in (3, 4):
            made = "(255 * picture).round().astype('uint8')"
            hint = f"; a picture {list(array.shape)} must be uint8: {made} makes one of floats from 0 to 1"
        raise ValueError(f"{name}: shape {list(array.shape)}, expected [3, H, W] or [B, 3, H, W]{hint}")
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise ValueError(
            f"{name}: {array.dtype} values, expected normalised floats; give a picture as uint8 [H, W, 3] instead"
        )
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(result).all():
        bad = int(np.count_nonzero(~np.isfinite(result)))
        raise ValueError(f"{name}: {bad} of {result.size} values are NaN or infinite in float32")
    return result


def levels_of(pixel_values: FloatArray, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """The levels uint8 [3, H, W] that normalised pixel values float32 [3, H, W] stand for."""
    mean = np.array(preprocessing.mean, np.float32)[:, None, None]
    std = np.array(preprocessing.std, np.float32)[:, None, None]
    with np.errstate(over="ignore"):
        levels = np.rint((pixel_values * std + mean) / np.float32(preprocessing.rescale))
    clipped: npt.NDArray[np.uint8] = np.clip(levels, 0.0, 255.0).astype(np.uint8)
    return clipped


def picture_of(pixel_values: FloatArray, preprocessing: Preprocessing) -> Picture:
    """The picture uint8 [H, W, 3] that normalised pixel values float32 [3, H, W] show."""
    return np.ascontiguousarray(levels_of(pixel_values, preprocessing).transpose(1, 2, 0))


def _checked_size(value: Any) -> ImageSize:
    pair = isinstance(value, (list, tuple))
    edges = tuple(_edge(one, "size") for one in (value if pair else [value]))
    if len(edges) > 2 or not edges:
        raise ValueError(f"preprocessing: size is {value!r}, expected a side or (height, width)")
    return edges[0] if edges[0] == edges[-1] else (edges[0], edges[-1])


def _edge(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 1 <= value <= 16384:
        raise ValueError(f"preprocessing: {name} is {value!r}, expected a whole number from 1 to 16384")
    return int(value)


def _three_numbers(values: Any, name: str) -> tuple[float, float, float]:
    try:
        if isinstance(values, (bool, str)) or any(isinstance(value, (bool, str)) for value in np.atleast_1d(values)):
            raise TypeError
        numbers = [float(value) for value in np.atleast_1d(values)]
        red, green, blue = numbers * 3 if len(numbers) == 1 and np.ndim(values) == 0 else numbers
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"preprocessing: {name} is {values!r:.80}, expected three numbers") from None
    for value in (red, green, blue):
        if not math.isfinite(value) or abs(value) > 1e6 or (name == "std" and value < 1e-6):
            raise ValueError(f"preprocessing: {name} is {values!r}, expected three finite numbers, std above zero")
    return red, green, blue
