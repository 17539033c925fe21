"""The vision tower by its flags, against transformers: each family is what its weights and configuration hold."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from test_vit import as_weights

from qavit import _core

# Observed: 2e-6 of the largest hidden value, 3e-7 of attention.
HIDDEN, ATTENTION = 2e-5, 2e-6
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 4}
# Hugging Face's names of each family, in turn, as the core's.
NAMES = (
    (r"^embeddings\.cls_token$", "embeddings.class_embedding"),
    (r"^embeddings\.distillation_token$", "embeddings.distillation_embedding"),
    (r"^embeddings\.position_embeddings$", "embeddings.position_embedding.weight"),
    (r"^embeddings\.patch_embeddings\.(projection\.)?", "embeddings.patch_embedding."),
    (r"^(encoder\.layer|layers|model\.layer)\.(\d+)\.", r"encoder.layers.\2."),
    (r"\.attention\.([qkv])_proj\.", r".self_attn.\1_proj."),
    (r"\.attention\.o_proj\.", ".self_attn.out_proj."),
    (r"\.(norm1|layernorm_before)\.", ".layer_norm1."),
    (r"\.(norm2|layernorm_after)\.", ".layer_norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".layer_scale\1"),
    (r"\.mlp\.gate_proj\.", ".mlp.gate."),
    (r"\.mlp\.up_proj\.", ".mlp.fc1."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
    (r"^(layernorm|norm)\.", "post_layernorm."),
)


def core_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    result = {}
    for name, tensor in state.items():
        if name.startswith("pooler.") or name.endswith("mask_token") or not tensor.is_floating_point():
            continue
        if name.startswith("head.attention.in_proj_"):
            for part, third in zip("qkv", tensor.chunk(3)):
                result[f"vision_model.head.attention.{part}_proj.{name[len('head.attention.in_proj_') :]}"] = third
            continue
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        table = name.startswith("embeddings.") and tensor.dim() == 3 and tensor.shape[0] == 1
        single = name == "head.probe" or re.search(r"(class|distillation)_embedding$", name)
        result["vision_model." + name] = tensor.reshape(-1) if single else tensor[0] if table else tensor
    return result


def randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The model with weights large enough that every part of it moves the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            vector = name.endswith(("norm.weight", "lambda1")) or re.search(r"norm\w*\.weight$", name)
            parameter.copy_(1 + 0.3 * noise if vector else noise / max(parameter.shape[-1], 1) ** 0.5)
    return model.eval()


def siglip() -> tuple[torch.nn.Module, dict[str, Any]]:
    config = transformers.SiglipVisionConfig(**SIZES, intermediate_size=48, image_size=20, hidden_act="gelu_pytorch_tanh")
    return transformers.SiglipVisionModel(config), {"image_size": 20, "pooling": "map"}


def vit() -> tuple[torch.nn.Module, dict[str, Any]]:
    config = transformers.ViTConfig(**SIZES, intermediate_size=48, image_size=(20, 28))
    return transformers.ViTModel(config), {"image_size": (20, 28)}


def deit() -> tuple[torch.nn.Module, dict[str, Any]]:
    config = transformers.DeiTConfig(**SIZES, intermediate_size=48, image_size=20)
    return transformers.DeiTModel(config), {"image_size": 20}


def dinov2(**changes: Any) -> tuple[torch.nn.Module, dict[str, Any]]:
    config = transformers.Dinov2Config(**SIZES, image_size=20, layerscale_value=0.7, **changes)
    return transformers.Dinov2Model(config), {"image_size": 20}


def dinov2_giant() -> tuple[torch.nn.Module, dict[str, Any]]:
    model, own = dinov2(use_swiglu_ffn=True)
    return model, {**own, "hidden_act": "silu"}


def dinov2_with_registers() -> tuple[torch.nn.Module, dict[str, Any]]:
    config = transformers.Dinov2WithRegistersConfig(**SIZES, image_size=20, num_register_tokens=3)
    return transformers.Dinov2WithRegistersModel(config), {"image_size": 20}


def dinov3(**changes: Any) -> tuple[torch.nn.Module, dict[str, Any]]:
    config = transformers.DINOv3ViTConfig(**SIZES, intermediate_size=48, image_size=20, num_register_tokens=4, **changes)
    return transformers.DINOv3ViTModel(config), {"image_size": (12, 20), "rope_theta": 100.0}


def dinov3_gated() -> tuple[torch.nn.Module, dict[str, Any]]:
    return dinov3(use_gated_mlp=True, hidden_act="silu")


FAMILIES: dict[str, Callable[[], tuple[torch.nn.Module, dict[str, Any]]]] = {
    "siglip": siglip, "vit": vit, "deit": deit, "dinov2": dinov2, "dinov2_giant": dinov2_giant,
    "dinov2_with_registers": dinov2_with_registers, "dinov3": dinov3, "dinov3_gated": dinov3_gated,
}  # fmt: skip
PREFIX = {"siglip": 0, "deit": 2, "dinov2_with_registers": 4, "dinov3": 5, "dinov3_gated": 5}


def build(family: str) -> tuple[torch.nn.Module, dict[str, Any], dict[str, torch.Tensor]]:
    model, own = FAMILIES[family]()
    model = randomised(model)
    model.set_attn_implementation("eager")
    state = core_names(model.state_dict())
    config = {
        **SIZES,
        "intermediate_size": state["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "hidden_act": own.get("hidden_act", model.config.hidden_act),
        "layer_norm_eps": model.config.layer_norm_eps,
        **own,
    }
    return model, config, state


def sides(config: dict[str, Any]) -> tuple[int, int]:
    size = config["image_size"]
    return (size, size) if isinstance(size, int) else size


def expected(model: torch.nn.Module, images: torch.Tensor) -> tuple[Any, list[torch.Tensor]]:
    """What the model gives, and what goes into each block and out of the last."""
    blocks = next(
        module for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == SIZES["num_hidden_layers"]
    )  # fmt: skip
    states: list[torch.Tensor] = []

    def before(_: Any, arguments: tuple[Any, ...]) -> None:
        states.append(arguments[0])

    def after(_: Any, __: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    hooks = [block.register_forward_pre_hook(before) for block in blocks] + [blocks[-1].register_forward_hook(after)]
    with torch.no_grad():
        output = model(images, output_attentions=True)
    for hook in hooks:
        hook.remove()
    return output, states


def worst(found: np.ndarray, wanted: torch.Tensor) -> float:
    """The largest difference, of the largest value."""
    array = wanted.detach().numpy()
    assert found.shape == array.shape
    return float(np.abs(found - array).max() / np.abs(array).max())


@pytest.mark.every_level
@pytest.mark.parametrize("family", FAMILIES)
def test_towers_are_those_of_transformers(family: str) -> None:
    model, config, state = build(family)
    images = torch.randn(3, 3, *sides(config), generator=torch.Generator().manual_seed(1))
    output, states = expected(model, images)
    tower = _core.Vit(config, as_weights(state))
    assert tower.prefix == PREFIX.get(family, 1)
    assert tower.tokens == states[0].shape[1]
    blocks = range(SIZES["num_hidden_layers"])
    found = tower.forward(
        images.numpy(), attention=[(i, "raw") for i in blocks], hidden=range(len(states)),
        outputs=("last", "normed", "pooled"),
    )  # fmt: skip
    for i, attention in zip(blocks, output.attentions):
        assert np.abs(found["attentions"][i] - attention.numpy()).max() < ATTENTION
    for i, hidden in enumerate(states):
        assert worst(found["hidden"][i], hidden) < HIDDEN
    assert worst(found["last"], states[-1]) < HIDDEN
    assert worst(found["normed"], output.last_hidden_state) < HIDDEN
    pooled = output.pooler_output if family == "siglip" else output.last_hidden_state[:, 0]
    assert worst(found["pooled"], pooled) < HIDDEN


@pytest.mark.every_level
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block", [0, 2])
def test_each_part_of_a_tower_alone_is_what_it_is_among_others(family: str, block: int) -> None:
    _, config, state = build(family)
    images = torch.randn(2, 3, *sides(config), generator=torch.Generator().manual_seed(2)).numpy()
    tower = _core.Vit(config, as_weights(state))
    whole = tower.forward(images, attention=[(i, "raw") for i in range(3)], outputs=("last", "pooled"))
    for kind, rows in (("raw", slice(None)), ("class", slice(1))):
        alone = tower.forward(images, attention=[(block, kind)])["attentions"][block]
        assert np.abs(alone - whole["attentions"][block][:, :, rows]).max() < 1e-6
    pooled = tower.forward(images, attention=[(block, "class")], outputs=("pooled",))["pooled"]
    assert np.abs(pooled - whole["pooled"]).max() < 1e-5 * np.abs(whole["pooled"]).max()


@pytest.mark.every_level
def test_the_attention_head_looks_where_torch_says() -> None:
    model, config, state = build("siglip")
    images = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        tokens = model(images).last_hidden_state
        head = model.head
        _, looks = head.attention(head.probe.expand(2, -1, -1), tokens, tokens, average_attn_weights=False)
    tower = _core.Vit(config, as_weights(state))
    found = tower.forward(images.numpy(), outputs=("pool_attention",))["pool_attention"]
    assert found.shape == (2, 2, 25)
    assert np.abs(found - looks[:, :, 0].numpy()).max() < ATTENTION
    both = tower.forward(images.numpy(), outputs=("pool_attention", "pooled"))
    assert np.array_equal(both["pool_attention"], found)
    assert np.array_equal(both["pooled"], tower.forward(images.numpy(), outputs=("pooled",))["pooled"])


@pytest.mark.every_level
@pytest.mark.parametrize("family", ["siglip", "dinov3"])
@pytest.mark.parametrize("pooling", ["mean", "mean_then_norm"])
def test_means_of_the_patches(family: str, pooling: str) -> None:
    model, config, state = build(family)
    state = {name: tensor for name, tensor in state.items() if ".head." not in name}
    images = torch.randn(2, 3, *sides(config), generator=torch.Generator().manual_seed(4))
    output, states = expected(model, images)
    prefix = PREFIX[family]
    if pooling == "mean":
        wanted = output.last_hidden_state[:, prefix:].mean(dim=1)
    else:
        norm = [state[f"vision_model.post_layernorm.{part}"] for part in ("weight", "bias")]
        wanted = torch.nn.functional.layer_norm(states[-1][:, prefix:].mean(dim=1), (32,), *norm, config["layer_norm_eps"])
    found = _core.Vit({**config, "pooling": pooling}, as_weights(state)).forward(images.numpy(), outputs=("pooled",))
    assert worst(found["pooled"], wanted) < HIDDEN


def test_each_norm_has_an_epsilon_of_its_own() -> None:
    _, config, state = build("vit")
    generator = torch.Generator().manual_seed(5)
    state = {**state, "vision_model.pre_layrnorm.weight": torch.ones(32), "vision_model.pre_layrnorm.bias": torch.zeros(32)}
    images = torch.randn(1, 3, 20, 28, generator=generator).numpy()

    def run(weights: dict[str, torch.Tensor], **changes: float) -> dict[str, Any]:
        tower = _core.Vit({**config, **changes}, as_weights(weights))
        found: dict[str, Any] = tower.forward(images, hidden=(0,), outputs=("last", "normed"))
        return found

    plain = {name: tensor for name, tensor in state.items() if "pre_layrnorm" not in name}
    entered = torch.from_numpy(run(plain)["hidden"][0])
    wanted = torch.nn.functional.layer_norm(entered, (32,), eps=0.3)
    assert worst(run(state, pre_norm_eps=0.3)["hidden"][0], wanted) < HIDDEN
    found = run(plain, post_norm_eps=0.2)
    norm = [state[f"vision_model.post_layernorm.{part}"] for part in ("weight", "bias")]
    wanted = torch.nn.functional.layer_norm(torch.from_numpy(found["last"]), (32,), *norm, 0.2)
    assert worst(found["normed"], wanted) < HIDDEN
    assert np.array_equal(found["last"], run(plain)["last"])


@pytest.mark.every_level
@pytest.mark.parametrize("family", ["dinov2", "dinov3_gated"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_towers_in_half_precision_files(family: str, dtype: torch.dtype) -> None:
    _, config, state = build(family)
    rounded = {name: tensor.to(dtype).float() for name, tensor in state.items()}
    images = torch.randn(1, 3, *sides(config)).numpy()
    found = [
        _core.Vit(config, weights).forward(images, outputs=("last",))["last"]
        for weights in (as_weights(rounded), as_weights(state, dtype))
    ]
    assert np.array_equal(found[0], found[1])


@pytest.mark.every_level
@pytest.mark.parametrize("family", ["dinov2_giant", "dinov3", "siglip"])
def test_towers_in_bfloat16_are_close(family: str) -> None:
    _, config, state = build(family)
    images = torch.randn(2, 3, *sides(config)).numpy()
    exact, rounded = (
        _core.Vit(config, as_weights(state), precision).forward(images, outputs=("last", "pooled"))
        for precision in ("float32", "bfloat16")
    )
    for name in ("last", "pooled"):
        # Observed: 0.02 where products are in bfloat16, 0 where they are not.
        assert np.abs(exact[name] - rounded[name]).max() < 0.1 * np.abs(exact[name]).max()


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("siglip", {"pooling": "class"}, r"missing: vision_model\.embeddings\.class_embedding \[32\]"),
        ("vit", {"pooling": "map"}, r"missing: vision_model\.head\.probe \[32\]"),
        ("vit", {"pooling": "max"}, "'pooling' is 'max', expected class, mean, mean_then_norm or map"),
        ("vit", {"image_size": (20, 27)}, "image_size 20 x 27 is not a multiple of patch_size 4"),
        ("vit", {"image_size": (20, 28, 3)}, r"'image_size' is \(20, 28, 3\), expected a whole number or \(height, width\)"),
        ("vit", {"image_size": (20, "28")}, "'image_size' is"),
        ("vit", {"image_size": 28}, r"position_embedding\.weight: shape \[36, 32\], expected \[50, 32\]"),
        ("dinov3", {"rope_theta": 0}, r"missing: vision_model\.embeddings\.position_embedding\.weight \[16, 32\]"),
        ("dinov3", {"rope_theta": -1.0}, "rope_theta -1 with heads of width 16"),
        ("dinov3", {"num_attention_heads": 16}, "heads of width 2: rotary positions need"),
    ],
)
def test_what_is_missing_or_cannot_be_is_said(family: str, change: dict[str, Any], message: str) -> None:
    _, config, state = build(family)
    with pytest.raises(ValueError, match=message):
        _core.Vit({**config, **change}, as_weights(state))


def test_what_a_tower_cannot_give_is_said() -> None:
    _, config, state = build("vit")
    tower = _core.Vit(config, as_weights(state))
    images = np.zeros((1, 3, 20, 28), np.float32)
    with pytest.raises(ValueError, match="'pool_attention' of a model that pools without attention"):
        tower.forward(images, outputs=("pool_attention",))
    with pytest.raises(ValueError, match=r"pixel_values has shape \[1, 3, 28, 20\], expected \[images, 3, 20, 28\]"):
        tower.forward(np.zeros((1, 3, 28, 20), np.float32))


# ---- one tower, many sizes ----


@pytest.mark.every_level
@pytest.mark.parametrize("family", ["vit", "siglip", "dinov3_gated", "dinov2_with_registers"])
def test_a_resized_tower_is_one_that_was_loaded_so(family: str) -> None:
    _, config, state = build(family)
    tower = _core.Vit(config, as_weights(state))
    height, width = 12, 32
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(6)).numpy()
    name = "vision_model.embeddings.position_embedding.weight"
    table = None
    if name in state:
        table = torch.randn(24, 32, generator=torch.Generator().manual_seed(7))
        state[name] = torch.cat([state[name][: len(state[name]) - 35 if family == "vit" else len(state[name]) - 25], table])
    fresh = _core.Vit({**config, "image_size": (height, width)}, as_weights(state))
    other = tower.resized(height, width, None if table is None else table.numpy())
    assert (other.image_size, other.image_width, other.tokens) == (height, width, PREFIX.get(family, 1) + 24)
    before = tower.tokens
    del tower
    asked: dict[str, Any] = {"attention": [(i, "raw") for i in range(3)], "outputs": ("last", "pooled")}
    found, wanted = other.forward(images, **asked), fresh.forward(images, **asked)
    for part in ("last", "pooled"):
        assert np.array_equal(found[part], wanted[part])
    for i in range(3):
        assert np.array_equal(found["attentions"][i], wanted["attentions"][i])
    again = other.resized(4, 4, None if table is None else table.numpy()[:1])
    assert again.tokens == PREFIX.get(family, 1) + 1 < before


def test_sizes_that_a_tower_cannot_have_are_said() -> None:
    _, config, state = build("vit")
    tower = _core.Vit(config, as_weights(state))
    table = np.zeros((35, 32), np.float32)
    for arguments, message in (
        ((20, 27, table[:30]), "image_size 20 x 27 is not a multiple of patch_size 4"),
        ((0, 28, table), "image_size 0 x 28, expected at least one patch"),
        ((20, 28), "positions: this tower has a table of positions"),
        ((20, 28, table[:7]), r"positions has shape \[7, 32\], expected \[35, 32\]"),
        ((80000, 4, np.zeros((20000, 32), np.float32)), "image 80000 x 4"),
    ):
        with pytest.raises(ValueError, match=message):
            tower.resized(*arguments)
    _, config, state = build("dinov3")
    with pytest.raises(ValueError, match="positions: this tower has no table of positions"):
        _core.Vit(config, as_weights(state)).resized(20, 28, table)
