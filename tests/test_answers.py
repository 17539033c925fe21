"""PnP-VQA from the map to the answer: LAVIS's rules from its own numbers, and what stands around the three models."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_models import GOLDEN, write_qavit
from stand_ins import StandInCaptioner, StandInReader

import qavit
import qavit.lavis
from qavit import PNPVQA
from qavit.answers._captions import MOST_DRAWN, Caption, collect
from qavit.answers._pipeline import contexts_of
from qavit.generation._draws import Draws

CAPTION = json.loads((GOLDEN / "blip_caption" / "cases.json").read_text())
READER = json.loads((GOLDEN / "unifiedqa_fid" / "cases.json").read_text())
QUESTIONS = ["where is the red car?", "is there a person", "where is the red car?"]


@pytest.fixture(scope="module")
def matcher(tmp_path_factory: pytest.TempPathFactory) -> qavit.QAViT:
    return qavit.load(write_qavit(tmp_path_factory.mktemp("model"), blocks=3, first=1, image_size=21, width=8))


@pytest.fixture
def model(matcher: qavit.QAViT) -> PNPVQA:
    return PNPVQA(matcher, StandInCaptioner(), StandInReader())


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


def samples_of(*pictures: int, questions: Sequence[str] = QUESTIONS) -> dict[str, Any]:
    """Pixels of the captioner's size, one picture for each number; equal numbers are equal pictures."""
    images = [np.random.default_rng(number).standard_normal((3, 24, 24)).astype(np.float32) for number in pictures]
    return {"image": np.stack(images), "text_input": list(questions)[: len(pictures)]}


# ---- LAVIS's rules ----


def test_captions_are_kept_as_lavis_keeps_them() -> None:
    case = CAPTION["forward_cap"]
    wanted = case["num_captions"]
    for picture, expected in enumerate(case["captions"]):
        passes = [decoded[picture * wanted : (picture + 1) * wanted] for decoded in case["decoded"]]
        # The prompt's length is cut off, whatever stands there.
        every = [Caption(text[13:], np.zeros(1, np.int32)) for one in passes for text in one]
        found = collect(lambda first, count, every=every: every[first : first + count], wanted)
        assert [caption.text for caption in found] == expected


@pytest.fixture(scope="module")
def captioner() -> Any:
    """The public code's captioner at a small size."""
    config = {"text": CAPTION["med_config"], "vision": CAPTION["vit"]}
    folder = GOLDEN / "blip_caption"
    return qavit.load(checkpoint=folder / "checkpoint.pth", tokenizer=folder / "vocab.txt", config=config)


def texts_of(captioner: Any, sequences: np.ndarray) -> list[str]:
    """What the captioner makes of token rows that end with [SEP] and padding."""
    end, prompt = CAPTION["special_ids"]["eos [SEP]"], 4
    return [captioner._text_of([*row[prompt : [*row, end].index(end)]]) for row in sequences.tolist()]


def test_lavis_tokens_become_its_captions(captioner: Any) -> None:
    golden, case = np.load(GOLDEN / "blip_caption" / "golden.npz"), CAPTION["forward_cap"]
    wanted = case["num_captions"]
    passes = [texts_of(captioner, sequences) for sequences in golden["cap_sequences"]]
    for picture, expected in enumerate(case["captions"]):
        own = [text for one in passes for text in one[picture * wanted : (picture + 1) * wanted]]
        every = [Caption(text, np.zeros(1, np.int32)) for text in own]
        found = collect(lambda first, count, every=every: every[first : first + count], wanted)
        assert [caption.text for caption in found] == expected
    more = [*texts_of(captioner, golden["post_sequences"]), *texts_of(captioner, golden["post_sequences_2"])]
    every = [Caption(text, np.zeros(1, np.int32)) for text in more]
    found = collect(lambda first, count: every[first : first + count], CAPTION["post"]["num_captions"])
    assert [caption.text for caption in found] == CAPTION["post"]["kept_in_order"]


