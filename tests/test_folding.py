"""Outliers folded out of what products read: in float32 nothing changes, and the folded channels are even."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reference import normal
from small_models import GOLDEN, write_qavit

import qavit
from qavit import DualEncoder
from qavit.checkpoints import _folding as folding
from qavit.checkpoints import convert, open_model
from qavit.checkpoints._weights import core_weight, float_array, from_array
from qavit.cli import _main as cli_main
from qavit.cli import _options as cli_options
from qavit.models._question_vit import QAViT

BLOCK = "vision_model.encoder.layers.1."


def made(folder: Path) -> Any:
    """A QA-ViT with two channels of layer norms far larger than the others, and columns that read them smaller."""
    source = open_model(write_qavit(folder, blocks=4, first=2, image_size=21, width=16, feed_forward=40))
    weights = dict(source.weights)
    for name, tensor in source.weights.items():
        values = np.array(float_array(core_weight(tensor)))
        if name.endswith(("layer_norm1.weight", "layer_norm1.bias", "layer_norm2.weight", "layer_norm2.bias")):
            values[[3, 9]] *= 60
        elif re.match(r"vision_model\.encoder.*([qkv]_proj|fc1)\.weight$", name):
            values[:, [3, 9]] /= 60
        else:
            continue
        weights[name] = from_array(values)
    return dataclasses.replace(source, weights=weights)


def raw_maps(source: Any, method: str = "class", block: int | None = None) -> np.ndarray:
    model = QAViT(source)
    picture = normal(3, 21, 21, seed=5).astype(np.float32)
    with np.errstate(all="raise"):
        return np.array(model.heatmaps(picture, ["where is the car", "a dog"], method=method, block=block).raw)


def test_what_is_folded(tmp_path: Path) -> None:
    source = made(tmp_path / "model")
    folds = {fold.norm: fold for fold in folding.folds_of(source.every_weight())}
    assert len(folds) == 4 * 2 + 2 + 2  # two a block, the question's norm in integrated ones, T5's own two
    first = folds["vision_model.encoder.layers.2.layer_norm1"]
    assert [name.rsplit(".", 2)[1] for name in first.readers] == ["q_proj", "k_proj", "v_proj"]
    assert [name.rsplit(".", 3)[1:3] for name in first.makers] == [["instruct_dim_reduce", "3"]]
    assert folds["vision_model.encoder.layers.1.layer_norm1"].makers == ()
    assert folds["text_model.encoder.block.0.layer.1.layer_norm"].readers == tuple(
        f"text_model.encoder.block.0.layer.1.DenseReluDense.{name}.weight" for name in ("wi_0", "wi_1")
    )
    assert not any("final" in norm or "post_layernorm" in norm or "pre_layrnorm" in norm for norm in folds)


def test_norms_that_are_more_than_a_products_input_stay() -> None:
    names = [
        "text_model.encoder.layer.0.attention.self.query.weight",
        "text_model.encoder.layer.0.attention.output.LayerNorm.weight",
        "text_encoder.encoder.layer.0.crossattention.self.key.weight", "vision_model.post_layernorm.weight",
        "text_model.decoder.final_layer_norm.weight", "text_model.decoder.block.0.layer.1.EncDecAttention.k.weight",
    ]  # fmt: skip
    assert folding.folds_of(names) == []
    decoder = "text_model.decoder.block.0.layer.1."
    more = [decoder + "layer_norm.weight", decoder + "EncDecAttention.q.weight", decoder + "EncDecAttention.k.weight"]
    assert folding.folds_of(more) == [folding.Fold(decoder + "layer_norm", (decoder + "EncDecAttention.q.weight",))]


@pytest.mark.every_level
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("method", ["class", "question", "rollout"])
def test_maps_are_the_same(tmp_path: Path, method: str, calibrated: bool) -> None:
    source = made(tmp_path / "model")
    pixels = [normal(3, 21, 21, seed=seed).astype(np.float32) for seed in range(2)] if calibrated else []
    after = folding.folded_source(source, pixels)
    changed = [name for name in source.weights if not np.array_equal(
        float_array(core_weight(source.weights[name])), float_array(core_weight(after.weights[name])))]  # fmt: skip
    assert {BLOCK + "layer_norm1.weight", BLOCK + "self_attn.q_proj.weight", BLOCK + "mlp.fc1.weight"} <= set(changed)
    expected, found = raw_maps(source, method), raw_maps(after, method)
    # Powers of two round nothing. Observed: the same bits.
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.every_level
@pytest.mark.filterwarnings("ignore::qavit.QavitWarning")
@pytest.mark.parametrize("calibrated", [False, True])
def test_every_method_of_a_dual_encoder(calibrated: bool) -> None:
    """`gem` takes its temperature from the norm's own tokens, `gradcam` multiplies them by their gradient."""
    source = open_model(GOLDEN / "methods_clip")
    weights = dict(source.weights)
    for name, tensor in source.weights.items():
        if re.match(r"(vision|text)_model\.encoder.*layer_norm[12]\.(weight|bias)$", name):
            values = np.array(float_array(core_weight(tensor)))
            values[[3, 9]] *= 20
            weights[name] = from_array(values)
    source = dataclasses.replace(source, weights=weights)
    size = source.vision["image_size"]
    pixels = normal(3, size, size, seed=5).astype(np.float32)
    after = folding.folded_source(source, [pixels] if calibrated else [])
    assert sum("layer_norm1_plain" in name for name in after.weights) == 2 * source.vision["num_hidden_layers"]
    one, two = (DualEncoder(each) for each in (source, after))
    assert np.array_equal(one.encode_text(["a dog"]), two.encode_text(["a dog"]))
    for method in one.methods:
        expected, found = (each.heatmaps(pixels, ["a dog", "a red car"], method=method).raw for each in (one, two))
        # Observed: the same bits but for the gradients', 1e-7.
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max(), method


