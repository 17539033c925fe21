"""BLIP's captioner against LAVIS's own numbers and transformers' model and generate."""

from __future__ import annotations

import gc
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cpu_levels import own_level
from reference import close

import qavit
from qavit import BlipCaptioner, _core
from qavit.checkpoints import convert, open_model
from qavit.generation import process_logits
from qavit.generation._draws import Draws, draw_patches
from qavit.models._captions import words_of_pieces

Array = Any
GOLDEN = Path(__file__).parent / "data" / "golden" / "blip_caption"
# Of the largest value. Observed: states 1.6e-6, logits 3.2e-6.
STATES, LOGITS = 1e-5, 2e-5


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def keep_width() -> Iterator[None]:
    width = _core.get_num_threads()
    yield
    _core.set_num_threads(width)


# ---- LAVIS's numbers ----


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((GOLDEN / "cases.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def golden() -> dict[str, Array]:
    with np.load(GOLDEN / "golden.npz") as arrays:
        return dict(arrays)


def load(cases: dict[str, Any], **options: Any) -> BlipCaptioner:
    config = {"text": cases["med_config"], "vision": cases["vit"], **options.pop("config", {})}
    loaded = qavit.load(checkpoint=GOLDEN / "checkpoint.pth", tokenizer=GOLDEN / "vocab.txt", config=config, **options)
    assert isinstance(loaded, BlipCaptioner)
    return loaded


@pytest.fixture(scope="module")
def model(cases: dict[str, Any]) -> BlipCaptioner:
    return load(cases)


@pytest.fixture(scope="module")
def images(golden: dict[str, Array], cases: dict[str, Any]) -> Array:
    """[2, 3, 384, 384]"""
    picture = golden["image_u8"].repeat(8, axis=1).repeat(8, axis=2).astype(np.float32) / 255
    normalised = (picture - np.array(cases["mean"], np.float32)) / np.array(cases["std"], np.float32)
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))


@pytest.fixture(scope="module")
def states(model: BlipCaptioner, images: Array) -> Array:
    return model.image_states(images)


def new_ids(sequence: Array, eos: int, prompt: int = 4) -> list[int]:
    """What follows the prompt, up to and with the end."""
    ids = sequence[prompt:].tolist()
    return ids[: ids.index(eos) + 1] if eos in ids else ids


def test_what_the_model_is(model: BlipCaptioner) -> None:
    assert (model.kind, model.prompt, model.takes_questions) == ("blip_caption", "a picture of ", True)
    assert (model.grid, model.image_tokens, model.num_blocks, model.num_heads) == ((24, 24), 577, 3, 4)
    assert model.methods == ("cross_attention",)


@pytest.mark.every_level
def test_image_states(states: Array, golden: dict[str, Array]) -> None:
    close(states, golden["image_embeds"], STATES)
    assert not states.flags.writeable


SETTINGS = ["greedy", "greedy_penalty", "sample_k5", "sample_k20_p70"]


@pytest.mark.every_level
@pytest.mark.parametrize("name", SETTINGS)
def test_logits_and_scores_along_the_golden_sequences(
    name: str, model: BlipCaptioner, states: Array, golden: dict[str, Array], cases: dict[str, Any]
) -> None:
    sequences = golden[f"{name}_sequences"].astype(np.int64)
    steps, rows, _ = golden[f"{name}_logits"].shape
    found = model.logits(np.repeat(states, 2, axis=0), sequences, golden["patches"].reshape(4, -1))
    settings = {key: value for key, value in cases["settings"][name].items() if key not in ("do_sample", "max_length")}
    for row in range(rows):
        for step in range(min(steps, len(new_ids(sequences[row], 23)))):
            logits, scores = golden[f"{name}_logits"][step, row], golden[f"{name}_scores"][step, row]
            close(found[row, 3 + step], logits, LOGITS)
            own = process_logits(found[row, 3 + step][None], sequences[row, None, : 4 + step], eos=23, **settings)[0]
            assert np.array_equal(np.isneginf(own), np.isneginf(scores))
            kept = np.isfinite(scores)
            close(own[kept], scores[kept], LOGITS)


