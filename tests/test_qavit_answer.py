"""QA-ViT's own answer against the public code's numbers (VisualT5): states, logits along its answers, texts."""

from __future__ import annotations

import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import close

import qavit
from qavit.checkpoints import convert

Array = Any
GOLDEN = Path(__file__).parent / "data" / "golden" / "qavit_answer"
# Of the largest. The decoder along the public code's own states: 1.5e-5 seen.
LOGITS = 1e-4
# The same from the pixels on: 1.2e-4 seen, of one question; the random language model magnifies what float32 leaves of the
# tower's states, 2e-6 on either side, by 50.
FROM_PIXELS = 2e-4
CASES: dict[str, Any] = json.loads((GOLDEN / "cases.json").read_text())["cases"]
ALONE = ("q0", "q1", "q2", "q3")
pytestmark = pytest.mark.filterwarnings("ignore::qavit.QuestionCutWarning")


def load(**options: Any) -> Any:
    files = {"checkpoint": GOLDEN / "checkpoint.pth", "vision": GOLDEN / "clip", "text": GOLDEN / "t5"}
    return qavit.load(**{**files, "config": {"lora_alpha": 8}, **options})


@pytest.fixture(scope="module")
def model() -> Any:
    return load()


@pytest.fixture(scope="module")
def golden() -> dict[str, Array]:
    with np.load(GOLDEN / "golden.npz") as arrays:
        return dict(arrays)


def question(tag: str, row: int = 0) -> str:
    return str(CASES[tag]["questions"][row])


def picture(golden: dict[str, Array], tag: str) -> Array:
    return golden["image"][int(tag[1]) if tag in ALONE else 0]


@pytest.mark.every_level
@pytest.mark.parametrize("tag", ALONE)
def test_states_are_those_of_the_public_code(model: Any, golden: dict[str, Array], tag: str) -> None:
    encoded = model._encode([question(tag)])
    assert np.array_equal(encoded.ids[0], golden[f"{tag}_ids"][0])
    last = model.vision(picture(golden, tag), (encoded.states, encoded.mask)).last_hidden_state
    close(last, golden[f"{tag}_vision"], 1e-5)
    found = model._text.encode_picture(golden[f"{tag}_vision"][0], golden[f"{tag}_ids"])
    close(found, golden[f"{tag}_encoder"][0], 1e-5)


@pytest.mark.every_level
@pytest.mark.parametrize("tag", ALONE)
def test_logits_along_the_public_answer(model: Any, golden: dict[str, Array], tag: str) -> None:
    decoder = model._language._answerer(model._tokenizer).decoder
    sequence, expected = golden[f"{tag}_sequences"], golden[f"{tag}_scores"][:, 0]
    for expected_tokens in (0, 16):  # by keys and values, and where they are few without
        memory = decoder.read(golden[f"{tag}_encoder"][0], tokens=expected_tokens)
        cache = decoder.begin(memory, 1, sequence.shape[1])
        close(decoder.step(cache, sequence[:, :-1], all=True)[0], expected, LOGITS)


@pytest.mark.every_level
@pytest.mark.parametrize("tag", ALONE)
def test_answers_are_those_of_the_public_code(model: Any, golden: dict[str, Array], tag: str) -> None:
    (found,) = model.answer(picture(golden, tag), question(tag), return_logits=True, **CASES[tag]["settings"])
    assert found.text == CASES[tag]["answers"][0]
    assert found.ids.tolist() == golden[f"{tag}_sequences"][0, 1:].tolist()
    expected = golden[f"{tag}_scores"][:, 0].astype(np.float64)
    close(found.logits, expected, FROM_PIXELS)
    largest = expected.max(axis=1, keepdims=True)
    normal = expected - largest - np.log(np.exp(expected - largest).sum(axis=1, keepdims=True))
    assert found.score == pytest.approx(normal[np.arange(len(found.ids)), found.ids].sum(), rel=1e-4)


