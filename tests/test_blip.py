"""BLIP image-text matching against LAVIS's own numbers and against PyTorch's autograd on Hugging Face's model."""

from __future__ import annotations

import gc
import json
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import close

import qavit
from benchmarks.peak import peak_memory
from qavit import BlipITM, _core
from qavit._base.arguments import unique_images
from qavit.checkpoints import ModelSource

Array = Any
GOLDEN = Path(__file__).parent / "data" / "golden" / "blip_itm"
# Of the largest value. Observed: embeddings 1.6e-6, logits 2.5e-6, maps 1.5e-5 (block 4 of the golden set).
STATES, MAPS = 1e-5, 1e-4
# The same numbers computed among other questions: rows fall into other tiles. Observed: 4e-6.
ROUNDING = 2e-5


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- LAVIS's numbers ----


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((GOLDEN / "cases.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def golden() -> dict[str, Array]:
    with np.load(GOLDEN / "golden.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def model(cases: dict[str, Any]) -> BlipITM:
    loaded = qavit.load(
        checkpoint=GOLDEN / "checkpoint.pth",
        tokenizer=GOLDEN / "vocab.txt",
        config={"text": cases["med_config"], "vision": cases["vit"]},
    )
    assert isinstance(loaded, BlipITM)
    return loaded


@pytest.fixture(scope="module")
def images(golden: dict[str, Array], cases: dict[str, Any]) -> Array:
    """[3, 3, 384, 384]"""
    picture = golden["image_u8"].repeat(8, axis=1).repeat(8, axis=2).astype(np.float32) / 255
    normalised = (picture - np.array(cases["mean"], np.float32)) / np.array(cases["std"], np.float32)
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))


def test_sizes_come_from_the_weights(model: BlipITM) -> None:
    assert (model.image_size, model.patch_size, model.grid) == (384, 16, (24, 24))
    assert (model.num_blocks, model.num_heads, model.max_tokens) == (9, 12, 35)
    assert model.usable_blocks == tuple(range(8))
    assert model.default_block == 7


def test_question_ids(model: BlipITM, golden: dict[str, Array], cases: dict[str, Any]) -> None:
    tokens = model._tokenize([question.strip("?") for question in cases["questions"]], matching=False)
    assert np.array_equal(tokens.ids, golden["ids"])
    assert np.array_equal(tokens.mask, golden["mask"])


@pytest.mark.every_level
def test_image_embeddings(model: BlipITM, images: Array, golden: dict[str, Array]) -> None:
    for image, expected in zip(images, golden["image_embeds"]):
        close(model._core.encode_images(image[None])[0].embeddings, expected, STATES)


@pytest.mark.every_level
@pytest.mark.parametrize("block", [0, 4, 7])
def test_maps_of_a_batch(
    model: BlipITM, images: Array, golden: dict[str, Array], cases: dict[str, Any], block: int
) -> None:
    samples = {"image": images, "text_input": cases["questions"]}
    maps = model.forward_itm(samples, block_num=block)
    assert maps.dtype == np.float32
    for found, expected in zip(maps, golden[f"gradcams_block{block}"]):
        close(found, expected, MAPS)


@pytest.mark.every_level
def test_a_pair_does_not_depend_on_its_batch(
    model: BlipITM, images: Array, golden: dict[str, Array], cases: dict[str, Any]
) -> None:
    batch = model.forward_itm({"image": images, "text_input": cases["questions"]})
    for i, question in enumerate(cases["questions"]):
        alone = model.forward_itm({"image": torch.from_numpy(images[i : i + 1]), "text_input": [question]})
        close(alone, golden[f"single{i}_block7"], MAPS)
        close(alone[0], batch[i], ROUNDING)


@pytest.mark.every_level
def test_maps_of_tokens(model: BlipITM, images: Array, golden: dict[str, Array], cases: dict[str, Any]) -> None:
    texts = [question.strip("?") for question in cases["questions"]]
    maps, logits = model.gradcam_tokens(images, texts, block_num=7)
    close(logits, golden["itm_logits"], STATES)
    for i, found in enumerate(maps):
        expected = golden[f"tokens{i}_block7"]
        assert found.shape == (len(expected), 24, 24)
        close(found.reshape(expected.shape), expected, MAPS)
        padding = np.abs(expected).max(axis=1) == 0
        assert not found[padding].any()


@pytest.mark.every_level
def test_scores(model: BlipITM, images: Array, golden: dict[str, Array], cases: dict[str, Any]) -> None:
    texts = [question.strip("?") for question in cases["questions"]]
    logits, probabilities = model.itm(images, texts)
    close(logits, golden["itm_logits"], STATES)
    shifted = np.exp(logits.astype(np.float64))
    close(probabilities, (shifted / shifted.sum(axis=1, keepdims=True))[:, 1], ROUNDING)
    close(model.itc(images, texts), golden["itc"], STATES)
    one_image, _ = model.itm(images[0], [*texts, texts[0]])
    close(one_image[0], logits[0], ROUNDING)
    assert np.array_equal(one_image[3], one_image[0])


def test_last_block_is_refused(model: BlipITM, images: Array, golden: dict[str, Array], cases: dict[str, Any]) -> None:
    assert not golden["gradcams_block8"].any()
    samples = {"image": images, "text_input": cases["questions"]}
    for block in (8, -1):
        with pytest.raises(ValueError, match=r"block_num: block 8 is the last.*blocks 0 to 7 can be used"):
            model.forward_itm(samples, block_num=block)
    for block in (9, 100, -10):
        with pytest.raises(ValueError, match=r"does not exist; blocks 0 to 7 can be used"):
            model.forward_itm(samples, block_num=block)
    with pytest.raises(TypeError, match="block_num: expected a whole number, got float"):
        model.forward_itm(samples, block_num=7.0)  # type: ignore[arg-type]
    assert np.array_equal(model.forward_itm(samples, block_num=-2), model.forward_itm(samples, block_num=7))


# ---- questions of all kinds ----


def test_question_marks_do_not_count(model: BlipITM, images: Array) -> None:
    image = images[:1]
    plain = model.forward_itm({"image": image, "text_input": ["where is the red car"]})
    for question in ("where is the red car?", "??where is the red car??"):
        assert np.array_equal(model.forward_itm({"image": image, "text_input": [question]}), plain)


@pytest.mark.parametrize("question", ["", "?", "  ", "???"])
def test_question_without_words_maps_its_first_token(model: BlipITM, images: Array, question: str) -> None:
    found = model.forward_itm({"image": images[:1], "text_input": [question]})
    assert np.isfinite(found).all()
    assert (found > 0).sum() >= 20
    (tokens,), _ = model.gradcam_tokens(images[:1], [question.strip("?")], block_num=7)
    assert tokens.shape[0] == 3  # [ENC], the mean, [SEP]
    assert np.array_equal(found[0], tokens[0].ravel())
    assert np.array_equal(tokens[1], tokens[0])
    result = model.heatmaps(images[0], [question, "red car"])
    assert result.words == [[], ["red", "car"]]


@pytest.mark.every_level
def test_long_question_is_cut_with_its_mask(model: BlipITM, images: Array) -> None:
    long = " ".join(["car"] * 60)
    tokens = model._tokenize([long, "red car"])
    assert tokens.ids.shape == (2, 35)
    assert tokens.mask.sum(axis=1).tolist() == [35, 4]
    assert tokens.ids[0, -1] == model._tokenizer.id_of("[SEP]")
    both = model.forward_itm({"image": images[[0, 0]], "text_input": [long, "red car"]})
    alone = model.forward_itm({"image": images[:1], "text_input": ["red car"]})
    close(both[1:], alone, ROUNDING)
    close(both[:1], model.forward_itm({"image": images[:1], "text_input": [" ".join(["car"] * 33)]}), ROUNDING)


@pytest.mark.every_level
def test_many_questions_go_in_chunks(model: BlipITM, images: Array) -> None:
    questions = [f"is there a {'red ' * (i % 20)}car on the {'left ' * (i % 7)}side" for i in range(60)]
    maps = model.forward_itm({"image": images[[0] * 60], "text_input": questions})
    for i in (0, 19, 38, 59):
        close(maps[i : i + 1], model.forward_itm({"image": images[:1], "text_input": [questions[i]]}), ROUNDING)


# ---- heatmaps ----


def test_heatmaps(model: BlipITM, images: Array, cases: dict[str, Any]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    questions = ["Where is the red car?", "what is the man holding"]
    result = model.heatmaps(picture, questions)
    assert result.maps.shape == (2, 24, 24)
    assert (result.block, result.method, result.questions) == (7, "gradcam", questions)
    assert (result.maps >= 0).all()
    edges = (result.seen.left, result.seen.top, result.seen.right, result.seen.bottom)
    assert edges == (0.0, 0.0, 70.0, 50.0)  # the aspect is not kept, so all of the picture is seen
    assert result.words == [["Where", "is", "the", "red", "car"], ["what", "is", "the", "man", "holding"]]
    assert result.word_maps is not None
    for maps, words in zip(result.word_maps, result.words):
        assert maps.shape == (len(words), 24, 24)
    again = model.heatmaps(picture, questions[1], block=3)
    assert again.block == 3
    assert result.block_maps is not None
    every = result.block_maps
    assert every.shape == (9, 2, 24, 24)
    close(every[7], result.maps, ROUNDING)
    close(every[3, 1], again.maps[0], ROUNDING)
    np.testing.assert_allclose(result.maps.sum(axis=(1, 2)), 1.0, atol=1e-5)
    np.testing.assert_allclose(result.raw / result.raw.sum(axis=(1, 2), keepdims=True), result.maps, atol=1e-6)
    pixels = np.repeat(qavit.images.preprocess(picture, model.preprocessing)[0][None], 2, axis=0)
    close(result.raw.reshape(2, -1), model.forward_itm({"image": pixels, "text_input": questions}), ROUNDING)
    close(result.scores, model.itm(picture, [question.strip("?") for question in questions])[1], ROUNDING)
    close(result.at(3).raw[1], again.raw[0], ROUNDING)
    assert not every[8].any()
    with pytest.raises(ValueError, match=r"block: block 8 is the last"):
        model.heatmaps(picture, questions, block=8)

def test_a_text_that_fits_less_than_no_text_at_all_is_told(model: BlipITM) -> None:
    picture = np.random.default_rng(3).integers(0, 255, (40, 40, 3), np.uint8)
    texts = ["the dog", "a red car", "where is the cat", "left", "blue", ""]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = model.heatmaps(picture, texts)
        bar = model.heatmaps(picture, [""]).scores[0]
    low = [number for number, (text, score) in enumerate(zip(texts, result.scores)) if text and score < bar]
    told = [note for note in result.notes if note.kind == "low_score"]
    assert [note.question for note in told] == low
    assert 0 < len(low) < len(texts) - 1
    assert all(f"no text at all with {bar:.2g}" in note.text for note in told)
    with pytest.warns(qavit.LowScoreWarning, match="matches this text with probability"):
        model.heatmaps(picture, [texts[low[0]]])


def test_words_maps_are_their_tokens_means(model: BlipITM, images: Array) -> None:
    question = "walking zzqx dogs?"
    result = model.heatmaps(images[0], question)
    (tokens,), _ = model.gradcam_tokens(images[:1], [question.strip("?")], block_num=7)
    word_of = model._tokenize([question.strip("?")]).batch.word_of[0]
    assert len(word_of) > 5  # the made-up word is several pieces
    assert result.words == [["walking", "zzqx", "dogs"]]
    assert result.word_maps is not None
    rows = np.concatenate([tokens[:1], tokens[2:]])
    for word in range(3):
        expected = rows[[i for i, one in enumerate(word_of) if one == word]].mean(axis=0)
        close(result.word_maps[0][word], expected, ROUNDING)
    close(result.raw[0], tokens[1], ROUNDING)


# ---- sharing ----


class Counting:
    """The core, with its calls counted."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.images = 0
        self.texts: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.core, name)

    def encode_images(self, images: Array) -> Any:
        self.images += len(images)
        return self.core.encode_images(images)

    def gradcam(self, image: Any, ids: Array, mask: Array, block: int, tokens: bool = False) -> Any:
        self.texts.append(len(ids))
        return self.core.gradcam(image, ids, mask, block, tokens)


def test_images_and_questions_are_computed_once(
    model: BlipITM, images: Array, cases: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = cases["questions"]
    rows, questions = [0, 1, 0, 0, 1, 0], [a, a, b, a, c, b]
    expected = [model.forward_itm({"image": images[[i]], "text_input": [q]})[0] for i, q in zip(rows, questions)]
    counting = Counting(model._core)
    monkeypatch.setattr(model, "_core", counting)
    model.cache_clear()
    found = model.forward_itm({"image": images[rows], "text_input": questions})
    assert counting.images == 2
    assert counting.texts == [4]  # pairs of a picture and a question, both pictures' together
    close(found, np.stack(expected), ROUNDING)
    model.heatmaps(images[0], [a, b, c])
    assert counting.images == 2  # it is known


def test_equal_pictures_are_told_by_every_item() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3, 40, 50)).astype(np.float32)
    near = a.copy()
    near[1, 17, 33] = np.nextafter(near[1, 17, 33], np.float32(9))
    black, white = np.zeros_like(a), np.ones_like(a)
    batch = np.stack([a, near, b, a, black, near, white, black])
    different, index = unique_images(batch)
    assert index.tolist() == [0, 1, 2, 0, 3, 1, 4, 3]
    assert np.array_equal(different[index], batch)
    assert unique_images(batch[:0])[1].tolist() == []
    assert unique_images(batch[::2])[1].tolist() == [0, 1, 2, 3]
    assert unique_images(np.asfortranarray(batch))[1].tolist() == index.tolist()


def test_inputs_are_left_alone_and_layouts_do_not_matter(model: BlipITM, images: Array, cases: dict[str, Any]) -> None:
    batch = images[:2].copy()
    questions = cases["questions"][:2]
    before = batch.copy()
    expected = model.forward_itm({"image": batch, "text_input": questions})
    assert np.array_equal(batch, before)
    strided = np.asfortranarray(batch)
    assert np.array_equal(model.forward_itm({"image": strided, "text_input": questions}), expected)
    half = torch.from_numpy(batch).double().requires_grad_()
    assert np.array_equal(model.forward_itm({"image": half, "text_input": questions}), expected)
    assert np.array_equal(qavit.forward_itm(model, {"image": batch, "text_input": questions}), expected)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({"text_input": ["a"]}, "samples"),
        ({"image": np.zeros((1, 3, 384, 384), np.float32), "text_input": []}, "empty"),
        ({"image": np.zeros((2, 3, 384, 384), np.float32), "text_input": ["a"]}, "2 pictures and 1 questions"),
        ({"image": np.zeros((1, 3, 224, 224), np.float32), "text_input": ["a"]}, r"expected \[B, 3, 384, 384\]"),
        ({"image": np.full((1, 3, 384, 384), np.nan, np.float32), "text_input": ["a"]}, "NaN"),
    ],
)
def test_bad_samples(model: BlipITM, samples: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.forward_itm(samples)


def test_bad_texts(model: BlipITM, images: Array) -> None:
    with pytest.raises(TypeError, match="str"):
        model.itm(images[0], [1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="2 pictures for 3 texts"):
        model.itm(images[:2], ["a", "b", "c"])
    with pytest.raises(ValueError, match="1 for 2 pictures"):
        model.gradcam_tokens(images[:2], ["a"])


# ---- PyTorch's autograd on Hugging Face's model ----

def huggingface_model(vision: dict[str, int], text: dict[str, int], seed: int) -> Any:
    """A random model whose attention is far from uniform."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.BlipConfig(
        vision_config={"hidden_act": "gelu", "layer_norm_eps": 1e-6, **vision},
        text_config={"hidden_act": "gelu", "encoder_hidden_size": vision["hidden_size"], **text},
        image_text_hidden_size=8,
    )
    model = transformers.BlipForImageTextRetrieval(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if re.search("norm", name, re.IGNORECASE):
                parameter.add_(0.1 * torch.randn(parameter.shape))
            else:
                fan = parameter.shape[-1] if parameter.dim() > 1 else 4 * parameter.numel()
                parameter.copy_(torch.randn(parameter.shape) * 1.2 * fan**-0.5)
    return model


def entry(array: Array) -> tuple[Any, str, tuple[int, ...], int]:
    return (array.reshape(-1).view(np.uint8), str(array.dtype), array.shape, 0)


def weights_of(model: Any, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Hugging Face's weights by the core's names: q, k and v apart, tables without a size of 1 in front."""
    weights = {}
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        name = name.replace(".self_attn.projection.", ".self_attn.out_proj.")
        if name == "vision_model.embeddings.class_embedding":
            tensor = tensor.reshape(-1)
        elif name == "vision_model.embeddings.position_embedding":
            name, tensor = name + ".weight", tensor[0]
        stem, fused, kind = name.rpartition(".self_attn.qkv.")
        parts = [f"{stem}.self_attn.{part}_proj.{kind}" for part in "qkv"] if fused else [name]
        for part, piece in zip(parts, tensor.to(dtype).chunk(len(parts))):
            weights[part] = entry(np.ascontiguousarray(piece.numpy()))
    return weights


def config_of(model: Any) -> dict[str, dict[str, Any]]:
    vision, text = model.config.vision_config, model.config.text_config
    keys = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")
    return {
        "vision": {key: getattr(vision, key) for key in (*keys, "image_size", "patch_size")},
        "text": {key: getattr(text, key) for key in keys},
    }


def autograd(model: Any, pixels: Array, ids: Array, mask: Array, blocks: list[int]) -> Any:
    """For each block: maps [B, P] and every token's map [n, P] of each pair. And the logits [B, 2]."""
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        images = model.vision_model(torch.from_numpy(pixels).to(dtype)).last_hidden_state
    out = model.text_encoder(
        input_ids=torch.from_numpy(ids).long(),
        attention_mask=torch.from_numpy(mask).long(),
        encoder_hidden_states=images,
        encoder_attention_mask=torch.ones(images.shape[:2]),
        output_attentions=True,
        return_dict=True,
    )
    for block in blocks:
        out.cross_attentions[block].retain_grad()
    logits = model.itm_head(out.last_hidden_state[:, 0])
    logits[:, 1].sum().backward()
    results = []
    for block in blocks:
        probabilities = out.cross_attentions[block]
        cam = (probabilities * probabilities.grad.clamp(min=0)).mean(dim=1)[..., 1:].detach().double().numpy()
        tokens = [one[:length] for one, length in zip(cam, mask.sum(axis=1))]
        results.append((np.stack([one[1:-1].mean(axis=0) for one in tokens]), tokens))
    model.zero_grad()
    return results, logits.detach().double().numpy()


def questions(vocabulary: int, lengths: list[int], seed: int) -> tuple[Array, Array]:
    ids = np.random.default_rng(seed).integers(1, vocabulary, (len(lengths), max(lengths)), np.int32)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.uint8)
    return ids * mask, mask


# vision and text sizes; question lengths
SIZES = [
    (
        {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3},
        {"hidden_size": 36, "intermediate_size": 44, "num_hidden_layers": 4, "num_attention_heads": 6, "vocab_size": 50},
        {"image_size": 32, "patch_size": 8},
        [3, 7, 4],
    ),
    (
        {"hidden_size": 15, "intermediate_size": 17, "num_hidden_layers": 1, "num_attention_heads": 5},
        {"hidden_size": 21, "intermediate_size": 9, "num_hidden_layers": 3, "num_attention_heads": 1, "vocab_size": 9},
        {"image_size": 15, "patch_size": 5},
        [35, 3],
    ),
    (
        {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 1},
        {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 2, "vocab_size": 300},
        {"image_size": 112, "patch_size": 16},
        [9, 12, 17, 33],
    ),
]


@pytest.mark.every_level
@pytest.mark.parametrize(("vision", "text", "image", "lengths"), SIZES, ids=["small", "odd", "wide"])
def test_against_autograd(
    vision: dict[str, int], text: dict[str, int], image: dict[str, int], lengths: list[int]
) -> None:
    model = huggingface_model({**vision, **image}, {**text, "max_position_embeddings": 40}, seed=len(lengths))
    core = _core.BlipItm(config_of(model), weights_of(model))
    model.double()
    ids, mask = questions(text["vocab_size"], lengths, seed=1)
    size = image["image_size"]
    pixels = np.random.default_rng(2).standard_normal((len(lengths), 3, size, size), np.float32)
    states = [core.encode_images(one[None])[0] for one in pixels]
    blocks = list(range(text["num_hidden_layers"] - 1))
    results, logits = autograd(model, pixels, ids, mask, blocks)
    for block, (maps, tokens) in zip(blocks, results):
        for i, state in enumerate(states):
            found = core.gradcam(state, ids[i : i + 1], mask[i : i + 1], block, True)
            # Observed: maps 6e-6, tokens 6e-6, logits 2e-6 of the largest.
            close(found[0][0], maps[i], MAPS / 2)
            close(found[2], tokens[i], MAPS / 2)
            close(found[1][0], logits[i], STATES)
            close(core.match(state, ids[i : i + 1], mask[i : i + 1])[0], logits[i], STATES)
    # All images and questions together; the images in another order, each twice; all questions on one image.
    encoded = core.encode_images(pixels)
    for block, (maps, tokens) in zip(blocks, results):
        found = core.gradcam(encoded, ids, mask, block, True)
        close(found[0], maps, MAPS / 2)
        close(found[2], np.concatenate(tokens), MAPS / 2)
        close(found[1], logits, STATES)
    order = [*range(len(lengths) - 1, -1, -1), *range(len(lengths))]
    found = core.gradcam([encoded[i] for i in order], ids[order], mask[order], 1)
    close(found[0], results[1][0][order], MAPS / 2)
    close(core.match([encoded[i] for i in order], ids[order], mask[order]), logits[order], STATES)
    same = np.repeat(pixels[:1], len(lengths), axis=0)
    ((maps, _),), logits = autograd(model, same, ids, mask, [1])
    together = core.gradcam(states[0], ids, mask, 1)
    assert together[2] is None
    for i in range(len(lengths)):
        close(together[0][i], maps[i], MAPS / 2)
    close(together[1], logits, STATES)


@pytest.mark.every_level
def test_contrastive_heads_against_torch() -> None:
    vision, text, image, lengths = SIZES[0]
    model = huggingface_model({**vision, **image}, {**text, "max_position_embeddings": 40}, seed=5)
    core = _core.BlipItm(config_of(model), weights_of(model))
    model.double()
    ids, mask = questions(50, lengths, seed=1)
    pixels = np.random.default_rng(2).standard_normal((2, 3, 32, 32), np.float32)
    with torch.no_grad():
        embeddings = model.vision_model(torch.from_numpy(pixels).double()).last_hidden_state
        state = model.text_encoder(torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask).long())
        normalise = torch.nn.functional.normalize
        expected_text = normalise(model.text_proj(state.last_hidden_state[:, 0]), dim=-1).numpy()
        expected_image = normalise(model.vision_proj(embeddings[:, 0]), dim=-1).numpy()
    close(core.text_features(ids, mask), expected_text, STATES)
    for one, expected in zip(pixels, expected_image):
        close(core.image_features(core.encode_images(one[None])[0]), expected, STATES)


@pytest.mark.parametrize("threads", [1, 2])
def test_many_rows_at_once(threads: int) -> None:
    vision, text, image, _ = SIZES[2]
    model = huggingface_model({**vision, **image}, {**text, "max_position_embeddings": 40}, seed=9)
    core = _core.BlipItm(config_of(model), weights_of(model))
    ids, mask = questions(300, [3 + i % 31 for i in range(71)], seed=1)
    state = core.encode_images(np.random.default_rng(2).standard_normal((1, 3, 112, 112), np.float32))[0]
    width = _core.get_num_threads()
    try:
        _core.set_num_threads(threads)
        logits, features = core.match(state, ids, mask), core.text_features(ids, mask)
        maps, again, _ = core.gradcam(state, ids, mask, 2)
    finally:
        _core.set_num_threads(width)
    close(again, logits, ROUNDING)
    for i in (0, 30, 53, 70):
        one = slice(i, i + 1)
        close(core.match(state, ids[one], mask[one]), logits[one], ROUNDING)
        close(core.text_features(ids[one], mask[one]), features[one], ROUNDING)
        close(core.gradcam(state, ids[one], mask[one], 2)[0], maps[one], ROUNDING)


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files(dtype: torch.dtype) -> None:
    vision, text, image, lengths = SIZES[0]
    model = huggingface_model({**vision, **image}, {**text, "max_position_embeddings": 40}, seed=6)
    rounded = {name: tensor.to(dtype).to(tensor.dtype) for name, tensor in model.state_dict().items()}
    model.load_state_dict(rounded)
    weights = weights_of(model)
    half = {}
    for name, (buffer, _, shape, _) in weights.items():
        tensor = torch.from_numpy(buffer.view(np.float32).reshape(shape)).to(dtype)
        half[name] = (tensor.view(torch.uint8).numpy().reshape(-1), str(dtype).split(".")[1], shape, 0)
    ids, mask = questions(50, lengths, seed=1)
    pixels = np.random.default_rng(2).standard_normal((3, 32, 32), np.float32)
    results = []
    for given in (weights, half):
        core = _core.BlipItm(config_of(model), given)
        results.append(core.gradcam(core.encode_images(pixels[None])[0], ids, mask, 1))
    for full, found in zip(results[0][:2], results[1][:2]):
        assert np.array_equal(found, full)


@pytest.mark.every_level
def test_bfloat16_products_keep_the_map(model: BlipITM, images: Array, cases: dict[str, Any]) -> None:
    loaded = qavit.load(
        checkpoint=GOLDEN / "checkpoint.pth",
        tokenizer=GOLDEN / "vocab.txt",
        config={"text": cases["med_config"], "vision": cases["vit"]},
        precision="bfloat16",
    )
    samples = {"image": images, "text_input": cases["questions"]}
    for found, expected in zip(loaded.forward_itm(samples), model.forward_itm(samples)):
        # Observed: 0.998 and more where the CPU has bfloat16 products; 1 elsewhere.
        assert np.corrcoef(found, expected)[0, 1] > 0.98


@pytest.mark.nightly
def test_full_size_against_autograd() -> None:
    """ViT-L/16 at 384 and BERT-base: the model of PnP-VQA."""
    model = huggingface_model(
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
         "image_size": 384, "patch_size": 16},
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
         "vocab_size": 30524, "max_position_embeddings": 512},
        seed=0,
    )  # fmt: skip
    pixels = np.random.default_rng(2).standard_normal((1, 3, 384, 384), np.float32)
    ids, mask = questions(30524, [11], seed=1)
    ((maps, tokens),), logits = autograd(model, pixels, ids, mask, [7])
    core = _core.BlipItm(config_of(model), weights_of(model))
    del model
    found = core.gradcam(core.encode_images(pixels[:1])[0], ids, mask, 7, True)
    # Both sides are float32 here. Observed: maps 1e-5, logits 4e-6.
    close(found[0], maps, MAPS)
    close(found[2], tokens[0], MAPS)
    close(found[1], logits, 4e-5)


