"""Numbers at their limits: what is not finite is refused by name, never shown as a map; extremes and edges are right."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import write_qavit

import qavit
from qavit import BlipITM, QAViT
from qavit.checkpoints import ModelSource, open_model
from qavit.checkpoints._weights import float_array, from_array

GOLDEN = Path(__file__).parent / "data" / "golden"
QUESTIONS = ["where is the red star?", "what"]
# The default NaN, NaNs whose payload kernels could take for an exponent, a signalling one, and both infinities.
BITS = {
    "nan": 0x7FC00000, "payload": 0x7FC00001, "negative_payload": 0xFFC000FF, "signalling": 0x7F800001,
    "infinity": 0x7F800000, "minus_infinity": 0xFF800000,
}  # fmt: skip


def poison(source: ModelSource, name: str, bits: int, seed: int) -> ModelSource:
    """The same model with one item of one tensor changed."""
    values = float_array(source.weights[name]).copy()
    values.reshape(-1)[np.random.default_rng(seed).integers(values.size)] = np.uint32(bits).view(np.float32)
    return dataclasses.replace(source, weights={**source.weights, name: from_array(values)})


def outcome(act: Callable[[], Any]) -> list[np.ndarray] | str:
    """The arrays that it gives, or the message of its ValueError."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("ignore", qavit.QuestionBlindWarning)
        try:
            return [np.asarray(part) for part in act()]
        except ValueError as error:
            return str(error)


def refused_or_untouched(found: list[np.ndarray] | str, clean: list[np.ndarray] | str) -> bool:
    """Whether it was refused for not being finite, or what went in had no part in the result."""
    assert not isinstance(clean, str), clean
    if isinstance(found, str):
        return "finite" in found or "NaN" in found
    return all((one == other).all() for one, other in zip(found, clean))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = write_qavit(tmp_path_factory.mktemp("numbers") / "model", blocks=4, image_size=14, patch=7)
    return open_model(folder)


@pytest.fixture(scope="module")
def blip() -> ModelSource:
    folder = GOLDEN / "blip_itm"
    facts = json.loads((folder / "cases.json").read_text())
    return open_model(
        checkpoint=folder / "checkpoint.pth", tokenizer=folder / "vocab.txt", image_size=32,
        config={"text": facts["med_config"], "vision": facts["vit"]},
    )  # fmt: skip


PICTURE = np.random.default_rng(0).integers(0, 256, (20, 14, 3), np.uint8)


def every_map(model: QAViT) -> list[np.ndarray]:
    """All that QA-ViT gives of a picture and two questions."""
    result = model.heatmaps(PICTURE, QUESTIONS)
    pixels = np.random.default_rng(1).standard_normal((2, 3, 14, 14), np.float32)
    words = result.word_maps or []
    out = model.vision(pixels, model.encode_questions(QUESTIONS), output_attentions=True, output_hidden_states=True)
    assert out.attentions is not None
    return [
        result.maps, *words, result.block_maps, model.forward_itm({"image": pixels, "text_input": QUESTIONS}, 3),
        model.extract_attention(pixels, QUESTIONS, blocks=(2, 3), method="question"), out.last_hidden_state,
        *out.attentions, *(out.hidden_states or ()),
    ]  # fmt: skip


@pytest.mark.parametrize("precision", [pytest.param("float32", marks=pytest.mark.every_level), "bfloat16"])
def test_a_weight_that_is_not_finite_never_becomes_a_map(small: ModelSource, precision: str) -> None:
    clean = outcome(lambda: every_map(QAViT(small, precision=precision)))
    wrong, refused = [], 0
    for i, name in enumerate(sorted(small.weights)):
        for kind in list(BITS) if precision == "float32" else ["payload", "minus_infinity"]:
            # These have a meaning: a position that is never attended to, and a gate that is wide open.
            if (kind == "minus_infinity" and "attention_bias" in name) or ("infinity" in kind and name.endswith("gate")):
                continue
            source = poison(small, name, BITS[kind], i)
            found = outcome(lambda source=source: every_map(QAViT(source, precision=precision)))
            refused += isinstance(found, str)
            if not refused_or_untouched(found, clean):
                wrong.append((name, kind, found if isinstance(found, str) else "given"))
    assert not wrong, wrong
    assert refused > len(small.weights)


