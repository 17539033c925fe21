"""The vision transformer of the core against PyTorch, and against the public QA-ViT code's numbers."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cpu_levels import has_bfloat16
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_qavit import forward, integrated_blocks, random_model
from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

from qavit import _core

GOLDEN = Path(__file__).parent / "data" / "golden"
# Observed: 2e-6 of the largest hidden value, 5e-7 of attention.
HIDDEN = 1e-5
ATTENTION = 2e-6


def as_weights(state: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    names = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
    weights = {}
    for name, tensor in state.items():
        bits = tensor.detach().to(dtype).contiguous().view(torch.uint8 if tensor.ndim else torch.float32)
        weights[name] = (bits.numpy(), names[dtype], tuple(tensor.shape), 0)
    return weights


def make_config(**changes: Any) -> dict[str, Any]:
    config = {
        "hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 28,
        "patch_size": 7, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    }  # fmt: skip
    return {**config, **changes}


def relative(found: np.ndarray, expected: torch.Tensor) -> float:
    wanted = expected.detach().numpy()
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.every_level
@settings(max_examples=12, deadline=None)
@given(
    heads=st.sampled_from([1, 3, 4]),
    head_width=st.sampled_from([1, 7, 16, 17]),
    blocks=st.integers(1, 5),
    patch=st.sampled_from([1, 3, 7]),
    grid=st.sampled_from([1, 2, 5]),
    act=st.sampled_from(["gelu", "quick_gelu", "gelu_new", "relu"]),
    feed_forward=st.sampled_from([1, 15, 65]),
    batch=st.integers(1, 3),
)
def test_clip_of_any_size_is_hugging_faces(
    heads: int, head_width: int, blocks: int, patch: int, grid: int, act: str, feed_forward: int, batch: int
) -> None:
    config = make_config(
        hidden_size=heads * head_width, intermediate_size=feed_forward, num_hidden_layers=blocks,
        num_attention_heads=heads, image_size=patch * grid, patch_size=patch, hidden_act=act,
    )  # fmt: skip
    state = random_model(config, None, 0, seed=blocks)
    oracle = CLIPVisionModel(CLIPVisionConfig(**config))
    prefixed = next(iter(oracle.state_dict())).startswith("vision_model.")
    own = state if prefixed else {name.removeprefix("vision_model."): tensor for name, tensor in state.items()}
    oracle.load_state_dict(own, strict=False)
    oracle.eval().set_attn_implementation("eager")
    images = torch.randn(batch, 3, patch * grid, patch * grid)
    with torch.no_grad():
        expected = oracle(images, output_attentions=True, output_hidden_states=True)
    vit = _core.Vit(config, as_weights(state))
    found = vit.forward(
        images.numpy(), attention=[(i, "raw") for i in range(blocks)], hidden=range(blocks + 1), outputs=("last", "pooled")
    )
    for i in range(blocks):
        assert np.abs(found["attentions"][i] - expected.attentions[i].numpy()).max() < ATTENTION
    for i in range(blocks + 1):
        assert relative(found["hidden"][i], expected.hidden_states[i]) < HIDDEN
    assert relative(found["last"], expected.last_hidden_state) < HIDDEN
    assert relative(found["pooled"], expected.pooler_output) < HIDDEN


@pytest.mark.every_level
def test_projection_into_the_space_of_texts() -> None:
    config = make_config()
    oracle = CLIPVisionModelWithProjection(CLIPVisionConfig(**config, projection_dim=20)).eval()
    state = random_model(config, None, 0)
    state["visual_projection.weight"] = torch.randn(20, 32)
    oracle.load_state_dict(state)
    images = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        expected = oracle(images).image_embeds
    vit = _core.Vit(config, as_weights(state))
    assert vit.projection_dim == 20
    assert relative(vit.forward(images.numpy(), outputs=("projected",))["projected"], expected) < HIDDEN
    found = vit.forward(images.numpy(), outputs=("projected", "pooled"))
    assert relative(found["projected"], expected) < HIDDEN
    assert relative(found["projected"], torch.from_numpy(found["pooled"]) @ state["visual_projection.weight"].T) < HIDDEN
    del state["visual_projection.weight"]
    plain = _core.Vit(config, as_weights(state))
    assert plain.projection_dim == 0
    with pytest.raises(ValueError, match="'projected' of weights without a visual_projection"):
        plain.forward(images.numpy(), outputs=("projected",))


@pytest.mark.every_level
@pytest.mark.parametrize("point", ["all", "early", "late", "late2", "late3", "sparse"])
def test_question_aware_blocks(point: str) -> None:
    config = make_config(num_hidden_layers=6)
    state = random_model(config, point, 20)
    blocks = integrated_blocks(point, 6)
    vit = _core.Vit({**config, "integrated": blocks, "instruction_dim": 20}, as_weights(state))
    assert vit.integrated == tuple(blocks)
    lengths = [5, 1, 9]
    images = torch.randn(2, 3, 28, 28)
    questions = [torch.randn(1, n, 20) for n in lengths]
    pair_image = np.array([0, 0, 1], np.int32)
    padded = np.full((3, max(lengths), 20), 1e6, np.float32)
    for row, question in enumerate(questions):
        padded[row, : lengths[row]] = question[0]
    found = vit.forward(
        images.numpy(), pair_image, padded, np.array(lengths, np.int32), attention=[(i, "raw") for i in range(6)],
        hidden=range(7), outputs=("pooled",),
    )  # fmt: skip
    for row, question in enumerate(questions):
        image = int(pair_image[row])
        with torch.no_grad():
            expected = forward(state, config, images[image : image + 1], question)
        for i in range(6):
            shared = i < blocks[0]
            attention = found["attentions"][i][image if shared else row]
            if i in blocks:
                assert (attention[..., lengths[row] : max(lengths)] == 0).all()
                attention = np.concatenate([attention[..., : lengths[row]], attention[..., max(lengths) :]], axis=-1)
            assert np.abs(attention - expected["attentions"][i][0].numpy()).max() < ATTENTION
            assert relative(found["hidden"][i + 1][image if shared else row], expected["hidden"][i + 1][0]) < HIDDEN
        assert relative(found["pooled"][row], expected["pooled"][0]) < HIDDEN


@pytest.mark.every_level
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("point", ["late", "early"])
def test_public_code(point: str, precision: str) -> None:
    has_products = has_bfloat16() or "QAVIT_TEST_DEVICE" in os.environ
    rounded = precision == "bfloat16" and has_products
    # Observed: attention 1.1e-6, the rest 1.9e-6 of the largest; where products are in bfloat16, 6e-3 and 7e-3.
    attention, states = (3e-2, 3e-2) if rounded else (5e-6, 1e-5)
    folder = GOLDEN / f"qavit_official_{point}"
    state = torch.load(folder / "checkpoint.pth", weights_only=False)["model"]
    prefix = "base_model.model.vision.vision_tower."
    state = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
    config = json.loads((folder / "clip" / "config.json").read_text())
    blocks = integrated_blocks(point, config["num_hidden_layers"])
    vit = _core.Vit({**config, "integrated": blocks, "instruction_dim": 48}, as_weights(state), precision)
    golden = np.load(folder / "golden.npz")
    for q in range(3):
        instruct = golden[f"q{q}_instruct"]
        found = vit.forward(
            golden["image"][q : q + 1], np.zeros(1, np.int32), instruct, np.array([instruct.shape[1]], np.int32),
            attention=[(i, "raw") for i in range(6)], hidden=range(7), outputs=("pooled",),
        )  # fmt: skip
        for i in range(6):
            assert np.abs(found["attentions"][i] - golden[f"q{q}_attn{i}"]).max() < attention
        for i in range(7):
            expected = golden[f"q{q}_hidden{i}"]
            assert np.abs(found["hidden"][i] - expected).max() < states * np.abs(expected).max()
        expected = golden[f"q{q}_pooled"]
        assert np.abs(found["pooled"] - expected).max() < states * np.abs(expected).max()


@pytest.mark.parametrize(
    ("width", "blocks", "heads", "size", "patch"),
    [
        pytest.param(768, 12, 12, 224, 16, id="B16"),
        pytest.param(1024, 24, 16, 336, 14, id="L14", marks=pytest.mark.nightly),
    ],
)
def test_real_sizes(width: int, blocks: int, heads: int, size: int, patch: int) -> None:
    config = make_config(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=blocks, num_attention_heads=heads,
        image_size=size, patch_size=patch,
    )  # fmt: skip
    state = random_model(config, None, 0)
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        expected = forward(state, config, images, None)
    vit = _core.Vit(config, as_weights(state))
    found = vit.forward(images.numpy(), attention=[(i, "class") for i in range(blocks)], outputs=("pooled",))
    for i in range(blocks):
        # Observed: 1e-8 (B/16), 2e-8 (L/14@336).
        assert np.abs(found["attentions"][i][0] - expected["attentions"][i][0, :, :1].numpy()).max() < 1e-7
    assert relative(found["pooled"], expected["pooled"]) < 1e-4


def small(point: str | None = "late", **changes: Any) -> tuple[dict[str, Any], Any]:
    config = make_config(**changes)
    blocks = integrated_blocks(point, config["num_hidden_layers"]) if point else []
    config = {**config, "integrated": blocks, "instruction_dim": 20 if point else 0}
    return config, _core.Vit(config, as_weights(random_model(config, point, 20)))


def pair(vit: Any, seed: int = 0, tokens: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(1, 3, vit.image_size, vit.image_size)).astype(np.float32)
    instruct = rng.normal(size=(1, tokens, vit.instruction_dim)).astype(np.float32)
    return images, np.zeros(1, np.int32), instruct, np.array([tokens], np.int32)


@pytest.mark.every_level
@pytest.mark.parametrize("extent", range(4))
def test_stopping_early_changes_nothing(extent: int) -> None:
    _, vit = small()
    arguments = pair(vit)
    everything = vit.forward(*arguments, attention=[(i, "raw") for i in range(4)], outputs=("last", "pooled"))
    alone = vit.forward(*arguments, attention=[(extent, "raw")])["attentions"][extent]
    row = vit.forward(*arguments, attention=[(extent, "class")])["attentions"][extent]
    # Observed: 2e-8; the class token's row alone goes through another kernel.
    assert np.abs(alone - everything["attentions"][extent]).max() < 1e-7
    assert np.abs(row - everything["attentions"][extent][:, :, :1]).max() < 1e-7
    pooled = vit.forward(*arguments, attention=[(extent, "raw")], outputs=("pooled",))["pooled"]
    assert np.abs(pooled - everything["pooled"]).max() < 2e-6


@pytest.mark.every_level
def test_a_batch_gives_what_each_pair_gives_alone() -> None:
    _, vit = small(image_size=70, patch_size=7)
    pairs = [pair(vit, seed, tokens) for seed, tokens in enumerate((3, 9, 1, 6) * 5)]
    padded = np.zeros((20, 9, 20), np.float32)
    for row, (_, _, instruct, _) in enumerate(pairs):
        padded[row, : instruct.shape[1]] = instruct[0]
    batch = vit.forward(
        np.concatenate([p[0] for p in pairs]), np.arange(20, dtype=np.int32), padded,
        np.array([p[2].shape[1] for p in pairs], np.int32), attention=[(3, "class")], outputs=("pooled",),
    )  # fmt: skip
    for row, arguments in enumerate(pairs):
        single = vit.forward(*arguments, attention=[(3, "class")], outputs=("pooled",))
        tokens = arguments[2].shape[1]
        attention = batch["attentions"][3][row]
        attention = np.concatenate([attention[..., :tokens], attention[..., 9:]], axis=-1)
        assert np.abs(attention - single["attentions"][3][0]).max() < 1e-6
        assert np.abs(batch["pooled"][row] - single["pooled"][0]).max() < 1e-5


def test_class_row_over_patches_is_blind_up_to_the_first_integrated_block() -> None:
    _, vit = small(num_hidden_layers=6)
    images, index, one, length = pair(vit, 0)
    _, _, other, _ = pair(vit, 1)
    maps = [
        vit.forward(images, index, question, length, attention=[(i, "class") for i in range(6)])["attentions"]
        for question in (one, other)
    ]
    for block in range(6):
        rows = [m[block][0, :, 0, -vit.tokens + 1 :] for m in maps]
        rows = [row / row.sum(axis=-1, keepdims=True) for row in rows]
        difference = np.abs(rows[0] - rows[1]).max()
        assert difference < 1e-6 if block <= 3 else difference > 1e-4


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files(dtype: torch.dtype) -> None:
    config = {**make_config(), "integrated": [2, 3], "instruction_dim": 20}
    state = {name: tensor.to(dtype).float() for name, tensor in random_model(config, "late", 20).items()}
    exact, half = _core.Vit(config, as_weights(state)), _core.Vit(config, as_weights(state, dtype))
    arguments = pair(exact)
    found = [vit.forward(*arguments, outputs=("pooled",))["pooled"] for vit in (exact, half)]
    assert np.array_equal(found[0], found[1])


def test_threads_and_widths() -> None:
    _, vit = small(image_size=56, patch_size=7)
    arguments = pair(vit)
    width = _core.get_num_threads()
    try:
        _core.set_num_threads(2)
        expected = vit.forward(*arguments, attention=[(3, "raw")], outputs=("pooled",))
        failures = []

        def work() -> None:
            for _ in range(20):
                found = vit.forward(*arguments, attention=[(3, "raw")], outputs=("pooled",))
                same = np.array_equal(found["pooled"], expected["pooled"]) and np.array_equal(
                    found["attentions"][3], expected["attentions"][3]
                )
                if not same:
                    failures.append(1)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        for other in (1, 3, 16):
            _core.set_num_threads(other)
            assert np.abs(vit.forward(*arguments, outputs=("pooled",))["pooled"] - expected["pooled"]).max() < 1e-5
    finally:
        _core.set_num_threads(width)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_memory_is_flat_and_nothing_is_kept() -> None:
    _, vit = small()
    arguments = pair(vit)
    images = arguments[0]
    before = sys.getrefcount(images), images.tobytes()
    for _ in range(200):
        vit.forward(*arguments, attention=[(3, "class")])
    start = resident()
    for _ in range(2000):
        vit.forward(*arguments, attention=[(3, "class")])
        with pytest.raises(ValueError, match="pixel_values"):
            vit.forward(images[:, :2])
    assert resident() - start < 2 << 20
    assert (sys.getrefcount(images), images.tobytes()) == before


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pixel_values": np.zeros((1, 3, 27, 28), np.float32)}, ValueError, r"pixel_values has shape \[1, 3, 27, 28\]"),
        ({"pixel_values": np.zeros((3, 28, 28), np.float32)}, ValueError, "pixel_values has 3 dimensions, expected 4"),
        ({"pixel_values": "picture.png"}, ValueError, "could not convert string to float: 'picture.png'"),
        ({"instruct": np.zeros((1, 2, 19), np.float32)}, ValueError, "19 wide, expected instruction_dim 20"),
        ({"instruct": np.zeros((1, 0, 20), np.float32)}, ValueError, "no tokens"),
        ({"instruct_length": np.zeros(1, np.int32)}, ValueError, r"instruct_length\[0\] is 0"),
        ({"instruct_length": np.full(1, 7, np.int32)}, ValueError, r"instruct_length\[0\] is 7"),
        ({"pair_image": np.full(1, 1, np.int32)}, ValueError, r"pair_image\[0\] is 1"),
        ({"pair_image": np.full(1, -1, np.int32)}, ValueError, r"pair_image\[0\] is -1"),
        ({"attention": [(4, "class")]}, ValueError, "block 4 does not exist; this model has blocks 0 to 3"),
        ({"attention": [(1, "row")]}, ValueError, "expected 'class', 'raw' or 'mean'"),
        ({"attention": [(1, "raw"), (1, "class")]}, ValueError, "asked for twice"),
        ({"attention": 3}, TypeError, "attention must be a sequence"),
        ({"attention": [1]}, TypeError, r"attention: expected \(block, 'class' \| 'raw' \| 'mean'\) pairs"),
        ({"attention": [(-1, "raw")]}, ValueError, "block -1 does not exist"),
        ({"hidden": [-1]}, OverflowError, "negative"),
        ({"hidden": 1}, TypeError, "hidden must be a sequence"),
        ({"outputs": [1]}, ValueError, "outputs: 1, expected 'last'"),
        ({"instruct": np.zeros((1, 20), np.float32)}, ValueError, "instruct has 2 dimensions, expected 3"),
        ({"pair_image": np.zeros(2, np.int32)}, ValueError, "pair_image has 2 items, expected 1"),
        ({"hidden": [5]}, ValueError, "hidden state 5"),
        ({"outputs": ["logits"]}, ValueError, "expected 'last'"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: Any, message: str) -> None:
    _, vit = small()
    images, index, instruct, length = pair(vit)
    arguments = {
        "pixel_values": images, "pair_image": index, "instruct": instruct, "instruct_length": length,
        "attention": [(3, "class")],
    }  # fmt: skip
    with pytest.raises(error, match=message):
        vit.forward(**{**arguments, **change})


def test_questions_are_needed_only_where_they_enter() -> None:
    _, vit = small()
    images = pair(vit)[0]
    assert vit.forward(images, attention=[(1, "class")])["attentions"][1].shape == (1, 4, 1, 17)
    with pytest.raises(ValueError, match="block 2 and later ones take a question"):
        vit.forward(images, attention=[(2, "class")])


def test_pairs_of_a_batch_are_in_the_order_of_its_images() -> None:
    _, vit = small()
    images, _, instruct, length = pair(vit)
    arguments = np.concatenate([images, images]), np.int32([1, 0]), np.repeat(instruct, 2, 0), np.repeat(length, 2)
    with pytest.raises(ValueError, match="pair 1 is of image 0, expected ascending numbers below 2"):
        vit.forward(*arguments, attention=[(3, "class")])


def test_each_output_alone_is_what_it_is_among_others() -> None:
    config, vit = small()
    state = random_model(config, "late", 20)
    arguments = pair(vit)
    whole = vit.forward(*arguments, hidden=range(5), outputs=("last", "normed", "pooled"))
    for number in (0, 4):
        assert np.array_equal(vit.forward(*arguments, hidden=[number])["hidden"][number], whole["hidden"][number])
    for name in ("last", "normed", "pooled"):
        # alone, the class token's row is computed by kernels for one row: 3e-7 apart
        assert relative(vit.forward(*arguments, outputs=(name,))[name], torch.from_numpy(whole[name])) < 2e-6
    weight, bias = (state[f"vision_model.post_layernorm.{part}"] for part in ("weight", "bias"))
    normed = torch.nn.functional.layer_norm(torch.from_numpy(whole["last"]), (32,), weight, bias, 1e-5)
    assert relative(whole["normed"], normed) < HIDDEN
    assert np.array_equal(whole["normed"][:, 0], whole["pooled"])


def test_batch_of_none() -> None:
    _, vit = small(None)
    found = vit.forward(np.zeros((0, 3, 28, 28), np.float32), attention=[(0, "raw")], outputs=("pooled",))
    assert found["pooled"].shape == (0, 32)
    assert found["attentions"][0].shape == (0, 4, 17, 17)


def test_bad_weights_are_listed_together() -> None:
    config = make_config()
    weights = as_weights(random_model(config, None, 0))
    del weights["vision_model.encoder.layers.1.mlp.fc1.weight"]
    weights["vision_model.pre_layrnorm.bias"] = (np.zeros(7, np.float32), "float32", (7,), 0)
    with pytest.raises(ValueError, match="missing or mis-shaped") as caught:
        _core.Vit(config, weights)
    assert "missing: vision_model.encoder.layers.1.mlp.fc1.weight [72, 32]" in str(caught.value)
    assert "vision_model.pre_layrnorm.bias: shape [7], expected [32]" in str(caught.value)
    weights["vision_model.pre_layrnorm.bias"] = (np.zeros(7, np.float32), "float32", (32,), 0)
    with pytest.raises(ValueError, match="128 bytes at 0 do not lie inside the buffer of 28"):
        _core.Vit(config, weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 0}, "not a multiple of patch_size 0"),
        ({"image_size": 30}, "not a multiple of patch_size 7"),
        ({"num_attention_heads": 5}, "not a multiple of the 5 heads"),
        ({"num_hidden_layers": 0}, "0 blocks"),
        ({"hidden_size": "32"}, "'hidden_size' is '32'"),
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"layer_norm_eps": float("nan")}, "'layer_norm_eps' is nan"),
        ({"hidden_act": "swish"}, "'hidden_act' is 'swish'"),
        ({"integrated": [9]}, "block 9 of 4"),
        ({"layer_norm_eps": 1e31}, "'layer_norm_eps' is 1e"),
        ({"layer_norm_eps": "tiny"}, "'layer_norm_eps' is 'tiny', expected a finite number"),
        ({"hidden_act": 3}, "'hidden_act' is 3, expected one of gelu"),
        ({"image_size": 2**31 + 1}, r"'image_size' is 2147483649, expected a whole number from 0 to 2\^31"),
        ({"image_size": 2**70}, "'image_size' is 1180591620717411303424"),
        ({"num_hidden_layers": 1025}, "1025 blocks"),
    ],
)
def test_bad_configurations(change: dict[str, Any], message: str) -> None:
    weights = as_weights(random_model(make_config(), None, 0))
    with pytest.raises(ValueError, match=message):
        _core.Vit(make_config(**change), weights)
    with pytest.raises(ValueError, match="precision"):
        _core.Vit(make_config(), weights, "float64")
    with pytest.raises(TypeError, match="config: expected a dict, got list"):
        _core.Vit([], weights)
    with pytest.raises(TypeError, match="'integrated' must be a sequence"):
        _core.Vit(make_config(integrated=3), weights)
    with pytest.raises(OverflowError):
        _core.Vit(make_config(integrated=[-1]), weights)
    with pytest.raises(TypeError, match="device: expected a Device or None, got str"):
        _core.Vit(make_config(), weights, device="cuda-host")


@pytest.mark.parametrize("device", ["cpu", "cuda-host"])
def test_the_mean_over_heads_is_that_of_all_of_them(device: str) -> None:
    """Before the question enters, with it, and over more pictures than go together."""
    config = make_config()
    weights = as_weights(random_model(config, "late", 20))
    there = None if device == "cpu" else _core.Device(device)
    vit = _core.Vit({**config, "integrated": [2, 3], "instruction_dim": 20}, weights, device=there)
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((80, 3, 28, 28)).astype(np.float32)
    states = rng.standard_normal((80, 3, 20)).astype(np.float32)
    questions = (np.arange(80, dtype=np.int32), states, np.full(80, 3, np.int32))
    every, mean = (
        vit.forward(pixels, *questions, attention=[(block, kind) for block in (1, 2, 3)])["attentions"]
        for kind in ("raw", "mean")
    )
    for block, tokens in ((1, 17), (2, 20), (3, 20)):
        assert mean[block].shape == (80, 1, 17, tokens)
        np.testing.assert_allclose(mean[block], every[block].mean(axis=1, keepdims=True), atol=1e-6)