def test_minimum_and_beams(model: Any, golden: dict[str, Array]) -> None:
    """Of a padded batch, the longest question alone is as the public code answers it."""
    (found,) = model.answer(golden["image"][1], question("min", 1), **CASES["min"]["settings"])
    assert found.text == CASES["min"]["answers"][1]
    assert found.ids.tolist() == golden["min_sequences"][1, 1:].tolist()
    (best,) = model.answer(golden["image"][0], question("beam"), **CASES["beam"]["settings"])
    assert best.text == CASES["beam"]["answers"][0]
    assert best.ids.tolist() == golden["beam_sequences"][0, 1:].tolist()


@pytest.mark.every_level
@pytest.mark.parametrize("settings", [{}, {"num_beams": 2, "max_new_tokens": 8}])
def test_answers_do_not_depend_on_each_other(model: Any, golden: dict[str, Array], settings: dict[str, int]) -> None:
    asked = [question(tag) for tag in ALONE]
    together = model.answer(golden["image"][2], asked, **settings)
    for text, one in zip(asked, together):
        (alone,) = model.answer(golden["image"][2], text, **settings)
        assert alone.text == one.text
        assert alone.ids.tolist() == one.ids.tolist()
        assert alone.score == pytest.approx(one.score, rel=1e-4)
        assert one.result.questions == [text]
        close(one.result.maps, alone.result.maps, 1e-5)


def test_the_map_is_of_the_same_pass(model: Any, golden: dict[str, Array], monkeypatch: pytest.MonkeyPatch) -> None:
    passes, run = [], model._run
    names = inspect.signature(run)

    def counted(*given: Any, **named: Any) -> Any:
        passes.append(names.bind(*given, **named).arguments)
        return run(*given, **named)

    monkeypatch.setattr(model, "_run", counted)
    asked = [question("q0"), question("q2")]
    answers = model.answer(golden["image"][0], asked)
    assert [tuple(named["outputs"]) for named in passes] == [("last",)]
    expected = model.heatmaps(golden["image"][0], asked)
    for row, one in enumerate(answers):
        assert one.result.block == expected.block
        close(one.result.maps[0], expected.maps[row], 1e-6)
        assert one.result.words == [expected.words[row]]
        close(one.result.word_maps[0], expected.word_maps[row], 1e-6)


def test_rows_of_a_data_set(model: Any, tmp_path: Path) -> None:
    """One pass through the tower gives map and answer, at the block and of the part of the picture that were asked for."""
    pytest.importorskip("pyarrow")
    from data_sets import make_rows, write_lines, write_pictures

    from qavit.data import read_maps, run

    asked = write_lines(tmp_path / "asked.jsonl", make_rows(write_pictures(tmp_path / "pictures", 2), 2))
    folder, report = convert(model._source, tmp_path / "model"), tmp_path / "answers.json"
    run(
        asked, tmp_path / "maps", images=tmp_path / "pictures", model=folder, block=5, fit="stretch", answers=report,
        answering={"max_new_tokens": 4},
    )  # fmt: skip
    answers = [one["answer"] for one in json.loads(report.read_text())]
    rows = list(read_maps(tmp_path / "maps"))
    assert len(rows) == len(answers) == 4
    for row, answer in zip(rows, answers):
        shown = model._see(tmp_path / "pictures" / row.image, "stretch")
        result, (found,) = model._answered(shown, [row.question], model._request(None, 5, "mean"), max_new_tokens=4)
        assert answer == found.text
        close(row.map.reshape(5, 5), result.maps[0], 2e-3)  # rows keep maps in half precision


def test_a_list_is_ranked(model: Any, golden: dict[str, Array]) -> None:
    asked = [question("q0"), question("q2")]
    written = model.answer(golden["image"][0], asked, max_new_tokens=3)
    answers = ["red car", "no", "a person", "red"]
    for row, found in enumerate(model.answer(golden["image"][0], asked, answers=answers)):
        assert found.ids is None
        assert found.result.questions == [asked[row]]
        assert sorted(answer for answer, _ in found.ranked) == sorted(answers)
        assert (found.text, np.exp(found.score)) == (found.ranked[0][0], pytest.approx(found.ranked[0][1]))
        # As the decoder finds them one by one.
        states = model._text.encode_picture(
            model.vision(golden["image"][0], model.encode_questions(asked[row])).last_hidden_state[0],
            model._encode([asked[row]]).ids[0][None],
        )
        decoder = model._language._answerer(model._tokenizer).decoder
        for answer, probability in found.ranked:
            ids = model._tokenizer.encode([answer], 20).ids.astype(np.int64)
            logits = decoder.step(
                decoder.begin(decoder.read(states), 1, 20), np.concatenate([[[0]], ids[:, :-1]], axis=1), all=True
            )[0].astype(np.float64)
            chosen = logits[np.arange(ids.shape[1]), ids[0]] - np.log(np.exp(logits).sum(axis=1))
            assert np.log(probability) == pytest.approx(chosen.sum(), rel=2e-4)
    assert all(one.ids is not None for one in written)


