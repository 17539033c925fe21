"""What each level of CPU features computes with. `make levels` runs this, and all parity, again at each lower level."""

from __future__ import annotations

import os

import numpy as np
import pytest
from cpu_levels import has_bfloat16, own_level

import qavit

#: What build_info() says of float32 and bfloat16 products, and of int8's where the level has dot products of bytes.
KERNELS = {
    "portable": ("openblas", "openblas", "portable"),
    "avx2": ("avx2", "avx2", "avx2"),
    "avx_vnni": ("avx2", "avx2", "avx_vnni"),
    "avx512": ("avx512", "avx512", "avx512"),
    "avx512_vnni": ("avx512", "avx512", "avx512_vnni"),
    "avx512_bf16": ("avx512", "avx512_bf16", "avx512_vnni"),
    "amx": ("avx512", "amx", "amx"),
    "neon": ("neon", "neon", "neon"),
    "neon_dotprod": ("neon", "neon", "neon_dotprod"),
    "neon_bf16": ("neon", "neon_bf16", "neon_dotprod"),
}


@pytest.mark.every_level
def test_build_info_names_the_kernels() -> None:
    level = own_level()
    assert level == os.environ.get("QAVIT_CPU", level)
    info = qavit.build_info()
    expected = KERNELS[level]
    if level == "amx" and not info["cpu_features"]["avx512"]:  # of a CPU whose tiles are emulated
        expected = ("avx2", "amx", "amx")
    assert (info["kernels"]["float32"], info["kernels"]["bfloat16"], info["kernels"]["int8"]) == expected


@pytest.mark.every_level
def test_bfloat16_without_its_instructions_is_float32() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    questions = ["where is the red star?", "what color is the circle?"]
    full, low = (
        qavit.load("demo", precision=precision).heatmaps(picture, questions).block_maps
        for precision in ("float32", "bfloat16")
    )
    assert np.array_equal(full, low) == (not has_bfloat16())