def test_a_real_captioner_draws_by_the_map(captioner: Any, matcher: qavit.QAViT, picture: Path) -> None:
    model = PNPVQA(matcher, captioner, StandInReader())
    samples = {"image": np.zeros((1, 3, 384, 384), np.float32), "text_input": ["what?"]}
    samples["image"][:] = np.random.default_rng(5).standard_normal((3, 384, 384))
    maps = np.zeros((1, 576), np.float32)
    maps[0, [7, 300, 500]] = 1.0
    samples["gradcams"] = maps
    lengths = {"cap_max_length": 12, "cap_min_length": 10}
    captions = model.forward_cap(samples, num_captions=6, num_patches=3, seed=2, **lengths)["captions"][0]
    states = captioner.image_states(samples["image"])
    keys = Draws.of(2, samples["image"][0], "what?").keys(np.arange(6))
    written = captioner.generate(
        states, num_captions=6, tokens=np.array([8, 301, 501]), do_sample=True, max_length=12, min_length=10, top_k=50,
        keys=keys,
    )  # fmt: skip
    assert captions == [one.text for one in written]  # all different
    found = model.explain(picture, "where is the red car?", num_captions=5, num_patches=4)
    assert len(found.captions) == 5
    assert found.draws.grid == (24, 24)
    assert found.draws.raw.sum() == 20


def test_parts_of_earlier_captions_are_dropped_and_longer_ones_kept() -> None:
    case = CAPTION["post"]
    more = [f"a picture of tree {letter}" for letter in "abcdefghijklmn"]
    every = [Caption(text[13:], np.zeros(1, np.int32)) for text in [*case["decoded"], *more]]
    found = collect(lambda first, count: every[first : first + count], case["num_captions"])
    assert [caption.text for caption in found] == case["kept_in_order"]


@pytest.mark.parametrize("name", [name for name in READER["cases"] if name != "internal2"])
def test_contexts_are_lavis_own(name: str) -> None:
    case = READER["cases"][name]
    for question, captions, expected in zip(READER["questions"], READER["captions"], case["question_captions"]):
        found = contexts_of(question, captions, case["settings"]["num_captions"], case["settings"]["num_captions_fid"])
        assert found == expected


@pytest.fixture(scope="module")
def reader() -> Any:
    """The public code's reader at a small size."""
    return qavit.load(reader=GOLDEN / "unifiedqa_fid")


@pytest.mark.parametrize("name", [name for name in READER["cases"] if name != "internal2"])
def test_answers_out_of_captions_are_lavis_own(matcher: qavit.QAViT, captioner: Any, reader: Any, name: str) -> None:
    samples = {"text_input": READER["questions"], "captions": READER["captions"]}
    case = READER["cases"][name]
    assert PNPVQA(matcher, captioner, reader).forward_qa(samples, **case["settings"]) == case["answers"]
    assert samples["question_captions"] == case["question_captions"]


def test_how_much_each_caption_was_attended_to(matcher: qavit.QAViT, captioner: Any, reader: Any, picture: Path) -> None:
    model = PNPVQA(matcher, captioner, reader)
    found = model.explain(picture, "where is the red car?", num_captions=8, num_captions_fid=3, num_patches=4, min_len=5)
    assert len(found.contexts) == 3
    expected = reader.attention(None, found.contexts, found.answer.ids).mean(axis=0)
    np.testing.assert_allclose(found.attended, expected, rtol=1e-6)
    assert found.attended.sum() == pytest.approx(1.0, abs=1e-5)
    assert found.answer.text == reader.answer(None, found.contexts, min_len=5).text


@pytest.mark.parametrize("kind", ["blip_itm", "albef_itm", "blip2_itm"])
def test_any_matcher_picks_the_patches(kind: str, captioner: Any, reader: Any, picture: Path) -> None:
    pytest.importorskip("torch")
    from test_matchers import load

    if kind == "blip_itm":
        folder = GOLDEN / kind
        facts = json.loads((folder / "cases.json").read_text())
        config = {"text": facts["med_config"], "vision": facts["vit"]}
        chosen: Any = qavit.load(checkpoint=folder / "checkpoint.pth", tokenizer=folder / "vocab.txt", config=config)
    else:
        chosen = load(kind)
    model = PNPVQA(chosen, captioner, reader)
    options: dict[str, Any] = {"num_captions": 4, "num_patches": 5}
    together = model.explanations(picture, QUESTIONS[:2], **options)
    for question, found in zip(QUESTIONS, together):
        alone = model.explain(picture, question, **options)
        assert (alone.captions, alone.answer.text) == (found.captions, found.answer.text)
        assert found.draws.grid == captioner.grid
    again = pickle.loads(pickle.dumps(model)).explain(picture, QUESTIONS[0], **options)
    assert again.captions == together[0].captions


