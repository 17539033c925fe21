"""Weights under wrappers: prefixes, copies, adapters, other names, and files that are another model or none at all."""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qavit.checkpoints import open_model
from qavit.checkpoints._weights import float_array
from qavit.checkpoints.formats.kinds import kind_of

GOLDEN = Path(__file__).parent / "data" / "golden"
CLIP = GOLDEN / "qavit_official_late" / "clip"
BLOCK = "vision_model.encoder.layers.0."
HEADS = {"heads": 4}


@pytest.fixture(scope="module")
def clip():
    return load_file(CLIP / "model.safetensors")


@pytest.fixture(scope="module")
def blip():
    return torch.load(GOLDEN / "blip_itm" / "checkpoint.pth", weights_only=True)["model"]


def opened(path: Path, **config: Any) -> dict[str, np.ndarray]:
    source = open_model(checkpoint=path, config={**HEADS, **config})
    return {name: float_array(weight) for name, weight in source.weights.items()}


def same(found: dict[str, np.ndarray], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == {name for name in expected if not name.endswith("position_ids")}
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name].numpy(), err_msg=name)


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def in_module(name: str) -> str:
    """As FSDP and torch.compile name what is in modules that they wrap one by one."""
    name = name.replace("vision_model.", "vision_model._orig_mod.")
    return name.replace(".self_attn.", "._fsdp_wrapped_module.self_attn.")


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: "module." + name,
        lambda name: "model." + name,
        lambda name: "net.encoder." + name,
        lambda name: "_fsdp_wrapped_module._orig_mod.module.model." + name,
        lambda name: "pipeline.vision_tower.vision_tower." + name,
        lambda name: "image_encoder." + name.removeprefix("vision_model."),
        lambda name: name.removeprefix("vision_model."),
        lambda name: ("module." if "layers.1" in name else "model.") + name,
        in_module,
    ],
    ids=["module", "model", "nested", "fsdp compiled", "llava", "prefix of its own", "none", "mixed", "inside"],
)
def test_clip_under_any_prefix(rename, clip, tmp_path):
    wrapped = {rename(name): tensor for name, tensor in clip.items()}
    same(opened(saved(tmp_path / "a.pth", wrapped)), clip)
    heads = {"classifier.weight": torch.ones(3, 64), "head.bias": torch.ones(3), "logit_scale": torch.tensor(4.6)}
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3}]}
    content = {"state_dict": {**wrapped, **heads}, "optimizer": optimizer, "epoch": 3}
    same(opened(saved(tmp_path / "b.ckpt", content)), clip)


@pytest.mark.parametrize("prefix", ["model.", "module.model.", "net.encoder.", "_orig_mod.", "text_model.", ""])
def test_blip_under_any_prefix(prefix, blip, tmp_path):
    config = {"config": {"vision": {"num_heads": 4}, "text": {"num_attention_heads": 12}}}
    plain = open_model(checkpoint=GOLDEN / "blip_itm" / "checkpoint.pth", **config)
    extra = {"image_queue": torch.ones(2), "visual_encoder_m.cls_token": torch.ones(1, 1, 32)}
    path = saved(tmp_path / "x.pth", {prefix + name: tensor for name, tensor in {**blip, **extra}.items()})
    found = open_model(checkpoint=path, **config)
    assert set(found.weights) == set(plain.weights)
    for name, weight in found.weights.items():
        np.testing.assert_array_equal(float_array(weight), float_array(plain.weights[name]))


def test_copies_are_chosen_by_name(clip, tmp_path, caplog):
    def scaled(factor: float) -> dict[str, torch.Tensor]:
        return {name: tensor * factor for name, tensor in clip.items()}

    content = {"model": clip, "model_ema": {"module": scaled(2)}, "epoch": 1}
    path = saved(tmp_path / "ema.pth", content)
    with caplog.at_level(logging.INFO, "qavit"):
        same(opened(path), clip)
    assert "left out the copies 'model_ema'" in caplog.text
    for state in ("ema", "EMA", "model_ema"):
        same(opened(path, state=state), scaled(2))
    path = saved(tmp_path / "dino.pth", {"student": scaled(3), "teacher": {"backbone": clip}})
    with pytest.raises(ValueError, match=r"several copies of the model, '(student|teacher\.backbone)' \(103 tensors\)"):
        opened(path)
    same(opened(path, state="student"), scaled(3))
    same(opened(path, state="teacher"), clip)
    with pytest.raises(ValueError, match=r"config\['state'\] is 'swa', but it holds '(student|teacher)"):
        opened(path, state="swa")
    with pytest.raises(TypeError, match=r"config\['state'\]: expected a str, got int"):
        opened(path, state=1)
    # Names of one file, and one copy that is only called so.
    flat = {**{"model." + name: one for name, one in clip.items()}, **{"ema." + name: one * 2 for name, one in clip.items()}}
    same(opened(saved(tmp_path / "flat.pth", flat)), clip)
    same(opened(saved(tmp_path / "only.pth", {"teacher": clip})), clip)


