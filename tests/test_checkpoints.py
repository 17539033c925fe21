"""Reading models: every layout becomes the same names, sizes come from the weights, nothing is half loaded."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import small_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_text import byte_pairs

from qavit import _core, load
from qavit.checkpoints import open_model
from qavit.checkpoints._positions import resize_positions
from qavit.checkpoints._weights import float_array
from qavit.checkpoints.formats.safetensors_files import open_safetensors, parse_header
from qavit.checkpoints.towers.question_blocks import integrated_blocks, integration_point
from qavit.models._question_vit import TEXT_ENCODERS

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
    every = source.every_weight()
    for name, weight in every.items():
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
        np.testing.assert_allclose(float_array(weight), expected.numpy(), rtol=0, atol=5e-7)
    decoder = {"text_model.decoder", "text_model.lm_head"}
    assert {".".join(name.split(".")[:2]) for name in source.decoder} == decoder
    assert source.text is not None
    assert source.text["num_decoder_layers"] == 1
    assert every.keys() == source.weights.keys() | source.decoder.keys()
    assert not any("gate" in name.split(".")[-1][:11] for name in every)


def core_names(lavis):
    """LAVIS's tensors of a matcher by the core's names: the vision half as CLIP's, q, k and v apart."""
    named = {}
    for name, tensor in lavis.items():
        if name.endswith("position_ids"):
            continue
        for theirs, ours in (
            ("visual_encoder.blocks.", "vision_model.encoder.layers."),
            ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
            ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding.weight"),
            ("visual_encoder.patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
            ("visual_encoder.norm.", "vision_model.post_layernorm."),
            (".norm1.", ".layer_norm1."),
            (".norm2.", ".layer_norm2."),
            (".attn.proj.", ".self_attn.out_proj."),
        ):
            name = name.replace(theirs, ours)
        tensor = tensor[0] if tensor.dim() == 3 else tensor
        tensor = tensor[0] if name.endswith("class_embedding") else tensor
        stem, fused, kind = name.rpartition(".attn.qkv.")
        parts = [f"{stem}.self_attn.{part}_proj.{kind}" for part in "qkv"] if fused else [name]
        named.update(zip(parts, tensor.chunk(len(parts))))
    return named


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
    expected = core_names(torch.load(folder / "checkpoint.pth", weights_only=True)["model"])
    assert set(source.weights) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(float_array(source.weights[name]), tensor.numpy())


# QA-ViT checkpoints in their variants.


def save_variant(path: Path, tensors, change=None, drop=None, add=None, **others) -> Path:
    """A checkpoint with names changed, some tensors left out, some added."""
    model = OrderedDict()
    for name, tensor in tensors.items():
        if drop is None or not drop(name):
            model[name if change is None else change(name)] = tensor
    model.update(add or {})
    torch.save({"model": model, **others}, path)
    return path


def open_variant(path: Path, **options):
    folder = GOLDEN / "qavit_official_late"
    return open_model(checkpoint=path, vision=folder / "clip", text=folder / "t5", **options)


def same_weights(one, two, tolerance: float = 0) -> None:
    assert set(one.weights) == set(two.weights)
    for name, weight in one.weights.items():
        np.testing.assert_allclose(float_array(weight), float_array(two.weights[name]), rtol=0, atol=tolerance)


def later_peft(name: str) -> str:
    adapted = name.endswith((".q.weight", ".v.weight", "shared.weight", "instruction_embedder.weight"))
    return name[: -len("weight")] + "base_layer.weight" if adapted else name


CONFIG = {"integration_point": "late", "lora_alpha": 8}


@pytest.mark.parametrize(
    "change",
    [
        lambda name: "module." + name,
        lambda name: name[len("base_model.model.") :],
        lambda name: "module." + name[len("base_model.model.") :],
        later_peft,
        lambda name: name.replace(".default", ".trained"),
        lambda name: name.replace("vision.vision_tower.", "vision_tower."),
    ],
)
def test_names_in_all_their_variants(change, late_tensors, tmp_path):
    path = save_variant(tmp_path / "x.pth", late_tensors, change, config=CONFIG)
    same_weights(open_variant(path), qavit())


def test_what_is_left_out_knowingly(late_tensors, tmp_path):
    add = {
        "base_model.model.vision.translation_mlp.0.weight": torch.ones(3, 3),
        "base_model.model.lm_head.bias": torch.ones(2),
    }
    same_weights(open_variant(save_variant(tmp_path / "x.pth", late_tensors, add=add, config=CONFIG)), qavit())
    # Without its duplicate, or under the duplicate's name alone.
    one = save_variant(tmp_path / "y.pth", late_tensors, drop=lambda name: "instruction_embedder" in name, config=CONFIG)
    two = save_variant(tmp_path / "z.pth", late_tensors, drop=lambda name: ".shared." in name, config=CONFIG)
    same_weights(open_variant(one), open_variant(two))
    other = {"base_model.model.instruction_embedder.weight": torch.ones(65, 48)}
    with pytest.raises(ValueError, match="instruction_embedder and shared are not the same table"):
        open_variant(save_variant(tmp_path / "w.pth", late_tensors, add=other, config=CONFIG))


def test_halves_come_from_their_folders_where_the_checkpoint_lacks_them(late_tensors, tmp_path):
    clip = load_file(GOLDEN / "qavit_official_late" / "clip" / "model.safetensors")
    trained = save_variant(
        tmp_path / "x.pth",
        late_tensors,
        drop=lambda name: "vision_model" in name and not any(part in name for part in ("instruct", "gate")),
        config=CONFIG,
    )
    source = open_variant(trained)
    for name, tensor in clip.items():
        np.testing.assert_array_equal(float_array(source.weights[name]), tensor.numpy())
    assert source.vision["integration_point"] == "late"
    vision_only = save_variant(tmp_path / "y.pth", late_tensors, drop=lambda name: "vision_model" not in name)
    base = torch.load(GOLDEN / "qavit_official_late" / "t5" / "pytorch_model.bin")
    source = open_variant(vision_only)
    for name, weight in source.weights.items():
        if name.startswith("text_model."):
            np.testing.assert_array_equal(float_array(weight), base[name[len("text_model.") :]].numpy())
    adapters = save_variant(
        tmp_path / "z.pth", late_tensors, drop=lambda name: "vision_model" not in name and "lora_" not in name, config=CONFIG
    )
    name = "encoder.block.1.layer.0.SelfAttention.q"
    a, b = (late_tensors[f"base_model.model.{name}.lora_{side}.default.weight"] for side in "AB")
    merged = float_array(open_variant(adapters).weights[f"text_model.{name}.weight"])
    np.testing.assert_allclose(merged, (base[name + ".weight"] + 2 * b @ a).numpy(), rtol=0, atol=5e-7)


def test_lora_scale(late_tensors, tmp_path):
    silent = save_variant(tmp_path / "x.pth", late_tensors)
    with pytest.raises(ValueError, match=r"LoRA of rank 4 and no lora_alpha .*give config="):
        open_variant(silent)
    same_weights(open_variant(silent, config={"lora_alpha": 8}), qavit())
    wide = {}
    for name, tensor in late_tensors.items():
        if "lora_" in name:  # rank 4 as rank 16, zeros behind; the public checkpoints' alpha is 32 then
            columns = "lora_B" in name or "embedding_B" in name
            pad = (0, 12) if columns else (0, 0, 0, 12)
            tensor = torch.nn.functional.pad(tensor, pad)
        wide[name] = tensor
    # A product of depth 16 may be summed in another order than one of depth 4.
    same_weights(open_variant(save_variant(tmp_path / "y.pth", wide)), qavit(), tolerance=1e-6)
    with pytest.raises(ValueError, match="expected a number, got nan"):
        open_variant(silent, config={"lora_alpha": float("nan")})
    half = {"base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_A.second.weight": torch.ones(4, 48)}
    with pytest.raises(ValueError, match="more than one LoRA adapter"):
        open_variant(save_variant(tmp_path / "z.pth", late_tensors, add=half, config=CONFIG))
    for ending, message in ((".q.lora_B.default.weight", "lacks lora_B"), (".q.weight", "lacks its base weight")):
        path = save_variant(tmp_path / "w.pth", late_tensors, drop=lambda name, e=ending: name.endswith(e), config=CONFIG)
        with pytest.raises(ValueError, match=message):
            open_variant(path)


def test_integration_points():
    assert integrated_blocks("all", 24) == tuple(range(24))
    assert integrated_blocks("early", 24) == tuple(range(12))
    assert integrated_blocks("late", 24) == tuple(range(12, 24))
    assert integrated_blocks("late2", 24) == tuple(range(18, 24))
    assert integrated_blocks("late3", 24) == tuple(range(6, 24))
    assert integrated_blocks("sparse", 24) == tuple(range(0, 24, 2))
    for point in ("all", "early", "late", "late2", "late3", "sparse"):
        assert integration_point(integrated_blocks(point, 24), 24, None, "x") == point
    with pytest.raises(ValueError, match="blocks 1, 5-7 of 24, which is none of"):
        integration_point((1, 5, 6, 7), 24, None, "x")
    with pytest.raises(ValueError, match="expected one of all, early"):
        integration_point((1,), 24, "middle", "x")


def test_a_stated_integration_point_is_checked():
    assert qavit(config={"integration_point": "late"}).vision["integration_point"] == "late"
    with pytest.raises(
        ValueError, match="'early' means blocks 0-2 of 6, but the weights have instruct layers in blocks 3-5"
    ):
        qavit(config={"integration_point": "early"})
    with pytest.raises(ValueError, match="integration_point 'late', but no block has instruct weights"):
        open_model(vision=GOLDEN / "qavit_official_late" / "clip", config={"integration_point": "late"})


def test_one_error_lists_what_is_wrong(late_tensors, tmp_path):
    gone = "vision_model.encoder.layers.2.mlp.fc2.bias"
    tensors = dict(late_tensors)
    shaped = "base_model.model.vision.vision_tower.vision_model.encoder.layers.4.self_attn.instruction_out_proj.weight"
    tensors[shaped] = torch.ones(64, 60)
    counted = "base_model.model.vision.vision_tower.vision_model.encoder.layers.1.layer_norm1.weight"
    tensors[counted] = torch.ones(64, dtype=torch.int64)
    path = save_variant(
        tmp_path / "x.pth", tensors, drop=lambda name: name.endswith(gone),
        add={"base_model.model.something.weight": torch.ones(3)}, config=CONFIG,
    )  # fmt: skip
    with pytest.raises(ValueError, match="not those of the model that was expected") as caught:
        open_variant(path)
    text = str(caught.value)
    assert f"{gone} [64] is missing" in text
    assert "instruction_out_proj.weight has shape [64, 60], expected [64, 64]" in text
    assert "something.weight [3] is not expected" in text
    assert "layer_norm1.weight is int64, expected one of float32" in text
    many = save_variant(tmp_path / "y.pth", late_tensors, drop=lambda name: "layer_norm2" in name, config=CONFIG)
    with pytest.raises(ValueError, match=r"and 4 more$"):
        open_variant(many)


def test_options_are_checked(tmp_path):
    clip = GOLDEN / "qavit_official_late" / "clip"
    for config, message in (
        ({"integration": "late"}, "config: 'integration' not known"),
        ({"heads": 5}, "num_attention_heads 5 does not divide the width 64"),
        ({"heads": "four"}, "'four' does not divide"),
        ({"vision": {"patch_size": 16}}, "patch_size 16, the weights say 14"),
        ({"layer_norm_eps": 3}, "layer_norm_eps 3, expected a small number"),
        ({"questions": {"max_tokens": -1}}, "max_tokens is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            open_model(vision=clip, config=config)
    assert open_model(vision=clip, config={"heads": 8, "hidden_act": "gelu"}).vision["num_attention_heads"] == 8
    with pytest.raises(TypeError, match="config: expected a dict, got list"):
        open_model(vision=clip, config=[])
    with pytest.raises(TypeError, match="image_size: expected a whole number, got str"):
        open_model(vision=clip, image_size="70")
    with pytest.raises(ValueError, match="nothing to load"):
        open_model()
    with pytest.raises(ValueError, match="not both"):
        open_model(clip, vision=clip)
    with pytest.raises(FileNotFoundError, match="checkpoint: there is no file"):
        open_model(checkpoint=tmp_path / "absent.pth")
    with pytest.raises(FileNotFoundError, match="vision: there is no folder"):
        open_model(vision=tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        open_model(vision=tmp_path)
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        open_model(vision=clip / "config.json")
    with pytest.raises(ValueError, match="no block of the vision model has instruct weights"):
        open_model(vision=clip, text=GOLDEN / "qavit_official_late" / "t5")
    checkpoint = GOLDEN / "qavit_official_late" / "checkpoint.pth"
    with pytest.raises(ValueError, match="give text= the folder"):
        open_model(checkpoint=checkpoint, vision=clip)
    with pytest.raises(ValueError, match="number of heads cannot be told"):
        open_model(checkpoint=checkpoint, text=GOLDEN / "qavit_official_late" / "t5")


def test_unchanged_weights_are_mapped_not_copied():
    source = qavit()
    copied = {name for name, weight in source.weights.items() if not isinstance(weight[0], mmap.mmap)}
    assert copied == {
        "text_model.shared.weight",
        *(f"text_model.encoder.block.{n}.layer.0.SelfAttention.{p}.weight" for n in (0, 1) for p in "qv"),
    }
    assert len({id(weight[0]) for weight in source.weights.values() if isinstance(weight[0], mmap.mmap)}) == 1


# Hugging Face folders.


@pytest.fixture(scope="module")
def hugging_face():
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 7, "projection_dim": 24,
}  # fmt: skip
TEXT = {
    "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 130,
    "max_position_embeddings": 40,
}  # fmt: skip


def clip_model(hugging_face):
    torch.manual_seed(5)
    config = hugging_face.CLIPConfig(
        vision_config={**VISION, "hidden_act": "gelu"}, text_config={**TEXT, "eos_token_id": 129}, projection_dim=24
    )
    return hugging_face.CLIPModel(config)


def test_clip_folders_in_every_form(hugging_face, tmp_path):
    model = clip_model(hugging_face)
    state = model.state_dict()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").is_file()
    for form in ("bin", "legacy", "bin shards"):
        folder = tmp_path / form
        folder.mkdir()
        shutil.copy(tmp_path / "whole" / "config.json", folder)
        if form == "bin shards":
            names = sorted(state)
            parts = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
            for file, part in parts.items():
                torch.save({name: state[name] for name in part}, folder / file)
            table = {name: file for file, part in parts.items() for name in part}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
        else:
            torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=form == "bin")
    for form in ("whole", "sharded", "bin", "legacy", "bin shards"):
        source = open_model(vision=tmp_path / form)
        assert source.architecture == "clip"
        assert source.vision["hidden_act"] == "gelu"
        assert source.vision["projection_dim"] == source.text["projection_dim"] == 24
        assert source.text["model_type"] == "clip_text_model"
        assert source.text["eos_token_id"] == 129
        expected = {name for name in state if not name.endswith("position_ids")}
        assert set(source.weights) == expected
        for name, weight in source.weights.items():
            assert isinstance(weight[0], mmap.mmap)
            np.testing.assert_array_equal(float_array(weight), state[name].numpy())


def test_vision_alone_under_either_naming(hugging_face, tmp_path):
    model = clip_model(hugging_face)
    vision = hugging_face.CLIPVisionModelWithProjection(model.config.vision_config)
    vision.save_pretrained(tmp_path / "projected")
    source = open_model(tmp_path / "projected")
    assert set(source.weights) == {name for name in vision.state_dict() if not name.endswith("position_ids")}
    assert source.text is None
    bare = {
        name.split("vision_model.", 1)[1]: tensor for name, tensor in vision.state_dict().items() if "vision_model" in name
    }
    (tmp_path / "bare").mkdir()
    save_file(bare, tmp_path / "bare" / "model.safetensors")
    shutil.copy(tmp_path / "projected" / "config.json", tmp_path / "bare")
    again = open_model(tmp_path / "bare")
    assert set(again.weights) == set(source.weights) - {"visual_projection.weight"}
    hugging_face.BertModel(hugging_face.BertConfig(**TEXT)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="holds a model of type 'bert', expected CLIP"):
        open_model(vision=tmp_path / "bert")


def qavit_for(folder: Path, width: int, late_tensors) -> Path:
    """The golden vision tower alone, its instruct layers made for questions of another width."""
    tensors = {}
    generator = torch.Generator().manual_seed(9)
    for name, tensor in late_tensors.items():
        if "vision_model" in name:
            if "instruct_dim_reduce.0" in name:
                tensor = torch.randn(width, generator=generator)
            elif "instruct_dim_reduce.1" in name:
                tensor = torch.randn(64, width, generator=generator)
            tensors[name] = tensor
    torch.save({"model": tensors}, folder / "x.pth")
    return folder / "x.pth"


@pytest.mark.parametrize(
    "kind",
    [
        "t5", "t5 1.0", "mt5", "bert", "bert masked", "bert old names", "roberta", "roberta masked", "xlm-roberta",
        "xlm-roberta masked", "camembert", "camembert masked", "clip", "clip projected",
    ],
)  # fmt: skip
def test_text_encoders(kind, hugging_face, late_tensors, tmp_path):
    torch.manual_seed(6)
    hf = hugging_face
    t5 = {"d_model": 40, "d_kv": 8, "d_ff": 56, "num_layers": 2, "num_heads": 3, "vocab_size": 130}
    model = {
        "t5": lambda: hf.T5EncoderModel(hf.T5Config(**t5, feed_forward_proj="gated-gelu")),
        "t5 1.0": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**t5, num_decoder_layers=1)),
        "bert": lambda: hf.BertModel(hf.BertConfig(**TEXT)),
        "bert masked": lambda: hf.BertForMaskedLM(hf.BertConfig(**TEXT)),
        "bert old names": lambda: hf.BertModel(hf.BertConfig(**TEXT)),
        "roberta": lambda: hf.RobertaModel(hf.RobertaConfig(**TEXT)),
        "mt5": lambda: hf.MT5EncoderModel(hf.MT5Config(**t5)),
        "roberta masked": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**TEXT)),
        "xlm-roberta": lambda: hf.XLMRobertaModel(hf.XLMRobertaConfig(**TEXT)),
        "xlm-roberta masked": lambda: hf.XLMRobertaForMaskedLM(hf.XLMRobertaConfig(**TEXT)),
        "camembert": lambda: hf.CamembertModel(hf.CamembertConfig(**TEXT)),
        "camembert masked": lambda: hf.CamembertForMaskedLM(hf.CamembertConfig(**TEXT)),
        "clip": lambda: hf.CLIPTextModel(hf.CLIPTextConfig(**TEXT)),
        "clip projected": lambda: hf.CLIPTextModelWithProjection(hf.CLIPTextConfig(**TEXT, projection_dim=24)),
    }[kind]()
    model.save_pretrained(tmp_path / "text")
    if kind == "bert old names":
        state = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in model.state_dict().items()
        }
        (tmp_path / "text" / "model.safetensors").unlink()
        torch.save({"bert." + name: tensor for name, tensor in state.items()}, tmp_path / "text" / "pytorch_model.bin")
    checkpoint = qavit_for(tmp_path, 40, late_tensors)
    clip = GOLDEN / "qavit_official_late" / "clip"
    with pytest.raises(FileNotFoundError, match=r"text: .* holds no tokenizer: none of tokenizer\.json, .*spiece\.model"):
        open_model(checkpoint=checkpoint, vision=clip, text=tmp_path / "text")
    shutil.copy(GOLDEN / "qavit_official_late" / "t5" / "tokenizer.json", tmp_path / "text")
    source = open_model(checkpoint=checkpoint, vision=clip, text=tmp_path / "text")
    assert source.architecture == "qavit"
    family = kind.split()[0]
    expected = {"t5": "t5", "mt5": "t5", "bert": "bert", "clip": "clip_text_model"}.get(family, "roberta")
    assert source.text["model_type"] == expected
    state = model.state_dict()
    for name, weight in source.weights.items():
        if name.startswith("text_model."):
            short = name[len("text_model.") :]
            theirs = next(state[key] for key in (name, short, "bert." + short, "roberta." + short) if key in state)
            np.testing.assert_array_equal(float_array(weight), theirs.numpy())
    encoder = getattr(_core, TEXT_ENCODERS[expected])(source.text, source.weights)
    ids = np.random.default_rng(1).integers(3, TEXT["vocab_size"], (3, 9))
    mask = np.ones((3, 9), np.int64)
    mask[1, 6:] = mask[2, 2:] = 0
    ids[mask == 0] = model.config.pad_token_id or 0
    body = getattr(model, model.base_model_prefix, model) if "masked" in kind else model
    body = body.encoder if kind == "t5 1.0" else body
    with torch.no_grad():
        output = body.eval()(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    states = output.last_hidden_state.numpy()
    # Observed: 7e-7 of the largest state.
    difference = np.abs(encoder.encode(ids, mask) - states)[mask == 1]
    assert difference.max() < 2e-6 * np.abs(states).max()
    with pytest.raises(ValueError, match=r"text encoder is 40 wide, but the vision model takes questions 44 wide"):
        open_model(
            checkpoint=qavit_for(tmp_path, 44, late_tensors),
            vision=GOLDEN / "qavit_official_late" / "clip",
            text=tmp_path / "text",
        )


@pytest.mark.parametrize("kind", ["bert", "roberta", "clip"])
def test_questions_go_through_any_text_folder(kind, hugging_face, late_tensors, tmp_path):
    """Vocabulary files, tokenizer, encoder and vision model together, against transformers' own tokenizer and model."""
    hf, folder = hugging_face, tmp_path / "text"
    torch.manual_seed(8)
    folder.mkdir()
    sizes = {**TEXT, "vocab_size": 700}
    if kind == "bert":
        shutil.copy(GOLDEN / "blip_itm" / "vocab.txt", folder)
        model, tokenizer = hf.BertModel(hf.BertConfig(**sizes)), hf.BertTokenizer.from_pretrained(folder)
    elif kind == "roberta":
        byte_pairs(folder, clip=False)
        model, tokenizer = hf.RobertaModel(hf.RobertaConfig(**sizes)), hf.RobertaTokenizer.from_pretrained(folder)
    else:
        byte_pairs(folder, clip=True)
        tokenizer = hf.CLIPTokenizer.from_pretrained(folder)
        model = hf.CLIPTextModel(hf.CLIPTextConfig(**sizes, eos_token_id=tokenizer.eos_token_id))
    model.save_pretrained(folder)
    checkpoint = qavit_for(tmp_path, 40, late_tensors)
    loaded = load(checkpoint=checkpoint, vision=GOLDEN / "qavit_official_late" / "clip", text=folder)
    questions = ["Where is the red car?", "what's it!"]
    encoded = loaded.encode_questions(questions)
    assert encoded.states.shape[2] == 40
    for row, question in enumerate(["where is the red car?", "what's it"]):
        ids = torch.tensor([tokenizer(question)["input_ids"]])
        with torch.no_grad():
            expected = model.eval()(input_ids=ids).last_hidden_state[0].numpy()
        assert encoded.mask[row].sum() == len(expected)
        # Observed: 5e-7 of the largest state.
        difference = np.abs(encoded.states[row, : len(expected)] - expected).max()
        assert difference < 3e-6 * np.abs(expected).max()
    pixels = np.random.default_rng(0).standard_normal((1, 3, loaded.image_size, loaded.image_size), np.float32)
    maps = loaded.extract_attention(pixels, questions, blocks=(5,))
    assert np.abs(maps[0] - maps[1]).max() > 1e-6
    assert np.allclose(maps.sum(axis=-1), 1, atol=1e-5)


def test_blip_folders_get_the_cores_names(hugging_face, tmp_path):
    torch.manual_seed(7)
    cases = json.loads((GOLDEN / "blip_itm" / "cases.json").read_text())
    config = hugging_face.BlipConfig(
        vision_config={**VISION, "image_size": 28}, text_config={**TEXT, "encoder_hidden_size": 32, "vocab_size": 123},
        image_text_hidden_size=24,
    )  # fmt: skip
    model = hugging_face.BlipForImageTextRetrieval(config)
    model.save_pretrained(tmp_path / "blip")
    shutil.copy(GOLDEN / "blip_itm" / "vocab.txt", tmp_path / "blip")
    source = open_model(tmp_path / "blip")
    assert source.architecture == "blip_itm"
    assert (source.vision["num_attention_heads"], source.text["num_attention_heads"]) == (4, 4)
    assert source.vision["layer_norm_eps"] == config.vision_config.layer_norm_eps
    assert "[ENC]" in source.tokenizer
    lavis = core_names(torch.load(GOLDEN / "blip_itm" / "checkpoint.pth", weights_only=True)["model"])
    blocks = {"vision_model.encoder.layers.": 3, "text_encoder.encoder.layer.": 2}
    assert set(source.weights) == {
        name for name in lavis
        if all(not name.startswith(prefix) or int(name[len(prefix) :].split(".")[0]) < n for prefix, n in blocks.items())
    }  # fmt: skip
    state = model.state_dict()
    block = "vision_model.encoder.layers.1.self_attn."
    _, key, _ = state[block + "qkv.weight"].chunk(3)
    for name, tensor in (
        ("vision_model.embeddings.class_embedding", state["vision_model.embeddings.class_embedding"][0, 0]),
        (block + "k_proj.weight", key),
        (block + "out_proj.weight", state[block + "projection.weight"]),
        *((name, state[name]) for name in (
            "vision_model.encoder.layers.2.layer_norm2.bias",
            "text_encoder.encoder.layer.1.crossattention.self.key.weight",
            "itm_head.weight",
        )),
    ):  # fmt: skip
        np.testing.assert_array_equal(float_array(source.weights[name]), tensor.numpy())
    with pytest.raises(ValueError, match="num_attention_heads"):
        open_model(checkpoint=GOLDEN / "blip_itm" / "checkpoint.pth", config={"vision": cases["vit"]})
    with pytest.raises(ValueError, match="hidden_size 48, the weights say 32"):
        open_model(checkpoint=GOLDEN / "blip_itm" / "checkpoint.pth", config={"vision": {"embed_dim": 48}})
    with pytest.raises(ValueError, match="do not go with a BLIP checkpoint"):
        open_model(checkpoint=GOLDEN / "blip_itm" / "checkpoint.pth", vision=tmp_path / "blip")


def clip_copy(folder: Path, **preprocessor) -> Path:
    """The golden CLIP folder with entries of its preprocessor_config.json changed; None removes one."""
    shutil.copytree(GOLDEN / "qavit_official_late" / "clip", folder, dirs_exist_ok=True)
    path = folder / "preprocessor_config.json"
    config = {**json.loads(path.read_text()), **preprocessor}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def test_preprocessing_is_the_folders(tmp_path):
    def read(**changes):
        return open_model(clip_copy(tmp_path / "clip", **changes)).preprocessing

    assert read(image_mean=[0.5, 0.5, 0.5])["mean"] == [0.5, 0.5, 0.5]
    assert read(do_normalize=False)["std"] == [1.0, 1.0, 1.0]
    assert read(size=70)["resize"] == "shortest_edge"
    exact = read(size={"height": 70, "width": 70}, do_center_crop=None)
    assert (exact["resize"], exact["crop"]) == ("exact", False)
    larger = read(size={"shortest_edge": 90}, resample=2, rescale_factor=1 / 127.5)
    assert (larger["resize_to"], larger["filter"], larger["rescale"]) == (90, "bilinear", 1 / 127.5)
    for changes, message in (
        ({"do_center_crop": False}, "'shortest_edge' without crop leaves pictures of any ratio"),
        ({"crop_size": {"height": 70, "width": 60}}, "crop_size is 70 x 60, the model takes 70 x 70 pixels"),
        ({"resample": 6}, "resample is 6, expected 0 to 5"),
        ({"rescale_offset": 0.5}, "rescale_offset 0.5 is not known, so it cannot be obeyed"),
        ({"do_pad": True, "pad_size": {"height": 90, "width": 90}}, "do_pad is true"),
        ({"do_resize": "yes"}, "do_resize is 'yes', expected true or false"),
        ({"size": {"longest_edge": 70}}, "size is {'longest_edge': 70}, expected height and width"),
        ({"image_processor_type": "OwlImageProcessor", "image_mean": None}, "'Owl' is not known, .*about image_mean"),
        ({"image_mean": [0.5]}, "mean is .*expected three numbers"),
        ({"image_std": [0.5, 0, "x"]}, "std is .*expected three numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            read(**changes)
    changed = open_model(
        clip_copy(tmp_path / "clip"), config={"preprocessing": {"std": [2, 2, 2]}, "defaults": {"block": 3}}
    )
    assert (changed.preprocessing["std"], changed.defaults) == ([2, 2, 2], {"block": 3})
    with pytest.raises(TypeError, match=r"config\['vision'\]: expected a dict, got int"):
        open_model(tmp_path / "clip", config={"vision": 3})


def wrong_clip(folder: Path, tensors=None, **config) -> Path:
    """The golden CLIP folder with some of its tensors and of its configuration changed; None removes one."""
    clip_copy(folder)
    weights = {**load_file(folder / "model.safetensors"), **(tensors or {})}
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, folder / "model.safetensors")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


EMBEDDINGS = "vision_model.embeddings."


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({EMBEDDINGS + "class_embedding": None}, r"no vision tower \(vision_model\.embeddings\.class_embedding\)"),
        ({EMBEDDINGS + "patch_embedding.weight": None}, r"patch_embedding\.weight is missing"),
        ({EMBEDDINGS + "patch_embedding.weight": torch.ones(64, 588)}, r"shape \[64, 588\], expected 4 sizes above 0"),
        ({EMBEDDINGS + "patch_embedding.weight": torch.ones(64, 3, 14, 7)}, "patches of 3x14x7 values, expected 3 colours"),
        ({EMBEDDINGS + "patch_embedding.weight": torch.ones(64, 1, 14, 14)}, "patches of 1x14x14 values"),
        ({EMBEDDINGS + "position_embedding.weight": torch.ones(25, 64)}, "24 patch positions are not a square grid"),
        ({EMBEDDINGS + "position_embedding.weight": torch.ones(1, 64)}, "0 patch positions are not a square grid"),
    ],
)
def test_weights_that_are_no_vision_tower(tensors, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_model(vision=wrong_clip(tmp_path / "clip", tensors))


def test_a_tower_without_blocks_is_refused(tmp_path):
    names = load_file(GOLDEN / "qavit_official_late" / "clip" / "model.safetensors")
    gone = {name: None for name in names if ".layers." in name}
    with pytest.raises(ValueError, match="no blocks"):
        open_model(vision=wrong_clip(tmp_path / "clip", gone))


def test_files_that_are_something_else_are_named(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
    clip = GOLDEN / "qavit_official_late" / "clip"
    (tmp_path / "page.pth").write_bytes(b"<!DOCTYPE html><title>not found</title>")
    (tmp_path / "pointer.pth").write_bytes(pointer)
    shutil.copytree(clip, tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").write_bytes(pointer)
    for arguments, message in (
        ({"checkpoint": tmp_path / "page.pth"}, r"page\.pth: a web page, not weights"),
        ({"checkpoint": tmp_path / "pointer.pth"}, r"pointer\.pth: a pointer of Git LFS.* git lfs pull"),
        ({"vision": tmp_path / "clip"}, r"model\.safetensors: a pointer of Git LFS"),
        ({"checkpoint": tmp_path / "clip"}, "checkpoint: .* is a folder, expected a file"),
    ):
        with pytest.raises(ValueError, match=message):
            open_model(**arguments)


def test_the_kind_of_a_folder_is_checked(tmp_path):
    for name, message in (
        ("git", r"path: .* of type 'git' \(GIT\), expected CLIP, BLIP or a converted"),
        ("vit", "no patch embedding of ViT, DeiT, DINOv2, DINOv3 or timm among its tensors"),
    ):
        with pytest.raises(ValueError, match=message):
            open_model(wrong_clip(tmp_path / name, model_type=name))
    with pytest.raises(ValueError, match=r"vision: .* holds a model of type 'blip', expected CLIP"):
        open_model(vision=wrong_clip(tmp_path / "blip", model_type="blip"))
    with pytest.raises(ValueError, match=r"holds a model of type 'vit', expected CLIP"):
        open_model(vision=wrong_clip(tmp_path / "clip", model_type="vit"))
    text = tmp_path / "text"
    shutil.copytree(GOLDEN / "qavit_official_late" / "t5", text)
    config = json.loads((text / "config.json").read_text())
    for changes, message in (
        ({"model_type": "gpt2"}, "holds a model of type 'gpt2', expected t5, mt5, bert"),
        ({"feed_forward_proj": "swish"}, "feed_forward_proj 'swish', expected gated-gelu or relu"),
        ({"feed_forward_proj": "relu"}, "the configuration says feed_forward_proj 'relu', the weights have"),
        ({"num_heads": 7}, "7 heads do not divide the width 64|num_heads 7"),
    ):
        (text / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(ValueError, match=message):
            open_model(checkpoint=GOLDEN / "qavit_official_late" / "checkpoint.pth",
                       vision=GOLDEN / "qavit_official_late" / "clip", text=text)  # fmt: skip
    (text / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json: expected a JSON object, got list"):
        open_model(checkpoint=GOLDEN / "qavit_official_late" / "checkpoint.pth", text=text)


def test_options_of_the_wrong_kind_are_named(tmp_path):
    clip = GOLDEN / "qavit_official_late" / "clip"
    for config, message in (
        ({"preprocessing": {"size": 71}}, "preprocessing.size is 71, the model takes images of 70"),
        ({"preprocessing": {"resize": "bilinear"}}, "resize is 'bilinear', expected one of 'none', 'exact'"),
        ({"preprocessing": {"crop": 1}}, "crop is 1, expected true or false"),
    ):
        with pytest.raises(ValueError, match=message):
            open_model(vision=clip, config=config)
    for key in ("questions", "defaults"):
        with pytest.raises(TypeError, match=rf"config\['{key}'\]: expected a dict, got int"):
            open_model(vision=clip, config={key: 3})
    blip = GOLDEN / "blip_itm" / "checkpoint.pth"
    with pytest.raises(
        ValueError, match=r"'patches' not known; expected 'vision' and 'text'.*opened as BLIP image-text matching"
    ):
        open_model(checkpoint=blip, config={"patches": 4})
    with pytest.raises(TypeError, match=r"config\['text'\]: expected a dict, got int"):
        open_model(checkpoint=blip, config={"text": 3})


def test_converted_folders_say_what_they_lack(tmp_path):
    folder = small_models.write_qavit(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(ValueError, match="has its own text encoder"):
        open_model(folder, text=GOLDEN / "qavit_official_late" / "t5")
    for changes, message in (
        ({"version": 9}, "version 9 of the format, this qavit reads versions 1 to 3"),
        ({"questions": 3}, "'questions' is int, expected an object"),
        ({"defaults": [1]}, "'defaults' is list, expected an object"),
        ({"architecture": "blip_itm", "text": None}, r"config\.json has no 'text'"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(ValueError, match=message):
            open_model(folder)
    del config["preprocessing"]
    (folder / "config.json").write_text(json.dumps(config))
    source = open_model(folder, image_size=56)
    assert (source.preprocessing["size"], source.preprocessing["resize"], source.vision["image_size"]) == (
        56, "shortest_edge", 56)  # fmt: skip


def test_lora_factors_that_do_not_fit_are_refused(late_tensors, tmp_path):
    stem = "base_model.model.encoder.block.0.layer.0.SelfAttention.q"
    assert stem + ".lora_A.default.weight" in late_tensors
    short = {**late_tensors, stem + ".lora_B.default.weight": torch.ones(64, 3)}
    with pytest.raises(ValueError, match=r"has LoRA factors A \[\d+, 48\] and B \[64, 3\], which do not fit"):
        open_variant(save_variant(tmp_path / "x.pth", short, config=CONFIG))
    both = {**late_tensors, stem + ".base_layer.weight": late_tensors[stem + ".weight"]}
    with pytest.raises(ValueError, match="is there twice, with and without base_layer"):
        open_variant(save_variant(tmp_path / "y.pth", both, config=CONFIG))
    twice = {**late_tensors, "module." + stem + ".weight": late_tensors[stem + ".weight"] + 1}
    with pytest.raises(ValueError, match="is there twice"):
        open_variant(save_variant(tmp_path / "z.pth", twice, config=CONFIG))


def test_tokenizers_in_place_of_the_folders_own(tmp_path):
    folder = GOLDEN / "qavit_official_late"
    own = qavit().tokenizer
    for place in (folder / "t5", folder / "t5" / "tokenizer.json"):
        assert qavit(tokenizer=place).tokenizer == own
    assert "WordPiece" in qavit(tokenizer=GOLDEN / "blip_itm" / "vocab.txt").tokenizer
    with pytest.raises(FileNotFoundError, match="tokenizer: there is no file or folder"):
        qavit(tokenizer=tmp_path / "absent.json")


def test_answers_need_their_head(tmp_path):
    folder = GOLDEN / "qavit_official_late" / "clip"
    tensors = load_file(folder / "model.safetensors")
    tensors["answer_head.weight"], tensors["answer_head.bias"] = torch.ones(3, 64), torch.zeros(3)
    clip_copy(tmp_path / "clip")
    save_file(tensors, tmp_path / "clip" / "model.safetensors")
    assert open_model(tmp_path / "clip", config={"answers": ["a", "b", "c"]}).answers == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"2 answers are listed, answer_head\.weight has 3 rows"):
        open_model(tmp_path / "clip", config={"answers": ["a", "b"]})
    with pytest.raises(ValueError, match="'answers' is not a list of texts"):
        open_model(tmp_path / "clip", config={"answers": [1, 2, 3]})


# Other image sizes.


@pytest.mark.parametrize("side", [3, 4, 6, 7, 11])
def test_positions_are_interpolated_as_transformers_does(side, hugging_face):
    model = clip_model(hugging_face).vision_model.embeddings
    pixels = torch.zeros(1, 3, side * 7, side * 7)
    tokens = model(pixels, interpolate_pos_encoding=True)[0]
    plain = model.class_embedding.expand(1 + side * side, -1).clone()
    plain[1:] = model.patch_embedding(pixels).flatten(2).transpose(1, 2)[0]
    table = model.position_embedding.weight.detach().numpy()
    own = round((len(table) - 1) ** 0.5)
    ours = resize_positions(table, (own, own), (side, side))
    # 1e-7 apart, of values up to 0.08
    np.testing.assert_allclose(ours, (tokens - plain).detach().numpy(), rtol=0, atol=1e-6)


def test_image_size_changes_positions_and_preprocessing():
    source = qavit(image_size=98)
    assert source.vision["image_size"] == source.preprocessing["size"] == 98
    assert source.weights["vision_model.embeddings.position_embedding.weight"][2] == (50, 64)
    assert isinstance(qavit(image_size=70).weights["vision_model.embeddings.position_embedding.weight"][0], mmap.mmap)
    with pytest.raises(ValueError, match="image_size: got 71, expected a multiple of the patch size 14"):
        qavit(image_size=71)
    with pytest.raises(ValueError, match="image_size: got 14000000, expected"):
        qavit(image_size=14_000_000)


# safetensors.


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4), st.integers(0, 40))
def test_damaged_safetensors_are_read_or_refused(tmp_path_factory, prefix, changes, cut):
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}, path)
    content = bytearray(path.read_bytes())
    for position, byte in changes:
        content[position % len(content)] = byte
    content = content[: len(content) - cut]
    path.write_bytes(prefix + content if len(prefix) % 7 == 3 else content)
    try:
        for weight in open_safetensors(path).values():
            float_array(weight)
    except ValueError as err:
        if str(path) not in str(err):
            raise


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "a": {}}', "'a' appears twice"),
        ('{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}', "8 bytes do not hold float32"),
        ('{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}', "not lie inside the file's 8 bytes"),
        ('{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}', "is not a list of sizes"),
        ('{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}', "is not a list of sizes"),
        ('{"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}', "is not a list of sizes"),
        ('{"a": {"dtype": "F32", "shape": [99999999999999999999, 0], "data_offsets": [0, 8]}}', "do not hold"),
        ('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}', "do not lie inside"),
        ('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}', "are not two positions"),
        ('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}', "are not two positions"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "leaves a gap"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "end at byte 4 of 8"),
        (
            '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, '
            '"b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
            "'b' overlaps",
        ),
        ('{"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}', "dtype 'F99' is not known"),
        ('{"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}', "is not known"),
        ('{"a": 3}', "expected an object with dtype"),
        ("[1]", "expected a JSON object, got list"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a": ' + "1" * 10_000 + "}", "header"),
    ],
)
def test_hostile_safetensors_headers(header, message):
    with pytest.raises(ValueError, match=message):
        parse_header(header.encode(), 8)