def blip_maps(model: BlipITM) -> list[np.ndarray]:
    """All that BLIP gives of a picture and two questions."""
    size = model.image_size
    pixels = np.random.default_rng(1).standard_normal((2, 3, size, size), np.float32)
    result = model.heatmaps(pixels[0], QUESTIONS)
    logits, probabilities = model.itm(pixels, QUESTIONS)
    return [
        result.maps, *(result.word_maps or []), logits, probabilities, model.itc(pixels, QUESTIONS),
        model.forward_itm({"image": pixels, "text_input": QUESTIONS}, 0), *model.gradcam_tokens(pixels, QUESTIONS, 0)[0],
    ]  # fmt: skip


def test_blip_with_a_weight_that_is_not_finite(blip: ModelSource) -> None:
    clean = outcome(lambda: blip_maps(BlipITM(blip)))
    wrong, refused = [], 0
    for i, name in enumerate(sorted(blip.weights)):
        for kind in ("nan", "payload") if i % 2 else ("infinity", "minus_infinity"):
            source = poison(blip, name, BITS[kind], i)
            found = outcome(lambda source=source: blip_maps(BlipITM(source)))
            refused += isinstance(found, str)
            if not refused_or_untouched(found, clean):
                wrong.append((name, kind, found if isinstance(found, str) else "given"))
    assert not wrong, wrong
    assert refused > len(blip.weights) // 2


# ---- pictures and states ----


@pytest.fixture(scope="module")
def model(small: ModelSource) -> QAViT:
    return QAViT(small)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_pixel_values_that_are_not_finite_are_refused_by_name(model: QAViT, blip: ModelSource, bad: float) -> None:
    itm = BlipITM(blip)
    for one in (model, itm):
        pixels = np.zeros((2, 3, one.image_size, one.image_size), np.float64)
        pixels[1, 2, 3, 4] = bad
        with pytest.raises(ValueError, match=r"image.*NaN or infinit|NaN or infinit"):
            one.forward_itm({"image": pixels, "text_input": QUESTIONS}, 1 if one is model else 0)
        with pytest.raises(ValueError, match="NaN or infinit"):
            one.heatmaps(pixels[1], QUESTIONS)
    states = model.encode_questions(QUESTIONS).states.astype(np.float64)
    states[0, 0, 0] = bad
    with pytest.raises(ValueError, match=r"instruct_states.*NaN or infinity"):
        model.vision(np.zeros((2, 3, 14, 14)), states)


@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-30, 1e-3, 1e3, 1e9, 1e15, 1e18, 1e19, 1e25, 1e38])
def test_any_finite_picture_has_a_map_or_is_refused(model: QAViT, blip: ModelSource, scale: float) -> None:
    itm = BlipITM(blip)
    for one in (model, itm):
        pixels = np.random.default_rng(2).uniform(-1, 1, (3, one.image_size, one.image_size)) * scale
        found = outcome(lambda one=one, pixels=pixels: [one.heatmaps(pixels, QUESTIONS).maps])
        if isinstance(found, str):
            assert "not finite" in found
            assert scale > 1e9
        else:
            assert np.isfinite(found[0]).all()
            if one is model:
                np.testing.assert_allclose(found[0].sum(axis=(1, 2)), 1.0, atol=1e-5)


@pytest.mark.parametrize("level", [0, 255])
def test_flat_pictures(model: QAViT, level: int) -> None:
    result = model.heatmaps(np.full((30, 50, 3), level, np.uint8), QUESTIONS)
    np.testing.assert_allclose(result.maps.sum(axis=(1, 2)), 1.0, atol=1e-5)
    assert not np.array_equal(result.maps[0], result.maps[1])


