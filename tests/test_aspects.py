"""Models at other sizes and aspects than they were trained at, through to maps, figures, files and data sets."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_sets import write_lines
from PIL import Image
from reference import close
from small_models import write_qavit
from transformers import CLIPModel

import qavit
from qavit.checkpoints import convert, describe, open_model
from qavit.checkpoints._describe import description_text
from qavit.cli import _main as cli_main
from qavit.cli import _options as cli_options
from qavit.data import HeatmapActor, evaluate

CLIP = Path(__file__).parent / "data" / "golden" / "methods_clip"
GOLDEN = np.load(CLIP / "golden.npz")
TEXTS = ["a dog", "the cat's ear", "a photo of a red car on the left"]
pytestmark = pytest.mark.filterwarnings("ignore::qavit.QavitWarning")


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("method", "way"), [("gem", "bicubic_antialias"), ("naclip", "bicubic_offset"), ("surgery", "bilinear")]
)
def test_public_code_at_a_larger_size(method: str, way: str) -> None:
    """Each package with its own way of resizing positions."""
    model = qavit.load(CLIP, image_size=64, config={"position_resize": way})
    for picture in range(2):
        found = model.heatmaps(GOLDEN["high_pixel_values"][picture : picture + 1], TEXTS, method=method)
        close(found.raw, GOLDEN[f"{method}_high"][picture], 2e-5)  # 2e-6


def test_public_code_on_a_grid_that_is_not_square() -> None:
    model = qavit.load(CLIP, image_size=(48, 64))
    for picture in range(2):
        pixels = GOLDEN["wide_pixel_values"][picture : picture + 1]
        found = model.heatmaps(pixels, TEXTS, method="grad_eclip", heads="single")
        close(found.raw, GOLDEN["grad_eclip_notebook_wide"][picture], 1e-4)


def test_the_default_is_hugging_faces_at_any_aspect() -> None:
    oracle = CLIPModel.from_pretrained(CLIP).eval()
    for height, width in ((64, 64), (48, 64), (80, 24)):
        model = qavit.load(CLIP, image_size=(height, width))
        assert model.image_size == (height if height == width else (height, width))
        assert model.grid == (height // 8, width // 8)
        pixels = np.random.default_rng(1).normal(size=(2, 3, height, width)).astype(np.float32)
        with torch.no_grad():
            seen = oracle.vision_model(torch.from_numpy(pixels), interpolate_pos_encoding=True).pooler_output
            expected = torch.nn.functional.normalize(oracle.visual_projection(seen), dim=-1).numpy()
        close(model.encode_image(pixels), expected, 2e-5)  # 2e-6


def test_maps_of_a_grid_that_is_not_square(tmp_path: Path) -> None:
    model = qavit.load(CLIP, image_size=(48, 64))
    picture = noise(100, 200)
    for fit, seen in (("crop", 100 * 64 / 48), ("stretch", 200), ("pad", 200)):
        result = model.heatmaps(picture, TEXTS, method="gem", fit=fit)
        assert result.maps.shape == result.raw.shape == (3, 6, 8)
        assert result.seen.width == pytest.approx(seen, rel=0.02)
        pixels, region = qavit.images.preprocess(picture, model.preprocessing.fitted(fit))
        assert pixels.shape == (3, 48, 64)
        assert region == result.seen
        assert result.raw == pytest.approx(model.heatmaps(pixels, TEXTS, method="gem").raw, abs=1e-5)
        spread = result.upsample(normalize="gem")
        assert spread.shape == (3, 100, 200)
        assert spread.max() == pytest.approx(1)
    patch = result.top_patches(1)[0][0]
    assert (patch.row, patch.column) == divmod(int(result.maps[0].argmax()), 8)
    assert Image.open(result.save(tmp_path / "maps.png")).size[0] > 0
    result.to_html(tmp_path / "page.html")
    result.save(tmp_path / "maps.npz")
    assert qavit.HeatmapResult.load(tmp_path / "maps.npz").grid == (6, 8)
    assert [one.grid for one in model.stream([picture], TEXTS, method="gem")] == [(6, 8)]
    attention = model.heatmaps(picture, method="class", block=3)
    assert attention.maps.shape == (1, 6, 8)
    again, expected = pickle.loads(pickle.dumps(model)), model.heatmaps(picture, TEXTS, method="gem").raw
    np.testing.assert_array_equal(again.heatmaps(picture, TEXTS, method="gem").raw, expected)
    with pytest.raises(ValueError, match=r"shape \[1, 3, 48, 48\], expected \[B, 3, 48, 64\]"):
        model.heatmaps(np.zeros((1, 3, 48, 48), np.float32), TEXTS)


def test_question_aware_models_at_an_aspect(tmp_path: Path) -> None:
    model = qavit.load(write_qavit(tmp_path / "model", blocks=3, image_size=21, patch=7, width=8), image_size=(14, 35))
    result = model.heatmaps(noise(40, 50), ["where is the cup?"])
    assert result.maps.shape == (1, 2, 5)
    assert [words.shape[1:] for words in result.word_maps] == [(2, 5)]
    assert model.forward_itm({"image": np.zeros((1, 3, 14, 35), np.float32), "text_input": ["a cup"]}, 2).shape == (1, 10)


def test_a_converted_folder_keeps_its_aspect(tmp_path: Path) -> None:
    wide = {"image_size": (48, 64), "config": {"position_resize": "bilinear"}}
    folder = convert(open_model(CLIP, **wide), tmp_path / "wide")
    assert json.loads((folder / "config.json").read_text())["vision"]["image_size"] == [48, 64]
    picture = noise(60, 70)
    first, second = qavit.load(CLIP, **wide), qavit.load(folder)
    np.testing.assert_array_equal(
        first.heatmaps(picture, TEXTS, method="gem").raw, second.heatmaps(picture, TEXTS, method="gem").raw
    )
    about = describe(open_model(folder))
    assert about["vision"]["grid"] == (6, 8)
    assert "48 x 64, patches of 8: 6 x 8" in description_text(about)
    back = qavit.load(folder, image_size=48)
    assert back.grid == (6, 6)
    assert back.preprocessing.edges == (48, 48)
    taller = qavit.load(folder, image_size=(64, 48))
    assert taller.grid == (8, 6)


def test_data_sets_at_an_aspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(noise(60, 70)).save(tmp_path / "a.png")
    actor = HeatmapActor(CLIP, method="gem", image_size=(48, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = actor({"image": [str(tmp_path / "a.png")], "question": ["a dog"]})
    assert rows["map"].shape == (1, 48)
    assert rows["grid"].tolist() == [[6, 8]]
    asked = [{"image": "a.png", "text": text, "box": [5, 5, 30, 30]} for text in TEXTS]
    boxes = write_lines(tmp_path / "boxes.jsonl", asked)
    found = evaluate(boxes, model=CLIP, methods=["gem", "surgery", "class"], image_size=(48, 64))
    assert (found.rows, list(found.methods), found.errors) == (3, ["gem", "surgery", "class"], [])
    command = ["heatmap", str(tmp_path / "a.png"), "-q", "a dog", "--model", str(CLIP), "--method", "gem"]
    options = ["--image-size", "48x64", "--no-figures", "--maps", "npy", "-o", str(tmp_path / "out")]
    assert cli_main.main([*command, *options]) == cli_options.OK
    capsys.readouterr()
    assert {np.load(path).shape for path in (tmp_path / "out").rglob("*.npy")} == {(1, 6, 8)}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_size": (48, 60)}, r"image_size: got \(48, 60\), expected a multiple of the patch size 8"),
        ({"image_size": (48,)}, r"image_size: got \(48,\), expected a side or \(height, width\)"),
        ({"image_size": (48, 8200)}, "to 8192"),
        ({"image_size": (0, 48)}, "expected a multiple of the patch size 8"),
        ({"image_size": 56, "config": {"position_resize": "lanczos"}}, "position_resize 'lanczos', expected one of bicubic"),
    ],
)
def test_bad_sizes(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        qavit.load(CLIP, **options)
    with pytest.raises(TypeError, match="image_size: expected a whole number, got str"):
        qavit.load(CLIP, image_size="48x64")


def test_a_bad_size_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli_main.main(["heatmap", "a.png", "--image-size", "48x64x3"])
    assert "expected a side, or height and width: 336x448" in capsys.readouterr().err
