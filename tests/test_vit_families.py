"""Vision transformers that take no question, from the files people have of them, against transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from test_towers import ATTENTION, HIDDEN, SIZES, randomised, worst

import qavit
from qavit.images import preprocess

SIZE = 20
OTHERS = {"intermediate_size": 48, "image_size": SIZE}
LABELS = {"num_labels": 3, "id2label": {0: "cat", 1: "dog", 2: "bus"}}


def vit() -> torch.nn.Module:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, **OTHERS, **LABELS))


def deit() -> torch.nn.Module:
    return transformers.DeiTForImageClassification(transformers.DeiTConfig(**SIZES, **OTHERS, **LABELS))


def dinov2(**changes: Any) -> torch.nn.Module:
    return transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, image_size=28, **changes))


def dinov2_giant() -> torch.nn.Module:
    return dinov2(use_swiglu_ffn=True)


def dinov2_with_registers() -> torch.nn.Module:
    return transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**SIZES, image_size=28))


def dinov3(**changes: Any) -> torch.nn.Module:
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**SIZES, **OTHERS, num_register_tokens=4, **changes))


def dinov3_gated() -> torch.nn.Module:
    return dinov3(use_gated_mlp=True, hidden_act="silu")


MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "vit": vit, "deit": deit, "dinov2": dinov2, "dinov2_giant": dinov2_giant,
    "dinov2_with_registers": dinov2_with_registers, "dinov3": dinov3, "dinov3_gated": dinov3_gated,
}  # fmt: skip


def made(family: str) -> torch.nn.Module:
    model = randomised(MODELS[family]())
    model.set_attn_implementation("eager")
    return model


def tower_of(model: torch.nn.Module) -> Any:
    return next((getattr(model, name) for name in ("vit", "deit") if hasattr(model, name)), model)


def pixels_of(photo: np.ndarray, loaded: qavit.Model) -> np.ndarray:
    return preprocess(photo, loaded.preprocessing)[0][None]


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (30, 50, 3), np.uint8)


@pytest.mark.parametrize("family", MODELS)
def test_folders_and_files_give_the_towers_of_transformers(family: str, tmp_path: Path) -> None:
    model = made(family)
    model.save_pretrained(tmp_path / "folder")
    torch.save(model.state_dict(), tmp_path / "model.pth")
    loaded = qavit.load(tmp_path / "folder", image_size=SIZE)
    assert (loaded.kind, loaded.takes_questions, loaded.default_method, loaded.grid) == ("vit", False, "class", (5, 5))
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = tower_of(model)(images, output_attentions=True, output_hidden_states=True)
    found = loaded.vision(images.numpy(), output_attentions=True, output_hidden_states=True)
    assert worst(found.last_hidden_state, wanted.last_hidden_state) < HIDDEN
    assert found.attentions is not None
    for ours, theirs in zip(found.attentions, wanted.attentions):
        assert np.abs(ours - theirs.numpy()).max() < ATTENTION
    file = qavit.load(checkpoint=tmp_path / "model.pth", image_size=SIZE, config={"heads": 2})
    assert np.array_equal(file.vision(images.numpy()).last_hidden_state, found.last_hidden_state)


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "dinov2_with_registers"])
def test_pictures_become_what_the_processor_makes(family: str, tmp_path: Path, photo: np.ndarray) -> None:
    made(family).save_pretrained(tmp_path)
    square = {"height": SIZE, "width": SIZE}
    processor = {
        "vit": transformers.ViTImageProcessor(size=square),
        "deit": transformers.DeiTImageProcessor(size={"height": 26, "width": 26}, crop_size=square),
    }.get(family) or transformers.BitImageProcessor(
        size={"shortest_edge": 26}, crop_size=square, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    processor.save_pretrained(tmp_path)
    loaded = qavit.load(tmp_path)
    assert loaded.image_size == SIZE
    wanted = processor(Image.fromarray(photo), return_tensors="np")["pixel_values"]
    assert np.abs(pixels_of(photo, loaded) - wanted).max() < 0.02


def test_dinov3s_pictures_are_resized_in_floats(tmp_path: Path, photo: np.ndarray) -> None:
    made("dinov3").save_pretrained(tmp_path)
    settings = {
        "image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": SIZE, "width": SIZE},
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 2, "rescale_factor": 1 / 255,
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    loaded = qavit.load(tmp_path)
    scaled = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    resized = torch.nn.functional.interpolate(scaled, (SIZE, SIZE), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(settings[name]).reshape(1, 3, 1, 1) for name in ("image_mean", "image_std"))
    assert worst(pixels_of(photo, loaded), (resized - mean) / std) < 1e-6
    assert not loaded.preprocessing.rounded
    assert loaded.heatmaps(photo, fit="crop").maps.shape == (1, 5, 5)
    with pytest.raises(ValueError, match="rounded is false, which goes with resize 'exact'"):
        replace(loaded.preprocessing, filter="lanczos")


def test_a_classifier_says_its_classes(tmp_path: Path, photo: np.ndarray) -> None:
    for family in ("vit", "deit"):
        model = made(family)
        model.save_pretrained(tmp_path / family)
        loaded = qavit.load(tmp_path / family)
        assert loaded.answer_names == ["cat", "dog", "bus"]
        result = loaded.heatmaps(photo)
        with torch.no_grad():
            logits = model(torch.from_numpy(pixels_of(photo, loaded))).logits
        wanted = dict(zip(loaded.answer_names, torch.softmax(logits[0], 0).tolist()))
        assert result.answers is not None
        assert dict(result.answers[0]) == pytest.approx(wanted, abs=1e-5)
        assert result.answers[0][0][0] == max(wanted, key=lambda name: wanted[name])


def test_a_classifiers_questions_are_its_classes(tmp_path: Path, photo: np.ndarray) -> None:
    model = made("vit")
    model.save_pretrained(tmp_path)
    loaded = qavit.load(tmp_path)
    pixels = torch.from_numpy(pixels_of(photo, loaded))
    result = loaded.heatmaps(photo, ["dog", 2])
    assert (result.questions, result.method, result.raw.shape) == (["dog", "bus"], "gradcam", (2, 5, 5))
    kept: list[torch.Tensor] = []
    tower_of(model).layers[-1].layernorm_before.register_forward_hook(lambda _, __, out: kept.append(out) or out)
    for number, raw in zip((1, 2), result.raw):
        kept.clear()
        score = torch.log_softmax(model(pixels).logits[0], 0)[number]
        (gradient,) = torch.autograd.grad(score, kept)
        weights = gradient[0, 1:].mean(0)
        wanted = torch.relu((kept[0][0, 1:] * weights).sum(-1)).reshape(5, 5)
        assert worst(raw, wanted) < 1e-3
    assert loaded.heatmaps(photo, "cat", method="gae").maps.shape == (1, 5, 5)
    with pytest.raises(ValueError, match="'tiger' is none of the model's 3, such as"):
        loaded.heatmaps(photo, "tiger")
    with pytest.raises(ValueError, match="method 'rollout' knows no classes"):
        loaded.heatmaps(photo, "cat", method="rollout")


def test_the_class_tokens_and_the_registers_maps(tmp_path: Path, photo: np.ndarray) -> None:
    model = made("dinov3")
    model.save_pretrained(tmp_path)
    loaded = qavit.load(tmp_path, image_size=SIZE)
    assert loaded.methods[:1] == ("class",)
    assert "registers" in loaded.methods
    pixels = pixels_of(photo, loaded)
    with torch.no_grad():
        attention = model(torch.from_numpy(pixels), output_attentions=True).attentions[1][0].numpy()
    class_map = loaded.heatmaps(photo, block=1).raw[0].ravel()
    assert np.abs(class_map - attention[:, 0, 5:].mean(0)).max() < ATTENTION
    registers = loaded.heatmaps(photo, block=1, method="registers", heads=1).raw[0].ravel()
    assert np.abs(registers - attention[1, 1:5, 5:].mean(0)).max() < ATTENTION
    without = tmp_path / "without"
    made("dinov2").save_pretrained(without)
    with pytest.raises(ValueError, match="'registers'; this model has 'class'"):
        qavit.load(without, image_size=SIZE).heatmaps(photo, method="registers")


def test_a_tower_with_no_registers_in_its_table_of_them(tmp_path: Path, photo: np.ndarray) -> None:
    config = transformers.DINOv3ViTConfig(**SIZES, **OTHERS, num_register_tokens=0)
    randomised(transformers.DINOv3ViTModel(config)).save_pretrained(tmp_path)
    loaded = qavit.load(tmp_path, image_size=SIZE)
    assert "registers" not in loaded.methods
    assert loaded.heatmaps(photo).maps.shape == (1, 5, 5)


# ---- other spellings ----

def native(model: torch.nn.Module, gated: bool = False) -> dict[str, torch.Tensor]:
    """A DINOv2 of transformers under the names of its own code, which timm shares but for the scales."""
    state = model.state_dict()
    result: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        for old, new in (
            ("embeddings.cls_token", "cls_token"), ("embeddings.mask_token", "mask_token"),
            ("embeddings.register_tokens", "register_tokens"), ("embeddings.position_embeddings", "pos_embed"),
            ("embeddings.patch_embeddings.projection", "patch_embed.proj"), ("encoder.layer.", "blocks."),
            ("attention.o_proj", "attn.proj"), ("layer_scale1.lambda1", "ls1.gamma"), ("layer_scale2.lambda1", "ls2.gamma"),
            ("mlp.down_proj", "mlp.w3"), ("layernorm.", "norm."),
        ):  # fmt: skip
            name = name.replace(old, new)
        result[name] = tensor
    for block in range(SIZES["num_hidden_layers"]):
        stem = f"blocks.{block}."
        for part in ("weight", "bias"):
            thirds = [result.pop(f"{stem}attention.{letter}_proj.{part}") for letter in "qkv"]
            result[f"{stem}attn.qkv.{part}"] = torch.cat(thirds)
            if gated:
                halves = [result.pop(f"{stem}mlp.{half}_proj.{part}") for half in ("gate", "up")]
                result[f"{stem}mlp.w12.{part}"] = torch.cat(halves)
    return result


@pytest.mark.parametrize("family", ["dinov2", "dinov2_giant", "dinov2_with_registers"])
def test_the_names_of_dinos_own_code(family: str, tmp_path: Path) -> None:
    model = made(family)
    torch.save(native(model, family == "dinov2_giant"), tmp_path / "model.pth")
    model.save_pretrained(tmp_path / "folder")
    # At the positions' own size, where ways of resizing them do not matter.
    file = qavit.load(checkpoint=tmp_path / "model.pth", image_size=28, config={"heads": 2})
    folder = qavit.load(tmp_path / "folder", image_size=28)
    images = np.random.default_rng(2).standard_normal((1, 3, 28, 28)).astype(np.float32)
    assert np.array_equal(file.vision(images).last_hidden_state, folder.vision(images).last_hidden_state)


def test_positions_at_another_size_are_resized_as_each_code_does(tmp_path: Path) -> None:
    model = made("dinov2")
    model.save_pretrained(tmp_path / "folder")
    state = native(model)
    torch.save(state, tmp_path / "model.pth")
    images = np.zeros((1, 3, SIZE, SIZE), np.float32)

    def entering(loaded: Any) -> np.ndarray:
        return np.array(loaded.vision(images, output_hidden_states=True).hidden_states[0][0, 1:])

    table = state["pos_embed"][:, 1:].reshape(1, 7, 7, 32).permute(0, 3, 1, 2)
    options = {"mode": "bicubic", "align_corners": False}
    theirs = torch.nn.functional.interpolate(table, size=(5, 5), **options)
    own = torch.nn.functional.interpolate(table, scale_factor=5.1 / 7, **options)
    folder = entering(qavit.load(tmp_path / "folder", image_size=SIZE))
    file = entering(qavit.load(checkpoint=tmp_path / "model.pth", image_size=SIZE, config={"heads": 2}))
    moved = (own - theirs)[0].permute(1, 2, 0).reshape(25, 32).numpy()
    assert np.abs(moved).max() > 0.01
    assert np.abs(file - folder - moved).max() < 1e-5


def timm_folder(folder: Path, **changes: Any) -> torch.nn.Module:
    """A ViT of transformers as timm's folder of it."""
    model = made("vit")
    state = {}
    for name, tensor in model.state_dict().items():
        for old, new in (
            ("vit.embeddings.cls_token", "cls_token"), ("vit.embeddings.position_embeddings", "pos_embed"),
            ("vit.embeddings.patch_embeddings.projection", "patch_embed.proj"), ("vit.layers.", "blocks."),
            ("attention.o_proj", "attn.proj"), ("layernorm_before", "norm1"), ("layernorm_after", "norm2"),
            ("vit.layernorm.", "norm."), ("classifier.", "head."),
        ):  # fmt: skip
            name = name.replace(old, new)
        state[name] = tensor
    for block in range(SIZES["num_hidden_layers"]):
        for part in ("weight", "bias"):
            thirds = [state.pop(f"blocks.{block}.attention.{letter}_proj.{part}") for letter in "qkv"]
            state[f"blocks.{block}.attn.qkv.{part}"] = torch.cat(thirds)
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    cfg = {"input_size": [3, SIZE, SIZE], "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    about = {"architecture": "vit_tiny_patch4_20", "num_classes": 3, "label_names": ["cat", "dog", "bus"]}
    (folder / "config.json").write_text(json.dumps({**about, "pretrained_cfg": {**cfg, **changes}}))
    return model


def test_timms_folders(tmp_path: Path, photo: np.ndarray) -> None:
    model = timm_folder(tmp_path / "a")
    loaded = qavit.load(tmp_path / "a", config={"heads": 2, "layer_norm_eps": 1e-12})
    assert loaded.answer_names == ["cat", "dog", "bus"]
    assert (loaded.preprocessing.resize_to, loaded.preprocessing.mean) == (22, (0.5, 0.5, 0.5))
    images = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        wanted = tower_of(model)(images, output_attentions=True)
    for ours, theirs in zip(loaded.vision(images.numpy(), output_attentions=True).attentions or (), wanted.attentions):
        assert np.abs(ours - theirs.numpy()).max() < ATTENTION
    timm_folder(tmp_path / "b", crop_mode="border")
    with pytest.raises(ValueError, match="crop_mode is 'border', expected 'center' or 'squash'"):
        qavit.load(tmp_path / "b", config={"heads": 2})


def test_half_a_tower_is_refused_by_what_is_missing(tmp_path: Path) -> None:
    state = native(made("dinov2"))
    half = {name: tensor for name, tensor in state.items() if name != "blocks.1.attn.qkv.weight"}
    torch.save(half, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"encoder\.layers\.1\.self_attn\.q_proj\.weight \[32, 32\] is missing"):
        qavit.load(checkpoint=tmp_path / "a.pth", config={"heads": 2})
    torch.save(state, tmp_path / "b.pth")
    with pytest.raises(ValueError, match="knows no text"):
        qavit.load(checkpoint=tmp_path / "b.pth", text=tmp_path, config={"heads": 2})
    loaded = qavit.load(checkpoint=tmp_path / "b.pth", image_size=SIZE, config={"heads": 2})
    with pytest.raises(ValueError, match="takes no questions: it is a vision transformer that knows no text"):
        loaded.heatmaps(np.zeros((9, 9, 3), np.uint8), "where?")


def test_a_converted_tower_is_the_same(tmp_path: Path, photo: np.ndarray) -> None:
    from qavit.checkpoints import convert

    made("dinov3").save_pretrained(tmp_path / "folder")
    source = qavit.checkpoints.open_model(tmp_path / "folder", image_size=SIZE)
    convert(source, tmp_path / "converted")
    first, second = qavit.load(tmp_path / "folder", image_size=SIZE), qavit.load(tmp_path / "converted")
    assert second.kind == "vit"
    assert np.array_equal(first.heatmaps(photo).maps, second.heatmaps(photo).maps)


# ---- towers inside of bigger models ----

VISION = {**SIZES, **OTHERS}
TEXT = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 99,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip


def llava() -> tuple[torch.nn.Module, Any]:
    vision, text = transformers.CLIPVisionConfig(**VISION), transformers.LlamaConfig(**TEXT)
    model = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(vision_config=vision, text_config=text))
    return model, model.model.vision_tower


