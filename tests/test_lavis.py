"""The LAVIS door: PnP-VQA's matching step replaced in place, compute_gradcam, and weights from a live module."""

from __future__ import annotations

import gc
import json
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_models import MEAN, STD, write_qavit

import qavit
from qavit import lavis
from qavit.answers import _grids as lavis_grids
from qavit.lavis import _matcher as lavis_matcher
from qavit.lavis import _replace as lavis_replace

torch = pytest.importorskip("torch")

GOLDEN = Path(__file__).parent / "data" / "golden" / "blip_itm"
CASES = json.loads((GOLDEN / "cases.json").read_text())
QUESTIONS = CASES["questions"]
# Observed against the public code's numbers: 9e-6 of a map's largest value, 2e-6 of the largest logit.
MAPS = 5e-5
LOGITS = 1e-5


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "golden.npz"))


@pytest.fixture(scope="module")
def images(golden) -> Any:
    pixels = golden["image_u8"].transpose(0, 3, 1, 2).astype(np.float32).repeat(8, axis=2).repeat(8, axis=3) / 255
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
    return torch.from_numpy((pixels - mean) / std)


@pytest.fixture(scope="module")
def matcher() -> Any:
    return qavit.load(
        checkpoint=GOLDEN / "checkpoint.pth",
        tokenizer=GOLDEN / "vocab.txt",
        config={"text": CASES["med_config"], "vision": CASES["vit"], "max_txt_len": CASES["max_txt_len"]},
    )


@pytest.fixture(scope="module")
def question_aware(tmp_path_factory) -> Any:
    """A QA-ViT of 12 blocks and a 6 x 6 grid."""
    return qavit.load(write_qavit(tmp_path_factory.mktemp("qavit")))


class Captioner(torch.nn.Module):
    """What forward_cap needs of a captioner: patches of its image embeddings, found by number."""

    def __init__(self, size: int = 384, patch: int = 16) -> None:
        super().__init__()
        self.visual_encoder = torch.nn.Module()
        self.visual_encoder.patch_embed = torch.nn.Conv2d(3, 4, patch, patch)
        self.visual_encoder.patch_embed.img_size = (size, size)
        self.visual_encoder.patch_embed.patch_size = (patch, patch)

    def forward_encoder(self, samples: dict[str, Any]) -> Any:
        patches = self.visual_encoder.patch_embed(samples["image"]).flatten(2).transpose(1, 2)
        return torch.cat([patches[:, :1] * 0, patches], dim=1)


class PnpVqa(torch.nn.Module):
    """The flow of PnP-VQA: matching, patches drawn by the map, their embeddings gathered, an answer."""

    def __init__(self, size: int = 384, patch: int = 16) -> None:
        super().__init__()
        self.image_question_matching_model = torch.nn.Linear(1, 1)
        self.image_captioning_model = Captioner(size, patch)
        self.drawn: list[Any] = []

    def forward_itm(self, samples: dict[str, Any], block_num: int = 7) -> dict[str, Any]:
        samples["gradcams"] = None
        return samples

    def forward_cap(self, samples: dict[str, Any], num_patches: int = 20) -> dict[str, Any]:
        embeddings = self.image_captioning_model.forward_encoder(samples)
        numbers = torch.multinomial(samples["gradcams"], num_patches).reshape(embeddings.size(0), -1) + 1
        self.drawn.append(numbers)
        index = numbers.sort(dim=1).values.unsqueeze(-1).expand(-1, -1, embeddings.size(2))
        samples["captions"] = torch.gather(embeddings, 1, index)
        return samples

    @torch.no_grad()
    def predict_answers(self, samples: dict[str, Any], num_patches: int = 20, block_num: int = 7) -> Any:
        samples = self.forward_itm(samples, block_num=block_num)
        samples = self.forward_cap(samples, num_patches=num_patches)
        return [f"{len(caption)} patches" for caption in samples["captions"]], samples["gradcams"]


