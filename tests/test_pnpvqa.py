"""PNPVQAWithQAViT and QAViTHeatmapDemo beyond the usage document: settings, outputs, kinds of arrays, bad input."""

from __future__ import annotations

import copy
import json
import logging
import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_models import GOLDEN, write_qavit

import qavit
from qavit import PNPVQAWithQAViT
from qavit._heatmap_demo import QAViTHeatmapDemo, create_simple_demo_model

LATE = GOLDEN / "qavit_official_late"
QUESTIONS = ["where is the red car?", "is there a person", "what is the man holding in his right hand"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_qavit(tmp_path_factory.mktemp("model"), defaults={"block": 10})


@pytest.fixture(scope="module")
def model(folder) -> PNPVQAWithQAViT:
    return PNPVQAWithQAViT(folder)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(8).standard_normal((3, 3, 42, 42)).astype(np.float32)


def outputs_of(model: PNPVQAWithQAViT, images: Any, **asked: Any) -> Any:
    return model.qavit_vision_model(pixel_values=images, instruct_states=model.encode_questions(QUESTIONS), **asked)


# ---- settings ----


@pytest.mark.parametrize("kind", ["dict", "namespace", "config", "omegaconf"])
def test_from_config_takes_every_kind_of_node(folder, kind, caplog):
    values = {
        "arch": "pnp_vqa", "path": str(folder), "block_num": 9, "integration_point": "late", "instruction_dim": 12,
        "image_size": 42, "patch_size": 7, "offload_model": True, "gradient_checkpointing": True, "precision": None,
    }  # fmt: skip
    kinds = {"dict": dict, "namespace": SimpleNamespace, "config": qavit.Config}
    if kind == "omegaconf":
        kinds["omegaconf"] = lambda **given: pytest.importorskip("omegaconf").OmegaConf.create(given)
    with caplog.at_level(logging.INFO, logger="qavit"):
        model = PNPVQAWithQAViT.from_config(kinds[kind](**values))
    assert model.block_num == 9
    assert model.offload_model
    assert model.gradient_checkpointing
    assert model.device == "cpu"
    for word in ("arch", "offload_model changes nothing", "gradient_checkpointing changes nothing"):
        assert word in caplog.text


def test_the_example_file_describes_the_demo():
    pytest.importorskip("yaml")
    config = qavit.Config.from_file("qavit_config_example.yaml")
    model = PNPVQAWithQAViT.from_config(config.model)
    assert model.block_num is None
    assert PNPVQAWithQAViT(...).qavit.name == PNPVQAWithQAViT(None).qavit.name == model.qavit.name
    assert model.qavit.name == create_simple_demo_model().qavit.name


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"integration_point": "early"}, ValueError, "integration_point: got 'early'.*'late'"),
        ({"instruction_dim": 768}, ValueError, "instruction_dim: got 768.*12"),
        ({"patch_size": 14}, ValueError, "patch_size: got 14.*7"),
        ({"image_size": 43}, ValueError, "image_size"),
        ({"block_num": 12}, ValueError, "block_num: block 12 does not exist.*0 to 11"),
        ({"block_num": "7"}, TypeError, "block_num: expected a whole number"),
        ({"blocknum": 7}, ValueError, "config: unknown settings blocknum; expected path.*block_num"),
        ({"device": "tpu"}, ValueError, "device: expected 'cpu'.*'tpu'"),
        ({"path": 3}, TypeError, "model: expected a QAViT, 'demo' or a folder, got int"),
        ({"path": "/nowhere/at/all"}, FileNotFoundError, "nowhere"),
    ],
)
def test_settings_that_cannot_be(folder, settings, error, message):
    with pytest.raises(error, match=message):
        PNPVQAWithQAViT.from_config({"path": str(folder), **settings})


def test_an_unknown_keyword_is_a_type_error(folder):
    with pytest.raises(TypeError, match="unexpected keyword argument 'blocknum'"):
        PNPVQAWithQAViT(folder, blocknum=7)


def test_another_image_size_is_loaded(folder):
    model = PNPVQAWithQAViT(folder, image_size=56)
    maps = model.forward_itm({"image": np.zeros((1, 3, 56, 56), np.float32), "text_input": "where?"})
    assert maps.shape == (1, 64)