def paligemma(head: bool) -> tuple[torch.nn.Module, Any]:
    vision = transformers.SiglipVisionConfig(**VISION, vision_use_head=head)
    text = transformers.GemmaConfig(**TEXT, num_key_value_heads=1, head_dim=16)
    config = transformers.PaliGemmaConfig(vision_config=vision, text_config=text, projection_dim=32)
    model = transformers.PaliGemmaForConditionalGeneration(config)
    return model, model.model.vision_tower


def idefics2() -> tuple[torch.nn.Module, Any]:
    text = transformers.MistralConfig(**TEXT, num_key_value_heads=1)
    config = transformers.Idefics2Config(vision_config=VISION, text_config=text)
    model = transformers.Idefics2ForConditionalGeneration(config)
    return model, model.model.vision_model


def clipseg() -> tuple[torch.nn.Module, Any]:
    config = transformers.CLIPSegConfig(
        vision_config=VISION, text_config=TEXT, extract_layers=[0, 1], reduce_dim=8, decoder_num_attention_heads=2,
        decoder_intermediate_size=8,
    )  # fmt: skip
    model = transformers.CLIPSegForImageSegmentation(config)
    return model, model.clip.vision_model


def owlvit() -> tuple[torch.nn.Module, Any]:
    model = transformers.OwlViTForObjectDetection(transformers.OwlViTConfig(vision_config=VISION, text_config=TEXT))
    return model, model.owlvit.vision_model


