"""`qavit eval` and `qavit.data.evaluate`: files of boxes and masks, figures with intervals, going on where it stopped."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import write_lines, write_model, write_pictures
from PIL import Image
from reference import normal

import qavit
from qavit.cli import _main as cli_main
from qavit.cli import _options as cli_options
from qavit.data import evaluate
from qavit.data._targets import read_targets
from qavit.metrics import Localization, PointingGame, Segmentation, energy_inside, inside_top_k

FIGURES = ["pointing", "energy", "area", "inside_top_k", "pixel_accuracy", "miou", "map"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("evaluation") / "model")


def boxes(folder: Path, pictures: int = 4) -> Path:
    """Two texts a picture."""
    names = write_pictures(folder, pictures)
    rows = [
        {"id": f"{name}-{text}", "image": name, "text": text, "box": [2 + i, 3, 14 + i, 20]}
        for i, name in enumerate(names)
        for text in ("where is the cup?", "where is the dog?")
    ]
    return write_lines(folder / "boxes.jsonl", rows)


# ---- figures ----


def test_figures_are_the_metrics_own() -> None:
    meter, game, segments = Localization(3.0), PointingGame(3.0), Segmentation()
    energies, highest, areas = [], [], []
    for i in range(12):
        heatmap, mask = np.abs(normal(9, 11, seed=i)), np.zeros((9, 11))
        mask[i % 4 : 6, 2 : 3 + i % 7] = 1
        mask[8] = -1
        label = f"class {i % 3}"
        meter.update(heatmap, mask, f"picture {i // 2}", label)
        game.update(heatmap, mask, label)
        segments.update(heatmap, mask)
        energies.append(energy_inside(heatmap, mask))
        highest.append(inside_top_k(heatmap, mask))
        areas.append((mask == 1).mean())
    found = meter.summary()
    assert list(found) == FIGURES
    assert len(meter) == 12
    expected = {
        "pointing": game.summary()["pointing"], "energy": np.mean(energies), "inside_top_k": np.mean(highest),
        "area": np.mean(areas), **segments.summary(),
    }  # fmt: skip
    for name, estimate in found.items():
        assert estimate.value == pytest.approx(expected[name], rel=1e-9)
        assert estimate.low <= estimate.value <= estimate.high
    assert meter.summary() == found
    assert meter.summary(seed=1) != found
    meter.reset()
    with pytest.raises(ValueError, match="no maps yet"):
        meter.summary()
    with pytest.raises(ValueError, match="numbers: expected 11 finite ones"):
        meter.add([1.0])


def test_intervals_draw_pictures_not_maps() -> None:
    """Of two pictures that are each all right or all wrong, a draw of either alone is as likely as one of both."""
    numbers = [1.0, 0.5, 0.1, 0.5, 5.0, 10.0, 2.0, 3.0, 6.0, 7.0, 0.5]
    meter = Localization()
    for i in range(40):
        meter.add([float(i < 20), *numbers[1:]], "right" if i < 20 else "wrong")
    pointing = meter.summary()["pointing"]
    assert pointing == (0.5, 0.0, 1.0)
    alone = Localization()
    for _ in range(40):
        alone.add(numbers, "right")
    assert alone.summary()["energy"] == (0.5, None, None)


# ---- files ----


def test_every_way_of_saying_where(tmp_path: Path) -> None:
    write_pictures(tmp_path, 1)
    mask = np.zeros((24, 30), np.uint8)
    mask[4:10, 5:20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    runs, flat = [0], mask.T.ravel() > 0
    for i, value in enumerate(flat):
        if value != (len(runs) % 2 == 0):
            runs.append(0)
        runs[-1] += 1
        assert i < flat.size
    ways: list[dict[str, Any]] = [
        {"box": [5, 4, 20, 10]}, {"bbox": [5, 4, 15, 6]}, {"boxes": [[5, 4, 12, 10], [12, 4, 20, 10]]},
        {"bboxes": [[5, 4, 7, 6], [12, 4, 8, 6]]}, {"mask": "mask.png"},
        {"segmentation": {"size": [24, 30], "counts": runs}}, {"box": "5, 4, 20, 10"},
    ]  # fmt: skip
    rows = [{"id": i, "image": "0.png", "text": f"t{i}", **way} for i, way in enumerate(ways)]
    rows.append({"id": "p", "image": "0.png", "text": "p", "segmentation": [[5, 4, 19, 4, 19, 9, 5, 9]], "label": "cat"})
    targets = read_targets(write_lines(tmp_path / "rows.jsonl", rows))
    assert [target.problem for target in targets] == [None] * len(rows)
    for target in targets:
        np.testing.assert_array_equal(target.mask(24, 30, (24, 30)), mask > 0)
    assert [target.label for target in targets] == ["object"] * 7 + ["cat"]
    half = targets[0].mask(24, 30, (12, 15))
    assert half[2:5, 3:10].all()
    assert half.sum() == targets[4].mask(24, 30, (12, 15)).sum() == 24
    tiny = read_targets(write_lines(tmp_path / "tiny.jsonl", [{"image": "0.png", "text": "t", "box": [7.6, 2.7, 7.7, 2.8]}]))
    assert np.argwhere(tiny[0].mask(24, 30, (24, 30))).tolist() == [[2, 7]]
    speck = np.zeros((24, 30), np.uint8)
    speck[2, 8] = 1
    Image.fromarray(speck).save(tmp_path / "speck.png")
    lost = read_targets(write_lines(tmp_path / "speck.jsonl", [{"image": "0.png", "text": "t", "mask": "speck.png"}]))
    assert np.argwhere(lost[0].mask(24, 30, (24, 30))).tolist() == [[2, 8]]
    assert np.argwhere(lost[0].mask(24, 30, (8, 10))).tolist() == [[0, 2]]


def test_rows_of_one_picture_and_text_are_one(tmp_path: Path) -> None:
    write_pictures(tmp_path, 1)
    rows = [{"image": "0.png", "text": "cups", "box": [x, 2, x + 3, 5]} for x in (1, 10)]
    (target,) = read_targets(write_lines(tmp_path / "rows.jsonl", rows))
    assert target.id == "0"
    assert target.mask(24, 30, (24, 30)).sum() == 18


def test_two_rows_of_one_id(tmp_path: Path) -> None:
    write_pictures(tmp_path, 1)
    rows = [{"id": 5, "image": "0.png", "text": text, "box": [1, 2, 9, 9]} for text in ("cup", "dog", "cup")]
    targets = read_targets(write_lines(tmp_path / "rows.jsonl", rows))
    assert [(target.text, target.problem) for target in targets] == [
        ("cup", None), ("dog", "row 5: another row has this id"),
    ]  # fmt: skip
    assert len(targets[0].shapes) == 2


def test_cocos_instances(tmp_path: Path) -> None:
    write_pictures(tmp_path, 2)
    coco = {
        "info": {}, "images": [{"id": 7, "file_name": "0.png"}, {"id": 8, "file_name": "1.png"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 1, 5, 5], "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]},
            {"id": 2, "image_id": 8, "category_id": 4, "bbox": [2, 2, 9, 9], "segmentation": []},
            {"id": 3, "image_id": 7, "category_id": 3, "bbox": [11, 11, 5, 5]},
        ],
        "categories": [{"id": 3, "name": "cup"}, {"id": 4, "name": "dog"}],
    }  # fmt: skip
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco))
    targets = read_targets(path)
    assert [(target.id, target.name, target.text, target.label, target.problem) for target in targets] == [
        ("1", "0.png", "cup", "cup", None), ("2", "1.png", "dog", "dog", None),
    ]  # fmt: skip
    assert targets[0].mask(24, 30, (24, 30)).sum() == 50


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "nothing says where the object is; expected one of the columns box, boxes, bbox"),
        ({"box": [1, 2, 3]}, r"box: \[1.0, 2.0, 3.0\].*|box: \[1, 2, 3\], expected left, top, right, bottom"),
        ({"box": [5, 5, 5, 9]}, r"box: \[5, 5, 5, 9\] is empty"),
        ({"bbox": [1, 1, -2, 4]}, r"bbox: .* is empty; expected left, top, width, height"),
        ({"box": "here"}, "box: 'here' is no list of numbers"),
        ({"box": [1, 2, "x", 4]}, "box: .*expected left, top, right, bottom"),
        ({"box": [1, 2, float("inf"), 4]}, "box"),
        ({"segmentation": {"size": [2, 2], "counts": "ab"}}, "compressed run lengths"),
        ({"segmentation": {"size": [2, 2], "counts": [1, 2]}}, "do not make up the size"),
        ({"segmentation": [[1, 2, 3, 4]]}, "at least three points"),
        ({"segmentation": []}, "nothing says where the object is"),
    ],
)
def test_rows_that_do_not_say_where_are_errors(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    write_pictures(tmp_path, 1)
    (target,) = read_targets(write_lines(tmp_path / "rows.jsonl", [{"id": "a", "image": "0.png", "text": "t", **given}]))
    assert target.problem is not None
    assert target.problem.startswith("row a: ")
    import re

    assert re.search(said, target.problem)


# ---- whole evaluations ----


def test_a_table_of_methods(tmp_path: Path, model: Path) -> None:
    path = boxes(tmp_path / "data")
    found = evaluate(path, tmp_path / "out", model=model, methods=["class", "question"], block=2)
    assert (found.rows, found.pictures, found.errors) == (8, 4, [])
    assert list(found.methods) == ["class", "question"]
    loaded = qavit.load(model)
    meter = Localization()
    for target in read_targets(path):
        picture = Image.open(target.image.path)
        result = loaded.heatmaps(picture, target.text, method="question", block=2)
        mask = target.mask(24, picture.width, (24, picture.width))
        meter.update(result.upsample(resampling="bilinear")[0], mask, target.name)
    for name, estimate in meter.summary().items():
        assert found.methods["question"][name] == pytest.approx(estimate, rel=1e-6)
    assert json.loads((tmp_path / "out" / "table.json").read_text()) == json.loads(json.dumps(found.to_dict()))
    table = list(csv.DictReader(io.StringIO((tmp_path / "out" / "table.csv").read_text())))
    assert len(table) == 14
    assert float(table[0]["value"]) == found.methods["class"]["pointing"].value
    assert str(found).splitlines()[-1] == "8 texts of 4 pictures; percent, with 95% intervals over pictures"
    one = evaluate(path, model=loaded, block=2)
    assert one.methods == {"class": found.methods["class"]}


def test_goes_on_where_it_stopped(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, loaded = boxes(tmp_path / "data"), qavit.load(model)
    whole = evaluate(path, tmp_path / "whole", model=loaded, methods=["class", "question"])
    calls: list[str] = []
    real = type(loaded)._result

    def counted(self: Any, shown: Any, questions: Any, request: Any) -> Any:
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(request.method.name)
        return real(self, shown, questions, request)

    monkeypatch.setattr(type(loaded), "_result", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(path, tmp_path / "out", model=loaded, methods=["class", "question"])
    assert calls == ["class", "question", "class", "question", "class"]
    with open(tmp_path / "out" / "rows.jsonl", "ab") as rows:
        rows.write(b'{"id": "torn in a letter \xc3')
    calls[:] = [""] * 6
    found = evaluate(path, tmp_path / "out", model=loaded, methods=["class", "question"])
    # Of the picture that it stopped at, the first method's numbers were there.
    assert calls[6:] == ["question", "class", "question"]
    assert found == whole
    for name in ("table.json", "table.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    calls[:] = [""] * 6
    assert evaluate(path, tmp_path / "out", model=loaded, methods=["question", "class"]).methods == whole.methods
    assert calls[6:] == []
    with pytest.raises(ValueError, match=r"out: .* holds an evaluation of something else"):
        evaluate(path, tmp_path / "out", model=loaded, methods=["class"], block=1)
    evaluate(path, tmp_path / "out", model=loaded, methods=["class"], block=1, again=True)
    assert calls[6:] == ["class"] * 4


def test_one_process_writes_into_a_folder(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, loaded, out = boxes(tmp_path / "data"), qavit.load(model), tmp_path / "out"
    whole = evaluate(path, model=loaded, methods=["class", "question"])
    real, refused = type(loaded)._result, []

    def beside_another(self: Any, shown: Any, questions: Any, request: Any) -> Any:
        with pytest.raises(ValueError, match=r"out: another process is evaluating into '.*out'"):
            evaluate(path, out, model=loaded, methods=["class"], again=True)
        refused.append(request.method.name)
        return real(self, shown, questions, request)

    with monkeypatch.context() as patched:
        patched.setattr(type(loaded), "_result", beside_another)
        assert evaluate(path, out, model=loaded, methods=["class", "question"]) == whole
    assert refused == ["class", "question"] * 4
    for settings in ({"block": 1}, {}):  # what is refused, and what is done, holds nothing
        (out / "settings.json").write_text("{}")
        with pytest.raises(ValueError, match="something else"):
            evaluate(path, out, model=loaded, methods=["class"], **settings)
    assert evaluate(path, out, model=loaded, methods=["class", "question"], again=True) == whole


def test_ids_of_any_letters_are_kept_by_a_line_each(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = write_pictures(tmp_path / "data", 1)
    ids = ["a\u2028b", "\u00e9", "c\x85", "tab\tand\nline"]
    rows = [{"id": one, "image": names[0], "text": "where is the cup?", "box": [2, 3, 14, 20]} for one in ids]
    path = write_lines(tmp_path / "data" / "boxes.jsonl", rows)
    whole = evaluate(path, tmp_path / "out", model=qavit.load(model))
    monkeypatch.setattr("qavit.models._model.Model._see", lambda *_: pytest.fail("it was there"))
    assert evaluate(path, tmp_path / "out", model=qavit.load(model)) == whole


def test_what_fails_is_an_error_of_its_row(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = boxes(tmp_path / "data", 2)
    (tmp_path / "data" / "bad.png").write_bytes(b"no picture")
    lines = path.read_text()
    bad = [
        {"id": "missing", "image": "absent.png", "text": "t", "box": [1, 1, 9, 9]},
        {"id": "broken", "image": "bad.png", "text": "t", "box": [1, 1, 9, 9]},
        {"id": "empty", "image": "0.png", "text": " ", "box": [1, 1, 9, 9]},
        {"id": "outside", "image": "0.png", "text": "where is it?", "box": [100, 1, 109, 9]},
        {"id": "nowhere", "image": "0.png", "text": "t"},
    ]
    write_lines(path, bad)
    path.write_text(lines + path.read_text() + "{\n")
    command = ["eval", str(path), "--model", str(model), "-o", str(tmp_path / "out"), "--method", "class"]
    assert cli_main.main([*command, "--json"]) == cli_options.SOME_FAILED
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["pictures"]) == (4, 2)
    said = {error["id"]: error["error"] for error in found["errors"]}
    assert set(said) == {"missing", "broken", "empty", "outside", "nowhere", "9"}
    assert "absent.png" in said["missing"]
    assert "outside of the picture" in said["outside"]
    assert "no words" in said["empty"]
    assert cli_main.main([*command, "--csv"]) == cli_options.SOME_FAILED
    out, problems = capsys.readouterr()
    assert "nothing says where the object is" in problems
    assert "and 3 more; --json lists all" in problems
    assert out.startswith("method,figure,value,low,high\nclass,pointing,")


def test_the_bundled_scene_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_main.main(["eval", "--method", "class,question"]) == cli_options.OK
    said = capsys.readouterr().out
    assert said.splitlines()[1].split()[:2] == ["class", "100.0"]
    assert said.splitlines()[-1].startswith("3 texts of 1 pictures")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "lime"], "method: got 'lime'; this model has 'class'"), (["--method", ","], "expected at least one"),
        (["--method", "class,class"], "each once"), (["absent.jsonl"], "no file"),
    ],
)  # fmt: skip
def test_bad_usage(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_main.main(["eval", *arguments]) == cli_options.SOME_FAILED
    assert said in capsys.readouterr().err


def test_an_interrupted_command_says_whether_it_goes_on(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("qavit.models._model.Model._see", interrupted)
    command = ["eval", str(boxes(tmp_path / "data", 1)), "--model", str(model)]
    assert cli_main.main(command) == cli_options.INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"
    assert cli_main.main([*command, "-o", str(tmp_path / "out")]) == cli_options.INTERRUPTED
    assert "the same command goes on where it stopped" in capsys.readouterr().err


@pytest.mark.parametrize(("methods", "across"), [(1, True), (3, True), (7, False)])
def test_a_table_too_wide_for_a_terminal_has_its_figures_below_one_another(methods: int, across: bool) -> None:
    from qavit.data._evaluation import Evaluation
    from qavit.metrics._localization import Estimate

    figures = {f"figure_{number}": Estimate(0.5, 0.25, 0.75) for number in range(7)}
    found = Evaluation({f"m{number}": figures for number in range(methods)}, 8, 4, [])
    lines = str(found).splitlines()
    assert len(lines) == (9 if across else methods + 2)
    assert lines[1].split()[:2] == ["figure_0" if across else "m0", "50.0"]
    assert not across or max(map(len, lines[:-1])) <= 80
    # What failed has no figures, and takes nobody's place.
    lines = str(Evaluation({"broken": {}, "m0": figures}, 0, 0, [])).splitlines()
    assert lines[0].split() == ["broken", "m0"]
    assert lines[1] == "figure_0          50.0 [25.0, 75.0]"
