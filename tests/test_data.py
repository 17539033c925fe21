"""Questions in, grouped and cut into parts; rows out to files and back."""

from __future__ import annotations

import csv
import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import make_rows, write_lines, write_model, write_pictures
from PIL import Image

import qavit
import qavit.data
from qavit.data import HeatmapActor, MapRow, Shard, open_questions, scale_maps
from qavit.data._output import read_manifest, write_part
from qavit.data._plan import Group, Part, Row, plan_file
from qavit.data._questions import Item

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def actor(model_folder: Path) -> HeatmapActor:
    return HeatmapActor(model_folder)


def read(path: Path, **options: Any) -> list[Item]:
    (source,) = open_questions(path, **options)
    first = list(source)
    assert source.position == 1
    assert list(source) == first
    return first


def said(items: list[Item]) -> list[tuple[str, str, str]]:
    return [(item.id, item.image.name if item.image else "", item.question) for item in items]


# ---- readers ----


def test_every_format_says_the_same(tmp_path: Path) -> None:
    rows = make_rows(["a.png", "b.png"], 2)
    expected = [(row["id"], row["image"], row["question"]) for row in rows]
    write_lines(tmp_path / "q.jsonl", rows)
    for ending, delimiter in (("csv", ","), ("tsv", "\t")):
        with open(tmp_path / f"q.{ending}", "w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, ["question", "id", "image"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    (tmp_path / "q.json").write_text(json.dumps(rows))
    for ending in ("jsonl", "csv", "tsv", "parquet", "json"):
        items = read(tmp_path / f"q.{ending}")
        assert said(items) == expected, ending
        assert {item.image.path for item in items if item.image} == {str(tmp_path / "a.png"), str(tmp_path / "b.png")}
        assert all(item.problem is None for item in items)


def test_ids_are_the_rows_own_or_their_numbers(tmp_path: Path) -> None:
    one = write_lines(tmp_path / "one.jsonl", [{"image": "a", "question": "b"}, {"image": "a", "question": "c", "id": 7}])
    assert [item.id for item in read(one)] == ["0", "7"]
    rows = [{"image": "a", "question": "b", "question_id": 12}, {"image": "a", "text_input": "d"}]
    two = write_lines(tmp_path / "two.jsonl", rows)
    several = open_questions([one, two])
    assert [item.id for source in several for item in source] == ["one:0", "7", "12", "two:1"]
    assert [item.question for item in several[1]] == ["b", "d"]


@pytest.mark.parametrize(
    ("name", "subtype", "expected"),
    [
        ("q.json", "val2014", "COCO_val2014_000000262148.jpg"),
        ("q.json", "test-dev2015", "COCO_test2015_000000262148.jpg"),
        ("v2_OpenEnded_mscoco_train2014_questions.json", None, "COCO_train2014_000000262148.jpg"),
    ],
)
def test_vqa_questions_name_their_pictures(tmp_path: Path, name: str, subtype: str | None, expected: str) -> None:
    about = {"info": {"version": "2.0"}, "task_type": "Open-Ended", "data_type": "mscoco"}
    about |= {"data_subtype": subtype} if subtype else {}
    questions = [{"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000 + i} for i in range(3)]
    (tmp_path / name).write_text(json.dumps({**about, "questions": questions}))
    (tmp_path / "pictures").mkdir()
    items = read(tmp_path / name, images=tmp_path / "pictures")
    assert said(items)[2] == ("262148002", expected, "Where is he looking?")
    assert items[0].image is not None
    assert items[0].image.path == str(tmp_path / "pictures" / expected)
    other = read(tmp_path / name, image_name="{image_id}.png")
    assert said(other)[0][1] == "262148.png"


def test_webdataset_pictures_are_read_where_they_lie(tmp_path: Path) -> None:
    (name,) = write_pictures(tmp_path, 1)
    picture = (tmp_path / name).read_bytes()
    members = {
        "a/000.png": picture,
        "a/000.json": json.dumps({"question": "one?", "id": "x"}).encode(),
        "a/001.json": json.dumps({"questions": ["two?", {"question": "three?", "question_id": 9}]}).encode(),
        "a/001.jpg": b"no picture",
        "a/002.png": picture,
        "a/002.txt": b" four?\n",
        "a/003.json": json.dumps({"question": "whose?"}).encode(),
        "a/004.png": picture,
        "a/004.json": b"{",
    }
    path = tmp_path / "shard-0.tar"
    with tarfile.open(path, "w") as archive:
        for member, data in members.items():
            about = tarfile.TarInfo(member)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    items = read(path)
    assert [(item.id, item.question) for item in items] == [
        ("x", "one?"), ("1", "two?"), ("9", "three?"), ("3", "four?"), ("4", "whose?"), ("5", ""),
    ]  # fmt: skip
    assert [item.problem is None for item in items] == [True, True, True, True, False, False]
    assert items[0].image is not None
    assert items[0].image.name == "shard-0.tar/a/000.png"
    assert items[0].image.read() == picture
    assert items[1].image is not None
    assert items[1].image.read() == b"no picture"
    path.write_bytes(path.read_bytes()[:1800])
    with pytest.raises(ValueError, match="not a whole tar file"):
        read(path)


def test_parquet_may_hold_the_pictures(tmp_path: Path) -> None:
    (name,) = write_pictures(tmp_path, 1)
    picture = (tmp_path / name).read_bytes()
    images = [{"bytes": picture, "path": "x.png"}, {"bytes": None, "path": name}]
    rows = [{"image": image, "question": question} for image, question in zip(images, ["where?", ""])]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    items = read(tmp_path / "q.parquet")
    assert said(items) == [("0", "x.png", "where?"), ("1", name, "")]
    assert items[0].image is not None
    assert items[0].image.read() == picture


def test_a_row_that_cannot_be_read_is_an_item_with_a_problem(tmp_path: Path) -> None:
    lines = ['{"image": "a", "question": "b"}', "{oops", "[1]", "", '{"question": "c"}', '{"image": 3, "question": "d"}',
             '{"image": "a", "question": 4}', '{"image": "a"}']  # fmt: skip
    (tmp_path / "q.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    items = read(tmp_path / "q.jsonl")
    assert [item.id for item in items] == [str(number) for number in range(8)]
    problems = [item.problem for item in items]
    assert problems[0] is None
    assert problems[6] is None  # an empty question is for the model to refuse
    expected = {1: "line 2: not JSON", 2: "got list", 3: "line 5: no image", 4: "image is int", 5: "is int", 7: "not UTF-8"}
    for place, words in expected.items():
        assert words in str(problems[place])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.csv", "picture,question\n", "no column 'image'"),
        ("q.csv", "image,answer\n", "no column 'question'"),
        ("q.doc", "", "none of"),
        ("q.tar.gz", "", "unpack it first"),
        ("q.json", '{"a": [1]}', "no list of questions"),
        ("q.json", '[{"image": "a"', "not JSON"),
    ],
)
def test_files_that_are_no_questions(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        open_questions(tmp_path / "nowhere.csv")
    here = write_lines(tmp_path / "q.jsonl", [])
    with pytest.raises(FileNotFoundError, match="images"):
        open_questions(here, images=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="same name"):
        open_questions([here, here])


# ---- the plan ----


def plan(path: Path, window: int, part_rows: int) -> list[Part]:
    (source,) = open_questions(path)
    return list(plan_file(source, 0, window, part_rows))


def test_questions_of_a_picture_meet_within_a_window(tmp_path: Path) -> None:
    rows = make_rows([f"{number}.png" for number in range(10)], 3, stride=3)
    path = write_lines(tmp_path / "q.jsonl", rows)
    whole = plan(path, 30, 7)
    assert [part.rows for part in whole] == [6, 6, 6, 6, 6]
    assert all(len(group.rows) == 3 for part in whole for group in part.groups)
    apart = plan(path, 10, 7)
    assert all(len(group.rows) == 1 for part in apart for group in part.groups)
    for parts in (whole, apart):
        planned = [row.id for part in parts for group in part.groups for row in group.rows]
        assert sorted(planned) == sorted(row["id"] for row in rows)
        assert [part.number for part in parts] == list(range(len(parts)))
        assert [part.start for part in parts[1:]] == [part.position for part in parts[:-1]]
        assert parts[-1].position == pytest.approx(1)


def test_a_picture_of_many_questions_is_cut(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "q.jsonl", make_rows(["a.png"], 25))
    assert [part.rows for part in plan(path, 100, 10)] == [10, 10, 5]
    assert plan(write_lines(tmp_path / "none.jsonl", []), 10, 10) == []


def test_shards_share_the_work() -> None:
    parts = [Part(file, number) for file in range(3) for number in range(5)]
    for total, files in ((2, 3), (3, 3), (4, 3), (7, 3)):
        shares = [[part.name for part in parts if Shard(i, total).has_part(part, files)] for i in range(total)]
        assert sorted(name for share in shares for name in share) == sorted(part.name for part in parts)
        for part in parts:
            for i in range(total):
                assert Shard(i, total).has_file(part.file, files) or not Shard(i, total).has_part(part, files)
    assert Shard.parse("1/4") == (1, 4)
    for text in ("4/4", "1", "-1/2", "a/b", "/"):
        with pytest.raises(ValueError, match="expected i/n"):
            Shard.parse(text)


# ---- rows ----


def test_rows_are_what_the_model_says(actor: HeatmapActor, model_folder: Path, tmp_path: Path) -> None:
    (name,) = write_pictures(tmp_path, 1)
    questions = ["where is the dog?", "", "where is the cup?", "where is the dog?", "..."]
    (source,) = open_questions(write_lines(tmp_path / "q.jsonl", [{"image": name, "question": text} for text in questions]))
    (part,) = plan_file(source, 0, 100, 100)
    (rows,) = actor.compute(part.groups)
    expected = qavit.load(model_folder).heatmaps(tmp_path / name, ["where is the dog?", "where is the cup?"])
    assert [row.error is None for row in rows] == [True, False, True, True, False]
    assert "empty" in str(rows[1].error)
    assert "no words" in str(rows[4].error)
    for row, index in ((rows[0], 0), (rows[2], 1), (rows[3], 0)):
        assert row.map is not None
        # 3e-8 seen: the question is encoded alone here.
        np.testing.assert_allclose(row.map, expected.maps[index], atol=3e-7)
        assert row.block == expected.block
        assert row.seconds > 0
    assert rows[1].map is None
    assert rows[1].score is None


def test_a_row_does_not_depend_on_what_was_asked_before(model_folder: Path, tmp_path: Path) -> None:
    (name,) = write_pictures(tmp_path, 1)
    rows = [Row(str(i), f"where is the {word}?", None) for i, word in enumerate("abcdefg")]
    group = Group(open_item(tmp_path, name), rows)
    fresh = HeatmapActor(model_folder)
    used = HeatmapActor(model_folder)
    list(used.compute([group._replace(rows=group.rows[3:]), group._replace(rows=group.rows[:1])]))
    first, second = (next(iter(one.compute([group]))) for one in (fresh, used))
    for one, other in zip(first, second):
        assert one.map is not None
        assert other.map is not None
        assert np.array_equal(one.map, other.map)


def open_item(folder: Path, name: str) -> Any:
    from qavit.data._pictures import ImageSource

    return ImageSource(name, str(folder / name))


def test_many_questions_of_a_large_method_go_in_pieces(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = write_pictures(tmp_path, 1)
    group = Group(open_item(tmp_path, name), [Row(str(i), f"where is {i}?", None) for i in range(7)])
    whole = HeatmapActor(model_folder, method="question")
    assert whole.at_once is not None
    assert whole.at_once > 7
    monkeypatch.setattr("qavit.models._question_vit.MAX_RAW_BYTES", 3 * (2**28 // whole.at_once))
    pieces = HeatmapActor(model_folder, method="question")
    assert pieces.at_once == 3
    for one, other in zip(*(next(iter(actor.compute([group]))) for actor in (whole, pieces))):
        np.testing.assert_allclose(one.map, other.map, atol=1e-6)


def test_batches_of_columns(actor: HeatmapActor, tmp_path: Path) -> None:
    names = write_pictures(tmp_path, 2)
    paths = [str(tmp_path / name) for name in names]
    pixels = np.asarray(Image.open(paths[1]))
    images = [paths[0], (tmp_path / names[0]).read_bytes(), Image.open(paths[0]), pixels, {"bytes": None, "path": paths[1]},
              "missing.png", None]  # fmt: skip
    batch = {"image": images, "question": ["where is the dog?"] * 7, "extra": list(range(7))}
    rows = actor(batch)
    assert rows["extra"] == batch["extra"]
    assert rows["map"].shape == (7, 9)
    assert rows["map"].dtype == np.float32
    assert np.array_equal(rows["map"][0], rows["map"][1])
    assert np.array_equal(rows["map"][0], rows["map"][2])
    assert np.array_equal(rows["map"][3], rows["map"][4])
    assert not np.array_equal(rows["map"][0], rows["map"][3])
    assert [error == "" for error in rows["error"]] == [True] * 5 + [False] * 2
    assert np.isnan(rows["map"][5:]).all()
    assert np.isnan(rows["score"]).all()
    assert rows["grid"].tolist() == [[3, 3]] * 7
    with pytest.raises(ValueError, match="expected image and question"):
        actor({"image": images})
    with pytest.raises(ValueError, match="image has 7 rows, question has 1 rows; expected as many"):
        actor({"image": images, "question": ["where?"]})


def test_an_actor_can_be_sent_to_another_process(actor: HeatmapActor, tmp_path: Path) -> None:
    import multiprocessing

    names = write_pictures(tmp_path, 2)
    batches = [{"image": [str(tmp_path / name)], "question": ["where is the dog?"]} for name in names]
    here = [actor(batch) for batch in batches]
    copy = pickle.loads(pickle.dumps(actor))
    assert np.array_equal(copy(batches[0])["map"], here[0]["map"])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.map(actor, batches)
    assert all(np.array_equal(one["map"], other["map"]) for one, other in zip(here, there))


def test_arguments_of_an_actor_are_checked(model_folder: Path) -> None:
    for options, message in (
        ({"dtype": "int8"}, "dtype"), ({"method": "magic"}, "method"), ({"block": 99}, "block 99"), ({"heads": 5}, "head"),
        ({"method": "gem"}, "this model has 'class', 'question', "), ({"decoders": 0}, "decoders"),
        ({"block": 0, "method": "question"}, "does not attend"),
    ):  # fmt: skip
        with pytest.raises((ValueError, IndexError), match=message):
            HeatmapActor(model_folder, **options)
    with pytest.warns(qavit.QuestionBlindWarning):
        HeatmapActor(model_folder, block=1)
    with pytest.raises(TypeError, match=r"model: expected what .* takes, got QAViT; it is loaded"):
        HeatmapActor(qavit.load(model_folder))
    with pytest.raises(TypeError, match="workers: expected a whole number, got float"):
        qavit.data.run("asked.jsonl", "out", workers=1.5)


# ---- files ----


def rows_of(values: list[np.ndarray | None], **about: Any) -> list[MapRow]:
    return [
        MapRow(str(i), "a.png", "q", 2, (2, 3), value, about.get("score"), None if value is not None else "no", 0.5)
        for i, value in enumerate(values)
    ]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_come_back(tmp_path: Path, dtype: str) -> None:
    random = np.random.default_rng(0)
    values: list[Any] = [random.random((2, 3)).astype(np.float32) for _ in range(5)]
    values[1] = values[4] = None
    (tmp_path / "parts").mkdir()
    write_part(tmp_path / "parts" / "00000-000000.parquet", rows_of(values, score=0.25), (2, 3), dtype)
    write_part(tmp_path / "parts" / "00000-000001.parquet", rows_of([None, None])[:1], (2, 3), dtype)
    about = {"grid": [2, 3], "block": 2, "method": "class", "questions": [["q", ""]]}
    (tmp_path / "_manifest.json").write_text(json.dumps({"format": "qavit-maps", "version": 1, **about}))
    reader = qavit.data.read_maps(tmp_path)
    found = list(reader)
    assert len(reader) == len(found) == 6
    assert not reader.complete
    (tmp_path / "_input-00000.json").write_text('{"parts": 2, "rows": 6}')
    assert reader.complete
    tolerance = 0 if dtype == "float32" else 2**-11
    for row, value in zip(found, [*values, None]):
        if value is None:
            assert row.map is None
            assert row.error == "no"
        else:
            np.testing.assert_allclose(row.map, value, rtol=tolerance)
            assert row.score == 0.25
    ids, maps = reader.to_numpy()
    assert ids == ["0", "2", "3"]
    assert np.array_equal(maps[1], found[2].map)
    frame = reader.to_pandas()
    assert list(frame["id"]) == [row.id for row in found]
    assert frame["map"][1] is None
    assert np.array_equal(frame["map"][2], maps[1])
    assert list(reader.to_pandas(["question"])) == ["question"]
    assert list(reader.errors()) == [("1", "no"), ("4", "no"), ("0", "no")]
    assert np.array_equal(reader.gather([3, "2"]), maps[[2, 1]])
    with pytest.raises(KeyError, match="no row has the id '9'"):
        reader.gather([9])
    with pytest.raises(KeyError, match="has no map: no"):
        reader.gather(["1"])
    stored = parquet.read_schema(tmp_path / "parts" / "00000-000000.parquet")
    assert stored.field("map").type == pa.list_(pa.from_numpy_dtype(np.dtype(dtype)))


def test_half_precision_keeps_small_maps() -> None:
    random = np.random.default_rng(0)
    maps = random.random((5, 6)).astype(np.float32) * np.array([1e-12, 1e-3, 1, 1e7, 0], np.float32)[:, None]
    stored, scale = scale_maps(maps, "float16")
    assert stored.dtype == np.float16
    assert scale[2] == scale[4] == 1
    assert (np.log2(scale) % 1 == 0).all()
    np.testing.assert_allclose(stored.astype(np.float32) * scale[:, None], maps, rtol=2**-10, atol=0)
    assert np.array_equal(scale_maps(maps, "float32")[0], maps)


def test_folders_that_hold_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run"):
        qavit.data.read_maps(tmp_path)
    later = '{"format": "qavit-maps", "version": 9}'
    for content, message in (("{", "not a manifest"), ('{"a": 1}', "not a manifest"), (later, "version 9")):
        (tmp_path / "_manifest.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_manifest(tmp_path)


def test_the_datasets_library_maps_an_actor(actor: HeatmapActor, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    names = write_pictures(tmp_path, 3)
    rows = [{"image": str(tmp_path / name), "question": text} for name in names for text in ("where is the dog?", "where?")]
    rows[4]["image"] = "missing.png"
    found = datasets.Dataset.from_list(rows).map(actor, batched=True, batch_size=4)
    expected = actor({key: [row[key] for row in rows] for key in rows[0]})
    assert found["image"][:] == [row["image"] for row in rows]
    assert np.array_equal(np.array(found["map"][:], np.float32), expected["map"], equal_nan=True)
    assert [error == "" for error in found["error"]] == [True] * 4 + [False, True]


def test_blip_gives_lavis_maps_and_scores(tmp_path: Path) -> None:
    folder = Path(__file__).parent / "data" / "golden" / "blip_itm"
    cases = json.loads((folder / "cases.json").read_text())
    parts = {
        "checkpoint": folder / "checkpoint.pth",
        "tokenizer": folder / "vocab.txt",
        "config": {"text": cases["med_config"], "vision": cases["vit"]},
    }
    (name,) = write_pictures(tmp_path, 1)
    rows = [{"image": name, "question": text} for text in ("where is the dog?", "the dog", "", "?")]
    questions = write_lines(tmp_path / "q.jsonl", rows)
    block = cases.get("block", 1)
    summary = qavit.data.run(questions, tmp_path / "out", block=block, dtype="float16", **parts)
    assert (summary.rows, summary.errors) == (4, 1)
    reader = qavit.data.read_maps(tmp_path / "out")
    assert reader.method == "gradcam"
    model = qavit.load(**parts)
    pixels = np.stack([qavit.images.preprocess(qavit.images.load_image(tmp_path / name), model.preprocessing)[0]] * 4)
    expected = model.forward_itm({"image": pixels, "text_input": [row["question"] for row in rows]}, block_num=block)
    scores = model.itm(pixels, [row["question"].strip("?") for row in rows])[1]
    for row, values, score in zip(reader, expected, scores):
        if row.id == "2":
            assert row.map is None
            assert row.score is None
            continue
        assert row.map is not None
        np.testing.assert_allclose(row.map.reshape(-1), values, rtol=2**-10, atol=2**-20 * values.max())
        assert row.score == pytest.approx(float(score), abs=1e-5)
    with pytest.raises(ValueError, match="gradcam"):
        HeatmapActor(method="class", **parts)


def test_plain_clip_takes_pictures_alone(tmp_path: Path) -> None:
    vision = Path(__file__).parent / "data" / "golden" / "qavit_official_late" / "clip"
    (name,) = write_pictures(tmp_path, 1)
    actor = HeatmapActor(vision=vision)
    rows = actor({"image": [str(tmp_path / name)]})
    expected = qavit.load(vision=vision).heatmaps(tmp_path / name).maps
    assert np.array_equal(rows["map"][0], expected.reshape(-1))
    asked = actor({"image": [str(tmp_path / name)], "question": ["where?"]})
    assert "takes none" in asked["error"][0]
    with pytest.raises(ValueError, match="got 'question'; this model has 'class'"):
        HeatmapActor(vision=vision, method="question")