def test_several_contexts_batches_are_refused_by_name(model: PNPVQA) -> None:
    samples = {"text_input": READER["questions"], "captions": READER["captions"]}
    with pytest.raises(ValueError, match="internal_bsz_fid: got 2, expected 1"):
        model.forward_qa(samples, internal_bsz_fid=2)


def test_too_few_captions_for_one_text_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"captions: 2, too few for one text of 4 \(num_captions_fid\)"):
        contexts_of("what?", ["a", "b"], 9, 4)
    with pytest.raises(ValueError, match="the list is empty"):
        contexts_of("what?", [], 9, 4)


def test_defaults_and_order_of_arguments_are_lavis_own() -> None:
    import inspect

    def defaults(method: Any) -> dict[str, Any]:
        found = inspect.signature(method).parameters.values()
        return {one.name: one.default for one in found if one.kind == one.POSITIONAL_OR_KEYWORD}

    assert list(defaults(PNPVQA.forward_cap).items())[2:] == [
        ("cap_max_length", 20), ("cap_min_length", 0), ("top_p", 1), ("top_k", 50), ("repetition_penalty", 1.0),
        ("num_captions", 100), ("num_patches", 20),
    ]  # fmt: skip
    assert list(defaults(PNPVQA.forward_qa).items())[2:] == [
        ("num_beams", 1), ("max_len", 20), ("min_len", 0), ("internal_bsz_fid", 1), ("num_captions", 100),
        ("num_captions_fid", 1),
    ]  # fmt: skip
    assert list(defaults(PNPVQA.predict_answers).items())[2:-1] == [
        ("num_beams", 1), ("inference_method", "generate"), ("max_len", 20), ("min_len", 0), ("internal_bsz_fid", 1),
        ("num_captions", 50), ("num_captions_fid", 1), ("cap_max_length", 20), ("cap_min_length", 10), ("top_k", 50),
        ("top_p", 1), ("repetition_penalty", 1), ("num_patches", 50),
    ]  # fmt: skip


# ---- the steps ----


def test_a_questions_captions_depend_on_it_alone(model: PNPVQA) -> None:
    options: dict[str, Any] = {"num_captions": 6, "num_patches": 3, "seed": 5}
    together = model.forward_cap(model.forward_itm(samples_of(1, 1, 2)), **options)["captions"]
    alone = [
        model.forward_cap(model.forward_itm(samples_of(number, questions=[question])), **options)["captions"][0]
        for number, question in zip((1, 1, 2), QUESTIONS)
    ]
    assert together == alone
    assert together[0] != together[1]  # another question
    assert together[0] != together[2]  # another picture
    assert model.forward_cap(model.forward_itm(samples_of(1)), **{**options, "seed": 6})["captions"][0] != alone[0]


def test_a_picture_is_encoded_once(model: PNPVQA) -> None:
    model.forward_cap(model.forward_itm(samples_of(1, 1, 2)), num_captions=2, num_patches=2)
    assert model.captioner.pictures == 2


def test_settings_reach_the_models(model: PNPVQA) -> None:
    samples = samples_of(1)
    model.predict_answers(
        samples, num_beams=3, max_len=9, min_len=2, num_captions=4, num_captions_fid=2, cap_max_length=12, cap_min_length=6,
        top_k=7, top_p=0.5, repetition_penalty=1.5, num_patches=3,
    )  # fmt: skip
    call = model.captioner.calls[0]
    assert (call["max_length"], call["min_length"], call["top_k"], call["top_p"]) == (12, 6, 7, 0.5)
    assert (call["repetition_penalty"], call["do_sample"], call["tokens"].shape) == (1.5, True, (4, 3))
    reading = model.reader.calls[0]
    assert (reading["num_beams"], reading["max_len"], reading["min_len"]) == (3, 9, 2)
    assert reading["contexts"] == samples["question_captions"][0]
    assert len(reading["contexts"]) == 2