def test_in_bfloat16(golden: dict[str, Array]) -> None:
    model = load(precision="bfloat16")
    decoder = model._language._answerer(model._tokenizer).decoder
    for tag in ("q0", "q2", "q3"):  # of q1 a choice between keys turns, in bfloat16
        cache = decoder.begin(decoder.read(golden[f"{tag}_encoder"][0]), 1, 40)
        found = decoder.step(cache, golden[f"{tag}_sequences"][:, :-1], all=True)[0]
        close(found, golden[f"{tag}_scores"][:, 0], 0.15)
    (one,) = model.answer(golden["image"][0], question("q0"), max_new_tokens=5)
    assert 1 <= len(one.ids) <= 5


def test_converted_and_travelling(model: Any, golden: dict[str, Array], tmp_path: Path) -> None:
    convert(model._source, tmp_path / "model")
    expected = model.answer(golden["image"][0], question("q0"))[0]
    for again in (qavit.load(tmp_path / "model"), pickle.loads(pickle.dumps(model))):
        found = again.answer(golden["image"][0], question("q0"))[0]
        assert found.ids.tolist() == expected.ids.tolist()
        assert found.score == pytest.approx(expected.score, rel=1e-4)
    moved = load().to("cpu")
    assert moved.answer(golden["image"][0], question("q0"))[0].text == expected.text


def test_the_decoder_waits_for_a_question() -> None:
    model = load()
    assert model._language._decoder is None
    model.heatmaps(np.zeros((60, 60, 3), np.uint8), question("q0"))
    assert model._language._decoder is None


@pytest.mark.parametrize("left_out", ["lm_head", "translation_mlp.layers.0", "decoder.block."])
def test_a_checkpoint_without_all_of_it_does_not_answer(left_out: str, golden: dict[str, Array], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    stored = torch.load(GOLDEN / "checkpoint.pth", map_location="cpu", weights_only=True)
    stored["model"] = {name: tensor for name, tensor in stored["model"].items() if left_out not in name}
    torch.save(stored, tmp_path / "part.pth")
    if left_out == "translation_mlp.layers.0":
        with pytest.raises(ValueError, match=r"translation_mlp\.layers\.1\.\w+ \[.*\] is not expected"):
            load(checkpoint=tmp_path / "part.pth")
        return
    part = load(checkpoint=tmp_path / "part.pth")
    assert part.heatmaps(golden["image"][0], question("q0")).maps.shape == (1, 5, 5)
    with pytest.raises(
        ValueError, match="does not answer: it lists no answers, and its weights lack translation_mlp, decoder"
    ):
        part.answer(golden["image"][0], question("q0"))


def test_bad_calls(model: Any, golden: dict[str, Array]) -> None:
    image = golden["image"][0]
    for call, message in (
        (lambda: model.answer(image, "!"), "questions: '!' has no words"),
        (lambda: model.answer(image, []), "questions"),
        (lambda: model.answer(image, "the dog", max_new_tokens=0), "max_new_tokens: 0, expected 1 to 4095"),
        (lambda: model.answer(image, "the dog", max_new_tokens=2, min_new_tokens=3), "min_new_tokens: 3, expected 0 to"),
        (lambda: model.answer(image, "the dog", answers=["no", ""]), "answers: '' has no words"),
        (lambda: model.heatmaps(image, "the dog", answer="red"), "answer: method 'class' does not take it"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="max_new_tokens: expected a whole number, got float"):
        model.answer(image, "the dog", max_new_tokens=2.0)
    with pytest.raises(ValueError, match="answers: this model chooses from a list of answers"):
        qavit.load("demo").answer(np.zeros((40, 40, 3), np.uint8), "where is the star?", answers=["star"])
