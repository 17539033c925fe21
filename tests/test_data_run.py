"""Runs: every row once, whatever happens to them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import dying
import numpy as np
import pytest
from data_sets import make_rows, same_rows, write_lines, write_model, write_pictures
from PIL import Image

import qavit
import qavit.data
from qavit._base.files import _HERE
from qavit.cli import _main as cli_main
from qavit.cli import _options as cli_options
from qavit.data._local import Alone, Crew
from qavit.data._output import _column
from qavit.data._pictures import ImageSource
from qavit.data._plan import Group, Part, Row
from qavit.data._worker import PartWorker, Settings

pytest.importorskip("pyarrow")

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("QAVIT_TEST_KILLS", "50"))


class DataSet(NamedTuple):
    questions: Path
    model: Path
    whole: Path
    """A run that nothing happened to."""


@pytest.fixture(scope="module", autouse=True)
def quick_disk() -> Iterator[None]:
    """Waiting for the disk guards against a loss of power, which no test here brings about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    folder = tmp_path_factory.mktemp("data")
    names = write_pictures(folder, 40)
    rows = make_rows(names, 3)
    rows[10]["image"] = "missing.png"
    rows[20]["question"] = " "
    (folder / "broken.png").write_bytes((folder / names[0]).read_bytes()[:60])
    rows[30]["image"] = "broken.png"
    questions = write_lines(folder / "q.jsonl", rows)
    model = write_model(folder / "model")
    summary = qavit.data.run(questions, folder / "whole", model=model, part_rows=3, window=30)
    assert (summary.rows, summary.errors, summary.before) == (120, 3, 0)
    return DataSet(questions, model, folder / "whole")


def go(data: DataSet, out: Path, **options: Any) -> qavit.data.RunSummary:
    return qavit.data.run(data.questions, out, model=data.model, **{"part_rows": 3, "window": 30, **options})


def command(data: DataSet, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "qavit", "run", str(data.questions), "--model", str(data.model), "-o", str(out),
        "--part-rows", "3", "--window", "30", *more,
    ]  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def held(out: Path, parts: int) -> dict[str, str]:
    """The environment of a run that waits once so many parts are there, until a file called "gate" is beside its folder."""
    python_path = os.pathsep.join([str(ROOT / "tests" / "held"), str(ROOT)])
    return environment(PYTHONPATH=python_path, HELD_PARTS=str(parts), HELD_GATE=str(gate_of(out)))


def gate_of(out: Path) -> Path:
    return out.with_name(out.name + ".gate")