def test_a_whole_answer_and_what_lies_in_samples(model: PNPVQA, matcher: qavit.QAViT) -> None:
    samples = samples_of(1, 1, 2)
    answers, captions, maps = model.predict_answers(samples, num_captions=5, num_patches=3)
    assert len(answers) == 3
    assert [len(one) for one in captions] == [5, 5, 5]
    assert samples["captions"] is captions
    assert samples["gradcams"] is maps
    assert maps.shape == (3, 9)
    assert maps.dtype == np.float32
    pixels = qavit.lavis.fit_images(samples["image"], matcher)
    own = matcher.forward_itm({"image": pixels, "text_input": QUESTIONS}, block_num=matcher.default_block)
    np.testing.assert_allclose(maps, own, rtol=1e-5)  # the same grid
    steps = model.forward_cap(model.forward_itm(samples_of(1, 1, 2)), cap_min_length=10, num_captions=5, num_patches=3)
    assert steps["captions"] == captions
    assert model.forward_qa(steps, num_captions=5) == answers
    one, _, _ = model.predict_answers({**samples_of(1), "text_input": QUESTIONS[0]}, num_captions=5, num_patches=3)
    assert one == answers[:1]


def test_maps_go_to_the_captioners_grid(matcher: qavit.QAViT) -> None:
    finer = PNPVQA(matcher, StandInCaptioner(patch=4), StandInReader())
    maps = finer.forward_itm(samples_of(1))["gradcams"]
    coarse = PNPVQA(matcher, StandInCaptioner(), StandInReader()).forward_itm(samples_of(1))["gradcams"]
    np.testing.assert_allclose(maps.reshape(3, 2, 3, 2).sum(axis=(1, 3)), coarse.reshape(3, 3), rtol=1e-5)


def test_tensors_come_back_as_tensors(model: PNPVQA) -> None:
    torch = pytest.importorskip("torch")
    samples = samples_of(1, 2)
    tensors = {**samples, "image": torch.from_numpy(samples["image"])}
    answers, captions, maps = model.predict_answers(tensors, num_captions=3, num_patches=2)
    assert isinstance(maps, torch.Tensor)
    assert maps.dtype == torch.float32
    expected = model.predict_answers(samples, num_captions=3, num_patches=2)
    assert (answers, captions) == expected[:2]
    np.testing.assert_array_equal(maps.numpy(), expected[2])


def test_block_none_is_the_matchers_own_and_a_number_is_that_block(model: PNPVQA, matcher: qavit.QAViT) -> None:
    default = model.forward_itm(samples_of(1))["gradcams"]
    np.testing.assert_array_equal(model.forward_itm(samples_of(1), matcher.default_block)["gradcams"], default)
    with pytest.warns(qavit.QuestionBlindWarning):
        assert (model.forward_itm(samples_of(1), 0)["gradcams"] != default).any()


# ---- what cannot be ----


