"""`qavit eval --against` and `qavit.data.compare`: what a precision, or another folder, changes of maps."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import make_rows, write_lines, write_model, write_pictures
from PIL import Image
from reference import normal
from safetensors.numpy import load_file, save_file

import qavit
from qavit.cli import _main as cli_main
from qavit.cli import _options as cli_options
from qavit.data import compare
from qavit.metrics import Differences, map_difference, spearman


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("comparison") / "model")


@pytest.fixture(scope="module")
def other(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with weights that are a little off."""
    folder = write_model(tmp_path_factory.mktemp("comparison") / "other")
    weights = load_file(model / "model.safetensors")
    for number, (name, values) in enumerate(sorted(weights.items())):
        weights[name] = values * (1 + 0.05 * normal(*values.shape, seed=number))
    save_file(weights, folder / "model.safetensors")
    return folder


def table(folder: Path, pictures: int = 4, each: int = 3) -> Path:
    return write_lines(folder / "questions.jsonl", make_rows(write_pictures(folder, pictures), each))


# ---- one pair of maps ----


def test_a_map_and_itself() -> None:
    values = np.abs(normal(5, 7))
    assert map_difference(values, values) == (1.0, True, 0.0, 0.0)
    assert map_difference(np.zeros((2, 2)), np.zeros((2, 2))) == (0.0, True, 0.0, 0.0)


def test_differences_by_hand() -> None:
    reference, values = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 2.0], [5.0, 4.0]])
    found = map_difference(values, reference)
    assert found.spearman == pytest.approx(spearman(values, reference)) == pytest.approx(0.8)
    assert not found.same_patch
    assert (found.mean, found.largest) == (pytest.approx(0.125), pytest.approx(0.5))
    negative = map_difference(-values, -reference)
    assert (negative.same_patch, negative.largest) == (True, pytest.approx(0.5))


@pytest.mark.parametrize("bad", [np.zeros((2, 3)), np.full((2, 2), np.nan), np.zeros(4)])
def test_no_pair_of_maps(bad: Any) -> None:
    with pytest.raises(ValueError, match="map"):
        map_difference(bad, np.ones((2, 2)))


def test_figures_of_many() -> None:
    meter = Differences()
    with pytest.raises(ValueError, match="no maps yet"):
        meter.summary()
    reference = np.abs(normal(4, 4))
    meter.update(reference, reference, score=0.5, reference_score=0.25, answer="red", reference_answer="red")
    meter.update(reference[::-1], reference, score=0.5, reference_score=0.5, answer="red", reference_answer="blue")
    assert len(meter) == 2
    second = map_difference(reference[::-1], reference)
    assert meter.summary() == pytest.approx({
        "spearman_mean": (1 + second.spearman) / 2, "spearman_least": second.spearman,
        "same_patch": (1 + second.same_patch) / 2, "difference_mean": second.mean / 2, "difference_largest": second.largest,
        "score_mean": 0.125, "score_largest": 0.25, "same_answer": 0.5,
    })  # fmt: skip
    plain = Differences()
    plain.update(reference, reference, score=1.0)
    assert set(plain.summary()) == {
        "spearman_mean", "spearman_least", "same_patch", "difference_mean", "difference_largest"
    }  # fmt: skip


# ---- a model's maps ----


