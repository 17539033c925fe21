"""`qavit score`, as a person would run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qavit.cli import _main as cli_main
from qavit.cli import _options as cli_options

VQA = Path(__file__).parent / "data" / "golden" / "vqa_score"
TABLES = [str(VQA / "results.json"), str(VQA / "annotations.json")]


def test_the_score_is_the_public_scorers(capsys: pytest.CaptureFixture[str]) -> None:
    expected = json.loads((VQA / "expected.json").read_text())
    assert cli_main.main(["score", *TABLES, "--json"]) == cli_options.OK
    score = json.loads(capsys.readouterr().out)
    assert score["overall"] == expected["accuracy"]["overall"]
    assert score["per_answer_type"] == expected["accuracy"]["perAnswerType"]
    assert score["per_question_type"] == expected["accuracy"]["perQuestionType"]
    assert score["per_question"] == expected["per_question"]
    assert cli_main.main(["score", *TABLES]) == cli_options.OK
    said = capsys.readouterr().out
    assert said.startswith("VQAv2 accuracy 34.67, 240 questions\n")
    assert "  number   39.42" in said


def test_a_sample_has_an_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = tmp_path / "some.json"
    some.write_text(json.dumps(json.loads((VQA / "results.json").read_text())[:60]))
    assert cli_main.main(["score", str(some), TABLES[1]]) == cli_options.SOME_FAILED
    assert "--partial" in capsys.readouterr().err
    assert cli_main.main(["score", str(some), TABLES[1], "--partial", "--json"]) == cli_options.OK
    score = json.loads(capsys.readouterr().out)
    assert (score["questions"], score["of"]) == (60, 240)
    assert score["interval"][0] < score["overall"] < score["interval"][1]


def test_gqas_layout_tells_its_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions, results = tmp_path / "questions.json", tmp_path / "results.json"
    questions.write_text(json.dumps({"7": {"question": "q", "answer": "red", "types": {"structural": "query"}}}))
    results.write_text(json.dumps([{"questionId": "7", "prediction": "Red."}]))
    assert cli_main.main(["score", str(results), str(questions)]) == cli_options.OK
    assert capsys.readouterr().out == "GQA accuracy 100.00, 1 questions\nper structural type\n  query  100.00\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [("[{", "results: .*not the JSON"), ('{"a": 1}', "expected a list of rows"), ("[1]", "row 0: .*question_id")],
)
def test_bad_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text(text)
    assert cli_main.main(["score", str(broken), TABLES[1]]) == cli_options.SOME_FAILED
    import re

    said = capsys.readouterr().err
    assert re.search(message, said)
    assert "Traceback" not in said
    assert cli_main.main(["score", str(tmp_path / "absent.json"), TABLES[1]]) == cli_options.SOME_FAILED
    assert "absent.json" in capsys.readouterr().err
