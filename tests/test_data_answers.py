"""Answers of whole data sets: the official result files, samples, estimates, interruptions."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import same_rows, write_pictures
from PIL import Image
from stand_ins import StandInCaptioner, StandInReader

import qavit
import qavit.data
from qavit.answers import _open as answers_open
from qavit.cli import _main as cli_main
from qavit.cli import _options as cli_options
from qavit.data._actor import HeatmapActor
from qavit.data._sample import draw_sample
from qavit.generation import Generated

pytest.importorskip("pyarrow")

ROOT = Path(__file__).parent.parent
ASKED = ("where is the star?", "what color is the ring?", "is there a circle?")
pytestmark = pytest.mark.filterwarnings("ignore::qavit.QavitWarning")


@pytest.fixture(scope="module", autouse=True)
def quick_disk() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


def vqa_questions(folder: Path, pictures: int = 6) -> Path:
    """VQAv2's layout: three questions a picture, one picture missing."""
    for number, name in enumerate(write_pictures(folder, pictures - 1)):
        Image.open(folder / name).save(folder / f"COCO_val2014_{number:012d}.jpg")
    questions = [
        {"image_id": picture, "question": ASKED[turn], "question_id": 1000 * picture + turn}
        for picture in range(pictures)
        for turn in range(3)
    ]
    path = folder / "questions.json"
    path.write_text(json.dumps({"data_subtype": "val2014", "questions": questions}))
    return path


def run(questions: Path, out: Path, **options: Any) -> qavit.data.RunSummary:
    return qavit.data.run(questions, out, **{"part_rows": 4, "window": 12, **options})


def test_the_official_file_has_every_question_in_order(tmp_path: Path) -> None:
    questions = vqa_questions(tmp_path)
    results = tmp_path / "made" / "results.json"
    summary = run(questions, tmp_path / "out", answers=results)
    assert (summary.rows, summary.errors) == (18, 3)
    rows = json.loads(results.read_text())
    asked = json.loads(questions.read_text())["questions"]
    assert [row["question_id"] for row in rows] == [row["question_id"] for row in asked]
    assert all(set(row) == {"question_id", "answer"} and type(row["question_id"]) is int for row in rows)
    assert [row["answer"] for row in rows[15:]] == ["", "", ""]
    model = qavit.load("demo")
    for row, one in list(zip(rows, asked))[:3]:
        picture = tmp_path / f"COCO_val2014_{one['image_id']:012d}.jpg"
        assert row["answer"] == model.answer(picture, [one["question"]])[0].text
    errors = dict(qavit.data.read_maps(tmp_path / "out").errors())
    assert list(errors) == ["5000", "5001", "5002"]
    assert "no such file" in errors["5000"].lower()