def test_what_is_not_known_is_an_error_or_is_logged(clip, tmp_path, caplog):
    strange = {**clip, "zebra.weight": torch.ones(2), BLOCK + "zebra": torch.ones(2)}
    path = saved(tmp_path / "x.pth", strange)
    with pytest.raises(ValueError, match=r"zebra\.weight \[2\] is not expected"):
        opened(path)
    del strange[BLOCK + "zebra"]
    path = saved(tmp_path / "y.pth", strange)
    with pytest.raises(ValueError, match=r"zebra\.weight \[2\] is not expected"):
        opened(path)
    with caplog.at_level(logging.WARNING, "qavit"):
        same(opened(path, strict=False), clip)
    assert "left out 1 tensors that are not known: zebra.weight" in caplog.text
    missing = {name: tensor for name, tensor in clip.items() if name != BLOCK + "mlp.fc1.bias"}
    with pytest.raises(ValueError, match=r"fc1\.bias \[\d+\] is missing"):
        opened(saved(tmp_path / "z.pth", missing), strict=False)
    with pytest.raises(TypeError, match=r"config\['strict'\]: expected a bool, got int"):
        opened(path, strict=0)


def test_tensors_that_cannot_be_read_are_named_where_they_are_needed(clip, tmp_path):
    name = BLOCK + "mlp.fc1.weight"
    sparse = {**clip, name: torch.nn.functional.dropout(clip[name], 0.9).to_sparse()}
    found = opened(saved(tmp_path / "coo.pth", sparse))
    np.testing.assert_array_equal(found[name], sparse[name].to_dense().numpy())
    path = saved(tmp_path / "csr.pth", {**clip, name: clip[name].to_sparse_csr()})
    with pytest.raises(ValueError, match=r"fc1\.weight is missing\n  which is not read: .*fc1\.weight is a sparse tensor"):
        opened(path)
    opened(saved(tmp_path / "other.pth", {**clip, "head.weight": clip[name].to_sparse_csr()}))
    quantised = torch.quantize_per_tensor(clip[name], 0.01, 0, torch.qint8)
    found = opened(saved(tmp_path / "q.pth", {**clip, name: quantised}))
    np.testing.assert_array_equal(found[name], quantised.dequantize().numpy())


def test_tied_names_of_safetensors(clip, tmp_path):
    kept = {name: tensor for name, tensor in clip.items() if "post_layernorm" not in name}
    kept.update({f"other.{part}": clip[f"vision_model.post_layernorm.{part}"] for part in ("weight", "bias")})
    names = {f"vision_model.post_layernorm.{part}": f"other.{part}" for part in ("weight", "bias")}
    save_file(kept, tmp_path / "a.pt", metadata={**names, "format": "pt", "vision_model.absent": "nowhere"})
    same(opened(tmp_path / "a.pt", strict=False), clip)


T5 = GOLDEN / "qavit_official_late" / "t5"


