"""Tables as people have them: broken rows, odd encodings, public layouts, packed files; no row is lost."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from data_sets import write_pictures
from hypothesis import given, settings
from hypothesis import strategies as st

from qavit.data import open_questions
from qavit.data._questions import Item
from qavit.data._tables import JsonScanner, Records


def read(path: Path, content: str | bytes | None = None, **options: Any) -> list[Item]:
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (source,) = open_questions(path, **options)
    first = list(source)
    assert source.position == 1
    assert list(source) == first
    assert len({item.id for item in first}) == len(first)
    return first


def asked(items: list[Item]) -> list[str | None]:
    """The question of each row that can be asked."""
    return [item.question if item.problem is None else None for item in items]


def problems(items: list[Item]) -> list[str]:
    return [item.problem for item in items if item.problem is not None]


# ---- rows that are broken ----


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_row_with_too_many_fields_is_told(tmp_path: Path, ending: str) -> None:
    mark = "," if ending == "csv" else "\t"
    lines = ["image,id,question", "a.jpg,x,is it red", "b.jpg,y,is it red, or blue?", "c.jpg,z,where?,,", "d.jpg"]
    items = read(tmp_path / f"q.{ending}", "\n".join(lines).replace(",", mark))
    assert [item.id for item in items] == ["x", "y", "z", "3"]
    assert asked(items) == ["is it red", None, "where?", ""]
    (problem,) = problems(items)
    assert f"q.{ending}, line 3: 4 fields, expected 3 (image, id, question)" in problem
    assert ("needs quotes" in problem) == (ending == "csv")


@pytest.mark.parametrize(
    ("text", "expected", "said"),
    [
        ('a.jpg,"stop sign\nb.jpg,ring?\nc.jpg,star?\n', [None, "ring?", "star?"], "line 2: a quote that is never closed"),
        ('a.jpg,"stop sign\nb.jpg,"the" ring?\nc.jpg,star?', [None, None, "star?"], "line 2: quotes that are no table's"),
        ('a.jpg,"the" ring?\nb.jpg,ring?\n', [None, "ring?"], "line 2: quotes that are no table's"),
        ('a.jpg,ring?\nb.jpg,"', ["ring?", None], "line 3: a quote that is never closed"),
        ('a.jpg,"two\nlines, and ""quotes"""\nb.jpg,a 5" ring?\n', ['two\nlines, and "quotes"', 'a 5" ring?'], None),
        ('a.jpg,"a\r\nb"\r\nb.jpg,c\r\n\r\n', ["a\r\nb", "c"], None),
        ("a.jpg,a\rb.jpg,c\r", ["a", "c"], None),
    ],
)
def test_quotes_in_a_table_by_commas(tmp_path: Path, text: str, expected: list[str | None], said: str | None) -> None:
    items = read(tmp_path / "q.csv", "image,question\n" + text)
    assert asked(items) == expected
    assert said is None or said in problems(items)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('a.jpg\t"stop sign, is it red?\nb.jpg\tring?\nc.jpg\tstar?\n', ['"stop sign, is it red?', "ring?", "star?"]),
        ('a.jpg\t"stop" sign?\nb.jpg\tring?\n', ['"stop" sign?', "ring?"]),
        ('a.jpg\t"stop\nb.jpg\tthe ring"\nc.jpg\tx', ['"stop', 'the ring"', "x"]),
        ('a.jpg\t"stop\nb.jpg\t"the ring?"\n', ['"stop', "the ring?"]),
        ('a.jpg\t"two\nlines"\nb.jpg\tring?\n', ["two\nlines", "ring?"]),
    ],
)
def test_quotes_in_a_table_by_tabs(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert asked(read(tmp_path / "q.tsv", "image\tquestion\n" + text)) == expected


def test_a_quote_that_is_never_closed_costs_its_row_alone(tmp_path: Path) -> None:
    lines = ["image,question", 'a.jpg,"open', *(f"{n}.jpg,where is {n}?" for n in range(5000))]
    items = read(tmp_path / "q.csv", "\n".join(lines))
    assert asked(items) == [None, *(f"where is {n}?" for n in range(5000))]


@pytest.mark.parametrize("quote", ["", '"'])
def test_fields_of_megabytes(tmp_path: Path, quote: str) -> None:
    before = csv.field_size_limit()
    long = quote + "x" * 3_000_000 + quote
    items = read(tmp_path / "q.csv", f"image,question,context\na.jpg,star?,{long}\nb.jpg,ring?,y\n")
    assert asked(items) == ["star?", "ring?"]
    assert csv.field_size_limit() == before
    rows = [{"image": "a.jpg", "question": "star?", "context": long}, {"image": "b.jpg", "question": "ring?"}]
    assert asked(read(tmp_path / "q.json", json.dumps(rows))) == ["star?", "ring?"]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.tuples(*2 * [st.text('a,"\t\n\r ;\u00fc', max_size=6)]).map(list), max_size=5), st.sampled_from(",\t"))