def relative(found: Any, expected: Any) -> float:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_blip_maps_go_through_the_pipeline(matcher, golden, images):
    model = PnpVqa()
    handle = lavis_replace.replace_forward_itm(model, matcher)
    samples = {"image": images, "text_input": list(QUESTIONS), "extra": object()}
    before = images.clone()
    for block in (0, 4, 7):
        given = dict(samples)
        out = model.forward_itm(given, block_num=block)
        assert out is given
        maps = out["gradcams"]
        assert maps.dtype == torch.float32
        assert maps.device.type == "cpu"
        assert not maps.requires_grad
        assert relative(maps, golden[f"gradcams_block{block}"]) < MAPS
        assert (maps > 0).all()
    arrays = model.forward_itm({"image": images.numpy(), "text_input": list(QUESTIONS)}, block_num=7)["gradcams"]
    assert isinstance(arrays, np.ndarray)  # NumPy in, NumPy out
    assert np.array_equal(arrays, maps.numpy())
    answers, maps = model.predict_answers(samples, num_patches=400)
    assert answers == ["400 patches"] * 3
    assert relative(maps, golden["gradcams_block7"]) < MAPS
    assert all(len(set(row.tolist())) == 400 for row in model.drawn[-1])
    assert torch.equal(samples["image"], before)
    assert samples["text_input"] == QUESTIONS
    handle.restore()
    assert model.forward_itm({})["gradcams"] is None


def test_the_last_block_is_refused_by_name(matcher, images):
    model = PnpVqa()
    with lavis_replace.replace_forward_itm(model, matcher), pytest.raises(ValueError, match=r"block_num.*0 to 7"):
        model.forward_itm({"image": images, "text_input": QUESTIONS}, block_num=8)
    with pytest.raises(ValueError, match="block_num"):
        lavis_replace.replace_forward_itm(model, matcher, block_num=8)
    assert "forward_itm" not in vars(model)


def test_a_question_aware_matcher_of_another_grid(question_aware, images):
    model = PnpVqa()
    with lavis_replace.replace_forward_itm(model, question_aware, block_num=9):
        answers, maps = model.predict_answers({"image": images, "text_input": list(QUESTIONS)}, num_patches=576)
    assert answers == ["576 patches"] * 3
    assert maps.shape == (3, 576)
    assert (maps > 0).all()
    np.testing.assert_allclose(maps.sum(dim=1), 1.0, atol=1e-5)
    # The images reach the matcher as they would resized beforehand, and its own map is what the captioner's cells add up to.
    small = lavis_grids.fit_images(images.numpy(), question_aware)
    own = qavit.forward_itm(question_aware, {"image": small, "text_input": QUESTIONS}, block_num=9)
    cells = maps.numpy().reshape(3, 6, 4, 6, 4).sum(axis=(2, 4)).reshape(3, 36)
    np.testing.assert_allclose(cells, own, atol=1e-6)


def test_a_blind_block_warns(question_aware, images):
    model = PnpVqa()
    samples = {"image": images[:1], "text_input": QUESTIONS[:1]}
    with lavis_replace.replace_forward_itm(model, question_aware), pytest.warns(qavit.QuestionBlindWarning, match="block 3"):
        model.forward_itm(samples, block_num=3)


def test_one_question_may_be_a_str(matcher, golden, images):
    model = PnpVqa()
    with lavis_replace.replace_forward_itm(model, matcher):
        maps = model.forward_itm({"image": images[:1], "text_input": QUESTIONS[0]})["gradcams"]
    assert relative(maps, golden["single0_block7"]) < MAPS


@pytest.mark.parametrize("question", ["", "???", "where " * 60])
def test_questions_that_break_lavis(matcher, images, question):
    model = PnpVqa()
    with lavis_replace.replace_forward_itm(model, matcher):
        answers, maps = model.predict_answers({"image": images[:1], "text_input": [question]})
    assert answers == ["20 patches"]
    assert torch.isfinite(maps).all()


def test_nothing_stays_behind_after_a_call(matcher, images):
    model = PnpVqa()
    samples = {"image": images, "text_input": list(QUESTIONS)}
    with lavis_replace.replace_forward_itm(model, matcher):
        with torch.enable_grad():
            first = model.forward_itm(dict(samples))["gradcams"]
        with torch.no_grad():
            second = model.forward_itm(dict(samples))["gradcams"]
    assert torch.equal(first, second)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_restoring(matcher):
    model = PnpVqa()
    own = model.forward_itm
    handle = lavis_replace.replace_forward_itm(model, matcher)
    later = lavis_replace.replace_forward_itm(model, matcher, block_num=3)
    with pytest.raises(RuntimeError, match="restore the later"):
        handle.restore()
    later.restore()
    assert vars(model)["forward_itm"] is handle
    handle.restore()
    handle.restore()
    assert model.forward_itm == own
    assert PnpVqa.forward_itm is own.__func__