@pytest.mark.parametrize("name", ["greedy", "greedy_penalty"])
def test_greedy_captions(
    name: str, model: BlipCaptioner, states: Array, golden: dict[str, Array], cases: dict[str, Any]
) -> None:
    settings = cases["settings"][name]
    for row, sequence in enumerate(golden[f"{name}_sequences"].astype(np.int64)):
        (one,) = model.generate(
            states[row // 2], tokens=golden["patches"][row // 2, row % 2], return_logits=True, **settings
        )
        assert one.ids is not None
        assert one.ids.tolist() == new_ids(sequence, 23)
        close(one.logits, golden[f"{name}_logits"][: len(one.ids), row], LOGITS)


def test_texts_given_whole(model: BlipCaptioner, states: Array, golden: dict[str, Array], cases: dict[str, Any]) -> None:
    ids, mask = golden["teacher_ids"], golden["teacher_mask"].astype(bool)
    found = model.logits(states, ids, golden["patches"][:, 0])
    close(found[mask], golden["teacher_subset_logits"][mask], LOGITS)
    for row, text in enumerate(cases["teacher_text"]):
        caption = text.removeprefix(model.prompt)
        length = int(mask[row].sum())
        logits = torch.from_numpy(golden["teacher_subset_logits"][row, : length - 1]).double()
        expected = torch.log_softmax(logits, dim=1)[np.arange(length - 1), ids[row, 1:length].astype(int)][3:].sum()
        (score,) = model.score(states[row], caption, tokens=golden["patches"][row, 0])
        assert score == pytest.approx(float(expected), rel=1e-5)


def test_texts_are_cut_as_lavis_cuts_them(model: BlipCaptioner, golden: dict[str, Array], cases: dict[str, Any]) -> None:
    rows = [*golden["post_sequences"], *golden["cap_sequences"].reshape(32, -1)]
    decoded = [*cases["post"]["decoded"], *cases["forward_cap"]["decoded"][0], *cases["forward_cap"]["decoded"][1]]
    assert len(rows) == len(decoded)
    for ids, text in zip(rows, decoded):
        assert model._text_of(ids[4:].tolist()) == text[len("a picture of ") :]


# ---- a caption is its own ----


@pytest.mark.every_level
def test_captions_do_not_depend_on_what_stands_beside_them(
    model: BlipCaptioner, states: Array, golden: dict[str, Array]
) -> None:
    settings: dict[str, Any] = {
        "weights": golden["gradcams"][0], "do_sample": True, "top_k": 50, "min_length": 10, "seed": 5, "return_logits": True,
    }  # fmt: skip
    every = model.generate(states[0], num_captions=24, **settings)
    assert len({one.text for one in every}) > 20
    draws = Draws.of(5, states[0])
    keys = draws.keys(np.arange(24))
    patches = draw_patches(golden["gradcams"][0].astype(np.float64), 20, keys)
    order = np.random.default_rng(0).permutation(24)[:7]
    for threads in (1, 2, 3):
        _core.set_num_threads(threads)
        again = model.generate(
            states[0].copy(), num_captions=7, tokens=patches[order] + 1, do_sample=True, top_k=50, min_length=10,
            keys=keys[order], return_logits=True,
        )  # fmt: skip
        for number, one in zip(order, again):
            assert np.array_equal(one.ids, every[number].ids)
            if own_level() == "portable":  # OpenBLAS multiplies a row otherwise beside others
                close(one.logits, every[number].logits, LOGITS)
            else:
                assert one.score == every[number].score
                assert np.array_equal(one.logits, every[number].logits)
    few = model.generate(states[0], num_captions=3, **settings)
    assert [one.text for one in few] == [one.text for one in every[:3]]
    other = model.generate(states[0], num_captions=3, **{**settings, "seed": 6})
    assert [one.text for one in other] != [one.text for one in few]


def test_a_captions_score_is_that_of_its_text(model: BlipCaptioner, states: Array) -> None:
    found = model.generate(states[0], num_captions=40, do_sample=True, top_k=30, max_length=14, seed=2)
    ended = [one for one in found if one.ids is not None and one.ids[-1] == 23]
    assert len(ended) > 5
    compared = 0
    for one in ended:
        ids = np.concatenate([model._prompt_ids, one.ids])
        if np.array_equal(model._ids_of(one.text), ids):  # others are written otherwise than they are read
            assert model.score(states[0], one.text)[0] == pytest.approx(one.score, rel=1e-5)
            compared += 1
        logits = torch.from_numpy(model.logits(states[:1], ids[None, :-1])[0, 3:]).double()
        assert float(torch.log_softmax(logits, dim=1)[np.arange(len(one.ids)), one.ids].sum()) == pytest.approx(one.score)
    assert compared > 2


def test_scores_of_many_captions_are_those_of_each(
    model: BlipCaptioner, images: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = ["two cats", "", "a man holding a red hat on the street", "dogs"]
    every = model.score(images[0], captions)
    assert every.shape == (4,)
    alone = [float(model.score(images[0], caption)[0]) for caption in captions]
    np.testing.assert_allclose(every, alone, rtol=1e-6)
    monkeypatch.setattr("qavit.models._captioner.LOGITS_AT_ONCE", 2 * 145 * 20)
    np.testing.assert_allclose(model.score(images[0], captions), alone, rtol=1e-6)


def test_a_picture_is_read_once(model: BlipCaptioner, images: Array) -> None:
    states = model.image_states(images[:1])
    first = model._read(states)
    assert model._read(states) is first
    assert model._read(states.copy()) is not first
    model.generate(states, do_sample=True, num_captions=2)
    assert model._read(states) is first
    kept = len(model._memories)
    del states
    gc.collect()
    assert len(model._memories) == kept - 1


def test_beams_of_one_search_and_of_several(model: BlipCaptioner, states: Array, golden: dict[str, Array]) -> None:
    best = model.generate(states[0], num_captions=3, num_beams=3, max_length=12)
    assert len({one.text for one in best}) == 3
    ranks = [one.score / len(one.ids) for one in best if one.ids is not None]
    assert ranks == sorted(ranks, reverse=True)
    several = model.generate(states[0], num_captions=2, num_beams=3, tokens=golden["patches"][0], max_length=12)
    for patches, one in zip(golden["patches"][0], several):
        (alone,) = model.generate(states[0], num_beams=3, tokens=patches, max_length=12)
        assert np.array_equal(alone.ids, one.ids)


# ---- maps ----


def attention_of(model: Any, pixels: Array, ids: Array) -> Array:
    """transformers' cross-attention [L, T], the mean over blocks and heads."""
    with torch.no_grad():
        states = model.vision_model(torch.from_numpy(pixels)).last_hidden_state
        out = model.text_decoder.bert(
            input_ids=torch.from_numpy(ids[None]), encoder_hidden_states=states, is_decoder=True, output_attentions=True
        )
    return torch.stack(out.cross_attentions).mean(dim=(0, 2))[0].numpy()


def test_a_map_for_each_word(model: BlipCaptioner, images: Array) -> None:
    result = model.heatmaps(images[0], ["tree man", "a man holding a red hat"])
    assert result.words == [["tree", "man"], ["a", "man", "holding", "a", "red", "hat"]]
    assert result.method == "cross_attention"
    assert result.block == (0, 1, 2)
    assert result.raw.shape == (2, 24, 24)
    assert result.word_maps is not None
    # Of words of one token each, the caption's map is the mean.
    np.testing.assert_allclose(result.word_maps[0].mean(axis=0), result.raw[0], rtol=1e-5)
    assert (result.raw.sum(axis=(1, 2)) < 1.0).all(), "the class token has its part"


def test_a_written_caption_brings_its_maps(model: BlipCaptioner, images: Array, golden: dict[str, Array]) -> None:
    weights = golden["gradcams"][0]
    found = model.generate(
        images[0], num_captions=4, weights=weights, num_patches=9, do_sample=True, top_k=40, seed=1, heatmaps=True
    )
    for one in found:
        assert one.result is not None
        assert one.result.questions == [one.text]
        assert one.result.words == [one.text.split()]
        assert one.result.word_maps is not None
        assert one.result.word_maps[0].shape == (len(one.text.split()), 24, 24)
        # Only what was drawn can be looked at.
        assert ((one.result.word_maps[0] > 0).sum(axis=(1, 2)) <= 9).all()
        np.testing.assert_allclose(one.result.word_maps[0].sum(axis=(1, 2)), 1.0, rtol=1e-5)
    assert model.generate(images[0])[0].result is None


def test_words_and_the_pieces_they_are_made_of() -> None:
    pieces = ["", "a", "picture", "of", "a", "man", "'", "s", "ha", "##t", ",", "", "it", "is", "##n", "'", "t", ""]
    words, of = words_of_pieces(pieces, "a man's hat, it isn't")
    assert words == ["a", "man's", "hat,", "it", "isn't"]
    assert of == [-1, -1, -1, -1, 0, 1, 1, 1, 2, 2, 2, -1, 3, 4, 4, 4, 4, -1]
    assert words_of_pieces(["", "a", "picture", "of", "##s", "on"], " on") == (["on"], [-1, -1, -1, -1, -1, 0])
    assert words_of_pieces(["", "a"], "") == ([], [-1, -1])


# ---- transformers ----

VISION = {
    "hidden_size": 36, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "picture", "of", "two", "cats", "##s", ",", ".", "hat", "red"]


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A random model and its folder; its texts end now and then."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(4)
    text = {
        "hidden_size": 48, "intermediate_size": 44, "num_hidden_layers": 3, "num_attention_heads": 6, "vocab_size": 32,
        "encoder_hidden_size": 36, "max_position_embeddings": 40, "bos_token_id": 15, "sep_token_id": 3,
        "eos_token_id": 3, "pad_token_id": 0, "hidden_act": "gelu",
    }  # fmt: skip
    config = transformers.BlipConfig(vision_config={"hidden_act": "gelu", **VISION}, text_config=text)
    model = transformers.BlipForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if re.search("norm", name, re.IGNORECASE):
                parameter.add_(0.1 * torch.randn(parameter.shape))
            else:
                fan = parameter.shape[-1] if parameter.dim() > 1 else 4 * parameter.numel()
                parameter.copy_(torch.randn(parameter.shape) * 1.2 * fan**-0.5)
        model.text_decoder.cls.predictions.bias[3] += 1.5
    folder = tmp_path_factory.mktemp("captioner")
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return model, folder


@pytest.fixture(scope="module")
def loaded(hugging_face: tuple[Any, Path]) -> BlipCaptioner:
    model = qavit.load(hugging_face[1])
    assert isinstance(model, BlipCaptioner)
    return model


@pytest.fixture(scope="module")
def pixels() -> Array:
    return np.random.default_rng(7).standard_normal((3, 3, 32, 32), np.float32)


def generate(model: Any, pixels: Array, prompt: Array, count: int = 1, **options: Any) -> list[list[int]]:
    """What transformers writes behind the prompt, up to and with the end."""
    out = model.generate(
        torch.from_numpy(pixels[None]), input_ids=torch.from_numpy(np.array([[*prompt, 3]])), num_return_sequences=count,
        **{"do_sample": False, **options},
    )  # fmt: skip
    return [new_ids(row, 3, len(prompt)) for row in out.numpy()]


GENERATE = [
    {"max_length": 20},
    {"max_length": 20, "min_length": 9},
    {"max_length": 20, "repetition_penalty": 1.4},
    {"max_length": 12, "repetition_penalty": 1.2, "min_length": 6},
    {"max_length": 15, "num_beams": 3},
    {"max_length": 15, "num_beams": 2, "length_penalty": 2.0, "early_stopping": True},
    {"max_length": 15, "num_beams": 4, "repetition_penalty": 1.3, "min_length": 7},
    {"max_length": 15, "num_beams": 3, "length_penalty": -0.5, "early_stopping": "never"},
]


@pytest.mark.parametrize("settings", GENERATE)
def test_captions_are_those_of_transformers(
    settings: dict[str, Any], hugging_face: tuple[Any, Path], loaded: BlipCaptioner, pixels: Array
) -> None:
    count = settings.get("num_beams", 1)
    for one in pixels:
        want = generate(hugging_face[0], one, np.array([15]), count, **settings)
        found = loaded.generate(one, num_captions=count, **settings)
        assert [text.ids.tolist() for text in found if text.ids is not None] == want


def test_a_prompt_of_ones_own(hugging_face: tuple[Any, Path], pixels: Array) -> None:
    model, folder = hugging_face
    loaded = qavit.load(folder, config={"prompt": "a picture of "})
    assert isinstance(loaded, BlipCaptioner)
    want = generate(model, pixels[0], np.array([15, 5, 6, 7]), max_length=15)
    (found,) = loaded.generate(pixels[0], max_length=15)
    assert found.ids is not None
    assert [found.ids.tolist()] == want
    with pytest.raises(TypeError, match="prompt"):
        qavit.load(folder, config={"prompt": 3})


def test_logits_and_maps_are_those_of_transformers(
    hugging_face: tuple[Any, Path], loaded: BlipCaptioner, pixels: Array
) -> None:
    model, _ = hugging_face
    ids = np.array([[15, 5, 13, 10, 9, 3], [15, 8, 9, 11, 14, 3], [15, 1, 1, 12, 7, 3]])
    states = loaded.image_states(pixels)
    found = loaded.logits(states, ids)
    for row in range(3):
        with torch.no_grad():
            images = model.vision_model(torch.from_numpy(pixels[row, None])).last_hidden_state
            close(states[row], images[0].numpy(), STATES)
            out = model.text_decoder(torch.from_numpy(ids[row, None]), encoder_hidden_states=images)
        close(found[row], out.logits[0].numpy(), LOGITS)
    result = loaded.heatmaps(pixels[0], "a hats cats")
    attention = attention_of(model, pixels[:1], ids[0])[:, 1:].reshape(-1, 4, 4)
    assert result.words == [["a", "hats", "cats"]]
    assert result.word_maps is not None
    # A word's map is read where its tokens were written: a token earlier.
    close(result.word_maps[0], np.stack([attention[0], attention[1:3].mean(axis=0), attention[3]]), LOGITS)
    close(result.raw[0], attention[:4].mean(axis=0), LOGITS)


@pytest.mark.parametrize("panels", [0, 16])
def test_a_converted_folder_is_the_same(
    hugging_face: tuple[Any, Path], loaded: BlipCaptioner, pixels: Array, tmp_path: Path, panels: int
) -> None:
    convert(open_model(hugging_face[1], config={"prompt": "a picture of "}), tmp_path / "converted", panels=panels)
    again = qavit.load(tmp_path / "converted")
    assert isinstance(again, BlipCaptioner)
    assert again.prompt == "a picture of "
    ids = np.array([[15, 5, 6, 7]])
    states = again.image_states(pixels)
    assert np.array_equal(states, loaded.image_states(pixels))
    assert np.array_equal(again.logits(states[:1], ids), loaded.logits(states[:1], ids))


@pytest.mark.every_level
def test_bfloat16(hugging_face: tuple[Any, Path], loaded: BlipCaptioner, pixels: Array) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", qavit.PrecisionWarning)
        rounded = qavit.load(hugging_face[1], precision="bfloat16")
    assert isinstance(rounded, BlipCaptioner)
    ids = np.array([[15, 5, 13, 10, 9, 3]])
    close(rounded.logits(rounded.image_states(pixels[:1]), ids), loaded.logits(loaded.image_states(pixels[:1]), ids), 5e-2)


# ---- what cannot be ----


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_captions": 0}, ValueError, "num_captions: 0"),
        ({"num_captions": 2.0}, TypeError, "num_captions: expected a whole number"),
        ({"num_captions": 3}, ValueError, "num_captions: 3 captions would be the same"),
        ({"num_captions": 4, "num_beams": 3}, ValueError, "num_captions: 4 captions would be the same"),
        ({"weights": np.zeros(16)}, ValueError, "weights: all are 0"),
        ({"weights": np.ones(5)}, ValueError, "expected one for each of 16 patches"),
        ({"weights": -np.ones((4, 4))}, ValueError, "weights: -1 among the weights"),
        ({"weights": np.full(16, np.nan)}, ValueError, "weights: NaN"),
        ({"weights": np.ones(16), "num_patches": 17}, ValueError, "num_patches: 17, expected 1 to the 16 patches"),
        ({"weights": np.ones(16), "num_patches": 0}, ValueError, "num_patches: 0"),
        ({"num_patches": 3}, ValueError, "num_patches: it says how many are drawn by weights"),
        ({"weights": np.ones(16), "tokens": [1]}, ValueError, "tokens, weights: expected one of both"),
        ({"tokens": [17]}, ValueError, "tokens: 17 to 17, expected 0 to 16"),
        ({"tokens": [-1]}, ValueError, "tokens: -1"),
        ({"tokens": []}, ValueError, "tokens: expected whole numbers"),
        ({"tokens": [[1], [2]]}, ValueError, "tokens: 2 rows, expected 1"),
        ({"tokens": [0.5]}, ValueError, "tokens: expected whole numbers"),
        ({"max_length": 1}, ValueError, "max_length: 1, expected more than the 1 tokens"),
        ({"max_length": 41}, ValueError, "max_length: 41, expected at most 40"),
        ({"min_length": 30}, ValueError, "min_length: 30"),
        ({"top_k": 3}, ValueError, "expected do_sample=True"),
        ({"do_sample": True, "top_p": 0.0}, ValueError, "top_p: 0"),
        ({"do_sample": True, "seed": "x"}, TypeError, "seed"),
        ({"do_sample": True, "keys": np.zeros((2, 4), np.uint64)}, ValueError, r"keys: shape \[2, 4\], expected \[1, 4\]"),
        ({"num_beams": 2, "do_sample": True}, ValueError, "num_beams"),
    ],
)
def test_bad_settings_are_named(
    settings: dict[str, Any], error: type[Exception], message: str, loaded: BlipCaptioner, pixels: Array
) -> None:
    with pytest.raises(error, match=message):
        loaded.generate(pixels[0], **settings)


