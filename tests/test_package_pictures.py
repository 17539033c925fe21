"""`upsample(normalize=)`: the last picture that each method's own package makes, from the raw maps of its public code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reference import close

import qavit
from qavit.images import Region

GOLDEN = Path(__file__).parent / "data" / "golden"
TEXTS = ["a dog", "the cat's ear", "a photo of a red car on the left"]


def result_of(raw: np.ndarray, **parts: object) -> qavit.HeatmapResult:
    values = raw - np.minimum(raw.min(axis=(1, 2), keepdims=True), 0)
    maps = (values / values.sum(axis=(1, 2), keepdims=True)).astype(np.float32)
    return qavit.HeatmapResult(maps, TEXTS[: len(raw)], np.zeros((48, 48, 3), np.uint8), raw=raw, **parts)


@pytest.mark.parametrize(
    ("folder", "name", "package"),
    [
        ("methods_clip", "legrad_last2", "legrad"), ("methods_clip", "legrad_all", "legrad"), ("methods_clip", "gem", "gem"),
        ("methods_clip", "surgery", "surgery"), ("methods_clip", "gradcam_cosine_last", "gradcam"),
        ("methods_clip", "gradcam_softmax_last", "gradcam"), ("methods_siglip", "legrad_last2", "legrad_siglip"),
        ("methods_siglip", "legrad_all", "legrad_siglip"), ("methods_siglip", "legrad_last2_corrected", "legrad_siglip"),
    ],
)  # fmt: skip
def test_public_code(folder: str, name: str, package: str) -> None:
    golden = np.load(GOLDEN / folder / "golden.npz")
    # Of SigLIP's corrected maps the public code keeps those that are scaled on the patches already.
    raw = golden[f"{name}_normalised"] if name.endswith("corrected") else golden[name]
    for picture in range(2):
        found = result_of(raw[picture]).upsample(normalize=package)
        close(found, golden[f"{name}_final"][picture], 5e-6)  # 1e-6


def test_chefers_is_spread_before_it_is_scaled() -> None:
    torch = pytest.importorskip("torch")
    golden = np.load(GOLDEN / "methods_clip" / "golden.npz")
    found = result_of(golden["gae_last"][0]).upsample(normalize="chefer")
    for one, raw in zip(found, torch.from_numpy(golden["gae_last"][0])):
        spread = torch.nn.functional.interpolate(raw[None, None], size=48, mode="bilinear")[0, 0].numpy()
        close(one, (spread - spread.min()) / (spread.max() - spread.min()), 5e-6)


def test_gradcam_of_several_blocks_is_the_mean_of_scaled_ones() -> None:
    golden = np.load(GOLDEN / "methods_clip" / "golden.npz")
    layers = np.stack([golden["gradcam_cosine_second_last"][0], golden["gradcam_cosine_last"][0]])
    every = np.concatenate([np.zeros((6, 3, 6, 6), np.float32), layers])
    mean = result_of(layers.mean(axis=0), block=(6, 7), block_maps=every, block_raw=every)
    alone = [result_of(raw).upsample(normalize="gradcam") for raw in layers]
    expected = []
    for raw, spread in zip(layers, alone):
        # Undo the second scaling of one block, which begins and ends where the picture does.
        low, high = raw.min(axis=(1, 2)), raw.max(axis=(1, 2))
        first = (raw - low[:, None, None]) / (1e-7 + (high - low)[:, None, None])
        again = result_of(first).upsample(resampling="bilinear", normalize="legrad")
        close(again, spread, 1e-4)
        size = [spread_of(one) for one in first]
        expected.append(np.stack(size))
    both = np.mean(expected, axis=0)
    both -= both.min(axis=(1, 2), keepdims=True)
    close(mean.upsample(normalize="gradcam"), both / (1e-7 + both.max(axis=(1, 2), keepdims=True)), 5e-6)


def spread_of(values: np.ndarray) -> np.ndarray:
    """Bilinear, by OpenCV's and PyTorch's rule."""
    torch = pytest.importorskip("torch")
    return torch.nn.functional.interpolate(torch.from_numpy(values)[None, None], size=48, mode="bilinear")[0, 0].numpy()


@pytest.mark.parametrize("package", ["legrad", "gem", "chefer", "surgery", "legrad_siglip", "gradcam"])
def test_what_was_not_seen_is_zero(package: str) -> None:
    raw = -np.random.default_rng(0).random((2, 3, 4)).astype(np.float32) - 1
    result = qavit.HeatmapResult(
        np.full((2, 3, 4), 1 / 12), TEXTS[:2], np.zeros((30, 60, 3), np.uint8), Region(10, 0, 50, 30), raw=raw
    )
    found = result.upsample(normalize=package)
    assert found.shape == (2, 30, 60)
    assert not found[:, :, :10].any()
    assert not found[:, :, 50:].any()
    inside = found[:, :, 10:50]
    assert inside.min() >= 0
    assert inside.max() <= 1
    if package in ("legrad", "gem", "chefer"):
        np.testing.assert_allclose([inside.min(), inside.max()], [0, 1], atol=1e-6)
    flat = qavit.HeatmapResult(np.full((1, 3, 4), 1 / 12), TEXTS[:1], np.zeros((30, 60, 3), np.uint8))
    assert not flat.upsample(normalize=package).any()
    far = qavit.HeatmapResult(np.full((1, 3, 4), 1 / 12), TEXTS[:1], np.zeros((30, 60, 3), np.uint8), Region(0, 0, 1, 1))
    assert not far.upsample((1, 1), normalize=package).any()
    with pytest.raises(ValueError, match=r"normalize: 'lime' is unknown; expected one of None, 'minmax'.*'legrad'"):
        result.upsample(normalize="lime")