def test_a_replaced_model_is_freed(matcher):
    model = PnpVqa()
    lavis_replace.replace_forward_itm(model, matcher)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def encoder(**attributes: Any) -> SimpleNamespace:
    return SimpleNamespace(visual_encoder=SimpleNamespace(**attributes))


@pytest.mark.parametrize(
    ("captioner", "grid"),
    [
        (encoder(pos_embed=np.zeros((1, 901, 8))), (30, 30)),
        (encoder(patch_embed=SimpleNamespace(img_size=480, patch_size=16)), (30, 30)),
        (encoder(patch_embed=SimpleNamespace(img_size=(96, 64), patch_size=(16, 16))), (6, 4)),
        (None, (6, 6)),
    ],
)
def test_the_captioners_grid(question_aware, captioner, grid):
    model = SimpleNamespace(forward_itm=lambda samples: samples)
    if captioner is not None:
        model.image_captioning_model = captioner
    assert lavis_replace.replace_forward_itm(model, question_aware).grid == grid
    assert lavis_replace.replace_forward_itm(model, question_aware, grid=(3, 5)).grid == (3, 5)


def test_bad_arguments_of_the_replacement(matcher, question_aware, images):
    with pytest.raises(TypeError, match="pnp_vqa_model: expected an object with forward_itm, got object"):
        lavis_replace.replace_forward_itm(object(), matcher)
    with pytest.raises(TypeError, match="matcher: expected"):
        lavis_replace.replace_forward_itm(PnpVqa(), None)
    with pytest.raises(ValueError, match="block_num: block 12"):
        lavis_replace.replace_forward_itm(PnpVqa(), question_aware, block_num=12)
    with pytest.raises(ValueError, match="grid: expected"):
        lavis_replace.replace_forward_itm(PnpVqa(), question_aware, grid=(0, 3))
    nowhere = SimpleNamespace(forward_itm=print, image_captioning_model=object())
    with pytest.raises(ValueError, match=r"grid=\(rows, columns\)"):
        lavis_replace.replace_forward_itm(nowhere, matcher)
    model = PnpVqa()
    with lavis_replace.replace_forward_itm(model, matcher):
        for samples in ({"image": images}, {"text_input": QUESTIONS}, None):
            with pytest.raises(ValueError, match="samples"):
                model.forward_itm(samples)
        with pytest.raises(ValueError, match="3 pictures and 1 questions"):
            model.forward_itm({"image": images, "text_input": ["where?"]})
        with pytest.raises(ValueError, match=r"expected floats \[B, 3, H, W\]"):
            model.forward_itm({"image": images[:, 0, 0], "text_input": QUESTIONS})
        with pytest.raises(ValueError, match="1 pictures and 3 questions"):
            model.forward_itm({"image": images[0], "text_input": QUESTIONS})


def test_resampling_keeps_sums_and_places():
    random = np.random.default_rng(2)
    maps = random.random((4, 7, 5)).astype(np.float32)
    for grid in ((14, 10), (3, 2), (24, 24), (7, 5), (1, 1), (16, 3)):
        out = lavis_grids.resample_mass(maps, grid)
        assert out.shape == (4, *grid)
        assert out.dtype == np.float32
        np.testing.assert_allclose(out.sum(axis=(1, 2)), maps.sum(axis=(1, 2)), rtol=1e-6)
        assert (out >= 0).all()
    np.testing.assert_array_equal(lavis_grids.resample_mass(maps, (7, 5)), maps)
    np.testing.assert_allclose(lavis_grids.resample_mass(maps, (14, 10)), np.kron(maps, np.full((2, 2), 0.25)), rtol=1e-6)
    one = np.zeros((1, 4, 4), np.float32)
    one[0, 1, 2] = 1.0
    np.testing.assert_allclose(lavis_grids.resample_mass(one, (2, 2))[0], [[0, 1], [0, 0]])
    # Cell 2 of 4 covers 0.5 to 0.75 of the side: 1/6 of the side in the middle third, the rest in the last.
    np.testing.assert_allclose(lavis_grids.resample_mass(one, (1, 3))[0], [[0, 2 / 3, 1 / 3]], atol=1e-6)