# ---- the binding ----


@pytest.fixture(scope="module")
def small() -> tuple[Any, dict[str, Any], dict[str, dict[str, Any]]]:
    vision, text, image, _ = SIZES[0]
    model = huggingface_model({**vision, **image}, {**text, "max_position_embeddings": 40}, seed=7)
    return _core.BlipItm(config_of(model), weights_of(model)), weights_of(model), config_of(model)


def test_missing_and_misshaped_weights_are_named(small: Any) -> None:
    _, weights, config = small
    broken = dict(weights)
    del broken["text_encoder.encoder.layer.2.crossattention.self.query.weight"]
    broken["itm_head.weight"] = entry(np.zeros((3, 36), np.float32))
    with pytest.raises(ValueError, match="missing or mis-shaped") as caught:
        _core.BlipItm(config, broken)
    assert "missing: text_encoder.encoder.layer.2.crossattention.self.query.weight [36, 36]" in str(caught.value)
    assert "itm_head.weight: shape [3, 36], expected [2, 36]" in str(caught.value)
    with pytest.raises(ValueError, match=r"neither config nor weights .* say all of vocab_size \(0\), .*_embeddings \(0\)"):
        _core.BlipItm(config, {})
    with pytest.raises(ValueError, match="hidden_size is 35, the weights say 36"):
        _core.BlipItm({**config, "text": {**config["text"], "hidden_size": 35}}, weights)
    with pytest.raises(ValueError, match="not a multiple of the 7 heads"):
        _core.BlipItm({**config, "text": {**config["text"], "num_attention_heads": 7}}, weights)
    for text, message in (
        ({"num_hidden_layers": 1025}, "num_hidden_layers is 1025|1025 blocks"),
        ({"fusion_layer": 7}, "fusion_layer 7 of 4 blocks"),
        ({"layer_norm_eps": "small"}, "'layer_norm_eps' is 'small'"),
    ):
        with pytest.raises(ValueError, match=message):
            _core.BlipItm({**config, "text": {**config["text"], **text}}, weights)
    with pytest.raises(TypeError, match="config: expected a dict, got NoneType"):
        _core.BlipItm(None, weights)
    with pytest.raises(TypeError, match="weights: expected a dict, got list"):
        _core.BlipItm(config, [])
    with pytest.raises(TypeError, match="'vision' and 'text'"):
        _core.BlipItm({"vision": config["vision"]}, weights)
    without = {name: value for name, value in weights.items() if not name.startswith(("vision_proj.", "text_proj."))}
    core = _core.BlipItm(config, without)
    assert core.projection == 0
    with pytest.raises(ValueError, match="no contrastive heads"):
        core.text_features(np.ones((1, 3), np.int32), np.ones((1, 3), np.uint8))
    with pytest.raises(ValueError, match="no contrastive heads"):
        core.image_features(core.encode_images(np.zeros((1, 3, 32, 32), np.float32))[0])


