"""The command line, as a person would run it."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import qavit
from qavit._base import progress
from qavit.cli import _main as cli_main
from qavit.cli import _options as cli_options
from qavit.models._devices import PRECISIONS

ROOT = Path(__file__).parent.parent
SCENE = ROOT / "qavit" / "demo_model" / "scene.png"
GOLDEN = ROOT / "tests" / "data" / "golden"


def run(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "qavit", *map(str, arguments)], capture_output=True, text=True, env=environment, **options
    )


def test_heatmap_writes_what_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli_main.main(
        ["heatmap", str(SCENE), "-q", "where is the star?", "-q", "what color is the ring?", "-o", str(tmp_path / "a b"),
         "--maps", "npz"]
    )  # fmt: skip
    assert code == cli_options.OK
    files = sorted(path.name for path in (tmp_path / "a b").glob("[!.]*"))
    assert files == ["scene.npz", "scene.png"]
    assert [Path(line).name for line in capsys.readouterr().out.split("\n") if line] == ["scene.png", "scene.npz"]
    with np.load(tmp_path / "a b" / "scene.npz") as saved:
        assert saved["maps"].shape == (2, 12, 12)
        assert np.allclose(saved["maps"].sum(axis=(1, 2)), 1, atol=1e-5)
    assert Image.open(tmp_path / "a b" / "scene.png").size[0] > 400


def test_json_and_the_maps_agree_with_the_library(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import qavit

    arguments = ["heatmap", str(SCENE), "-q", "where is the star?", "--json", "--no-figures", "--maps", "npy"]
    assert cli_main.main([*arguments, "-o", str(tmp_path), "--block", "9", "--heads", "1"]) == cli_options.OK
    entry = json.loads(capsys.readouterr().out)
    assert entry["image"] == str(SCENE)
    assert entry["block"] == 9
    expected = qavit.load("demo").heatmaps(SCENE, "where is the star?", block=9, heads=1).maps
    assert np.array_equal(np.load(tmp_path / "scene.npy"), expected)


def test_a_file_of_questions_is_grouped_by_picture_and_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "pictures" / "scene.png"
    other.parent.mkdir()
    Image.new("L", (40, 70), 90).save(other)
    lines = [
        {"image": str(SCENE), "question": "where is the star?"},
        {"image": "pictures/scene.png", "question": "where is the ring?"},
        {"image": str(SCENE), "question": "where is the ring?"},
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    arguments = ["heatmap", "--questions", str(tmp_path / "q.jsonl"), "-o", str(tmp_path / "out"), "--maps", "npz"]
    assert cli_main.main(arguments) == cli_options.OK
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == [
        "scene-2.npz", "scene-2.png", "scene.npz", "scene.png",
    ]  # fmt: skip
    assert qavit.HeatmapResult.load(tmp_path / "out" / "scene.npz").questions == ["where is the star?", "where is the ring?"]
    (tmp_path / "out" / "scene-2.png").unlink()
    before = (tmp_path / "out" / "scene.png").stat().st_mtime_ns
    capsys.readouterr()
    assert cli_main.main(arguments) == cli_options.OK
    assert "2 pictures: 1 done, 1 there already" in capsys.readouterr().err
    assert (tmp_path / "out" / "scene.png").stat().st_mtime_ns == before
    assert cli_main.main([*arguments, "-q", "is there a square?"]) == cli_options.OK
    assert "is there a square?" in qavit.HeatmapResult.load(tmp_path / "out" / "scene.npz")
    assert (tmp_path / "out" / "scene-2.png").exists()


def test_a_bad_picture_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(SCENE.read_bytes()[:100])
    code = cli_main.main(
        ["heatmap", str(broken), str(tmp_path / "missing.png"), str(SCENE), "-q", "where is the star?", "-o", str(tmp_path)]
    )
    said = capsys.readouterr()
    assert code == cli_options.SOME_FAILED
    assert (tmp_path / "scene.png").exists()
    assert "broken.jpg" in said.err
    assert f"qavit: {tmp_path / 'missing.png'}: image: no such file\n" in said.err
    assert "Traceback" not in said.err


def test_errors_as_json_lines_and_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "missing.png")
    arguments = ["heatmap", missing, str(SCENE), "-q", "where is the star?", "--no-figures", "--json"]
    assert cli_main.main(arguments) == cli_options.SOME_FAILED
    bad, good = map(json.loads, capsys.readouterr().out.splitlines())
    assert bad == {"image": missing, "error": f"{missing}: image: no such file"}
    assert good["image"] == str(SCENE)
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        cli_main.main([*arguments, "--verbose"])
    with pytest.raises(ValueError, match="blocks 0 to 11"):
        cli_main.main(["heatmap", str(SCENE), "-q", "where?", "--block", "12", "--verbose"])


def test_what_the_build_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_main.main(["info"]) == cli_options.OK
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert lines["threads"] == str(qavit.build_info()["threads"])
    assert lines["compiler"] == qavit.build_info()["compiler"]
    assert re.fullmatch(r"(gcc|clang) \d+\.\d+", lines["compiler"])
    assert lines["kernels"] == ", ".join(f"{k} {v}" for k, v in qavit.build_info()["kernels"].items())
    threads = qavit.get_num_threads()
    try:
        assert cli_main.main(["info", "--json", "--threads", "3"]) == cli_options.OK
        assert json.loads(capsys.readouterr().out)["threads"] == 3
    finally:
        qavit.set_num_threads(threads)


def test_a_reader_that_goes_away_ends_the_run_quietly(tmp_path: Path) -> None:
    arguments = ["heatmap", *[str(SCENE)] * 3, "-q", "where?", "--json", "--no-figures"]
    process = subprocess.Popen(
        [sys.executable, "-m", "qavit", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (cli_options.OK, b"")


def test_what_is_wrong_for_every_picture_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = [str(SCENE), str(SCENE.with_name("other.png"))]
    asked = ["-q", "where is the star?"]
    for wrong, code, message in [
        ([], cli_options.USAGE, "no question"),
        ([*asked, "--block", "12"], cli_options.SOME_FAILED, "blocks 0 to 11"),
        ([*asked, "--heads", "4"], cli_options.SOME_FAILED, "heads 0 to 3"),
        ([*asked, "--cmap", "rainbows"], cli_options.SOME_FAILED, "rainbows"),
        ([*asked, "--image-weight", "2"], cli_options.SOME_FAILED, "0 to 1"),
        ([*asked, "--model", "no/such model"], cli_options.SOME_FAILED, "no/such model"),
        ([*asked, "--config", "{text"], cli_options.USAGE, "--config"),
    ]:
        assert cli_main.main(["heatmap", *pictures, *wrong]) == code
        said = capsys.readouterr()
        assert message in said.err
        assert said.err.count("\n") == 1
        assert said.out == ""
    assert (
        cli_main.main(["heatmap", str(SCENE), "-q", "where?", "--kind", "questions", "-o", "a file/out"]) == cli_options.OK
    )
    Path("taken").write_text("")
    assert cli_main.main(["heatmap", str(SCENE), "-q", "where?", "-o", "taken"]) == cli_options.SOME_FAILED
    assert capsys.readouterr().err == "qavit: --out: 'taken' is a file, expected a folder\n"
    assert cli_main.main(["demo", "-o", "taken"]) == cli_options.SOME_FAILED
    assert capsys.readouterr().err == "qavit: --out: 'taken' is a file, expected a folder\n"


def test_clip_and_blip_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = GOLDEN / "qavit_official_late" / "clip"
    arguments = ["heatmap", str(SCENE), "--no-figures", "--maps", "npy", "-o", str(tmp_path)]
    assert cli_main.main([*arguments, "--vision", str(clip)]) == cli_options.OK
    assert np.load(tmp_path / "scene.npy").shape[0] == 1
    assert cli_main.main([*arguments, "--vision", str(clip), "-q", "where?"]) == cli_options.USAGE
    assert "takes no questions" in capsys.readouterr().err
    cases = json.loads((GOLDEN / "blip_itm" / "cases.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"text": cases["med_config"], "vision": cases["vit"]}))
    blip = ["--checkpoint", str(GOLDEN / "blip_itm" / "checkpoint.pth")]
    blip += ["--tokenizer", str(GOLDEN / "blip_itm" / "vocab.txt"), "--config", str(tmp_path / "config.json")]
    assert cli_main.main([*arguments, *blip, "-q", "a red bus"]) == cli_options.OK
    assert np.load(tmp_path / "scene.npy").shape == (1, 24, 24)
    assert cli_main.main([*arguments, *blip, "-q", "a red bus", "--heads", "0"]) == cli_options.SOME_FAILED
    assert "heads" in capsys.readouterr().err
    assert cli_main.main(["bench", *blip, "--repeat", "1", "--number", "1", "--block", "2", "--json"]) == cli_options.OK
    told = json.loads(capsys.readouterr().out)
    assert (told["block"], told["method"], told["number"]) == (2, "gradcam", 1)


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_main.main([]) == cli_options.USAGE
    assert cli_main.main(["heatmap", "-q", "where?"]) == cli_options.USAGE
    assert cli_main.main(["heatmap", str(SCENE), "-q", "where?", "--no-figures"]) == cli_options.USAGE
    assert cli_main.main(["heatmap", "--method", "magic", str(SCENE), "-q", "where?"]) == cli_options.SOME_FAILED
    assert "--method: got 'magic'; this model has 'class', 'gae', " in capsys.readouterr().err
    assert cli_main.main(["info", "no/such/folder"]) == cli_options.SOME_FAILED
    assert "no/such/folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["heatmap", "demo", "run", "convert", "info", "bench"])
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli_main.main([command, "--help"])
    assert left.value.code == 0
    assert f"example: qavit {command}" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        cli_main.main(["--help"])
    said = capsys.readouterr().out
    assert "example: qavit heatmap" in said
    assert "Exit codes: 0 " in said


def test_info_and_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_main.main(["info", "--json"]) == cli_options.OK
    assert json.loads(capsys.readouterr().out)["blas"].startswith("OpenBLAS")
    assert cli_main.main(["info", "demo", "--json"]) == cli_options.OK
    assert json.loads(capsys.readouterr().out)["vision"]["blocks"] == 12
    assert cli_main.main(["convert", "--model", "demo", "-o", str(tmp_path / "m"), "--dtype", "float32"]) == cli_options.OK
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    capsys.readouterr()
    assert (
        cli_main.main(["convert", "--model", "demo", "-o", str(tmp_path / "m"), "--dtype", "float32"]) == cli_options.USAGE
    )
    assert "is there already" in capsys.readouterr().err
    assert (
        cli_main.main(["convert", "--model", "demo", "-o", str(tmp_path / "m"), "--dtype", "float32", "--json", "--again"])
        == cli_options.OK
    )
    assert json.loads(capsys.readouterr().out)["folder"] == str(tmp_path / "m")
    arguments = ["heatmap", str(SCENE), "-q", "where is the star?", "--no-figures", "--maps", "npy", "-o"]
    assert cli_main.main([*arguments, str(tmp_path / "a")]) == cli_options.OK
    assert cli_main.main([*arguments, str(tmp_path / "b"), "--model", str(tmp_path / "m")]) == cli_options.OK
    assert np.array_equal(np.load(tmp_path / "a" / "scene.npy"), np.load(tmp_path / "b" / "scene.npy"))


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_main.main(["demo", "-o", str(tmp_path)]) == cli_options.OK
    said = capsys.readouterr().out
    assert said.count("?") >= 1
    assert "heatmaps.png" in said
    assert Image.open(tmp_path / "heatmaps.png").size[0] > 1000
    assert cli_main.main(["demo", "-o", str(tmp_path), "--image", str(SCENE), "-q", "a star?"]) == cli_options.OK
    assert "a star?" in capsys.readouterr().out
    assert cli_main.main(["demo", "-o", str(tmp_path), "--json"]) == cli_options.OK
    entry = json.loads(capsys.readouterr().out)
    assert [Path(file).name for file in entry["files"]] == ["heatmaps.png", "blocks.png", "heatmaps.html"]
    assert len(entry["questions"]) >= 1


def test_bench(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_main.main(["bench", "--repeat", "2", "--json"]) == cli_options.OK
    about = json.loads(capsys.readouterr().out)
    rows = {row["precision"]: row for row in about["precisions"]}
    assert set(rows) == set(PRECISIONS) - {"tf32"}
    assert {"first_ms", "one_ms", "median_ms", "fastest_ms", "slowest_ms"} <= set(rows["float32"])
    assert rows["float32"]["off"] == 0
    assert about["block"] == qavit.load("demo").default_block
    # What computes in a precision that has a row of its own has none; what computes in its own has another map.
    for precision, row in rows.items():
        assert ("median_ms" in row) == (row["computes"] == precision)
        assert precision == "float32" or "off" not in row or 0 < row["off"] < 0.5
    asked = ["bench", "--repeat", "1", "--precision", "float32"]
    assert cli_main.main([*asked, "--number", "1", "--block", "-3", "--method", "question"]) == cli_options.OK
    said = capsys.readouterr()
    assert "a new picture, 1 question, maps by question of block 9" in said.out
    assert said.err == ""
    for model in (["--model", str(GOLDEN / "unifiedqa_fid")], ["--vision", str(GOLDEN / "qavit_official_late" / "clip")]):
        assert cli_main.main([*asked, "--number", "2", *model]) == cli_options.OK
    said = capsys.readouterr().out
    assert "out of 2 contexts" in said
    assert "a new picture, maps by class" in said
    assert cli_main.main(["bench", "--repeat", "0"]) == cli_options.USAGE


def test_bench_of_a_captioner(capsys: pytest.CaptureFixture[str]) -> None:
    blip = GOLDEN / "blip_caption"
    facts = json.loads((blip / "cases.json").read_text())
    config = json.dumps({"text": facts["med_config"], "vision": facts["vit"]})
    files = ["--checkpoint", str(blip / "checkpoint.pth"), "--tokenizer", str(blip / "vocab.txt"), "--config", config]
    assert cli_main.main(["bench", "--repeat", "1", "--number", "2", "--precision", "float32", *files]) == cli_options.OK
    assert "2 captions of 20 tokens" in capsys.readouterr().out


@pytest.mark.parametrize("terminal", [False, True])
def test_progress(terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 7))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    going = progress.Progress(range(5), "pictures")
    for item in going:
        going.say(f"picture {item}")
    said = capsys.readouterr()
    assert said.out.split("\n")[:-1] == [f"picture {item}" for item in range(5)]
    if terminal:
        assert "5 of 5 pictures" in said.err
    else:
        assert re.findall(r"qavit: (\d+)\.0%: (\d) of 5 pictures in .* left", said.err)[:1] == [("20", "1")]
    assert list(progress.Progress([1], "pictures")) == [1]
    assert capsys.readouterr().err == ""


def test_plain_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    arguments = ["heatmap", SCENE, tmp_path / "broken.png", "-q", "a star?", "--no-figures", "--maps", "npy", "-o", tmp_path]
    first, second = run(*arguments), run(*arguments)
    assert (first.returncode, second.returncode) == (cli_options.SOME_FAILED, cli_options.SOME_FAILED)
    assert first.stdout == f"{tmp_path / 'scene.npy'}\n"
    assert second.stdout == first.stdout
    lines = first.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"qavit: {tmp_path / 'broken.png'}: ")
    assert lines[1] == "2 pictures: 1 done, 1 failed"
    assert second.stderr.splitlines()[1] == "2 pictures: 1 there already (--again does them anew), 1 failed"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("he", "heatmap"), ("--comp", "--completion"), ("--completion z", "zsh"), ("heatmap --image-w", "--image-weight"),
        ("heatmap --kind pa", "panels patches"), ("heatmap --maps np", "npz npy"), ("bench --prec", "--precision"),
        ("heatmap some", "some some2"), ("heatmap --questions some", "some some2"), ("heatmap --out some", "some"),
        ("run --out some", "some"),
    ],
)  # fmt: skip
def test_completion_in_bash(typed: str, offered: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert cli_main.main(["--completion", "bash"]) == cli_options.OK
    (tmp_path / "some").mkdir()
    (tmp_path / "some2").touch()
    words = " ".join(f"'{word}'" for word in ["qavit", *typed.split(" ")])
    ask = f'COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _shtab_qavit; printf "%s\\n" "${{COMPREPLY[@]}}"'
    command = ["bash", "--norc", "-c", f"{capsys.readouterr().out}\n{ask}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert {line.rstrip("/ ") for line in done.stdout.split("\n") if line} == set(offered.split()), done.stderr


def test_completion_needs_its_library(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for shell in ("zsh", "tcsh"):
        pytest.importorskip("shtab")
        assert cli_main.main(["--completion", shell]) == cli_options.OK
        assert "heatmap" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli_main.main(["--completion", "bash"]) == cli_options.SOME_FAILED
    assert 'pip install "qavit[completion]"' in capsys.readouterr().err


def test_a_wrong_choice_is_one_line_that_names_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, said in [
        (["heatmap", "--precision", "?"], "qavit heatmap: --precision: [?]: expected .*bfloat16"),
        (["heatmap", "--kind", "pie"], "qavit heatmap: --kind: pie: expected .*panels"),
        (["heatmap", "--heads", "median"], "--heads: 'median': expected mean, max or a number"),
        (["run", "q.csv", "-o", "x", "--shard", "4/4"], "--shard: shard: got '4/4'"),
        (["run"], "qavit run: the following arguments are required: QUESTIONS"),
        (["paint"], "there is no command paint; .*heatmap"),
        (["bench", "--repeat", "x"], "--repeat: invalid int value: 'x'"),
    ]:
        with pytest.raises(SystemExit) as left:
            cli_main.main(wrong)
        assert left.value.code == cli_options.USAGE
        told = capsys.readouterr()
        assert told.err.count("\n") == 1
        assert re.search(said.replace("(", r"\("), told.err), told.err


def test_folders_and_patterns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b/2.png", "b/1.png", "b/deep/3.png", "a [x].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SCENE, tmp_path / name)
    (tmp_path / "b" / "notes.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    asked = ["-q", "where is the star?", "--json", "--no-figures"]
    for given, found in [
        ("b", ["b/1.png", "b/2.png"]), ("b/**/*.png", ["b/1.png", "b/2.png", "b/deep/3.png"]),
        ("b/[12].png", ["b/1.png", "b/2.png"]), ("a [x].png", ["a [x].png"]),
    ]:  # fmt: skip
        assert cli_main.main(["heatmap", str(tmp_path / given), *asked]) == cli_options.OK
        told = [json.loads(line)["image"] for line in capsys.readouterr().out.splitlines()]
        assert told == [str(tmp_path / name) for name in found]
    for given, said in [("empty", "no pictures lie in this folder"), ("*.gif", "no picture fits this pattern")]:
        assert cli_main.main(["heatmap", str(tmp_path / given), *asked]) == cli_options.USAGE
        assert said in capsys.readouterr().err


def test_what_there_is_to_know_is_said_and_stands_in_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (200, 40), "white").save(tmp_path / "wide.png")
    arguments = ["heatmap", str(tmp_path / "wide.png"), "-q", "where is the unicorn?", "--json", "--no-figures"]
    assert cli_main.main(arguments) == cli_options.OK
    said = capsys.readouterr()
    notes = {note["kind"]: note["text"] for note in json.loads(said.out)["notes"]}
    assert {"picture_cropped", "unknown_words"} <= set(notes)
    assert all(f"qavit: warning: {text}\n" in said.err for text in notes.values())
    for fit, region in (("stretch", [0, 0, 200, 40]), ("crop", [80, 0, 120, 40]), ("pad", [0, -80, 200, 120])):
        assert cli_main.main([*arguments, "--fit", fit]) == cli_options.OK
        # A row of the model's input is 2 of the picture's, and bars are whole rows.
        assert json.loads(capsys.readouterr().out)["region"] == pytest.approx(region, abs=8)


def test_called_again_it_says_what_was_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["heatmap", str(SCENE), "-q", "where is the star?", "--no-figures", "--maps", "npy", "-o", str(tmp_path)]
    assert cli_main.main(arguments) == cli_options.OK
    first = capsys.readouterr()
    assert cli_main.main(arguments) == cli_options.OK
    again = capsys.readouterr()
    assert again.out == first.out == f"{tmp_path / 'scene.npy'}\n"
    assert again.err.splitlines()[-1] == "1 picture: 1 there already (--again does them anew)"
    assert cli_main.main([*arguments, "--again"]) == cli_options.OK
    assert "there already" not in capsys.readouterr().err


def test_questions_about_pictures_in_archives_and_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = SCENE.read_bytes()
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        archive.writestr("pictures/one.png", data)
    rows = [
        {"file": "one.png", "q": "where is the star?"},
        {"file": "data:image/png;base64," + base64.b64encode(data).decode(), "q": "where is the ring?"},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["heatmap", "--questions", str(tmp_path / "q.jsonl"), "--images", str(tmp_path / "pictures.zip")]
    arguments += ["--columns", "image=file,question=q", "--maps", "npy", "--no-figures", "-o", str(tmp_path / "out")]
    assert cli_main.main(arguments) == cli_options.OK
    assert sorted(path.name for path in (tmp_path / "out").glob("*.npy")) == ["one.npy", "picture-1.npy"]
    small = ["--max-pixels", "100"]
    assert cli_main.main([*arguments, *small, "--again"]) == cli_options.SOME_FAILED
    assert "more than max_pixels = 100; a larger max_pixels (--max-pixels) reads it" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["module://no_such.backend_inline", "no such backend", "tkagg"])
def test_files_are_drawn_whatever_the_environment_says_of_windows(backend: str, tmp_path: Path) -> None:
    done = run("heatmap", SCENE, "-q", "where is the star?", "-o", tmp_path, env={"MPLBACKEND": backend, "DISPLAY": ""})
    assert (done.returncode, done.stderr) == (cli_options.OK, "")
    code = "import sys, qavit; qavit.load('demo').heatmaps(sys.argv[1], 'where is the star?').save('here.png')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": backend}
    subprocess.run([sys.executable, "-c", code, str(SCENE)], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "here.png").stat().st_size > 1000


def test_as_a_process(tmp_path: Path) -> None:
    done = run("heatmap", SCENE, "-q", "where is the star?", "-o", tmp_path / "out", env={"DISPLAY": ""})
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    failed = run("heatmap", SCENE, "-q", "", "-o", tmp_path / "new")
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert "has no words" in failed.stderr


def test_ctrl_c_leaves_whole_files_only(tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"{number}.png").write_bytes(SCENE.read_bytes())
    pictures = sorted(map(str, tmp_path.glob("*.png")))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "qavit", "heatmap", *pictures, "-q", "where is the star?", "-o", str(tmp_path / "out")],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not list((tmp_path / "out").glob("*.png")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == cli_options.INTERRUPTED
    assert "Traceback" not in errors
    assert not list((tmp_path / "out").glob(".*.part"))
    written = list((tmp_path / "out").glob("[!.]*"))
    assert 0 < len(written) < 60
    for path in written:
        assert path.suffix == ".png"
        Image.open(path).load()


def test_a_map_that_cannot_know_the_question_warns_in_one_line(tmp_path: Path) -> None:
    done = run("heatmap", SCENE, "-q", "where is the star?", "--block", 3, "--no-figures", "--json", "-o", tmp_path)
    assert done.returncode == cli_options.OK
    assert done.stderr.startswith("qavit: warning: the class token of block 3")
    assert done.stderr.count("\n") == 1


def test_a_question_in_unknown_words_warns_once_for_all_pictures(tmp_path: Path) -> None:
    (tmp_path / "图片 2.png").write_bytes(SCENE.read_bytes())
    done = run("heatmap", SCENE, tmp_path / "图片 2.png", "-q", "红色的圆在哪里？", "-o", tmp_path / "out", "--html")
    assert done.returncode == cli_options.OK
    assert done.stderr.count("knows no word of '红色的圆在哪里？'") == 1
    assert (tmp_path / "out" / "图片 2.html").exists()


def test_attention_inside_counts_patches_in_part() -> None:
    from qavit import HeatmapResult
    from qavit.metrics import attention_inside

    one = HeatmapResult(np.full((1, 2, 2), 0.25), ["q"], np.zeros((20, 20, 3), np.uint8))
    assert attention_inside(one, 0, [(0, 0, 10, 10)]) == pytest.approx(0.25)
    assert attention_inside(one, 0, [(5, 0, 15, 10)]) == pytest.approx(0.25)
    assert attention_inside(one, 0, [(0, 0, 20, 20)]) == 1


def test_verbosity_of_the_library_is_the_environments() -> None:
    code = "import logging, qavit; logging.getLogger('qavit').info('hello')"
    for level, said in [("info", "hello\n"), ("Warning", ""), ("", "")]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "QAVIT_VERBOSITY": level}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert (done.returncode, done.stderr) == (0, said)


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root writes anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    powers = "-dac_override,-dac_read_search"
    rights = ["setpriv", "--bounding-set", powers, "--inh-caps", powers] if os.geteuid() == 0 else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for arguments, named in [
        (["heatmap", SCENE, "-q", "a star?", "-o", folder / "new"], f"qavit: {folder / 'new'}: Permission denied"),
        (["heatmap", SCENE, "-q", "a star?", "-o", folder], f"qavit: {SCENE}: {folder / 'scene.png'}: Permission denied"),
        (["convert", "--model", "demo", "-o", folder / "model"], f"qavit: {folder / 'model'}: Permission denied"),
    ]:
        command = [*rights, sys.executable, "-m", "qavit", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if "setpriv" in done.stderr:
            pytest.skip(f"rights cannot be given up here: {done.stderr}")
        assert (done.returncode, done.stderr.strip()) == (cli_options.SOME_FAILED, named)
    assert list(folder.iterdir()) == []


def test_options_count_before_the_command_too(capsys: pytest.CaptureFixture[str]) -> None:
    before = qavit.get_num_threads()
    try:
        for arguments in (["--threads", "3", "info", "--json"], ["info", "--json", "--threads", "3"]):
            qavit.set_num_threads(before)
            assert cli_main.main(arguments) == cli_options.OK
            assert json.loads(capsys.readouterr().out)["threads"] == 3
    finally:
        qavit.set_num_threads(before)
    with pytest.raises(FileNotFoundError):
        cli_main.main(["-v", "info", "no such folder"])


def test_a_picture_is_one_by_whatever_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    Path("a").mkdir()
    shutil.copy(SCENE, "a/one.png")
    Path("a/asked.jsonl").write_text(json.dumps({"image": "one.png", "question": "where is the ring?"}) + "\n")
    arguments = ["heatmap", "a/one.png", "./a/../a/one.png", "--questions", "a/asked.jsonl", "--json", "--no-figures"]
    assert cli_main.main([*arguments, "-q", "where is the star?"]) == cli_options.OK
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["image"] for one in told] == ["a/one.png"]
    assert [one["question"] for one in told[0]["questions"]] == ["where is the star?", "where is the ring?"]


def test_errors_name_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["heatmap", str(SCENE), "-q", "where is the star?", "-o", str(tmp_path)]
    for wrong, message in [
        (["--image-weight", "3"], "--image-weight: got 3.0, expected 0 to 1"),
        (["--model", "nosuch"], "--model: there is no file or folder 'nosuch'; 'demo' is the bundled model"),
        (["--image-size", "100"], "--image-size: got 100, expected a multiple of the patch size 8"),
        (["--precision", "tf32"], "--precision: 'tf32' is for GPUs"),
        (["--checkpoint", "nosuch"], "--checkpoint: there is no file 'nosuch'"),
    ]:
        assert cli_main.main([*asked, *wrong]) == cli_options.SOME_FAILED
        assert capsys.readouterr().err.startswith(f"qavit: {message}")
    pytest.importorskip("pyarrow")
    assert cli_main.main(["run", "nosuch.jsonl", "-o", str(tmp_path / "run")]) == cli_options.SOME_FAILED
    assert capsys.readouterr().err.startswith("qavit: questions: there is no file")
    assert cli_main.main(["info", "demo", "--model", "demo"]) == cli_options.USAGE
    capsys.readouterr()
    assert cli_main.main(["info", "--model", "demo"]) == cli_main.main(["info", "demo"]) == cli_options.OK
    assert capsys.readouterr().out.count("model       demo: QA-ViT") == 2