def test_a_folder(tmp_path: Path) -> None:
    """Converted with folding, from the command line too; the same maps, and a second folding keeps the first one's norms."""
    source = made(tmp_path / "model")
    pictures = tmp_path / "pictures" / "deeper"
    pictures.mkdir(parents=True)
    for number in range(3):
        Image.fromarray(np.uint8(np.abs(normal(30, 40, 3, seed=number)) * 80)).save(pictures / f"{number}.PNG")
    (pictures / "notes.txt").write_text("no picture")
    seen: list[np.ndarray] = []
    for given in ({"fold": True}, {"calibrate": tmp_path / "pictures"}, {"calibrate": [pictures / "0.PNG"], "fold": True}):
        folder = convert(source, tmp_path / "folded", **given)
        again = open_model(folder)
        assert sum("layer_norm1_plain" in name for name in again.weights) == 8
        assert np.array_equal(raw_maps(again), raw_maps(source))
        assert np.array_equal(raw_maps(folding.folded_source(again)), raw_maps(source))
        kept = folding.folded_source(again).weights[BLOCK + "layer_norm1_plain.weight"]
        own = source.weights[BLOCK + "layer_norm1.weight"]
        assert np.array_equal(float_array(core_weight(kept)), float_array(core_weight(own)))
        norms = [name for name in sorted(again.weights) if re.search(r"layer_norm\d.weight", name)]
        seen.append(np.concatenate([float_array(core_weight(again.weights[name])) for name in norms]))
    assert not np.array_equal(seen[0], seen[1])
    plain = convert(source, tmp_path / "plain")
    assert not any("_plain" in name for name in open_model(plain).weights)
    out = tmp_path / "by command"
    command = ["convert", "--model", str(plain), "-o", str(out), "--calibrate", str(tmp_path / "pictures")]
    assert cli_main.main(command) == cli_options.OK
    assert np.array_equal(raw_maps(open_model(out)), raw_maps(source))


def test_bad_calibration(tmp_path: Path) -> None:
    source = made(tmp_path / "model")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_bytes(b"no picture")
    for calibrate, said in (
        (tmp_path / "empty", "no pictures in"), (tmp_path / "absent", "absent"), (tmp_path / "bad.png", "bad.png"),
        ([tmp_path / "bad.png"], "bad.png"),
    ):  # fmt: skip
        with pytest.raises((ValueError, OSError), match=said):
            convert(source, tmp_path / "out", calibrate=calibrate)
    with pytest.raises(ValueError, match="fold is False"):
        convert(source, tmp_path / "out", fold=False, calibrate=[normal(3, 21, 21)])
    for vision in ({}, {**source.vision, "max_patches": 4}):
        with pytest.raises(ValueError, match="no vision tower of one grid"):
            list(folding.calibration_pixels(dataclasses.replace(source, vision=vision), []))
    assert not (tmp_path / "out").exists()
    assert len(list(folding.calibration_pixels(source, None))) == 0


@pytest.mark.parametrize("calibrated", [False, True])
def test_channels_are_even(tmp_path: Path, calibrated: bool) -> None:
    """Where a channel's values were 60 times the others', they are no more than the weights ask for."""
    source = made(tmp_path / "model")
    pixels = [normal(3, 21, 21, seed=seed).astype(np.float32) for seed in range(3)] if calibrated else []
    after = folding.folded_source(source, pixels)

    def unevenness(one: Any) -> float:
        gains = np.abs(float_array(core_weight(one.weights[BLOCK + "layer_norm1.weight"])))
        return float(gains.max() / np.median(gains))

    assert unevenness(source) > 40
    assert unevenness(after) < 4
    for name in ("self_attn.q_proj.weight", "mlp.fc1.weight"):
        columns = np.abs(float_array(core_weight(after.weights[BLOCK + name]))).max(axis=0)
        assert columns[[3, 9]].min() > 0.2 * np.median(columns)