def test_bad_arguments_of_the_core(small: Any) -> None:
    core, weights, config = small
    image = core.encode_images(np.zeros((1, 3, 32, 32), np.float32))[0]
    ids, mask = np.ones((2, 4), np.int32), np.ones((2, 4), np.uint8)
    with pytest.raises(ValueError, match=r"expected \[images, 3, 32, 32\]"):
        core.encode_images(np.zeros((1, 3, 31, 32), np.float32))
    with pytest.raises(ValueError, match="dimensions"):
        core.encode_images(np.zeros((3, 32, 32), np.float32))
    with pytest.raises(ValueError, match=r"expected \[17, 24\]"):
        core.image_from_embeddings(np.zeros((16, 24), np.float32))
    for bad in (50, -1):
        with pytest.raises(ValueError, match=f"token id {bad}, expected 0 to 49"):
            core.gradcam(image, np.full((1, 4), bad, np.int32), mask[:1], 0)
    hole = mask.copy()
    hole[1, 1] = 0
    with pytest.raises(ValueError, match="row 1 has a hole"):
        core.match(image, ids, hole)
    with pytest.raises(ValueError, match="expected 1 to 40"):
        core.match(image, ids, np.zeros_like(mask))
    with pytest.raises(ValueError, match="expected 1 to 40"):
        core.match(image, np.ones((1, 41), np.int32), np.ones((1, 41), np.uint8))
    with pytest.raises(ValueError, match="that of ids"):
        core.match(image, ids, mask[:, :3])
    with pytest.raises(ValueError, match="block 3 is the last"):
        core.gradcam(image, ids, mask, 3)
    with pytest.raises(ValueError, match="does not exist"):
        core.gradcam(image, ids, mask, -1)
    with pytest.raises(TypeError, match="expected a BlipImage"):
        core.match(None, ids, mask)
    with pytest.raises(TypeError, match="expected a BlipImage"):
        core.match([image, None], ids, mask)
    with pytest.raises(ValueError, match="1 images for 2 questions"):
        core.gradcam([image], ids, mask, 0)
    assert core.encode_images(np.zeros((0, 3, 32, 32), np.float32)) == []
    with pytest.raises(ValueError, match="another model"):
        _core.BlipItm(config, weights).match(image, ids, mask)
    with pytest.raises(TypeError, match="encode_images"):
        _core.BlipImage()
    assert core.match(image, ids[:0], mask[:0]).shape == (0, 2)
    assert core.gradcam(image, ids[:0], mask[:0], 0)[0].shape == (0, 16)


