"""What loaded models have in common: pictures at their door, and how they travel to other processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .._base.arguments import is_pixel_values
from .._base.files import absolute_paths
from .._base.types import FloatArray

if TYPE_CHECKING:
    from ..images import Preprocessing, Region, Seen


class LoadedModel:
    """A `QAViT` or a `BlipITM`.

    A model that :func:`qavit.load` made can be pickled and deep-copied: what travels is where its files lie, and it is
    loaded anew where it arrives. One made of weights in memory cannot.
    """

    name: str
    kind: str
    takes_questions: bool
    methods: tuple[str, ...]
    default_method: str
    device: str
    offload_model: bool
    image_size: int
    preprocessing: Preprocessing
    _loaded_with: dict[str, Any] | None = None  # arguments of qavit.load
    _load_again: Callable[[dict[str, Any]], Any]

    def _remember(self, arguments: Mapping[str, Any], load_again: Callable[[dict[str, Any]], Any]) -> None:
        """Keep what :func:`qavit.load` was called with, files by their absolute paths, and what loads by that again."""
        self._load_again = load_again
        self._loaded_with = {**arguments, **absolute_paths(arguments)}

    def __reduce__(self) -> tuple[Any, ...]:
        if self._loaded_with is None:
            raise TypeError(
                f"{self.name}: this model was not made by qavit.load but of weights in memory, so it cannot be pickled or "
                "copied; make it again where it is needed"
            )
        return self._load_again, ({**self._loaded_with, "device": self.device, "offload_model": self.offload_model},)

    def _pixels(self, pixel_values: Any, argument: str = "pixel_values") -> FloatArray:
        """Normalised pixel values as float32 [B, 3, S, S]."""
        from ..images import as_pixel_values

        images = as_pixel_values(pixel_values, argument)
        if images.ndim == 3:
            images = images[None]
        side = self.image_size
        if images.shape[1:] != (3, side, side):
            raise ValueError(f"{argument}: shape {list(images.shape)}, expected [B, 3, {side}, {side}]")
        return images

    def _picture(self, image: Any) -> tuple[npt.NDArray[np.uint8], Seen, Region]:
        """The picture as given, what the core takes of it (a batch of one), and which part of it that is."""
        from .. import images

        if is_pixel_values(image):
            pixels = self._pixels(image, "image")
            if len(pixels) != 1:
                raise ValueError(f"image: {len(pixels)} pictures, expected one")
            picture = images.picture_of(pixels[0], self.preprocessing)
            return picture, pixels, images.Region(0.0, 0.0, float(picture.shape[1]), float(picture.shape[0]))
        return images.prepare(image, self.preprocessing, self.device)

    def _batch(self, image: Any, count: int | None = None, what: str = "questions") -> Seen:
        """One picture, or a batch of normalised ones, as the core takes it; of `count` texts, one each or one for all."""
        images = self._pixels(image, "image") if is_pixel_values(image) else self._picture(image)[1]
        if count is not None and len(images) not in (1, count):
            raise ValueError(f"image: {len(images)} pictures for {count} {what}; expected 1 or {count}")
        return images