def test_what_csv_writes_is_read(rows: list[list[str]], mark: str) -> None:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=mark).writerows([["image", "question"], *rows])
    records = Records(iter(io.StringIO(file.getvalue(), newline="")), tab=mark == "\t")
    found = [(fields, problem) for _, fields, problem in records]
    if mark == "\t" and any("\t" in text for row in rows for text in row):
        return  # lines of it may be taken for rows
    assert found == [(row, None) for row in rows]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text('a,"\n', max_size=40), st.sampled_from(",\t"))
def test_no_line_of_any_table_is_lost(text: str, mark: str) -> None:
    lines = ["image,question\n", *io.StringIO(text.replace("\t", ""), newline="")]
    records = Records(iter([line.replace(",", mark) for line in lines]), tab=mark == "\t")
    said = "".join("".join(fields) if problem is None else lines[line - 1] for line, fields, problem in records)
    assert said.count("a") == "".join(lines[1:]).count("a")


def test_lone_surrogates_are_told(tmp_path: Path) -> None:
    lines = [
        '{"image": "a.jpg", "question": "\\ud83d star?", "id": 1}',
        '{"image": "a\\ud83d.jpg", "question": "star?", "id": 2}',
        '{"image": "a.jpg", "question": "star?", "id": "\\udc00"}',
        '{"image": "a.jpg", "question": "\\ud83d\\ude00?", "id": 4}',
    ]  # fmt: skip
    items = read(tmp_path / "q.jsonl", "\n".join(lines))
    assert asked(items) == [None, None, None, "\U0001f600?"]
    assert all("a lone surrogate (U+D" in problem for problem in problems(items))
    assert [item.question for item in items][:2] == ["\\ud83d star?", "star?"]
    assert asked(read(tmp_path / "q.json", "[" + ",".join(lines) + "]")) == asked(items)
    for item in items:
        (item.id + item.question + (item.problem or "")).encode()


def test_ids_are_never_changed(tmp_path: Path) -> None:
    ids: list[Any] = ["007", "7", 7.5, "x", 12345678901234567890, None, 3.0, "#", True, [1]]
    rows = [{"image": "a.jpg", "question": "q", "id": identity} for identity in ids]
    items = read(tmp_path / "q.json", json.dumps(rows))
    assert [item.id for item in items] == ["007", "7", "7.5", "x", "12345678901234567890", "5", "3", "#", "8", "9"]
    assert ["the id is bool" in str(item.problem) for item in items][-2:] == [True, False]
    assert "the id is list" in str(items[-1].problem)
    assert asked(items)[:-2] == ["q"] * 8


def test_templates_keep_leading_zeros(tmp_path: Path) -> None:
    rows = [{"image_id": identity, "question": "q"} for identity in ("000123", "123", 123)]
    path = tmp_path / "q.json"
    items = read(path, json.dumps(rows), image_name="{image_id}.jpg")
    assert [item.image.name for item in items if item.image] == ["000123.jpg", "123.jpg", "123.jpg"]
    items = read(path, image_name="{image_id:06d}.jpg")
    assert [item.image.name for item in items if item.image] == ["000123.jpg"] * 3
    table = "image_id,question\n000123,q\n123,q\n"
    items = read(tmp_path / "q.csv", table, image_name="{image_id}.jpg")
    assert [item.image.name for item in items if item.image] == ["000123.jpg", "123.jpg"]
    for template in ("{nothing}.jpg", "{image_id.x}", "{image_id[", "{0}"):
        assert "does not fit the row" in problems(read(path, image_name=template))[0]


