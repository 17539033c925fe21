"""SigLIP 2 NaFlex (Tschannen et al., arXiv 2502.14786): a dual encoder for pictures of any aspect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from .._base.arguments import image_size, is_pixel_values
from .._base.types import FloatArray
from ..checkpoints._positions import resize_positions
from ..checkpoints._weights import float_array
from ._cached_tower import CachedTower
from ._devices import Placement
from ._dual_encoder import DualEncoder, DualLook
from ._model import Request, Shown

if TYPE_CHECKING:
    from .._result import HeatmapResult
    from ..images import Seen
    from ..text import QuestionCache

POSITIONS = "vision_model.embeddings.position_embedding.weight"
#: Towers of other sizes that are kept: positions alone, as they share the weights.
KEPT = 32


def fitting_grid(height: int, width: int, patch: int, most: int) -> tuple[int, int]:
    """Rows and columns of patches, at most so many, that are nearest to a picture's aspect.

    The picture is as large as it can be before its edges are rounded up to whole patches. The scale is found to 1e-5, as
    the public code finds it, so that pictures on an edge fall to the same side.
    """
    least, largest, precision = 1e-6, 100.0, 1e-5

    def grid_at(scale: float) -> tuple[int, int]:
        rows, columns = (max(1, math.ceil(edge * scale / patch)) for edge in (height, width))
        return rows, columns

    while largest - least >= precision:
        scale = (least + largest) / 2
        if math.prod(grid_at(scale)) <= most:
            least = scale
        else:
            largest = scale
    return grid_at(least)


class NaFlexEncoder(DualEncoder):
    """SigLIP 2 NaFlex: a :class:`DualEncoder` that sees each picture in its own aspect.

    A picture becomes at most `max_patches` patches, and its maps have its own grid; `grid` is that of a square one. With
    ``fit=`` a picture is made square. Pixel values may be of any size that is whole patches.

    Attributes
    ----------
    max_patches : int
    """

    _own_grids = True

    def __init__(self, source: Any, **options: Any) -> None:
        self.max_patches = int(source.vision["max_patches"])
        super().__init__(source, **options)

    def _load_core(self, placement: Placement) -> None:
        from ..text import QuestionCache

        super()._load_core(placement)
        self._sized: QuestionCache[DualEncoder] = QuestionCache(KEPT)

    def _of(self, grid: tuple[int, int]) -> DualEncoder:
        """The model for pictures of one grid."""
        found = self._sized.get(grid)
        if found is None:
            size = (grid[0] * self.patch_size, grid[1] * self.patch_size)
            table = resize_positions(float_array(self._source.weights[POSITIONS]), self.grid, grid, "bilinear_antialias")
            found = DualEncoder.__new__(DualEncoder)
            vars(found).update(vars(self))
            tower = self._tower
            found._tower = CachedTower(tower.vit.resized(*size, np.ascontiguousarray(table)), tower.cache, tower.on_cpu)
            found.grid, found.preprocessing = grid, self.preprocessing.resized(size)
            found.image_size = image_size(size, "image_size")
            self._sized.put(grid, found)
        return found

    def _grid_of(self, seen: Seen) -> tuple[int, int]:
        """Of a batch of pixel values, or of a picture that becomes such."""
        height, width = seen.shape[2:] if isinstance(seen, np.ndarray) else seen.size
        return height // self.patch_size, width // self.patch_size

    # ---- every picture by the model for its grid ----

    def _see(self, image: Any, fit: Optional[str] = None) -> Shown:
        from ..images import load_image

        if fit is not None:
            return super()._see(image, fit)
        if is_pixel_values(image):
            return self._of(self._grid_of(self._pixel_values(image, "image")))._see(image)
        picture = load_image(image)
        height, width = picture.shape[:2]
        grid = fitting_grid(height, width, self.patch_size, self.max_patches)
        return self._of(grid)._see(picture)

    def _result(self, shown: Shown, questions: Any, request: Request) -> HeatmapResult:
        return self._of(self._grid_of(shown.pixels))._result(shown, questions, request)

    def _look(self, pixels: Seen, questions: Any) -> DualLook:
        return self._of(self._grid_of(pixels))._look(pixels, questions)

    def _run(
        self, images: Seen, states: Any, mask: Any, attention: Sequence[tuple[int, str]], *others: Any, **options: Any
    ) -> dict[str, Any]:
        return self._of(self._grid_of(images))._run(images, states, mask, attention, *others, **options)

    def _pixel_values(self, pixel_values: Any, argument: str = "pixel_values") -> FloatArray:
        """Normalised pixel values as float32 [B, 3, height, width], of whole patches."""
        from ..images import as_pixel_values

        images = as_pixel_values(pixel_values, argument)
        images = images[None] if images.ndim == 3 else images
        rows, columns = self._grid_of(images)
        patch = self.patch_size
        if images.shape[1:] != (3, rows * patch, columns * patch) or not 1 <= rows * columns <= self.max_patches:
            raise ValueError(
                f"{argument}: shape {list(images.shape)}, expected [B, 3, height, width], edges of whole patches of "
                f"{patch}, at most {self.max_patches} of them"
            )
        return images

    def __repr__(self) -> str:
        return f"NaFlexEncoder({super().__repr__()[len('DualEncoder(') : -1]}, at most {self.max_patches} patches)"