def test_embeddings_are_enough(small: Any) -> None:
    core, _, _ = small
    pixels = np.random.default_rng(0).standard_normal((3, 32, 32), np.float32)
    ids, mask = questions(50, [5, 3], seed=1)
    image = core.encode_images(pixels[None])[0]
    again = core.image_from_embeddings(image.embeddings)
    assert np.array_equal(core.gradcam(image, ids, mask, 1)[0], core.gradcam(again, ids, mask, 1)[0])


def test_weights_and_images_live_as_long_as_needed(small: Any) -> None:
    _, weights, config = small
    copies = {name: (np.array(buffer), *rest) for name, (buffer, *rest) in weights.items()}
    buffer = copies["itm_head.weight"][0]
    before = sys.getrefcount(buffer)
    core = _core.BlipItm(config, copies)
    with pytest.raises(ValueError, match="resize"):
        buffer.resize(3)
    image = core.encode_images(np.zeros((1, 3, 32, 32), np.float32))[0]
    del core
    gc.collect()
    assert image.embeddings.shape == (17, 24)
    del image
    gc.collect()
    assert sys.getrefcount(buffer) == before


def test_memory_stays_flat(small: Any) -> None:
    core, weights, config = small
    pixels = np.random.default_rng(0).standard_normal((3, 32, 32), np.float32)
    ids, mask = questions(50, [12, 30, 3], seed=1)

    def work() -> None:
        image = core.encode_images(pixels[None])[0]
        core.gradcam(image, ids, mask, 0, True)
        core.text_features(ids, mask)
        core.image_features(image)
        with pytest.raises(ValueError, match="last"):
            core.gradcam(image, ids, mask, 3)

    for _ in range(50):
        work()
        _core.BlipItm(config, weights)
    before = peak_memory()
    for i in range(500):
        work()
        if i % 10 == 0:
            _core.BlipItm(config, weights)
    # A leak of one image (40 KB) a call would be 20 MB. Observed: 0.
    assert peak_memory() - before < 4