# ---- encodings ----


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_are_told_by_the_file(tmp_path: Path, ending: str, encoding: str) -> None:
    row = {"image": "a.jpg", "question": "o\u00f9 est la \u7403?"}
    text = {
        "csv": "image,question\n{image},{question}\n", "tsv": "image\tquestion\n{image}\t{question}\n",
    }.get(ending, "").format(**row)  # fmt: skip
    text = text or (json.dumps(row, ensure_ascii=False) if ending == "jsonl" else json.dumps([row], ensure_ascii=False))
    assert asked(read(tmp_path / f"q.{ending}", text.encode(encoding))) == [row["question"]]


def test_a_broken_encoding_is_named_with_its_line(tmp_path: Path) -> None:
    text = "image,question\na.jpg,o\u00f9 est la balle?\nb.jpg,where is the ring?\n".encode("cp1252")
    items = read(tmp_path / "q.csv", text)
    assert asked(items) == [None, "where is the ring?"]
    assert "q.csv, line 2: the question: byte 0xf9 is not UTF-8" in problems(items)[0]
    assert "--encoding cp1252" in problems(items)[0]
    assert asked(read(tmp_path / "q.csv", encoding="cp1252")) == ["o\u00f9 est la balle?", "where is the ring?"]
    with pytest.raises(ValueError, match="encoding: 'klingon'"):
        open_questions(tmp_path / "q.csv", encoding="klingon")
    (tmp_path / "head.csv").write_bytes("im\u00e4ge,question\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"head\.csv.*line 1: column .* byte 0xe4"):
        open_questions(tmp_path / "head.csv")
    rows = b'[{"image": "a.jpg", "question": "ok?"},\n{"image": "a.jpg", "question": "o\xf9?"}]'
    items = read(tmp_path / "q.json", rows)
    assert asked(items) == ["ok?", None]
    assert "q.json, line 2, question 1: the question: byte 0xf9" in problems(items)[0]
    (tmp_path / "cut.csv").write_bytes("image,question\na.jpg,x".encode("utf-16")[:-1])
    with pytest.raises(ValueError, match=r"cut\.csv'.* is not utf-16"):
        read(tmp_path / "cut.csv")


# ---- layouts ----


def test_vqa_subtype_is_found_wherever_it_stands(tmp_path: Path) -> None:
    questions = [{"image_id": 42, "question": "where?", "question_id": 1}]
    for about in ({"data_subtype": "val2014", "questions": questions}, {"questions": questions, "data_subtype": "val2014"}):
        (item,) = read(tmp_path / "q.json", json.dumps(about))
        assert item.image is not None
        assert item.image.name == "COCO_val2014_000000000042.jpg"
    (item,) = read(tmp_path / "q.json", json.dumps({"questions": questions}))
    assert "no image is named; say how pictures are named by image_name (--image-name)" in str(item.problem)


def test_layouts_of_public_data_sets(tmp_path: Path) -> None:
    gqa = {
        "02930152": {"semantic": [{"operation": "select"}], "imageId": "2354786", "question": "Is the sky dark?"},
        "07333408": {"imageId": "n1", "question": "What is it?"},
    }
    textvqa = {
        "dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1",
        "data": [{"question": "what is the brand?", "image_id": "003a8ae2ef43b901", "question_id": 34602}],
    }
    llava = [
        {"id": "33471", "image": "coco/train2017/000000033471.jpg", "conversations": [
            {"from": "human", "value": "<image>\nWhat are the colors?"}, {"from": "gpt", "value": "White and red."},
            {"from": "human", "value": "Where is it?"}, {"from": "gpt", "value": "On the left."}]},
        {"id": "52846", "image": "a.jpg", "conversations": [{"from": "human", "value": "Where is the cat?\n<image>"}]},
    ]
    captions = {
        "annotations": [
            {"image_id": 391895, "id": 38, "caption": "A man on a bike."}, {"image_id": 1, "id": 39, "caption": "x"}],
        "images": [{"id": 391895, "file_name": "COCO_val2014_000000391895.jpg", "height": 360}],
    }
    cases: list[tuple[Any, list[tuple[str, str, str]]]] = [
        (gqa, [("02930152", "2354786.jpg", "Is the sky dark?"), ("07333408", "n1.jpg", "What is it?")]),
        (textvqa, [("34602", "003a8ae2ef43b901.jpg", "what is the brand?")]),
        (llava, [("33471:0", "coco/train2017/000000033471.jpg", "What are the colors?"),
                 ("33471:1", "coco/train2017/000000033471.jpg", "Where is it?"), ("52846", "a.jpg", "Where is the cat?")]),
        (captions, [("38", "COCO_val2014_000000391895.jpg", "A man on a bike."), ("39", "", "x")]),
        ([{"image": "a.jpg", "caption": ["one", "two"]}], [("0", "a.jpg", "one"), ("1", "a.jpg", "two")]),
    ]  # fmt: skip
    for content, expected in cases:
        items = read(tmp_path / "q.json", json.dumps(content, indent=1))
        assert [(item.id, item.image.name if item.image else "", item.question) for item in items] == expected
    lines = [{"question_id": 0, "image": "001.jpg", "text": "What?", "category": "conv"}]
    assert asked(read(tmp_path / "q.jsonl", json.dumps(lines[0]))) == ["What?"]


def test_an_ending_may_be_the_other_of_json(tmp_path: Path) -> None:
    rows = [{"image": "a.jpg", "question": f"q{n}"} for n in range(3)]
    lines = "\n".join(map(json.dumps, rows))
    for name, text in (("q.json", lines), ("q.jsonl", json.dumps(rows)), ("q.jsonl", json.dumps(rows, indent=1))):
        assert asked(read(tmp_path / name, text)) == ["q0", "q1", "q2"]


def test_columns_are_called_as_one_says(tmp_path: Path) -> None:
    columns = {"question": "sentence", "image": "file", "id": "key"}
    items = read(tmp_path / "q.csv", "key,file,sentence,id\nk,a.jpg,where?,7\n", columns=columns, keep={"number": "id"})
    assert [(item.id, item.image.name if item.image else "", item.question, item.kept) for item in items] == [
        ("k", "a.jpg", "where?", ("7",))
    ]
    rows = [{"key": 1, "file": "a.jpg", "sentence": "where?", "answers": ["a", "\u00fc"], "n": 3, "text": "not this"}]
    (item,) = read(tmp_path / "q.json", json.dumps(rows), columns=columns, keep=["answers", "n", "none"])
    assert item.kept == ('["a", "\u00fc"]', "3", None)
    assert item.question == "where?"
    for options, said in (
        ({"columns": {"picture": "a"}}, "columns: there is no 'picture'"), ({"columns": {"image": "no"}}, "no column 'no'"),
        ({"keep": ["no"]}, "no column 'no'"), ({}, r"no column 'image'; name it by columns \(--columns image=NAME\)"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            open_questions(tmp_path / "q.csv", **options)
    (tmp_path / "twice.csv").write_text("image,question,image\n")
    with pytest.raises(ValueError, match=r"twice\.csv.*line 1: two columns are called 'image'"):
        open_questions(tmp_path / "twice.csv")
    assert asked(read(tmp_path / "semicolons.csv", "image;question\na.jpg;is it, or not?\n")) == ["is it, or not?"]


# ---- JSON ----


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"image": "a", "question": "b"},\n {"image": }]', "line 2: not JSON: Expecting value"),
        ('[{"image": "a", "question": "b"}', "line 1: not JSON: expected , or ], the file ends"),
        ('[{"image": "a", "question": "b"}]\n\nmore', "line 3: not JSON: there is more after the list"),
        ('{"questions": [{"question_id": 1}', "not JSON"),
        ('{"questions": 5}', "holds no list of questions"),
        ("{}", "holds no list of questions"),
        ("", "line 1: not JSON: expected a list or an object"),
        ("5", "expected a list or an object"),
        ("[" * 100_000, "nested too deeply"),
        ('[{"image": "a", "question": "b", "id": ' + "1" * 5000 + "}]", "line 1: not JSON"),
    ],
)
def test_json_that_is_broken_names_file_and_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "q.json").write_text(text)
    with pytest.raises(ValueError, match=r"q\.json") as raised:
        list(open_questions(tmp_path / "q.json")[0])
    assert said in str(raised.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(json_values, max_size=6), st.integers(1, 9), st.sampled_from([None, 1]))
