"""Kinds of files that a data set is made of, and that runs leave: questions, boxes, archives, results, annotations."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import itertools
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from kinds_models import GOLDEN, pack_gzip, with_name
from PIL import Image
from watching import Kind

import qavit
from qavit._base import pictures as base_pictures
from qavit.cli import _score as score
from qavit.data import _evaluation as evaluation
from qavit.data import _output as output
from qavit.data import _pictures as pictures
from qavit.data import _questions as questions
from qavit.data import _reading as reading
from qavit.data import _targets as targets
from qavit.data._rows import MapRow
from qavit.heatmaps import _archive as archive
from qavit.metrics import _gqa, _vqa  # noqa: F401 - so that they are instrumented
from qavit.models import _picture_folder as picture_folder

HEIGHT, WIDTH = 48, 64
MOST_ROWS = 20_000
MOST_PIXELS = 1 << 20
Place = Callable[..., Path]


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)).save(buffer, "JPEG", quality=40)
    return buffer.getvalue()


ROWS = [
    {"id": "q0", "image": "0.png", "question": "where is the car?", "box": [1, 2, 30, 40], "label": "car"},
    {"question_id": 7, "image": "1.png", "question": ["a", "b"], "bbox": [1.5, 2, 30, 40]},
    {"image_path": "val/2.png", "text_input": "the dog", "segmentation": [[1, 2, 30, 2, 30, 40]]},
    {"id": 3, "file_name": "3.png", "caption": "a cup", "segmentation": {"size": [4, 3], "counts": [2, 4, 6]}},
    {
        "id": "c",
        "image": "4.png",
        "conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "x"}],
    },
]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
VQA = {
    "info": {},
    "task_type": "Open-Ended",
    "data_type": "mscoco",
    "data_subtype": "val2014",
    "questions": [
        {"image_id": 42, "question": "What is it?", "question_id": 420},
        {"image_id": 73, "question": "Who?", "question_id": 1},
    ],
}
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "height": 48, "width": 64}],
    "categories": [{"id": 3, "name": "cup"}],
    "annotations": [
        {"id": 5, "image_id": 1, "category_id": 3, "bbox": [1, 2, 10, 12], "segmentation": [[1, 2, 11, 2, 11, 14]]},
        {
            "id": 6,
            "image_id": 1,
            "category_id": 3,
            "segmentation": {"size": [48, 64], "counts": [100, 50, 2922]},
            "iscrowd": 1,
        },
    ],
}
GQA = {"q1": {"imageId": "7", "question": "Is it?", "answer": "yes", "types": {"structural": "verify", "semantic": "rel"}}}
CSV = (
    b'id,image,question,box\r\nq0,0.png,"where, ""exactly""?","1,2,30,40"\r\n1,1.png,what,[[1;2;3;4]]\r\n'
    b'2,2.png,"two\r\nlines",1 2 3 4\r\n'
)
TSV = b'image\ttext\tbbox\tlabel\n0.png\tthe "big" dog\t1 2 3 4\tdog\n1.png\ta 6" cup\t[1, 2, 3, 4]\tcup\n'
GLAVA = {"questions": [{"question_id": 1, "image": "a.png", "text": "what?"}]}


def kinds(folder: Path) -> dict[str, Kind]:
    """Each kind by its name; `folder` is where their files may be."""

    def place(name: str) -> Path:
        made = folder / name.replace(".", "_")
        made.mkdir()
        return made

    return {**_questions(place), **_packed(place), **_results(place), **_runs(place)}


# ---- questions, boxes, annotations ----


def _questions(place: Place) -> dict[str, Kind]:
    def dumped(*values: Any) -> list[bytes]:
        return [json.dumps(value).encode() for value in values]

    tables = {
        "rows.jsonl": [LINES, json.dumps(ROWS).encode(), LINES.decode().encode("utf-16")],
        "rows.json": dumped(ROWS, VQA, COCO, GQA, GLAVA, {"data": [{"image_id": "x", "question": "q"}]}),
        "rows.csv": [CSV, CSV.replace(b",", b";"), CSV.decode().encode("utf-16-le")],
        "rows.tsv": [TSV],
        "rows.tar": [small_tar()],
        "rows.parquet": [small_parquet(), small_parquet("gzip"), small_parquet(version="1.0", use_dictionary=False)],
    }
    made = {
        name: Kind(seeds, place(name) / name, read_table, _aligned if name == "rows.tar" else bytes)
        for name, seeds in tables.items()
    }
    coded = b"image\tquestion\n" + base64.b64encode(png()) + b"\twhat?\n" + base64.urlsafe_b64encode(jpeg()) + b"\twho?\n"
    link = b"image\tquestion\ndata:image/png;base64," + base64.b64encode(png()) + b"\twhat?\n"
    made["base64"] = Kind([png(), jpeg()], place("base64") / "x.txt", read_base64, named=False)
    made["base64.tsv"] = Kind([coded, link], place("base64.tsv") / "x.tsv", read_coded)
    return made


def check_item(item: Any) -> None:
    """A question as the rest of qavit takes it: texts that can be written, a picture or the reason why there is none."""
    for said in (item.id, item.question, item.problem or "", *(one or "" for one in item.kept)):
        assert isinstance(said, str)
    for said in (item.id, item.question, item.problem or ""):
        said.encode("utf-8")
    assert item.id
    assert item.image is None or isinstance(item.image, pictures.ImageSource)
    assert item.problem or item.image is not None


def read_table(path: Path) -> list[Any]:
    """The questions of a table, then the boxes that its columns may be, and which pixels they mark."""
    (file,) = questions.open_questions(path)
    items = list(itertools.islice(file, MOST_ROWS))
    for item in items:
        check_item(item)
    for target in targets.read_targets(path):
        if target.problem is None and not any(isinstance(value, str) for _, value in target.shapes):
            try:
                mask = target.mask(HEIGHT, WIDTH, (HEIGHT, WIDTH))
            except ValueError as error:
                if type(error) is not ValueError:
                    raise
            else:
                assert mask.shape == (HEIGHT, WIDTH)
                assert mask.any()
    return items


def read_base64(path: Path) -> None:
    """A picture's text by both alphabets says what its bytes say; damaged text is no other picture."""
    data = path.read_bytes()
    try:
        expected = base_pictures.load_image(data, max_pixels=MOST_PIXELS)
    except ValueError:
        expected = None
    for text in (base64.b64encode(data).decode(), "data:image/png;base64," + base64.urlsafe_b64encode(data).decode()):
        if base_pictures.picture_in_text(text) is None:  # no picture's first bytes, or too short
            continue
        try:
            found = base_pictures.load_image(text, max_pixels=MOST_PIXELS)
        except ValueError as error:
            if expected is not None or type(error) is not ValueError:
                raise
        else:
            assert expected is not None
            assert np.array_equal(found, expected)
    as_text = data.decode("latin1")
    if (held := base_pictures.picture_in_text(as_text)) is not None:
        base_pictures.load_image(held, max_pixels=MOST_PIXELS)