def test_threads(small: Any) -> None:
    core, _, _ = small
    pixels = np.random.default_rng(0).standard_normal((4, 3, 32, 32), np.float32)
    ids, mask = questions(50, [12, 30, 3], seed=1)
    expected = [core.gradcam(core.encode_images(one[None])[0], ids, mask, 1, True) for one in pixels]
    failures: list[str] = []

    def work(number: int) -> None:
        for _ in range(20):
            found = core.gradcam(core.encode_images(pixels[number : number + 1])[0], ids, mask, 1, True)
            if not all(np.array_equal(a, b) for a, b in zip(found, expected[number])):
                failures.append(f"thread {number} differs")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
        assert not thread.is_alive()
    assert not failures
    width = _core.get_num_threads()
    try:
        for count in (1, 3):
            _core.set_num_threads(count)
            found = core.gradcam(core.encode_images(pixels[:1])[0], ids, mask, 1, True)
            for a, b in zip(found, expected[0]):
                close(a, b, 1e-5)
    finally:
        _core.set_num_threads(width)


@pytest.mark.skipif(not _core.build_info()["debug"], reason="the failing allocator is in QAVIT_DEBUG builds")
def test_allocation_failures_are_errors(small: Any) -> None:
    core, weights, config = small
    pixels = np.zeros((2, 3, 32, 32), np.float32)
    ids, mask = questions(50, [4, 3], seed=1)
    failed = 0
    for n in range(1, 400):
        _core.fail_allocation(n)
        try:
            fresh = _core.BlipItm(config, weights)
            fresh.gradcam(fresh.encode_images(pixels), ids, mask, 0)
            break
        except MemoryError:
            failed += 1
    _core.fail_allocation(0)
    assert failed > 10
    assert np.isfinite(core.gradcam(core.encode_images(pixels), ids, mask, 0)[0]).all()


