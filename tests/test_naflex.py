"""SigLIP 2 NaFlex against transformers: pictures of any aspect, each on a grid of its own."""

from __future__ import annotations

import importlib
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reference import close

import qavit
import qavit.data
from qavit.checkpoints import convert, open_model
from qavit.models._naflex import KEPT, NaFlexEncoder, fitting_grid

Array = Any
# Observed: embeddings 3e-7, attention 3e-7.
EMBEDDINGS, ATTENTION = 2e-6, 2e-6
PATCH, MOST = 4, 20
PROCESSOR = {
    "image_processor_type": "Siglip2ImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
    "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "max_num_patches": MOST, "patch_size": PATCH, "resample": 2,
    "rescale_factor": 1 / 255,
}  # fmt: skip


@pytest.fixture(scope="module")
def public() -> Any:
    transformers = pytest.importorskip("transformers", minversion="4.49")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 60, "max_position_embeddings": 12, "projection_size": 32}
    text.update(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    config = transformers.Siglip2Config(vision_config={**sizes, "patch_size": PATCH, "num_patches": 16}, text_config=text)
    model = transformers.Siglip2Model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim():
                noise = torch.randn(parameter.shape)
                parameter.copy_(parameter + 0.1 * noise if "norm" in name else noise / parameter.shape[-1] ** 0.5)
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(scope="module")
def folder(public: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("naflex")
    public.save_pretrained(place)
    (place / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return place


@pytest.fixture(scope="module")
def model(folder: Path) -> NaFlexEncoder:
    loaded = qavit.load(folder)
    assert isinstance(loaded, NaFlexEncoder)
    return loaded


def ids() -> Array:
    return np.random.default_rng(3).integers(3, 60, (2, 12))


def as_patches(pixels: Array) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
    """Patches [1, MOST, 3 p p] as the public processor makes them, which of them are, and the grid."""
    _, height, width = pixels.shape
    gh, gw = height // PATCH, width // PATCH
    cut = torch.from_numpy(pixels).reshape(3, gh, PATCH, gw, PATCH).permute(1, 3, 2, 4, 0).reshape(gh * gw, -1)
    patches, mask = torch.zeros(1, MOST, cut.shape[1]), torch.zeros(1, MOST, dtype=torch.long)
    patches[0, : gh * gw], mask[0, : gh * gw] = cut, 1
    return patches, mask, (gh, gw)


@pytest.mark.every_level
@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (2, 9), (1, 1), (20, 1), (5, 4)])
def test_a_picture_of_any_aspect_is_the_public_codes(public: Any, model: NaFlexEncoder, grid: tuple[int, int]) -> None:
    size = (grid[0] * PATCH, grid[1] * PATCH)
    pixels = np.random.default_rng(sum(grid)).standard_normal((3, *size)).astype(np.float32)
    patches, mask, found = as_patches(pixels)
    assert found == grid
    with torch.no_grad():
        out = public.vision_model(
            pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=torch.tensor([grid]), output_attentions=True
        )
    close(model.encode_image(pixels), torch.nn.functional.normalize(out.pooler_output, dim=-1).numpy(), EMBEDDINGS)
    seen = model.vision(pixels[None], output_attentions=True)
    count = grid[0] * grid[1]
    for own, expected in zip(seen.attentions, out.attentions):
        assert np.abs(own - expected[:, :, :count, :count].numpy()).max() < ATTENTION
    result = model.heatmaps(pixels, method="pool")
    assert result.maps.shape == (1, *grid)


def test_texts_are_the_public_codes(public: Any, model: NaFlexEncoder) -> None:
    with torch.no_grad():
        expected = public.text_model(input_ids=torch.from_numpy(ids())).pooler_output
    close(model.encode_text(ids()), torch.nn.functional.normalize(expected, dim=-1).numpy(), EMBEDDINGS)


def test_grids_are_the_public_codes() -> None:
    names = ("image_processing_pil_siglip2", "image_processing_siglip2")
    for name in names:
        try:
            public = importlib.import_module(f"transformers.models.siglip2.{name}").get_image_size_for_max_num_patches
            break
        except (ImportError, AttributeError):
            continue
    else:
        pytest.skip("this transformers has none that loads without torchvision")
    random = np.random.default_rng(5)
    edges = [(1, 1), (1, 4000), (4000, 1), (16, 16), (224, 224), (640, 480), (480, 640), (513, 512)]
    edges += [tuple(map(int, random.integers(1, 3000, 2))) for _ in range(300)]
    for height, width in edges:
        for patch, most in ((16, 256), (14, 729), (16, 1), (4, 20)):
            expected = public(height, width, patch, most)
            assert fitting_grid(height, width, patch, most) == tuple(edge // patch for edge in expected)


def test_a_picture_is_seen_whole_in_its_own_aspect(model: NaFlexEncoder) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    small = np.asarray(Image.fromarray(picture).resize((20, 12), Image.Resampling.BILINEAR), np.float32)
    pixels = np.ascontiguousarray(((small / 255 - 0.5) / 0.5).transpose(2, 0, 1))
    close(model.encode_image(picture), model.encode_image(pixels), 1e-5)
    result = model.heatmaps(picture, method="pool")
    assert (result.maps.shape, result.seen.right, result.seen.bottom) == ((1, 3, 5), 50.0, 30.0)
    turned = np.ascontiguousarray(picture.transpose(1, 0, 2))
    assert [one.maps.shape for one in model.stream([picture, turned], method="pool")] == [(1, 3, 5), (1, 5, 3)]
    assert model.heatmaps(picture, method="pool", fit="stretch").maps.shape == (1, *model.grid) == (1, 4, 4)
    texts = model.encode_text(ids())
    with pytest.warns(qavit.QuestionBlindWarning):
        scores = model.heatmaps(picture, texts, method="pool").scores
    expected = 1 / (1 + np.exp(-(model.logit_scale * model.similarity(picture, texts)[0] + model.logit_bias)))
    close(scores, expected.astype(np.float32), 1e-5)
    assert result.block_maps is not None
    assert result.block_maps.shape == (3, 1, 3, 5)


def test_grids_come_and_go_in_many_threads(model: NaFlexEncoder) -> None:
    grids = [(rows, columns) for rows in range(1, 10) for columns in range(1, 10) if rows * columns <= MOST]
    assert len(grids) > KEPT
    random = np.random.default_rng(1)
    batches = {grid: random.standard_normal((1, 3, PATCH * grid[0], PATCH * grid[1])).astype(np.float32) for grid in grids}
    expected = {grid: model.encode_image(batch) for grid, batch in batches.items()}
    assert len(model._sized) <= KEPT
    failures: list[Any] = []

    def work(seed: int) -> None:
        for at in np.random.default_rng(seed).permutation(len(grids)):
            grid = grids[at]
            if not np.array_equal(model.encode_image(batches[grid]), expected[grid]):
                failures.append(grid)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
        assert not thread.is_alive()
    assert not failures


def test_a_converted_folder_sees_any_aspect_too(model: NaFlexEncoder, folder: Path, tmp_path: Path) -> None:
    again = qavit.load(convert(open_model(folder), tmp_path / "converted"))
    assert isinstance(again, NaFlexEncoder)
    assert again.max_patches == MOST
    picture = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    assert np.array_equal(again.encode_image(picture), model.encode_image(picture))
    more = qavit.load(folder, config={"vision": {"max_patches": 64}})
    assert more.heatmaps(picture, method="pool").maps.shape == (1, *fitting_grid(30, 50, PATCH, 64))
    assert "at most 64 patches" in repr(more)


def test_a_data_set_has_one_grid(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "car", *(f"w{number}" for number in range(52))]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    for name, size in (("wide", (50, 30)), ("high", (20, 40))):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)).save(tmp_path / f"{name}.png")
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(f'{{"image": "{name}.png", "question": "a red car"}}\n' for name in ("wide", "high")))
    options = {"images": tmp_path, "model": folder, "tokenizer": tmp_path / "vocab.txt", "method": "legrad"}
    with pytest.raises(ValueError, match=r"fit: .* sees each picture on a grid of its own, and a data set has one"):
        qavit.data.run(questions, tmp_path / "out", **options)
    qavit.data.run(questions, tmp_path / "out", fit="stretch", **options)
    assert [row.map.shape for row in qavit.data.read_maps(tmp_path / "out")] == [(4, 4), (4, 4)]
    loaded = qavit.load(folder, tokenizer=tmp_path / "vocab.txt")
    assert loaded.heatmaps(tmp_path / "wide.png", "a red car", method="legrad").maps.shape == (1, 3, 5)


def test_what_does_not_fit_is_said(model: NaFlexEncoder, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected \[B, 3, height, width\], edges of whole patches of 4, at most 20"):
        model.encode_image(np.zeros((1, 3, 13, 20), np.float32))
    with pytest.raises(ValueError, match="at most 20 of them"):
        model.encode_image(np.zeros((1, 3, 20, 20), np.float32))
    with pytest.raises(ValueError, match=r"image_size: .* takes pictures of any aspect; give config="):
        qavit.load(folder, image_size=32)
    with pytest.raises(ValueError, match="max_patches 0, expected a whole number from 1"):
        qavit.load(folder, config={"vision": {"max_patches": 0}})
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, "max_num_patches": "many"}))
    with pytest.raises(ValueError, match="max_num_patches is 'many', expected a whole number above 0"):
        qavit.load(broken)