def read_coded(path: Path) -> None:
    """The pictures that stand in a table's cells."""
    for item in itertools.islice(questions.QuestionFile(path, None, questions.Reading(), ""), 1000):
        check_item(item)
        if item.image is not None and item.image.data is not None:
            with_name(path, lambda data=item.image.data: base_pictures.load_image(data, max_pixels=MOST_PIXELS))


def small_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as packed:
        for name, content in (
            ("a/0.png", png()),
            ("a/0.json", b'{"question": "what?", "id": 1}'),
            ("a/1.jpg", jpeg()),
            ("a/1.txt", b"the dog"),
            ("a/2.json", b'{"questions": ["x", {"question": "y"}]}'),
            ("a/2.png", png()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def small_parquet(compression: str = "none", **options: Any) -> bytes:
    """Rows with a box in a list, and a picture as `datasets` keeps it."""
    rows = [
        {"id": name, "image": {"bytes": picture, "path": path}, "question": said, "box": box, "label": "dog"}
        for name, picture, path, said, box in (
            ("q0", png(), "0.png", "where is the dog?", [1.0, 2.0, 30.0, 40.0]),
            ("q1", jpeg(), None, "what?", [1.5, 2.0, 30.0, 40.0]),
            ("q2", None, "2.png", None, None),
        )
    ]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, compression=compression, **options)
    return buffer.getvalue()


def _aligned(content: bytes) -> bytes:
    """With the checksums of its headers right again, as far as they still stand at their places."""
    data = bytearray(content)
    at = 0
    while at + 512 <= len(data) and data[at] and data[at + 257 : at + 262] == b"ustar":
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
        size = data[at + 124 : at + 135].strip(b" \0") or b"0"
        length = int(size, 8) if set(size) <= set(b"01234567") else 0
        at += 512 + (length + 511) // 512 * 512
    return bytes(data)


# ---- what is packed ----


def _packed(place: Place) -> dict[str, Kind]:

    def read(path: Path) -> None:
        """What is packed says what it says unpacked."""
        items = read_table(path)
        if path.suffix == ".gz":
            plain = path.with_suffix("")
            plain.write_bytes(gzip.decompress(path.read_bytes()))
            theirs = read_table(plain)
            assert [item[:3] for item in items] == [item[:3] for item in theirs]

    zipped = zipped_rows(LINES)
    deflated = zipped_rows(LINES, zipfile.ZIP_DEFLATED)
    small = zip_of({"val/0.png": png(), "val/1.jpg": jpeg(), "2.png": png()})
    return {
        "packed.gz": Kind([LINES, pack_gzip(LINES)], place("packed.gz") / "rows.jsonl.gz", read, pack_gzip),
        "packed.zip": Kind([LINES, zipped, deflated], place("packed.zip") / "rows.zip", read, pack_zip),
        "pictures.zip": Kind([small], place("pictures.zip") / "pictures.zip", read_pictures),
        "pictures.tar": Kind([small_tar()], place("pictures.tar") / "pictures.tar", read_pictures, _aligned),
    }


def zip_of(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as packed:
        for name, content in members.items():
            packed.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()


def zipped_rows(content: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    return zip_of({"rows.jsonl": content}, compression)


def pack_zip(content: bytes) -> bytes:
    return content if content[:2] == b"PK" else zipped_rows(content, zipfile.ZIP_DEFLATED)


def read_pictures(path: Path) -> None:
    """Each picture of an archive, and one that it does not have."""
    pictures._archive.cache_clear()  # it is another file every time
    try:
        place = pictures.Pictures(path, str(path.parent))
        for name in ("val/0.png", "1.jpg", "2.png", "a/0.png", "../x", "\0"):
            try:
                source = place.find(name)
                content = source.read()
            except ValueError as error:
                if type(error) is not ValueError:
                    raise
                continue
            assert isinstance(content, bytes)
            with_name(path, lambda content=content: base_pictures.load_image(content, max_pixels=MOST_PIXELS))
    finally:
        pictures._archive.cache_clear()


# ---- results ----


def _results(place: Place) -> dict[str, Kind]:
    folder = GOLDEN / "vqa_score"
    whole = json.loads((folder / "annotations.json").read_bytes())
    kept = {**whole, "annotations": whole["annotations"][:3]}
    ids = [row["question_id"] for row in kept["annotations"]]
    answers = [row for row in json.loads((folder / "results.json").read_bytes()) if row["question_id"] in ids]
    lavis = [{"question_id": row["question_id"], "pred_ans": row["answer"]} for row in answers]
    board = [{"questionId": "q1", "prediction": "yes"}]
    beside = place("results")
    vqa_file, gqa_file, result_file = beside / "annotations.json", beside / "gqa.json", beside / "results.json"
    vqa_file.write_text(json.dumps(kept))
    gqa_file.write_text(json.dumps(GQA))
    result_file.write_text(json.dumps(answers))

    def read_results(path: Path) -> None:
        read_scores((path, vqa_file), (path, gqa_file))

    def read_labels(path: Path) -> None:
        read_scores((result_file, path))

    dumped = [json.dumps(value).encode() for value in (answers, lavis, board, {"results": answers})]
    labels = [json.dumps(value).encode() for value in (kept, kept["annotations"], GQA)]
    return {
        "results": Kind(dumped, beside / "given.json", read_results, named=False),
        "annotations": Kind(labels, beside / "told.json", read_labels, named=False),
    }


def read_scores(*pairs: tuple[Path, Path]) -> None:
    """Scores of both rules from 0 to 100; at least one of the pairs can be scored."""
    refused = []
    for results, labels in pairs:
        for partial in (False, True):
            try:
                found = score.score_of(results, labels, partial)
            except ValueError as error:
                if type(error) is not ValueError:
                    raise
                refused.append(error)
                continue
            assert 0 <= found["overall"] <= 100
            assert all(0 <= one <= 100 for one in found["per_question"].values())
            json.dumps(found, allow_nan=False)
            score.score_text(found)
    if len(refused) == 2 * len(pairs):
        raise refused[0]


# ---- what runs and results left ----


def _runs(place: Place) -> dict[str, Kind]:
    manifest = {
        "format": "qavit-maps",
        "version": 1,
        "grid": [3, 3],
        "block": 2,
        "method": "class",
        "keep": [],
        "questions": [{}],
    }
    run, rows, kept = place("manifest"), place("evaluated"), place("kept")
    (run / "parts").mkdir()
    (run / "_input-00000.json").write_text('{"parts": 0, "rows": 0}')
    numbers = [1.0, 0.5, 0.25, 0.5, *[3.0] * (len(_numbers()) - 4)]
    line = (
        json.dumps({"id": "0", "method": "class", "image": "a", "text": "b", "label": "c", "numbers": numbers}).encode()
        + b"\n"
    )
    value = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": (np.zeros(2, np.int32), np.ones((1, 1), np.float16))}
    return {
        "npz": Kind([small_result(), small_result(stored=True)], place("npz") / "x.npz", read_result),
        "part": Kind([small_part()], _second(run, place, "part") / "parts" / "00000-000000.parquet", read_parts),
        "manifest": Kind([json.dumps(manifest).encode()], run / "_manifest.json", read_run),
        "finished": Kind([b'{"parts": 0, "rows": 0}'], _second(run, place, "finished") / "_input-00000.json", read_run),
        "evaluated": Kind([line + line.replace(b'"0"', b'"1"')], rows / "rows.jsonl", read_evaluated, named=False),
        "kept": Kind([b"".join(map(bytes, picture_folder._packed("x", value)))], kept / "x.kept", read_kept, pack_kept),
    }


def _numbers() -> list[float]:
    meter = evaluation.Localization(15.0)
    return meter.update(np.ones((4, 4), np.float32), np.eye(4, dtype=bool))


def _second(run: Path, place: Place, name: str) -> Path:
    other = place(name)
    (other / "parts").mkdir()
    manifest = {"format": "qavit-maps", "version": 1, "grid": [3, 3], "block": [1, 2], "method": "class", "questions": [{}]}
    (other / "_manifest.json").write_text(json.dumps(manifest))
    return other


def small_part() -> bytes:
    """Two maps, and a row that failed."""
    shape = ("0.png", "where?", 2, (3, 3))
    maps = np.arange(18, dtype=np.float32).reshape(2, 3, 3) / 36
    rest = (0.5, None, 0.1, "class", (6, 5), (0, 0, 5, 6), ("cropped",))
    rows = [MapRow(f"q{one}", *shape, values, *rest) for one, values in enumerate(maps)]
    rows.append(MapRow("q2", *shape, None, None, "no picture", 0.0, "class"))
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(output.table_of(rows, (3, 3), "float16"), buffer, compression="none")
    return buffer.getvalue()


def read_parts(path: Path) -> None:
    """Every way of reading a part says the same of it, or refuses it."""
    reader = reading.read_maps(path.parent.parent)
    repr(reader)
    ids, maps = reader.to_numpy()
    assert maps.shape == (len(ids), 3, 3)
    rows = list(itertools.islice(reader, MOST_ROWS))
    assert len(rows) == len(reader)
    assert [row.id for row in rows if row.map is not None] == ids
    assert len(list(reader.errors())) <= len(rows)
    if len(set(ids)) == len(rows):
        assert np.array_equal(reader.gather(ids), maps, equal_nan=True)


def read_run(path: Path) -> None:
    reader = reading.read_maps(path.parent)
    assert reader.complete in (True, False)
    assert len(reader) == 0
    repr(reader)
    assert reader.to_numpy()[1].shape == (0, *reader.grid)


def small_result(stored: bool = False) -> bytes:
    random = np.random.default_rng(0)
    maps = random.random((2, 3, 3)).astype(np.float32)
    maps /= maps.sum(axis=(1, 2), keepdims=True)
    result = qavit.HeatmapResult(
        maps,
        ["where?", "who is \u00e9?"],
        np.zeros((6, 5, 3), np.uint8),
        block=2,
        raw=maps,
        words=[["where?"], ["who", "is", "\u00e9?"]],
        word_maps=[maps[:1], np.concatenate([maps, maps[:1]])],
        answers=[[("a", 0.5)], [("b", 0.25)]],
        scores=np.array([0.5, 0.25], np.float32),
        notes=[("kind", "text", 0)],
        model="demo",
    )
    data = archive.archive_of(result)
    if not stored:
        return data
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        return zip_of({name: packed.read(name) for name in packed.namelist()}, zipfile.ZIP_STORED)


def read_result(path: Path) -> None:
    """A result of finite maps that can be kept again."""
    result = qavit.HeatmapResult.load(path)
    assert result.maps.ndim == 3
    assert np.isfinite(result.maps).all()
    repr(result)
    if result.picture.size < 1 << 16 and result.maps.size < 1 << 16:
        archive.archive_of(result)


def read_evaluated(path: Path) -> None:
    """An evaluation goes on with the rows of an earlier one."""
    (path.parent / "settings.json").write_text("{}")
    kept = evaluation._Kept(path.parent, {}, False)
    with kept:
        listed = [evaluation.Target(str(one), None, "text") for one in dict.fromkeys(row for row, _ in kept.numbers)]
        runner = evaluation._Runner(None, {"class": None}, kept, 15.0, None, 0)  # type: ignore[arg-type]
        found = runner.found(listed[:100], 5, 0)
    json.dumps(found.to_dict(), allow_nan=False)


def pack_kept(content: bytes) -> bytes:
    """With the digest that stands in front of it right again."""
    start = len(picture_folder.FORMAT)
    return content[:start] + hashlib.sha256(content[start + 32 :]).digest() + content[start + 32 :]


def read_kept(path: Path) -> None:
    """What is not whole, or of another name, is as good as not there."""
    data = np.frombuffer(path.read_bytes(), np.uint8)
    picture_folder._unpacked(data, "x")
    assert picture_folder._unpacked(data, "y") is None or b'"y"' in data.tobytes()