# ---- what a model must bring ----


def test_tokenizer_is_needed(small: Any) -> None:
    _, weights, config = small
    preprocessing = {"size": 32, "resize": "exact", "crop": False, "mean": [0.5] * 3, "std": [0.5] * 3}
    source = ModelSource(
        "blip_itm", config["vision"], config["text"], weights, None, preprocessing, {"max_tokens": 35}, None, {}, "none"
    )
    with pytest.raises(ValueError, match="needs a tokenizer"):
        BlipITM(source)


def test_huggingface_folder(tmp_path: Path) -> None:
    vision, text, image, _ = SIZES[0]
    vocabulary = (GOLDEN / "vocab.txt").read_text()
    count = len(vocabulary.splitlines()) + 2
    model = huggingface_model(
        {**vision, **image}, {**text, "vocab_size": count, "max_position_embeddings": 40}, seed=8
    )
    model.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text(vocabulary)
    loaded = qavit.load(tmp_path)
    assert isinstance(loaded, BlipITM)
    pixels = np.random.default_rng(0).standard_normal((1, 3, 32, 32), np.float32)
    tokens = loaded._tokenize(["where is the red car"])
    ((maps, _),), logits = autograd(model.double(), pixels, tokens.ids, tokens.mask, [2])
    close(loaded.forward_itm({"image": pixels, "text_input": ["where is the red car?"]}, block_num=2), maps, MAPS)
    close(loaded.itm(pixels, "where is the red car")[0], logits, STATES)
    assert "4 text blocks" in repr(loaded)