def test_a_captioner_that_always_says_the_same_ends(matcher: qavit.QAViT) -> None:
    model = PNPVQA(matcher, StandInCaptioner(words=("man",)), StandInReader())
    with pytest.warns(qavit.QavitWarning, match=r"1 of 5 captions: 50 were drawn.*num_patches.*top_k"):
        samples = model.forward_cap(model.forward_itm(samples_of(1)), num_captions=5, num_patches=2)
    assert samples["captions"] == [["man man man man man"]]
    assert sum(call["num_captions"] for call in model.captioner.calls) == 5 * MOST_DRAWN
    assert model.forward_qa(samples, num_captions=5) == [model.forward_qa(samples, num_captions=1)[0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(gradcams=np.zeros((1, 9), np.float32)), r"samples\['gradcams'\]\[0\]: all are 0"),
        (lambda s: s.update(gradcams=-s["gradcams"]), r"samples\['gradcams'\]\[0\].*expected none below 0"),
        (lambda s: s.update(gradcams=s["gradcams"] * np.nan), "NaN or infinity"),
        (lambda s: s.update(gradcams=s["gradcams"][:, :4]), r"shape \[1, 4\], expected \[1, 9\]"),
        (lambda s: s.pop("gradcams"), "there are no 'gradcams'; forward_itm puts them in"),
        (lambda s: s.update(text_input=["a", "b"]), "1 pictures and 2 questions"),
        (lambda s: s.pop("image"), "expected a mapping with 'image'"),
    ],
)
def test_bad_samples_are_named(model: PNPVQA, change: Any, message: str) -> None:
    samples = dict(model.forward_itm(samples_of(1)))
    change(samples)
    with pytest.raises(ValueError, match=message):
        model.forward_cap(samples, num_captions=3, num_patches=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_patches": 10}, "num_patches: 10, expected 1 to the 9 patches"),
        ({"num_captions": 0}, "num_captions: got 0"),
        ({"top_p": 0}, "top_p: got 0"),
        ({"seed": 1.5}, "seed: expected a whole number"),
    ],
)
def test_bad_settings_are_named(model: PNPVQA, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        model.forward_cap(model.forward_itm(samples_of(1)), **{"num_patches": 3, "num_captions": 2, **options})


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ([[]], r"samples\['captions'\]\[0\]: the list is empty"),
        ([["a"], ["b"]], "expected a list of captions for each of 1 questions"),
        ("text", "expected a list of captions for each"),
        ([[1]], "expected a list of str"),
        (["text"], "expected a list of str"),
    ],
)
def test_bad_captions_are_named(model: PNPVQA, captions: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        model.forward_qa({"text_input": ["what?"], "captions": captions})


def test_questions_without_words_are_refused(model: PNPVQA, picture: Path) -> None:
    for question in ("", "?", " .?"):
        with pytest.raises(ValueError, match="has no words"):
            model.explain(picture, question, num_patches=3)
        pixels = np.zeros((1, 3, *model.captioner.grid), np.float32)
        for call in (model.forward_itm, model.predict_answers):
            with pytest.raises(ValueError, match="has no words"):
                call({"image": pixels, "text_input": [question]})
        with pytest.raises(ValueError, match="has no words"):
            model.forward_qa({"text_input": [question], "captions": [["a cat"]]})


def test_parts_of_another_kind_are_named(matcher: qavit.QAViT) -> None:
    with pytest.raises(TypeError, match=r"captioner: expected a model with image_states.*got StandInReader"):
        PNPVQA(matcher, StandInReader(), StandInReader())
    with pytest.raises(
        TypeError, match=r"matcher: expected a model, got the path 'itm\.pth'; qavit\.load\(checkpoint='itm\.pth'\)"
    ):
        PNPVQA("itm.pth", StandInCaptioner(), StandInReader())
    with pytest.raises(TypeError, match=r"reader: .*qavit\.load\(reader='t5'\)"):
        PNPVQA(matcher, StandInCaptioner(), Path("t5"))
    with pytest.raises(TypeError, match=r"matcher: .*got StandInCaptioner"):
        PNPVQA(StandInCaptioner(), StandInCaptioner(), StandInReader())
    with pytest.raises(TypeError, match=r"reader: expected a model of kind 'reader', got .* of kind 'qavit'"):
        PNPVQA(matcher, StandInCaptioner(), matcher)
    with pytest.raises(ValueError, match="inference_method: got 'rank'"):
        PNPVQA(matcher, StandInCaptioner(), StandInReader()).predict_answers(samples_of(1), inference_method="rank")


# ---- explain ----


def test_an_explanation_says_what_the_answer_is_made_of(model: PNPVQA, picture: Path, tmp_path: Path) -> None:
    found = model.explain(picture, "Where is the red car?", num_captions=6, num_patches=3, seed=1)
    assert found.question == "Where is the red car?"
    (again,) = model.answer(picture, found.question, num_captions=6, num_patches=3, seed=1)
    assert str(found) == found.answer.text == again.text
    assert found.answer.result is found.result
    assert found.result.questions == [found.question]
    assert len(found.captions) == len(found.contexts) == 6
    assert found.contexts[0] == f"where is the red car? \\n {found.captions[0]}."
    drawn = np.concatenate([call["tokens"] for call in model.captioner.calls[:1]])
    counts = np.bincount(drawn.ravel() - 1, minlength=9).reshape(3, 3)
    np.testing.assert_array_equal(found.draws.raw[0], counts)
    assert found.draws.raw.sum() == 6 * 3
    assert repr(found) == f"Explanation({found.question!r}: {found.answer.text!r}, out of 6 captions)"
    ranked = found.ranked_captions()
    shares = [share for _, share in ranked]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1.0, abs=1e-6)
    stored = json.loads(found.save(tmp_path / "why.json").read_text())
    assert stored["answer"] == found.answer.text
    assert np.sum(stored["draws"]) == 18
    assert Image.open(found.save(tmp_path / "why.png", top=3)).size[0] > 600
    assert found._repr_jpeg_().startswith(b"\xff\xd8\xff")


