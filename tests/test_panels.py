"""Matrices stored in panels: the same numbers as packing in memory, on every CPU; hostile files; what is said of them."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cpu_levels import LEVELS
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from small_models import write_qavit

import qavit
from qavit import _core
from qavit.checkpoints import convert, describe, open_model
from qavit.checkpoints._describe import description_text
from qavit.checkpoints._weights import bfloat16_bits, cast, float_array, from_array, stored_array

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "data" / "golden"
LATE = GOLDEN / "qavit_official_late"
LAYER = "vision_model.encoder.layers.0.self_attn.q_proj.weight"

MAPS = """
import sys
import numpy as np
import qavit
out, precisions, *folders = sys.argv[1:]
found = {}
for precision in precisions.split(","):
    for folder in folders:
        model = qavit.load(folder, precision=precision)
        pixels = np.random.default_rng(7).standard_normal((2, 3, model.image_size, model.image_size), np.float32)
        questions = ["where is the red car?", "is it new?"]
        if isinstance(model, qavit.BlipITM):
            maps = model.forward_itm({"image": pixels, "text_input": questions}, block_num=0)
        else:
            maps = model.extract_attention(pixels, questions, blocks=range(model.num_blocks), heads=None)
        found[precision + folder] = maps
np.savez(out, **found)
"""


@pytest.fixture(scope="module")
def sources():
    cases = json.loads((GOLDEN / "blip_itm" / "cases.json").read_text())
    config = {"text": cases["med_config"], "vision": cases["vit"]}
    blip = GOLDEN / "blip_itm"
    return {
        "late": open_model(checkpoint=LATE / "checkpoint.pth", vision=LATE / "clip", text=LATE / "t5"),
        "blip": open_model(checkpoint=blip / "checkpoint.pth", tokenizer=blip / "vocab.txt", config=config),
    }


@pytest.mark.parametrize(("rows", "depth"), [(64, 2), (128, 50), (192, 96)])
@pytest.mark.parametrize("columns", [16, 64])
def test_panels_hold_the_matrix(rows, depth, columns):
    matrix = np.random.default_rng(rows).standard_normal((rows, depth)).astype(np.float32)
    panels = cast(from_array(matrix), f"float32@{columns}")
    items = stored_array(panels)
    assert items.shape == (rows // columns, depth, columns)
    for row, k in ((0, 0), (rows - 1, 1), (columns, depth - 1) if rows > columns else (1, 0)):
        assert items[row // columns, k, row % columns] == matrix[row, k]
    np.testing.assert_array_equal(float_array(panels), matrix)
    pairs = cast(panels, f"bfloat16@{columns}")
    items = stored_array(pairs)
    assert items.shape == (rows // columns, depth // 2, columns, 2)
    bits = bfloat16_bits(matrix)
    assert items[0, 0, columns - 1, 1] == bits[columns - 1, 1]
    np.testing.assert_array_equal(stored_array(cast(pairs, "bfloat16")), bits)


@pytest.mark.parametrize("which", ["late", "blip"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_maps_are_the_same_bits_whatever_the_layout_and_the_cpu(sources, which, dtype, tmp_path):
    folders = {columns: convert(sources[which], tmp_path / f"p{columns}", dtype, columns) for columns in (0, 16, 64)}
    stored = {columns: set(load_keys(folder)) for columns, folder in folders.items()}
    assert any(name.endswith(".panels") for name in stored[64])
    assert {name.replace(".panels", "") for name in stored[64]} == stored[0]
    sizes = {(folder / "model.safetensors").stat().st_size for folder in folders.values()}
    assert max(sizes) - min(sizes) < 4096  # the headers alone
    out = tmp_path / "maps.npz"
    for number, cpu in enumerate(LEVELS):
        precisions = ("float32", "bfloat16") if number >= 3 else ("float32",)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "QAVIT_CPU": cpu}
        arguments = [sys.executable, "-W", "ignore", "-c", MAPS, out, ",".join(precisions), *folders.values()]
        done = subprocess.run(list(map(str, arguments)), env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        maps = np.load(out)
        for precision in precisions:
            for columns in (16, 64):
                found, expected = maps[precision + str(folders[columns])], maps[precision + str(folders[0])]
                np.testing.assert_array_equal(found, expected, f"{cpu}, {precision}, panels of {columns}")


def load_keys(folder: Path) -> list[str]:
    with safe_open(folder / "model.safetensors", "np") as file:
        return list(file.keys())


def test_panels_of_a_folder_are_views_at_whole_cache_lines(sources, tmp_path):
    again = open_model(convert(sources["late"], tmp_path / "model", None, 64))
    weight = again.weights[LAYER]
    assert weight[1] == "float32@64"
    assert isinstance(weight[0], mmap.mmap)
    assert all(offset % 64 == 0 for _, dtype, _, offset in again.weights.values() if "@" in dtype)
    for name, original in sources["late"].weights.items():
        np.testing.assert_array_equal(float_array(again.weights[name]), float_array(original))
    # The output projections of integrated blocks are sums, made when the model is loaded.
    assert again.weights["vision_model.encoder.layers.5.self_attn.out_proj.weight"][1] == "float32"
    assert again.weights["vision_model.encoder.layers.0.self_attn.out_proj.weight"][1] == "float32@64"


def test_a_folder_in_panels_can_be_converted_again(sources, tmp_path):
    first = convert(sources["late"], tmp_path / "first", None, 64)
    for columns in (0, 16, 64):
        again = convert(open_model(first), tmp_path / f"again{columns}", None, columns)
        direct = convert(sources["late"], tmp_path / f"direct{columns}", None, columns)
        assert (again / "model.safetensors").read_bytes() == (direct / "model.safetensors").read_bytes()
        assert (again / "config.json").read_bytes() == (direct / "config.json").read_bytes()


def test_the_default_is_what_this_cpu_reads_and_float16_has_no_panels(sources, tmp_path):
    columns = qavit.build_info()["panel_columns"]
    told = describe(open_model(convert(sources["late"], tmp_path / "model")))
    assert [entry["columns"] for entry in told["panels"]] == ([columns] if columns else [])
    if columns:
        assert f"float32 in panels of {columns} columns, used where they are mapped" in description_text(told)
        other = describe(open_model(convert(sources["late"], tmp_path / "other", None, 80 - columns)))
        assert f"panels of {80 - columns} columns, made anew in memory on this CPU" in description_text(other)
    plain = describe(open_model(convert(sources["late"], tmp_path / "half", "float16")))
    assert plain["panels"] == []
    assert "panels" not in description_text(plain)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["version"] == 1
    with pytest.raises(ValueError, match="panels: expected one of 0, 16, 64, got 32"):
        convert(sources["late"], tmp_path / "odd", None, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({LAYER + ".panels": t[LAYER + ".panels"][:, :, :32].copy()}), r"has shape \[32, 64\], expected"),
        (lambda t: t.update({LAYER + ".panels": t[LAYER + ".panels"][0]}), r"has shape \[64, 64\]; expected panels"),
        (lambda t: t.update({LAYER + ".panels": t[LAYER + ".panels"].astype(np.float16)}), r"of float16 has shape"),
        (lambda t: t.update({LAYER + ".panels": t[LAYER + ".panels"].reshape(1, 64, -1, 2)}), r"of float32 has shape"),
        (lambda t: t.update({LAYER + ".panels": np.zeros((1, 1, 4160), np.float32)}), "of at most 4096 columns"),
        (lambda t: t.update({LAYER + ".panels": np.zeros((0, 64, 64), np.float32)}), "expected panels"),
        (lambda t: t.update({LAYER: np.zeros((64, 64), np.float32)}), "there twice, as a matrix and in panels"),
        (lambda t: t.pop(LAYER + ".panels"), r"q_proj\.weight \[64, 64\] is missing"),
        (
            lambda t: t.update({"text_model.shared.weight.panels": t.pop("text_model.shared.weight")}),
            "text_model.shared.weight.panels of float32 has shape",
        ),
    ],
)
def test_panels_of_another_size_are_refused(sources, change, message, tmp_path):
    folder = convert(sources["late"], tmp_path / "model", None, 64)
    tensors = load_file(folder / "model.safetensors")
    assert tensors[LAYER + ".panels"].shape == (1, 64, 64)
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        qavit.load(folder)


def test_any_matrix_may_come_in_panels(tmp_path):
    """Tables and vectors that no product reads, panels of a width that no kernel has: slower, never wrong."""
    folder = write_qavit(tmp_path / "plain", width=32)
    pixels = np.random.default_rng(0).standard_normal((1, 3, 42, 42), np.float32)
    expected = qavit.load(folder).extract_attention(pixels, "where is the car?", blocks=(11,))
    tensors = load_file(folder / "model.safetensors")
    for name in list(tensors):
        columns = next((n for n in (13, 8, 4, 3, 2) if tensors[name].ndim == 2 and tensors[name].shape[0] % n == 0), 0)
        if columns:
            tensors[name + ".panels"] = stored_array(cast(from_array(tensors.pop(name)), f"float32@{columns}"))
    save_file(tensors, folder / "model.safetensors")
    assert sum(name.endswith(".panels") for name in tensors) > 80
    maps = qavit.load(folder).extract_attention(pixels, "where is the car?", blocks=(11,))
    np.testing.assert_array_equal(maps, expected)


@pytest.mark.parametrize("dtype", ["float32@", "float32@0", "float32@-8", "float32@8x", "float32@9999", "float16@8", "@8"])
def test_the_core_checks_what_it_is_told(dtype):
    weights = {"a": (np.zeros(64, np.float32), dtype, (8, 8), 0)}
    with pytest.raises(ValueError, match=r"weights\[a\]"):
        _core.Vit(SMALL, weights)


@pytest.mark.parametrize(
    ("dtype", "shape", "message"),
    [
        ("float32@3", (8, 8), "panels of 3 rows do not hold a tensor of 2 dimensions, 8 rows"),
        ("float32@8", (8, 2, 4), "3 dimensions"),
        ("float32@8", (64,), "1 dimensions"),
        ("bfloat16@8", (8, 5), "panels of 8 rows"),
        ("float32@8", (16, 8), "512 bytes at 0 do not lie inside the buffer of 256"),
        ("float32@8", (0, 8), "panels of 8 rows"),
    ],
)
def test_the_core_checks_sizes(dtype, shape, message):
    with pytest.raises(ValueError, match=message):
        _core.Vit(SMALL, {"a": (np.zeros(64, np.float32), dtype, shape, 0)})


def test_unaligned_panels_are_read(tmp_path):
    folder = write_qavit(tmp_path / "plain", width=64)
    source = open_model(folder)
    expected = qavit.load(folder).extract_attention(pixels := np.ones((1, 3, 42, 42), np.float32), "a car?", blocks=(11,))
    for name, weight in source.weights.items():
        if name.endswith("mlp.fc1.weight"):
            stored = stored_array(cast(weight, "float32@64")).tobytes()
            source.weights[name] = (b"xyz" + stored, "float32@64", weight[2], 3)
    model = qavit.QAViT(source)
    np.testing.assert_array_equal(model.extract_attention(pixels, "a car?", blocks=(11,)), expected)


SMALL = {
    "image_size": 8, "patch_size": 4, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1,
    "intermediate_size": 16,
}  # fmt: skip