def test_every_entry_can_be_drawn():
    maps = np.zeros((3, 30), np.float32)
    maps[0, 4] = 2.0
    maps[1] = np.linspace(0.0, 1e-30, 30)
    with pytest.warns(UserWarning, match=r"maps \[2\] of the batch are zero"):
        out = lavis_grids.drawable(maps)
    assert (out > 0).all()
    assert out[0, 4] == 2.0
    assert out[0].sum() == pytest.approx(2.0, rel=1e-6)
    np.testing.assert_array_equal(out[2], np.float32(1 / 30))
    assert not maps[2].any()
    for _ in range(5):
        drawn = torch.multinomial(torch.from_numpy(out), 30)
        assert all(len(set(row.tolist())) == 30 for row in drawn)
    full = np.random.default_rng(1).random((2, 9)).astype(np.float32) + 0.1
    np.testing.assert_array_equal(lavis_grids.drawable(full), full)


def test_images_are_resized_as_pillow_does_and_normalised_anew(tmp_path):
    from PIL import Image

    random = np.random.default_rng(4)
    pictures = random.random((2, 3, 60, 45)).astype(np.float32)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
    other = qavit.load(write_qavit(tmp_path, blocks=2, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 0.2)))
    out = lavis_grids.fit_images((pictures - mean) / std, other)
    assert out.shape == (2, 3, 42, 42)
    for b in range(2):
        for c, (m, s) in enumerate(zip((0.5, 0.5, 0.5), (0.25, 0.5, 0.2))):
            resized = np.asarray(Image.fromarray(pictures[b, c]).resize((42, 42), Image.BICUBIC))
            np.testing.assert_allclose(out[b, c], (resized - m) / s, atol=1e-5)


def test_compute_gradcam_is_lavis_own(matcher, golden, images):
    maps, logits = lavis_matcher.compute_gradcam(matcher, images, [q.strip("?") for q in QUESTIONS], None, block_num=7)
    assert isinstance(logits, torch.Tensor)
    assert relative(logits, golden["itm_logits"]) < LOGITS
    for i, stack in enumerate(maps):
        assert stack.dtype == torch.float32
        assert tuple(stack.shape) == (18, 24, 24)
        assert relative(stack.reshape(18, -1), golden[f"tokens{i}_block7"]) < MAPS
    in_numpy, _ = lavis_matcher.compute_gradcam(matcher, images.numpy(), [q.strip("?") for q in QUESTIONS], block_num=7)
    for array, stack in zip(in_numpy, maps):
        assert type(array) is np.ndarray
        np.testing.assert_array_equal(array, stack)
    with pytest.raises(ValueError, match="0 to 7"):
        lavis_matcher.compute_gradcam(matcher, images, QUESTIONS, None, block_num=8)
    with pytest.raises(TypeError, match="model: expected BLIP, BLIP-2, ALBEF or"):
        lavis_matcher.compute_gradcam(object(), images, QUESTIONS, None)


class Module(torch.nn.Module):
    """A torch module with the names and attributes of LAVIS's blip_image_text_matching, from a state dict."""

    def __init__(self, state: dict[str, Any], tokenizer: Any) -> None:
        super().__init__()
        for name, tensor in state.items():
            *path, last = name.split(".")
            inner = self
            for part in path:
                if not hasattr(inner, part):
                    inner.add_module(part, torch.nn.Module())
                inner = getattr(inner, part)
            if tensor.is_floating_point():
                inner.register_parameter(last, torch.nn.Parameter(tensor.clone()))
            else:
                inner.register_buffer(last, tensor.clone())
        self.visual_encoder.blocks = torch.nn.ModuleList(self.visual_encoder.blocks.children())
        for block in self.visual_encoder.blocks:
            block.attn.num_heads = CASES["vit"]["num_heads"]
        self.visual_encoder.norm.eps = 1e-6
        self.text_encoder.config = SimpleNamespace(**CASES["med_config"])
        self.max_txt_len = CASES["max_txt_len"]
        self.tokenizer = tokenizer