def test_questions_about_a_picture_are_explained_as_they_are_alone(model: PNPVQA, picture: Path) -> None:
    options: dict[str, Any] = {"num_captions": 4, "num_patches": 3}
    together = model.explanations(picture, QUESTIONS[:2], **options)
    for question, found in zip(QUESTIONS, together):
        alone = model.explain(picture, question, **options)
        assert (found.captions, found.answer.text) == (alone.captions, alone.answer.text)
        np.testing.assert_array_equal(found.result.raw, alone.result.raw)


def test_a_reader_that_says_nothing_of_its_attention_is_no_error(matcher: qavit.QAViT, picture: Path) -> None:
    class Silent(StandInReader):
        attention = None  # type: ignore[assignment]

    found = PNPVQA(matcher, StandInCaptioner(), Silent()).explain(picture, "where?", num_captions=2, num_patches=2)
    assert found.attended is None
    assert [share for _, share in found.ranked_captions()] == [None, None]
    assert found._repr_jpeg_().startswith(b"\xff\xd8\xff")


# ---- configurations ----

LAVIS = {
    "model": {
        "arch": "pnp_vqa",
        "image_question_matching_model": {
            "arch": "blip_image_text_matching", "load_finetuned": True, "finetuned": "{itm}", "vit_type": "large",
            "vit_grad_ckpt": False, "vit_ckpt_layer": 0, "image_size": 384,
            "med_config_path": "configs/models/med_large_config.json", "embed_dim": 256,
        },
        "image_captioning_model": {
            "arch": "blip_caption", "load_finetuned": True, "finetuned": "{cap}", "vit_type": "large",
            "vit_grad_ckpt": True, "vit_ckpt_layer": 5, "image_size": 384,
            "med_config_path": "configs/models/med_large_config.json", "prompt": "a picture of ",
        },
        "question_answering_model": {
            "arch": "pnp_unifiedqav2_fid", "pretrained": "{qa}",
            "t5_config_path": "configs/models/pnp-vqa/unifiedqav2_base_config.json",
        },
    },
    "preprocess": {
        "vis_processor": {"eval": {"name": "blip_image_eval", "image_size": 384}},
        "text_processor": {"eval": {"name": "blip_caption"}},
    },
}  # fmt: skip


def lavis_file(tmp_path: Path) -> dict[str, Any]:
    """LAVIS's file with paths of this machine, where there are empty files."""
    for name in ("itm.pth", "vocab.txt", "cap.pth"):
        (tmp_path / name).write_bytes(b"")
    settings = copy.deepcopy(LAVIS)
    blocks: Any = settings["model"]
    blocks["image_question_matching_model"]["finetuned"] = str(tmp_path / "itm.pth")
    blocks["image_captioning_model"]["finetuned"] = str(tmp_path / "cap.pth")
    blocks["question_answering_model"]["pretrained"] = str(tmp_path)
    return settings


def test_lavis_own_file_says_what_is_loaded(tmp_path: Path) -> None:
    from qavit.answers._parts import block_arguments

    found = block_arguments(qavit.Config(lavis_file(tmp_path)))
    wide = {"hidden_size": 1024}
    assert found == {
        "image_question_matching_model": {
            "checkpoint": str(tmp_path / "itm.pth"), "tokenizer": str(tmp_path / "vocab.txt"), "image_size": 384,
            "config": {"vision": wide},
        },
        "image_captioning_model": {
            "checkpoint": str(tmp_path / "cap.pth"), "tokenizer": str(tmp_path / "vocab.txt"), "image_size": 384,
            "config": {"prompt": "a picture of ", "vision": wide},
        },
        "question_answering_model": {"reader": str(tmp_path)},
    }  # fmt: skip


