"""`qavit ask`, as a person would run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from stand_ins import StandInCaptioner, StandInReader

import qavit
from qavit.answers import _open as answers_open
from qavit.cli import _main as cli_main
from qavit.cli import _options as cli_options

SCENE = str(Path(__file__).parent.parent / "qavit" / "demo_model" / "scene.png")
QUESTIONS = ["where is the star?", "what color is the ring?"]


def test_each_answer_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_main.main(["ask", SCENE, *QUESTIONS]) == cli_options.OK
    expected = [one.text for one in qavit.load("demo").answer(SCENE, QUESTIONS)]
    assert capsys.readouterr().out.split("\n") == [*expected, ""]


def test_why_draws_a_figure_for_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_main.main(["ask", SCENE, QUESTIONS[0], "--why", str(tmp_path / "why.png"), "--json"]) == cli_options.OK
    told = json.loads(capsys.readouterr().out)
    assert told["file"] == str(tmp_path / "why.png")
    assert told["ranked"][0][0] == told["answer"]
    assert Image.open(told["file"]).size[0] > 900
    assert cli_main.main(["ask", SCENE, *QUESTIONS, "--why", str(tmp_path / "two.png")]) == cli_options.OK
    assert sorted(path.name for path in tmp_path.glob("two*")) == ["two-1.png", "two-2.png"]


def test_pnp_vqa_says_what_its_answer_is_made_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = qavit.PNPVQA(qavit.load("demo"), StandInCaptioner(), StandInReader())
    monkeypatch.setattr(answers_open, "open_answering", lambda *_, **__: model)
    options = ["--model", "pnp.yaml", "--answering", "num_captions=3,num_patches=2,seed=7", "--json"]
    assert cli_main.main(["ask", SCENE, QUESTIONS[0], *options, "--why", str(tmp_path / "why.svg")]) == cli_options.OK
    told = json.loads(capsys.readouterr().out)
    expected = model.explain(SCENE, QUESTIONS[0], num_captions=3, num_patches=2, seed=7)
    assert (told["answer"], told["captions"]) == (expected.answer.text, expected.captions)
    drawn = (tmp_path / "why.svg").read_text()
    assert drawn.startswith("<?xml")


def test_a_model_that_writes_chooses_among_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    from test_qavit_answer import load

    from qavit.checkpoints import convert

    convert(load()._source, tmp_path / "model")
    among = ["--among", "dog", "--among", "car", "--json"]
    assert cli_main.main(["ask", SCENE, "what is it?", "--model", str(tmp_path / "model"), *among]) == cli_options.OK
    told = json.loads(capsys.readouterr().out)
    expected = load().answer(SCENE, "what is it?", answers=["dog", "car"])[0]
    assert told["answer"] == expected.text
    assert [name for name, _ in told["ranked"]] == [name for name, _ in expected.ranked]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([SCENE, "where?", "--why", "why.txt"], cli_options.USAGE, "none of .jpg"),
        (["absent.png", "where?"], cli_options.SOME_FAILED, "absent.png"),
        ([SCENE, "where?", "--answering", "num_beams=3"], cli_options.SOME_FAILED, "chooses from a list"),
        ([SCENE, "where?", "--among", "a", "--among", "a"], cli_options.SOME_FAILED, "answers: "),
        ([SCENE, "where?", "--model", "absent.yaml"], cli_options.SOME_FAILED, "absent.yaml"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert cli_main.main(["ask", *arguments]) == code
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