def slow_tokenizer() -> SimpleNamespace:
    """The parts of transformers' slow BertTokenizer that are looked at."""
    lines = (GOLDEN / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return SimpleNamespace(vocab={token: number for number, token in enumerate(lines)}, do_lower_case=True)


@pytest.fixture
def module() -> Module:
    state = torch.load(GOLDEN / "checkpoint.pth", map_location="cpu", weights_only=True)["model"]
    return Module(state, slow_tokenizer())


def test_weights_of_a_live_module(module, golden, images):
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    live = lavis.from_lavis(module)
    maps = live.forward_itm({"image": images, "text_input": QUESTIONS}, block_num=7)
    assert relative(maps, golden["gradcams_block7"]) < MAPS
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    other = lavis.from_lavis(module, tokenizer=GOLDEN / "vocab.txt")
    np.testing.assert_array_equal(other.forward_itm({"image": images, "text_input": QUESTIONS}, block_num=7), maps)
    del module
    gc.collect()
    np.testing.assert_array_equal(live.forward_itm({"image": images, "text_input": QUESTIONS}, block_num=7), maps)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_weights_of_other_dtypes(module, golden, images, dtype):
    live = lavis.from_lavis(module.to(getattr(torch, dtype)))
    maps = live.forward_itm({"image": images, "text_input": QUESTIONS}, block_num=7)
    # Observed: 5e-3 for float16, 2e-2 for bfloat16: the weights themselves are rounded.
    assert relative(maps, golden["gradcams_block7"]) < {"float16": 3e-2, "bfloat16": 1e-1, "float64": MAPS}[dtype]


def test_a_tokenizer_of_transformers(module, golden, images):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.BertTokenizer(str(GOLDEN / "vocab.txt"))
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    module.tokenizer = tokenizer
    maps = lavis.from_lavis(module).forward_itm({"image": images, "text_input": QUESTIONS}, block_num=7)
    assert relative(maps, golden["gradcams_block7"]) < MAPS


def test_compute_gradcam_takes_a_live_module_and_sees_its_weights_change(module, golden, images):
    questions = [q.strip("?") for q in QUESTIONS]
    maps, _ = lavis_matcher.compute_gradcam(module, images, questions, None, block_num=7)
    assert relative(maps[0].reshape(18, -1), golden["tokens0_block7"]) < MAPS
    known = lavis_matcher._matcher_of(module)
    assert lavis_matcher._matcher_of(module) is known
    with torch.no_grad():
        module.itm_head.weight.mul_(2.0)
    doubled, logits = lavis_matcher.compute_gradcam(module, images, questions, None, block_num=7)
    assert lavis_matcher._matcher_of(module) is not known
    assert relative(doubled[0], 2 * maps[0].numpy()) < MAPS
    assert not logits.requires_grad
    gone = weakref.ref(module)
    del module, known
    gc.collect()
    assert gone() is None or sys.getrefcount(gone()) > 2


def test_modules_that_are_no_such_module(module):
    with pytest.raises(TypeError, match="module: expected a torch module of a matcher"):
        lavis.from_lavis(torch.nn.Linear(2, 2))
    module.tokenizer = None
    with pytest.raises(ValueError, match="tokenizer: the module has none"):
        lavis.from_lavis(module)
    del module.itm_head
    with pytest.raises(TypeError, match="Module"):
        lavis.from_lavis(module)


def test_a_live_module_of_hugging_face():
    transformers = pytest.importorskip("transformers", minversion="4.40")
    vision = {
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 48,
        "patch_size": 16,
    }  # fmt: skip
    text = {
        "vocab_size": 123, "hidden_size": 32, "encoder_hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 40, "bos_token_id": 121, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(3)
    config = transformers.BlipConfig(vision_config=vision, text_config=text, image_text_hidden_size=8)
    module = transformers.BlipForImageTextRetrieval(config).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    live = lavis.from_lavis(module, tokenizer=GOLDEN / "vocab.txt")
    pixels = torch.randn(1, 3, 48, 48)
    tokens = live._tokenize(["where is the man"])
    with torch.no_grad():
        ids, mask = torch.from_numpy(tokens.ids).long(), torch.from_numpy(tokens.mask).long()
        expected = module(input_ids=ids, pixel_values=pixels, attention_mask=mask, use_itm_head=True)[0]
    logits, _ = live.itm(pixels.numpy(), ["where is the man"])
    # Observed: 1.2e-7.
    assert relative(logits, expected) < 1e-6
    with pytest.raises(ValueError, match="tokenizer: the module has none"):
        lavis.from_lavis(module)


# ---- captioners ----

CAPTION = GOLDEN.parent / "blip_caption"
CAPTION_CASES = json.loads((CAPTION / "cases.json").read_text())


def live_captioner() -> Any:
    """A torch module with the names and attributes of LAVIS's blip_caption."""
    state = torch.load(CAPTION / "checkpoint.pth", map_location="cpu", weights_only=True)["model"]
    state["text_encoder.nothing"] = torch.zeros(1)  # which Module gives its settings to
    module: Any = Module(state, None)
    del module.text_encoder
    module.text_decoder.config = SimpleNamespace(**CAPTION_CASES["med_config"])
    for block in module.visual_encoder.blocks:
        block.attn.num_heads = CAPTION_CASES["vit"]["num_heads"]
    module.prompt = "a picture of "
    lines = (CAPTION / "vocab.txt").read_text(encoding="utf-8").splitlines()
    module.tokenizer = SimpleNamespace(vocab={token: number for number, token in enumerate(lines)}, do_lower_case=True)
    return module


def test_a_live_captioner_writes_what_its_file_writes():
    config = {"text": CAPTION_CASES["med_config"], "vision": CAPTION_CASES["vit"]}
    stored = qavit.load(checkpoint=CAPTION / "checkpoint.pth", tokenizer=CAPTION / "vocab.txt", config=config)
    live = lavis.from_lavis(live_captioner())
    assert live.kind == "blip_caption"
    assert live.prompt == "a picture of "
    pixels = np.random.default_rng(1).standard_normal((1, 3, 384, 384)).astype(np.float32)
    expected = stored.generate(pixels, do_sample=True, num_captions=4, max_length=12, seed=3)
    found = live.generate(pixels, do_sample=True, num_captions=4, max_length=12, seed=3)
    assert [one.text for one in found] == [one.text for one in expected]
    with pytest.raises(TypeError, match="model: expected a matcher, got Module, which is of kind 'blip_caption'"):
        lavis_matcher.compute_gradcam(live_captioner(), pixels, ["a man"])


def test_captions_of_a_live_model_without_torch():
    model: Any = PnpVqa()
    model.image_captioning_model = live_captioner()
    samples = {
        "image": torch.from_numpy(np.random.default_rng(1).standard_normal((1, 3, 384, 384)).astype(np.float32)),
        "text_input": ["what is it?"], "gradcams": torch.ones(1, 576),
    }  # fmt: skip
    with lavis.replace_forward_cap(model):
        captions = model.forward_cap(samples, num_captions=3, num_patches=20, seed=1)["captions"]
        again = model.forward_cap(dict(samples), num_captions=3, num_patches=20, seed=1)["captions"]
    assert captions == again
    assert len(captions[0]) == 3


def test_a_live_captioner_of_hugging_face():
    transformers = pytest.importorskip("transformers", minversion="4.40")
    vision = {
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 48,
        "patch_size": 16,
    }  # fmt: skip
    text = {
        "vocab_size": 145, "hidden_size": 32, "encoder_hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 40, "bos_token_id": 143, "sep_token_id": 23, "pad_token_id": 0,
        "eos_token_id": 23,
    }  # fmt: skip
    torch.manual_seed(3)
    config = transformers.BlipConfig(vision_config=vision, text_config=text)
    module = transformers.BlipForConditionalGeneration(config).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    live = lavis.from_lavis(module, tokenizer=CAPTION / "vocab.txt")
    assert live.prompt == ""
    pixels, ids = torch.randn(1, 3, 48, 48), torch.tensor([[143, 5, 9, 30]])
    with torch.no_grad():
        expected = module(pixel_values=pixels, input_ids=ids).logits.numpy()
    found = live.logits(live.image_states(pixels.numpy()), ids.numpy())
    assert relative(found, expected) < 1e-5


# ---- readers ----

READER = GOLDEN.parent / "unifiedqa_fid"


def test_a_live_reader_answers_as_its_files_do():
    transformers = pytest.importorskip("transformers", minversion="4.40")
    module = transformers.T5ForConditionalGeneration.from_pretrained(READER).eval()
    cases = json.loads((READER / "cases.json").read_text())
    live = lavis.from_lavis(module, tokenizer=READER / "spiece.model")
    stored = qavit.load(reader=READER)
    for question, captions in zip(cases["questions"], cases["captions"]):
        assert live.answer(question, captions).text == stored.answer(question, captions).text
    with pytest.raises(ValueError, match="tokenizer: the module has none"):
        lavis.from_lavis(module)
    wrapper: Any = torch.nn.Module()  # as LAVIS wraps it to fuse contexts
    wrapper.encoder, wrapper.block = module.encoder, module.encoder.block
    module.encoder = wrapper
    module.tokenizer = SimpleNamespace(vocab_file=str(READER / "spiece.model"))
    model: Any = PnpVqa()
    model.question_answering_model = module
    model.forward_qa = print
    samples = {"text_input": cases["questions"], "captions": cases["captions"]}
    lavis.replace_forward_qa(model)
    case = cases["cases"]["fid2"]
    assert model.forward_qa(samples, **case["settings"]) == case["answers"]