def test_factors_are_powers_of_two(tmp_path: Path) -> None:
    source = made(tmp_path / "model")
    after = folding.folded_source(source)
    for name in (BLOCK + "layer_norm2.weight", BLOCK + "self_attn.k_proj.weight"):
        before, now = (float_array(core_weight(one.weights[name])) for one in (source, after))
        exponents = np.log2(before / now)
        assert np.array_equal(exponents, np.rint(exponents))
        assert exponents.min() >= folding.LEAST - 1e-9 or "proj" in name


@pytest.mark.parametrize("bad", ["zero", "nan", "inf"])
def test_channels_that_say_nothing_stay(tmp_path: Path, bad: str) -> None:
    """A gain of zero, columns of zeros, values that are no numbers: those channels keep their factor."""
    source = made(tmp_path / "model")
    value = {"zero": 0.0, "nan": np.nan, "inf": np.inf}[bad]
    weights = dict(source.weights)
    for name, at in ((BLOCK + "layer_norm1.weight", (4,)), (BLOCK + "self_attn.q_proj.weight", (slice(None), 6))):
        values = np.array(float_array(core_weight(weights[name])))
        values[at] = value
        weights[name] = from_array(values)
    after = folding.folded(weights)
    gains = float_array(core_weight(after[BLOCK + "layer_norm1.weight"]))
    assert np.isfinite(gains[[i for i in range(16) if i != 4]]).all()
    assert np.array_equal(gains[4], np.float32(value), equal_nan=True)


def test_calibration_sees_what_the_norms_give(tmp_path: Path) -> None:
    source = made(tmp_path / "model")
    pictures = [normal(3, 21, 21, seed=seed).astype(np.float32) for seed in range(2)]
    seen = folding.seen_ranges(source, pictures)
    assert len(seen) == 8
    model = QAViT(source)
    hidden = model.vision(pictures[1][None], np.zeros((1, 1, 12), np.float32), output_hidden_states=True).hidden_states
    rows = np.asarray(hidden[1], np.float64).reshape(-1, 16)
    rows = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-5)
    gain, bias = (float_array(core_weight(source.weights[BLOCK + f"layer_norm1.{kind}"])) for kind in ("weight", "bias"))
    assert np.all(seen[BLOCK + "layer_norm1"] >= np.abs(rows * gain + bias).max(0) * (1 - 1e-4))
    assert folding.seen_ranges(source, []) == {}
    assert folding.seen_ranges(dataclasses.replace(source, vision={}), pictures) == {}


@pytest.mark.filterwarnings("ignore::qavit.LowScoreWarning")
def test_a_matchers_tower() -> None:
    """T5 with its decoder, and a matcher's vision tower: the same answers and maps to the bit, or all but."""
    folder = GOLDEN / "blip_itm"
    cases = json.loads((folder / "cases.json").read_text())
    config = {"text": cases["med_config"], "vision": cases["vit"]}
    source = open_model(checkpoint=folder / "checkpoint.pth", tokenizer=folder / "vocab.txt", config=config)
    after = folding.folded_source(source)
    assert all(fold.norm.startswith("vision_model.") for fold in folding.folds_of(source.every_weight()))
    side = source.vision["image_size"]
    pixels = normal(3, side, side).astype(np.float32)
    one, two = (qavit.BlipITM(each).heatmaps(pixels, ["a red car"], block=0).raw for each in (source, after))
    assert np.abs(one - two).max() <= 1e-5 * np.abs(one).max()


def test_a_reader() -> None:
    """T5's encoder and decoder, whose norms have no bias: the same answer with the same logits."""
    source = open_model(reader=GOLDEN / "unifiedqa_fid")
    after = folding.folded_source(source)
    norms = [fold.norm for fold in folding.folds_of(source.every_weight())]
    assert {norm.split(".")[1] for norm in norms} == {"encoder", "decoder"}
    own = "text_model.encoder.block.0.layer.0.layer_norm.weight"
    assert not np.array_equal(*(float_array(core_weight(each.weights[own])) for each in (source, after)))
    texts = ["a red car stands on the left", "a dog runs"]
    one, two = (qavit.Reader(each).answer("what is red?", texts, max_len=6, return_logits=True) for each in (source, after))
    assert one.text == two.text
    assert np.array_equal(np.asarray(one.logits), np.asarray(two.logits))