def test_a_loaded_model_is_taken_as_it_is(model):
    again = PNPVQAWithQAViT(model.qavit, block_num=-1)
    assert again.qavit is model.qavit
    assert again.block_num == 11
    with pytest.raises(ValueError, match="vision: given together with a loaded model"):
        PNPVQAWithQAViT(model.qavit, vision="folder")
    with pytest.raises(ValueError, match=r"image_size: got 336.*42"):
        PNPVQAWithQAViT(model.qavit, image_size=336)


def test_models_without_questions_are_refused():
    with pytest.raises(ValueError, match="plain CLIP"):
        PNPVQAWithQAViT(vision=LATE / "clip")
    cases = json.loads((GOLDEN / "blip_itm/cases.json").read_text())
    files = {"checkpoint": GOLDEN / "blip_itm/checkpoint.pth", "tokenizer": GOLDEN / "blip_itm/vocab.txt"}
    sizes = {"text": cases["med_config"], "vision": cases["vit"]}
    with pytest.raises(ValueError, match=r"holds a BlipITM.*qavit\.lavis"):
        PNPVQAWithQAViT(**files, config=sizes)
    with pytest.raises(TypeError, match="got BlipITM; a BlipITM has forward_itm itself"):
        PNPVQAWithQAViT(qavit.load(**files, config=sizes))


def test_devices(model):
    assert model.to("cpu") is model
    assert model.to() is model
    assert model.eval() is model
    assert model.train(False) is model
    assert model.cpu() is model
    with pytest.raises(ValueError, match="inference only"):
        model.train()
    if not qavit.build_info()["cuda"]:
        for ask in (model.cuda, lambda: model.to("cuda:0"), lambda: PNPVQAWithQAViT(model.qavit, device="cuda")):
            with pytest.raises(RuntimeError, match="no CUDA"):
                ask()
    torch = pytest.importorskip("torch")
    assert model.to(torch.device("cpu")) is model
    assert torch.zeros(1).to(model.device).device.type == "cpu"


# ---- maps ----


@pytest.mark.every_level
def test_maps_are_the_public_codes():
    golden = np.load(LATE / "golden.npz")
    sources = {"vision": LATE / "clip", "text": LATE / "t5", "checkpoint": LATE / "checkpoint.pth"}
    cases = json.loads((LATE / "cases.json").read_text())
    config = {"integration_point": cases["integration_point"], "lora_alpha": cases["lora_alpha"]}
    model = PNPVQAWithQAViT.from_config({**sources, "config": config})
    for block in (4, 5):
        maps = model.forward_itm({"image": golden["image"], "text_input": cases["questions"]}, block_num=block)
        for i in range(3):
            row = golden[f"q{i}_attn{block}"][0, :, 0, -25:].mean(axis=0)
            # Observed: 2e-7.
            np.testing.assert_allclose(maps[i], row / row.sum(), atol=1e-6)


def test_the_block_that_is_read(folder, model, images):
    samples = {"image": images, "text_input": QUESTIONS}
    default = model.forward_itm(samples)
    np.testing.assert_array_equal(default, model.forward_itm(samples, block_num=7))
    np.testing.assert_array_equal(default, model.forward_itm(samples, 7))
    np.testing.assert_array_equal(PNPVQAWithQAViT(folder, block_num=9).forward_itm(samples), model.forward_itm(samples, 9))
    np.testing.assert_array_equal(model.forward_itm(samples, -3), model.forward_itm(samples, 9))
    outputs = outputs_of(model, images)
    np.testing.assert_array_equal(model.extract_qavit_attention(outputs), default)
    for bad in (12, -13):
        with pytest.raises(ValueError, match=rf"block_num: block {bad} does not exist"):
            model.forward_itm(samples, block_num=bad)


def test_a_batch_gives_what_each_pair_gives_alone(model, images):
    together = model.forward_itm({"image": images, "text_input": QUESTIONS}, 9)
    for i, question in enumerate(QUESTIONS):
        alone = model.forward_itm({"image": images[i : i + 1], "text_input": question}, 9)
        np.testing.assert_allclose(alone[0], together[i], atol=1e-6)