def test_figures_are_of_the_models_own_maps(tmp_path: Path, model: Path, other: Path) -> None:
    path, reference, own = table(tmp_path), qavit.load(model), qavit.load(other)
    found = compare(path, model=own, against=reference, block=2)
    assert (found.rows, found.pictures, found.errors) == (12, 4, [])
    assert found.precision == "float32"
    assert found.against == f"float32 of {reference.name}"
    meter, changed = Differences(), []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        picture = Image.open(tmp_path / row["image"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", qavit.PictureCroppedWarning)
            one, two = (each.heatmaps(picture, row["question"], block=2).raw[0] for each in (own, reference))
        if not meter.update(one, two).same_patch:
            changed.append(row["id"])
    assert found.figures == pytest.approx(meter.summary(), rel=1e-5)
    assert 0 < found.figures["difference_mean"] < found.figures["difference_largest"]
    assert found.figures["spearman_least"] < 1
    assert [row["id"] for row in found.changed] == changed
    assert all(row["patches"][0] != row["patches"][1] for row in found.changed)
    assert json.loads(json.dumps(found.to_dict()))["figures"] == found.figures
    assert found.to_csv().splitlines()[0] == "figure,value"


def test_a_precision(tmp_path: Path, model: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", qavit.PrecisionWarning)
        found = compare(table(tmp_path), model=model, precision="bfloat16", against="float32")
        back = compare(table(tmp_path), model=qavit.load(model), against="bfloat16")
    native = qavit.build_info()["kernels"]["bfloat16"] != qavit.build_info()["kernels"]["float32"]
    assert found.rows == back.rows == 12
    assert (found.precision != found.against) == native
    assert (found.figures["difference_largest"] > 0) == native
    # Observed where the CPU has bfloat16 products: 0.98 and more.
    assert found.figures["spearman_mean"] > 0.9
    assert found.figures["spearman_mean"] == pytest.approx(back.figures["spearman_mean"], abs=1e-6)


def test_the_bundled_model_has_answers(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(qavit.__file__).parent / "demo_model"
    assert cli_main.main(["eval", "--against", str(folder)]) == cli_options.OK
    said = capsys.readouterr().out
    lines = [line.rsplit(maxsplit=1) for line in said.splitlines()]
    assert ["same answer", "100.00%"] in lines
    assert lines[0] == ["rank correlation, mean", "1.00000"]
    assert "3 maps of 1 pictures" in said


def test_rows_that_fail_are_errors_of_their_own(tmp_path: Path, model: Path, other: Path, capsys: Any) -> None:
    path = table(tmp_path, 2, 2)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    lines = path.read_text()
    bad = [
        {"id": "missing", "image": "absent.png", "question": "t"}, {"id": "broken", "image": "bad.png", "question": "t"},
        {"id": "empty", "image": "0.png", "question": " "},
    ]  # fmt: skip
    write_lines(path, bad)
    path.write_text(lines + path.read_text() + "{\n")
    command = ["eval", str(path), "--model", str(model), "--against", str(other)]
    assert cli_main.main([*command, "--json"]) == cli_options.SOME_FAILED
    out, said = capsys.readouterr()
    found = json.loads(out)
    assert (found["rows"], found["pictures"]) == (4, 2)
    assert {error["id"] for error in found["errors"]} == {"missing", "broken", "empty", "7"}
    assert "and 1 more; --json lists all" in said
    assert cli_main.main([*command, "--csv"]) == cli_options.SOME_FAILED
    assert capsys.readouterr().out.startswith("figure,value\nspearman_mean,")


def test_bad_arguments(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = qavit.load(model)
    with pytest.raises(ValueError, match="'float32' is what the model computes in"):
        compare(model=loaded)
    with pytest.raises(ValueError, match="the model itself"):
        compare(model=loaded, against=loaded)
    with pytest.raises(ValueError, match="precision: expected"):
        compare(model=loaded, against="float12")
    with pytest.raises(TypeError, match="got int"):
        compare(model=loaded, against=3)  # type: ignore[arg-type]
    wider = write_model(tmp_path / "wider")
    found = compare(model=loaded, against=qavit.load(wider, image_size=28))
    assert (found.rows, found.figures) == (0, {})
    assert "maps are (3, 3) here and (4, 4) in the reference" in found.errors[0][1]
    for arguments, said in (
        (["--against", "float32"], "'float32' is what the model computes in"), (["--against", "absent"], "absent"),
        (["--against", "bf16", "--again"], "not with --against"), (["--against", "bf16", "-o", "x"], "not with --against"),
    ):  # fmt: skip
        assert cli_main.main(["eval", "--model", str(model), *arguments]) != cli_options.OK
        assert said in capsys.readouterr().err