def test_loaded_models_are_parts_too(matcher: qavit.QAViT) -> None:
    model = PNPVQA.from_config(
        {
            "image_question_matching_model": matcher, "image_captioning_model": StandInCaptioner(),
            "question_answering_model": StandInReader(), "model_type": "base", "offload_model": True,
        }
    )  # fmt: skip
    assert model.matcher is matcher
    assert model.offload_model
    assert model.image_captioning_model is model.captioner


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: m.pop("question_answering_model"), ValueError, "question_answering_model is missing"),
        (lambda m: m.update(arch="img2prompt_vqa"), ValueError, "arch: got 'img2prompt_vqa', expected 'pnp_vqa'"),
        (lambda m: m.update(num_captions=3), ValueError, "unknown settings num_captions"),
        (
            lambda m: m["image_captioning_model"].update(finetuned="https://storage.example/cap.pth"),
            ValueError, "image_captioning_model: https.*is an address; fetch the file yourself",
        ),
        (lambda m: m["image_captioning_model"].update(arch="blip_vqa"), ValueError, "image_captioning_model: arch: got"),
        (lambda m: m["image_captioning_model"].update(depth=3), ValueError, "model: unknown settings depth"),
        (lambda m: m["image_captioning_model"].update(vit_type="huge"), ValueError, "vit_type: got 'huge'"),
        (lambda m: m["image_captioning_model"].update(med_config_path="/no/med.json"), FileNotFoundError, "med_config_path"),
        (lambda m: m["question_answering_model"].pop("pretrained"), ValueError, "model: no file is named"),
        (lambda m: m.update(image_captioning_model=3), TypeError, "image_captioning_model: expected a mapping"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(tmp_path: Path, change: Any, error: type[Exception], message: str) -> None:
    from qavit.answers._parts import block_arguments

    settings = lavis_file(tmp_path)
    change(settings["model"])
    with pytest.raises(error, match=message):
        block_arguments(settings)


def test_other_pictures_than_blips_are_refused(tmp_path: Path) -> None:
    from qavit.answers._parts import block_arguments

    settings: dict[str, Any] = lavis_file(tmp_path)
    settings["preprocess"]["vis_processor"]["eval"]["name"] = "clip_image_eval"
    with pytest.raises(ValueError, match="preprocess: got 'clip_image_eval'"):
        block_arguments(settings)


def test_a_part_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match="image_question_matching_model: "):
        PNPVQA.from_config(lavis_file(tmp_path))


# ---- the doors of scripts ----


def test_a_qavit_under_pnp_vqas_names_answers(matcher: qavit.QAViT) -> None:
    parts = {"image_captioning_model": StandInCaptioner(), "question_answering_model": StandInReader()}
    model = qavit.PNPVQAWithQAViT(matcher, **parts)
    samples = samples_of(1, 1, 2)
    answers, captions, maps = model.predict_answers(samples, num_captions=4, num_patches=3)
    plain = PNPVQA(matcher, StandInCaptioner(), StandInReader())
    expected = plain.predict_answers(samples_of(1, 1, 2), num_captions=4, num_patches=3)
    assert (answers, captions) == expected[:2]
    np.testing.assert_array_equal(maps, expected[2])
    # forward_itm takes the model's own size, and leaves what forward_cap needs.
    own = {**samples, "image": qavit.lavis.fit_images(samples["image"], matcher)}
    found = model.forward_itm(own, block_num=matcher.default_block)
    np.testing.assert_array_equal(own["gradcams"], found)
    assert model.forward_qa(model.forward_cap(own, num_captions=4, num_patches=3), num_captions=4)
    configured = qavit.PNPVQAWithQAViT.from_config({"path": None, **parts})
    assert configured.captioner is parts["image_captioning_model"]
    assert configured.reader is parts["question_answering_model"]


def test_a_subclass_that_reads_maps_otherwise_is_heard(matcher: qavit.QAViT) -> None:
    class Uniform(qavit.PNPVQAWithQAViT):
        def extract_qavit_attention(self, vision_outputs: Any, block_num: Any = None) -> Any:
            return np.full_like(super().extract_qavit_attention(vision_outputs, block_num), 1 / 9)

    model = Uniform(matcher, image_captioning_model=StandInCaptioner(), question_answering_model=StandInReader())
    _, _, maps = model.predict_answers(samples_of(1, 2), num_captions=2, num_patches=3)
    np.testing.assert_allclose(maps, 1 / 9, rtol=1e-6)


def test_without_a_captioner_or_a_reader_the_steps_say_so(matcher: qavit.QAViT) -> None:
    model = qavit.PNPVQAWithQAViT(matcher, block_num=2)
    samples: dict[str, Any] = {"image": np.zeros((1, 3, 21, 21), np.float32), "text_input": ["where?"]}
    model.forward_itm(samples)
    assert samples["gradcams"].shape == (1, 9)
    with pytest.raises(ValueError, match=r"forward_cap: this model has no captioner; give one .image_captioning_model"):
        model.forward_cap(samples)
    with pytest.raises(ValueError, match="forward_qa: this model has no reader"):
        model.forward_qa({**samples, "captions": [["a"]]})