def test_gqas_file_by_its_layout_or_by_choice(tmp_path: Path) -> None:
    (name,) = write_pictures(tmp_path, 1)
    (tmp_path / name).rename(tmp_path / "12.jpg")
    gqa = tmp_path / "gqa.json"
    gqa.write_text(json.dumps({"0071": {"question": ASKED[0], "imageId": "12", "answer": "x"}}))
    run(gqa, tmp_path / "a", answers=tmp_path / "a.json")
    (row,) = json.loads((tmp_path / "a.json").read_text())
    assert row["questionId"] == "0071"
    assert set(row) == {"questionId", "prediction"}
    run(gqa, tmp_path / "b", answers=tmp_path / "b.json", layout="vqa")
    (other,) = json.loads((tmp_path / "b.json").read_text())
    assert other == {"question_id": "0071", "answer": row["prediction"]}  # no number: it would lose its zeros


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "gqa"}, "layout, answering: they are for answers"),
        ({"answers": "r.json", "layout": "coco"}, "layout: got 'coco', expected 'vqa' or 'gqa'"),
        ({"sample": 0}, "sample: got 0"),
        ({"answers": "r.json", "answering": {"num_beams": 3}}, "num_beams.*chooses from a list"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        run(vqa_questions(tmp_path, 2), tmp_path / "out", **options)
    assert not (tmp_path / "r.json").exists()


def test_a_model_that_does_not_answer_is_refused_before_it_begins(tmp_path: Path) -> None:
    from data_sets import write_model

    model = write_model(tmp_path / "model")
    with pytest.raises(ValueError, match="does not answer"):
        run(vqa_questions(tmp_path, 2), tmp_path / "out", answers=tmp_path / "r.json", model=model)
    assert not (tmp_path / "out").exists()


# ---- PnP-VQA ----


@pytest.fixture
def pnp_vqa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration whose captioner and reader are stand-ins, and whose matcher is the bundled model."""
    config = tmp_path / "pnp_vqa.json"
    blocks = ("image_question_matching_model", "image_captioning_model", "question_answering_model")
    config.write_text(json.dumps({"model": {"arch": "pnp_vqa", **dict(zip(blocks, ("demo", "captioner", "reader")))}}))
    made = {"captioner": StandInCaptioner(), "reader": StandInReader()}
    from qavit.answers import _parts

    load = _parts.load
    monkeypatch.setattr(
        _parts, "load", lambda path=None, reader=None, **more: made.get(str(path or reader)) or load(path, **more)
    )
    for name in made:
        (tmp_path / name).write_text("weights")
    monkeypatch.chdir(tmp_path)
    return config


def test_captions_and_maps_lie_beside_the_answers(tmp_path: Path, pnp_vqa: Path) -> None:
    questions = vqa_questions(tmp_path)
    options = {"num_captions": 3, "num_patches": 2, "seed": 4}
    run(questions, tmp_path / "out", answers=tmp_path / "r.json", model=pnp_vqa, answering=options)
    model = answers_open.open_answering(pnp_vqa)
    assert isinstance(model, qavit.PNPVQA)
    results = {row["question_id"]: row["answer"] for row in json.loads((tmp_path / "r.json").read_text())}
    rows = list(qavit.data.read_maps(tmp_path / "out"))
    assert len(rows) == 18
    for row in rows[:5]:
        found = model.explain(tmp_path / row.image, row.question, **options)
        assert row.captions == tuple(found.captions)
        assert row.answer == found.answer.text == results[int(row.id)]
        assert row.answer_score == pytest.approx(np.exp(found.answer.score))
        np.testing.assert_array_equal(row.map, found.result.maps[0])
    assert rows[-1].captions is None
    # Alone, in another order, in other parts: the same.
    again = tmp_path / "again"
    run(questions, again, answers=tmp_path / "s.json", model=pnp_vqa, answering=options, part_rows=100, window=3)
    assert (tmp_path / "s.json").read_bytes() == (tmp_path / "r.json").read_bytes()
    # Another way of answering is another run.
    with pytest.raises(ValueError, match="was made with answers"):
        run(questions, again, answers=tmp_path / "s.json", model=pnp_vqa, part_rows=100, window=3)


def test_an_actor_maps_by_a_configurations_matcher(tmp_path: Path, pnp_vqa: Path) -> None:
    alone = HeatmapActor(pnp_vqa)
    picture = tmp_path / write_pictures(tmp_path, 1)[0]
    batch = {"image": [str(picture)], "question": [ASKED[0]]}
    expected = qavit.load("demo").heatmaps(picture, ASKED[0], fit="stretch").maps
    np.testing.assert_array_equal(alone(batch)["map"], expected.reshape(1, -1))
    assert "answer" not in alone(batch)
    options = {"num_captions": 3, "num_patches": 2}
    answering = HeatmapActor(pnp_vqa, answers=True, answering=options)
    columns = answering({"image": [str(picture), "absent.png"], "question": [ASKED[0]] * 2})
    found = answers_open.open_answering(pnp_vqa).explain(picture, ASKED[0], **options)
    assert columns["answer"].tolist() == [found.answer.text, ""]
    np.testing.assert_allclose(columns["answer_score"], [np.exp(found.answer.score), np.nan], rtol=1e-6)
    for options in ({"method": "question"}, {"block": [8, 9]}, {"fit": "pad"}, {"heads": 0}):
        with pytest.raises(ValueError, match="PnP-VQA draws patches by its matcher's map of one block"):
            HeatmapActor(pnp_vqa, answers=True, **options)
    with pytest.raises(TypeError, match="num_words"):
        HeatmapActor(pnp_vqa, answers=True, answering={"num_words": 3})
    with pytest.raises(ValueError, match=r"tokenizer: .* is a configuration"):
        HeatmapActor(pnp_vqa, tokenizer="vocab.txt")


# ---- samples ----


def test_a_sample_depends_on_the_input_alone(tmp_path: Path) -> None:
    questions = vqa_questions(tmp_path, 30)
    run(questions, tmp_path / "one", sample=20, answers=tmp_path / "one.json")
    run(questions, tmp_path / "two", sample=20, answers=tmp_path / "two.json", part_rows=3, window=7)
    ids = [row["question_id"] for row in json.loads((tmp_path / "one.json").read_text())]
    assert len(ids) == 20
    assert ids == sorted(ids)
    assert [row["question_id"] for row in json.loads((tmp_path / "two.json").read_text())] == ids
    assert len({identity // 1000 for identity in ids}) > 8  # spread over the pictures
    shares = [run(questions, tmp_path / "shares", sample=20, shard=f"{i}/3").rows for i in range(3)]
    assert sum(shares) == 20
    run(questions, tmp_path / "all", sample=1000)
    assert len(qavit.data.read_maps(tmp_path / "all")) == 90
    with pytest.raises(ValueError, match="was made with sample 20, this run has 21"):
        run(questions, tmp_path / "one", sample=21, answers=tmp_path / "one.json")


def test_a_sample_is_uniform(tmp_path: Path) -> None:
    sources = qavit.data.open_questions(vqa_questions(tmp_path, 120))
    sample = draw_sample(sources, 180)
    assert (sample.rows, sample.of) == (180, 360)
    places = [number for number, item in enumerate(sources[0]) if item in set(sample.items(sources[0], 0))]
    assert len(places) == 180
    quarters = np.bincount(np.array(places) // 90, minlength=4)
    assert (np.abs(quarters - 45) < 20).all()  # four standard deviations


# ---- interruptions ----


def test_a_run_that_was_killed_ends_with_the_same_file(tmp_path: Path) -> None:
    questions = vqa_questions(tmp_path, 12)
    run(questions, tmp_path / "whole", answers=tmp_path / "whole.json")
    command = [
        sys.executable, "-m", "qavit", "run", str(questions), "-o", str(tmp_path / "out"), "--answers",
        str(tmp_path / "out.json"), "--part-rows", "4", "--window", "12",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    parts = tmp_path / "out" / "parts"
    deadline = time.monotonic() + 300
    while not (parts.is_dir() and any(parts.glob("*.parquet"))):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == cli_options.SOME_FAILED, done.stderr  # one picture is missing
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert same_rows(tmp_path / "whole", tmp_path / "out") == 36


def test_the_share_that_ends_last_writes_the_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions, results = vqa_questions(tmp_path), tmp_path / "r.json"
    arguments = ["run", str(questions), "--answers", str(results), "--part-rows", "4", "--window", "12"]
    assert cli_main.main([*arguments, "--shard", "0/2"]) in (cli_options.OK, cli_options.SOME_FAILED)
    assert not results.exists()
    assert "written when the other shares are done" in capsys.readouterr().err
    cli_main.main([*arguments, "--shard", "1/2"])
    assert len(json.loads(results.read_text())) == 18
    assert (tmp_path / "r" / "_manifest.json").is_file()


# ---- what is told ----


def test_how_long_it_takes_is_told_before_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = vqa_questions(tmp_path, 12)
    run(questions, tmp_path / "out", events=True, window=9, part_rows=9)
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first["event"] == "start"
    assert first["rows_estimated"] == 36
    assert first["seconds_estimated"] > 0
    run(questions, tmp_path / "text")
    said = capsys.readouterr().err.splitlines()
    assert re.match(r"qavit: about \d+ questions, .*: .* s each, measured on \d+", said[0])
    run(questions, tmp_path / "text")  # nothing is left
    assert "about" not in capsys.readouterr().err


def test_an_estimate_is_of_what_is_left(tmp_path: Path) -> None:
    from qavit.data._estimate import rows_left
    from qavit.data._plan import Group, Part, Row

    part = Part(0, 3, [Group(None, [Row(str(i), "q", None) for i in range(10)])], 0.5, 0.6)
    assert rows_left(part, [1000], [0], 1.0) == 50
    assert rows_left(part, [1000, 3000], [0, 1], 1.0) == 350
    assert rows_left(part, [1000, 3000], [0, 1], 0.1) == 35


def test_a_sample_is_scored_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions, results = vqa_questions(tmp_path, 12), tmp_path / "r.json"
    annotations = tmp_path / "annotations.json"
    asked = json.loads(questions.read_text())["questions"]
    rows = [
        {"question_id": row["question_id"], "answer_type": "other", "question_type": "what",
         "answers": [{"answer": "yes", "answer_id": number} for number in range(10)]}
        for row in asked
    ]  # fmt: skip
    annotations.write_text(json.dumps({"annotations": rows}))
    arguments = ["run", str(questions), "--answers", str(results), "--annotations", str(annotations), "--sample", "9"]
    cli_main.main(arguments)
    said = capsys.readouterr().out
    right = sum(row["answer"] == "yes" for row in json.loads(results.read_text()))
    assert said.startswith(f"VQAv2 accuracy {100 * right / 9:.2f}, 9 questions of 36: ")
    for wrong, message in (
        (["run", str(questions)], "name a folder to write"),
        (["run", str(questions), "-o", "x", "--layout", "gqa"], "--layout is for --answers"),
        (["run", str(questions), "--answers", "r.csv"], "no .json file"),
        ([*arguments, "--annotations", "absent.json"], "--annotations: there is no file"),
        ([*arguments, "--answering", "seed=x"], "expected a number"),
    ):
        try:
            code = cli_main.main(wrong)
        except SystemExit as end:
            code = end.code
        assert code == cli_options.USAGE
        assert message in capsys.readouterr().err


# ---- models that write ----


def test_answers_that_are_written_bring_their_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_sets import write_model

    model: Any = qavit.load(write_model(tmp_path / "model"))
    told: list[dict[str, Any]] = []

    def answer(image: Any, questions: list[str], **options: Any) -> list[Generated]:
        told.append(options)
        result = model.heatmaps(image, questions)
        return [Generated(text.upper(), np.array([3, 1]), -0.5, result=result[row]) for row, text in enumerate(questions)]

    monkeypatch.setattr(model, "answer", answer)
    monkeypatch.setattr("qavit.data._actor.open_answering", lambda *_, **__: model)
    questions = vqa_questions(tmp_path, 2)
    run(questions, tmp_path / "out", answers=tmp_path / "r.json", model=tmp_path / "model", answering={"num_beams": 2})
    rows = [row for row in qavit.data.read_maps(tmp_path / "out") if row.error is None]
    assert [row.answer for row in rows] == [text.upper() for text in ASKED]
    assert all(row.answer_score == pytest.approx(np.exp(-0.5)) for row in rows)
    assert told == [{"num_beams": 2}] * 3  # the check, the estimate, the run
    expected = model.heatmaps(tmp_path / rows[0].image, list(ASKED)).maps
    np.testing.assert_array_equal([row.map for row in rows], expected)
    run(questions, tmp_path / "other", answers=tmp_path / "s.json", model=tmp_path / "model", block=1)
    other = [row.map for row in qavit.data.read_maps(tmp_path / "other") if row.error is None]
    np.testing.assert_array_equal(other, model.heatmaps(tmp_path / rows[0].image, list(ASKED), block=1).maps)
    with pytest.raises(ValueError, match="fit: answers are out of what the model sees by itself"):
        run(questions, tmp_path / "third", answers=tmp_path / "t.json", model=tmp_path / "model", fit="pad")