def test_bad_pictures_states_and_captions_are_named(loaded: BlipCaptioner, pixels: Array) -> None:
    states = loaded.image_states(pixels)
    with pytest.raises(ValueError, match="the states of 3 pictures, expected those of one"):
        loaded.generate(states)
    with pytest.raises(ValueError, match="states: NaN"):
        loaded.generate(np.full((17, 36), np.nan, np.float32))
    with pytest.raises(ValueError, match="3 pictures, expected one"):
        loaded.generate(pixels)
    with pytest.raises(ValueError, match="heatmaps: states have no picture"):
        loaded.generate(states[:1], heatmaps=True)
    with pytest.raises(ValueError, match=r"states: shape \[3, 3, 32, 32\], expected \[B, 17, 36\]"):
        loaded.logits(pixels, [[15]])
    with pytest.raises(ValueError, match="of 3 pictures for 2 texts"):
        loaded.logits(states, [[15], [15]])
    with pytest.raises(ValueError, match="ids: row 0 holds 32"):
        loaded.logits(states[:1], [[32]])
    with pytest.raises(ValueError, match="ids: expected whole numbers"):
        loaded.logits(states[:1], [[0.5]])
    with pytest.raises(ValueError, match="captions: the list is empty"):
        loaded.score(pixels[0], [])
    with pytest.raises(TypeError, match="captions: expected a str"):
        loaded.score(pixels[0], [3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="has more than 40 tokens"):
        loaded.score(pixels[0], "two " * 50)
    with pytest.raises(ValueError, match="reads all blocks together"):
        loaded.heatmaps(pixels[0], "two cats", block=1)


def test_a_vocabulary_that_does_not_fit(hugging_face: tuple[Any, Path], cases: dict[str, Any], tmp_path: Path) -> None:
    long = tmp_path / "vocab.txt"
    long.write_text("\n".join([*WORDS, *map(str, range(100, 120))]))
    with pytest.raises(ValueError, match=r"tokens up to number 36.*32 rows"):
        qavit.load(hugging_face[1], tokenizer=long)
    config = {"text": cases["med_config"], "vision": cases["vit"]}
    with pytest.raises(ValueError, match="a captioner needs a tokenizer"):
        qavit.load(checkpoint=GOLDEN / "checkpoint.pth", config=config)


def test_a_checkpoint_of_another_architecture(cases: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = torch.load(GOLDEN / "checkpoint.pth", weights_only=True)
    state = {name: value for name, value in checkpoint["model"].items() if "crossattention" not in name}
    torch.save({"model": state}, tmp_path / "plain.pth")
    with pytest.raises(ValueError, match="cross-attention"):
        qavit.load(checkpoint=tmp_path / "plain.pth", tokenizer=GOLDEN / "vocab.txt")


def test_weights_that_are_not_finite(cases: dict[str, Any], tmp_path: Path, images: Array) -> None:
    checkpoint = torch.load(GOLDEN / "checkpoint.pth", weights_only=True)
    checkpoint["model"]["text_decoder.cls.predictions.bias"][3] = float("nan")
    torch.save(checkpoint, tmp_path / "broken.pth")
    broken = qavit.load(
        checkpoint=tmp_path / "broken.pth", tokenizer=GOLDEN / "vocab.txt",
        config={"text": cases["med_config"], "vision": cases["vit"]},
    )  # fmt: skip
    assert isinstance(broken, BlipCaptioner)
    with pytest.raises(ValueError, match="NaN"):
        broken.generate(images[0])
    with pytest.raises(ValueError, match="NaN"):
        broken.score(images[0], "two cats")