class Live:
    """A PnP-VQA model as LAVIS's is called."""

    def forward_itm(self, samples: Any, block_num: int = 7) -> Any:
        return samples

    def forward_cap(self, samples: Any, cap_max_length: int = 20) -> Any:
        raise NotImplementedError

    def forward_qa(self, samples: Any, num_beams: int = 1) -> Any:
        raise NotImplementedError

    def predict_answers(self, samples: Any) -> Any:
        return self.forward_qa(self.forward_cap(self.forward_itm(samples)))


def test_steps_of_a_live_model_are_replaced_one_by_one(matcher: qavit.QAViT) -> None:
    live, captioner, reader = Live(), StandInCaptioner(), StandInReader()
    samples = {**samples_of(1), "gradcams": np.full((1, 9), 1 / 9, np.float32)}
    with qavit.lavis.replace_forward_cap(live, captioner), qavit.lavis.replace_forward_qa(live, reader):
        found = live.forward_cap(samples, 20, num_captions=3, num_patches=2, seed=4)  # type: ignore[call-arg]
        assert found is samples
        assert live.forward_qa(samples, num_captions=3) == [reader.answer(None, samples["question_captions"][0]).text]  # type: ignore[call-arg]
    with pytest.raises(NotImplementedError):
        live.forward_cap(samples)
    replaced = qavit.lavis.replace_predict_answers(live, matcher, captioner, reader)
    expected = PNPVQA(matcher, captioner, reader).predict_answers(samples_of(1), num_captions=3, num_patches=2)
    answers, captions, maps = live.predict_answers(samples_of(1), num_captions=3, num_patches=2)  # type: ignore[call-arg]
    assert (answers, captions) == expected[:2]
    np.testing.assert_array_equal(maps, expected[2])
    again = qavit.lavis.replace_predict_answers(live, matcher, captioner, reader)
    with pytest.raises(RuntimeError, match="predict_answers was replaced again since"):
        replaced.restore()
    again.restore()
    replaced.restore()
    assert "predict_answers" not in vars(live)


def test_what_cannot_replace_a_step_is_named(matcher: qavit.QAViT) -> None:
    with pytest.raises(TypeError, match="pnp_vqa_model: expected an object with forward_cap, got object"):
        qavit.lavis.replace_forward_cap(object())
    with pytest.raises(TypeError, match="captioner: none is given, and Live has no image_captioning_model"):
        qavit.lavis.replace_forward_cap(Live())
    with pytest.raises(TypeError, match=r"reader: expected a model of kind 'reader', got .* of kind 'qavit'"):
        qavit.lavis.replace_forward_qa(Live(), matcher)


def test_files_of_another_model_and_foreign_vocabularies_are_named(captioner: Any, reader: Any, tmp_path: Path) -> None:
    def block(name: str, **more: Any) -> dict[str, Any]:
        facts, folder = json.loads((GOLDEN / name / "cases.json").read_text()), GOLDEN / name
        config = {"text": facts["med_config"], "vision": facts["vit"]}
        return {"finetuned": str(folder / "checkpoint.pth"), "config": config, **more}

    settings: dict[str, Any] = {
        "image_question_matching_model": block("blip_itm"), "image_captioning_model": captioner,
        "question_answering_model": reader,
    }  # fmt: skip
    assert PNPVQA.from_config(settings).matcher.kind == "blip_itm"
    with pytest.raises(TypeError, match=r"captioner: expected a model of kind 'blip_caption', got .* of kind 'blip_itm'"):
        PNPVQA.from_config({**settings, "image_captioning_model": block("blip_itm")})
    with pytest.raises(ValueError, match=r"question_answering_model: .*reader: .*expected a T5"):
        PNPVQA.from_config({**settings, "question_answering_model": str(GOLDEN / "qavit_official_late" / "clip")})
    longer = tmp_path / "vocab.txt"
    longer.write_text((GOLDEN / "blip_caption" / "vocab.txt").read_text() + "".join(f"word{i}\n" for i in range(99)))
    with pytest.raises(ValueError, match=r"image_captioning_model: .*tokenizer"):
        PNPVQA.from_config({**settings, "image_captioning_model": block("blip_caption", tokenizer=str(longer))})