@pytest.mark.parametrize("part", ["q_proj", "k_proj", "v_proj", "mlp.fc1", "layer_norm1", "patch_embedding"])
@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e20, 1e38])
def test_weights_of_any_scale_give_a_map_or_are_refused(small: ModelSource, part: str, scale: float) -> None:
    changed = {}
    for name in small.weights:
        if f".{part}" in name:
            with np.errstate(over="ignore"):
                values = float_array(small.weights[name]) * np.float32(scale)
            changed[name] = from_array(np.clip(values, -3e38, 3e38).astype(np.float32))
    assert changed
    source = dataclasses.replace(small, weights={**small.weights, **changed})
    found = outcome(lambda: [QAViT(source).heatmaps(PICTURE, QUESTIONS).maps])
    if isinstance(found, str):
        assert "not finite" in found
        assert scale > 1
    else:
        np.testing.assert_allclose(found[0].sum(axis=(1, 2)), 1.0, atol=1e-5)


# ---- sizes ----


def test_one_patch_one_head_odd_widths(tmp_path: Path) -> None:
    sizes = [(5, 5, 1, 1), (7, 7, 1, 17), (6, 3, 3, 15), (9, 3, 1, 33), (3, 1, 5, 65)]
    for n, (size, patch, heads, width) in enumerate(sizes):
        folder = write_qavit(tmp_path / str(n), blocks=3, image_size=size, patch=patch, heads=heads, width=width)
        one = qavit.load(folder)
        assert isinstance(one, QAViT)
        result = one.heatmaps(PICTURE, QUESTIONS)
        side = size // patch
        assert result.maps.shape == (2, side, side)
        np.testing.assert_allclose(result.maps.sum(axis=(1, 2)), 1.0, atol=1e-5)
        if side == 1:
            assert (result.maps == 1).all()
        for _, values in zip(result.words or [], result.word_maps or []):
            np.testing.assert_allclose(values.sum(axis=(1, 2)), 1.0, atol=1e-5)


def test_a_batch_of_none(model: QAViT) -> None:
    none = np.zeros((0, 3, 14, 14), np.float32)
    out = model.vision(none, np.zeros((0, 4, model.instruction_dim), np.float32), output_attentions=True)
    assert out.last_hidden_state is not None
    assert out.last_hidden_state.shape == (0, 5, 16)
    assert out.attentions is not None
    assert out.attentions[3].shape == (0, 2, 5, 9)
    for act in (
        lambda: model.forward_itm({"image": none, "text_input": []}, 3),
        lambda: model.extract_attention(none, QUESTIONS, blocks=[3]),
        lambda: model.heatmaps(none, QUESTIONS),
        lambda: model.heatmaps(PICTURE, []),
        lambda: model.encode_questions([]),
    ):
        with pytest.raises(ValueError, match=r"questions|image|samples"):
            act()


def test_questions_from_one_token_to_512(small: ModelSource) -> None:
    one = QAViT(dataclasses.replace(small, questions={"max_words": 1000, "max_tokens": 512}))
    for words in (1, 2, 100, 511, 900):
        question = " ".join(["red", "star", "circle"][i % 3] for i in range(words))
        encoded = one.encode_questions(question)
        assert encoded.states.shape[1] <= 512
        result = one.heatmaps(PICTURE, question)
        np.testing.assert_allclose(result.maps.sum(axis=(1, 2)), 1.0, atol=1e-5)
    assert encoded.states.shape[1] == 512
    # 511 tokens that do not count change nothing: observed 2e-7.
    pixels = np.random.default_rng(3).standard_normal((1, 3, 14, 14), np.float32)
    for count in (1, 5):
        mask = np.zeros((1, 512), np.uint8)
        mask[:, :count] = 1
        padded = one.vision(pixels, encoded.states, mask).last_hidden_state
        alone = one.vision(pixels, encoded.states[:, :count]).last_hidden_state
        assert padded is not None
        assert alone is not None
        np.testing.assert_allclose(padded, alone, atol=2e-6 * float(np.abs(alone).max()))
