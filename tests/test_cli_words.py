"""The command line's own words: what was meant, questions by every door, what JSON holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import qavit
from qavit.cli import _main as cli_main
from qavit.cli import _options as cli_options

SCENE = Path(__file__).parent.parent / "qavit" / "demo_model" / "scene.png"


def ended(arguments: list[str]) -> int:
    """The exit code, whether the parser or the command ends."""
    try:
        return cli_main.main(arguments)
    except SystemExit as left:
        return int(left.code or 0)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["heatmp"], "qavit: there is no command heatmp; did you mean heatmap? expected heatmap, "),
        (["bench", "--precision", "fp16"], "qavit bench: --precision: fp16: did you mean bfloat16? expected float32, "),
        (["bench", "--precision", "float23"], "qavit bench: --precision: float23: did you mean float32? expected float32, "),
        (["bench", "--precision", "?"], "qavit bench: --precision: ?: expected float32, "),
        (["heatmap", "a.png", "--kind", "pannels"], "qavit heatmap: --kind: pannels: did you mean panels? expected "),
        (["heatmap", "a.png", "--questons", "b"], "qavit heatmap: there is no option --questons; did you mean --questions?"),
        (["run", "a.csv", "--resum=1"], "qavit run: there is no option --resum; did you mean --resume?"),
        (["info", "--xyzzy"], "qavit info: there is no option --xyzzy"),
        (["demo", "where is it?"], "qavit demo: 'where is it?' is one argument too many; what has spaces"),
        (["ask", str(SCENE), "what", "is", "it"], 'qavit ask: quotes keep a question together: "what is it"'),
        (["ask", str(SCENE)], "qavit ask: name a picture and a question: "),
    ],
)
def test_what_was_meant_in_one_line(typed: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(typed) == cli_options.USAGE
    told = capsys.readouterr()
    assert told.err.startswith(said)
    assert told.err.count("\n") == 1
    assert told.out == ""


def test_short_names_of_precisions_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    for short, name in (("fp32", "float32"), ("bf16", "bfloat16")):
        assert cli_main.main(["bench", "--precision", short, "--repeat", "1", "--number", "1", "--json"]) == cli_options.OK
        (row,) = json.loads(capsys.readouterr().out)["precisions"]
        assert row["precision"] == name


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["heatmap", str(SCENE), "-q", "a", "--text", "t5"], "qavit: --text: given alone; expected --checkpoint (QA-ViT)"),
        (["info", "absent.pth"], "qavit: there is no file or folder 'absent.pth'; "),
        (["heatmap", str(SCENE), "-q", "a", "--model", "absent"], "qavit: --model: there is no file or folder 'absent'; "),
    ],
)
def test_errors_name_options_not_arguments(typed: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_main.main(typed) == cli_options.SOME_FAILED
    told = capsys.readouterr().err
    assert told.startswith(said)
    assert "=" not in told


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two pictures and files of questions."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for name in ("one.png", "pictures/two.png"):
        (tmp_path / name).write_bytes(SCENE.read_bytes())
    (tmp_path / "list.txt").write_text("\ufeffwhere is the star?\r\n\r\nwhat color is the ring?\n", encoding="utf-8")
    (tmp_path / "alone.csv").write_text("question\nwhere is the star?\n")
    rows = [{"question": "where is the ring?"}, {"image": "pictures/two.png", "question": "is there a star?"}]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def told_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_file_of_questions_means_the_same_in_every_command(asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = "one.png", str(asked / "pictures" / "two.png")
    for file, expected in (
        ("list.txt", {one: ["where is the star?", "what color is the ring?"]}),
        ("alone.csv", {one: ["where is the star?"]}),
        ("mixed.jsonl", {one: ["where is the ring?"], two: ["is there a star?"]}),
    ):
        assert cli_main.main(["heatmap", one, "--questions", file, "--no-figures", "--json"]) == cli_options.OK
        drawn = {line["image"]: [entry["question"] for entry in line["questions"]] for line in told_lines(capsys)}
        assert drawn == expected
        assert cli_main.main(["ask", one, "--questions", file, "--json"]) == cli_options.OK
        answered: dict[str, list[str]] = {}
        for line in told_lines(capsys):
            answered.setdefault(line["image"], []).append(line["question"])
        assert answered == expected
        assert (ended(["ask", "--questions", file]), ended(["heatmap", "--questions", file])) == (2, 2)
        assert capsys.readouterr().err.count("names no picture for") == 2


def test_a_list_in_a_data_set_needs_a_name_for_its_picture(asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    from qavit.data import read_maps

    assert cli_main.main(["run", "list.txt", "-o", "a", "--image-name", "one.png"]) == cli_options.OK
    assert [row.question for row in read_maps("a")] == ["where is the star?", "what color is the ring?"]
    assert cli_main.main(["run", "list.txt", "-o", "b"]) == cli_options.SOME_FAILED
    assert "--image-name" in capsys.readouterr().err


def test_ask_goes_through_folders_and_past_what_fails(asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (asked / "pictures" / "broken.png").write_bytes(b"\x89PNG")
    assert cli_main.main(["ask", "pictures", "-q", "what color is the ring?"]) == cli_options.SOME_FAILED
    told = capsys.readouterr()
    answer = qavit.load("demo").answer(SCENE, "what color is the ring?")[0].text
    assert told.out == f"pictures/two.png: {answer}\n"
    assert told.err.startswith("qavit ask: pictures/broken.png: ")
    assert ended(["ask", "pictures/*.jpg", "what?"]) == cli_options.USAGE
    assert "no picture fits this pattern" in capsys.readouterr().err


def test_why_a_command_ends_stands_in_the_json(asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question = ["one.png", "-q", "where is the star?", "--json", "--no-figures"]
    for options, said in (
        (["--heads", "99"], "--heads: head 99 does not exist; this model has heads 0 to 3"),
        (["--method", "clas"], "--method: got 'clas'; this model has 'class', 'gae', 'grad_eclip', 'gradcam', "
         "'gradcam_attention', 'legrad', 'question', 'rollout'; did you mean 'class'?"),
    ):  # fmt: skip
        assert ended(["heatmap", *question, *options]) == cli_options.SOME_FAILED
        told = capsys.readouterr()
        assert json.loads(told.out) == {"error": said}
        assert told.err == f"qavit: {said}\n"
    assert ended(["run", "none.csv", "-o", "maps", "--json"]) == cli_options.SOME_FAILED
    (event,) = told_lines(capsys)
    assert event["event"] == "error"
    assert "none.csv" in event["error"]


def test_advice_on_config_is_what_the_option_takes(asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = qavit.stand_in_weights("blip_itm", asked / "weights")
    files = ["--checkpoint", given["checkpoint"], "--tokenizer", given["tokenizer"]]
    assert ended(["heatmap", "one.png", "-q", "a ring", "--no-figures", "--json", *files]) == cli_options.SOME_FAILED
    said = json.loads(capsys.readouterr().out)["error"]
    advised = """--config '{"vision": {"num_attention_heads": N}}'"""
    assert advised in said
    config = {half: {"num_attention_heads": 4} for half in ("vision", "text")}
    files += ["--config", json.dumps(config)]
    assert ended(["heatmap", "one.png", "-q", "a ring", "--no-figures", "--json", *files]) == cli_options.OK


def test_json_has_the_top_five_and_the_notes(asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_main.main(["ask", "one.png", "where is the unicorn?", "--json"]) == cli_options.OK
    (told,) = told_lines(capsys)
    assert len(told["ranked"]) == 5
    assert [note["kind"] for note in told["notes"]] == ["unknown_words"]
    assert cli_main.main(["heatmap", "one.png", "-q", "where is the unicorn?", "--json", "--no-figures"]) == cli_options.OK
    (told,) = told_lines(capsys)
    assert len(told["questions"][0]["answers"]) == 5
    assert [note["kind"] for note in told["notes"]] == ["unknown_words"]


def test_json_of_what_is_there_draws_nothing_anew(asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["heatmap", "one.png", "-q", "where is the star?", "--json", "-o", "out"]
    assert cli_main.main(command) == cli_options.OK
    before = Path("out/one.png").stat().st_mtime_ns
    assert cli_main.main(command) == cli_options.OK
    assert Path("out/one.png").stat().st_mtime_ns == before
    first, second = told_lines(capsys)
    assert first == second
