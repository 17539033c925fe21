"""The patch grids of live models."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from .._base.arguments import whole_number
from ..answers._grids import drawable as drawable
from ..answers._grids import fit_images as fit_images
from ..answers._grids import resample_mass as resample_mass


def _checked_grid(grid: Any) -> tuple[int, int]:
    sides = [whole_number(side, "grid") for side in grid] if isinstance(grid, Iterable) else []
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"grid: expected (rows, columns), each at least 1, got {grid!r}")
    return sides[0], sides[1]


def _captioner_grid(model: Any, matcher: Any) -> tuple[int, int]:
    """The patch grid whose numbers forward_cap looks up in the captioner's image embeddings."""
    captioner = getattr(model, "image_captioning_model", None)
    if captioner is None:
        return _checked_grid(matcher.grid)
    encoder = getattr(captioner, "visual_encoder", None)
    patches = getattr(encoder, "patch_embed", None)
    sizes, patch = _pair(getattr(patches, "img_size", None)), _pair(getattr(patches, "patch_size", None))
    if sizes is not None and patch is not None:
        return sizes[0] // patch[0], sizes[1] // patch[1]
    positions = getattr(encoder, "pos_embed", None)
    count = 0 if positions is None else int(positions.shape[-2]) - 1
    side = math.isqrt(max(count, 0))
    if side > 0 and side * side == count:
        return side, side
    raise ValueError(
        "grid: the captioner's patch grid can't be told from image_captioning_model.visual_encoder; "
        "give grid=(rows, columns)"
    )


def _pair(value: Any) -> tuple[int, int] | None:
    """A size given as one number or as (height, width)."""
    if value is None:
        return None
    if isinstance(value, (tuple, list)):
        return int(value[0]), int(value[1])
    return int(value), int(value)