def test_json_is_read_in_pieces_of_any_size(values: list[Any], size: int, indent: int | None) -> None:
    class Slow(io.StringIO):
        def read(self, _: int | None = None) -> str:
            return super().read(size)

    text = json.dumps(values, indent=indent)
    scanner = JsonScanner(Slow(text), "q.json")
    assert [value for _, value in scanner.items()] == values
    assert scanner.peek() == ""
    assert scanner.line == 1 + text.count("\n")


# ---- packed files ----


def test_questions_may_be_packed(tmp_path: Path) -> None:
    plain = b"image,question\na.jpg,where?\nb.jpg,which?\n"
    (tmp_path / "q.csv.gz").write_bytes(gzip.compress(plain))
    with zipfile.ZipFile(tmp_path / "v2.zip", "w") as archive:
        archive.writestr("v2_OpenEnded.csv", plain)
        archive.writestr("__MACOSX/._v2_OpenEnded.csv", "x")
    for name in ("q.csv.gz", "v2.zip"):
        assert asked(read(tmp_path / name)) == ["where?", "which?"]
    rows = json.dumps([{"image": "a.jpg", "question": "where?"}]).encode()
    assert asked(read(tmp_path / "q.json.gz", gzip.compress(rows))) == ["where?"]
    assert asked(read(tmp_path / "q.jsonl.gz", gzip.compress(rows[1:-1]))) == ["where?"]
    broken = gzip.compress(plain)
    for data in (broken[:-9], broken[:15], b"plain text", broken[:20] + b"\xff\xff" + broken[22:]):
        (tmp_path / "broken.csv.gz").write_bytes(data)
        with pytest.raises(ValueError, match=r"broken\.csv\.gz' is not a whole archive"):
            list(open_questions(tmp_path / "broken.csv.gz")[0])
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.json", "[]")
        archive.writestr("b.json", "[]")
    with pytest.raises(ValueError, match="holds 2 files, expected one"):
        open_questions(tmp_path / "two.zip")
    (tmp_path / "no.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"no\.zip"):
        open_questions(tmp_path / "no.zip")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_pictures_may_be_in_an_archive(tmp_path: Path, kind: str) -> None:
    names = write_pictures(tmp_path, 2)
    files = {f"val2014/{names[0]}": names[0], names[1]: names[1], "other/x.png": names[0], "val2014/x.png": names[1]}
    path = tmp_path / f"pictures.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, name in files.items():
                archive.write(tmp_path / name, member)
    else:
        with tarfile.open(path, "w") as packed:
            for member, name in files.items():
                packed.add(tmp_path / name, member)
    wanted = [names[0], names[1], f"./val2014/{names[0]}", "missing.png", "x.png"]
    rows = "".join(json.dumps({"image": name, "question": "where?"}) + "\n" for name in wanted)
    items = read(tmp_path / "q.jsonl", rows, images=path)
    assert [item.problem is None for item in items] == [True, True, True, False, False]
    assert "has no 'missing.png'" in problems(items)[0]
    assert "has 2 pictures that may be 'x.png'" in problems(items)[1]
    for item, name in zip(items, [names[0], names[1], names[0]]):
        assert item.image is not None
        assert item.image.read() == (tmp_path / name).read_bytes()


def test_places_of_pictures_are_checked(tmp_path: Path) -> None:
    questions = tmp_path / "q.csv"
    questions.write_text("image,question\n")
    (tmp_path / "plain.txt").write_text("x")
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as packed:
        packed.add(questions, "q")
    for place, kind, said in (
        ("nowhere", FileNotFoundError, "no folder or archive"), ("plain.txt", ValueError, "expected a folder, a .zip or"),
        ("x.tar.gz", ValueError, "compressed as a whole"),
    ):  # fmt: skip
        with pytest.raises(kind, match=said):
            open_questions(questions, images=tmp_path / place)


def test_another_folders_picture_is_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (name,) = write_pictures(tmp_path, 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "in").mkdir()
    questions = tmp_path / "in" / "q.jsonl"
    questions.write_text(json.dumps({"image": name, "question": "where?"}))
    for images, path in ((None, name), (tmp_path / "empty", str(tmp_path / "empty" / name))):
        (item,) = read(questions, images=images)
        assert item.image is not None
        assert item.image.read() == path


def test_pictures_as_text(tmp_path: Path) -> None:
    (name,) = write_pictures(tmp_path, 1)
    data = (tmp_path / name).read_bytes()
    packed = base64.b64encode(data).decode()
    table = f"index\timage\tquestion\n0\t{packed}\twhere?\n1\tdata:image/png;base64,{packed}\twhich?\n"
    items = read(tmp_path / "q.tsv", table, columns={"id": "index"})
    assert asked(items) == ["where?", "which?"]
    assert [item.image.read() for item in items if item.image] == [data, data]
    rows = [{"image": {"bytes": None, "path": name}, "question": "a"}, {"image": [name], "question": "b"},
            {"image": [name, name], "question": "c"}, {"image": "data:image/png;base64,?", "question": "d"}]  # fmt: skip
    items = read(tmp_path / "q.json", json.dumps(rows))
    assert asked(items) == ["a", "b", None, None]


def test_parquet_that_is_broken(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "q.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"q\.parquet' is not Parquet"):
        open_questions(tmp_path / "q.parquet")
    spoiled = pa.Array.from_buffers(pa.binary(), 2, pa.array([b"where?", b"o\xf9?"], pa.binary()).buffers())
    text = pa.Array.from_buffers(pa.string(), 2, spoiled.buffers())
    table = pa.table({"image": ["a.jpg", "b.jpg"], "question": text, "id": [1.0, 2.0]})
    parquet.write_table(table, tmp_path / "spoiled.parquet")
    items = read(tmp_path / "spoiled.parquet")
    assert asked(items) == ["where?", None]
    assert "spoiled.parquet, row 1: column 'question' is not UTF-8" in problems(items)[0]
    assert [item.id for item in items] == ["1", "2"]
    table = pa.table({"image": ["a.jpg"] * 3, "question": ["where is it?"] * 3})
    parquet.write_table(table, tmp_path / "q.parquet", use_dictionary=False, compression="none")
    whole = (tmp_path / "q.parquet").read_bytes()
    (tmp_path / "q.parquet").write_bytes(whole.replace(b"\x0c\0\0\0where", b"\xff\xff\xff\x7fwhere"))
    with pytest.raises(ValueError, match=r"q\.parquet' cannot be read after row 0: ") as caught:
        read(tmp_path / "q.parquet")
    assert type(caught.value) is ValueError


TABLES = {
    "csv": b'image,question,id\na.jpg,"is it ""red"", or\nblue?",7\nb.jpg,x,8\n',
    "tsv": b'image\tquestion\na.jpg\t"x\nb.jpg\ty\n',
    "json": b'{"data_subtype":"val2014","questions":[{"image_id":1,"question":"q"},{"image_id":3,"question":"\\ud83d"}]}',
    "jsonl": b'{"image":"a.jpg","question":"q"}\n{"image":{"bytes":null,"path":"x"},"question":["a","b"]}\n',
}
PIECES = [b'"', b",", b"\t", b"\n", b"\r", b"\0", b"\xff", b"[", b"{", b"}", b"\\u", b"\xef\xbb\xbf", b"\xff\xfe"]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(TABLES)), st.lists(st.tuples(st.integers(0, 120), st.sampled_from(PIECES)), max_size=4))
def test_a_changed_table_gives_rows_or_an_error_that_names_it(ending: str, changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(TABLES[ending])
    for at, piece in changes:
        data[at : at + (at % 3)] = piece
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"q.{ending}"
        path.write_bytes(data)
        items, problem = [], f"q.{ending}"
        try:
            items = list(open_questions(path)[0])
        except ValueError as error:
            problem = str(error)
    assert f"q.{ending}" in problem
    for item in items:
        (item.id + item.question + (item.problem or "")).encode()
        assert item.problem is None or f"q.{ending}" in item.problem
