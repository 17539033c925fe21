"""Position embeddings at another grid, against what public code computes with PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qavit.checkpoints._positions import WAYS, resize_positions

TORCH: dict[str, dict[str, Any]] = {
    "bicubic": {"mode": "bicubic"},
    "bicubic_antialias": {"mode": "bicubic", "antialias": True},
    "bicubic_offset": {"mode": "bicubic"},
    "bilinear": {"mode": "bilinear"},
    "bilinear_antialias": {"mode": "bilinear", "antialias": True},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("old", "new"), [((7, 7), (14, 14)), ((16, 16), (5, 9)), ((6, 8), (6, 3)), ((37, 37), (16, 16))])
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_each_way_is_that_of_torch(way: str, old: tuple[int, int], new: tuple[int, int], prefix: int) -> None:
    table = np.random.default_rng(len(way)).standard_normal((prefix + old[0] * old[1], 5)).astype(np.float32)
    grid = torch.from_numpy(table[prefix:]).reshape(1, *old, 5).permute(0, 3, 1, 2)
    if way == "bicubic_offset":
        scale = [(after + 0.1) / before for before, after in zip(old, new)]
        wanted = torch.nn.functional.interpolate(grid, scale_factor=scale, **TORCH[way])
    else:
        wanted = torch.nn.functional.interpolate(grid, size=new, align_corners=False, **TORCH[way])
    found = resize_positions(table, old, new, way)  # type: ignore[arg-type]
    assert np.array_equal(found[:prefix], table[:prefix])
    assert np.abs(found[prefix:] - wanted[0].permute(1, 2, 0).reshape(-1, 5).numpy()).max() < 1e-5


def test_the_same_grid_stays_and_unknown_ways_are_refused() -> None:
    table = np.ones((5, 3), np.float32)
    assert resize_positions(table, (2, 2), (2, 2)) is table
    with pytest.raises(ValueError, match="position_resize: 'lanczos' is unknown; expected one of 'bicubic'"):
        resize_positions(table, (2, 2), (3, 3), "lanczos")  # type: ignore[arg-type]