def wait_for_parts(out: Path, count: int) -> None:
    deadline = time.monotonic() + 300
    while len(list((out / "parts").glob("*.parquet"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def only_whole_files(out: Path) -> bool:
    return not [path for path in (out / "parts").iterdir() if path.suffix != ".parquet"]


# ---- what is written ----


def test_every_row_is_there_once(data: DataSet) -> None:
    reader = qavit.data.read_maps(data.whole)
    asked = [json.loads(line) for line in data.questions.read_text().splitlines()]
    rows = {row.id: row for row in reader}
    assert reader.complete
    assert len(reader) == len(rows) == len(asked)
    for entry in asked:
        row = rows[entry["id"]]
        assert (row.image, row.question) == (entry["image"], entry["question"])
        assert (row.map is None) == (row.error is not None)
        if row.map is not None:
            assert row.map.sum() == pytest.approx(1, abs=1e-5)
    errors = dict(reader.errors())
    assert len(errors) == 3
    assert "no such file" in errors["q10"]
    assert "empty" in errors["q20"]
    assert "broken.png" in errors["q30"]


def test_a_run_needs_no_pandas(data: DataSet, tmp_path: Path) -> None:
    program = (
        "import sys\nimport qavit.data\n"
        "qavit.data.run(sys.argv[1], sys.argv[2], model=sys.argv[3])\nassert 'pandas' not in sys.modules"
    )
    command = [sys.executable, "-c", program, data.questions, tmp_path / "out", data.model]
    subprocess.run(command, env=environment(), check=True)


def test_columns_are_as_pyarrow_makes_them() -> None:
    import pyarrow as pa

    for kind, cells in (
        (pa.string(), ["a", None, "", "é€\0"]),
        (pa.string(), [None, None]),
        (pa.int16(), [3, None, -1]),
        (pa.float64(), [0.5, 1]),
        (pa.float32(), np.array([0.5, np.nan], np.float32)),
        (pa.list_(pa.string()), [("a", "é"), None, (), ("",)]),
        (pa.list_(pa.int32()), [None, (1, 2)]),
        (pa.list_(pa.int32(), 2), [(1, 2), (3, 4)]),
        (pa.list_(pa.float16()), [np.array([1, 2], np.float16), None, np.array([3], np.float16)]),
        (pa.list_(pa.float32()), [None]),
        (pa.string(), []),
    ):
        made = _column(cells, kind)
        made.validate(full=True)
        assert made.type == kind
        assert made.null_count == sum(cell is None for cell in cells)
        told = [list(cell) if isinstance(cell, (tuple, np.ndarray)) else cell for cell in cells]
        assert str(made.to_pylist()) == str(pa.array(told, kind).to_pylist())
    with pytest.raises(ValueError, match=r"has 2147483648 bytes or items, .* a smaller part_rows"):
        _column([range(2**31)], pa.list_(pa.int32()))


def test_worker_processes_and_shards_give_the_same_rows(data: DataSet, tmp_path: Path) -> None:
    summary = go(data, tmp_path / "two", workers=2)
    assert (summary.rows, summary.errors) == (120, 3)
    assert same_rows(data.whole, tmp_path / "two") == 120
    shares = [go(data, tmp_path / "shards", shard=f"{i}/3", threads=1) for i in range(3)]
    assert sum(share.rows for share in shares) == 120
    assert min(share.rows for share in shares) > 30
    assert same_rows(data.whole, tmp_path / "shards") == 120


def test_a_script_needs_no_guard(data: DataSet, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nimport qavit.data\nprint('once')\n"
        "qavit.data.run(sys.argv[1], sys.argv[2], model=sys.argv[3], part_rows=30, workers=2)\nprint(__file__)\n"
    )
    command = [sys.executable, script, data.questions, tmp_path / "out", data.model]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout.split()) == (0, ["once", str(script)]), done.stderr
    assert len(qavit.data.read_maps(tmp_path / "out")) == 120


def test_files_are_shared_where_there_are_enough(data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [json.loads(line) for line in data.questions.read_text().splitlines()]
    paths = [write_lines(data.questions.parent / f"part{i}.jsonl", rows[i::3]) for i in range(3)]
    for i in range(2):
        summary = qavit.data.run(paths, tmp_path, model=data.model, shard=f"{i}/2")
        assert summary.rows == (80, 40)[i]
    reader = qavit.data.read_maps(tmp_path)
    assert reader.complete
    assert sorted(row.id for row in reader) == sorted(row["id"] for row in rows)
    monkeypatch.setattr("qavit.data._pipeline.plan_file", None)  # nothing is read again
    assert qavit.data.run(paths, tmp_path, model=data.model).before == 120


def test_half_precision_and_pnp_vqas_method(data: DataSet, tmp_path: Path) -> None:
    go(data, tmp_path, dtype="float16", method="class")
    ids, maps = qavit.data.read_maps(tmp_path).to_numpy()
    expected_ids, expected = qavit.data.read_maps(data.whole).to_numpy()
    assert ids == expected_ids
    np.testing.assert_allclose(maps, expected, rtol=2**-11)


def test_stored_maps_feed_pnp_vqa(data: DataSet, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from qavit.lavis import gradcams_from, resample_mass

    gradcams = gradcams_from(data.whole)
    maps = {row.id: row.map for row in qavit.data.read_maps(data.whole)}
    samples = {"question_id": ["q77", "q3"], "image": None}
    assert gradcams(samples, block_num=7) is samples
    assert samples["gradcams"].dtype == torch.float32
    for found, identity in zip(samples["gradcams"], samples["question_id"]):
        assert np.array_equal(found.numpy(), maps[identity].reshape(-1))
    assert torch.multinomial(samples["gradcams"], 9).shape == (2, 9)
    other = gradcams_from(data.whole, grid=(4, 5))({"id": np.array(["q3"])})["gradcams"]
    np.testing.assert_allclose(other[0], resample_mass(maps["q3"], (4, 5)).reshape(-1), rtol=1e-6)
    with pytest.raises(KeyError, match="has no map"):
        gradcams.maps(["q20"])
    with pytest.raises(ValueError, match="question_id"):
        gradcams({"image": None})
    rows = [{"image": "0.png", "question": "where?", "question_id": 262148000}]
    numbered = write_lines(data.questions.parent / "numbered.jsonl", rows)
    qavit.data.run(numbered, tmp_path, model=data.model)
    assert gradcams_from(tmp_path).maps(torch.tensor([262148000])).shape == (1, 9)


# ---- what rows say ----


def test_rows_say_where_the_map_lies_and_what_there_is_to_know(tmp_path: Path) -> None:
    Image.new("RGB", (90, 40), "white").save(tmp_path / "wide.png")
    long = "what color is the star " + "that you can see in this picture " * 6 + "?"
    rows = [{"id": "a", "image": "wide.png", "question": "where is the star?", "answers": ["red"], "n": 3},
            {"id": "b", "image": "wide.png", "question": long},
            {"id": "c", "image": "no.png", "question": "where?"}]  # fmt: skip
    questions = write_lines(tmp_path / "q.jsonl", rows)
    qavit.data.run(questions, tmp_path / "out", keep={"answers": "answers", "number": "n"})
    first, second, failed = qavit.data.read_maps(tmp_path / "out")
    model = qavit.load("demo")
    with pytest.warns(qavit.QavitWarning):
        result = model.heatmaps(tmp_path / "wide.png", ["where is the star?", long])
    for row, number in ((first, 0), (second, 1)):
        np.testing.assert_allclose(row.map, result.maps[number], atol=1e-6)
        assert row.picture_size == result.picture_size == (40, 90)
        assert row.region == (result.seen.left, result.seen.top, result.seen.right, result.seen.bottom)
        assert (row.method, row.block) == (result.method, result.block)
        assert row.notes == tuple(note.text for note in result.notes if note.question in (None, number))
        assert (row.answer, row.answer_score) == pytest.approx(result.answers[number][0], abs=1e-6)
    assert first.kept == {"answers": '["red"]', "number": "3"}
    assert second.kept == {"answers": None, "number": None}
    assert len(second.notes) > len(first.notes) > 0
    assert (failed.map, failed.picture_size, failed.region, failed.notes, failed.answer) == (None, None, None, (), None)
    qavit.data.run(questions, tmp_path / "stretched", fit="stretch")
    assert next(iter(qavit.data.read_maps(tmp_path / "stretched"))).region == (0, 0, 90, 40)
    with pytest.raises(ValueError, match="made with fit null, this run has"):
        qavit.data.run(questions, tmp_path / "out", keep={"answers": "answers", "number": "n"}, fit="pad")
    with pytest.raises(ValueError, match="'answer' is a column of the run's own"):
        qavit.data.run(questions, tmp_path / "kept", keep=["answer"])


def test_text_that_no_file_can_hold_is_written_as_escapes(data: DataSet, tmp_path: Path) -> None:
    lines = ['{"image": "0.png", "question": "where?", "note": "\\ud83d"}', '{"image": "0.png", "question": "\\ud83d?"}']
    questions = data.questions.parent / "surrogates.jsonl"
    questions.write_text("\n".join(lines))
    qavit.data.run(questions, tmp_path, model=data.model, keep=["note"])
    first, second = qavit.data.read_maps(tmp_path)
    assert first.kept == {"note": "\\ud83d"}
    assert first.map is not None
    assert second.question == "\\ud83d?"
    assert "surrogates.jsonl, line 2: the question: a lone surrogate" in str(second.error)


def test_rows_of_one_id_are_not_mistaken_for_each_other(data: DataSet, tmp_path: Path) -> None:
    rows = [{"id": 7, "image": f"{number}.png", "question": "where?"} for number in range(2)]
    rows.append({"id": 8, "image": "0.png", "question": "where?"})
    questions = write_lines(data.questions.parent / "twins.jsonl", rows)
    with pytest.warns(UserWarning, match=r"twins\.jsonl: 2 rows have the same id '7'"):
        qavit.data.run(questions, tmp_path, model=data.model)
    reader = qavit.data.read_maps(tmp_path)
    assert sorted(row.id for row in reader) == ["7", "7", "8"]
    with pytest.raises(KeyError, match="several rows have the id '7'"):
        reader.gather([8, 7])
    assert reader.gather([8]).shape == (1, 3, 3)


def test_a_damaged_part_is_named(data: DataSet, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"id": number, "image": "0.png", "question": "where?"} for number in range(2)]
    qavit.data.run(write_lines(data.questions.parent / "pair.jsonl", rows), tmp_path, model=data.model)
    reader = qavit.data.read_maps(tmp_path)
    (part, *_) = reader.files
    whole, ids = parquet.read_table(part), reader.to_numpy()[0]
    for ask in (lambda: list(reader.tables(["id", "colour"])), lambda: reader.to_pandas(["colour"])):
        with pytest.raises(ValueError, match=rf"{part.name}' cannot be read as .*: it has no column 'colour', only id, "):
            ask()
    other = whole.set_column(whole.column_names.index("map"), "map", whole.column("id"))
    lacking = whole.drop_columns("id")
    for spoil in (
        lambda: part.write_bytes(part.read_bytes()[:100]),
        lambda: parquet.write_table(lacking, part),
        lambda: parquet.write_table(other, part),
    ):
        spoil()
        for ask in (lambda: list(reader), reader.to_numpy, lambda: qavit.data.read_maps(tmp_path).gather(ids[:1])):
            with pytest.raises(ValueError, match=rf"{part.name}' cannot be read as a part of a run") as caught:
                ask()
            assert type(caught.value) is ValueError


def test_other_libraries_open_the_folder(data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.dataset

    monkeypatch.chdir(tmp_path)
    go(data, tmp_path / "maps")
    assert pyarrow.dataset.dataset("maps").count_rows() == 120
    page = (ROOT / "docs" / "SCALE.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"```python\n(import (?:pandas|duckdb|datasets)\b.*?)```()", page, re.S))
    assert len(blocks) == 3
    for code in blocks:
        pytest.importorskip(code.split()[1])
        names: dict[str, Any] = {}
        exec(code, names)
        assert len(names["frame"]) == 120
        assert set(names["frame"]["id"]) == {f"q{number}" for number in range(120)}
        assert sum(error is None or error != error for error in names["frame"]["error"]) == 117


# ---- going on, and stopping ----


def test_parts_with_errors_are_done_again_when_asked(data: DataSet, tmp_path: Path) -> None:
    go(data, tmp_path)
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    Image.new("RGB", (30, 30)).save(data.questions.parent / "missing.png")
    try:
        assert go(data, tmp_path).rows == 0
        summary = go(data, tmp_path, retry_errors=True)
    finally:
        (data.questions.parent / "missing.png").unlink()
    assert (summary.rows, summary.errors, summary.before) == (9, 2, 111)
    changed = [path.name for path, time in parts.items() if path.stat().st_mtime_ns != time]
    assert len(changed) == 3
    reader = qavit.data.read_maps(tmp_path)
    assert reader.complete
    assert {identity for identity, _ in reader.errors()} == {"q20", "q30"}


def test_again_begins_anew(data: DataSet, tmp_path: Path) -> None:
    go(data, tmp_path)
    with pytest.raises(ValueError, match=r"made with dtype .*again \(--again\)"):
        go(data, tmp_path, dtype="float16")
    assert go(data, tmp_path, dtype="float16", again=True).rows == 120
    assert qavit.data.read_maps(tmp_path).manifest["dtype"] == "float16"
    go(data, tmp_path / "shares", shard="0/2")
    go(data, tmp_path / "shares", shard="1/2")
    with pytest.raises(ValueError, match="made with dtype"):  # the other share is as it was
        go(data, tmp_path / "shares", shard="0/2", dtype="float16", again=True)
    assert len(qavit.data.read_maps(tmp_path / "shares")) == 120


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_whose_first_part_fails_whole_stops(data: DataSet, tmp_path: Path, workers: int) -> None:
    rows = make_rows([f"{number}.png" for number in range(8)], 3)
    questions = write_lines(tmp_path / "q.jsonl", rows)
    wrong = data._replace(questions=questions)
    with pytest.raises(ValueError, match=r"every row of the first part failed, the first by q\d+: .*\.png.*--keep-going"):
        go(wrong, tmp_path / "out", workers=workers)
    # What was wrong may have been an option: the run has not begun.
    summary = go(wrong, tmp_path / "out", images=data.questions.parent, image_name="{image}", workers=workers)
    assert (summary.rows, summary.errors, summary.before) == (24, 0, 0)
    assert go(wrong, tmp_path / "all", keep_going=True, workers=workers).errors == 24
    one = write_lines(tmp_path / "one.jsonl", rows[:2])
    assert go(data._replace(questions=one), tmp_path / "one").errors == 2  # nothing is left to be spared


# ---- taking up again ----


def test_resume_does_what_is_missing(data: DataSet, tmp_path: Path) -> None:
    go(data, tmp_path)
    parts = sorted((tmp_path / "parts").iterdir())
    kept = {path: path.stat().st_mtime_ns for path in parts[1:]}
    parts[0].unlink()
    killed = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True).stdout
    left = f".00000-000000.parquet.{_HERE}-{killed.strip()}-0123abcd.part"
    (tmp_path / "parts" / left).write_bytes(b"half")
    summary = go(data, tmp_path)
    assert (summary.rows, summary.before) == (3, 117)
    assert summary.errors_before == 3
    assert {path: path.stat().st_mtime_ns for path in parts[1:]} == kept
    assert only_whole_files(tmp_path)
    assert same_rows(data.whole, tmp_path) == 120
    again = go(data, tmp_path)
    assert (again.rows, again.before) == (0, 120)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 1, "method": "question"}, 'method "class", this run has "question"'),
        ({"dtype": "float16"}, "dtype"),
        ({"part_rows": 4}, "part_rows 3"),
        ({"window": 31}, "window"),
        ({"precision": "int8"}, r"model QAViT.*float32\), this run has QAViT.*int8\)"),
    ],
)
def test_another_run_is_refused(data: DataSet, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        go(data, data.whole, **options)


def test_another_input_or_model_is_refused(data: DataSet, tmp_path: Path) -> None:
    lines = data.questions.read_text()
    other = tmp_path / "q.jsonl"
    other.write_text(lines.replace("clock", "stock"))
    with pytest.raises(ValueError, match="questions"):
        go(data._replace(questions=other), data.whole)
    from small_models import write_qavit

    model = write_qavit(tmp_path / "model", blocks=3, first=1, image_size=21, width=8, heads=4)
    with pytest.raises(ValueError, match="made with model QAViT"):
        go(data._replace(model=model), data.whole)


def test_two_processes_do_not_write_one_share(data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qavit.data import Shard
    from qavit.data._output import OutputFolder

    said = {"grid": [3, 3], "block": 1, "method": "question", "questions": []}
    held = OutputFolder(tmp_path, said, Shard(), 1)
    with pytest.raises(ValueError, match="another process"):
        OutputFolder(tmp_path, said, Shard(), 1)
    OutputFolder(tmp_path, said, Shard(0, 2), 1).close()
    held.close()
    OutputFolder(tmp_path, said, Shard(), 1).close()


# ---- what happens to runs ----


def test_a_run_that_dies_at_any_step_is_taken_up_again(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    steps = dying.run(lambda: go(data, tmp_path / "timing"), tmp_path / "timing")
    assert steps > 80  # two a part
    for step in range(1, steps, steps // 10):
        out = tmp_path / str(step)
        dying.run(lambda out=out: go(data, out), out, at=step)
        summary = go(data, out)
        assert (summary.rows + summary.before, same_rows(data.whole, out)) == (120, 120)
        assert only_whole_files(out)


@pytest.mark.nightly
def test_kill_9_at_any_moment(data: DataSet, tmp_path: Path) -> None:
    script = Path(__file__).with_name("data_kills.py")
    arguments = [*map(str, (data.questions, data.model, data.whole, tmp_path)), str(KILLS)]
    done = subprocess.run([sys.executable, str(script), *arguments], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)
    assert len(about["parts"]) == KILLS
    assert len(set(about["parts"])) > 10, about  # they were interrupted at different places
    assert about["finished"] > 3, about


def test_a_worker_that_dies_is_replaced(data: DataSet, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(data, tmp_path, "--workers", "2", "--json"), env=held(tmp_path, 1), stdout=subprocess.PIPE, text=True
    )
    wait_for_parts(tmp_path, 1)
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    gate_of(tmp_path).touch()
    out, _ = process.communicate(timeout=300)
    assert process.returncode == cli_options.SOME_FAILED
    events = [json.loads(line) for line in out.splitlines()]
    assert events[0]["event"] == "start"
    assert events[-1]["event"] == "end"
    assert sum(event["rows"] for event in events if event["event"] == "part") == 120
    assert (events[-1]["errors"], events[-1]["fraction"], events[-1]["rows"]) == (3, 1.0, 120)
    assert same_rows(data.whole, tmp_path) == 120


def test_workers_do_not_try_again_what_the_run_has_tried(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    monkeypatch.setattr(qavit.data.HeatmapActor, "_try", lambda actor: tried.append(actor))
    PartWorker(Settings({"model": str(data.model)}, str(tmp_path)))
    assert tried == []
    qavit.data.HeatmapActor(str(data.model))
    assert len(tried) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"block": 99}, "block:"), ({"model": "nowhere"}, "nowhere"), ({"method": "no"}, "method:"), ({"heads": 77}, "heads:")],
)
def test_what_is_wrong_with_the_model_is_said_alike_by_one_worker_and_by_two(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = []
    for workers in (1, 2):
        with pytest.raises((ValueError, OSError), match=message) as caught:
            qavit.data.run(data.questions, "out", **{"model": data.model, "workers": workers, **wrong})
        said.append((caught.type, str(caught.value)))
        assert not (tmp_path / "out").exists()
    assert said[0] == said[1]


def test_the_model_is_loaded_by_the_workers_alone_and_warned_of_once(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qavit.data.HeatmapActor, "__init__", lambda *_, **__: pytest.fail("it is loaded here"))
    monkeypatch.setenv("QAVIT_CPU", "portable")  # of the workers: without bfloat16
    with pytest.warns(qavit.PrecisionWarning) as said:
        go(data, tmp_path / "out", workers=2, precision="bfloat16")
    assert [warning.filename for warning in said] == [__file__]


class Killing:
    def __reduce__(self) -> Any:
        return os._exit, (7,)


def test_a_worker_that_dies_over_the_model_ends_the_run(data: DataSet, tmp_path: Path) -> None:
    crew = Crew(Settings({"model": str(data.model), "config": Killing()}, str(tmp_path)), 2)
    with pytest.raises(RuntimeError, match=r"the worker that loads the model died \(exit code 7"):
        crew.about()
    crew.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_what_the_estimate_computes_is_not_computed_again(data: DataSet, tmp_path: Path, workers: int) -> None:
    settings = Settings({"model": str(data.model)}, str(tmp_path))
    worker = Alone(settings) if workers == 1 else Crew(settings, workers)
    names = write_pictures(tmp_path, 2)
    part = Part(0, 0, [Group(ImageSource(name, str(tmp_path / name)), [Row(name, "where?", None)]) for name in names])
    worker.about()
    worker.begin(iter([part]))
    assert worker.measure(part, 10**9).measured == 1
    (tmp_path / names[1]).unlink()
    assert [done.errors for done in worker.run(lambda *_: None)] == [0]


class Deadly(ImageSource):
    def read(self) -> str:
        os._exit(7)


def test_a_part_that_kills_its_workers_ends_the_run(data: DataSet, tmp_path: Path) -> None:
    part = Part(0, 5, [Group(Deadly("x"), [Row("0", "where?", None)])])
    crew = Crew(Settings({"model": str(data.model)}, str(tmp_path)), 1)
    crew.about()
    crew.begin(iter([part]))
    assert crew.measure(part, 1).each is None
    with pytest.raises(RuntimeError, match=r"3 workers died at part 00000-000005 .*code 7"):
        list(crew.run(lambda *_: None))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_and_a_killed_parent_leave_whole_files_only(data: DataSet, tmp_path: Path, workers: str) -> None:
    run = command(data, tmp_path, "--workers", workers)
    process = subprocess.Popen(run, env=held(tmp_path, 2), stderr=subprocess.PIPE)
    wait_for_parts(tmp_path, 2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == cli_options.INTERRUPTED
    assert b"Traceback" not in errors
    assert b"interrupted; the same command goes on where it stopped" in errors
    assert only_whole_files(tmp_path)
    process = subprocess.Popen(run, env=held(tmp_path, 5))
    wait_for_parts(tmp_path, 5)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 300
    while any(Path(f"/proc/{pid}").exists() for pid in children):  # a worker does not outlive its parent
        assert time.monotonic() < deadline
        time.sleep(0.01)
    done = subprocess.run(command(data, tmp_path), env=environment(), capture_output=True, text=True)
    assert done.returncode == cli_options.SOME_FAILED
    assert "were there already; 3 of all have an error" in done.stderr
    assert same_rows(data.whole, tmp_path) == 120


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk_leaves_whole_files_only(data: DataSet, tmp_path: Path, workers: str) -> None:
    limit = max(path.stat().st_size for path in (data.whole / "parts").iterdir()) - 40
    code = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from qavit.cli import main\n"
        "sys.exit(main(sys.argv[3:]))\n"
    )
    program = tmp_path / "limited.py"
    program.write_text(f"if __name__ == '__main__':\n    {code.replace(chr(10), chr(10) + '    ')}\n")
    out = tmp_path / "out"
    started = [sys.executable, str(program), *command(data, out, "--workers", workers)[1:]]
    done = subprocess.run(started, env=environment(), capture_output=True, text=True)
    assert done.returncode == cli_options.SOME_FAILED
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert only_whole_files(out)
    summary = go(data, out)
    assert summary.rows > 0
    assert same_rows(data.whole, out) == 120


# ---- the command ----


def test_the_commands_exit_codes(data: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write_lines(data.questions.parent / "good.jsonl", make_rows(["0.png", "1.png"], 2))
    arguments = ["run", str(good), "--model", str(data.model), "-o", str(tmp_path / "good")]
    assert cli_main.main(arguments) == cli_options.OK
    assert "4 rows of 2 pictures written" in capsys.readouterr().err
    one = write_lines(data.questions.parent / "one.jsonl", make_rows(["0.png"], 1))
    alone = ["run", str(one), "--model", str(data.model), "-o", str(tmp_path / "one")]
    assert cli_main.main(alone) == cli_main.main(alone) == cli_main.main([*alone, "--resume"]) == cli_options.OK
    said = capsys.readouterr().err
    assert "1 row of 1 picture written" in said
    assert "1 was there already" in said
    assert cli_main.main(arguments) == cli_options.OK
    assert "0 rows of 0 pictures written, 4 were there already" in capsys.readouterr().err
    assert cli_main.main([*arguments, "--again"]) == cli_options.OK
    assert "4 rows of 2 pictures written\n" in capsys.readouterr().err
    assert cli_main.main([*arguments, "--again", "--resume"]) == cli_options.USAGE
    assert cli_main.main(["run", "nowhere.csv", "-o", str(tmp_path / "x")]) == cli_options.SOME_FAILED
    with pytest.raises(SystemExit) as left:
        cli_main.main([*arguments, "--shard", "4/4"])
    assert left.value.code == cli_options.USAGE
    assert cli_main.main(command(data, tmp_path / "bad")[3:]) == cli_options.SOME_FAILED
    said = capsys.readouterr().err
    assert "rows failed, first: row q10: " in said
    assert "3 of all have an error" in said


def test_a_line_now_and_then_without_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from qavit._base.progress import RunProgress

    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress = RunProgress([300, 100, 0], [False, True, False])
    assert progress.fraction == 0.25
    progress.start(0, 0.2, 0.6)
    assert progress.fraction == pytest.approx(0.4)
    for _ in range(8):
        clock[0] += 2.5
        progress.tick(30, 60, 1)
    progress.part(0, 0.6, 480, 0, None, name="00000-000010", images=240)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "qavit: 40.0%: 240 questions, 12.0 images/s, 24.0 questions/s, unknown time left, 4 errors",
        "qavit: 40.0%: 480 questions, 12.0 images/s, 24.0 questions/s, unknown time left, 8 errors",
    ]
    clock[0] += 60
    progress.tick(0, 0, 0)
    # Three tenths more took 80 s, three tenths are left.
    assert "1 min 20 s left" in capsys.readouterr().err


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from qavit._base.progress import RunProgress

    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    progress = RunProgress([400], [False])
    assert "starting" in capsys.readouterr().err
    progress.start(0, 0.0, 0.025)
    clock[0] += 0.05
    progress.tick(1, 2, 0)
    assert capsys.readouterr().err == ""  # at most ten times a second
    clock[0] += 99.95
    progress.part(0, 0.025, 400, 1, "q10: there is no such file", name="00000-000000", images=200)
    said = capsys.readouterr().err
    # The problem has a line to itself, and the bar is drawn again below it.
    failed = "qavit: part 00000-000000: 1 of 400 rows failed, first: row q10: there is no such file"
    assert failed in re.split("[\\r\\n]", said)
    bar = said.rsplit("\r", 1)[1]
    # A fortieth took 100 s, 39 are left.
    assert re.fullmatch(r" +2%\|.*\| 2 questions, 0\.0 questions/s, 1 h 05 min left, 0 errors *", bar)
    progress.tick(199, 398, 1)
    assert capsys.readouterr().err == ""
    progress.part(0, 1.0, 400, 0, None, name="00000-000001", images=200)
    progress.close()
    end = capsys.readouterr()
    assert re.search(r"100%\|.*\| 400 questions, 4\.0 questions/s, 0 s left, 1 error *\n$", end.err)
    assert end.out == ""


def test_progress_within_a_part_is_told_by_the_rows_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    from qavit._base.progress import RunProgress

    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress = RunProgress([400], [False])
    progress.begin(rows_estimated=300)
    progress.start(0, 0.25, 0.5)  # an earlier run did a quarter
    clock[0] += 10.0
    progress.tick(50, 100, 0)
    assert progress.fraction == pytest.approx(0.5)
    progress.part(0, 0.5, 100, 0, None, name="00000-000001", images=50)
    assert progress.fraction == pytest.approx(0.5)
    progress.start(0, 0.5, 1.0)
    progress.tick(150, 300, 0)  # more than were expected
    assert 0.99 < progress.fraction < 1.0
    progress.part(0, 1.0, 300, 0, None, name="00000-000002", images=150)
    assert progress.fraction == 1.0


def test_the_last_part_done_first_is_not_the_end() -> None:
    from qavit._base.progress import RunProgress

    progress = RunProgress([300, 100], [False, False])
    progress.start(0, 0.0, 0.5)
    progress.start(0, 0.5, 1.0)
    assert progress.fraction == 0.0
    progress.part(0, 1.0, 10, 0, None, name="00000-000001", images=5)
    assert progress.fraction == pytest.approx(150 / 400)
    progress.start(1, 0.0, 1.0)
    progress.part(0, 0.5, 10, 0, None, name="00000-000000", images=5)
    assert progress.fraction == pytest.approx(300 / 400)
    progress.part(1, 1.0, 10, 0, None, name="00001-000000", images=5)
    assert progress.fraction == 1.0


def test_a_bar_has_all_of_its_text_in_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qavit._base.progress import RunProgress

    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    progress = RunProgress([400], [False])
    clock[0] += 10000.0
    progress.tick(50000, 123456, 12)
    assert capsys.readouterr().err.endswith("123,456 questions, 12.3 questions/s, unknown time left, 12 errors")
    progress.abandon()


def test_a_bar_is_closed_when_a_run_ends_early(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from qavit._base.progress import RunProgress

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = RunProgress([400], [False])
    capsys.readouterr()
    progress.abandon()
    assert capsys.readouterr().err.endswith("\n")  # so that what is said next begins a line


def test_events_tell_numbers_every_ten_seconds(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from qavit._base.progress import RunProgress

    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)  # events take the bar's place
    progress = RunProgress([100, 300], [False, False], events=True)
    progress.begin(out="maps", workers=2)
    progress.start(0, 0.0, 1.0)
    for _ in range(3):
        clock[0] += 4
        progress.tick(3, 6, 1)
    progress.part(0, 1.0, 18, 3, "q3: \u00fc", name="00000-000000", images=9)
    clock[0] += 4
    progress.tick(0, 0, 0)
    progress.close(rows=18)
    said = capsys.readouterr()
    assert said.err == ""
    numbers = {"images": 9, "questions": 18, "errors": 3}
    assert [json.loads(line) for line in said.out.splitlines()] == [
        {"event": "start", "out": "maps", "workers": 2},
        {"event": "progress", **numbers, "seconds": 12.0, "images_per_second": 0.75, "questions_per_second": 1.5,
         "fraction": 0.0, "seconds_left": None},
        {"event": "part", "name": "00000-000000", "images": 9, "rows": 18, "errors": 3, "problem": "q3: \u00fc"},
        {"event": "end", **numbers, "seconds": 16.0, "images_per_second": 0.562, "questions_per_second": 1.125,
         "fraction": 0.25, "seconds_left": 48.0, "rows": 18},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "unknown time"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (61, "1 min 01 s"),
        (3599.7, "1 h 00 min"), (7384, "2 h 03 min"), (360_000, "100 h 00 min"),
    ],
)  # fmt: skip
def test_a_duration_as_a_person_says_it(seconds: float | None, said: str) -> None:
    from qavit._base.progress import duration

    assert duration(seconds) == said


def test_missing_libraries_are_named(data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, extra, options in (("pyarrow", "data", {}), ("ray", "ray", {"engine": "ray"})):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(ImportError, match=rf'pip install "qavit\[{extra}\]"'):
                go(data, tmp_path, **options)


def test_workers_without_parts_are_told_of_smaller_ones() -> None:
    from qavit.data._estimate import Estimate

    assert Estimate(600, 36.0, 0.06, 12).advice(2, 512) == "; 2 workers share that better in smaller parts (--part-rows 60)"
    assert Estimate(2048, 36.0, 0.06, 12).advice(2, 512) == ""  # two parts each
    assert Estimate(600, 36.0, 0.06, 12).advice(1, 512) == ""
    assert Estimate(600, 9.0, 0.015, 1).advice(2, 512) == ""  # not worth a word
    assert Estimate(600, None, None, 0).advice(2, 512) == ""