BIGGER: dict[str, tuple[Callable[[], tuple[torch.nn.Module, Any]], str, str]] = {
    "LLaVA": (llava, "clip", "class"),
    "PaliGemma": (lambda: paligemma(False), "vit", "rollout"),
    "PaliGemma with a head": (lambda: paligemma(True), "siglip", "pool"),
    "Idefics 2": (idefics2, "vit", "rollout"),
    "CLIPSeg": (clipseg, "clip", "class"),
    "OWL-ViT": (owlvit, "clip", "class"),
}


@pytest.mark.parametrize("name", BIGGER)
def test_a_tower_inside_of_a_bigger_model(name: str, tmp_path: Path, photo: np.ndarray) -> None:
    make, kind, method = BIGGER[name]
    model, tower = make()
    randomised(tower)
    model.save_pretrained(tmp_path / "folder")
    loaded = qavit.load(tmp_path / "folder")
    assert (loaded.kind, loaded.takes_questions, loaded.default_method) == (kind, False, method)
    images = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    extra = {"patch_attention_mask": torch.ones(1, 5, 5, dtype=torch.bool)} if name == "Idefics 2" else {}
    with torch.no_grad():
        wanted = tower(images, **extra).last_hidden_state
    assert worst(loaded.vision(images.numpy()).last_hidden_state, wanted) < HIDDEN
    assert loaded.heatmaps(photo).maps.shape == (1, 5, 5)
    with pytest.raises(ValueError, match="takes no questions"):
        loaded.heatmaps(photo, "where?")
    torch.save(model.state_dict(), tmp_path / "model.pth")
    act = "gelu_pytorch_tanh" if "class" not in method else "quick_gelu"
    file = qavit.load(checkpoint=tmp_path / "model.pth", config={"heads": 2, "hidden_act": act})
    assert np.array_equal(file.vision(images.numpy()).last_hidden_state, loaded.vision(images.numpy()).last_hidden_state)