def test_a_blind_block_warns_where_the_caller_stands(model, images):
    samples = {"image": images, "text_input": QUESTIONS}
    outputs = outputs_of(model, images)
    for call in (
        lambda: model.forward_itm(samples, block_num=3),
        lambda: model.extract_qavit_attention(outputs, 6),
    ):
        with pytest.warns(qavit.QuestionBlindWarning) as caught:
            maps = call()
        assert [os.path.basename(one.filename) for one in caught] == ["test_pnpvqa.py"]
        np.testing.assert_allclose(maps.sum(axis=1), 1.0, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.forward_itm(samples, block_num=7)
        model.multi_scale_attention(outputs)


def test_only_what_is_read_is_computed(folder, images, monkeypatch):
    model = PNPVQAWithQAViT(folder)
    passes = []
    run = model.qavit._run

    def counted(pixels: Any, states: Any, mask: Any, attention: Any, *more: Any, **named: Any) -> Any:
        passes.append(list(attention))
        return run(pixels, states, mask, attention, *more, **named)

    monkeypatch.setattr(model.qavit, "_run", counted)
    model.forward_itm({"image": images, "text_input": QUESTIONS})
    assert passes == [[(7, "class")]]
    passes.clear()
    outputs = outputs_of(model, images, output_attentions=True)
    assert passes == []
    model.multi_scale_attention(outputs)
    assert passes == [[(3, "class"), (7, "class"), (11, "class")]]
    passes.clear()
    assert outputs.attentions[9] is outputs.attentions[9]
    assert passes == [[(9, "raw")]]
    assert len(list(outputs.attentions)) == 12
    assert [len(blocks) for blocks in passes] == [1, 11]


def test_outputs_are_those_of_the_model(model, images):
    encoded = model.encode_questions(QUESTIONS)
    expected = model.qavit.vision(images, encoded, output_attentions=True, output_hidden_states=True)
    outputs = outputs_of(model, images, output_attentions=True, output_hidden_states=True)
    np.testing.assert_allclose(outputs.last_hidden_state, expected.last_hidden_state, atol=1e-5)
    np.testing.assert_allclose(outputs.pooler_output, expected.pooler_output, atol=1e-5)
    assert len(outputs.hidden_states) == 13
    for level in range(13):
        np.testing.assert_allclose(outputs.hidden_states[level], expected.hidden_states[level], atol=1e-5)
    assert len(outputs.attentions) == 12
    tokens = encoded.states.shape[1]
    for block in range(12):
        attention = outputs.attentions[block]
        np.testing.assert_allclose(attention, expected.attentions[block], atol=1e-5)
        assert attention.shape == (3, 2, 37, 37 + (tokens if block >= 6 else 0))
        np.testing.assert_allclose(attention.sum(axis=-1), 1.0, atol=1e-5)
    assert outputs.attentions[-1] is outputs.attentions[11]
    assert [one.shape for one in outputs.attentions[4:8]] == [outputs.attentions[i].shape for i in (4, 5, 6, 7)]
    for index in (12, -13):
        with pytest.raises(IndexError, match="0 to 11"):
            outputs.attentions[index]
    plain = outputs_of(model, images)
    assert plain.hidden_states is None
    with pytest.raises(ValueError, match="output_attentions=True"):
        plain.attentions  # noqa: B018


def test_states_and_masks_may_be_bare_arrays(model, images):
    states, mask = model.encode_questions(QUESTIONS)
    whole = model.extract_qavit_attention(outputs_of(model, images), 9)
    bare = model.qavit_vision_model(images, states, mask)
    np.testing.assert_array_equal(model.extract_qavit_attention(bare, 9), whole)
    unmasked = model.extract_qavit_attention(model.qavit_vision_model(images, states), 9)
    assert np.abs(unmasked - whole).max() > 1e-4


def test_what_the_caller_owns_is_neither_changed_nor_followed(model, images):
    given = images.copy()
    states, mask = (part.copy() for part in model.encode_questions(QUESTIONS))
    outputs = model.qavit_vision_model(given, states, mask)
    given[:], states[:], mask[:] = 0.0, 0.0, 0
    np.testing.assert_array_equal(
        model.extract_qavit_attention(outputs, 9), model.extract_qavit_attention(outputs_of(model, images), 9)
    )
    samples = {"image": images, "text_input": list(QUESTIONS), "more": 1}
    before = copy.deepcopy(samples)
    images.setflags(write=False)
    try:
        model.forward_itm(samples)
    finally:
        images.setflags(write=True)
    assert list(samples) == [*before, "gradcams"]
    assert samples["text_input"] == before["text_input"]
    np.testing.assert_array_equal(samples["image"], before["image"])


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({"text_input": QUESTIONS}, "samples: expected a mapping with 'image'"),
        ({"image": np.zeros((3, 3, 42, 42), np.float32)}, "'text_input'"),
        (None, "samples: expected a mapping"),
        ({"image": np.zeros((2, 3, 42, 42), np.float32), "text_input": QUESTIONS}, "2 pictures and 3 questions"),
        ({"image": np.zeros((3, 3, 40, 42), np.float32), "text_input": QUESTIONS}, r"expected \[B, 3, 42, 42\]"),
        ({"image": np.zeros((3, 1, 42, 42), np.float32), "text_input": QUESTIONS}, "42"),
        ({"image": np.full((3, 3, 42, 42), np.nan, np.float32), "text_input": QUESTIONS}, "NaN|finite"),
        ({"image": np.zeros((0, 3, 42, 42), np.float32), "text_input": []}, r"samples\['text_input'\]: the list is empty"),
        ({"image": np.zeros((1, 3, 42, 42), np.float32), "text_input": ["!!"]}, "no words"),
    ],
)
def test_bad_samples(model, samples, message):
    with pytest.raises((ValueError, TypeError), match=message):
        model.forward_itm(samples)