def test_hostile_safetensors_files(tmp_path):
    path = tmp_path / "model.safetensors"
    for content in (
        b"1234567",
        b"\xff" * 8 + b"{}",
        (1 << 40).to_bytes(8, "little") + b"{}",
        bytes(8),
        b"\x02" + bytes(7) + b"{",
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a safetensors file, or cut short"):
            open_safetensors(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="the file is empty"):
        open_safetensors(path)
    index = tmp_path / "model.safetensors.index.json"
    shutil.copy(GOLDEN / "qavit_official_late" / "clip" / "config.json", tmp_path)
    path.unlink()
    for name in ("../model.safetensors", "/etc/passwd", "..", "", "a/b.safetensors", "a\\b", "C:x"):
        index.write_text(json.dumps({"weight_map": {"vision_model.a": name}}))
        with pytest.raises(ValueError, match="is not a plain file name"):
            open_model(vision=tmp_path)
    index.write_text(json.dumps({"weight_map": {"vision_model.a": "absent.safetensors"}}))
    with pytest.raises(FileNotFoundError):
        open_model(vision=tmp_path)
    save_file({"b": torch.ones(2)}, tmp_path / "absent.safetensors")
    with pytest.raises(ValueError, match=r"does not hold 'vision_model\.a'"):
        open_model(vision=tmp_path)


# Hub names.

HUB = """
import sys
import qavit
from qavit.checkpoints import open_model
source = open_model(vision="hf://openai/tiny-clip")
print(source.architecture, source.vision["num_hidden_layers"], len(source.weights))
model = qavit.load(checkpoint=sys.argv[1], vision="hf://openai/tiny-clip", text="hf://google/tiny-t5")
again = qavit.load("openai/tiny-clip", hub=True, revision="main")
print(again.num_blocks, model.encode_questions("where is the car?").states.shape[2])
for name in ("hf://openai/absent", "hf://openai/tiny-clip/extra", "openai/tiny-clip", "openai/typed/wrong"):
    try:
        open_model(vision=name)
    except (FileNotFoundError, ValueError) as err:
        print(type(err).__name__, err)
"""


def test_hub_names_through_a_local_cache(tmp_path):
    late = GOLDEN / "qavit_official_late"
    for name, folder in (("openai--tiny-clip", "clip"), ("google--tiny-t5", "t5")):
        snapshot = tmp_path / "hub" / f"models--{name}" / "snapshots" / ("0" * 40)
        shutil.copytree(late / folder, snapshot)
        refs = snapshot.parent.parent / "refs"
        refs.mkdir()
        (refs / "main").write_text("0" * 40)
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", HUB, str(late / "checkpoint.pth")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "clip 6 103", done.stderr
    assert lines[1] == "6 48"
    assert "FileNotFoundError vision: no model 'openai/absent' from the Hugging Face hub" in lines[2]
    assert "Download https://huggingface.co/openai/absent and give its folder" in lines[2]
    assert "ValueError vision: 'hf://openai/tiny-clip/extra' is not a name on the Hugging Face hub" in lines[3]
    assert "FileNotFoundError vision: there is no folder 'openai/tiny-clip'; " in lines[4]
    assert "say 'hf://openai/tiny-clip'" in lines[4]
    assert "there is no folder 'openai/typed/wrong'" in lines[5]


def test_hub_names_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"to fetch 'openai/clip-vit-base-patch32' .*, install huggingface_hub"):
        open_model(vision="hf://openai/clip-vit-base-patch32")


def test_a_hub_that_does_not_answer(tmp_path):
    """A server that takes no connection, and one that is no host, say so within five seconds."""
    root = Path(__file__).parent.parent
    for endpoint in ("http://127.0.0.1:9", "http://hub.invalid"):
        environment = {
            **os.environ, "PYTHONPATH": str(root), "HF_HOME": str(tmp_path), "HF_ENDPOINT": endpoint, "NO_PROXY": "*",
            "HF_HUB_OFFLINE": "0",
        }  # fmt: skip
        code = (
            "import time, huggingface_hub\nfrom qavit.checkpoints import open_model\nbegan = time.monotonic()\n"
            "try: open_model('hf://openai/absent')\n"
            "except FileNotFoundError as err: print(round(time.monotonic() - began, 1), err)"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
        seconds, _, text = done.stdout.partition(" ")
        assert float(seconds) < 5, done.stderr
        assert f"{endpoint} cannot be reached, and the model is not in the cache" in text