@pytest.mark.parametrize("kept", ["shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"])
def test_t5s_table_under_any_of_its_names(kept, tmp_path):
    base = torch.load(T5 / "pytorch_model.bin", weights_only=True)
    shutil.copytree(T5, tmp_path / "t5")
    one = torch.load(GOLDEN / "qavit_official_late" / "checkpoint.pth", weights_only=True)["model"]
    vision = {name: tensor for name, tensor in one.items() if "vision_model" in name}
    table = base["shared.weight"]
    tied = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    rest = {name: tensor for name, tensor in base.items() if name not in tied}
    torch.save({**rest, kept + ".weight": table}, tmp_path / "t5" / "pytorch_model.bin")
    path = saved(tmp_path / "x.pth", {"model": vision})
    config = json.loads((tmp_path / "t5" / "config.json").read_text())
    (tmp_path / "t5" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    source = open_model(checkpoint=path, vision=CLIP, text=tmp_path / "t5")
    np.testing.assert_array_equal(float_array(source.weights["text_model.shared.weight"]), table.numpy())
    if kept == "lm_head":
        (tmp_path / "t5" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
        with pytest.raises(ValueError, match=r"text_model\.shared\.weight is missing"):
            open_model(checkpoint=path, vision=CLIP, text=tmp_path / "t5")


# Adapters.

Q, V, FC = BLOCK + "self_attn.q_proj", BLOCK + "self_attn.v_proj", BLOCK + "mlp.fc1"
PATCH, TABLE = "vision_model.embeddings.patch_embedding", "vision_model.embeddings.position_embedding"


def adapter_of(clip, rank: int = 4) -> dict[str, torch.Tensor]:
    """Factors for two linear layers, the patches' convolution and the table of positions, by the names that peft saves."""
    torch.manual_seed(3)
    made: dict[str, torch.Tensor] = {}
    for target in (Q, FC):
        rows, columns = clip[target + ".weight"].shape
        made[target + ".lora_A.weight"] = torch.randn(rank, columns)
        made[target + ".lora_B.weight"] = torch.randn(rows, rank)
    rows, *kernel = clip[PATCH + ".weight"].shape
    made[PATCH + ".lora_A.weight"] = torch.randn(rank, *kernel)
    made[PATCH + ".lora_B.weight"] = torch.randn(rows, rank, 1, 1)
    rows, columns = clip[TABLE + ".weight"].shape
    made[TABLE + ".lora_embedding_A"] = torch.randn(rank, rows)
    made[TABLE + ".lora_embedding_B"] = torch.randn(columns, rank)
    return made


def merged_by_hand(clip, adapter, scale: float, magnitudes=None) -> dict[str, torch.Tensor]:
    result = {name: tensor.double() for name, tensor in clip.items()}
    for target in (Q, FC, PATCH):
        a, b = (adapter[f"{target}.lora_{side}.weight"].double() for side in "AB")
        base = result[target + ".weight"]
        new = base + scale * (b.flatten(1) @ a.flatten(1)).reshape(base.shape)
        if magnitudes:
            rows = new.flatten(1)
            new = (magnitudes[target].double()[:, None] * rows / rows.norm(dim=1, keepdim=True)).reshape(base.shape)
        result[target + ".weight"] = new
    a, b = (adapter[f"{TABLE}.lora_embedding_{side}"].double() for side in "AB")
    new = result[TABLE + ".weight"] + scale * (b @ a).T
    if magnitudes:
        new = magnitudes[TABLE].double() * new / new.norm(dim=0)
    result[TABLE + ".weight"] = new
    return result


def close(source, expected: dict[str, torch.Tensor]) -> None:
    for name, weight in source.weights.items():
        # float32 against float64; observed 2e-6
        np.testing.assert_allclose(float_array(weight), expected[name].numpy(), rtol=0, atol=2e-5, err_msg=name)


def adapter_folder(folder: Path, adapter: dict[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    whole = {"base_model.model." + name: tensor for name, tensor in adapter.items()}
    save_file(whole, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("rank_stabilised", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_adapter_folders(rank_stabilised, dora, clip, tmp_path):
    adapter = adapter_of(clip)
    scale = 8 / math.sqrt(4) if rank_stabilised else 8 / 4
    magnitudes = None
    if dora:
        magnitudes = {target: torch.rand(clip[target + ".weight"].shape[0]) + 0.5 for target in (Q, FC, PATCH)}
        magnitudes[TABLE] = torch.rand(clip[TABLE + ".weight"].shape[1]) + 0.5
        for target, values in magnitudes.items():
            shaped = values.reshape(1, -1, 1, 1) if target == PATCH else values
            adapter[target + ".lora_magnitude_vector"] = shaped.clone()
    folder = adapter_folder(tmp_path / "adapter", adapter, use_rslora=rank_stabilised, use_dora=dora)
    expected = merged_by_hand(clip, adapter, scale, magnitudes)
    close(open_model(checkpoint=folder, vision=CLIP), expected)
    # By itself it has to find its base: said by a setting of ours or of its own, or lying beside it.
    with pytest.raises(FileNotFoundError, match=r"holds an adapter without its base model None; give config={'base'"):
        open_model(folder)
    close(open_model(folder, config={"base": CLIP, **HEADS}), expected)
    adapter_folder(tmp_path / "adapter", adapter, use_rslora=rank_stabilised, base_model_name_or_path=str(CLIP))
    close(open_model(folder), expected)
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(CLIP / name, folder)
    adapter_folder(tmp_path / "adapter", adapter, use_rslora=rank_stabilised)
    close(open_model(folder), expected)


def test_what_adapters_save_whole(clip, tmp_path):
    adapter = adapter_of(clip)
    adapter[V + ".bias"] = torch.full((64,), 2.0)
    adapter[Q + ".base_layer.bias"] = torch.full((64,), 3.0)
    adapter[FC + ".lora_B.bias"] = torch.ones(clip[FC + ".bias"].shape[0])
    adapter["vision_model.post_layernorm.weight"] = torch.full((64,), 5.0)
    expected = merged_by_hand(clip, adapter, 2)
    expected[V + ".bias"], expected[Q + ".bias"] = adapter[V + ".bias"], adapter[Q + ".base_layer.bias"]
    expected[FC + ".bias"] = clip[FC + ".bias"] + 2
    expected["vision_model.post_layernorm.weight"] = adapter["vision_model.post_layernorm.weight"]
    folder = adapter_folder(tmp_path / "a", adapter, bias="all", lora_bias=True, modules_to_save=["post_layernorm"])
    close(open_model(checkpoint=folder, vision=CLIP), expected)
    # The same in a state dict of the wrapped model: modules_to_save beside original_module, base_layer, adapters by name.
    whole: dict[str, torch.Tensor] = {}
    for name, tensor in clip.items():
        target, _, part = name.rpartition(".")
        adapted = target + ".lora_A.weight" in adapter or target + ".lora_embedding_A" in adapter
        if target == "vision_model.post_layernorm":
            whole[f"{target}.original_module.{part}"] = tensor
            whole[f"{target}.modules_to_save.default.{part}"] = expected[name].float()
        else:
            whole[f"{target}.base_layer.{part}" if adapted else name] = tensor
    for name, tensor in adapter.items():
        head, marked, tail = name.rpartition(".lora_")
        if marked:
            side, _, part = tail.partition(".")
            whole[f"{head}.lora_{side}.default{'.' + part if part else ''}"] = tensor
    whole[V + ".bias"], whole[Q + ".base_layer.bias"] = adapter[V + ".bias"], adapter[Q + ".base_layer.bias"]
    path = saved(tmp_path / "x.pth", {"base_model.model." + name: tensor for name, tensor in whole.items()})
    close(open_model(checkpoint=path, config={**HEADS, "lora_alpha": 8}), expected)


def test_settings_of_adapters(clip, tmp_path):
    adapter = adapter_of(clip)
    folder = adapter_folder(tmp_path / "a", adapter, alpha_pattern={"mlp.fc1": 2})
    found = open_model(checkpoint=folder, vision=CLIP)
    a, b = adapter[FC + ".lora_A.weight"], adapter[FC + ".lora_B.weight"]
    expected = (clip[FC + ".weight"] + 0.5 * b @ a).numpy()
    np.testing.assert_allclose(float_array(found.weights[FC + ".weight"]), expected, atol=1e-5)
    for config, message in (
        ({"peft_type": "IA3"}, "peft_type is 'IA3', only LORA"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' changed the base model's weights"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is not known, so it cannot be obeyed"),
        ({"alpha_pattern": {"(a+)+": 2}}, "alpha_pattern: expected an object of modules' names"),
        ({"lora_alpha": "8"}, "lora_alpha: expected a number, got '8'"),
        ({"use_rslora": 1}, "use_rslora is 1, expected true or false"),
    ):
        with pytest.raises(ValueError, match=message.replace("(", r"\(") if "(" in message else message):
            open_model(checkpoint=adapter_folder(tmp_path / "a", adapter, **config), vision=CLIP)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither adapter_model\.safetensors nor adapter_model\.bin"):
        open_model(checkpoint=folder, vision=CLIP)


# OpenAI's names.


def openai_names(clip: dict[str, torch.Tensor], width: int = 16) -> dict[str, torch.Tensor]:
    """The tower under the names of OpenAI's CLIP and open_clip, with a projection."""
    v, o = "vision_model.", {}
    o["visual.class_embedding"] = clip[v + "embeddings.class_embedding"]
    o["visual.conv1.weight"] = clip[PATCH + ".weight"]
    o["visual.positional_embedding"] = clip[TABLE + ".weight"]
    o["visual.proj"] = torch.arange(64.0 * width).reshape(64, width)
    for w in ("weight", "bias"):
        o["visual.ln_pre." + w], o["visual.ln_post." + w] = clip[f"{v}pre_layrnorm.{w}"], clip[f"{v}post_layernorm.{w}"]
        for i in range(6):
            s, d = f"{v}encoder.layers.{i}.", f"visual.transformer.resblocks.{i}."
            o[f"{d}attn.in_proj_{w}"] = torch.cat([clip[f"{s}self_attn.{q}_proj.{w}"] for q in "qkv"])
            o[f"{d}attn.out_proj.{w}"] = clip[f"{s}self_attn.out_proj.{w}"]
            o[f"{d}ln_1.{w}"], o[f"{d}ln_2.{w}"] = clip[f"{s}layer_norm1.{w}"], clip[f"{s}layer_norm2.{w}"]
            o[f"{d}mlp.c_fc.{w}"], o[f"{d}mlp.c_proj.{w}"] = clip[f"{s}mlp.fc1.{w}"], clip[f"{s}mlp.fc2.{w}"]
    return o


def with_projection(clip, names) -> dict[str, torch.Tensor]:
    return {**clip, "visual_projection.weight": names["visual.proj"].T}


def test_openais_names(clip, tmp_path):
    names = openai_names(clip)
    text = {"token_embedding.weight": torch.ones(9, 4), "ln_final.bias": torch.ones(4), "logit_scale": torch.tensor(4.6)}
    path = saved(tmp_path / "bare.pt", {**names, **text})
    with pytest.raises(ValueError, match=r"nothing tells the activation of an open_clip file; give config={'hidden_act': "):
        open_model(checkpoint=path, config=HEADS)
    same(opened(path, hidden_act="gelu"), with_projection(clip, names))
    whole = {**names, **text, "input_resolution": torch.tensor(70), "context_length": torch.tensor(77)}
    source = open_model(checkpoint=saved(tmp_path / "openai.pt", whole))
    assert (source.vision["hidden_act"], source.vision["num_attention_heads"]) == ("quick_gelu", 1)
    assert source.preprocessing["margin"] == "even"
    prefixed = {"state_dict": {"module.clip." + name: tensor for name, tensor in whole.items()}}
    same(opened(saved(tmp_path / "nested.pt", prefixed)), with_projection(clip, names))
    without = {name: one for name, one in whole.items() if "ln_pre" not in name}
    clipa = open_model(checkpoint=saved(tmp_path / "clipa.pt", without))
    assert clipa.vision["pooling"] == "mean_then_norm"
    assert (clipa.preprocessing["resize"], clipa.preprocessing["filter"]) == ("exact", "bilinear")


class Holder(torch.nn.Module):
    """Tensors at their places in a tree of modules without a program, as TorchScript archives hold them."""

    def __init__(self, names: dict[str, torch.Tensor]) -> None:
        super().__init__()
        inner: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in names.items():
            head, dot, tail = name.partition(".")
            if dot:
                inner.setdefault(head, {})[tail] = tensor
            else:
                self.register_buffer(head, tensor)
        for head, part in inner.items():
            self.add_module(head, Holder(part))


def test_openais_archives(clip, tmp_path):
    names = {**openai_names(clip), "input_resolution": torch.tensor(70)}
    torch.jit.script(Holder(names)).save(tmp_path / "ViT.pt")
    same(opened(tmp_path / "ViT.pt"), with_projection(clip, names))


def test_open_clip_folders(clip, tmp_path):
    names = openai_names(clip)
    vision = {"image_size": 70, "layers": 6, "width": 64, "head_width": 16, "patch_size": 14}
    pictures = {"mean": [0.5] * 3, "resize_mode": "squash"}
    config: dict[str, Any] = {"model_cfg": {"embed_dim": 16, "vision_cfg": vision}, "preprocess_cfg": pictures}
    save_file(names, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    source = open_model(tmp_path)
    assert (source.vision["hidden_act"], source.vision["num_attention_heads"]) == ("gelu", 4)
    assert (source.preprocessing["resize"], source.preprocessing["mean"][0]) == ("exact", 0.5)
    same({name: float_array(weight) for name, weight in source.weights.items()}, with_projection(clip, names))
    config["model_cfg"]["quick_gelu"] = True
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert open_model(tmp_path).vision["hidden_act"] == "quick_gelu"
    for key, value, message in (
        ("layers", [3, 4, 6, 3], "a ResNet CLIP is not known"),
        ("timm_model_name", "vit_base", r"a timm tower \('vit_base'\) is not known"),
        ("pool_type", "map", "vision_cfg pool_type 'map' makes another kind of tower"),
        ("width", 60, "width 60 and head_width 16 do not give whole heads"),
        ("layers", 7, "num_hidden_layers 7, the weights say 6"),
    ):
        wrong = {**config, "model_cfg": {**config["model_cfg"], "vision_cfg": {**vision, key: value}}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=message):
            open_model(tmp_path)


# Files that are something else.


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin", ".ckpt", ""])
def test_the_name_of_a_file_does_not_matter(suffix, clip, tmp_path):
    save_file(clip, tmp_path / ("a" + suffix))
    same(opened(tmp_path / ("a" + suffix)), clip)
    same(opened(saved(tmp_path / ("b" + suffix), clip)), clip)
    torch.save(clip, tmp_path / ("c" + suffix), _use_new_zipfile_serialization=False)
    same(opened(tmp_path / ("c" + suffix)), clip)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"GGUF\x03\0\0\0", "a GGUF file"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"\x1f\x8b\x08", "a gzip file: unpack it first"),
        (b"x" * 257 + b"ustar\x0000", "a tar archive: unpack it first"),
        (b"\x08\x07\x12\x07pytorch", "an ONNX model"),
        (b"\n  <html><head>", "a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x93NUMPY\x01", "a NumPy array"),
        (b"\x82\xa6params", "a msgpack file, of Flax"),
        (b'{"model_type": "clip"}', "a JSON text, not weights"),
        (b"\xff\xd8\xff\xe0", "a JPEG picture"),
        (b"hello", "neither a file of torch.save nor safetensors"),
        (b"", "the file is empty"),
    ],
)
def test_files_are_told_by_their_bytes(head, message, tmp_path):
    assert message.split(":")[0] in kind_of(head).refusal or message in kind_of(head).refusal
    path = tmp_path / "model.safetensors"
    path.write_bytes(head)
    with pytest.raises(ValueError, match=rf"model\.safetensors: .*{message.replace('.', '[.]')}"):
        opened(path)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["visual.layer1.0.conv1.weight", "visual.attnpool.positional_embedding"], "a ResNet CLIP"),
        (["visual.class_embedding", "visual.attn_pool.probe"], "a Perception Encoder"),
        (["visual.class_embedding", "visual.attn_pool.query"], "CoCa"),
        (["visual.blocks.0.attn.inner_attn_ln.weight", "visual.cls_token"], "EVA-CLIP"),
        (["visual.trunk.blocks.0.mlp.norm.weight", "visual.trunk.cls_token"], "EVA-CLIP"),
        (["image_encoder.model.patch_emb.0.block.conv.weight"], "MobileCLIP"),
        (["visual.trunk.patch_embed.backbone.stem.0.conv.weight"], "MobileCLIP"),
        (["visual.trunk.stages.0.blocks.0.conv_dw.weight"], "a CLIP of convolutions"),
        (["visual.trunk.blocks.0.attn.qkv.weight"], "an open_clip model with a timm tower"),
        (["embeddings.mask_token", "encoder.layer.0.layer_scale1.lambda1"], "DINOv2"),
        (["blocks.0.attn.qkv.weight", "cls_token"], "a vision transformer in timm's layout"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight"], "a T5 encoder"),
        (["model.layers.0.self_attn.q_proj.weight"], "a language model"),
        (["x.lora_A.weight", "x.lora_B.weight"], "an adapter without its base model"),
        (["layer1.0.conv1.weight"], "a ResNet"),
    ],
)  # fmt: skip
def test_other_models_are_named(names, what, tmp_path):
    with pytest.raises(ValueError, match=f"it holds {what}"):
        opened(saved(tmp_path / "x.pth", {name: torch.ones(2) for name in names}))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["Qformer.bert.embeddings.LayerNorm.weight"], "it lacks itm_head, .* not BLIP-2 image-text matching"),
        (["text_encoder.bert.embeddings.LayerNorm.weight"], "it lacks itm_head, not ALBEF"),
    ],
)
def test_models_without_their_heads_are_named(names, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        opened(saved(tmp_path / "x.pth", {name: torch.ones(2) for name in ["visual_encoder.cls_token", *names]}))