# ---- torch ----


def test_tensors_of_every_sort(model, images):
    torch = pytest.importorskip("torch")
    expected = model.forward_itm({"image": images, "text_input": QUESTIONS}, 9)
    tensor = torch.from_numpy(images)
    strided = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 2, 3, 1))).permute(0, 3, 1, 2)
    for given in (tensor, strided, tensor.double(), tensor.clone().requires_grad_(), torch.nn.Parameter(tensor)):
        maps = model.forward_itm({"image": given, "text_input": QUESTIONS}, 9)
        assert maps.dtype == torch.float32
        assert not maps.requires_grad
        np.testing.assert_allclose(maps.cpu().numpy(), expected, atol=1e-6)
    half = model.forward_itm({"image": tensor.bfloat16(), "text_input": QUESTIONS}, 9)
    np.testing.assert_allclose(half.numpy(), expected, atol=0.05)


def test_a_list_of_tensors_is_a_batch(model, images):
    torch = pytest.importorskip("torch")
    expected = model.forward_itm({"image": images, "text_input": QUESTIONS}, block_num=9)
    given = [torch.tensor(image, requires_grad=True) for image in images]
    maps = model.forward_itm({"image": given, "text_input": QUESTIONS}, block_num=9)
    assert isinstance(maps, torch.Tensor)
    np.testing.assert_array_equal(maps.numpy(), expected)


def test_blocks_that_are_no_blocks(model, images, tmp_path):
    outputs = outputs_of(model, images, output_attentions=True)
    own = model.qavit.vision(images, model.encode_questions(QUESTIONS), blocks=[2])
    assert repr(own.attentions) == "BlockAttentions(blocks [2] of 12)"
    for attentions in (outputs.attentions, own.attentions):
        for index in ("2", 2.0, True):
            with pytest.raises(TypeError, match="attentions: expected a whole number"):
                attentions[index]
    with pytest.raises(TypeError, match="blocks: expected several whole numbers, got int"):
        model.multi_scale_attention(outputs, blocks=9)
    with pytest.raises(TypeError, match="blocks: expected several whole numbers, got int"):
        QAViTHeatmapDemo(model).demo_single_image(np.zeros((9, 9, 3), np.uint8), "where?", tmp_path / "new", blocks=9)
    assert not (tmp_path / "new").exists()


