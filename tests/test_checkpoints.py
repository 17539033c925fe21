"""Reading models: every layout becomes the same names, sizes come from the weights, nothing is half loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from qavit.checkpoints import open_model, read_float32

GOLDEN = Path(__file__).parent / "data" / "golden"


def qavit(name: str = "late", **options):
    folder = GOLDEN / f"qavit_official_{name}"
    return open_model(checkpoint=folder / "checkpoint.pth", vision=folder / "clip", text=folder / "t5", **options)


@pytest.fixture(scope="module")
def late_tensors():
    return torch.load(GOLDEN / "qavit_official_late" / "checkpoint.pth", weights_only=True)["model"]


@pytest.mark.parametrize("name", ["late", "early"])
def test_public_checkpoints_open(name):
    source = qavit(name)
    assert source.architecture == "qavit"
    assert source.vision["integration_point"] == name
    assert source.vision["instruction_dim"] == 48
    assert source.text["model_type"] == "t5"
    assert (source.text["d_model"], source.text["d_kv"], source.text["num_heads"]) == (48, 16, 4)
    assert source.preprocessing["size"] == 70
    assert source.questions == {"max_words": 50, "max_tokens": 30}
    assert json.loads(source.tokenizer)["model"]["type"] == "Unigram"


def test_weights_are_the_checkpoints_with_lora_merged(late_tensors):
    source = qavit()
    base = "base_model.model."
    for name, weight in source.weights.items():
        if name.startswith("vision_model."):
            expected = late_tensors[base + "vision.vision_tower." + name]
        else:
            old = base + name[len("text_model.") :]
            expected = late_tensors[old]
            stem = old[: -len(".weight")]
            if stem + ".lora_A.default.weight" in late_tensors:
                a, b = (late_tensors[f"{stem}.lora_{side}.default.weight"].double() for side in "AB")
                expected = expected + 8 / 4 * (b @ a)
            elif stem + ".lora_embedding_A.default" in late_tensors:
                a, b = (late_tensors[f"{stem}.lora_embedding_{side}.default"].double() for side in "AB")
                expected = expected + 8 / 4 * (b @ a).T
        # The merged ones differ by 6e-8 (float32 against float64 products).
        np.testing.assert_allclose(read_float32(weight), expected.numpy(), rtol=0, atol=5e-7)
    assert not any(
        "decoder" in name or "lm_head" in name or "gate" in name.split(".")[-1][:11] for name in source.weights
    )


def test_blip_checkpoint_opens():
    folder = GOLDEN / "blip_itm"
    cases = json.loads((folder / "cases.json").read_text())
    source = open_model(
        checkpoint=folder / "checkpoint.pth",
        tokenizer=folder / "vocab.txt",
        config={"text": cases["med_config"], "vision": cases["vit"]},
    )
    assert source.architecture == "blip_itm"
    assert source.vision["image_size"] == 384
    assert (source.vision["num_attention_heads"], source.text["num_attention_heads"]) == (4, 12)
    assert source.text["encoder_width"] == 32
    assert source.preprocessing["resize"] == "exact"
    assert not source.preprocessing["crop"]
    assert "[ENC]" in source.tokenizer
    expected = torch.load(folder / "checkpoint.pth", weights_only=True)["model"]
    names = {name for name in expected if not name.endswith("position_ids")}
    assert set(source.weights) == names
    for name in names:
        np.testing.assert_array_equal(read_float32(source.weights[name]), expected[name].numpy())