def test_outputs_are_tensors_where_anything_was(model, images):
    torch = pytest.importorskip("torch")
    states, mask = (torch.from_numpy(np.array(part)) for part in model.encode_questions(QUESTIONS))
    asked = {"output_attentions": True, "output_hidden_states": True}
    for pixels, question in ((torch.from_numpy(images), states.numpy()), (images, states)):
        outputs = model.qavit_vision_model(pixels, question, mask, **asked)
        parts = (outputs.attentions[9], outputs.last_hidden_state, outputs.pooler_output, outputs.hidden_states[3])
        assert all(isinstance(part, torch.Tensor) and part.dtype == torch.float32 for part in parts)
    maps = model.multi_scale_attention(outputs)
    assert isinstance(maps, torch.Tensor)
    assert tuple(maps.shape) == (3, 3, 36)
    other = SimpleNamespace(attentions=tuple(outputs.attentions))
    np.testing.assert_allclose(model.extract_qavit_attention(other, 11), maps[2], atol=1e-6)
    in_numpy = SimpleNamespace(attentions=[one.numpy() for one in outputs.attentions])
    assert type(model.extract_qavit_attention(in_numpy, 11)) is np.ndarray


# ---- the demo ----


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "a picture.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(path)
    return path


def test_demo_of_one_picture(model, picture, tmp_path):
    demo = QAViTHeatmapDemo(model)
    question = "Where is 红色 car, please?"
    entry = demo.demo_single_image(picture, question, tmp_path / "made" / "here")
    assert entry["block_num"] == model.qavit.default_block
    np.testing.assert_allclose(entry["attention_map"], model.qavit.heatmaps(picture, question).maps[0], atol=1e-6)
    assert entry["statistics"] == demo.analyze_attention_statistics(entry["attention_map"])
    assert entry["result"].questions == [question]
    assert set(entry["files"]) == {"original", "heatmap", "overlay", "patches", "panels", "blocks"}
    for path in entry["files"].values():
        assert path.parent == tmp_path / "made" / "here"
        assert "where_is_红色_car_please" in path.name
        assert Image.open(path).size[0] > 200
    assert "blocks_3_7_10_11" in entry["files"]["blocks"].name


@pytest.mark.filterwarnings("ignore::qavit.QavitWarning")
def test_demo_keeps_what_is_said_of_picture_and_questions(picture):
    demo, photograph = QAViTHeatmapDemo(create_simple_demo_model()), np.asarray(Image.open(picture))
    for question in ("汽车在哪里？", "where is the car?"):
        expected = demo.model.qavit.heatmaps(photograph, question, block=7).notes
        assert "unknown_words" in {note.kind for note in expected}
        assert len(expected) >= 2  # of the picture, too
        (entry,) = demo.demo_multiple_questions(photograph, [question], block_num=7)
        assert sorted(map(repr, entry["result"].notes)) == sorted(map(repr, expected))


def test_demo_of_several_questions(model, picture, tmp_path):
    demo = QAViTHeatmapDemo(model.qavit, device="cpu")
    same = [QUESTIONS[0], QUESTIONS[1], QUESTIONS[0]]
    entries = demo.demo_multiple_questions(str(picture), same, tmp_path / "out", block_num=8, blocks=(7, 50))
    assert [entry["question"] for entry in entries] == same
    np.testing.assert_array_equal(entries[0]["attention_map"], entries[2]["attention_map"])
    overlays = {entry["files"]["overlay"] for entry in entries}
    assert len(overlays) == 3
    assert len({entry["files"]["questions"] for entry in entries}) == 1
    assert entries[0]["files"]["blocks"].name.endswith("blocks_7_8.png")
    assert all(path.is_file() for entry in entries for path in entry["files"].values())
    assert demo.demo_multiple_questions(picture, QUESTIONS)[0]["files"] == {}


def test_demo_reads_what_the_config_says(folder, picture):
    demo = QAViTHeatmapDemo(PNPVQAWithQAViT(folder, block_num=8))
    assert demo.demo_single_image(picture, "where?")["block_num"] == 8


def test_demo_refuses(model, picture, tmp_path):
    with pytest.raises(TypeError, match="model: expected a PNPVQAWithQAViT or a QAViT, got str"):
        QAViTHeatmapDemo("demo")
    demo = QAViTHeatmapDemo(model)
    with pytest.raises(TypeError, match="question: expected a str, got list"):
        demo.demo_single_image(picture, QUESTIONS)
    with pytest.raises(FileNotFoundError, match="absent"):
        demo.demo_single_image(tmp_path / "absent.png", "where?")
    with pytest.raises(ValueError, match="questions"):
        demo.demo_multiple_questions(picture, [])
    with pytest.raises(ValueError, match=r"attention_map|values"):
        demo.analyze_attention_statistics([])
